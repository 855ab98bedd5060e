"""Fitting one block: a one-hidden-layer network with a handful of units, by least squares.

Both routes minimise the same objective, that of scikit-learn's MLPRegressor,

    V(W1, c1, W2, c2) = 1/2 sum_i w_i ||h(x_i) - r_i||^2 / sum(w)
                      + 1/2 alpha (||W1||^2 + ||W2||^2) / sum(w),      h(x) = W2^T s(W1^T x + c1) + c2.

Arrays lie unit by unit ([units, rows]) and the bias is a column of ones of X: a block has few units, so
that Python calls, not arithmetic, are the cost, and this layout needs the fewest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.linalg.lapack import dposv
from scipy.optimize import minimize

BlockSolver = Literal["varpro", "lbfgs"]
Activation = Literal["logistic", "tanh", "relu", "identity"]


def _logistic(z: np.ndarray) -> None:
    # 1/2 (1 + tanh(z/2)) is the logistic function; NumPy's tanh is vectorised and cannot overflow.
    z *= 0.5
    np.tanh(z, out=z)
    z += 1.0
    z *= 0.5


def _logistic_slope(a: np.ndarray, delta: np.ndarray) -> None:
    delta *= a
    delta *= 1.0 - a


def _tanh(z: np.ndarray) -> None:
    np.tanh(z, out=z)


def _tanh_slope(a: np.ndarray, delta: np.ndarray) -> None:
    delta *= 1.0 - a * a


def _relu(z: np.ndarray) -> None:
    np.maximum(z, 0.0, out=z)


def _relu_slope(a: np.ndarray, delta: np.ndarray) -> None:
    delta[a == 0.0] = 0.0


def _identity(z: np.ndarray) -> None:
    pass


def _identity_slope(a: np.ndarray, delta: np.ndarray) -> None:
    pass


ACTIVATIONS: dict[str, Callable[[np.ndarray], None]] = {
    "logistic": _logistic,
    "tanh": _tanh,
    "relu": _relu,
    "identity": _identity,
}
"""s(z), in place."""

SLOPES: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "logistic": _logistic_slope,
    "tanh": _tanh_slope,
    "relu": _relu_slope,
    "identity": _identity_slope,
}
"""delta <- delta * s'(z), in place, given a = s(z)."""


@dataclass(frozen=True)
class Block:
    """A fitted block h(x) = W2^T s(W1^T x + c1) + c2 and how its search went.

    `n_iter` is 0 where the search could not leave its random start, so that the block carries nothing.
    """

    W1: Float[np.ndarray, "d units"]
    c1: Float[np.ndarray, " units"]
    W2: Float[np.ndarray, "units k"]
    c2: Float[np.ndarray, " k"]
    activation: Activation
    objective: float
    n_iter: int
    n_evaluations: int

    def __call__(self, XT: Float[np.ndarray, "d_plus_1 n"]) -> Float[np.ndarray, "n k"]:
        """h at every column of `XT` (features, and a last row of ones)."""
        return hidden_units(XT, self.W1, self.c1, self.activation).T @ self.W2 + self.c2


def hidden_units(
    XT: Float[np.ndarray, "d_plus_1 n"],
    W1: Float[np.ndarray, "d units"],
    c1: Float[np.ndarray, " units"],
    activation: Activation,
) -> Float[np.ndarray, "units n"]:
    """s(W1^T x + c1) for every column of `XT`."""
    a: np.ndarray = np.vstack([W1, c1]).T @ XT
    ACTIVATIONS[activation](a)
    return a


def with_ones(X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d_plus_1 n"]:
    """X^T with a last row of ones, contiguous."""
    XT = np.empty((X.shape[1] + 1, X.shape[0]))
    XT[:-1] = X.T
    XT[-1] = 1.0
    return XT


def initial_bound(fan_in: int, fan_out: int, activation: Activation) -> float:
    """b of the uniform start U(-b, b): sqrt(2 / (in + out)) for logistic units, sqrt(6 / (in + out)) else."""
    return float(np.sqrt((2.0 if activation == "logistic" else 6.0) / (fan_in + fan_out)))


def draw_start(
    d: int, units: int, k: int, activation: Activation, rng: np.random.Generator
) -> Float[np.ndarray, " p"]:
    """Random [W1; c1] as [units, d + 1], then [W2; c2] as [k, units + 1], flat."""
    inner = initial_bound(d, units, activation)
    outer = initial_bound(units, k, activation)
    return np.concatenate(
        [rng.uniform(-inner, inner, units * (d + 1)), rng.uniform(-outer, outer, k * (units + 1))]
    )


def fit_block(
    XT: Float[np.ndarray, "d_plus_1 n"],
    residual: Float[np.ndarray, "n k"],
    units: int,
    *,
    start: Float[np.ndarray, " p"],
    weight: Float[np.ndarray, " n"] | None = None,
    activation: Activation = "logistic",
    alpha: float = 1e-2,
    max_iter: int = 100,
    tol: float = 1e-4,
    solver: BlockSolver = "varpro",
) -> Block:
    """Minimise V from `start` (see `draw_start`) with SciPy's L-BFGS-B.

    `solver="lbfgs"` searches over all four arrays, as MLPRegressor(solver="lbfgs") does: from the same
    start it ends at the same weights. `solver="varpro"` searches over W1 and c1 alone: for given hidden
    units, W2 and c2 are a small ridge regression with a closed form, and by the envelope theorem the
    gradient of the reduced objective is the partial gradient at that solution (variable projection;
    Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973). Same stationary points, fewer iterations.

    `tol` is the largest component of the gradient at which the search stops.
    """
    d, k = XT.shape[0] - 1, residual.shape[1]
    R = np.ascontiguousarray(residual.T)
    total = float(XT.shape[1]) if weight is None else float(weight.sum())
    options = {"maxiter": max_iter, "gtol": tol, "maxfun": 15_000}
    if solver == "lbfgs":
        objective = _full_objective(XT, R, units, weight, total, activation, alpha)
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        inner, outer = _split(found.x, d, units, k)
        n_iter = int(found.nit)
    else:
        reduced = _reduced_objective(XT, R, units, weight, total, activation, alpha)
        found = minimize(
            lambda theta: reduced(theta)[:2],
            start[: units * (d + 1)],
            jac=True,
            method="L-BFGS-B",
            options=options,
        )
        inner, outer = found.x.reshape(units, d + 1), reduced(found.x)[2].T
        # Even at the start the outputs are already fitted.
        n_iter = max(int(found.nit), 1)
    return Block(
        W1=np.ascontiguousarray(inner[:, :-1].T),
        c1=inner[:, -1].copy(),
        W2=np.ascontiguousarray(outer[:, :-1].T),
        c2=outer[:, -1].copy(),
        activation=activation,
        objective=float(found.fun),
        n_iter=n_iter,
        n_evaluations=int(found.nfev),
    )


def _split(theta: np.ndarray, d: int, units: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    cut = units * (d + 1)
    return theta[:cut].reshape(units, d + 1), theta[cut:].reshape(k, units + 1)


def _full_objective(
    XT: np.ndarray,
    R: np.ndarray,
    units: int,
    weight: np.ndarray | None,
    total: float,
    activation: Activation,
    alpha: float,
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """V and its gradient over (W1, c1, W2, c2) as laid out by `draw_start`."""
    d, k = XT.shape[0] - 1, R.shape[0]
    act, slope, ridge = ACTIVATIONS[activation], SLOPES[activation], alpha / total
    hidden = np.ones((units + 1, XT.shape[1]))
    a = hidden[:-1]

    def value_and_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        inner, outer = _split(theta, d, units, k)
        np.matmul(inner, XT, out=a)
        act(a)
        error = outer @ hidden
        error -= R
        weighted = error / total if weight is None else error * (weight / total)
        value = 0.5 * float(np.vdot(error, weighted))
        gradient = np.empty_like(theta)
        g_inner, g_outer = _split(gradient, d, units, k)
        np.matmul(weighted, hidden.T, out=g_outer)
        delta = outer[:, :-1].T @ weighted
        slope(a, delta)
        np.matmul(delta, XT.T, out=g_inner)
        return value + _add_ridge(ridge, inner, g_inner) + _add_ridge(ridge, outer, g_outer), gradient

    return value_and_gradient


def _reduced_objective(
    XT: np.ndarray,
    R: np.ndarray,
    units: int,
    weight: np.ndarray | None,
    total: float,
    activation: Activation,
    alpha: float,
) -> Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]]:
    """min over (W2, c2) of V, its gradient over (W1, c1), and the minimiser as [units + 1, k]."""
    act, slope, ridge = ACTIVATIONS[activation], SLOPES[activation], alpha / total
    d = XT.shape[0] - 1
    share = None if weight is None else weight / total
    hidden = np.ones((units + 1, XT.shape[1]))
    a = hidden[:-1]
    RT = R.T

    def value_gradient_outputs(theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        inner = theta.reshape(units, d + 1)
        np.matmul(inner, XT, out=a)
        act(a)
        basis = hidden if share is None else hidden * share
        gram = basis @ hidden.T
        moment = basis @ RT
        if share is None:
            gram /= total
            moment /= total
        outer = _ridge_solution(gram, moment, ridge)
        error = outer.T @ hidden
        error -= R
        weighted = error / total if share is None else error * share
        value = 0.5 * float(np.vdot(error, weighted))
        W2 = outer[:-1]
        delta = W2 @ weighted
        slope(a, delta)
        gradient = delta @ XT.T
        value += 0.5 * ridge * float(np.vdot(W2, W2)) + _add_ridge(ridge, inner, gradient)
        return value, gradient.ravel(), outer

    return value_gradient_outputs


def _ridge_solution(gram: np.ndarray, moment: np.ndarray, ridge: float) -> np.ndarray:
    """Solve (gram + ridge I) C = moment, the bias (last row and column) unpenalised."""
    units = gram.shape[0] - 1
    # A dead or doubled unit leaves the system singular when alpha = 0; this much cannot be felt.
    floor = 1e-12 * float(np.trace(gram))
    gram.flat[: units * (units + 2) : units + 2] += max(ridge, floor)
    _, solution, info = dposv(gram, moment)
    if info == 0:
        return np.asarray(solution)
    return np.asarray(np.linalg.lstsq(gram, moment, rcond=None)[0])


def _add_ridge(ridge: float, weights: np.ndarray, gradient: np.ndarray) -> float:
    """Add ridge * W to the gradient and return 1/2 ridge ||W||^2, the last column (biases) left out."""
    W: Any = weights[:, :-1]
    gradient[:, :-1] += ridge * W
    return 0.5 * ridge * float(np.einsum("ij,ij->", W, W))
