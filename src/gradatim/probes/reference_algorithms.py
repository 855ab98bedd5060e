"""The reference algorithms that are spectral filters: each is its f(lambda), and says its conventions.

Every class predicts with `.predict(x, y)`, gives weights with `.coef(x, y)` and its exact expected loss with
`.risk(eigenvalues)`. Iterative ones give several step counts at once with `.path(x, y, steps)`.

The papers' conventions for gradient descent differ, so the class stores them: the loss is
factor/2 * |X w - y|^2, summed over the pairs or averaged.
Akyurek et al. (2022, arXiv 2211.15661): sum, factor 2. von Oswald et al. (2022, arXiv 2212.07677): mean,
factor 1. Fu et al. (2023, arXiv 2310.17086): sum, factor 1 in the code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.probes.predictor_checks import known_reduction, not_negative, positive, step_counts, whole
from gradatim.probes.spectral import (
    LARGEST_EXPONENT,
    SpectralPredictor,
    geometric_complement,
    ratio_or,
    sweep,
)


@dataclass(frozen=True)
class Zero(SpectralPredictor):
    """Predicts 0: the baseline that early layers often resemble."""

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        return "zero"

    def filter(self, values: Tensor, count: Tensor) -> Tensor:
        """f = 0."""
        del count
        return torch.zeros_like(values)


@dataclass(frozen=True)
class LeastSquares(SpectralPredictor):
    """Ordinary least squares of minimum norm: f = 1 / lambda, 0 where lambda <= rcond * lambda_max.

    `rcond` defaults to the rounding error of the sums (eps * max(t, d)). Works on the normal equations: its
    relative error grows with the condition number of S.
    """

    rcond: float | None = None

    def __post_init__(self) -> None:
        if self.rcond is not None and not 0 <= self.rcond < 1:
            raise ValueError(f"rcond must be in [0, 1), got {self.rcond}")

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        return "OLS"

    def filter(self, values: Tensor, count: Tensor) -> Tensor:
        """f = 1 / lambda above the cut-off."""
        del count
        kept = values
        if self.rcond is not None:
            kept = torch.where(values > self.rcond * values.amax(-1, keepdim=True), values, 0.0)
        return ratio_or(torch.ones_like(kept), kept, 0.0)


@dataclass(frozen=True)
class Ridge(SpectralPredictor):
    """Ridge regression, min |X w - y|^2 + alpha |w|^2: f = 1 / (lambda + alpha); alpha = 0 is OLS.

    The Bayes predictor for weights N(0, tau^2 I) and noise N(0, sigma^2) at alpha = sigma^2 / tau^2.
    """

    alpha: float

    def __post_init__(self) -> None:
        not_negative("alpha", self.alpha)

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        return f"ridge({self.alpha:.4g})"

    def filter(self, values: Tensor, count: Tensor) -> Tensor:
        """f = 1 / (lambda + alpha)."""
        del count
        return ratio_or(torch.ones_like(values), values + self.alpha, 0.0)


@dataclass(frozen=True)
class BayesLinear(SpectralPredictor):
    """Posterior mean for w ~ N(0, tau^2 I) and noise N(0, sigma^2): f = 1 / (lambda + sigma^2 / tau^2)."""

    sigma: float
    tau: float = 1.0

    def __post_init__(self) -> None:
        not_negative("sigma", self.sigma)
        positive("tau", self.tau)

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        return f"Bayes({self.sigma:.4g}, {self.tau:.4g})"

    def filter(self, values: Tensor, count: Tensor) -> Tensor:
        """f = 1 / (lambda + sigma^2 / tau^2)."""
        return Ridge(self.sigma**2 / self.tau**2).filter(values, count)


@dataclass(frozen=True)
class Averaging(SpectralPredictor):
    """w = X^T y / t: f = 1 / t."""

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        return "averaging"

    def filter(self, values: Tensor, count: Tensor) -> Tensor:
        """f = 1 / t."""
        return (1 / count.clamp(min=1)).expand_as(values)


@dataclass(frozen=True)
class GradientFlow(SpectralPredictor):
    """Gradient descent in continuous time on 1/2 |X w - y|^2: f = (1 - e^(-time lambda)) / lambda."""

    time: float
    reduction: str = "sum"

    def __post_init__(self) -> None:
        not_negative("time", self.time)
        known_reduction(self.reduction)

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        return f"gradient flow({self.time:.4g}{_mark(self.reduction)})"

    def filter(self, values: Tensor, count: Tensor) -> Tensor:
        """f = (1 - e^(-time lambda)) / lambda, time at lambda = 0."""
        rate = _per_pair(self.time, self.reduction, count)
        return ratio_or(-torch.expm1(-rate * values), values, rate)


@dataclass(frozen=True)
class GradientDescent(SpectralPredictor):
    """`steps` steps from w = 0 on factor/2 |X w - y|^2: f = (1 - (1 - lr lambda)^steps) / lambda.

    `lr` is one rate, or one per step. `reduction="mean"` divides the rate by the number of pairs.
    `momentum` beta is the heavy ball's, w' = w - lr g + beta (w - w_before). Diverges where
    lr lambda > 2 (1 + beta).

    Raises ValueError for negative steps, a rate that is not positive, or a number of rates unlike `steps`.
    """

    steps: int
    lr: float | Sequence[float]
    reduction: str = "sum"
    momentum: float = 0.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        if not isinstance(self.lr, float | int):
            object.__setattr__(self, "lr", tuple(float(rate) for rate in self.lr))
            if len(self.lr) != self.steps:
                raise ValueError(f"{self.steps} steps need as many rates, got {len(self.lr)}")
        for rate in _each(self.lr):
            positive("lr", rate)
        positive("factor", self.factor)
        known_reduction(self.reduction)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")

    @property
    def name(self) -> str:
        """Short name for tables and plots; what is not the default is said."""
        rate = f"{self.lr:.4g}" if isinstance(self.lr, float | int) else "own rates"
        extras = _mark(self.reduction)
        extras += f", momentum {self.momentum:.4g}" if self.momentum else ""
        extras += f", factor {self.factor:.4g}" if self.factor != 1 else ""
        return f"GD({self.steps} step{'' if self.steps == 1 else 's'}, {rate}{extras})"

    def filter(self, values: Tensor, count: Tensor) -> Tensor:
        """f after `steps` steps; the sum of the rates at lambda = 0."""
        if self.momentum:
            return self._heavy_ball(values, count)
        if isinstance(self.lr, float | int):
            rate = _per_pair(self.factor * self.lr, self.reduction, count)
            return ratio_or(geometric_complement(rate * values, self.steps), values, self.steps * rate)
        f = torch.zeros_like(values)
        left = torch.ones_like(values)  # prod_j (1 - lr_j lambda): what is not yet learned
        for each in self.lr:
            rate = _per_pair(self.factor * each, self.reduction, count)
            f = f + rate * left
            left = left * (1 - rate * values)
        return f

    def _heavy_ball(self, values: Tensor, count: Tensor) -> Tensor:
        f = last = torch.zeros_like(values)
        rates = [self.lr] * self.steps if isinstance(self.lr, float | int) else list(self.lr)
        limit = math.exp(LARGEST_EXPONENT)
        for each in rates:
            rate = _per_pair(self.factor * each, self.reduction, count)
            f, last = f + rate * (1 - values * f) + self.momentum * (f - last), f
            f = f.clamp(-limit, limit)
        return f

    def unstable(self, values: Tensor, count: Tensor) -> Tensor:
        """Where a repeated rate reaches 2 (1 + momentum) / lambda_max; a single step never diverges."""
        if self.steps < 2 or not isinstance(self.lr, float | int):
            return super().unstable(values, count)
        rate = _per_pair(self.factor * self.lr, self.reduction, count)
        return (rate * values >= 2 * (1 + self.momentum)).any(-1)

    def path(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], steps: int | Sequence[int]
    ) -> Float[Tensor, "steps batch n"]:
        """Predictions after each number of steps (an int k means 1 .. k), at this rate."""
        if not isinstance(self.lr, float | int):
            raise ValueError("a path needs one rate for all steps; this one has its own for each")
        return _path(self, x, y, steps)


@dataclass(frozen=True)
class GradientDescentPlusPlus(SpectralPredictor):
    """GD++: each step also applies x <- (I - gamma X^T X) x to all inputs. von Oswald et al., appendix A.10.

    Per eigenvalue, from f = 0, c = u = 1, l = lambda, for each step:
    f += lr c u; c *= (1 - gamma l) (1 - lr l); u *= 1 - gamma l; l *= (1 - gamma l)^2.
    `gamma` multiplies the sum X^T X, `lr` is divided by the number of pairs (`reduction="mean"`, as in the
    paper); both are one number shared by all steps, or one per step. `steps` may be left out where they are
    sequences.

    Raises ValueError for lengths that do not match `steps`, or numbers that are not finite.
    """

    lr: float | Sequence[float]
    gamma: float | Sequence[float]
    steps: int | None = None
    reduction: str = "mean"

    def __post_init__(self) -> None:
        for name in ("lr", "gamma"):
            value = getattr(self, name)
            if not isinstance(value, float | int):
                object.__setattr__(self, name, tuple(float(v) for v in value))
        lengths = {len(v) for v in (self.lr, self.gamma) if isinstance(v, tuple)}
        if self.steps is not None:
            whole("steps", self.steps)
            lengths.add(self.steps)
        if len(lengths) > 1:
            raise ValueError(
                f"lr, gamma and steps disagree: {self.lr!r}, {self.gamma!r}, steps={self.steps!r}"
            )
        object.__setattr__(self, "steps", lengths.pop() if lengths else 1)
        for value in (*_each(self.lr), *_each(self.gamma)):
            if not math.isfinite(value):
                raise ValueError(f"lr and gamma must be finite, got {self.lr!r} and {self.gamma!r}")
        known_reduction(self.reduction)

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        lr, gamma = (f"{v:.4g}" if isinstance(v, float | int) else "own" for v in (self.lr, self.gamma))
        mark = "" if self.reduction == "mean" else ", sum"
        return f"GD++({self.steps} step{'' if self.steps == 1 else 's'}, {lr}, {gamma}{mark})"

    @property
    def schedule(self) -> list[tuple[float, float]]:
        """(lr, gamma) of every step."""
        k = cast(int, self.steps)
        lr, gamma = (v if isinstance(v, tuple) else (v,) * k for v in (self.lr, self.gamma))
        return list(zip(cast(Any, lr), cast(Any, gamma), strict=True))

    def filter(self, values: Tensor, count: Tensor) -> Tensor:
        """f by the recursion over steps."""
        schedule = [
            (_per_pair(lr, self.reduction, count), _per_pair(gamma, "sum", count))
            for lr, gamma in self.schedule
        ]
        return gd_plus_plus_filter(values, schedule)

    def unstable(self, values: Tensor, count: Tensor) -> Tensor:
        """Where gamma lambda >= 1 turns inputs over, or lr lambda > 2, in some step."""
        found = super().unstable(values, count).to(values.device)
        for lr, gamma in self.schedule if cast(int, self.steps) > 1 else ():
            turned = (gamma * values >= 1) & (gamma > 0)
            found = found | (turned | (_per_pair(lr, self.reduction, count) * values > 2)).any(-1)
        return found

    def path(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], steps: int | Sequence[int]
    ) -> Float[Tensor, "steps batch n"]:
        """Predictions after each number of steps (an int k means 1 .. k), with these shared scalars."""
        if isinstance(self.lr, tuple) or isinstance(self.gamma, tuple):
            raise ValueError("a path needs one lr and one gamma for all steps")
        return _path(self, x, y, steps)

    @classmethod
    def fit_hyper(cls, task: Any, steps: int, shared: bool = True, **options: Any) -> GradientDescentPlusPlus:
        """The rates that minimise the expected loss on a linear task, found on eigenvalues alone.

        `shared=False` gives every step its own (lr, gamma). See `reference_tuning.fit_gd_plus_plus`.
        """
        from gradatim.probes.reference_tuning import fit_gd_plus_plus

        return fit_gd_plus_plus(task, steps, shared=shared, **options)


def gd_plus_plus_filter(values: Tensor, schedule: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The recursion of GD++ over steps (lr, gamma), differentiable in both."""
    f = torch.zeros_like(values)
    c = u = torch.ones_like(values)
    l = values
    for lr, gamma in schedule:
        f = f + lr * c * u
        shrunk = 1 - gamma * l
        c = c * shrunk * (1 - lr * l)
        u = u * shrunk
        l = l * shrunk.square()
    return f


@dataclass(frozen=True)
class IterativeNewton(SpectralPredictor):
    """Newton-Schulz inversion: M' = 2M - M S M from M = alpha S.

    f = (1 - (1 - alpha lambda^2)^(2^steps)) / lambda.
    `alpha`: "frobenius" 1 / |S S^T|_F (as in the code of Fu et al.), "spectral" 1 / lambda_max^2, or a number
    below 2 / lambda_max^2. The paper's text has exactly 2 / lambda_max^2: there the leading direction is
    never learned.

    Raises ValueError for negative steps and, when used, for an alpha at or beyond that boundary.
    """

    steps: int
    alpha: str | float = "frobenius"

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        if isinstance(self.alpha, str):
            if self.alpha not in ("frobenius", "spectral"):
                raise ValueError(f'alpha must be "frobenius", "spectral" or a number, got {self.alpha!r}')
        else:
            positive("alpha", self.alpha)

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        alpha = f", {self.alpha}" if isinstance(self.alpha, str) else f", {self.alpha:.4g}"
        return f"Newton({self.steps}{'' if self.alpha == 'frobenius' else alpha})"

    def filter(self, values: Tensor, count: Tensor) -> Tensor:
        """f, 0 at lambda = 0."""
        del count
        largest = values.amax(-1, keepdim=True)
        if self.alpha == "spectral":
            z = (values / torch.where(largest > 0, largest, 1.0)).square()
        elif self.alpha == "frobenius":
            squares = values.square()
            norm = squares.norm(dim=-1, keepdim=True)  # |S S^T|_F is the norm of the squared eigenvalues
            z = squares / torch.where(norm > 0, norm, 1.0)
        else:
            z = cast(float, self.alpha) * values.square()
            if bool((z >= 2).any()):
                raise ValueError(
                    f"alpha={self.alpha} is not below 2 / lambda_max^2 = {2 / float(largest.max()) ** 2:.3g}:"
                    " the iteration would not converge"
                )
        return ratio_or(geometric_complement(z, 2.0 ** min(self.steps, 1000)), values, 0.0)

    def path(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], steps: int | Sequence[int]
    ) -> Float[Tensor, "steps batch n"]:
        """Predictions after each number of steps (an int k means 1 .. k)."""
        return _path(self, x, y, steps)


@dataclass(frozen=True)
class KernelFilter(SpectralPredictor):
    """A filter of one's own: `function` maps eigenvalues [..., d] to f [..., d]."""

    function: Callable[[Tensor], Tensor]
    label: str = "filter"

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        return self.label

    def filter(self, values: Tensor, count: Tensor) -> Tensor:
        """The function, checked for shape."""
        del count
        f = self.function(values)
        if f.shape != values.shape:
            raise ValueError(f"the filter must keep the shape {tuple(values.shape)}, gave {tuple(f.shape)}")
        return f


def _path(predictor: Any, x: Tensor, y: Tensor, steps: int | Sequence[int]) -> Tensor:
    return sweep([replace(predictor, steps=k) for k in step_counts(steps)], x, y)


def _per_pair(rate: float | Tensor, reduction: str, count: Tensor) -> Tensor:
    """The rate against the summed loss; a prefix without pairs has no gradient, whatever its rate."""
    if reduction == "mean":
        return rate / count.clamp(min=1)
    return torch.as_tensor(rate, dtype=count.dtype, device=count.device)


def _mark(reduction: str) -> str:
    return "" if reduction == "sum" else f", {reduction}"


def _each(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, float | int) else tuple(value)
