"""What can go wrong with a search index, each as one line that says the fix."""

from __future__ import annotations


class SearchError(ValueError):
    """A question or an option that cannot be served; the message is one line."""


class IndexDamagedError(SearchError):
    """A folder that is no search index, or one that does not hold what its manifest says."""


class IndexBusyError(SearchError):
    """Another process is writing to the index."""
