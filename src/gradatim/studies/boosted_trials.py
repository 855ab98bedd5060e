"""Trials of study 09 on tables: split, choose settings away from the test rows, fit, switch units off."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.preprocessing import StandardScaler

from gradatim.bench import Arm, Curve, Outcome, Scale, tuning_seeds
from gradatim.models import BoostedMLPClassifier, BoostedMLPRegressor
from gradatim.tasks.tabular import TABULAR_TASKS

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)
DROP_RULES = ("random", "rescaled", "weight")
MLP_ITERATIONS = 2000
RATES = {"adam": {3: 0.01, 10: 0.01, 200: 0.003}, "sgd": {3: 0.1, 10: 0.1, 200: 0.02}}

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Settings = Mapping[str, Any]


def tabular_batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> Iterator[Outcome]:
    """One outcome per split; what is tuned on fresh draws is tuned once per call."""
    for seed in seeds:
        yield _trial(arm, seed, scale)


def split_of(task: str, seed: int, scale: Scale) -> Split:
    """Train and test rows, features scaled by the training rows.

    A generator gives fresh rows for every seed; a bundled set is split at random in the ratio 3 : 1, or,
    with `outer_folds`, by repeated k-fold cross-validation (seed = repeat * folds + fold).
    """
    spec = TABULAR_TASKS[task]
    if spec.draw is not None:
        X, y = spec.draw(scale["n_train"] + scale["n_test"], seed)
        learn = np.arange(len(X)) < scale["n_train"]
        rows = np.flatnonzero(learn), np.flatnonzero(~learn)
    else:
        assert spec.load is not None
        X, y = spec.load()
        strata = y if spec.kind == "classification" else None
        if folds := scale.get("outer_folds"):
            kind = StratifiedKFold if spec.kind == "classification" else KFold
            rows = list(kind(folds, shuffle=True, random_state=seed // folds).split(X, y))[seed % folds]
        else:
            rows = train_test_split(np.arange(len(X)), test_size=0.25, random_state=seed, stratify=strata)
    return _scaled(X[rows[0]], y[rows[0]], X[rows[1]], y[rows[1]])


def make_model(kind: str, regression: bool, settings: Settings, seed: int) -> Any:
    """The unfitted model of an arm; a multi-layer perceptron is told to run to convergence."""
    if kind == "gbnn":
        J = settings["units_per_step"]
        boosted = BoostedMLPRegressor if regression else BoostedMLPClassifier
        given = {k: v for k, v in settings.items() if k != "n_units"}
        return boosted(n_units=settings["n_units"] // J * J, random_state=seed, **given)
    if kind.startswith("mlp-"):
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        mlp = MLPRegressor if regression else MLPClassifier
        width = settings["width"]
        rates = RATES.get(kind.removeprefix("mlp-"))
        rate = rates[min(rates, key=lambda w: abs(w - width))] if rates else 0.001
        return mlp(
            hidden_layer_sizes=(width,), activation="logistic", solver=kind.removeprefix("mlp-"),
            alpha=1e-2, learning_rate_init=rate, max_iter=MLP_ITERATIONS, random_state=seed,
        )  # fmt: skip
    if kind == "hist-gb":
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        trees = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
        return trees(random_state=seed, **settings)
    if kind == "linear":
        from sklearn.linear_model import LogisticRegression, Ridge

        return Ridge(alpha=1.0) if regression else LogisticRegression(max_iter=1000)
    raise ValueError(f"no model of kind {kind!r}")


def choose(arm: Arm, seed: int, scale: Scale, rows: tuple[np.ndarray, np.ndarray]) -> Settings:
    """Settings by held-out score among the profile's candidates, never on test rows.

    Generators: on whole draws of the tuning seeds. Bundled sets: by cross-validation inside the
    training rows (one hold-out split where `inner_folds` is 1), since every split shares the same rows.
    """
    kind, task = arm.settings["kind"], arm.settings["task"]
    candidates = candidates_of(kind, scale)
    if len(candidates) == 1:
        return candidates[0]
    if TABULAR_TASKS[task].draw is not None:
        return candidates[_chosen_on_draws(kind, task, tuple(sorted(scale.items())))]
    X, y = rows
    regression = TABULAR_TASKS[task].kind == "regression"
    if scale["inner_folds"] == 1:
        strata = None if regression else y
        folds = [train_test_split(np.arange(len(X)), test_size=0.25, random_state=seed, stratify=strata)]
    else:
        splitter = KFold if regression else StratifiedKFold
        folds = list(splitter(scale["inner_folds"], shuffle=True, random_state=seed).split(X, y))
    splits = [_scaled(X[a], y[a], X[b], y[b]) for a, b in folds]
    return candidates[_best(kind, regression, candidates, splits, seed)]


def candidates_of(kind: str, scale: Scale) -> list[Settings]:
    """The grid of an arm in this profile (`grid` is "quick", "standard" or "paper")."""
    grid, units = scale["grid"], scale["n_units"]
    if kind == "gbnn":
        etas = {"quick": (0.1,), "standard": (0.05, 0.1, 0.5), "paper": (0.025, 0.05, 0.1, 0.5, 1.0)}[grid]
        steps = {"quick": (1, 3), "standard": (1, 2, 3), "paper": (1, 2, 3, 4)}[grid]
        shares = {"quick": (0.5,), "standard": (0.5,), "paper": (0.25, 0.5, 0.75, 1.0)}[grid]
        return [
            {"n_units": units, "learning_rate": eta, "units_per_step": J, "subsample": share}
            for J in steps
            for eta in etas
            for share in shares
        ]
    if kind.startswith("mlp-"):
        paper = (1, 3, 5, 7, 11, 12, 17, 22, 27, 32, 37, 42, 47, 52, 60, 70, 80, 90, 100, 150, 200)
        widths = {"quick": (10, 200), "standard": (3, 10, 200), "paper": paper}[grid]
        return [{"width": min(w, units)} for w in widths]
    if kind == "hist-gb" and grid != "quick":
        return [{"learning_rate": r, "max_leaf_nodes": leaves} for r in (0.05, 0.1) for leaves in (7, 31)]
    return [{}]


@lru_cache(maxsize=256)
def _chosen_on_draws(kind: str, task: str, scale_items: tuple[tuple[str, Any], ...]) -> int:
    scale = dict(scale_items)
    splits = [split_of(task, seed, scale) for seed in tuning_seeds(scale["n_tune"])]
    regression = TABULAR_TASKS[task].kind == "regression"
    return _best(kind, regression, candidates_of(kind, scale), splits, tuning_seeds(1)[0])


def _best(
    kind: str, regression: bool, candidates: Sequence[Settings], splits: Sequence[Split], seed: int
) -> int:
    means = []
    for settings in candidates:
        scores = []
        for X, y, X_held, y_held in splits:
            try:
                model = _fitted(make_model(kind, regression, settings, seed), X, y, regression)
                scores.append(_score(_predict(model, X_held), y_held, regression))
            # Stochastic descent may diverge, which scikit-learn reports so: a setting not to choose.
            except ValueError:
                scores.append(-np.inf)
        means.append(np.mean(scores))
    return int(np.argmax(means))


def _trial(arm: Arm, seed: int, scale: Scale) -> Outcome:
    kind, task = arm.settings["kind"], arm.settings["task"]
    regression = TABULAR_TASKS[task].kind == "regression"
    X, y, X_test, y_test = split_of(task, seed, scale)
    if kind == "dense":
        return _dense_outcome(arm.settings["solver"], (X, y, X_test, y_test), seed, scale)
    settings = dict(choose(arm, seed, scale, (X, y)))
    settings |= arm.settings.get("override", {})
    model = _fitted(make_model(kind, regression, settings, seed), X, y, regression)
    metrics = _quality(model, X_test, y_test, regression)
    curves: dict[str, Curve] = {}
    if kind == "gbnn":
        metrics |= {f"chosen_{k}": float(settings[k]) for k in ("learning_rate", "units_per_step")}
        metrics |= _switched_off(model.boosted, X_test, model.unscale, y_test, regression)
        metrics |= _assembly_gaps(model.boosted, X_test)
        curves["units"] = _unit_curve(model, X_test, y_test, regression)
    elif kind.startswith("mlp-"):
        metrics["chosen_width"] = float(settings["width"])
        metrics["hit_iteration_limit"] = float(model.boosted.n_iter_ >= MLP_ITERATIONS)
    return Outcome(metrics, curves)


class _Scaled:
    """A fitted model and the scale of its targets; perceptrons need standardised ones."""

    def __init__(self, model: Any, mean: float, sd: float) -> None:
        self.boosted, self.mean, self.sd = model, mean, sd

    def unscale(self, prediction: np.ndarray) -> np.ndarray:
        return prediction if self.sd == 0.0 else prediction * self.sd + self.mean


def _fitted(model: Any, X: np.ndarray, y: np.ndarray, regression: bool) -> _Scaled:
    from sklearn.exceptions import ConvergenceWarning

    mean, sd = (float(y.mean()), float(y.std())) if regression else (0.0, 0.0)
    with warnings.catch_warnings():
        # A search that ends at its iteration limit is counted in the metric `hit_iteration_limit`.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Diverging descent overflows before scikit-learn refuses it.
        warnings.simplefilter("ignore", RuntimeWarning)
        model.fit(X, (y - mean) / sd if regression else y)
    return _Scaled(model, mean, sd)


def _predict(model: _Scaled, X: np.ndarray) -> np.ndarray:
    return model.unscale(np.asarray(model.boosted.predict(X)))


def _score(prediction: np.ndarray, y: np.ndarray, regression: bool) -> float:
    """Accuracy, or minus the root mean squared error."""
    if regression:
        return -float(np.sqrt(np.mean((prediction - y) ** 2)))
    return float(np.mean(prediction == y))


def _quality(model: _Scaled, X: np.ndarray, y: np.ndarray, regression: bool) -> dict[str, float]:
    score = _score(_predict(model, X), y, regression)
    if regression:
        return {"rmse": -score}
    from sklearn.metrics import log_loss

    labels = model.boosted.classes_
    return {"accuracy": score, "log_loss": float(log_loss(y, model.boosted.predict_proba(X), labels=labels))}


def _switched_off(
    model: Any, X: np.ndarray, unscale: Any, y: np.ndarray, regression: bool
) -> dict[str, float]:
    """The score with the first share of the units, in training order; minus RMSE for regression."""
    found = {}
    for fraction in FRACTIONS:
        stages = max(1, round(fraction * model.n_iter_))
        part = model.truncate(stages * model.units_per_step)
        found[_kept(fraction)] = _score(unscale(np.asarray(part.predict(X))), y, regression)
    return found


def _unit_curve(model: _Scaled, X: np.ndarray, y: np.ndarray, regression: bool) -> Curve:
    J = model.boosted.units_per_step
    scores = [_score(model.unscale(np.asarray(p)), y, regression) for p in model.boosted.staged_predict(X)]
    # Every fourth stage is enough to draw.
    shown = sorted({*range(0, len(scores), 4), len(scores) - 1})
    name = "RMSE" if regression else "accuracy"
    sign = -1.0 if regression else 1.0
    return Curve([(t + 1) * J for t in shown], [sign * scores[t] for t in shown], "active units", name)


def _assembly_gaps(model: Any, X: np.ndarray) -> dict[str, float]:
    """Largest difference of outputs: one assembled MLP against the sum of the blocks, and against an
    assembly of the first half of the units that keeps the whole bias."""
    mlp = model.to_mlp()
    outputs = "predict_proba" if hasattr(model, "predict_proba") else "predict"
    staged = list(getattr(model, f"staged_{outputs}")(X))
    gap = float(np.abs(getattr(mlp, outputs)(X) - staged[-1]).max())
    half = max(1, model.n_iter_ // 2)
    wrong = model.truncate(half * model.units_per_step).to_mlp()
    wrong.intercepts_[1] = model.intercepts_[1]
    return {
        "assembly_gap": gap,
        "whole_bias_gap": float(np.abs(getattr(wrong, outputs)(X) - staged[half - 1]).max()),
    }


def _dense_outcome(solver: str, split: Split, seed: int, scale: Scale) -> Outcome:
    """A dense net of the same units, its units switched off by three rules."""
    X, y, X_test, y_test = split
    model = _fitted(make_model(f"mlp-{solver}", False, {"width": scale["n_units"]}, seed), X, y, False)
    net = model.boosted
    W1, W2 = net.coefs_
    metrics = _quality(model, X_test, y_test, False)
    random = np.random.default_rng([seed, 9]).permutation(len(W2))
    orders = {
        "random": random,
        "rescaled": random,
        "weight": np.argsort(-np.linalg.norm(W2, axis=1), kind="stable"),
    }
    curves = {}
    for rule in DROP_RULES:
        scores = []
        for fraction in FRACTIONS:
            kept = orders[rule][: max(1, round(fraction * len(W2)))]
            # Rescaled: what is kept stands in for what was dropped, as in dropout.
            gain = len(W2) / len(kept) if rule == "rescaled" else 1.0
            net.coefs_ = [W1[:, kept], gain * W2[kept]]
            bias = net.intercepts_[0]
            net.intercepts_[0] = bias[kept]
            scores.append(_score(net.predict(X_test), y_test, False))
            net.intercepts_[0] = bias
            metrics[f"{_kept(fraction)}_{rule}"] = scores[-1]
        units = [max(1, round(f * len(W2))) for f in FRACTIONS]
        curves[rule] = Curve(units, scores, "active units", "accuracy")
    return Outcome(metrics, curves)


def _kept(fraction: float) -> str:
    return f"score_{round(100 * fraction)}pct_units"


def _scaled(X: np.ndarray, y: np.ndarray, X_held: np.ndarray, y_held: np.ndarray) -> Split:
    scaler = StandardScaler().fit(X)
    return scaler.transform(X), y, scaler.transform(X_held), y_held
