"""The linear constraints of the attention SVM, kept as pairs (token difference, query).

A constraint reads <D_c, W> >= 1 with the rank-one matrix D_c = u_c z_i^T, where u_c is the difference
of two tokens of sequence i and z_i its query. The d x d matrices D_c are never formed: everything below
costs d per constraint, not d^2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

Vector = Float[np.ndarray, " c"]
Matrix = Float[np.ndarray, "d e"]


@dataclass(frozen=True)
class PairConstraints:
    """Constraints <u_c z_{i(c)}^T, W> >= target_c, or = target_c where `equality` is set.

    Arrays: `differences` [c, d], `sequence` [c] (row of `queries`), `token` [c] (the unselected token
    that the constraint holds down), `queries` [n, e], `target` [c], `equality` [c].
    """

    differences: Float[np.ndarray, "c d"]
    queries: Float[np.ndarray, "n e"]
    sequence: Int[np.ndarray, " c"]
    token: Int[np.ndarray, " c"]
    target: Float[np.ndarray, " c"]
    equality: Bool[np.ndarray, " c"]

    def __len__(self) -> int:
        return len(self.sequence)

    def margins(self, weight: Matrix) -> Vector:
        """<D_c, W> = u_c^T W z_{i(c)} for every constraint."""
        logits = self.queries @ weight.T  # [n, d]
        return np.asarray((self.differences * logits[self.sequence]).sum(axis=1))

    def combine(self, multipliers: Vector) -> Matrix:
        """sum_c alpha_c D_c, a d x e matrix."""
        return np.asarray(self.differences.T @ (multipliers[:, None] * self.queries[self.sequence]))

    def sizes(self) -> Vector:
        """||D_c||_F = ||u_c|| ||z_{i(c)}||."""
        lengths = np.linalg.norm(self.queries, axis=1)
        return np.asarray(np.linalg.norm(self.differences, axis=1) * lengths[self.sequence])

    def gram(self) -> Float[np.ndarray, "c c"]:
        """<D_a, D_b> = (u_a^T u_b)(z_{i(a)}^T z_{i(b)})."""
        queries = self.queries @ self.queries.T
        inner = self.differences @ self.differences.T
        return np.asarray(inner * queries[self.sequence[:, None], self.sequence])

    def features(self) -> Float[np.ndarray, "c f"]:
        """The constraints as rows, vec(D_c); meant for reduced constraints, where d and e are small."""
        rows = self.differences[:, :, None] * self.queries[self.sequence][:, None, :]
        return rows.reshape(len(self), -1)

    def subset(self, index: Int[np.ndarray, " k"] | Bool[np.ndarray, " c"]) -> PairConstraints:
        """The constraints at `index`; the queries stay as they are."""
        return replace(
            self,
            differences=self.differences[index],
            sequence=self.sequence[index],
            token=self.token[index],
            target=self.target[index],
            equality=self.equality[index],
        )

    def reduced(self) -> tuple[PairConstraints, Matrix, Matrix]:
        """The same problem in coordinates of the spans, with the bases U [d, r1] and V [e, r2].

        W may be taken as U M V^T: projecting W onto span{u_c} x span{z_i} keeps every <D_c, W> and
        raises no unitarily invariant norm.
        """
        left = _span(self.differences)
        right = _span(self.queries[np.unique(self.sequence)])
        inner = replace(self, differences=self.differences @ left, queries=self.queries @ right)
        return inner, left, right


def _span(rows: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "d r"]:
    """Orthonormal basis of the row space; the identity where the rows span everything."""
    d = rows.shape[1]
    if len(rows) > 4 * d:
        # The triangular factor has the same row space and singular values, and is d x d.
        rows = np.asarray(np.linalg.qr(rows, mode="r"))
    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    rank = int((s > s[0] * max(rows.shape) * np.finfo(np.float64).eps).sum()) if s.size else 0
    return np.eye(d) if rank == d else vt[:rank].T


def selection_constraints(
    x: Float[np.ndarray, "n t d"],
    z: Float[np.ndarray, "n e"],
    selected: Bool[np.ndarray, "n t"],
    padding: Bool[np.ndarray, "n t"],
    margin: float = 1.0,
) -> PairConstraints:
    """Constraints that separate the selected tokens of each sequence from its other tokens.

    One selected token a: (x_ia - x_it)^T W z_i >= margin for every other real token t. Several: they
    must tie, (x_ia - x_ir)^T W z_i = 0 for r selected, where a is the first of them.
    """
    anchor = selected.argmax(axis=1)
    wanted = ~padding
    wanted[np.arange(len(x)), anchor] = False
    sequence, token = np.nonzero(wanted)
    equality = selected[sequence, token]
    return PairConstraints(
        differences=x[sequence, anchor[sequence]] - x[sequence, token],
        queries=z,
        sequence=sequence,
        token=token,
        target=np.where(equality, 0.0, margin),
        equality=equality,
    )
