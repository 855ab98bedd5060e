"""Reference learners on Boolean prompts: what a learner of the class, or of nothing, would answer.

Each is called with inputs x [batch, m, n] and labels y [batch, m] of -1 and +1 and gives [batch, m]: entry t
answers x[:, t] from the pairs before t, as -1, +1, or 0 where it cannot tell (counted as wrong).
The baselines of Bhattamishra, Patel, Blunsom, Kanade, "Understanding In-Context Learning in Transformers and
LLMs by Learning to Learn Discrete Functions" (2023, arXiv 2310.03016), and exact learners beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def check_prompts(x: Tensor, y: Tensor, *, boolean: bool = True) -> None:
    """Refuse what is no batch of Boolean prompts; `boolean=False` allows any finite inputs.

    Raises TypeError for integers, ValueError for shapes that do not match, NaN, and values other than -1, +1.
    """
    if not (x.is_floating_point() and y.is_floating_point()):
        raise TypeError(f"inputs and labels are floating-point -1 and +1, got {x.dtype} and {y.dtype}")
    if x.dim() != 3 or y.shape != x.shape[:2]:
        raise ValueError(f"need x [batch, m, n] and y [batch, m], got {tuple(x.shape)} and {tuple(y.shape)}")
    if bool((y.abs() != 1).any()):
        wrong = y[y.abs() != 1].flatten()[0].item()
        raise ValueError(f"labels must be -1 or +1, got {wrong}; {{0, 1}} becomes 2 * y - 1")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("inputs must be finite, got NaN or infinity")
    if boolean and bool((x.abs() != 1).any()):
        wrong = x[x.abs() != 1].flatten()[0].item()
        raise ValueError(f"inputs must be -1 or +1, got {wrong}; {{0, 1}} becomes 2 * x - 1")


@dataclass(frozen=True)
class Null:
    """Always -1."""

    name: str = "null"

    def predict(self, x: Float[Tensor, "batch m n"], y: Float[Tensor, "batch m"]) -> Float[Tensor, "batch m"]:
        """-1 for every point."""
        check_prompts(x, y, boolean=False)
        return torch.full_like(y, -1.0)

    curve = __call__ = predict


@dataclass(frozen=True)
class SignAveraging:
    """sign(w . x) with w the mean of y_j x_j over the earlier pairs; -1 where there is none."""

    name: str = "averaging"

    def predict(self, x: Float[Tensor, "batch m n"], y: Float[Tensor, "batch m"]) -> Float[Tensor, "batch m"]:
        """The sign, 0 for a tie."""
        check_prompts(x, y, boolean=False)
        earlier = (x @ x.transpose(1, 2)).tril(-1)
        found = (earlier @ y[..., None])[..., 0].sign()
        found[:, 0] = -1.0
        return found

    curve = __call__ = predict


@dataclass(frozen=True)
class NearestNeighbours:
    """The majority of the k nearest earlier points; 0 for a tie and where there is no earlier point.

    `metric` is "euclidean" or "cosine" (one order where all inputs are +-1). Among equally near points the
    earlier ones count; fewer than k earlier points vote as they are.
    """

    k: int = 1
    metric: str = "euclidean"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        if self.metric not in ("euclidean", "cosine"):
            raise ValueError(f'metric must be "euclidean" or "cosine", got {self.metric!r}')

    @property
    def name(self) -> str:
        """Such as "1-NN"."""
        return f"{self.k}-NN" + (" (cosine)" if self.metric == "cosine" else "")

    def predict(self, x: Float[Tensor, "batch m n"], y: Float[Tensor, "batch m"]) -> Float[Tensor, "batch m"]:
        """The sign of the vote."""
        check_prompts(x, y, boolean=False)
        near = self._ordered(x)
        k = min(self.k, x.shape[1])
        votes = y[:, None].expand_as(near.values).gather(2, near.indices[..., :k])
        return (votes * near.values[..., :k].isfinite()).sum(-1).sign()

    curve = __call__ = predict

    def nearest(self, x: Float[Tensor, "batch m n"]) -> Int[Tensor, "batch m"]:
        """Index of the nearest earlier point, the first among equals; entry 0 means nothing."""
        return self._ordered(x).indices[..., 0]

    def _ordered(self, x: Tensor) -> torch.return_types.sort:
        """Distances to all points, nearest first and later ones at infinity."""
        z = x.double()
        gram = z @ z.transpose(1, 2)
        squares = (z * z).sum(-1)
        if self.metric == "cosine":
            # Dividing the exact inner products of bits, not the bits themselves, keeps equals equal.
            far = -gram / (squares[:, :, None] * squares[:, None]).sqrt().clamp(min=1e-300)
        else:
            far = squares[:, :, None] + squares[:, None] - 2 * gram
        later = torch.ones(far.shape[1:], dtype=torch.bool, device=x.device).triu()
        return far.masked_fill(later, torch.inf).sort(dim=-1, stable=True)


@dataclass(frozen=True)
class Elimination:
    """Keep the literals that no example has ruled out (Valiant 1984).

    For conjunctions: a literal goes when it fails on a positive example; the answer is +1 iff all kept
    literals hold, so that before any positive example it is -1. Disjunctions are the mirror image,
    f(x) = -g(-x). Consistent with every noise-free prompt, and wrong on one side only.
    """

    kind: str = "conjunction"

    def __post_init__(self) -> None:
        if self.kind not in ("conjunction", "disjunction"):
            raise ValueError(f'kind must be "conjunction" or "disjunction", got {self.kind!r}')

    @property
    def name(self) -> str:
        """Such as "elimination"."""
        return "elimination" if self.kind == "conjunction" else "elimination (disjunction)"

    def predict(self, x: Float[Tensor, "batch m n"], y: Float[Tensor, "batch m"]) -> Float[Tensor, "batch m"]:
        """-1 or +1 for every point."""
        check_prompts(x, y)
        if self.kind == "disjunction":
            x, y = -x, -y
        kept = kept_literals(x, y)[:, :-1]
        found = 2 * holds(x, kept).to(y.dtype) - 1
        return found if self.kind == "conjunction" else -found

    curve = __call__ = predict


def kept_literals(
    x: Float[Tensor, "batch m n"], y: Float[Tensor, "batch m"]
) -> Bool[Tensor, "batch m_and_1 2 n"]:
    """Literals consistent with the positive examples among the first t points: x_i, then not x_i."""
    positive = (y > 0)[..., None]
    fails = torch.stack([positive & (x < 0), positive & (x > 0)], dim=2)
    gone = fails.long().cumsum(1) > 0
    return ~torch.cat([torch.zeros_like(gone[:, :1]), gone], dim=1)


def holds(x: Float[Tensor, "*points n"], kept: Bool[Tensor, "*points 2 n"]) -> Bool[Tensor, "*points"]:
    """Whether every kept literal holds."""
    return ~((kept[..., 0, :] & (x < 0)) | (kept[..., 1, :] & (x > 0))).any(-1)


@dataclass(frozen=True)
class GF2Elimination:
    """Gaussian elimination over GF(2), the learner of parities: exact on every input in the span.

    Answers the parity that the earlier pairs imply where the input is a sum of earlier inputs, and 0
    elsewhere; after n independent inputs every answer is implied. A pair that contradicts earlier ones is
    ignored.
    """

    name: str = "GF(2) elimination"

    def predict(self, x: Float[Tensor, "batch m n"], y: Float[Tensor, "batch m"]) -> Float[Tensor, "batch m"]:
        """-1, 0 or +1 for every point."""
        check_prompts(x, y)
        basis = torch.zeros(len(x), x.shape[2], x.shape[2] + 1, device=x.device)
        found = torch.zeros_like(y)
        bits = (x > 0).float()
        labels = (y > 0).float()
        for t in range(x.shape[1]):
            rest, implied = gf2_reduce(basis, bits[:, t])
            in_span = rest.amax(1) == 0
            found[:, t] = torch.where(in_span, 2 * implied - 1, 0.0).to(y.dtype)
            basis = gf2_insert(basis, rest, (implied + labels[:, t]) % 2)
        return found

    curve = __call__ = predict


def gf2_reduce(
    basis: Float[Tensor, "batch n n_and_1"], v: Float[Tensor, "batch n"]
) -> tuple[Float[Tensor, "batch n"], Float[Tensor, " batch"]]:
    """What is left of bits v beside a reduced basis, and the label of the part that was taken away.

    Row p of the basis is zero or has its first set bit at p, which no other row has; the last column holds
    labels.
    """
    pivots = basis.diagonal(dim1=1, dim2=2)
    total = torch.einsum("bp,bpi->bi", v * pivots, basis) % 2
    return (v + total[:, :-1]) % 2, total[:, -1]


def gf2_insert(
    basis: Float[Tensor, "batch n n_and_1"], rest: Float[Tensor, "batch n"], label: Float[Tensor, " batch"]
) -> Float[Tensor, "batch n n_and_1"]:
    """The basis with reduced bits and their label added; unchanged where no bit is left."""
    n = rest.shape[1]
    pivot: Int[Tensor, " batch"] = rest.argmax(1)  # the first set bit
    new = torch.cat([rest, label[:, None]], 1) * rest.amax(1, keepdim=True)
    column = basis.gather(2, pivot[:, None, None].expand(-1, n, 1))
    basis = (basis + column * new[:, None]) % 2
    row = pivot[:, None, None].expand(-1, 1, n + 1)
    kept = torch.where(rest.amax(1)[:, None, None] > 0, new[:, None], basis.gather(1, row))
    return basis.scatter(1, row, kept)
