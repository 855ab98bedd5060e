"""How easy a document is for a ranker, read off the first stage's scores of the query's documents.

With r_1 >= ... >= r_R the scores of one query's run, each heuristic gives H in [0, 1], high for a document
that the first stage ranks high:

    ReciprocalRank   H(d) = 1 / rank(d)
    NormalizedScore  H(d) = (r_d - min r) / (max r - min r)
    KDEScore         H(d) = (1/R) sum_j Phi((r_d - r_j) / h),   h = std(r) R^(-1/5)

A relevant document that the first stage ranks high is easy, and so is an irrelevant one that it ranks low:

    pointwise  D(q, d)      = H(d) if d is relevant, else 1 - H(d)
    pairwise   D(q, d+, d-) = (H(d+) - H(d-) + 1) / 2,   the least of them with several d-

First-stage scores are far from uniform, so NormalizedScore crowds near 0; the distribution function of
KDEScore spreads a query's documents evenly over [0, 1].

Source: Training Curricula for Open Domain Answer Re-Ranking, SIGIR 2020, arXiv 2004.14269. Its code ranks a
document outside the run 1000th; here such a document has H = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

CONSTANT = 0.5
"""H where a query's scores say nothing: a single document, or equal scores."""

_BLOCK = 2**20


@runtime_checkable
class Heuristic(Protocol):
    """Scores of each query's run, padded places masked out, to H in [0, 1]; padded places get 0."""

    def __call__(
        self, scores: Float[Tensor, "*queries docs"], mask: Bool[Tensor, "*queries docs"] | None = None
    ) -> Float[Tensor, "*queries docs"]: ...


@dataclass(frozen=True)
class ReciprocalRank:
    """H(d) = 1 / rank(d), ranks from 1; of equal scores the earlier place ranks higher.

    A run's documents in the order (score, id) descending thus rank as TREC's tools rank them.
    """

    def __call__(
        self, scores: Float[Tensor, "*queries docs"], mask: Bool[Tensor, "*queries docs"] | None = None
    ) -> Float[Tensor, "*queries docs"]:
        scores, mask = _checked(scores, mask)
        order = scores.masked_fill(~mask, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
        reciprocal = torch.empty_like(scores).scatter_(-1, order, ranks.reciprocal().expand_as(scores))
        return reciprocal.masked_fill(~mask, 0.0)


@dataclass(frozen=True)
class NormalizedScore:
    """H(d) = (r_d - min r) / (max r - min r); 0.5 where a query's scores are all equal."""

    def __call__(
        self, scores: Float[Tensor, "*queries docs"], mask: Bool[Tensor, "*queries docs"] | None = None
    ) -> Float[Tensor, "*queries docs"]:
        scores, mask = _checked(scores, mask)
        low = scores.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
        spread = scores.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True) - low
        varied = spread > 0
        share = ((scores - low) / torch.where(varied, spread, 1.0)).clamp(0.0, 1.0)
        return torch.where(varied, share, CONSTANT).masked_fill(~mask, 0.0)


@dataclass(frozen=True)
class KDEScore:
    """H(d) = (1/R) sum_j Phi((r_d - r_j) / h), the distribution function of a Gaussian kernel estimate.

    `bandwidth` is the factor on the scores' standard deviation (ddof 1): "scott" R^(-1/5), "silverman"
    (3R/4)^(-1/5), or a number above 0. H is 0.5 where a query has one document or equal scores. Computed
    in float64 and returned in the scores' own precision.

    Raises ValueError for another bandwidth.
    """

    bandwidth: str | int | float = "scott"

    def __post_init__(self) -> None:
        named = isinstance(self.bandwidth, str)
        if self.bandwidth not in ("scott", "silverman") if named else not float(self.bandwidth) > 0:
            raise ValueError(
                f"bandwidth={self.bandwidth!r} is unknown; choose scott, silverman or a number above 0"
            )

    def __call__(
        self, scores: Float[Tensor, "*queries docs"], mask: Bool[Tensor, "*queries docs"] | None = None
    ) -> Float[Tensor, "*queries docs"]:
        scores, mask = _checked(scores, mask)
        return self.at(scores, scores, mask).masked_fill(~mask, 0.0)

    def at(
        self,
        scores: Float[Tensor, "*queries docs"],
        points: Float[Tensor, "*queries points"],
        mask: Bool[Tensor, "*queries docs"] | None = None,
    ) -> Float[Tensor, "*queries points"]:
        """H of these points alone: R Gaussians each, where the whole run takes R^2."""
        scores, mask = _checked(scores, mask)
        docs, many = scores.shape[-1], points.shape[-1]
        r, at = scores.double().reshape(-1, docs), points.double().reshape(-1, many)
        kept = mask.reshape(-1, docs)
        found = torch.empty_like(at)
        step = max(1, _BLOCK // max(1, docs * many))
        for begin in range(0, len(r), step):
            rows = slice(begin, begin + step)
            found[rows] = self._distribution(r[rows], at[rows], kept[rows])
        return found.reshape(points.shape).to(points.dtype)

    def _distribution(self, r: Tensor, at: Tensor, kept: Tensor) -> Tensor:
        count = kept.sum(-1, keepdim=True)
        safe = count.clamp(min=1)
        mean = (r * kept).sum(-1, keepdim=True) / safe
        variance = (((r - mean) * kept) ** 2).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
        width = variance.sqrt() * self._factor(safe.double())
        # A spread at rounding level is no spread: the mean of equal numbers is not quite the number.
        varied = (count > 1) & (width > 1e-12 * r.abs().amax(-1, keepdim=True))
        width = torch.where(varied, width, 1.0)
        # Phi(x) = (1 + erf(x / sqrt 2)) / 2; sum over the run with masked places at erf = 0, i.e. Phi = 1/2.
        gaps = (at.unsqueeze(-1) - r.unsqueeze(-2)) / (width * 2**0.5).unsqueeze(-1)
        total = torch.einsum("qpd,qd->qp", gaps.erf_(), kept.to(r.dtype))
        share = (0.5 + 0.5 * total / safe).clamp(0.0, 1.0)
        return torch.where(varied, share, CONSTANT)

    def _factor(self, count: Tensor) -> Tensor | float:
        if self.bandwidth == "scott":
            return count ** (-0.2)
        if self.bandwidth == "silverman":
            return (0.75 * count) ** (-0.2)
        return float(self.bandwidth)


HEURISTICS: dict[str, type[ReciprocalRank] | type[NormalizedScore] | type[KDEScore]] = {
    "recip": ReciprocalRank,
    "norm": NormalizedScore,
    "kde": KDEScore,
}
"""The paper's names for the three."""


def resolve_heuristic(heuristic: Heuristic | str) -> Heuristic:
    """A heuristic, or the one that "recip", "norm" or "kde" names; raises ValueError for another name."""
    if isinstance(heuristic, str):
        if heuristic not in HEURISTICS:
            raise ValueError(f"heuristic={heuristic!r} is unknown; choose {', '.join(HEURISTICS)}")
        return HEURISTICS[heuristic]()
    return heuristic


def pointwise_difficulty(
    heuristic: Float[Tensor, "*batch"], relevant: Bool[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """D = H where the document is relevant, else 1 - H."""
    return torch.where(relevant, heuristic, 1.0 - heuristic)


def pairwise_difficulty(
    positive: Float[Tensor, "*batch"], negatives: Float[Tensor, "*batch negatives"]
) -> Float[Tensor, "*batch"]:
    """D = (H(d+) - H(d-) + 1) / 2, the least over the negatives: the hardest pair decides."""
    return ((positive.unsqueeze(-1) - negatives + 1.0) / 2.0).amin(-1)


def _checked(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores with 0 in masked places, and the mask; refuses empty queries and scores that are not finite."""
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    scores = scores.masked_fill(~mask, 0.0)
    empty = ~mask.any(-1)
    if bool(empty.any()):
        row = empty.nonzero()[0].tolist()
        raise ValueError(f"the run of query row {row} is empty; leave queries without documents out")
    if not bool(scores.isfinite().all()):
        row = (~scores.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"score {scores[tuple(row)].item()} at {row} is not finite; check the first stage")
    return scores, mask
