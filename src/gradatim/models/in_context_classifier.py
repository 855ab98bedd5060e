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

    `model` is an in-context learner (`InContextTransformer` ...), or any callable (x [batch, n, d], y
    [batch, n]) -> [batch, n] whose entry t answers x_t from the pairs before it, such as the reference
    algorithms. A positive answer is `classes_[1]`; labels are given to it as -1 and +1.
    `binarize` turns features into -1 and +1 first (above it: +1); None leaves them as they are. Rows are
    asked `batch_size` at a time.

    A learner made for d inputs and n_positions pairs takes at most n_positions - 1 examples of d features;
    more are refused. A Transformer reads the examples once, however many rows are asked.
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
        asked = self._inputs(validate_data(self, X, reset=False)).to(**self._place())
        return self._answers(asked).double().cpu().numpy()

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
        x, y = self.x_.to(**place), self.y_.to(**place)
        if hasattr(self.model, "backbone"):
            from gradatim.models.in_context import InContextTransformer

            if isinstance(self.model, InContextTransformer):
                return self._from_one_context(x, y, asked)
        found = []
        for rows in asked.split(self.batch_size):
            contexts = torch.cat([x.expand(len(rows), -1, -1), rows[:, None]], 1)
            # The last label is not known; no entry but those after it may depend on its value.
            answers = self.model(contexts, torch.cat([y, y.new_ones(1)]).expand(len(rows), -1))
            found.append(getattr(answers, "predictions", answers)[:, -1])
        return torch.cat(found)

    def _from_one_context(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """The examples are run once and kept; every row is then asked beside them."""
        from gradatim.models.decoder import KeyValueCache

        longest = self.model.config.n_positions
        if len(x) + 1 > longest:
            raise ValueError(
                f"{len(x)} examples and a question exceed the model's n_positions = {longest}; fit fewer"
            )
        cache = KeyValueCache()
        found = []
        # No call holds more tokens than the model has positions.
        for rows in asked.split(min(self.batch_size, 2 * (longest - len(x)))):
            found.append(self.model.predict_next(x[None], y[None], rows[None], cache=cache)[0])
            x, y = x[:0], y[:0]
        return torch.cat(found)

    def _place(self) -> dict[str, Any]:
        parameters = getattr(self.model, "parameters", None)
        first = next(iter(parameters()), None) if parameters is not None else None
        return {} if first is None else {"device": first.device, "dtype": first.dtype}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
