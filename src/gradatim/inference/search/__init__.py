"""Search over a folder of documents: an index on disk, and questions to it.

`build_index` makes or updates an index, `FolderIndex` answers. Five ways to rank: BM25 over words, cosine of
sentence vectors, Hamming distance of learned binary codes, SEAL's generated n-grams, and a fusion of ranks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradatim.inference.search.errors import IndexBusyError, IndexDamagedError, SearchError

if TYPE_CHECKING:
    from gradatim.inference.search.building import BuildReport, build_index
    from gradatim.inference.search.searching import Answer, FolderIndex, Hit
    from gradatim.inference.search.settings import IndexSettings

_LAZY = {
    "Answer": "searching",
    "BuildReport": "building",
    "FolderIndex": "searching",
    "Hit": "searching",
    "IndexSettings": "settings",
    "build_index": "building",
}

__all__ = [
    "Answer",
    "BuildReport",
    "FolderIndex",
    "Hit",
    "IndexBusyError",
    "IndexDamagedError",
    "IndexSettings",
    "SearchError",
    "build_index",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradatim.inference.search.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
