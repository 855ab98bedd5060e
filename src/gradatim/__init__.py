"""gradatim ("step by step"): published training methods as drop-in parts, and a bench that measures them.

The rooms are ordinary subpackages; import the one that answers your question:
`gradatim.losses`, `gradatim.optim`, `gradatim.models`, `gradatim.probes`, `gradatim.tasks` ...
"""

from importlib.metadata import version

__version__ = version("gradatim")
