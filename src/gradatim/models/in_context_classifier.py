"""A trained in-context learner as a scikit-learn classifier: fitting stores the examples no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor


class InContextClassifier(ClassifierMixin, BaseEstimator):
    """Two classes; `fit(X, y)` stores the examples in order, `predict(X)` asks the model about each row.

    `model` is an in-context learner with `predict_next(x, y, x_new)` (`InContextTransformer` ...), or any
    callable (x [batch, n, d], y [batch, n]) -> [batch, n] whose entry t answers x_t from the pairs before it,
    such as the reference algorithms. A positive answer is `classes_[1]`; labels are given to it as -1 and +1.
    `binarize` turns features into -1 and +1 first (above it: +1); None leaves them as they are. Rows are
    asked `batch_size` at a time.

    A learner made for d inputs and n_positions pairs takes at most n_positions - 1 examples of d features;
    more are refused with the model's own message.
    """

    classes_: np.ndarray

    def __init__(self, model: Any, binarize: Any = None, batch_size: Any = 256) -> None:
        self.model = model
        self.binarize = binarize
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any) -> InContextClassifier:
        """Store the context. Raises ValueError for more than two classes or a model of another width."""
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported. The type of the target is multiclass: "
                f"{len(self.classes_)} classes"
            )
        width = getattr(getattr(self.model, "config", None), "d", X.shape[1])
        if width != X.shape[1]:
            raise ValueError(f"the model reads {width} features, X has {X.shape[1]}")
        self.x_ = self._inputs(X)
        self.y_ = torch.as_tensor(np.where(y == self.classes_[-1], 1.0, -1.0), dtype=torch.float32)
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, " rows"]:
        """The model's own answer: a logit, or whatever its sign is the class of."""
        check_is_fitted(self, "x_")
        asked = self._inputs(validate_data(self, X, reset=False))
        parts = [self._answers(rows) for rows in asked.split(self.batch_size)]
        return torch.cat(parts).double().cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The class of each row; where the model answers 0, `classes_[0]`."""
        positive = (self.decision_function(X) > 0).astype(int)
        return self.classes_[np.minimum(positive, len(self.classes_) - 1)]

    def _inputs(self, X: np.ndarray) -> Tensor:
        if self.binarize is not None:
            X = np.where(self.binarize < X, 1.0, -1.0)
        return torch.tensor(np.asarray(X), dtype=torch.float32)

    @torch.no_grad()
    def _answers(self, asked: Tensor) -> Tensor:
        place = self._place()
        x, y, asked = self.x_.to(**place), self.y_.to(**place), asked.to(**place)
        if hasattr(self.model, "predict_next"):
            found: Tensor = self.model.predict_next(x[None], y[None], asked[None])
            return found[0]
        contexts = torch.cat([x.expand(len(asked), -1, -1), asked[:, None]], 1)
        # The last label is not known; no entry but those after it may depend on its value.
        labels = torch.cat([y, y.new_ones(1)]).expand(len(asked), -1)
        answers: Tensor = self.model(contexts, labels)
        return answers[:, -1]

    def _place(self) -> dict[str, Any]:
        parameters = getattr(self.model, "parameters", None)
        first = next(iter(parameters()), None) if parameters is not None else None
        return {} if first is None else {"device": first.device, "dtype": first.dtype}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
