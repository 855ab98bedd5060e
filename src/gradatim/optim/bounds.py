"""How good can a schedule be in theory? Worst-case bounds on the last iterate of SGD.

For convex f, subgradients with norms G_t and ||x_1 - x*|| <= D, SGD with ANY steps eta_1 .. eta_T has

    E f(x_T) - f*  <=  B(eta) = D^2 / (2 S_1) + (1 / (2 S_1)) sum_t eta_t^2 G_t^2
                       + 1/2 sum_{k<T} (eta_k / S_{k+1}) (sum_{t>=k} eta_t^2 G_t^2) / S_k,
    S_k = sum_{t>=k} eta_t.

Source: Defazio, Cutkosky, Mehta and Mishchenko, "Optimal Linear Decay Learning Rate Schedules and Further
Refinements", 2023, arXiv 2310.07831.

Tail sums are reversed cumulative sums. The obvious total - cumsum cancels and inflates the bound of any
schedule that ends low by orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from jaxtyping import Float64

Vector = Float64[np.ndarray, " steps"]
Values = np.ndarray | Sequence[Any] | float | int
"""Numbers by step, or one for all steps."""


@dataclass(frozen=True)
class BoundTerms:
    """The three terms of B: the distance to be covered, the noise, and the price of the last iterate."""

    distance: float
    noise: float
    last_iterate: float

    @property
    def total(self) -> float:
        """B itself."""
        return self.distance + self.noise + self.last_iterate


@overload
def last_iterate_bound(
    lrs: Values, grad_norms: Values, distance: float | int = ..., split: Literal[False] = ...
) -> float: ...
@overload
def last_iterate_bound(
    lrs: Values, grad_norms: Values, distance: float | int = ..., *, split: Literal[True]
) -> BoundTerms: ...
def last_iterate_bound(
    lrs: Values, grad_norms: Values, distance: float | int = 1.0, split: bool = False
) -> float | BoundTerms:
    """B(eta) of this module's formula, in the units of the loss; O(T).

    Args:
        lrs: [T] learning rates eta_t >= 0, at least one above 0.
        grad_norms: [T] L2 norms of the gradients, or one number for all steps.
        distance: D, the distance from the start to the minimiser.
        split: return the three terms instead of their sum.

    Steps of rate 0 at the end do not move the iterate, and the formula would divide by them: the bound is
    that of the steps before them. Raises ValueError for negative or non-finite values or unequal lengths.
    """
    eta, norms = _moving_steps(lrs, grad_norms)
    terms = _terms(eta, norms, _positive("distance", distance))
    return terms if split else terms.total


def optimal_base_lr(lrs: Values, grad_norms: Values, distance: float | int = 1.0) -> tuple[float, float]:
    """The multiple c of a shape with the least B(c * shape), and that bound.

    With the terms t1, t2, t3 of B at c = 1: c = sqrt(t1 / (t2 + t3)), B = 2 sqrt(t1 (t2 + t3)).
    Raises ValueError where all norms are 0 (any rate is then as good as any other).
    """
    terms = last_iterate_bound(lrs, grad_norms, distance, split=True)
    noise = terms.noise + terms.last_iterate
    if noise == 0.0:
        raise ValueError("all gradient norms are 0: the bound has no best base rate")
    return math.sqrt(terms.distance / noise), 2.0 * math.sqrt(terms.distance * noise)


def weighted_average_bound(weights: Values, grad_norms: Values, distance: float | int = 1.0) -> float:
    """The bound that refinement minimises, (D^2 + sum_t w_t^2 G_t^2) / (2 sum_t w_t).

    It holds for the last iterate of SGD with eta_t = w_t w_{t+1:T} / w_{1:T}. For constant G and
    w_t = D / (G sqrt T) it is D G / sqrt T, without a logarithm. Its minimum over w is
    D / sqrt(sum_t G_t^-2).
    """
    w, norms = _vectors("weights", weights, grad_norms)
    if not w.sum() > 0:
        raise ValueError("at least one weight must be above 0")
    d = _positive("distance", distance)
    return float((d * d + np.sum((w * norms) ** 2)) / (2.0 * w.sum()))


@dataclass(frozen=True, eq=False)
class BoundMinimum:
    """A schedule found numerically: its rates, its bound, and how the solver ended."""

    lrs: Vector
    bound: float
    iterations: int
    message: str


def minimize_bound(
    grad_norms: Values, distance: float | int = 1.0, *, max_iterations: int = 20_000, smallest: float = 1e-8
) -> BoundMinimum:
    """Minimise B over all schedules with eta_t >= `smallest` by L-BFGS-B in float64.

    Starts from D / sqrt(T) in units of the median norm and is meant for cross-checks: the closed form of
    `refine_schedule` costs a millisecond, this up to thousands of O(T) evaluations.

    Raises ValueError for norms that are negative, not finite or all 0, and RuntimeError when the solver
    stops before it has converged (a larger `max_iterations` is the fix).
    """
    from scipy.optimize import minimize

    norms = _norms(grad_norms)
    if norms.size < 2:
        raise ValueError(f"a schedule needs at least 2 gradient norms, got {norms.size}")
    if not norms.max() > 0:
        raise ValueError("all gradient norms are 0: every schedule has the same bound")
    d = _positive("distance", distance)
    # B(eta; D, G) = D m B(eta m / D; 1, G / m): solve the dimensionless problem.
    unit = float(np.median(norms[norms > 0]))
    q = (norms / unit) ** 2
    start = np.full(norms.size, 1.0 / math.sqrt(norms.size))
    solution = minimize(
        _telescoped,
        start,
        args=(q,),
        jac=True,
        method="L-BFGS-B",
        bounds=[(smallest, None)] * norms.size,
        options={
            "maxcor": 20,
            "ftol": 100 * np.finfo(np.float64).eps,
            "gtol": 1e-10,
            "maxiter": max_iterations,
            "maxfun": 4 * max_iterations,
        },
    )
    if not solution.success:
        raise RuntimeError(
            f"the bound's minimisation stopped after {solution.nit} iterations: {solution.message};"
            f" raise max_iterations above {max_iterations}"
        )
    return BoundMinimum(
        lrs=np.asarray(solution.x, dtype=np.float64) * d / unit,
        bound=float(solution.fun) * d * unit,
        iterations=int(solution.nit),
        message=str(solution.message),
    )


def _telescoped(eta: Vector, squared_norms: Vector) -> tuple[float, Vector]:
    """B for D = 1 and its gradient.

    Because eta_k / (S_{k+1} S_k) = 1/S_{k+1} - 1/S_k, summing by parts leaves
    B = 1 / (2 S_1) + 1/2 sum_{t<T} eta_t^2 G_t^2 / S_{t+1} + eta_T G_T^2 / 2.
    """
    tails = _tail_sums(eta)
    later = tails[1:]
    head, q = eta[:-1], squared_norms[:-1]
    ratio = q * head / later
    value = 0.5 / tails[0] + 0.5 * float(np.sum(ratio * head)) + 0.5 * eta[-1] * squared_norms[-1]
    gradient = np.full(eta.size, -0.5 / tails[0] ** 2)
    gradient[:-1] += ratio
    gradient[1:] -= 0.5 * np.cumsum(q * (head / later) ** 2)
    gradient[-1] += 0.5 * squared_norms[-1]
    return float(value), gradient


def _terms(eta: Vector, norms: Vector, distance: float | int) -> BoundTerms:
    tails = _tail_sums(eta)
    noise = _tail_sums((eta * norms) ** 2)
    last = 0.5 * float(np.sum(eta[:-1] / tails[1:] * noise[:-1] / tails[:-1]))
    return BoundTerms(distance**2 / (2.0 * float(tails[0])), float(noise[0] / (2.0 * tails[0])), last)


def _tail_sums(x: Vector) -> Vector:
    return np.cumsum(x[::-1])[::-1]


def _moving_steps(lrs: Values, grad_norms: Values) -> tuple[Vector, Vector]:
    eta, norms = _vectors("lrs", lrs, grad_norms)
    moving = np.flatnonzero(eta)
    if moving.size == 0:
        raise ValueError("all learning rates are 0: the bound is infinite")
    end = int(moving[-1]) + 1
    return eta[:end], norms[:end]


def _vectors(name: str, values: Values, grad_norms: Values) -> tuple[Vector, Vector]:
    eta = np.asarray(values, dtype=np.float64)
    if eta.ndim != 1 or eta.size == 0:
        raise ValueError(f"{name} must be a vector of at least one step, got shape {eta.shape}")
    if not np.isfinite(eta).all() or (eta < 0).any():
        raise ValueError(f"{name} must be finite and not negative")
    norms = _norms(grad_norms)
    if norms.size == 1:
        norms = np.full(eta.size, norms[0])
    if norms.size != eta.size:
        raise ValueError(f"{name} has {eta.size} steps but grad_norms has {norms.size}; give one per step")
    return eta, norms


def _norms(grad_norms: Values) -> Vector:
    norms = np.atleast_1d(np.asarray(grad_norms, dtype=np.float64))
    if norms.ndim != 1 or not np.isfinite(norms).all() or (norms < 0).any():
        raise ValueError("grad_norms must be a vector of finite norms, none negative")
    return norms


def _positive(name: str, value: float | int) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and above 0, got {value}")
    return float(value)
