"""How does a person ask? A small local web page over a search index, and the same answers as JSON."""

from gradatim.serve.app import make_app

__all__ = ["make_app"]
