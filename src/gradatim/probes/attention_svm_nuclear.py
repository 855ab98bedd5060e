"""min ||W||_* subject to <D_c, W> >= b_c, by Newton steps on the barrier of the dual.

Dual:     max sum_c b_c alpha_c   subject to  ||S||_2 <= 1,  S = sum_c alpha_c D_c,  alpha >= 0.
Barrier:  F(alpha) = b.alpha / mu + sum_c log alpha_c + log det(I - S S^T).

At the maximiser of F the matrix W = 2 mu (I - S S^T)^{-1} S has <D_c, W> = b_c + mu / alpha_c, so it
satisfies every constraint, and its norm exceeds b.alpha by at most mu (number of c + rank). Near the
maximiser the linearised W + dW has <D_c, W + dW> = b_c + mu (1 - step_c / alpha_c) / alpha_c exactly,
which is why W is read off a Newton step and not off alpha alone. Both bounds are recomputed at the end
from the matrices themselves: the reported gap is a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from gradatim.probes.attention_svm_constraints import Matrix, PairConstraints, Vector
from gradatim.probes.attention_svm_frobenius import Infeasible, frobenius_weight

# From this many constraints on, the problem is solved on a growing working set.
WORKING_SET_FROM = 300
MAX_NEWTON_STEPS = 400


@dataclass(frozen=True)
class NuclearSolved:
    """W with every constraint met, its multipliers, and bounds `lower` <= optimum <= `upper`."""

    weight: Matrix
    dual: Vector
    lower: float
    upper: float


def nuclear_weight(problem: PairConstraints, tol: float) -> NuclearSolved | Infeasible:
    """Solve min ||W||_* to a relative gap of `tol`; equality constraints must have target 0."""
    start = frobenius_weight(problem, 1e-9)
    if isinstance(start, Infeasible):
        return start
    if not np.any(start.weight):
        return NuclearSolved(start.weight, start.dual, 0.0, 0.0)
    reduced, left, right = problem.reduced()
    if len(problem) < WORKING_SET_FROM:
        inner, dual = _central_path(reduced, start.dual, tol)
    else:
        inner, dual = _on_working_set(reduced, left.T @ start.weight @ right, start.dual, tol)
    inner = _made_feasible(reduced, inner)
    upper = float(np.linalg.norm(inner, "nuc"))
    return NuclearSolved(left @ inner @ right.T, dual, dual_bound(reduced, dual), upper)


def dual_bound(problem: PairConstraints, dual: Vector) -> float:
    """A lower bound of the optimum from any multipliers: b.alpha / max(1, ||S||_2) with alpha >= 0."""
    clipped = np.where(problem.equality, dual, np.maximum(dual, 0.0))
    return float(problem.target @ clipped / max(1.0, np.linalg.norm(problem.combine(clipped), 2)))


def _made_feasible(problem: PairConstraints, weight: Matrix) -> Matrix:
    """Scale W so that its smallest margin meets its target exactly."""
    bound = ~problem.equality
    ratio = (problem.margins(weight)[bound] / problem.target[bound]).min()
    return weight / ratio if ratio > 0 else weight


def _on_working_set(
    problem: PairConstraints, weight: Matrix, dual: Vector, tol: float
) -> tuple[Matrix, Vector]:
    """Start from the constraints near the Frobenius solution's margin; add the violated ones."""
    chosen = problem.equality | (dual > 0)
    values = dual.copy()
    while True:
        index = np.flatnonzero(chosen)
        weight, inner = _central_path(problem.subset(index), values[index], tol)
        values = np.zeros(len(problem))
        values[index] = inner
        slack = problem.margins(weight) - problem.target * (1.0 - 0.1 * tol)
        violated = np.flatnonzero((slack < 0) & ~problem.equality & ~chosen)
        if not len(violated):
            return weight, values
        # The worst few hundred at once: each round costs a cubic solve in the size of the set.
        chosen[violated[np.argsort(slack[violated])[:200]]] = True


@dataclass(frozen=True)
class _Spectrum:
    """I - S S^T and its inverse through the SVD of S."""

    left: Float[np.ndarray, "d rank"]
    s: Float[np.ndarray, " rank"]
    right: Float[np.ndarray, "e rank"]

    @classmethod
    def of(cls, matrix: Matrix) -> _Spectrum:
        left, s, right_t = np.linalg.svd(matrix, full_matrices=False)
        return cls(left, s, right_t.T)

    def inside(self) -> bool:
        return bool(self.s[0] < 1.0)

    def log_det(self) -> float:
        return float(np.log1p(-self.s).sum() + np.log1p(self.s).sum())


def _central_path(problem: PairConstraints, dual: Vector, tol: float) -> tuple[Matrix, Vector]:
    """Follow the path from a scaled start to a gap below `tol`; returns (W, alpha)."""
    free = problem.equality
    bound = ~free
    alpha = np.where(free, dual, np.maximum(dual, 0.0))
    alpha[bound] += 0.05 * max(alpha[bound].mean(), 1e-300)
    alpha *= 0.7 / np.linalg.norm(problem.combine(alpha), 2)
    target = problem.target
    count = int(bound.sum()) + min(problem.differences.shape[1], problem.queries.shape[1])
    z = problem.queries[problem.sequence]
    mu = 0.5 * float(target @ alpha) / count
    spectrum = _Spectrum.of(problem.combine(alpha))
    weight, reached = np.zeros_like(spectrum.left @ spectrum.right.T), alpha
    for _ in range(MAX_NEWTON_STEPS):
        gradient, hessian = _derivatives(problem, z, spectrum, alpha, bound, target / mu)
        # Equalities may repeat one another; their directions then carry no curvature of their own.
        hessian[np.diag_indices_from(hessian)] *= 1.0 + 1e-13
        try:
            factor = cho_factor(hessian, check_finite=False)
        except LinAlgError:
            hessian[np.diag_indices_from(hessian)] += 1e-10 * np.trace(hessian) / len(hessian)
            factor = cho_factor(hessian, check_finite=False)
        step = cho_solve(factor, gradient, check_finite=False)
        decrement = float(gradient @ step)
        if decrement < 1.0 or not weight.any():
            weight = _primal(spectrum, problem.combine(step), mu)
            reached = alpha
        goal = 0.4 * tol * float(target @ alpha) / count
        if decrement < 0.1 and mu <= goal:
            break
        alpha, spectrum, length = _line_search(problem, alpha, step, target / mu, bound, spectrum, decrement)
        if length == 0.0:  # rounding: F no longer rises, and what was read off last is the best there is
            break
        if decrement < 1.0:
            mu = min(mu, max(0.08 * mu, 0.9 * goal))
    return weight, reached


def _primal(spectrum: _Spectrum, shift: Matrix, mu: float) -> Matrix:
    """2 mu (Y + dY) with Y = (I - S S^T)^{-1} S and dY = P dS R + Y dS^T Y for the shift dS of S."""
    left, s, right = spectrum.left, spectrum.s, spectrum.right
    bend = 1.0 / ((1.0 - s) * (1.0 + s))
    p_shift = shift + (left * (s**2 * bend)) @ (left.T @ shift)
    p_shift_r = p_shift + ((p_shift @ right) * (s**2 * bend)) @ right.T
    y = (left * (s * bend)) @ right.T
    return np.asarray(2.0 * mu * (y + p_shift_r + y @ shift.T @ y))


def _derivatives(
    problem: PairConstraints,
    z: Float[np.ndarray, "c e"],
    spectrum: _Spectrum,
    alpha: Vector,
    bound: Bool[np.ndarray, " c"],
    pull: Vector,
) -> tuple[Vector, Float[np.ndarray, "c c"]]:
    """Gradient of F, and minus its Hessian.

    With Z = [[I, S], [S^T, I]] the last barrier is log det Z, and Z^{-1} has the blocks
    P = (I - S S^T)^{-1}, R = (I - S^T S)^{-1} and -P S, which gives for D_c = u_c z_c^T
    -H_cc' = 2 [(u_c^T P u_c')(z_c^T R z_c') + (u_c^T P S z_c')(u_c'^T P S z_c)].
    """
    u = problem.differences
    s = spectrum.s
    bend = 1.0 / ((1.0 - s) * (1.0 + s))
    ua, zb = u @ spectrum.left, z @ spectrum.right
    upu = u @ u.T + (ua * (s**2 * bend)) @ ua.T
    zrz = z @ z.T + (zb * (s**2 * bend)) @ zb.T
    cross = (ua * (s * bend)) @ zb.T
    hessian = 2.0 * (upu * zrz + cross * cross.T)
    gradient = pull - 2.0 * np.diagonal(cross)
    gradient[bound] += 1.0 / alpha[bound]
    index = np.flatnonzero(bound)
    hessian[index, index] += 1.0 / alpha[bound] ** 2
    return gradient, hessian


def _line_search(
    problem: PairConstraints,
    alpha: Vector,
    step: Vector,
    pull: Vector,
    bound: Bool[np.ndarray, " c"],
    spectrum: _Spectrum,
    decrement: float,
) -> tuple[Vector, _Spectrum, float]:
    """Backtrack from the largest step that keeps alpha > 0 until F has risen enough."""
    falling = bound & (step < 0)
    longest = float((-alpha[falling] / step[falling]).min()) if falling.any() else np.inf
    length = min(1.0, 0.99 * longest)
    logs = np.log(alpha[bound]).sum()
    while length > 1e-12:
        trial = alpha + length * step
        moved = _Spectrum.of(problem.combine(trial))
        if moved.inside():
            rise = length * float(pull @ step) + np.log(trial[bound]).sum() - logs
            rise += moved.log_det() - spectrum.log_det()
            if rise >= 0.1 * length * decrement - 1e-9:
                return trial, moved, length
        length *= 0.5
    return alpha, spectrum, 0.0
