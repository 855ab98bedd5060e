"""The exact Boolean learners as scikit-learn classifiers that learn one example at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from gradatim.probes.boolean_bayes import TernaryBayes, enumerated, values_at
from gradatim.probes.boolean_references import (
    Elimination,
    GF2Elimination,
    gf2_insert,
    gf2_reduce,
    holds,
    kept_literals,
)

Function = TypeVar("Function", bound=Callable[..., Any])


def _unchecked(function: Function) -> Function:
    """scikit-learn's contract: `__init__` and `set_params` take anything, and `fit` judges it."""
    function.__no_type_check__ = True  # type: ignore[attr-defined]
    return function


class _BooleanClassifier(ClassifierMixin, BaseEstimator):
    """Two classes over bits: `classes_[0]` is -1, `classes_[1]` is +1. Features over `binarize` are set bits.

    With `binarize=None` features must be -1 and +1, or 0 and 1, already.
    """

    binarize: float | None
    classes_: np.ndarray

    def fit(self, X: Any, y: Any) -> _BooleanClassifier:
        """Learn from these examples alone."""
        if hasattr(self, "state_"):
            del self.state_
        return self._learn(X, y, None, reset=True)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> _BooleanClassifier:
        """Learn further examples. The first call needs both classes: in y, or named in `classes`."""
        return self._learn(X, y, classes, reset=not hasattr(self, "state_"))

    def predict(self, X: Any) -> np.ndarray:
        """The class; `classes_[0]` where the examples do not decide."""
        positive = (self._decision(X) > 0).astype(int)
        return self.classes_[np.minimum(positive, len(self.classes_) - 1)]

    def curve(self, X: Any, y: Any) -> Float[np.ndarray, "*batch m"]:
        """-1, 0, +1 for every example from those before it; X [m, n] or [batch, m, n] of -1 and +1."""
        x, labels = torch.as_tensor(np.asarray(X, float)), torch.as_tensor(np.asarray(y, float))
        if x.dim() == 2:
            return self._reference()(x[None], labels[None])[0].numpy()
        return self._reference()(x, labels).numpy()

    def _learn(self, X: Any, y: Any, classes: Any, reset: bool) -> _BooleanClassifier:
        X, y = validate_data(self, X, y, reset=reset)
        check_classification_targets(y)
        if reset:
            self.classes_ = np.unique(y if classes is None else classes)
            if len(self.classes_) > 2:
                raise ValueError(
                    "Only binary classification is supported. The type of the target is multiclass: "
                    f"{len(self.classes_)} classes"
                )
            self.state_ = self._initial(X.shape[1])
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(
                f"labels {unknown.tolist()} are not in classes {self.classes_.tolist()}; name all classes in "
                "the first call of partial_fit"
            )
        signs = np.where(y == self.classes_[-1], 1.0, -1.0)
        if len(self.classes_) == 1:
            return self
        self.state_ = self._updated(self.state_, self._bits(X), torch.as_tensor(signs))
        return self

    def _decision(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "state_")
        x = self._bits(validate_data(self, X, reset=False))
        return self._answers(self.state_, x).numpy()

    def _bits(self, X: np.ndarray) -> Tensor:
        if self.binarize is not None:
            return torch.as_tensor(np.where(self.binarize < X, 1.0, -1.0))
        if not (np.isin(X, (-1, 1)).all() or np.isin(X, (0, 1)).all()):
            raise ValueError("features must be -1 and +1, or 0 and 1; set binarize to a threshold otherwise")
        return torch.as_tensor(np.where(X > 0, 1.0, -1.0))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        # Hypotheses over single bits: continuous blobs are not what these learners are for.
        tags.classifier_tags.poor_score = True
        return tags

    def _reference(self) -> Any:
        raise NotImplementedError

    def _initial(self, n: int) -> Tensor:
        raise NotImplementedError

    def _updated(self, state: Tensor, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _answers(self, state: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class EliminationClassifier(_BooleanClassifier):
    """`Elimination` with fit, partial_fit and predict.

    `kind` is "conjunction" or "disjunction". After fitting, `literals_` [n] holds +1 for a kept x_i, -1 for a
    kept not x_i, 0 for neither, and 2 where both are still kept.
    """

    @_unchecked
    def __init__(self, kind: str = "conjunction", binarize: float | None = 0.0) -> None:
        self.kind = kind
        self.binarize = binarize

    @property
    def literals_(self) -> np.ndarray:
        """The hypothesis; f(x) = -g(-x) has the weights of g, so disjunctions need no other sign."""
        check_is_fitted(self, "state_")
        plus, minus = self.state_.numpy()
        return np.where(plus & minus, 2, plus.astype(int) - minus.astype(int))

    def _reference(self) -> Elimination:
        return Elimination(self.kind)

    def _initial(self, n: int) -> Tensor:
        Elimination(self.kind)  # Refuses an unknown kind.
        return torch.ones(2, n, dtype=torch.bool)

    def _updated(self, state: Tensor, x: Tensor, y: Tensor) -> Tensor:
        sign = 1.0 if self.kind == "conjunction" else -1.0
        return state & kept_literals(sign * x[None], sign * y[None])[0, -1]

    def _answers(self, state: Tensor, x: Tensor) -> Tensor:
        sign = 1.0 if self.kind == "conjunction" else -1.0
        return sign * (2.0 * holds(sign * x, state.expand(len(x), -1, -1)) - 1)


class GF2Classifier(_BooleanClassifier):
    """`GF2Elimination` with fit, partial_fit and predict; the parity class +1 is `classes_[1]`.

    An input outside the span of the examples gets `classes_[0]`; `decision_function` gives 0 there.
    """

    @_unchecked
    def __init__(self, binarize: float | None = 0.0) -> None:
        self.binarize = binarize

    def decision_function(self, X: Any) -> np.ndarray:
        """-1, 0 or +1 per row."""
        return self._decision(X)

    def _reference(self) -> GF2Elimination:
        return GF2Elimination()

    def _initial(self, n: int) -> Tensor:
        return torch.zeros(n, n + 1)

    def _updated(self, state: Tensor, x: Tensor, y: Tensor) -> Tensor:
        basis = state[None]
        for bits, label in zip((x > 0).float(), (y > 0).float(), strict=True):
            rest, implied = gf2_reduce(basis, bits[None])
            basis = gf2_insert(basis, rest, (implied + label) % 2)
        return basis[0]

    def _answers(self, state: Tensor, x: Tensor) -> Tensor:
        rest, implied = gf2_reduce(state.expand(len(x), -1, -1), (x > 0).float())
        return torch.where(rest.amax(1) == 0, 2 * implied - 1, 0.0)


class TernaryBayesClassifier(_BooleanClassifier):
    """`TernaryBayes` with fit, partial_fit, predict and predict_proba; at most 12 features.

    The parameters are those of `TernaryBayes`. scikit-learn's rows to predict come without an order, so with
    `inputs=True` each of them informs its own answer alone.
    """

    @_unchecked
    def __init__(
        self,
        name_of_class: str = "conjunction",
        inputs: bool = False,
        noise: float = 0.05,
        prior: tuple[float, float, float] | None = None,
        k: int | None = None,
        planted: float | None = None,
        binarize: float | None = 0.0,
    ) -> None:
        self.name_of_class = name_of_class
        self.inputs = inputs
        self.noise = noise
        self.prior = prior
        self.k = k
        self.planted = planted
        self.binarize = binarize

    def predict_proba(self, X: Any) -> Float[np.ndarray, "rows classes"]:
        """Posterior probability of both classes."""
        positive = (1 + self._decision(X)) / 2
        if len(self.classes_) == 1:
            return np.ones((len(positive), 1))
        return np.stack([1 - positive, positive], axis=1)

    def _reference(self) -> TernaryBayes:
        return TernaryBayes(self.name_of_class, self.inputs, self.noise, self.prior, self.k, self.planted)

    def _functions(self, n: int) -> Any:
        return enumerated(self.name_of_class, n, self.k, self.prior)

    def _initial(self, n: int) -> Tensor:
        self._reference()  # Refuses settings that make no sense.
        return self._functions(n)[1]

    def _updated(self, state: Tensor, x: Tensor, y: Tensor) -> Tensor:
        reference, functions = self._reference(), self._functions(x.shape[1])[0]
        weight = state[None]
        for point, label in zip(x, y, strict=True):
            values = values_at(functions, point[None])
            if self.inputs:
                weight = weight * reference.input_likelihood(functions, values)
            weight = reference.updated(weight, values, label[None])
        return weight[0]

    def _answers(self, state: Tensor, x: Tensor) -> Tensor:
        reference, functions = self._reference(), self._functions(x.shape[1])[0]
        found = []
        for rows in x.split(max(1, 4_000_000 // len(state))):
            values = values_at(functions, rows)
            weight = state.expand(len(rows), -1)
            if self.inputs:
                weight = weight * reference.input_likelihood(functions, values)
            found.append((weight * values).sum(1) / weight.sum(1).clamp(min=1e-300))
        return torch.cat(found)
