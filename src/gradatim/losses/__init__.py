"""What counts as right? Torch modules and sentence-transformers losses."""

from typing import TYPE_CHECKING, Any

from gradatim.losses.multi_positive import OBJECTIVES, multi_positive_loss

if TYPE_CHECKING:
    from gradatim.losses.cached_multi_positive import CachedMultiPositiveRankingLoss
    from gradatim.losses.multi_positive_ranking import MultiPositiveRankingLoss

__all__ = [
    "OBJECTIVES",
    "CachedMultiPositiveRankingLoss",
    "MultiPositiveRankingLoss",
    "multi_positive_loss",
]


def __getattr__(name: str) -> Any:
    # sentence-transformers takes seconds to import; whoever has scores already should not wait for it.
    if name == "MultiPositiveRankingLoss":
        from gradatim.losses.multi_positive_ranking import MultiPositiveRankingLoss

        return MultiPositiveRankingLoss
    if name == "CachedMultiPositiveRankingLoss":
        from gradatim.losses.cached_multi_positive import CachedMultiPositiveRankingLoss

        return CachedMultiPositiveRankingLoss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
