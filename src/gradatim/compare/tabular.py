"""Which model on my table? Nested cross-validation over a CSV or Parquet file.

The outer folds are the paired seeds: seed s is fold s mod 5 of the s // 5-th shuffled 5-fold split
(stratified for classes), the same rows for every arm. Inside the training rows a 3-fold grid search over
six settings picks each arm's own; the test fold is then predicted once. Intervals allow for overlapping
training sets (Nadeau and Bengio, "Inference for the Generalization Error", 2003).

    from gradatim.compare import tabular
    study = tabular.comparison("houses.csv", "price", ["boosted-network", "mlp"])
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gradatim.bench.study import Arm, Better, Outcome, Scale, Study
from gradatim.compare.comparison import Task, Winner, as_metrics, comparison_study
from gradatim.compare.estimator_code import estimator_code
from gradatim.compare.readers.table import Kind, TableData
from gradatim.compare.table_source import (
    OUTER_FOLDS,
    load,
    outer_fold,
    read_code,
    shuffled_folds,
    table_digest,
    table_scale,
)
from gradatim.compare.tabular_arms import ARMS, build_pipeline, grid

INNER_FOLDS = 3
METRICS: dict[str, tuple[tuple[str, Better], ...]] = {
    "classification": (("accuracy", "higher"), ("log loss", "lower"), ("balanced accuracy", "higher")),
    "regression": (("RMSE", "lower"), ("MAE", "lower"), ("R2", "higher")),
}


def trial(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """One outer fold: search inside the training rows, then predict the test rows."""
    from sklearn.exceptions import ConvergenceWarning

    table = load(scale)
    train, test = outer_fold(table, seed)
    with warnings.catch_warnings():
        # The grid holds settings that stop at their step limit; the search judges what they reached.
        warnings.simplefilter("ignore", ConvergenceWarning)
        settings = search(arm.name, table, train, seed)
        model = _pipeline(arm.name, settings, table, seed)
        model.fit(table.features.iloc[train], table.target[train])
    return Outcome({**_scores(model, table, test), **as_metrics(settings)})


def search(arm: str, table: TableData, rows: np.ndarray, seed: int) -> dict[str, float]:
    """The settings of the arm's grid with the best mean on the first metric over inner folds of `rows`."""
    points = grid(arm)
    if len(points) == 1:
        return points[0]
    features, target = table.features.iloc[rows], table.target[rows]
    folds = list(shuffled_folds(table.kind, INNER_FOLDS, seed).split(features, target))
    scores = []
    for point in points:
        values = []
        for inside, held_out in folds:
            model = _pipeline(arm, point, table, seed)
            model.fit(features.iloc[inside], target[inside])
            guess = model.predict(features.iloc[held_out])
            values.append(_goodness(target[held_out], guess, table.kind))
        scores.append(float(np.mean(values)))
    return points[int(np.argmax(scores))]


def comparison(
    data_file: str | Path,
    target: str,
    arms: Sequence[str] = (),
    *,
    seeds: int = 10,
    kind: Kind | Literal["auto"] = "auto",
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    max_rows: int = 20_000,
    sample_seed: int = 0,
) -> Study:
    """The study that compares `arms` (the first is the baseline) on a table.

    Reads and checks the whole file once. Above `max_rows` rows a seeded uniform sample is used, and the
    study says so. Raises DataError for data or arms that cannot be used.
    """
    scale = table_scale(data_file, target, kind, drop, categorical, max_rows, sample_seed)
    table = load(scale)
    metrics = METRICS[table.kind]
    rows, columns = table.features.shape
    remark = (
        f"{rows:,} rows, {columns} features, {table.kind} of `{target}`;"
        f" {OUTER_FOLDS}-fold outer cross-validation, {INNER_FOLDS}-fold inner search over six settings."
        f" {table.sampled}"
    ).strip()
    return comparison_study(
        TASK,
        arms,
        metrics=metrics,
        unit="share of rows" if table.kind == "classification" else f"units of {target}",
        scale=scale,
        seeds=seeds,
        core_seconds=seeds * 5 * (2.0 + rows / 500),
        overlap=1 / (OUTER_FOLDS - 1),
        source=Path(data_file).name,
        remark=remark,
    )


def winner_code(won: Winner, scale: Scale) -> str:
    """Code that fits the winner, with the settings chosen most often, on the user's file."""
    table = load(scale)
    columns = {"numeric": list(table.numeric), "categorical": list(table.categorical)}
    imports, model = estimator_code(_pipeline(won.arm, dict(won.settings), table, 0), columns)
    features = " + ".join(name for name, values in columns.items() if values)
    as_type = "str" if table.kind == "classification" else "float"
    fit = f"model.fit(table[{features}], table[{scale['target']!r}].astype({as_type}))"
    return "\n".join([*sorted(["import pandas as pd", *imports]), "", model, read_code(scale), fit])


def fit_winner(won: Winner, scale: Scale) -> Any:
    """The winner's pipeline with the settings chosen most often, fitted on every row."""
    from sklearn.exceptions import ConvergenceWarning

    table = load(scale)
    model = _pipeline(won.arm, dict(won.settings), table, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(table.features, table.target)


def _pipeline(arm: str, settings: dict[str, float], table: TableData, seed: int) -> Any:
    return build_pipeline(arm, settings, table.kind, table.numeric, table.categorical, seed)


def _goodness(truth: np.ndarray, guess: np.ndarray, kind: Kind) -> float:
    if kind == "classification":
        return float(np.mean(truth == guess))
    return -float(np.sqrt(np.mean((truth - guess) ** 2)))


def _scores(model: Any, table: TableData, rows: np.ndarray) -> dict[str, float]:
    from sklearn import metrics

    features, truth = table.features.iloc[rows], table.target[rows]
    guess = model.predict(features)
    if table.kind == "regression":
        return {
            "RMSE": float(metrics.root_mean_squared_error(truth, guess)),
            "MAE": float(metrics.mean_absolute_error(truth, guess)),
            "R2": float(metrics.r2_score(truth, guess)),
        }
    probabilities = model.predict_proba(features)
    return {
        "accuracy": float(metrics.accuracy_score(truth, guess)),
        "log loss": float(metrics.log_loss(truth, probabilities, labels=model.classes_)),
        "balanced accuracy": float(metrics.balanced_accuracy_score(truth, guess)),
    }


TASK = Task(
    slug="compare-tabular",
    title="Tabular models compared",
    plain_words=(
        "Each arm is a whole scikit-learn pipeline. In every outer fold it chooses its settings by"
        " cross-validation inside the training rows, is fitted on them, and predicts the test rows once."
    ),
    rooms=("models",),
    arms=ARMS,
    default=("hist-gradient-boosting", "boosted-network", "mlp", "linear"),
    plain=("linear", "dummy"),
    trial=trial,
    data=table_digest,
)
