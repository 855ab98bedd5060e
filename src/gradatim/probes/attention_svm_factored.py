"""min ||W||_* with rank(W) <= m: the factored problem of keys and queries with few dimensions.

W = K Q^T with K, Q of m columns and ||W||_* = min 0.5 (||K||_F^2 + ||Q||_F^2), so the problem is

    min 0.5 (||K||_F^2 + ||Q||_F^2)   subject to   (u_c^T K)(Q^T z_c) >= b_c.

It is not convex. Where the unrestricted solution already has rank m or less it solves this one too;
otherwise an augmented Lagrangian started from the truncated solution finds a local minimum, and the
unrestricted optimum remains a lower bound.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from gradatim.probes.attention_svm_constraints import Matrix, PairConstraints, Vector

OUTER_STEPS = 60


def low_rank_weight(
    problem: PairConstraints, start: Matrix, rank: int, tol: float, restarts: int = 4
) -> tuple[Matrix, Vector] | None:
    """A local minimum of the factored problem, feasible, or None if no start led to a feasible point.

    The first start is the truncated `start`; the others add noise drawn from fixed seeds, and the best
    local minimum is kept.
    """
    reduced, left, right = problem.reduced()
    inner = left.T @ start @ right
    u, s, vt = np.linalg.svd(inner, full_matrices=False)
    root = np.sqrt(s[:rank])
    best: tuple[float, Matrix, Vector] | None = None
    for seed in range(restarts):
        noise = 0.0 if seed == 0 else 0.5 * root.mean()
        rng = np.random.default_rng(seed)
        key = u[:, :rank] * root + noise * rng.standard_normal((u.shape[0], len(root)))
        query = vt[:rank].T * root + noise * rng.standard_normal((vt.shape[1], len(root)))
        found = _augmented_lagrangian(reduced, key, query, tol)
        if found is not None and (best is None or found[0] < best[0] * (1 - 1e-9)):
            best = found
    if best is None:
        return None
    return left @ best[1] @ right.T, best[2]


def _augmented_lagrangian(
    problem: PairConstraints, key: Float[np.ndarray, "d m"], query: Float[np.ndarray, "e m"], tol: float
) -> tuple[float, Matrix, Vector] | None:
    z = problem.queries[problem.sequence]
    shape, cut = (key.shape[1],), key.size
    multipliers = np.zeros(len(problem))
    penalty = 1.0
    worst_before = np.inf
    flat = np.concatenate([key.ravel(), query.ravel()])

    def unpack(point: Vector) -> tuple[Float[np.ndarray, "d m"], Float[np.ndarray, "e m"]]:
        return point[:cut].reshape(-1, *shape), point[cut:].reshape(-1, *shape)

    def value(point: Vector) -> tuple[float, Vector]:
        k, q = unpack(point)
        left, right = problem.differences @ k, z @ q  # [c, m] each
        force = multipliers + penalty * (problem.target - (left * right).sum(axis=1))
        force = np.where(problem.equality, force, np.maximum(force, 0.0))
        total = 0.5 * float(point @ point) + 0.5 * float(force @ force) / penalty
        grad_k = k - problem.differences.T @ (force[:, None] * right)
        grad_q = q - z.T @ (force[:, None] * left)
        return total, np.concatenate([grad_k.ravel(), grad_q.ravel()])

    for _ in range(OUTER_STEPS):
        # An inner solve more accurate than the multipliers are is wasted.
        accuracy = max(1e-9, min(1e-2, 1e-2 * worst_before))
        flat = minimize(
            value,
            flat,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 1000, "ftol": 0.0, "gtol": accuracy, "maxcor": 30},
        ).x
        k, q = unpack(flat)
        gap = problem.target - problem.margins(k @ q.T)
        worst = float(np.where(problem.equality, np.abs(gap), gap).max())
        force = multipliers + penalty * gap
        multipliers = np.where(problem.equality, force, np.maximum(force, 0.0))
        if worst < tol:
            break
        if worst > 0.3 * worst_before:
            penalty = min(penalty * 3.0, 1e7)
        worst_before = worst
    k, q = unpack(flat)
    weight = k @ q.T
    bound = ~problem.equality
    ratio = (problem.margins(weight)[bound] / problem.target[bound]).min()
    if worst > 1e-3 or ratio <= 0:
        return None
    weight = weight / ratio
    return float(np.linalg.norm(weight, "nuc")), weight, multipliers
