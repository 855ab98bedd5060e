"""What the two boosted estimators share: their parameters and the fit around the boosting loop."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from gradatim.models.boosted_block import Activation, BlockSolver
from gradatim.models.boosted_objectives import BoostingObjective, LineSearch
from gradatim.models.boosted_stages import (
    BoostSettings,
    Rows,
    Stage,
    StagedNetwork,
    StageWeights,
    assemble,
    boost,
)

if TYPE_CHECKING:
    from torch import nn

OBJECTIVE_METHODS = ["loss", "gradient", "hessian_diag", "initial"]


Fitted = TypeVar("Fitted", bound="BoostedMLPBase")
Function = TypeVar("Function", bound=Callable[..., None])


def _unchecked(function: Function) -> Function:
    """scikit-learn's contract: `__init__` and `set_params` take anything, and `fit` judges it."""
    function.__no_type_check__ = True  # type: ignore[attr-defined]
    return function


class BoostedMLPBase(BaseEstimator):
    """What both estimators share; scikit-learn reads parameters off one `__init__`."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_units": [Interval(Integral, 1, None, closed="left")],
        "units_per_step": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "subsample": [Interval(Real, 0, 1, closed="right")],
        "activation": [StrOptions({"logistic", "tanh", "relu", "identity"})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "init": [StrOptions({"prior", "zero"})],
        "solver": [StrOptions({"varpro", "lbfgs"})],
        "line_search": [StrOptions({"newton", "exact", "none"})],
        "max_step": [Interval(Real, 0, None, closed="neither"), None],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "objective": [HasMethods(OBJECTIVE_METHODS), None],
        "stage_weights": [callable, None],
        "warm_start": ["boolean"],
        "random_state": ["random_state", np.random.Generator],
        "verbose": ["verbose"],
    }

    # Kept by `fit`: the network in the objective's own units, the base seed, the activation used.
    _raw: StagedNetwork
    _seed: int
    _fitted_activation: Activation

    @_unchecked
    def __init__(
        self,
        n_units: int = 200,
        units_per_step: int = 1,
        *,
        learning_rate: float = 0.1,
        subsample: float = 0.5,
        activation: Activation = "logistic",
        alpha: float = 1e-2,
        max_iter: int = 100,
        tol: float = 1e-4,
        init: str = "prior",
        solver: BlockSolver = "varpro",
        line_search: LineSearch = "newton",
        max_step: float | None = None,
        n_iter_no_change: int | None = None,
        validation_fraction: float | None = 0.1,
        objective: BoostingObjective | None = None,
        stage_weights: StageWeights | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int | bool = 0,
    ) -> None:
        self.n_units = n_units
        self.units_per_step = units_per_step
        self.learning_rate = learning_rate
        self.subsample = subsample
        self.activation = activation
        self.alpha = alpha
        self.max_iter = max_iter
        self.tol = tol
        self.init = init
        self.solver = solver
        self.line_search = line_search
        self.max_step = max_step
        self.n_iter_no_change = n_iter_no_change
        self.validation_fraction = validation_fraction
        self.objective = objective
        self.stage_weights = stage_weights
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def reference_defaults(cls) -> dict[str, Any]:
        """The settings of the authors' code, as keyword arguments.

        `BoostedMLPRegressor(**BoostedMLPRegressor.reference_defaults())` fits as it does. They overfit
        regression badly on unseen rows (a nearly unpenalised block fits a few residuals with a huge
        output weight); ours penalise more and stop blocks earlier.
        """
        return {
            "n_units": 200,
            "units_per_step": 1,
            "learning_rate": 1.0,
            "subsample": 0.5,
            "activation": "logistic",
            "alpha": 1e-4,
            "max_iter": 200,
            "tol": 0.0,
            "init": "zero",
            "solver": "lbfgs",
        }

    def truncate(self: Fitted, n_units: int) -> Fitted:
        """A fitted copy with the first `n_units` hidden units, the rest switched off for good.

        Its matrices are smaller, so it predicts in proportionally less time. It equals the network that
        `fit` with this `n_units` gives on the same rows and seed (without early stopping).

        Raises ValueError unless `n_units` is a multiple of `units_per_step` between that and what is fitted.
        """
        check_is_fitted(self)
        fitted, step = len(self.step_sizes_) * self.units_per_step, self.units_per_step
        if n_units % step != 0 or not step <= n_units <= fitted:
            raise ValueError(
                f"n_units={n_units} cannot be kept: give a multiple of units_per_step={step} from {step} "
                f"to {fitted}"
            )
        stages = n_units // step
        kept: Fitted = clone(self)
        for name, value in vars(self).items():
            if name not in kept.__dict__:
                setattr(kept, name, value.copy() if isinstance(value, np.ndarray) else value)
        kept.n_units = n_units
        kept._keep(self._network().first(stages))
        kept._raw = self._raw.first(stages)
        for name in ("step_sizes_", "train_score_", "oob_score_", "oob_improvement_", "validation_score_"):
            if hasattr(self, name):
                setattr(kept, name, getattr(self, name)[:stages].copy())
        kept.n_iter_ = stages
        return kept

    def to_torch(self) -> nn.Sequential:
        """`nn.Sequential(Linear, activation, Linear)` in float64 that gives `decision_function` (classes)
        or the prediction (regression), as [n, k].

        Its `state_dict()` is the safe way to keep a model: it loads with `weights_only=True`.
        """
        from gradatim.models.boosted_export import as_torch

        check_is_fitted(self)
        return as_torch(self._network())

    def _network(self) -> StagedNetwork:
        return StagedNetwork(
            self.coefs_[0],
            self.intercepts_[0],
            self.coefs_[1],
            self.stage_intercepts_,
            self.units_per_step,
            self._fitted_activation,
        )

    def _keep(self, network: StagedNetwork) -> None:
        self.coefs_ = [network.W1, network.W2]
        self.intercepts_ = [network.c1, network.stage_bias[-1].copy()]
        self.stage_intercepts_ = network.stage_bias

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return np.asarray(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))

    def _settings(self, n: int, seed: int) -> BoostSettings:
        if self.n_units % self.units_per_step != 0:
            raise ValueError(
                f"n_units={self.n_units} is not a multiple of units_per_step={self.units_per_step}; every "
                "stage adds units_per_step units"
            )
        drawn = int(np.floor(self.subsample * n + 1e-9))
        if self.subsample < 1.0 and drawn < self.units_per_step + 2:
            raise ValueError(
                f"subsample={self.subsample} of n_samples = {n} draws {drawn} rows, fewer than "
                f"units_per_step + 2 = {self.units_per_step + 2}; raise subsample or give more rows"
            )
        return BoostSettings(
            self.units_per_step,
            self.learning_rate,
            self.subsample,
            self.activation,
            self.alpha,
            self.max_iter,
            self.tol,
            self.solver,
            self.line_search,
            self.max_step,
            seed,
        )

    def _boost(
        self, X: np.ndarray, Y: np.ndarray, weight: np.ndarray, objective: Any, goes_on: bool, strata: Any
    ) -> None:
        """Fit or go on fitting; `Y` is encoded, and the network kept here is in units of the objective."""
        if not goes_on:
            self._seed = _seed(self.random_state)
        learn, watch = self._split(X, Y, weight, strata)
        settings = self._settings(learn.XT.shape[1], self._seed)
        n_stages = self.n_units // self.units_per_step
        if goes_on:
            before, initial = self._raw, self._raw.stage_bias[0]
            if n_stages < before.n_stages:
                raise ValueError(
                    f"warm_start: n_units={self.n_units} is below the {before.n_stages * self.units_per_step}"
                    " units already fitted; use truncate to switch units off"
                )
        else:
            before, initial = None, self._initial(objective, learn)
        done = 0 if before is None else before.n_stages
        history = self._history() if goes_on else []
        bias = initial if before is None else before.stage_bias[-1]
        total = _running_sum(learn, before)
        F_watch = None if watch is None else _running_sum(watch, before) + bias
        watched: list[Any] = [h[3] for h in history]
        stages: list[Stage] = []
        for stage in boost(
            learn,
            total,
            bias,
            objective,
            settings,
            first_stage=done,
            last_stage=n_stages,
            stage_weights=self.stage_weights,
        ):
            stages.append(stage)
            if watch is not None and F_watch is not None:
                F_watch += stage.step * stage.block(watch.XT)
                watched.append(watch.mean_loss(objective, F_watch))
            elif self.n_iter_no_change is not None and stage.oob_improvement is not None:
                watched.append((watched[-1] if watched else 0.0) - stage.oob_improvement)
            self._say(done + len(stages), stage, watched)
            if self.n_iter_no_change is not None and _stalled(watched, self.n_iter_no_change):
                break
        raw = assemble(stages, initial, X.shape[1], self.units_per_step, self.activation, before)
        self._raw = raw
        history += [
            (s.step, s.train_loss, (s.oob_loss, s.oob_improvement), w)
            for s, w in zip(stages, watched[done:] or [None] * len(stages), strict=True)
        ]
        if self.n_iter_no_change is not None and watched:
            best = int(np.argmin(watched)) + 1
            self._raw, history = raw.first(best), history[:best]
        self._record(history, watch is not None)

    def _initial(self, objective: Any, rows: Rows) -> np.ndarray:
        k = rows.y.shape[1]
        if self.init == "zero" and k > 1 and isinstance(self, ClassifierMixin):
            return np.zeros(k)
        initial = np.asarray(objective.initial(rows.y, rows.weight), dtype=np.float64)
        if initial.shape != (k,) or not np.isfinite(initial).all():
            raise ValueError(f"objective.initial must give {k} finite numbers, got {initial!r}")
        return initial

    def _split(
        self, X: np.ndarray, Y: np.ndarray, weight: np.ndarray, strata: Any
    ) -> tuple[Rows, Rows | None]:
        """Rows to learn from, and rows held out for early stopping."""
        if self.n_iter_no_change is None:
            return Rows.of(X, Y, weight), None
        if self.validation_fraction is None:
            if self.subsample >= 1.0:
                raise ValueError(
                    "n_iter_no_change with validation_fraction=None stops on the out-of-bag loss, which "
                    f"needs subsample < 1 (now {self.subsample}); lower it or set validation_fraction"
                )
            return Rows.of(X, Y, weight), None
        from sklearn.model_selection import train_test_split

        learn, watch = train_test_split(
            np.arange(len(X)),
            test_size=self.validation_fraction,
            random_state=self._seed % (1 << 32),
            stratify=strata,
        )
        if not weight[watch].sum() > 0.0:
            raise ValueError("the validation rows all have weight 0; raise validation_fraction")
        return Rows.of(X[learn], Y[learn], weight[learn]), Rows.of(X[watch], Y[watch], weight[watch])

    def _history(self) -> list[tuple[float, float, tuple[float | None, float | None], float | None]]:
        T = len(self.step_sizes_)
        none = [None] * T
        oob = zip(getattr(self, "oob_score_", none), getattr(self, "oob_improvement_", none), strict=True)
        if hasattr(self, "validation_score_"):
            watched = list(self.validation_score_)
        elif hasattr(self, "oob_improvement_") and self.n_iter_no_change is not None:
            watched = list(-np.cumsum(self.oob_improvement_))
        else:
            watched = none
        return list(zip(self.step_sizes_, self.train_score_, oob, watched, strict=True))

    def _record(self, history: list[Any], validated: bool) -> None:
        for stale in ("oob_score_", "oob_improvement_", "validation_score_"):
            self.__dict__.pop(stale, None)
        self.step_sizes_ = np.array([h[0] for h in history])
        self.train_score_ = np.array([h[1] for h in history])
        if all(h[2][0] is not None for h in history):
            self.oob_score_ = np.array([h[2][0] for h in history])
            self.oob_improvement_ = np.array([h[2][1] for h in history])
        if validated:
            self.validation_score_ = np.array([h[3] for h in history])
        self.n_iter_ = len(history)
        self._fitted_activation = self.activation

    def _say(self, stage: int, last: Stage, watched: list[Any]) -> None:
        if self.verbose and (self.verbose > 1 or stage % 10 == 0 or stage == 1):
            seen = f"  watched {watched[-1]:.6g}" if watched and watched[-1] is not None else ""
            print(f"stage {stage}  step {last.step:.4g}  train loss {last.train_loss:.6g}{seen}")


def _seed(random_state: Any) -> int:
    """A non-negative base seed; None takes fresh entropy and leaves NumPy's global state alone."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, Integral):
        return int(random_state)
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(1 << 32))
    return int(random_state.randint(1 << 31, dtype=np.int64))


def _running_sum(rows: Rows, before: StagedNetwork | None) -> np.ndarray:
    return np.zeros(rows.y.shape) if before is None else before.running_sum(rows.XT)


def _stalled(watched: list[Any], patience: int) -> bool:
    return len(watched) - 1 - int(np.argmin(watched)) >= patience
