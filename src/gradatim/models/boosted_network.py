"""A neural network whose hidden units are trained in stages by gradient boosting.

Source: "Sequential Training of Neural Networks with Gradient Boosting", Emami and Martinez-Munoz, 2019,
arXiv 1909.12098; several outputs per block: their GBNN-MO, ESANN 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import ClassifierMixin, RegressorMixin, _fit_context
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data

from gradatim.models.boosted_base import BoostedMLPBase
from gradatim.models.boosted_objectives import CrossEntropy, LogExponential, SquaredError


class BoostedMLPClassifier(ClassifierMixin, BoostedMLPBase):
    """One-hidden-layer classifier trained block by block by gradient boosting.

    F(x) = F0 + sum_t rho_t h_t(x), each h_t a network of `units_per_step` hidden units fitted by least
    squares to the residual -dL/dF. Two classes: L = ln(1 + exp(-2yF)), P = 1/(1 + exp(-2F)). More:
    softmax cross-entropy, one block with an output per class. The sum is itself one ordinary network
    (`coefs_`, `intercepts_`), and its last blocks can be switched off (`truncate`, `staged_predict`).

    Scale the features first, as for any neural network.

    Parameters
    ----------
    n_units : hidden units in all, a multiple of `units_per_step`.
    units_per_step : units per block, J.
    learning_rate : shrinkage of every step, eta.
    subsample : share of the rows each block is fitted on, drawn without replacement.
    activation : "logistic", "tanh", "relu" or "identity".
    alpha : L2 penalty of a block's weights (not biases), divided by its rows (or their total weight).
    max_iter, tol : of the search of one block; `tol` bounds the largest component of the gradient.
    init : "prior" starts at the constant of least loss. "zero" starts three and more classes at 0, as
        the authors' code does; two classes and regression start at the constant there, too.
    solver : "varpro" eliminates the output weights in closed form; "lbfgs" searches over all weights, as
        the authors' code does. Same objective; the first needs fewer iterations.
    line_search : scale of a block: "newton" (one step), "exact" (least loss along it) or "none" (1).
    max_step : halve a step until its largest change on out-of-bag rows is at most this many times the
        largest residual. None: no limit.
    n_iter_no_change : stop after so many stages without a new best held-out loss and keep the best
        network. None: never.
    validation_fraction : share of rows held out for that; None uses the out-of-bag rows of every stage,
        by the running sum of their improvements (somewhat optimistic: earlier stages have seen them).
    objective : another loss, see `BoostingObjective`; the link to probabilities stays.
    stage_weights : `f(t, F, y) -> weights [n]`, multiplies `sample_weight` at stage t in the block's fit and
        its step; `F`, `y` are [n, k] as the objective sees them.
    warm_start : go on from the fitted stages when `fit` is called with a larger `n_units`.
    random_state : int, RandomState, Generator or None. Every stage has its own generator.
    verbose : 1 prints every tenth stage, 2 every stage.

    Attributes
    ----------
    coefs_ : [W1 (d, units), W2 (units, k)] and intercepts_ : [c1 (units,), c2 (k,)], the one network;
        k = 1 for two classes, whose score is the log-odds 2F.
    stage_intercepts_ : (T + 1, k), output bias of the first m blocks in row m.
    step_sizes_ : (T,), rho_t.
    train_score_, oob_score_, validation_score_ : (T,), mean loss after each stage on all rows, on the rows
        that stage did not see (if subsample < 1), on held-out rows (if held out). Lower is better.
    oob_improvement_ : (T,), by how much the stage lowered the loss of the rows it did not see.
    classes_, n_features_in_, feature_names_in_, n_iter_ (stages kept).

    The last bits of a fit can depend on the BLAS library and its number of threads.
    """

    classes_: np.ndarray

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BoostedMLPClassifier:
        """Fit on X [n, d] and labels y [n] of any type.

        Raises ValueError on NaN or infinity, fewer than two rows or classes, or settings that do not fit
        together; TypeError on non-numeric X.
        """
        goes_on = self.warm_start and hasattr(self, "_raw")
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2, reset=not goes_on)
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        X, y, weight = _weighted_rows(X, y, sample_weight)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"the rows of positive weight have only one class, {classes[0]!r}; a classifier needs two"
            )
        if goes_on and not np.array_equal(classes, self.classes_):
            raise ValueError(f"warm_start: classes were {self.classes_}, now {classes}; fit a new estimator")
        self.classes_ = classes
        if len(classes) == 2:
            Y, objective = (2.0 * codes - 1.0)[:, None], self.objective or LogExponential()
        else:
            Y, objective = np.eye(len(classes))[codes], self.objective or CrossEntropy()
        fewest = int(np.bincount(codes).min())
        self._boost(X, Y, weight, objective, goes_on, codes if fewest >= 2 else None)
        # P = sigmoid(2F): the log-odds are twice the score.
        scale = 2.0 if len(classes) == 2 else 1.0
        self._keep(replace(self._raw, W2=scale * self._raw.W2, stage_bias=scale * self._raw.stage_bias))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Log-odds of `classes_[1]` [n] for two classes, else scores before the softmax [n, k]."""
        X = self._checked(X)
        return _flat(self._network().scores(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities [n, number of classes]."""
        return _probabilities(self.decision_function(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of every row."""
        return self._labels(self.decision_function(X))

    def staged_decision_function(self, X: Any) -> Iterator[np.ndarray]:
        """`decision_function` after 1, 2 ... T stages."""
        X = self._checked(X)
        yield from map(_flat, self._network().staged_scores(X))

    def staged_predict_proba(self, X: Any) -> Iterator[np.ndarray]:
        """`predict_proba` after 1, 2 ... T stages."""
        yield from map(_probabilities, self.staged_decision_function(X))

    def staged_predict(self, X: Any) -> Iterator[np.ndarray]:
        """`predict` after 1, 2 ... T stages."""
        yield from map(self._labels, self.staged_decision_function(X))

    def to_mlp(self) -> Any:
        """A fitted scikit-learn MLPClassifier with these weights and the same probabilities."""
        from sklearn.neural_network import MLPClassifier

        from gradatim.models.boosted_export import as_mlp

        check_is_fitted(self)
        network = self._network()
        mlp = MLPClassifier(
            hidden_layer_sizes=(network.W1.shape[1],),
            activation=network.activation,
            alpha=self.alpha,
            random_state=0,
        )
        mlp = as_mlp(mlp, network, self.classes_, self.classes_)
        return _with_names(mlp, self)

    def _labels(self, scores: np.ndarray) -> np.ndarray:
        codes = (scores > 0.0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[codes])


class BoostedMLPRegressor(RegressorMixin, BoostedMLPBase):
    """One-hidden-layer regressor trained block by block by gradient boosting.

    F(x) = F0 + sum_t rho_t h_t(x), each h_t a network of `units_per_step` hidden units fitted by least
    squares to the residual y - F. With y [n, k] all k outputs share the blocks' hidden units. Targets
    are standardised inside (`alpha`, `tol`, losses and steps are in those units) and predictions, `coefs_`
    and `intercepts_` are in the targets' own.

    Parameters and attributes are those of `BoostedMLPClassifier`, without `classes_`; `objective` is the
    squared error and `line_search="newton"` takes the whole block.
    """

    _y_mean: np.ndarray
    _y_scale: np.ndarray
    _y_ndim: int

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BoostedMLPRegressor:
        """Fit on X [n, d] and targets y [n] or [n, k].

        Raises ValueError on NaN or infinity, fewer than two rows, or settings that do not fit together;
        TypeError on non-numeric X.
        """
        goes_on = self.warm_start and hasattr(self, "_raw")
        X, y = validate_data(
            self, X, y, dtype=np.float64, ensure_min_samples=2, multi_output=True, y_numeric=True,
            reset=not goes_on,
        )  # fmt: skip
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        X, y, weight = _weighted_rows(X, y, sample_weight)
        Y = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        if goes_on and (Y.shape[1], y.ndim) != (len(self._y_mean), self._y_ndim):
            raise ValueError(f"warm_start: y had {len(self._y_mean)} outputs, now {Y.shape[1]}")
        if not goes_on:
            self._y_ndim = y.ndim
            self._y_mean = weight @ Y / weight.sum()
            spread = np.sqrt(weight @ np.square(Y - self._y_mean) / weight.sum())
            # A constant output has rounding noise for a spread, if any.
            tiny = 10.0 * np.finfo(np.float64).eps * np.abs(Y).max(axis=0)
            self._y_scale = np.where(spread > tiny, spread, 1.0)
        Y = (Y - self._y_mean) / self._y_scale
        self._boost(X, Y, weight, self.objective or SquaredError(), goes_on, None)
        raw = self._raw
        bias = raw.stage_bias * self._y_scale + self._y_mean
        self._keep(replace(raw, W2=raw.W2 * self._y_scale, stage_bias=bias))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictions [n], or [n, k] where y was [n, k]."""
        X = self._checked(X)
        return self._shaped(self._network().scores(X))

    def staged_predict(self, X: Any) -> Iterator[np.ndarray]:
        """`predict` after 1, 2 ... T stages."""
        X = self._checked(X)
        yield from map(self._shaped, self._network().staged_scores(X))

    def to_mlp(self) -> Any:
        """A fitted scikit-learn MLPRegressor with these weights and the same predictions."""
        from sklearn.neural_network import MLPRegressor

        from gradatim.models.boosted_export import as_mlp

        check_is_fitted(self)
        network = self._network()
        mlp = MLPRegressor(
            hidden_layer_sizes=(network.W1.shape[1],),
            activation=network.activation,
            alpha=self.alpha,
            random_state=0,
        )
        k = network.W2.shape[1]
        mlp = as_mlp(mlp, network, np.zeros(1) if k == 1 else np.zeros((1, k)), None)
        return _with_names(mlp, self)

    def _shaped(self, scores: np.ndarray) -> np.ndarray:
        return scores.ravel() if self._y_ndim == 1 else scores

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _weighted_rows(
    X: np.ndarray, y: np.ndarray, sample_weight: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of positive weight with their weights: a weight of 0 means the row is not there."""
    weight = np.asarray(
        _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True), dtype=np.float64
    )
    present = weight > 0.0
    if not present.any():
        raise ValueError("sample_weight is 0 for every row; give at least two rows a positive weight")
    if present.all():
        return X, y, weight
    return X[present], y[present], weight[present]


def _flat(scores: np.ndarray) -> np.ndarray:
    return scores.ravel() if scores.shape[1] == 1 else scores


def _probabilities(scores: np.ndarray) -> np.ndarray:
    if scores.ndim == 2:
        return np.asarray(softmax(scores, axis=1))
    return np.column_stack([expit(-scores), expit(scores)])


def _with_names(mlp: Any, fitted: Any) -> Any:
    if hasattr(fitted, "feature_names_in_"):
        mlp.feature_names_in_ = fitted.feature_names_in_
    return mlp
