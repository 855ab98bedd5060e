"""min ||W||_F subject to <D_c, W> >= b_c: least distance programming by non-negative least squares.

Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23: with rows A (one vec(D_c) each),

    u* = argmin_{u >= 0} || [A^T; b^T] u - e_last ||,   r = [A^T; b^T] u* - e_last,   w = -r_head / r_last.

r = 0 means that no w satisfies the constraints, and u* is then a Farkas certificate: u* >= 0,
sum_c u*_c D_c = 0 and sum_c u*_c b_c = 1 > 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve, lstsq, qr
from scipy.optimize import nnls

from gradatim.probes.attention_svm_constraints import Matrix, PairConstraints, Vector

# From this many constraints on, the problem is solved on a growing working set.
WORKING_SET_FROM = 400
# ||sum_c y_c D_c|| / (max_c ||D_c|| sum_c y_c) below this is called zero.
INFEASIBLE_BELOW = 1e-9


@dataclass(frozen=True)
class Infeasible:
    """y >= 0 on the inequalities (free on equalities), sum of y over inequalities 1, sum y_c D_c ~ 0."""

    certificate: Vector
    residual: float


@dataclass(frozen=True)
class Solved:
    """The minimiser and its multipliers: W = sum_c alpha_c D_c for the Frobenius norm."""

    weight: Matrix
    dual: Vector


def frobenius_weight(problem: PairConstraints, tol: float) -> Solved | Infeasible:
    """Solve min ||W||_F; equality constraints must have target 0."""
    if not len(problem):
        d, e = problem.differences.shape[1], problem.queries.shape[1]
        return Solved(np.zeros((d, e)), np.zeros(0))
    small = len(problem) < WORKING_SET_FROM
    if small and not problem.equality.any():
        quick = _solve_gram(problem)
        if quick is not None:
            return quick
    reduced, left, right = problem.reduced()
    found = _solve_rows(reduced) if small else _solve_on_working_set(reduced, tol)
    if isinstance(found, Infeasible):
        return found
    return Solved(left @ found.weight @ right.T, found.dual)


def _solve_gram(problem: PairConstraints) -> Solved | None:
    """The whole solution from inner products alone, where these are well conditioned; else None.

    Rows L with L L^T = Gram have the same geometry as the constraints. Squaring the condition number costs
    digits, so that what comes out is used only if it meets every constraint to 1e-11; infeasibility is
    never concluded here.
    """
    gram = problem.gram()
    largest = float(np.diagonal(gram).max())
    try:
        rows = np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return None
    if np.diagonal(rows).min() ** 2 < 1e-9 * largest:
        return None
    stacked = np.vstack([rows.T / np.sqrt(largest), problem.target[None]])
    goal = np.zeros(len(stacked))
    goal[-1] = 1.0
    u, _ = nnls(stacked, goal, maxiter=50 * len(problem))
    active = np.flatnonzero(u > 0)
    if not len(active):
        return None
    inner, wanted = gram[np.ix_(active, active)], problem.target[active]
    factor = cho_factor(inner, check_finite=False)
    solved = cho_solve(factor, wanted, check_finite=False)
    solved += cho_solve(factor, wanted - inner @ solved, check_finite=False)
    slack = gram[:, active] @ solved - problem.target
    if (solved < 0).any() or slack.min() < -1e-11 * problem.target.max():
        return None
    dual = np.zeros(len(problem))
    dual[active] = solved
    return Solved(problem.combine(dual), dual)


def _solve_on_working_set(problem: PairConstraints, tol: float) -> Solved | Infeasible:
    """Grow a set of constraints by the most violated of every sequence until none is violated.

    Each round solves a small problem exactly; a subset that is infeasible makes the whole infeasible.
    """
    n = len(problem.queries)
    chosen = problem.equality.copy()
    margins = problem.margins(problem.combine(np.where(problem.equality, 0.0, 1.0)))
    # A first guess says only which constraints are worth starting from.
    violated = ~problem.equality
    while True:
        slack = np.where(violated & ~chosen, margins - problem.target, np.inf)
        order = np.lexsort((slack, problem.sequence))
        first = np.searchsorted(problem.sequence[order], np.arange(n))
        worst = order[first[first < len(order)]]
        worst = np.unique(worst[np.isfinite(slack[worst])])
        if not len(worst):
            break
        chosen[worst] = True
        index = np.flatnonzero(chosen)
        found = _solve_rows(problem.subset(index))
        values = np.zeros(len(problem))
        if isinstance(found, Infeasible):
            values[index] = found.certificate
            return Infeasible(values, found.residual)
        values[index] = found.dual
        margins = problem.margins(found.weight)
        violated = margins < problem.target - tol * np.maximum(1.0, np.abs(problem.target))
        solution = Solved(found.weight, values)
    return solution


def _solve_rows(problem: PairConstraints) -> Solved | Infeasible:
    rows = _compressed(problem.features())
    equality, inequality = rows[problem.equality], rows[~problem.equality]
    target = problem.target[~problem.equality]
    dual = np.zeros(len(problem))
    # Equalities with target 0 confine w to the null space of their rows.
    basis = _row_space(equality)
    inner = inequality - (inequality @ basis) @ basis.T
    result = _least_distance(inner, target, np.linalg.norm(rows, axis=1).max())
    dual[~problem.equality] = result.certificate if isinstance(result, Infeasible) else result.dual
    if len(equality):
        # The multipliers of the equalities are what cancels the part outside the null space.
        outside = inequality.T @ dual[~problem.equality]
        dual[problem.equality] = -lstsq(equality.T, basis @ (basis.T @ outside))[0]
    if isinstance(result, Infeasible):
        return Infeasible(dual, float(np.linalg.norm(problem.combine(dual))))
    return Solved(problem.combine(dual), dual)


@dataclass(frozen=True)
class _Multipliers:
    dual: Vector


def _least_distance(rows: Float[np.ndarray, "c f"], target: Vector, size: Any) -> _Multipliers | Infeasible:
    if not len(rows):
        return _Multipliers(np.zeros(0))
    # The constraint A w >= b is (kA)(w/k) >= b: a second pass with k = ||w|| is well conditioned.
    scale = 1.0 / float(size)
    for _ in range(3):
        stacked = np.vstack([scale * rows.T, target[None]])
        goal = np.zeros(len(stacked))
        goal[-1] = 1.0
        u, _ = nnls(stacked, goal, maxiter=50 * stacked.shape[1])
        length = np.linalg.norm(scale * (rows.T @ u))
        rest = 1.0 - float(target @ u)
        if u.sum() > 0 and length / u.sum() < scale * float(size) * INFEASIBLE_BELOW:
            certificate = u / u.sum()
            return Infeasible(certificate, float(np.linalg.norm(rows.T @ certificate)))
        norm = length / max(rest, 1e-300)  # of w in the scaled problem
        if 0.1 < norm < 10.0:
            break
        scale *= float(np.clip(norm, 1e-4, 1e4))
    dual = scale**2 * u / max(rest, 1e-300)
    return _Multipliers(_polished(rows, target, dual))


def _polished(rows: Float[np.ndarray, "c f"], target: Vector, dual: Vector) -> Vector:
    """Solve the active constraints as equations, which removes the rounding of the scaling passes."""
    active = np.flatnonzero(dual > 0)
    if not len(active):
        return dual
    _, r, order = qr(rows[active].T, mode="economic", pivoting=True)
    diagonal = np.abs(np.diag(r))
    if len(diagonal) < len(active) or diagonal[-1] < 1e-12 * diagonal[0]:
        return dual
    # A_S A_S^T alpha = b with A_S^T = Q R: two triangular solves, no squared condition number in w.
    solved = np.linalg.solve(r, np.linalg.solve(r.T, target[active][order]))
    better = np.zeros_like(dual)
    better[active[order]] = solved
    slack = rows @ (rows.T @ better) - target
    old = rows @ (rows.T @ dual) - target
    return better if (solved >= 0).all() and slack.min() >= min(old.min(), -1e-9) else dual


def _compressed(rows: Float[np.ndarray, "c f"]) -> Float[np.ndarray, "c g"]:
    """Rows with the same inner products and at most as many columns as rows."""
    if rows.shape[1] <= rows.shape[0]:
        return rows
    triangle: Any = np.linalg.qr(rows.T, mode="r")
    return np.asarray(triangle.T)


def _row_space(rows: Float[np.ndarray, "c f"]) -> Float[np.ndarray, "f r"]:
    if not len(rows):
        return np.zeros((rows.shape[1], 0))
    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(vt[s > 1e-12 * max(s[0], 1e-300)].T)


def least_norm_solution(problem: PairConstraints) -> tuple[Matrix, float]:
    """min ||W||_F with <D_c, W> = target_c for all c (least squares where they contradict).

    Returns W and the largest residual |<D_c, W> - target_c|.
    """
    if not len(problem):
        return np.zeros((problem.differences.shape[1], problem.queries.shape[1])), 0.0
    reduced, left, right = problem.reduced()
    rows = reduced.features()
    flat = lstsq(rows, problem.target, cond=1e-12)[0]
    inner = flat.reshape(reduced.differences.shape[1], reduced.queries.shape[1])
    weight = left @ inner @ right.T
    return weight, float(np.abs(problem.margins(weight) - problem.target).max())
