"""How far below its positive a negative has to score: three rules for hard-negative mining.

With t the mining model's similarity, a candidate d of query q with positive p is kept as a negative iff

    t(q, d) <= t(q, p) - m(q)

    AbsoluteMargin(delta)       m = delta
    RelativeMargin(rho)         m = (1 - rho) |t(q, p)|
    AdaptiveMargin(kappa)       m = kappa std over the query's candidates of t(q, d), within [least, most]

What scores closer to the positive than that is likelier an unlabelled positive than a negative.

Source: the absolute and the relative rule are TopK-MarginPos and TopK-PercPos of NV-Retriever (2024, arXiv
2407.15831); LG-ANNA-Embedding (2025, arXiv 2506.07438) mines with an "adaptive margin" whose formula is not
public, and the adaptive rule here is our reading of the word.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class AbsoluteMargin:
    """m = delta, in units of the similarity. Raises ValueError for a delta that is not finite."""

    delta: float | int = 0.05

    def __post_init__(self) -> None:
        if not math.isfinite(self.delta):
            raise ValueError(f"AbsoluteMargin({self.delta}): give a finite number, 0.05 for cosines")

    def highest(
        self,
        positive: Float[Tensor, " queries"],
        candidates: Float[Tensor, "queries r"],
        valid: Bool[Tensor, "queries r"],
    ) -> Float[Tensor, " queries"]:
        """The highest similarity that a negative of each query may have."""
        return positive - self.delta


@dataclass(frozen=True)
class RelativeMargin:
    """m = (1 - rho) |t(q, p)|; rho = 0.95 asks for 5 % less than the positive's magnitude.

    A positive of similarity 0 or less has its magnitude taken, with a warning: such a positive is likely
    mislabelled. Raises ValueError unless 0 < rho <= 1.
    """

    rho: float | int = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ValueError(f"RelativeMargin({self.rho}): rho must lie in (0, 1], 0.95 is usual")

    def highest(
        self,
        positive: Float[Tensor, " queries"],
        candidates: Float[Tensor, "queries r"],
        valid: Bool[Tensor, "queries r"],
    ) -> Float[Tensor, " queries"]:
        """The highest similarity that a negative of each query may have."""
        low = int((positive <= 0).sum())
        if low:
            warnings.warn(
                f"{low} of {len(positive)} positives have a similarity of 0 or less; their margin uses its "
                "magnitude: look at these pairs, they may be mislabelled",
                UserWarning,
                stacklevel=2,
            )
        return positive - positive.abs() * (1 - self.rho)


@dataclass(frozen=True)
class AdaptiveMargin:
    """m = kappa times the standard deviation of the query's candidate similarities, within [least, most].

    The more a query's candidates spread, the wider the margin: the rule does not depend on the level at which
    a model's similarities lie. Raises ValueError unless kappa >= 0 and 0 <= least <= most.
    """

    kappa: float | int = 0.5
    least: float | int = 0.0
    most: float | int = math.inf

    def __post_init__(self) -> None:
        if not (self.kappa >= 0 and math.isfinite(self.kappa)):
            raise ValueError(f"AdaptiveMargin({self.kappa}): kappa must be a finite number of at least 0")
        if not 0 <= self.least <= self.most:
            raise ValueError(
                f"AdaptiveMargin: least={self.least} and most={self.most} need 0 <= least <= most"
            )

    def highest(
        self,
        positive: Float[Tensor, " queries"],
        candidates: Float[Tensor, "queries r"],
        valid: Bool[Tensor, "queries r"],
    ) -> Float[Tensor, " queries"]:
        """The highest similarity that a negative of each query may have."""
        count = valid.sum(dim=1).clamp(min=1)
        mean = candidates.masked_fill(~valid, 0.0).sum(dim=1) / count
        squares = (candidates - mean[:, None]).masked_fill(~valid, 0.0).square().sum(dim=1)
        return positive - (self.kappa * (squares / count).sqrt()).clamp(self.least, self.most)


Margin = AbsoluteMargin | RelativeMargin | AdaptiveMargin
