"""The same two problems through cvxpy (extra `svm`): slower, and independent of our own solvers."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from gradatim.probes.attention_svm_constraints import Matrix, PairConstraints, Vector

CVXPY_SOLVERS = ("clarabel", "scs", "osqp")
NUCLEAR_SOLVERS = ("clarabel", "scs")


def solve_with_cvxpy(
    problem: PairConstraints, norm: str, solver: str, tol: float
) -> tuple[Matrix, Vector, str]:
    """(W, multipliers, cvxpy's status), with one matrix constraint instead of one object per pair.

    Raises:
        ImportError: without cvxpy.
        RuntimeError: if the solver gives up; its status is in the message.
    """
    try:
        cp: Any = importlib.import_module("cvxpy")
    except ImportError as error:
        raise ImportError(
            f"solver={solver!r} needs cvxpy: pip install 'gradatim[svm]', or use solver='auto'"
        ) from error
    reduced, left, right = problem.reduced()
    rows = reduced.features()
    unknown = cp.Variable((reduced.differences.shape[1], reduced.queries.shape[1]))
    flat = cp.vec(unknown, order="C")
    bound, equal = ~reduced.equality, reduced.equality
    constraints = [rows[bound] @ flat >= reduced.target[bound]]
    if equal.any():
        constraints.append(rows[equal] @ flat == reduced.target[equal])
    # The squared Frobenius norm keeps a quadratic program, which every solver here takes.
    objective = cp.normNuc(unknown) if norm == "nuclear" else 0.5 * cp.sum_squares(unknown)
    task = cp.Problem(cp.Minimize(objective), constraints)
    task.solve(solver=solver.upper(), **accuracy_options(solver, tol))
    if task.status in ("infeasible", "infeasible_inaccurate"):
        return np.zeros((left.shape[0], right.shape[0])), np.zeros(len(problem)), "infeasible"
    if task.status not in ("optimal", "optimal_inaccurate"):
        raise RuntimeError(f"{solver} stopped with status {task.status!r}; try solver='auto'")
    dual = np.zeros(len(problem))
    dual[bound] = np.asarray(constraints[0].dual_value)
    if equal.any():
        dual[equal] = -np.asarray(constraints[1].dual_value)
    return left @ np.asarray(unknown.value) @ right.T, dual, str(task.status)


def accuracy_options(solver: str, tol: float) -> dict[str, Any]:
    """The settings by which each solver takes a tolerance."""
    if solver == "scs":
        return {"eps": tol, "max_iters": 200_000}
    if solver == "osqp":
        return {"eps_abs": tol, "eps_rel": tol, "max_iter": 200_000, "polishing": True}
    return {"tol_gap_abs": tol, "tol_gap_rel": tol, "tol_feas": tol}
