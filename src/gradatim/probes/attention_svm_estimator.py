"""The attention SVM as a scikit-learn-like estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from gradatim.probes.attention_svm import (
    AttentionSVMResult,
    InfeasibleError,
    attention_svm,
)
from gradatim.probes.attention_svm_inputs import read_selection, read_sequences


class AttentionSVM(BaseEstimator):
    """`attention_svm` with fit and predict; sequences X [n, t, d], queries Z [n, e] (None: self-attention).

    After `fit`: `coef_` [d, e], `margin_` = margin / ||W||, `result_` the whole `AttentionSVMResult`.
    The parameters are those of `attention_svm`.
    """

    def __init__(
        self,
        norm: str = "frobenius",
        *,
        solver: str = "auto",
        rank: int | None = None,
        tol: float = 1e-7,
        margin: float = 1.0,
        query_index: int = 0,
    ) -> None:
        self.norm = norm
        self.solver = solver
        self.rank = rank
        self.tol = tol
        self.margin = margin
        self.query_index = query_index

    coef_: Float[np.ndarray, "d e"]
    margin_: float
    result_: AttentionSVMResult

    def fit(self, X: Any, Z: Any, selected: Any, key_padding_mask: Any = None) -> AttentionSVM:
        """Solve for W; raises what `attention_svm` raises."""
        self.result_ = attention_svm(
            X, Z, selected,
            norm=self.norm, rank=self.rank, solver=self.solver, tol=self.tol, margin=self.margin,
            key_padding_mask=key_padding_mask, query_index=self.query_index,
        )  # fmt: skip
        self.coef_ = self.result_.weight.cpu().numpy()
        size = self.result_.objective
        self.margin_ = self.margin / size if size > 0 else float("inf")
        return self

    def decision_function(
        self, X: Any, Z: Any = None, key_padding_mask: Any = None
    ) -> Float[np.ndarray, "n t"]:
        """x_it^T W z_i for every token, minus infinity at padding."""
        check_is_fitted(self, "coef_")
        batch = read_sequences(X, Z, key_padding_mask, self.query_index)
        if batch.x.shape[2] != self.coef_.shape[0] or batch.z.shape[1] != self.coef_.shape[1]:
            raise ValueError(
                f"fitted for tokens and queries of {self.coef_.shape} dimensions, got "
                f"{(batch.x.shape[2], batch.z.shape[1])}"
            )
        logits = np.einsum("ntd,nd->nt", batch.x, batch.z @ self.coef_.T)
        return np.where(batch.padding, -np.inf, logits)

    def predict(self, X: Any, Z: Any = None, key_padding_mask: Any = None) -> Int[np.ndarray, rows]:
        """The token with the largest logit, the first one among ties."""
        return np.asarray(self.decision_function(X, Z, key_padding_mask).argmax(axis=1))

    def score(self, X: Any, Z: Any, selected: Any, key_padding_mask: Any = None) -> float:
        """Share of sequences whose largest logit lies on a selected token."""
        batch = read_sequences(X, Z, key_padding_mask, self.query_index)
        wanted = read_selection(batch, selected)
        found = self.predict(X, Z, key_padding_mask)
        return float(wanted[np.arange(len(found)), found].mean())

    def is_feasible(self, X: Any, Z: Any, selected: Any, key_padding_mask: Any = None) -> bool:
        """Whether any W separates these tokens; independent of what was fitted."""
        try:
            attention_svm(X, Z, selected, key_padding_mask=key_padding_mask, query_index=self.query_index)
        except InfeasibleError:
            return False
        return True
