"""The reference algorithms as scikit-learn regressors: fit on one data set, with pipelines and grid search.

Each wraps the class of the same idea in `reference_algorithms`, `krylov_algorithms` or
`sequential_algorithms`, on centred data where `fit_intercept` is left on. Rates named "auto" are
1 / lambda_max of the centred X^T X (of X^T X / n for averaged losses): the largest that never overshoots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from gradatim.probes.krylov_algorithms import BFGS, LBFGS, ConjugateGradient
from gradatim.probes.reference_algorithms import (
    Averaging,
    BayesLinear,
    GradientDescent,
    GradientDescentPlusPlus,
    GradientFlow,
    IterativeNewton,
    KernelFilter,
    LeastSquares,
    Ridge,
)
from gradatim.probes.sequential_algorithms import (
    KNeighbors,
    OnlineGradientDescent,
    PreconditionedGradientDescent,
    neighbour_mean,
)

Array = np.ndarray
Function = TypeVar("Function", bound=Callable[..., Any])


def _unchecked(function: Function) -> Function:
    """scikit-learn's contract: `__init__` and `set_params` take anything, and `fit` judges it."""
    function.__no_type_check__ = True  # type: ignore[attr-defined]
    return function


def _pairs(estimator: Any, X: Any, y: Any) -> tuple[Array, Array]:
    """Checked rows and labels in float64."""
    X, y = validate_data(estimator, X, y, dtype=np.float64, y_numeric=True)
    return X, np.asarray(y, dtype=np.float64)


class _LinearReference(RegressorMixin, BaseEstimator):
    """Centre, let `_algorithm(x)` name the predictor, keep its weights after all pairs."""

    fit_intercept: bool
    _poor_score = False

    def _algorithm(self, x: Array) -> Any:
        raise NotImplementedError

    def fit(self, X: Any, y: Any) -> Any:
        """Weights from all rows of X [n, d] and y [n]."""
        X, y = _pairs(self, X, y)
        x_mean = X.mean(axis=0) if self.fit_intercept else np.zeros(X.shape[1])
        y_mean = float(y.mean()) if self.fit_intercept else 0.0
        self.coef_ = self._solve(X - x_mean, y - y_mean)
        self.intercept_ = y_mean - float(self.coef_ @ x_mean)
        return self

    def _solve(self, x: Array, y: Array) -> Array:
        weights = self._algorithm(x).weights(torch.tensor(x)[None], torch.tensor(y)[None])
        found: Array = weights[0].numpy()
        return found

    def predict(self, X: Any) -> Array:
        """X @ coef_ + intercept_."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        found: Array = X @ self.coef_ + self.intercept_
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = self._poor_score
        return tags


def _largest(x: Array) -> float:
    """lambda_max of X^T X, 1 where X is zero."""
    norm = float(np.linalg.norm(x, 2)) ** 2
    return norm if norm > 0 else 1.0


def _rate(lr: float | str, x: Array, reduction: str = "sum") -> float:
    if isinstance(lr, str):
        if lr != "auto":
            raise ValueError(f'lr must be a number or "auto", got {lr!r}')
        return (len(x) if reduction == "mean" else 1) / _largest(x)
    return float(lr)


class LeastSquaresRegressor(_LinearReference):
    """Least squares of minimum norm; see LeastSquares."""

    @_unchecked
    def __init__(self, rcond: float | None = None, *, fit_intercept: bool = True) -> None:
        self.rcond, self.fit_intercept = rcond, fit_intercept

    def _algorithm(self, x: Array) -> Any:
        return LeastSquares(self.rcond)


class RidgeReferenceRegressor(_LinearReference):
    """Ridge regression through the spectrum, |X w - y|^2 + alpha |w|^2; see Ridge."""

    @_unchecked
    def __init__(self, alpha: float = 1.0, *, fit_intercept: bool = True) -> None:
        self.alpha, self.fit_intercept = alpha, fit_intercept

    def _algorithm(self, x: Array) -> Any:
        return Ridge(float(self.alpha))


class BayesLinearRegressor(_LinearReference):
    """Posterior mean for w ~ N(0, tau^2 I), noise N(0, sigma^2); see BayesLinear."""

    @_unchecked
    def __init__(self, sigma: float = 1.0, tau: float = 1.0, *, fit_intercept: bool = True) -> None:
        self.sigma, self.tau, self.fit_intercept = sigma, tau, fit_intercept

    def _algorithm(self, x: Array) -> Any:
        return BayesLinear(float(self.sigma), float(self.tau))


class AveragingRegressor(_LinearReference):
    """w = X^T y / n; see Averaging."""

    _poor_score = True  # its weights carry the scale of X twice

    @_unchecked
    def __init__(self, *, fit_intercept: bool = True) -> None:
        self.fit_intercept = fit_intercept

    def _algorithm(self, x: Array) -> Any:
        return Averaging()


class GradientFlowRegressor(_LinearReference):
    """Gradient flow up to `time`, in units of 1 / lambda_max where `relative`; see GradientFlow."""

    @_unchecked
    def __init__(self, time: float = 100.0, *, relative: bool = True, fit_intercept: bool = True) -> None:
        self.time, self.relative, self.fit_intercept = time, relative, fit_intercept

    def _algorithm(self, x: Array) -> Any:
        return GradientFlow(self.time / (_largest(x) if self.relative else 1.0))


class KernelFilterRegressor(_LinearReference):
    """A spectral filter of one's own (default 1 / (1 + lambda)); see KernelFilter."""

    @_unchecked
    def __init__(
        self, function: Callable[[Tensor], Tensor] | None = None, *, fit_intercept: bool = True
    ) -> None:
        self.function, self.fit_intercept = function, fit_intercept

    def _algorithm(self, x: Array) -> Any:
        return KernelFilter(_unit_ridge if self.function is None else self.function)


def _unit_ridge(values: Tensor) -> Tensor:
    return 1 / (1 + values)


class GradientDescentRegressor(_LinearReference):
    """`n_iter` steps of gradient descent from 0; see GradientDescent."""

    @_unchecked
    def __init__(
        self,
        n_iter: int = 100,
        lr: float | str | Sequence[float] = "auto",
        *,
        reduction: str = "sum",
        momentum: float = 0.0,
        fit_intercept: bool = True,
    ) -> None:
        self.n_iter, self.lr, self.reduction = n_iter, lr, reduction
        self.momentum, self.fit_intercept = momentum, fit_intercept

    def _algorithm(self, x: Array) -> Any:
        self.n_iter_ = self.n_iter
        lr = _rate(self.lr, x, self.reduction) if isinstance(self.lr, str | float | int) else self.lr
        return GradientDescent(self.n_iter, lr, self.reduction, self.momentum)


class GradientDescentPlusPlusRegressor(_LinearReference):
    """`n_iter` steps of GD++; "auto" takes lr = n / lambda_max and gamma = 1 / (3 lambda_max).

    See GradientDescentPlusPlus.
    """

    @_unchecked
    def __init__(
        self,
        n_iter: int = 5,
        lr: float | str | Sequence[float] = "auto",
        gamma: float | str | Sequence[float] = "auto",
        *,
        fit_intercept: bool = True,
    ) -> None:
        self.n_iter, self.lr, self.gamma, self.fit_intercept = n_iter, lr, gamma, fit_intercept

    def _algorithm(self, x: Array) -> Any:
        self.n_iter_ = self.n_iter
        lr = _rate(self.lr, x, "mean") if isinstance(self.lr, str | float | int) else self.lr
        gamma = 1 / (3 * _largest(x)) if isinstance(self.gamma, str) else self.gamma
        return GradientDescentPlusPlus(lr, gamma, self.n_iter)


class NewtonSchulzRegressor(_LinearReference):
    """Least squares by Newton-Schulz inversion of X^T X; see IterativeNewton.

    `alpha`: "frobenius", "spectral", or a number in units of 1 / lambda_max^2, above 0 and below 2. With
    `tol` it stops where a step changes the weights by less than tol |w|; `n_iter_` says when.
    """

    @_unchecked
    def __init__(
        self,
        n_iter: int = 20,
        alpha: str | float = "frobenius",
        *,
        fit_intercept: bool = True,
        tol: float | None = None,
    ) -> None:
        self.n_iter, self.alpha, self.fit_intercept, self.tol = n_iter, alpha, fit_intercept, tol

    def _algorithm(self, x: Array) -> Any:
        self.n_iter_ = self.n_iter
        return IterativeNewton(self.n_iter, self._scaled(x))

    def _scaled(self, x: Array) -> str | float:
        if isinstance(self.alpha, str):
            return self.alpha
        if not 0 < self.alpha < 2:
            raise ValueError(f"alpha is in units of 1 / lambda_max^2 and must be in (0, 2), got {self.alpha}")
        return float(self.alpha) / _largest(x) ** 2

    def _solve(self, x: Array, y: Array) -> Array:
        if self.tol is None:
            return super()._solve(x, y)
        data = torch.tensor(x)[None], torch.tensor(y)[None]
        alpha = self._scaled(x)
        w = IterativeNewton(0, alpha).weights(*data)[0]
        for k in range(1, self.n_iter + 1):
            self.n_iter_, last = k, w
            w = IterativeNewton(k, alpha).weights(*data)[0]
            if float((w - last).norm()) <= self.tol * float(w.norm()):
                break
        found: Array = w.numpy()
        return found


class ConjugateGradientRegressor(_LinearReference):
    """`n_iter` steps of conjugate gradients; see ConjugateGradient."""

    @_unchecked
    def __init__(self, n_iter: int = 20, *, fit_intercept: bool = True) -> None:
        self.n_iter, self.fit_intercept = n_iter, fit_intercept

    def _algorithm(self, x: Array) -> Any:
        self.n_iter_ = self.n_iter
        return ConjugateGradient(self.n_iter)


class BFGSRegressor(_LinearReference):
    """`n_iter` steps of BFGS; see BFGS."""

    @_unchecked
    def __init__(self, n_iter: int = 20, line_search: str = "exact", *, fit_intercept: bool = True) -> None:
        self.n_iter, self.line_search, self.fit_intercept = n_iter, line_search, fit_intercept

    def _algorithm(self, x: Array) -> Any:
        self.n_iter_ = self.n_iter
        return BFGS(self.n_iter, self.line_search)


class LBFGSRegressor(_LinearReference):
    """`n_iter` steps of L-BFGS; see LBFGS."""

    @_unchecked
    def __init__(
        self,
        n_iter: int = 20,
        history_size: int = 5,
        line_search: str = "exact",
        *,
        fit_intercept: bool = True,
    ) -> None:
        self.n_iter, self.history_size = n_iter, history_size
        self.line_search, self.fit_intercept = line_search, fit_intercept

    def _algorithm(self, x: Array) -> Any:
        self.n_iter_ = self.n_iter
        return LBFGS(self.n_iter, self.history_size, self.line_search)


class OnlineGradientDescentRegressor(_LinearReference):
    """One pass over the rows in order; see OnlineGradientDescent."""

    _poor_score = True  # a single pass over a few rows

    @_unchecked
    def __init__(
        self, lr: float | str = "nlms", *, factor: float = 1.0, decay: float = 0.0, fit_intercept: bool = True
    ) -> None:
        self.lr, self.factor, self.decay, self.fit_intercept = lr, factor, decay, fit_intercept

    def _algorithm(self, x: Array) -> Any:
        return OnlineGradientDescent(self.lr, self.factor, self.decay)


class PreconditionedGradientDescentRegressor(_LinearReference):
    """w = P X^T y / n, and further steps; the identity over lambda_max where no matrix is given.

    See PreconditionedGradientDescent.
    """

    @_unchecked
    def __init__(
        self, matrix: Any = None, n_iter: int = 1, *, reduction: str = "mean", fit_intercept: bool = True
    ) -> None:
        self.matrix, self.n_iter, self.reduction = matrix, n_iter, reduction
        self.fit_intercept = fit_intercept

    def _algorithm(self, x: Array) -> Any:
        self.n_iter_ = self.n_iter
        matrix = self.matrix
        if matrix is None:
            matrix = _rate("auto", x, self.reduction) * np.eye(x.shape[1])
        return PreconditionedGradientDescent(matrix, self.n_iter, self.reduction)

    _poor_score = True  # a single step


class KernelGradientDescentRegressor(_LinearReference):
    """Gradient descent on features [1, n, d] -> [1, n, m] (torch); the inputs themselves by default.

    See KernelGradientDescent. `coef_` belongs to the features.
    """

    @_unchecked
    def __init__(
        self,
        feature_map: Callable[[Tensor], Tensor] | None = None,
        lr: float | str = "auto",
        n_iter: int = 100,
        *,
        reduction: str = "mean",
        fit_intercept: bool = True,
    ) -> None:
        self.feature_map, self.lr, self.n_iter = feature_map, lr, n_iter
        self.reduction, self.fit_intercept = reduction, fit_intercept

    def _features(self, x: Array) -> Array:
        found = torch.tensor(x)[None] if self.feature_map is None else self.feature_map(torch.tensor(x)[None])
        return np.asarray(found[0].detach().numpy(), dtype=np.float64)

    def fit(self, X: Any, y: Any) -> Any:
        """Weights of the features from all rows of X [n, d] and y [n]."""
        X, y = _pairs(self, X, y)
        features = self._features(X)
        mean = features.mean(axis=0) if self.fit_intercept else np.zeros(features.shape[1])
        y_mean = float(y.mean()) if self.fit_intercept else 0.0
        self.n_iter_ = self.n_iter
        self.coef_ = self._solve(features - mean, y - y_mean)
        self.intercept_ = y_mean - float(self.coef_ @ mean)
        return self

    def _algorithm(self, x: Array) -> Any:
        return GradientDescent(self.n_iter, _rate(self.lr, x, self.reduction), self.reduction)

    def predict(self, X: Any) -> Array:
        """feature_map(X) @ coef_ + intercept_."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        found: Array = self._features(X) @ self.coef_ + self.intercept_
        return found


class KNeighborsReferenceRegressor(RegressorMixin, BaseEstimator):
    """Mean label of the k nearest rows, equally or by |x - x_j|^-2; see KNeighbors.

    scikit-learn's own KNeighborsRegressor weights by 1 / distance, not by its square.
    """

    @_unchecked
    def __init__(self, k: int = 3, weights: str = "uniform") -> None:
        self.k, self.weights = k, weights

    def fit(self, X: Any, y: Any) -> Any:
        """Keeps X [n, d] and y [n]."""
        self.X_, self.y_ = _pairs(self, X, y)
        KNeighbors(self.k, self.weights)  # refuses bad settings here
        return self

    def predict(self, X: Any) -> Array:
        """The weighted mean of each row's neighbours."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        x, rows, y = torch.tensor(X), torch.tensor(self.X_), torch.tensor(self.y_)
        square = torch.cdist(x, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
        found: Array = neighbour_mean(square, y.expand_as(square), self.k, self.weights).numpy()
        return found
