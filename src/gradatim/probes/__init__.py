"""What did it learn? Measurements on any model."""

from gradatim.probes.attention_alignment import directional_alignment, effective_rank
from gradatim.probes.attention_direction import HeadAlignment, HeadDirections, attention_direction
from gradatim.probes.attention_equivalence import SVMEquivalence, svm_equivalence
from gradatim.probes.attention_selection import (
    SelectionQuality,
    locally_optimal,
    selected_tokens,
    selection_quality,
    token_scores,
)
from gradatim.probes.attention_svm import AttentionSVMResult, InfeasibleError, attention_svm
from gradatim.probes.attention_svm_estimator import AttentionSVM

__all__ = [
    "AttentionSVM",
    "AttentionSVMResult",
    "HeadAlignment",
    "HeadDirections",
    "InfeasibleError",
    "SVMEquivalence",
    "SelectionQuality",
    "attention_direction",
    "attention_svm",
    "directional_alignment",
    "effective_rank",
    "locally_optimal",
    "selected_tokens",
    "selection_quality",
    "svm_equivalence",
    "token_scores",
]
