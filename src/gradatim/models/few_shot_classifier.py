"""A meta-learned initialisation as a scikit-learn classifier: fitting is a few steps from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from gradatim.models.meta_sgd import MetaSGD


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """`fit(X, y)` adapts a copy of the meta-learned weights to the rows; `meta` itself never changes.

    `meta` is a `MetaSGD` with loss "bce" (two classes) or "cross_entropy" (as many classes as it has
    outputs, or fewer), or a function (features, classes) that makes one. `steps` is the number of inner
    steps (None: the trained number). Rows are put to the module as they are; scale them as in training.

    With a BatchNorm and norm_stats="batch" predictions depend on which rows are asked together.
    """

    classes_: np.ndarray

    def __init__(self, meta: Any, steps: Any = None) -> None:
        self.meta = meta
        self.steps = steps

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Adapt. Raises ValueError for one class only, or more classes than the module has outputs."""
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        self.classes_, places = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"the rows have one class only, {self.classes_[0]!r}: nothing to tell apart")
        made = self.meta if isinstance(self.meta, MetaSGD) else self.meta(X.shape[1], len(self.classes_))
        if made.loss == "bce" and len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported with the loss 'bce'. The type of the target is "
                f"multiclass: {len(self.classes_)} classes"
            )
        self.meta_ = made
        self.support_ = self._inputs(X)
        labels = torch.as_tensor(places, device=self.support_.device)[None]
        labels = labels.to(self.support_.dtype)
        with torch.no_grad():
            outputs = made.predict(made.adapt(self.support_, labels, 0), self.support_, self.support_)
            if made.loss == "cross_entropy" and outputs.shape[-1] < len(self.classes_):
                raise ValueError(
                    f"{len(self.classes_)} classes, but the module has {outputs.shape[-1]} outputs"
                )
            self.adapted_ = made.adapt(self.support_, labels, self.steps)
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, "rows ..."]:
        """Logits: [rows] of `classes_[1]` for two classes, else [rows, classes]."""
        check_is_fitted(self, "adapted_")
        asked = self._inputs(validate_data(self, X, reset=False))
        with torch.no_grad():
            outputs = self.meta_.predict(self.adapted_, asked, self.support_)[0]
        found = outputs.double().cpu().numpy()
        if found.ndim == 1:
            return found
        found = found[:, : len(self.classes_)]
        return found[:, 1] - found[:, 0] if len(self.classes_) == 2 else found

    def predict_proba(self, X: Any) -> Float[np.ndarray, "rows classes"]:
        """Probabilities of `classes_`."""
        found = torch.from_numpy(np.atleast_1d(self.decision_function(X)))
        if found.dim() == 1:
            found = torch.stack([torch.zeros_like(found), found], dim=1)
        return found.softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of each row."""
        found = self.decision_function(X)
        return self.classes_[(found > 0).astype(int) if found.ndim == 1 else found.argmax(1)]

    def _inputs(self, X: np.ndarray) -> Tensor:
        meta = getattr(self, "meta_", None)
        first = next((meta if meta is not None else self.meta).parameters())
        return torch.tensor(np.asarray(X), dtype=first.dtype, device=first.device)[None]
