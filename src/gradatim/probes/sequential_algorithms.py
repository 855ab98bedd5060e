"""Reference algorithms that are no spectral filters: online descent, neighbours, a matrix as the rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.probes.predictor_checks import known_reduction, positive, step_counts, whole
from gradatim.probes.prefix_moments import moments, read, times, totals
from gradatim.probes.reference_algorithms import GradientDescent
from gradatim.probes.spectral import to_double


@dataclass(frozen=True)
class OnlineGradientDescent:
    """One pass in order: w' = w - lr factor (x x^T w - x y + decay w), from w0 = 0.

    `lr="nlms"` takes 1 / |x|^2, which fits the newest pair exactly (an input of zeros changes nothing).
    Akyurek et al. use factor 2 and a fixed rate; the code of Fu et al. starts from random weights, which `w0`
    can hold. Raises ValueError for a rate or factor that is not positive, or a negative decay.
    """

    lr: float | str = "nlms"
    factor: float = 1.0
    decay: float = 0.0
    w0: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.lr, str):
            if self.lr != "nlms":
                raise ValueError(f'lr must be a number or "nlms", got {self.lr!r}')
        else:
            positive("lr", self.lr)
        positive("factor", self.factor)
        if not (math.isfinite(self.decay) and self.decay >= 0):
            raise ValueError(f"decay must be a finite number, 0 or more, got {self.decay}")
        if self.w0 is not None:
            object.__setattr__(self, "w0", tuple(float(v) for v in self.w0))

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        rate = self.lr if isinstance(self.lr, str) else f"{self.lr:.4g}"
        extras = f", factor {self.factor:.4g}" if self.factor != 1 else ""
        extras += f", decay {self.decay:.4g}" if self.decay else ""
        return f"online GD({rate}{extras})"

    def predict(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Entry t: the prediction for x[:, t] after one pass over the t pairs before it."""
        return read(self._pass(x, y)[:, :-1], x)

    __call__ = predict

    def coef(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n d"]:
        """Row t: the weights after the first t pairs."""
        return self._pass(x, y)[:, :-1].to(x)

    def weights(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch d"]:
        """The weights after all n pairs."""
        return self._pass(x, y)[:, -1].to(x)

    def _pass(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = to_double(x, y)
        w = torch.zeros_like(x[:, 0])
        if self.w0 is not None:
            if len(self.w0) != x.shape[-1]:
                raise ValueError(f"w0 must have {x.shape[-1]} entries, got {len(self.w0)}")
            w = w + torch.tensor(self.w0, dtype=x.dtype, device=x.device)
        found = [w]
        for t in range(x.shape[1]):
            now = x[:, t]
            if self.lr == "nlms":
                square = now.square().sum(-1, keepdim=True)
                rate = torch.where(square > 0, 1 / torch.where(square > 0, square, 1.0), 0.0)
            else:
                rate = torch.full_like(w[:, :1], float(self.lr))
            residual = (now * w).sum(-1, keepdim=True) - y[:, t, None]
            w = w - rate * self.factor * (now * residual + self.decay * w)
            found.append(w)
        return torch.stack(found, dim=1)


@dataclass(frozen=True)
class KNeighbors:
    """The mean label of the k nearest inputs before x; `weights` "uniform", or "distance" ~ |x - x_j|^-2.

    With fewer than k pairs all are used. Inputs equal to x count alone where weights go by distance.
    """

    k: int = 3
    weights: str = "uniform"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        if self.weights not in ("uniform", "distance"):
            raise ValueError(f'weights must be "uniform" or "distance", got {self.weights!r}')

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        return f"{self.k}-NN" + (" by distance" if self.weights == "distance" else "")

    def predict(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Entry t: the prediction for x[:, t] from the t pairs before it."""
        given = x
        x, y = to_double(x, y)
        n = x.shape[1]
        square = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
        earlier = torch.ones(n, n, dtype=torch.bool, device=x.device).tril(-1)
        square = square.masked_fill(~earlier, math.inf)
        return neighbour_mean(square, y[:, None].expand(-1, n, -1), self.k, self.weights).to(given)

    __call__ = predict


def neighbour_mean(
    square: Float[Tensor, "*rows n"], labels: Float[Tensor, "*rows n"], k: int, weights: str
) -> Float[Tensor, "*rows"]:
    """Weighted mean label of the k smallest squared distances; infinite ones do not exist; 0 of none."""
    near, index = square.topk(min(k, square.shape[-1]), dim=-1, largest=False)
    exists = near.isfinite()
    if weights == "uniform":
        weight = exists.double()
    else:
        same = near == 0
        weight = torch.where(exists, 1 / torch.where(same, 1.0, near), 0.0)
        weight = torch.where(same.any(-1, keepdim=True), same.double(), weight)
    total = weight.sum(-1)
    return (weight * labels.gather(-1, index)).sum(-1) / torch.where(total > 0, total, 1.0)


@dataclass(frozen=True)
class PreconditionedGradientDescent:
    """Gradient descent with a fixed matrix P: w' = w - P (S w - X^T y) / t, from w = 0.

    One step gives w = P X^T y / t: what one layer of linear self-attention learns where inputs are not
    isotropic (Ahn et al. 2023, arXiv 2306.00297). `reduction="sum"` leaves out the division by t.
    """

    matrix: Any
    steps: int = 1
    reduction: str = "mean"

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        known_reduction(self.reduction)
        matrix = torch.as_tensor(self.matrix, dtype=torch.float64)
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not bool(matrix.isfinite().all()):
            raise ValueError(f"the matrix must be square and finite, got {tuple(matrix.shape)}")
        # Nested tuples keep the predictor comparable, hashable and picklable.
        object.__setattr__(self, "matrix", tuple(tuple(row) for row in matrix.tolist()))

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        steps = "" if self.steps == 1 else f"{self.steps} steps, "
        return f"preconditioned GD({steps}{len(self.matrix)} x {len(self.matrix)})"

    @classmethod
    def fit(
        cls, task: Any, *, contexts: int = 4000, seed: int = 0, reduction: str = "mean"
    ) -> PreconditionedGradientDescent:
        """The P of least expected loss for one step on the task's first n - 1 pairs.

        P = n E[S] (E[S^2] + sigma^2 / tau^2 E[S])^-1 for w ~ N(0, tau^2 I), with moments over `contexts`.
        """
        count = task.n - 1
        if count < 1:
            raise ValueError("fitting needs contexts of at least two pairs")
        drawn = task.sample(contexts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x = drawn.x[:, :count]
        s = x.mT @ x
        first, second = s.mean(0), (s @ s).mean(0)
        ridge = task.sigma**2 / task.tau**2 if task.sigma else 0.0
        matrix = torch.linalg.solve(second + ridge * first, first, left=False)
        scale = count if reduction == "mean" else 1
        return cls((scale * matrix).tolist(), 1, reduction)

    def predict(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Entry t: the prediction for x[:, t] from the t pairs before it."""
        return read(self.coef(x.double(), y.double()), x)

    __call__ = predict

    def coef(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n d"]:
        """Row t: the weights after the first t pairs."""
        s, b = moments(x, y)
        count = torch.arange(x.shape[1], dtype=b.dtype, device=b.device)[:, None]
        return self._descend(s, b, count).to(x)

    def weights(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch d"]:
        """The weights after all n pairs."""
        s, b = totals(x, y)
        return self._descend(s, b, torch.tensor(float(x.shape[1]), dtype=b.dtype)).to(x)

    def _descend(self, s: Tensor, b: Tensor, count: Tensor) -> Tensor:
        p = torch.tensor(self.matrix, dtype=b.dtype, device=b.device)
        if len(p) != b.shape[-1]:
            raise ValueError(f"the matrix is {len(p)} wide, the inputs are {b.shape[-1]}")
        scale = 1 / count.clamp(min=1).to(b) if self.reduction == "mean" else 1.0
        w = torch.zeros_like(b)
        for _ in range(self.steps):
            w = w - (times(s, w) - b) @ p.T * scale
        return w


@dataclass(frozen=True)
class KernelGradientDescent:
    """Gradient descent on features: `feature_map` takes x [batch, n, d] to [batch, n, m].

    One step predicts sum_i (lr / t) y_i m(x_i).m(x): what a linear attention layer behind an MLP m does
    (von Oswald et al., proposition 2). Exact for any m: wide features go through their Gram matrix.
    """

    feature_map: Callable[[Tensor], Tensor]
    lr: float
    steps: int = 1
    reduction: str = "mean"

    def __post_init__(self) -> None:
        _ = self._descent

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        return "kernel " + self._descent.name

    @property
    def _descent(self) -> GradientDescent:
        return GradientDescent(self.steps, self.lr, self.reduction)

    def predict(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Entry t: the prediction for x[:, t] from the t pairs before it."""
        features = self.feature_map(x)
        if features.dim() != 3 or features.shape[:2] != x.shape[:2]:
            raise ValueError(f"features must be [batch, n, m], got {tuple(features.shape)}")
        return self._descent.predict(features.double(), y.double()).to(x)

    __call__ = predict

    def path(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], steps: int | Sequence[int]
    ) -> Float[Tensor, "steps batch n"]:
        """Predictions after each number of steps (an int k means 1 .. k)."""
        return torch.stack([replace(self, steps=k).predict(x, y) for k in step_counts(steps)])
