"""What is there to learn? Datasets, generators and their metrics."""

from typing import TYPE_CHECKING, Any

from gradatim.tasks.annotations import Row, draw_rows, heterogeneous, homogeneous, to_multi_positive
from gradatim.tasks.docstrings import (
    TextCorpus,
    docstring_retrieval,
    docstring_texts,
    linked_split,
)
from gradatim.tasks.retrieval import (
    RetrievalScores,
    RetrievalTask,
    bm25_run,
    dense_run,
    evaluate_run,
    pooled_negatives,
)

if TYPE_CHECKING:
    from gradatim.tasks.resampling import ResampleCallback

__all__ = [
    "ResampleCallback",
    "RetrievalScores",
    "RetrievalTask",
    "Row",
    "TextCorpus",
    "bm25_run",
    "dense_run",
    "docstring_retrieval",
    "docstring_texts",
    "draw_rows",
    "evaluate_run",
    "heterogeneous",
    "homogeneous",
    "linked_split",
    "pooled_negatives",
    "to_multi_positive",
]


def __getattr__(name: str) -> Any:
    # transformers takes seconds to import; whoever needs no trainer should not wait for it.
    if name == "ResampleCallback":
        from gradatim.tasks.resampling import ResampleCallback

        return ResampleCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
