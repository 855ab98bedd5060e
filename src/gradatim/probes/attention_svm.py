"""The hard-margin SVM whose solution gradient descent on one attention layer converges to.

Source: Tarzanagh, Li, Thrampoulidis and Oymak, "Transformers as Support Vector Machines" (2023),
arXiv 2308.16898. For sequences x_i, queries z_i and one selected token a_i in each,

    min ||W||   subject to   (x_{i,a_i} - x_it)^T W z_i >= 1   for every other token t of every i,

with the Frobenius norm where W is trained directly and the nuclear norm where W = K Q^T is trained
through its factors.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradatim.probes.attention_alignment import effective_rank
from gradatim.probes.attention_svm_constraints import PairConstraints, Vector, selection_constraints
from gradatim.probes.attention_svm_cvxpy import CVXPY_SOLVERS, NUCLEAR_SOLVERS, solve_with_cvxpy
from gradatim.probes.attention_svm_factored import low_rank_weight
from gradatim.probes.attention_svm_frobenius import Infeasible, frobenius_weight
from gradatim.probes.attention_svm_inputs import SequenceBatch, read_selection, read_sequences
from gradatim.probes.attention_svm_nuclear import dual_bound, nuclear_weight

RANK_RTOL = 1e-4


class InfeasibleError(ValueError):
    """No W separates the selected tokens, with a Farkas certificate.

    `certificate` [n, t] holds y, non-negative on the constraints and summing to 1 over them, with
    ||sum y_it (x_{i,a_i} - x_it) z_i^T||_F = `residual`: since any feasible W has inner product at
    least `margin` with that sum, its Frobenius norm would be at least `least_norm` = margin / residual.
    """

    def __init__(
        self, reason: str, certificate: Float[np.ndarray, "n t"], residual: float, margin: float
    ) -> None:
        self.certificate = certificate
        self.residual = residual
        self.least_norm = margin / residual if residual > 0 else float("inf")
        super().__init__(f"no W separates the selected tokens: {reason}")


@dataclass(frozen=True)
class AttentionSVMResult:
    """The solution W of an attention SVM and what certifies it.

    - `weight` [d, e], float64, on the device of the inputs; it multiplies as x^T W z.
    - `status`: "optimal"; "local" for a rank-limited problem whose optimality is not proved;
      "inaccurate" where the certified gap exceeds the tolerance asked for.
    - `objective`: ||W|| in `norm`; `lower_bound` <= optimum <= `objective`; `gap` is relative.
    - `margins` [n, t]: (x_{i,a_i} - x_it)^T W z_i; 0 at the selected token, NaN at padding.
    - `support` [n, t]: the constraint is active. `dual` [n, t]: its multiplier (0 without one).
    - `rank`: singular values above 1e-4 of the largest. `solve_time` in seconds.
    """

    weight: Float[Tensor, "d e"]
    status: Literal["optimal", "local", "inaccurate"]
    norm: str
    objective: float
    lower_bound: float
    margins: Float[Tensor, "n t"]
    support: Bool[Tensor, "n t"]
    dual: Float[Tensor, "n t"]
    rank: int
    solver: str
    solve_time: float

    @property
    def gap(self) -> float:
        """(objective - lower bound) / objective; 0 for W = 0."""
        return (self.objective - self.lower_bound) / self.objective if self.objective > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"attention SVM, {self.norm} norm: {self.status}, ||W|| = {self.objective:.6g} "
            f"(gap {self.gap:.1e}), rank {self.rank}, {int(self.support.sum())} support tokens, "
            f"{self.solver} in {1e3 * self.solve_time:.1f} ms"
        )


def attention_svm(
    x: Any,
    z: Any | None,
    selected: Any,
    *,
    norm: str = "frobenius",
    rank: int | None = None,
    solver: str = "auto",
    tol: float = 1e-7,
    margin: float = 1.0,
    key_padding_mask: Any | None = None,
    query_index: int = 0,
) -> AttentionSVMResult:
    """Solve the attention SVM for one selected token per sequence, or a set of them that must tie.

    Args:
        x: tokens [n, t, d], a floating-point tensor (any device), array or nested list.
        z: queries [n, e]; None for self-attention, z_i = x[i, query_index].
        selected: index [n] of the selected tokens, or a mask [n, t]: the selected tokens of a row then
            get equal logits, `margin` above the others.
        norm: "frobenius" (W trained) or "nuclear" (K and Q trained).
        rank: for keys and queries of fewer dimensions than d; nuclear only, see the status "local".
        solver: "auto" takes "nnls" (Frobenius) or "barrier" (nuclear); "clarabel", "scs" and "osqp"
            (Frobenius only) go through cvxpy (extra `svm`).
        tol: relative gap between the norm and its certified lower bound.
        margin: the margin asked for; W scales with it.
        key_padding_mask: True marks padding, which takes no part; sequences may so differ in length.

    Raises:
        ValueError: on shapes, devices or values that do not fit, each with what would.
        TypeError: where x or z holds integers.
        InfeasibleError: if no W satisfies the constraints, with a certificate.
        ImportError: if a cvxpy solver is asked for and cvxpy is absent.
        RuntimeError: if a cvxpy solver gives up.
    """
    _check_settings(norm, rank, solver, tol, margin)
    batch = read_sequences(x, z, key_padding_mask, query_index)
    chosen = read_selection(batch, selected)
    start = time.perf_counter()
    problem = selection_constraints(batch.x, batch.z, chosen, batch.padding, margin)
    _refuse_impossible(batch, problem, margin)
    if rank is not None and rank < min(batch.x.shape[-1], batch.z.shape[-1]):
        weight, dual, lower, status, used = _solve_low_rank(batch, problem, rank, tol, margin)
    else:
        weight, dual, lower, status, used = _solve(batch, problem, norm, solver, tol, margin)
    seconds = time.perf_counter() - start

    margins = problem.margins(weight)
    spectrum = np.linalg.svd(weight, compute_uv=False)
    objective = float(spectrum.sum() if norm == "nuclear" else np.linalg.norm(spectrum))
    if status == "optimal" and objective - lower > tol * objective + 1e-12:
        status = "inaccurate"
    # On the central path slack times multiplier is constant: whichever is larger tells the active ones.
    slack = margins / margin - 1.0
    share = dual / max(dual.max(initial=0.0), 1e-300)
    active = (slack <= np.maximum(share, 1e-9)) & ~problem.equality
    return AttentionSVMResult(
        weight=torch.as_tensor(weight, device=batch.device),
        status=status,
        norm=norm,
        objective=objective,
        lower_bound=lower,
        margins=torch.as_tensor(_all_margins(batch, problem, margins), device=batch.device),
        support=torch.as_tensor(_spread(batch, problem, active, False), device=batch.device),
        dual=torch.as_tensor(_spread(batch, problem, dual, 0.0), device=batch.device),
        rank=int((spectrum > RANK_RTOL * spectrum[0]).sum()),
        solver=used,
        solve_time=seconds,
    )


_Found = tuple[np.ndarray, Vector, float, Literal["optimal", "local", "inaccurate"], str]


def _solve(
    batch: SequenceBatch, problem: PairConstraints, norm: str, solver: str, tol: float, margin: float
) -> _Found:
    if solver in CVXPY_SOLVERS and len(problem):
        weight, dual, status = solve_with_cvxpy(problem, norm, solver, tol)
        if status == "infeasible":
            proof = frobenius_weight(problem, 1e-9)
            if isinstance(proof, Infeasible):
                raise _infeasible(batch, problem, proof, margin)
            raise RuntimeError(f"{solver} calls a feasible problem infeasible; use solver='auto'")
        lower = dual_bound(problem, dual) if norm == "nuclear" else _frobenius_bound(problem, dual)
        return weight, dual, lower, "optimal" if status == "optimal" else "inaccurate", solver
    if norm == "nuclear":
        nuclear = nuclear_weight(problem, tol)
        if isinstance(nuclear, Infeasible):
            raise _infeasible(batch, problem, nuclear, margin)
        return nuclear.weight, nuclear.dual, nuclear.lower, "optimal", "barrier"
    found = frobenius_weight(problem, min(tol, 1e-9))
    if isinstance(found, Infeasible):
        raise _infeasible(batch, problem, found, margin)
    return found.weight, found.dual, _frobenius_bound(problem, found.dual), "optimal", "nnls"


def _solve_low_rank(
    batch: SequenceBatch, problem: PairConstraints, rank: int, tol: float, margin: float
) -> _Found:
    whole = nuclear_weight(problem, tol)
    if isinstance(whole, Infeasible):
        raise _infeasible(batch, problem, whole, margin)
    if int(effective_rank(torch.as_tensor(whole.weight), RANK_RTOL)) <= rank:
        return whole.weight, whole.dual, whole.lower, "optimal", "barrier"
    found = low_rank_weight(problem, whole.weight, rank, tol)
    if found is None:
        raise ValueError(
            f"no W of rank {rank} was found that separates the selected tokens, although one of "
            f"full rank does; try a larger rank"
        )
    return found[0], found[1], whole.lower, "local", "factored"


def _frobenius_bound(problem: PairConstraints, dual: Vector) -> float:
    """b.alpha / ||sum alpha_c D_c||_F bounds ||W||_F from below for every feasible W."""
    clipped = np.where(problem.equality, dual, np.maximum(dual, 0.0))
    length = float(np.linalg.norm(problem.combine(clipped)))
    return float(problem.target @ clipped) / length if length > 0 else 0.0


def _check_settings(norm: str, rank: int | None, solver: str, tol: float, margin: float) -> None:
    if norm not in ("frobenius", "nuclear"):
        raise ValueError(f"norm must be one of 'frobenius' and 'nuclear', got {norm!r}")
    if norm == "nuclear" and solver == "osqp":
        raise ValueError("OSQP cannot solve the nuclear norm's cone; use 'auto', 'scs' or 'clarabel'")
    own = "barrier" if norm == "nuclear" else "nnls"
    allowed = ("auto", own, *(NUCLEAR_SOLVERS if norm == "nuclear" else CVXPY_SOLVERS))
    if solver not in allowed:
        raise ValueError(f"solver must be one of {allowed} for norm={norm!r}, got {solver!r}")
    if not 1e-12 <= tol <= 1e-1:
        raise ValueError(f"tol must lie between 1e-12 and 0.1, got {tol}")
    if not (margin > 0 and np.isfinite(margin)):
        raise ValueError(f"margin must be a positive number, got {margin}")
    if rank is not None:
        if norm != "nuclear":
            raise ValueError("rank limits W = K Q^T, whose norm is the nuclear one: pass norm='nuclear'")
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        if solver not in ("auto", "barrier"):
            raise ValueError(f"rank needs solver='auto', got {solver!r}")


def _refuse_impossible(batch: SequenceBatch, problem: PairConstraints, margin: float) -> None:
    """A zero query or a token equal to the selected one makes D_c = 0 exactly: nothing to solve."""
    no_query = ~np.asarray(batch.z.any(axis=1))[problem.sequence]
    same = ~problem.differences.any(axis=1)
    empty = np.flatnonzero((no_query | same) & ~problem.equality)
    if not len(empty):
        return
    first = int(empty[0])
    i, t = int(problem.sequence[first]), int(problem.token[first])
    reason = (
        f"sequence {i}: its query is zero" if no_query[first] else
        f"sequence {i}: token {t} equals its selected token"
    )  # fmt: skip
    proof = np.zeros(len(problem))
    proof[first] = 1.0
    raise InfeasibleError(reason, _spread(batch, problem, proof, 0.0), 0.0, margin)


def _infeasible(
    batch: SequenceBatch, problem: PairConstraints, proof: Infeasible, margin: float
) -> InfeasibleError:
    used = int((proof.certificate > 0).sum())
    return InfeasibleError(
        f"{used} of its {len(problem)} constraints contradict one another "
        f"(a convex combination of them vanishes up to {proof.residual:.1e})",
        _spread(batch, problem, proof.certificate, 0.0),
        proof.residual,
        margin,
    )


def _spread(
    batch: SequenceBatch, problem: PairConstraints, values: np.ndarray, fill: float | bool
) -> np.ndarray:
    """One value per constraint, put back into the places [n, t] of their tokens."""
    out = np.full(batch.x.shape[:2], fill, dtype=values.dtype)
    out[problem.sequence, problem.token] = values
    return out


def _all_margins(batch: SequenceBatch, problem: PairConstraints, margins: Vector) -> Float[np.ndarray, "n t"]:
    out = _spread(batch, problem, margins, 0.0)
    out[batch.padding] = np.nan
    return out
