"""In which order? Samplers, weights, difficulty and selection signals."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradatim.curricula.cached_scores import CachedScores
    from gradatim.curricula.curriculum_callback import CurriculumCallback
    from gradatim.curricula.difficulty import (
        KDEScore,
        NormalizedScore,
        ReciprocalRank,
        pairwise_difficulty,
        pointwise_difficulty,
    )
    from gradatim.curricula.linear import LinearCurriculum
    from gradatim.curricula.margins import AbsoluteMargin, AdaptiveMargin, RelativeMargin
    from gradatim.curricula.mined_rows import MinedRows, MiningReport, mine_rows
    from gradatim.curricula.mining import mine_negatives
    from gradatim.curricula.nearest import nearest_rows
    from gradatim.curricula.run_pairs import Pair, RunPairs, attach_difficulty, pairs_to_dataset, sample_pairs
    from gradatim.curricula.task_batches import TaskBatchSampler, losses_by_task
    from gradatim.curricula.teachers import BM25, Dense, TeacherEnsemble

# Imported when asked for: whoever needs one part should not wait for the others.
_LAZY = {
    "AbsoluteMargin": "margins",
    "AdaptiveMargin": "margins",
    "BM25": "teachers",
    "CurriculumCallback": "curriculum_callback",
    "Dense": "teachers",
    "KDEScore": "difficulty",
    "LinearCurriculum": "linear",
    "MinedRows": "mined_rows",
    "MiningReport": "mined_rows",
    "NormalizedScore": "difficulty",
    "Pair": "run_pairs",
    "ReciprocalRank": "difficulty",
    "RelativeMargin": "margins",
    "RunPairs": "run_pairs",
    "CachedScores": "cached_scores",
    "TaskBatchSampler": "task_batches",
    "TeacherEnsemble": "teachers",
    "attach_difficulty": "run_pairs",
    "losses_by_task": "task_batches",
    "mine_negatives": "mining",
    "mine_rows": "mined_rows",
    "nearest_rows": "nearest",
    "pairs_to_dataset": "run_pairs",
    "pairwise_difficulty": "difficulty",
    "pointwise_difficulty": "difficulty",
    "sample_pairs": "run_pairs",
}

__all__ = [
    "BM25",
    "AbsoluteMargin",
    "AdaptiveMargin",
    "CachedScores",
    "CurriculumCallback",
    "Dense",
    "KDEScore",
    "LinearCurriculum",
    "MinedRows",
    "MiningReport",
    "NormalizedScore",
    "Pair",
    "ReciprocalRank",
    "RelativeMargin",
    "RunPairs",
    "TaskBatchSampler",
    "TeacherEnsemble",
    "attach_difficulty",
    "losses_by_task",
    "mine_negatives",
    "mine_rows",
    "nearest_rows",
    "pairs_to_dataset",
    "pairwise_difficulty",
    "pointwise_difficulty",
    "sample_pairs",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradatim.curricula.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
