"""What boosting minimises: loss, gradient, curvature, best constant and step of each objective.

Source: "Sequential Training of Neural Networks with Gradient Boosting", 2019, arXiv 1909.12098.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logsumexp, softmax

Scores = Float[np.ndarray, "n k"]
Targets = Float[np.ndarray, "n k"]
RowWeights = Float[np.ndarray, " n"]
LineSearch = Literal["newton", "exact", "none"]


@runtime_checkable
class BoostingObjective(Protocol):
    """All that boosting needs of a loss L(y, F), summed over outputs, row by row.

    `y` and `F` have shape [n, k]. `y` is the target itself for regression (standardised by the
    estimator), -1/+1 with k = 1 for two classes, one-hot for more.
    """

    def loss(self, y: Targets, F: Scores) -> RowWeights:
        """L(y_i, F_i) for every row."""
        ...

    def gradient(self, y: Targets, F: Scores) -> Scores:
        """dL/dF; boosting fits its negative, the pseudo-residual."""
        ...

    def hessian_diag(self, y: Targets, F: Scores) -> Scores:
        """d2L/dF2, output by output."""
        ...

    def initial(self, y: Targets, weight: RowWeights) -> Float[np.ndarray, " k"]:
        """argmin_c sum_i w_i L(y_i, c)."""
        ...


@dataclass(frozen=True)
class SquaredError:
    """L = 1/2 sum_k (y_k - F_k)^2; residual y - F, curvature 1, best constant the mean."""

    def loss(self, y: Targets, F: Scores) -> RowWeights:
        return 0.5 * np.square(y - F).sum(axis=1)

    def gradient(self, y: Targets, F: Scores) -> Scores:
        return F - y

    def hessian_diag(self, y: Targets, F: Scores) -> Scores:
        return np.ones_like(F)

    def initial(self, y: Targets, weight: RowWeights) -> Float[np.ndarray, " k"]:
        return np.asarray(weight @ y / weight.sum())


@dataclass(frozen=True)
class LogExponential:
    """L = ln(1 + exp(-2 y F)) for y in {-1, +1}, so that P(y = +1) = 1 / (1 + exp(-2F)).

    Residual 2y / (1 + exp(2yF)); curvature r (2y - r) = 4 p (1 - p); best constant
    1/2 ln((1 + ybar) / (1 - ybar)).
    """

    def loss(self, y: Targets, F: Scores) -> RowWeights:
        return np.logaddexp(0.0, -2.0 * y * F).sum(axis=1)

    def gradient(self, y: Targets, F: Scores) -> Scores:
        return -2.0 * y * expit(-2.0 * y * F)

    def hessian_diag(self, y: Targets, F: Scores) -> Scores:
        return 4.0 * expit(2.0 * F) * expit(-2.0 * F)

    def initial(self, y: Targets, weight: RowWeights) -> Float[np.ndarray, " k"]:
        mean = np.asarray(weight @ y / weight.sum())
        return np.arctanh(mean)


@dataclass(frozen=True)
class CrossEntropy:
    """L = -ln p_y with p = softmax(F), for one-hot y of three or more classes.

    Residual Y - p; curvature p (1 - p), the diagonal of the Hessian; best constant the log-priors,
    centred to sum 0 (softmax does not see a common shift).
    """

    def loss(self, y: Targets, F: Scores) -> RowWeights:
        return np.asarray(logsumexp(F, axis=1) - (y * F).sum(axis=1))

    def gradient(self, y: Targets, F: Scores) -> Scores:
        return np.asarray(softmax(F, axis=1) - y)

    def hessian_diag(self, y: Targets, F: Scores) -> Scores:
        p = softmax(F, axis=1)
        return np.asarray(p * (1.0 - p))

    def initial(self, y: Targets, weight: RowWeights) -> Float[np.ndarray, " k"]:
        log_prior = np.log(weight @ y / weight.sum())
        return np.asarray(log_prior - log_prior.mean())


def newton_step(gradient: Scores, hessian_diag: Scores, h: Scores, weight: RowWeights) -> float:
    """One Newton step for the block's scale, with the diagonal of the Hessian:

        rho = - sum_ik w_i g_ik h_ik / sum_ik w_i H_ik h_ik^2.

    The denominator is kept above eps * sum(w). A negative or non-finite step means that the block does
    not descend; it gives 0.
    """
    numerator = -float(weight @ (gradient * h).sum(axis=1))
    denominator = float(weight @ (hessian_diag * h * h).sum(axis=1))
    floor = np.finfo(np.float64).eps * float(weight.sum())
    return _usable(numerator / max(denominator, floor))


def exact_step(objective: Any, y: Targets, F: Scores, h: Scores, weight: RowWeights) -> float:
    """argmin_rho sum_i w_i L(y_i, F_i + rho h_i) over rho >= 0, for an L convex in F.

    The root of the slope along `h` is bracketed by doubling from 1 and found by Brent's method; when the
    slope is still negative at rho = 1024 (separable rows) that bound is the step.
    """
    from scipy.optimize import brentq

    def slope(rho: float) -> float:
        return float(weight @ (objective.gradient(y, F + rho * h) * h).sum(axis=1))

    if not slope(0.0) < 0.0:
        return 0.0
    upper = 1.0
    while upper < 1024.0 and slope(upper) < 0.0:
        upper *= 2.0
    if not slope(upper) > 0.0:
        return _usable(upper)
    return _usable(float(brentq(slope, 0.0, upper, xtol=1e-10)))


def block_step(
    objective: Any, y: Targets, F: Scores, h: Scores, weight: RowWeights, line_search: LineSearch
) -> float:
    """The step before shrinkage.

    "newton": one Newton step from rho = 0, and 1 for the squared error, where the block already is the
    least-squares answer to the residual. "exact": the minimiser along the block. "none": 1.
    """
    if line_search == "none" or (line_search == "newton" and isinstance(objective, SquaredError)):
        return 1.0 if np.isfinite(h).all() else 0.0
    if line_search == "exact":
        return exact_step(objective, y, F, h, weight)
    return newton_step(objective.gradient(y, F), objective.hessian_diag(y, F), h, weight)


def clip_step(step: float, largest_h: float, largest_residual: float, max_step: float | None) -> float:
    """Halve `step` until step * ||h||_inf <= max_step * ||r||_inf; None leaves it alone."""
    if max_step is None or step <= 0.0 or largest_h == 0.0:
        return step
    if largest_residual == 0.0:
        return 0.0
    excess = step * largest_h / (max_step * largest_residual)
    if not np.isfinite(excess):
        return 0.0
    return step if excess <= 1.0 else step * 0.5 ** float(np.ceil(np.log2(excess)))


def _usable(step: float) -> float:
    return step if np.isfinite(step) and step > 0.0 else 0.0
