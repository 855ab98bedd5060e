"""What counts as right? Torch modules and sentence-transformers losses."""

import importlib
from typing import TYPE_CHECKING, Any

from gradatim.losses.multi_positive import OBJECTIVES, multi_positive_loss
from gradatim.losses.pairwise_curriculum import PAIRWISE_KINDS, PairwiseCurriculumLoss, pairwise_loss
from gradatim.losses.pointwise_curriculum import POINTWISE_KINDS, PointwiseCurriculumLoss, pointwise_loss
from gradatim.losses.soft_labels import soft_label_loss

if TYPE_CHECKING:
    from gradatim.losses.cached_multi_positive import CachedMultiPositiveRankingLoss
    from gradatim.losses.in_batch_teacher import InBatchTeacher
    from gradatim.losses.multi_positive_ranking import MultiPositiveRankingLoss
    from gradatim.losses.soft_label_ranking import SoftLabelRankingLoss

# sentence-transformers takes seconds to import; whoever has scores already should not wait for it.
_LAZY = {
    "CachedMultiPositiveRankingLoss": "cached_multi_positive",
    "InBatchTeacher": "in_batch_teacher",
    "MultiPositiveRankingLoss": "multi_positive_ranking",
    "SoftLabelRankingLoss": "soft_label_ranking",
}

__all__ = [
    "OBJECTIVES",
    "PAIRWISE_KINDS",
    "POINTWISE_KINDS",
    "CachedMultiPositiveRankingLoss",
    "InBatchTeacher",
    "MultiPositiveRankingLoss",
    "PairwiseCurriculumLoss",
    "PointwiseCurriculumLoss",
    "SoftLabelRankingLoss",
    "multi_positive_loss",
    "pairwise_loss",
    "pointwise_loss",
    "soft_label_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradatim.losses.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
