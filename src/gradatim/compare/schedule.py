"""Which learning-rate schedule on my table? A small network, each schedule at its own best base rate.

Outer folds are the paired seeds, as in `compare tabular`. Inside the training rows of a fold a fifth is
held out; a 64-64 ReLU network is trained by AdamW (or SGD) at seven base rates at once, and the rate whose
last iterate does best on the held-out rows is used on all training rows. What counts is the last iterate
on the test fold: no checkpoint is picked.

*Refined* takes the gradient norms that the linear run recorded at its own best rate (L1 for AdamW, L2 for
SGD) and refines them into a schedule, which then has its own base rate chosen like every other.

    from gradatim.compare import schedule
    study = schedule.comparison("houses.csv", "price")
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from gradatim.bench.study import Arm, Better, Curve, Outcome, Results, Scale, Study, StudyFigure, Table
from gradatim.compare.comparison import Task, Winner, as_metrics, comparison_study
from gradatim.compare.readers.table import Kind, TableData
from gradatim.compare.saved_network import SavedNetwork, describe_columns
from gradatim.compare.stacked_training import (
    Loss,
    StackedRun,
    batch_order,
    initial_layers,
    row_losses,
    train_stacked,
)
from gradatim.compare.table_source import OUTER_FOLDS, load, outer_fold, table_digest, table_scale
from gradatim.compare.tabular_arms import preprocessing
from gradatim.optim.refinement import DegenerateScheduleWarning, refine_schedule
from gradatim.optim.shapes import shape

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MplFigure

Optimizer = Literal["adamw", "sgd"]

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("linear", {"shape": "linear"}, label="linear decay", role="baseline"),
        Arm("cosine", {"shape": "cosine"}, label="cosine", role="baseline"),
        Arm("inverse-sqrt", {"shape": "1/sqrt(t)"}, label="1/sqrt(t)", role="baseline"),
        Arm("refined", {"shape": "refined"}, label="refined schedule"),
        Arm("flat", {"shape": "flat"}, label="a constant rate", role="control"),
        Arm("constant", {"shape": ""}, label="predicting a constant", role="control"),
    )
}
ALIASES = {"1/sqrt": "inverse-sqrt", "constant-rate": "flat"}
RATES: dict[Optimizer, tuple[float, ...]] = {
    "adamw": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "sgd": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
}
HIDDEN = (64, 64)
BATCH = 64
HELD_OUT = 0.2
CURVE_POINTS = 100


@dataclass(frozen=True)
class Part:
    """Rows ready for a network."""

    inputs: torch.Tensor
    targets: torch.Tensor


def trial(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """One outer fold of one schedule: choose the base rate, train on all training rows, test once."""
    table = load(scale)
    train, test = outer_fold(table, seed)
    inner = np.random.default_rng(seed).permutation(train)
    held_out = max(1, round(HELD_OUT * len(train)))
    tuning, judging = _parts(table, inner[held_out:], inner[:held_out])
    training, testing = _parts(table, train, test)
    if not arm.settings["shape"]:
        return Outcome(_constant_scores(training, testing, table.kind))

    steps = step_count(len(training.inputs), scale)
    factors = shape("linear" if arm.settings["shape"] == "refined" else str(arm.settings["shape"]), steps)
    rate, run, column = _tune(tuning, judging, factors, table, scale, seed)
    extra: dict[str, float] = {}
    if arm.settings["shape"] == "refined":
        factors, fell_back = refined_factors(run.norms[:, column], scale["optimizer"])
        extra["fell back to linear"] = float(fell_back)
        rate, run, column = _tune(tuning, judging, factors, table, scale, seed)
    final = _train(training, [rate], factors, table, scale, seed)
    metrics = _scores(final, testing, table.kind)
    return Outcome(
        {**metrics, **extra, **as_metrics({"rate": rate})},
        {
            "factor": _thinned(factors, "rate / base rate"),
            "training loss": _thinned(_smoothed(final.losses[:, 0]), "training loss"),
        },
    )


def step_count(rows: int, scale: Scale) -> int:
    """Optimizer steps: `epochs` over the rows, at least 200 and at most 3000."""
    return int(np.clip(scale["epochs"] * rows // _batch(rows), 200, 3000))


def refined_factors(norms: np.ndarray, optimizer: Optimizer) -> tuple[np.ndarray, bool]:
    """The refined schedule of a linear run's gradient norms, and whether it fell back to linear decay."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DegenerateScheduleWarning)
        refined = refine_schedule(norms, power=1.0 if optimizer == "adamw" else 2.0)
    return np.asarray(refined.factors), any(issubclass(w.category, DegenerateScheduleWarning) for w in caught)


def comparison(
    data_file: str | Path,
    target: str,
    arms: Sequence[str] = (),
    *,
    seeds: int = 10,
    optimizer: Optimizer = "adamw",
    epochs: int = 30,
    kind: Kind | Literal["auto"] = "auto",
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    max_rows: int = 20_000,
    sample_seed: int = 0,
) -> Study:
    """The study that compares schedules (the first arm is the baseline) on a table.

    Raises DataError for data or arms that cannot be used.
    """
    scale = {
        **table_scale(data_file, target, kind, drop, categorical, max_rows, sample_seed),
        "optimizer": optimizer,
        "epochs": epochs,
    }
    table = load(scale)
    steps = step_count(round(len(table.target) * (1 - 1 / OUTER_FOLDS)), scale)
    metrics: tuple[tuple[str, Better], ...] = (
        (("test log loss", "lower"), ("accuracy", "higher"))
        if table.kind == "classification"
        else (("test RMSE", "lower"), ("R2", "higher"))
    )
    remark = (
        f"{len(table.target):,} rows, {table.features.shape[1]} features, {table.kind} of `{target}`;"
        f" {optimizer.upper() if optimizer == 'sgd' else 'AdamW'}, {steps} steps, {OUTER_FOLDS} outer folds."
        f" {table.sampled}"
    ).strip()
    return comparison_study(
        TASK,
        [ALIASES.get(arm, arm) for arm in arms],
        metrics=metrics,
        unit="nats" if table.kind == "classification" else f"deviations of {target}",
        scale=scale,
        seeds=seeds,
        core_seconds=seeds * 7 * steps * 0.004,
        overlap=1 / (OUTER_FOLDS - 1),
        source=Path(data_file).name,
        remark=remark,
        figures=(SCHEDULES,),
    )


def fit_winner(won: Winner, scale: Scale) -> SavedNetwork | None:
    """The network trained on every row with the winning schedule; None where the constant won.

    The refined schedule comes from the norms of a linear run at the same base rate on the same rows.
    """
    shape_name = str(ARMS[won.arm].settings["shape"])
    if not shape_name:
        return None
    table = load(scale)
    columns = preprocessing(table.numeric, table.categorical)
    rows = np.arange(len(table.target))
    part, _ = _parts(table, rows, rows[:1], columns)
    steps = step_count(len(rows), scale)
    rate = won.settings["rate"]
    factors = shape("linear" if shape_name == "refined" else shape_name, steps)
    run = _train(part, [rate], factors, table, scale, 0)
    if shape_name == "refined":
        factors, _ = refined_factors(run.norms[:, 0], scale["optimizer"])
        run = _train(part, [rate], factors, table, scale, 0)
    layers = [(w[0].numpy().astype(np.float64), b[0, 0].numpy().astype(np.float64)) for w, b in run.layers]
    if table.kind == "classification":
        classes = tuple(str(c) for c in np.unique(table.target))
        return SavedNetwork(describe_columns(columns), layers, "relu", "softmax", classes)
    mean, deviation = float(table.target.mean()), float(table.target.std())
    return SavedNetwork(describe_columns(columns), layers, "relu", "identity", (), mean, deviation)


def _tune(
    tuning: Part, judging: Part, factors: np.ndarray, table: TableData, scale: Scale, seed: int
) -> tuple[float, StackedRun, int]:
    """The base rate whose last iterate does best on the held-out rows, the run, and its column there."""
    rates = RATES[scale["optimizer"]]
    run = _train(tuning, rates, factors, table, scale, seed)
    losses = row_losses(run.outputs(judging.inputs), judging.targets, _loss(table.kind)).mean(dim=1)
    values = np.nan_to_num(losses.numpy(), nan=np.inf)
    best = int(np.argmin(values))
    if not math.isfinite(values[best]):
        raise FloatingPointError(f"training overflowed at every base rate from {rates[0]} to {rates[-1]}")
    return rates[best], run, best


def _train(
    part: Part, rates: Sequence[float], factors: np.ndarray, table: TableData, scale: Scale, seed: int
) -> StackedRun:
    generator = torch.Generator().manual_seed(seed)
    outputs = len(np.unique(table.target)) if table.kind == "classification" else 1
    layers = initial_layers((part.inputs.shape[1], *HIDDEN, outputs), generator)
    rows = len(part.inputs)
    order = batch_order(rows, _batch(rows), len(factors), generator)
    return train_stacked(
        layers,
        part.inputs,
        part.targets,
        order,
        rates,
        factors,
        loss=_loss(table.kind),
        optimizer=scale["optimizer"],
    )


def _parts(table: TableData, first: np.ndarray, second: np.ndarray, columns: Any = None) -> tuple[Part, Part]:
    """Both sets of rows, prepared by what the first one alone shows."""
    columns = preprocessing(table.numeric, table.categorical) if columns is None else columns
    inputs = [
        torch.tensor(np.asarray(values), dtype=torch.float32)
        for values in (
            columns.fit_transform(table.features.iloc[first]),
            columns.transform(table.features.iloc[second]),
        )
    ]
    if table.kind == "classification":
        codes = np.unique(table.target, return_inverse=True)[1]
        targets = [torch.tensor(codes[rows]) for rows in (first, second)]
    else:
        mean, deviation = table.target[first].mean(), table.target[first].std() or 1.0
        targets = [
            torch.tensor((table.target[rows] - mean) / deviation, dtype=torch.float32)
            for rows in (first, second)
        ]
    return Part(inputs[0], targets[0]), Part(inputs[1], targets[1])


def _scores(run: StackedRun, testing: Part, kind: Kind) -> dict[str, float]:
    outputs = run.outputs(testing.inputs)
    value = float(row_losses(outputs, testing.targets, _loss(kind)).mean())
    if kind == "classification":
        right = (outputs[0].argmax(dim=1) == testing.targets).double().mean()
        return {"test log loss": value, "accuracy": float(right)}
    return {"test RMSE": math.sqrt(value), "R2": 1 - value / float(testing.targets.var(unbiased=False))}


def _constant_scores(training: Part, testing: Part, kind: Kind) -> dict[str, float]:
    if kind == "regression":
        value = float(((testing.targets - training.targets.mean()) ** 2).mean())
        return {"test RMSE": math.sqrt(value), "R2": 1 - value / float(testing.targets.var(unbiased=False))}
    classes = int(max(training.targets.max(), testing.targets.max())) + 1
    shares = torch.bincount(training.targets, minlength=classes).double() / len(training.targets)
    right = (testing.targets == shares.argmax()).double().mean()
    return {"test log loss": float(-shares[testing.targets].log().mean()), "accuracy": float(right)}


def _loss(kind: Kind) -> Loss:
    return "cross entropy" if kind == "classification" else "squared error"


def _batch(rows: int) -> int:
    return max(1, min(BATCH, rows // 4))


def _smoothed(losses: np.ndarray) -> np.ndarray:
    width = max(1, len(losses) // CURVE_POINTS)
    kernel = np.ones(width) / width
    return np.convolve(losses.astype(np.float64), kernel, mode="valid")


def _thinned(values: np.ndarray, label: str) -> Curve:
    at = np.unique(np.linspace(0, len(values) - 1, CURVE_POINTS).round().astype(int))
    return Curve(at.tolist(), values[at].tolist(), "step", label)


def _mean_factors(results: Results) -> dict[str, tuple[list[float], np.ndarray]]:
    found = {}
    for name, arm in ARMS.items():
        curves = list(results.curves(name, "factor").values())
        if arm.settings["shape"] and curves:
            found[name] = (list(curves[0].x), np.mean([c.y for c in curves], axis=0))
    return found


def _draw_schedules(figure: MplFigure, results: Results) -> None:
    axes = figure.add_subplot()
    for i, (name, (x, y)) in enumerate(_mean_factors(results).items()):
        axes.plot(x, y, color=f"C{i}", label=ARMS[name].label)
    axes.set_xlabel("step")
    axes.set_ylabel("rate / base rate")
    axes.legend()


def _schedule_table(results: Results) -> Table:
    rows: list[list[str | float]] = []
    for name, (_, y) in _mean_factors(results).items():
        rates = results.metric(name, "chosen rate").values()
        middle = float(np.exp(np.mean(np.log(list(rates)))))
        rows.append([name, middle, *(float(y[round(q * (len(y) - 1))]) for q in (0.0, 0.05, 0.25, 0.5, 0.9))])
    header = ["schedule", "base rate", "at the start", "at 5 %", "at 25 %", "at 50 %", "at 90 %"]
    return Table(header, rows)


SCHEDULES = StudyFigure(
    name="schedules",
    title="The schedules, as shares of the base rate",
    alt="Learning rate over the run as a share of the base rate, one line per schedule; the refined one is"
    " the mean over seeds.",
    draw=_draw_schedules,
    table=_schedule_table,
)

TASK = Task(
    slug="compare-schedule",
    title="Schedules compared",
    plain_words=(
        "A network with two hidden layers of 64 units is trained on your table under each schedule. Every"
        " schedule has its own base rate, chosen on held-out training rows; the last iterate is tested."
    ),
    rooms=("optim",),
    arms=ARMS,
    default=("linear", "cosine", "inverse-sqrt", "refined", "flat"),
    plain=("flat", "constant"),
    trial=trial,
    data=table_digest,
)
