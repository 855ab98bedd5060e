"""In which order? Samplers, weights, difficulty and selection signals."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradatim.curricula.margins import AbsoluteMargin, AdaptiveMargin, RelativeMargin
    from gradatim.curricula.mined_rows import MinedRows, MiningReport, mine_rows
    from gradatim.curricula.mining import mine_negatives
    from gradatim.curricula.nearest import nearest_rows
    from gradatim.curricula.task_batches import TaskBatchSampler, losses_by_task
    from gradatim.curricula.teachers import BM25, Dense, TeacherEnsemble

# Imported when asked for: whoever needs one part should not wait for the others.
_LAZY = {
    "AbsoluteMargin": "margins",
    "AdaptiveMargin": "margins",
    "BM25": "teachers",
    "Dense": "teachers",
    "MinedRows": "mined_rows",
    "MiningReport": "mined_rows",
    "RelativeMargin": "margins",
    "TaskBatchSampler": "task_batches",
    "TeacherEnsemble": "teachers",
    "losses_by_task": "task_batches",
    "mine_negatives": "mining",
    "mine_rows": "mined_rows",
    "nearest_rows": "nearest",
}

__all__ = [
    "BM25",
    "AbsoluteMargin",
    "AdaptiveMargin",
    "Dense",
    "MinedRows",
    "MiningReport",
    "RelativeMargin",
    "TaskBatchSampler",
    "TeacherEnsemble",
    "losses_by_task",
    "mine_negatives",
    "mine_rows",
    "nearest_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradatim.curricula.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
