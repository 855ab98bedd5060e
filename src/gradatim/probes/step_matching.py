"""Which number of steps of an algorithm is a layer most like, and how does it grow from layer to layer?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from gradatim.probes.context_measures import error_directions


@dataclass(frozen=True)
class BestMatch:
    """Similarity of errors of every layer with every step count.

    `matrix` is the mean over contexts; `argmax` the best column per row; `low` and `high` the 95% bootstrap
    interval of that column; `plausible` the columns within one bootstrap standard error of the best: on a
    plateau there are many, and the best of them is noise.
    """

    matrix: Float[Tensor, "layers steps"]
    argmax: Int[Tensor, " layers"]
    low: Int[Tensor, " layers"]
    high: Int[Tensor, " layers"]
    plausible: Bool[Tensor, "layers steps"]

    @property
    def best(self) -> Float[Tensor, " layers"]:
        """The similarity reached by each row."""
        return self.matrix.amax(-1)

    def __str__(self) -> str:
        lines = ["row  best column  95% interval  similarity  as good"]
        for i in range(len(self.matrix)):
            interval = f"{int(self.low[i])}-{int(self.high[i])}"
            count = int(self.plausible[i].sum())
            lines.append(
                f"{i:3d}  {int(self.argmax[i]):11d}  {interval:>12s}  {float(self.best[i]):10.3f}  {count:7d}"
            )
        return "\n".join(lines)


def best_match(
    curves_a: Float[Tensor, "layers batch n"],
    curves_b: Float[Tensor, "steps batch n"],
    y: Float[Tensor, "batch n"],
    *,
    skip_first: bool = True,
    bootstrap: int = 1000,
    seed: int = 0,
) -> BestMatch:
    """Best-matching column of `curves_b` for every row of `curves_a`, by similarity of errors.

    Rows are predictions of layers (or of anything), columns those of an algorithm after its step counts, on
    the same contexts. The bootstrap draws contexts. Fu et al. (2023, arXiv 2310.17086), section 3.

    Raises ValueError for curves on other contexts, or fewer than two prefixes.
    """
    if curves_a.shape[1:] != y.shape or curves_b.shape[1:] != y.shape:
        raise ValueError(
            f"curves must end in {tuple(y.shape)}, got {tuple(curves_a.shape)} and {tuple(curves_b.shape)}"
        )
    a, b = (error_directions(curves, y, skip_first=skip_first) for curves in (curves_a, curves_b))
    each = torch.einsum("abn,pbn->bap", a, b)  # [batch, layers, steps]
    matrix = each.mean(0)
    batch = len(each)
    rng = np.random.default_rng(seed)
    counts = torch.from_numpy(rng.multinomial(batch, np.full(batch, 1 / batch), size=bootstrap)).to(each)
    drawn = (counts @ each.flatten(1)).view(bootstrap, *matrix.shape) / batch
    columns = drawn.argmax(-1).double()  # [bootstrap, layers]
    low, high = (torch.quantile(columns, q, dim=0, interpolation="nearest").long() for q in (0.025, 0.975))
    best = matrix.argmax(-1)
    # Resampled difference to the best column: its standard error is far below that of each similarity.
    rows = torch.arange(len(matrix))
    gap = matrix[rows, best, None] - matrix
    error = (drawn[:, rows, best, None] - drawn).std(0)
    return BestMatch(matrix, best, low, high, gap <= error)


@dataclass(frozen=True)
class Trend:
    """How matched steps grow over layers: least-squares fits of steps and of log2(steps).

    `slope` is steps per layer, `slope_log` doublings per layer; `breakpoint` the layer after which a line
    with one bend goes flat or changes course.
    """

    slope: float
    r2_linear: float
    slope_log: float
    r2_log: float
    breakpoint: float


def matching_trend(layers: ArrayLike, steps: ArrayLike) -> Trend:
    """Fits of matched steps over layers; needs at least three layers and steps above 0.

    R^2 is 1 - residual / total variance, 0 for a fit of constant steps.
    """
    x, s = np.asarray(layers, dtype=float), np.asarray(steps, dtype=float)
    if x.shape != s.shape or x.ndim != 1 or len(x) < 3:
        raise ValueError(
            f"a trend needs one step count per layer and three layers, got {x.shape} and {s.shape}"
        )
    if (s <= 0).any():
        raise ValueError(f"step counts must be above 0 for their logarithm, got {s.min():g}")
    slope, r2 = _line(x, s)
    slope_log, r2_log = _line(x, np.log2(s))
    return Trend(slope, r2, slope_log, r2_log, _bend(x, s))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    slope, offset = np.polyfit(x, y, 1)
    total = float(((y - y.mean()) ** 2).sum())
    left = float(((y - slope * x - offset) ** 2).sum())
    return float(slope), 1 - left / total if total > 0 else 0.0


def _bend(x: np.ndarray, y: np.ndarray) -> float:
    """Where a broken line a + b x + c max(x - k, 0) fits best, k among the inner layers."""
    best = (math.inf, float(x[-1]))
    for k in x[1:-1]:
        basis = np.stack([np.ones_like(x), x, np.maximum(x - k, 0)], axis=1)
        fit, *_ = np.linalg.lstsq(basis, y, rcond=None)
        best = min(best, (float(((y - basis @ fit) ** 2).sum()), float(k)))
    return best[1]


def unsaturated(errors: ArrayLike) -> list[int]:
    """Layers whose error is still above 1.5 times the last and already below 0.9 times the first."""
    e = np.asarray(errors, dtype=float)
    return [int(i) for i in np.flatnonzero((e > 1.5 * e[-1]) & (e < 0.9 * e[0]))]


def convergence_rates(errors: ArrayLike, floor: float = 0.0) -> np.ndarray:
    """log(e_k / e_{k+1}) per step: constant for linear convergence, growing for superlinear.

    `floor` is subtracted first: the error that no number of steps removes.
    """
    e = np.asarray(errors, dtype=float) - floor
    if (e <= 0).any():
        raise ValueError("errors must exceed the floor")
    rates: np.ndarray = np.log(e[:-1] / e[1:])
    return rates
