"""Which one on my data? The arms the user names over her own file, one module per task.

`retrieval`, `tabular`, `schedule` and `language` each have `comparison(...)`, which reads and checks the data
and returns a `gradatim.bench.Study` for the engine, the verdicts and the report.
"""

from typing import TYPE_CHECKING, Any

from gradatim.compare.errors import DataError

if TYPE_CHECKING:
    from gradatim.compare.comparison import Winner, winner
    from gradatim.compare.saved_network import SavedNetwork

__all__ = ["DataError", "SavedNetwork", "Winner", "winner"]


def __getattr__(name: str) -> Any:
    # The command line asks for the error alone; statistics and pandas can wait.
    if name in ("Winner", "winner"):
        from gradatim.compare import comparison

        return getattr(comparison, name)
    if name == "SavedNetwork":
        from gradatim.compare.saved_network import SavedNetwork

        return SavedNetwork
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
