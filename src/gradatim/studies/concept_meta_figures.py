"""The figures of study 7: accuracies by cell, training, steps at test time, concept sizes, curvature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradatim.bench import Curve, Results, Table, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELLS = tuple(f"F{f}D{d}" for f in (8, 16, 32) for d in (3, 5, 7))
RIVALS = (
    ("nearest", "nearest neighbour", "C5"),
    ("logistic", "logistic regression", "C4"),
    ("sgd", "scratch SGD", "C1"),
    ("adam", "scratch Adam, tuned", "C2"),
    ("first-k10", "Meta-SGD, K = 10", "C0"),
)
META = (
    ("first-k1", "first order, K = 1", "C1"),
    ("second-k1", "second order, K = 1", "C3"),
    ("first-k1-tenfold", "first order, K = 1, 10 x updates", "C2"),
    ("first-k10", "first order, K = 10", "C0"),
    ("second-k10", "second order, K = 10", "C4"),
    ("maml-k1", "MAML, K = 1", "C5"),
    ("fomaml-k10", "first-order MAML, K = 10", "C6"),
)
SIZES = (("literals_1", "1"), ("literals_2_3", "2-3"), ("literals_4", "4 or more"))
STEPS = (0, 1, 10, 50)
RESAMPLES = 2000


def draw_accuracies(figure: Figure, results: Results) -> None:
    """Accuracy of every learner, cell by cell."""
    axis = figure.subplots()
    cells = [c for c in CELLS if any(f"{c}/{arm}" in results.outcomes for arm, _, _ in RIVALS)]
    for k, (arm, label, color) in enumerate(RIVALS):
        for place, cell in enumerate(cells):
            values = list(results.metric(f"{cell}/{arm}", "accuracy").values())
            if values:
                x = place + (k - 2) * 0.16
                axis.bar(
                    x, np.mean(values) - 0.5, 0.15, 0.5, color=color, label=label if place == 0 else None
                )
                axis.plot([x] * len(values), values, ".", color="0.3", ms=3)
    axis.set_xticks(range(len(cells)), [c.replace("D", ", D = ").replace("F", "F = ") for c in cells])
    axis.set(ylabel="accuracy on new concepts", ylim=(0.5, 0.95))
    axis.grid(axis="y", alpha=0.3)
    _legend(axis)


def table_accuracies(results: Results) -> Table:
    """Mean accuracy by arm, and the margin of Meta-SGD over it, tasks and seeds resampled together."""
    rows: list[tuple[str | float, ...]] = []
    for cell in CELLS:
        for arm in _arms_of(results, cell):
            mean = _mean(results.metric(f"{cell}/{arm}", "accuracy"))
            if isinstance(mean, float):
                rows.append((cell, arm, mean, paired_margin(results, f"{cell}/first-k10", f"{cell}/{arm}")))
    return Table(
        ("cell", "arm", "accuracy", "Meta-SGD, K = 10, minus it: mean [95%, tasks within seeds]"), rows
    )


def paired_margin(results: Results, ours: str, theirs: str, resamples: int = RESAMPLES) -> str:
    """The mean difference over shared tasks, with a bootstrap over tasks within resampled seeds."""
    if ours == theirs:
        return "-"
    a, b = results.curves(ours, "tasks"), results.curves(theirs, "tasks")
    gaps = [np.array(a[s].y) - np.array(b[s].y) for s in a if s in b and len(a[s].y) == len(b[s].y)]
    if not gaps:
        return "none"
    rng = np.random.default_rng(0)
    means = np.empty(resamples)
    for r in range(resamples):
        chosen = rng.integers(0, len(gaps), len(gaps))
        means[r] = np.mean([rng.choice(gaps[s], len(gaps[s])).mean() for s in chosen])
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{np.mean([g.mean() for g in gaps]):+.3f} [{low:+.3f}, {high:+.3f}]"


def draw_training(figure: Figure, results: Results) -> None:
    """Validation accuracy over episodes, at 8 and at 32 features."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, cell in zip(axes, ("F8D3", "F32D3"), strict=True):
        for arm, label, color in META:
            for k, curve in enumerate(results.curves(f"{cell}/{arm}", "validation").values()):
                axis.plot(
                    curve.x[1:], curve.y[1:], color=color, alpha=0.6, lw=1, label=label if k == 0 else None
                )
        axis.set(title=cell, xlabel="episodes", xscale="log")
    axes[0].set_ylabel("validation accuracy")
    _legend(axes[0])


def table_training(results: Results) -> Table:
    """Episodes and gradients spent, and when 60% and 80% were reached, if they were."""
    names = ("episodes_60", "reached_60", "episodes_80", "reached_80", "gradients", "cpu_seconds")
    rows = [
        (cell, label, *(_mean(results.metric(f"{cell}/{arm}", name)) for name in names))
        for cell in CELLS
        for arm, label, _ in META
        if f"{cell}/{arm}" in results.outcomes
    ]
    header = ("episodes to 60%", "seeds that got there", "episodes to 80%", "seeds that got there")
    return Table(("cell", "meta-training", *header, "gradients", "CPU seconds"), rows)


def draw_steps(figure: Figure, results: Results) -> None:
    """Accuracy after some steps at test time."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, cell in zip(axes, ("F8D3", "F32D3"), strict=True):
        for arm, label, color in META:
            means = [_mean(results.metric(f"{cell}/{arm}", f"accuracy_{k}")) for k in STEPS]
            known = [(k, m) for k, m in zip(range(len(STEPS)), means, strict=True) if isinstance(m, float)]
            if known:
                axis.plot(*zip(*known, strict=True), "o-", color=color, label=label)
        axis.axhline(0.5, color="0.5", lw=0.8, ls=":")
        axis.set(title=cell, xlabel="steps at test time")
        axis.set_xticks(range(len(STEPS)), [str(k) for k in STEPS])
    axes[0].set_ylabel("accuracy")
    _legend(axes[0])


def table_steps(results: Results) -> Table:
    """The same numbers, and accuracy on deeper concepts."""
    names = (*(f"accuracy_{k}" for k in STEPS), "accuracy", "accuracy_deeper", "accuracy_untrained")
    rows = [
        (cell, label, *(_mean(results.metric(f"{cell}/{arm}", name)) for name in names))
        for cell in CELLS
        for arm, label, _ in META
        if f"{cell}/{arm}" in results.outcomes
    ]
    header = tuple(f"{k} steps" for k in STEPS)
    return Table(("cell", "meta-training", *header, "its own K", "its own K, D = 7", "untrained"), rows)


def draw_sizes(figure: Figure, results: Results) -> None:
    """Accuracy by number of literals, at both numbers of features and depth 7."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, cell in zip(axes, ("F8D7", "F32D7"), strict=True):
        for arm, label, color in RIVALS:
            means = [_mean(results.metric(f"{cell}/{arm}", name)) for name, _ in SIZES]
            known = [(k, m) for k, m in enumerate(means) if isinstance(m, float)]
            if known:
                axis.plot(*zip(*known, strict=True), "o-", color=color, label=label)
        axis.set_xticks(range(len(SIZES)), [label for _, label in SIZES])
        axis.set(title=cell, xlabel="literals of the concept")
    axes[0].set_ylabel("accuracy")
    _legend(axes[1])


def table_sizes(results: Results) -> Table:
    """The same numbers for every cell."""
    rows = [
        (cell, label, *(_mean(results.metric(f"{cell}/{arm}", name)) for name, _ in SIZES))
        for cell in CELLS
        for arm, label, _ in RIVALS
        if f"{cell}/{arm}" in results.outcomes
    ]
    return Table(("cell", "learner", *(f"{label} literals" for _, label in SIZES)), rows)


def draw_landscape(figure: Figure, results: Results) -> None:
    """Left: gain over top eigenvalue, task by task. Right: top eigenvalues at both kinds of weights."""
    left, right = figure.subplots(1, 2)
    for cell, color in (("F8D3", "C0"), ("F32D3", "C1")):
        drawn: Sequence[Curve] = list(results.curves(f"{cell}/first-k10", "curvature").values())
        for k, curve in enumerate(drawn):
            # Gains are multiples of a tenth: a little spread shows how many tasks share a value.
            jitter = np.linspace(-0.02, 0.02, len(curve.y))
            left.plot(
                curve.x, np.array(curve.y) + jitter, ".", color=color, alpha=0.5, label=None if k else cell
            )
    left.set(xlabel="top eigenvalue of the support loss", ylabel="accuracy, K = 10 minus K = 1")
    _legend(left)
    place = 0
    names = []
    for cell in ("F8D3", "F32D3"):
        for where, label in (("meta", "learned"), ("random", "random")):
            for part, color in (("lambda_max", "C0"), ("newton_max", "C2")):
                value = _mean(results.metric(f"{cell}/first-k10", f"{where}_{part}"))
                if isinstance(value, float):
                    text = {"lambda_max": "Hessian", "newton_max": "Gauss-Newton"}[part]
                    shift = -0.2 if part == "lambda_max" else 0.2
                    right.bar(place + shift, value, 0.38, color=color, label=text if not place else None)
            names.append(f"{cell}\n{label}")
            place += 1
    right.set_xticks(range(len(names)), names, fontsize="small")
    right.set(ylabel="mean top eigenvalue")
    _legend(right)


def table_landscape(results: Results) -> Table:
    """Curvature, roughness and paths at meta-learned and at random weights."""
    names = (
        "lambda_max", "newton_max", "trace", "trace_sq", "side_roughness", "roughness", "minima", "path",
        "directness",
    )  # fmt: skip
    rows: list[tuple[str | float, ...]] = []
    for cell in ("F8D3", "F32D3"):
        arm = f"{cell}/first-k10"
        if results.metric(arm, "meta_lambda_max"):
            for where, label in (("meta", "meta-learned"), ("random", "random, then Adam")):
                rows.append((cell, label, *(_mean(results.metric(arm, f"{where}_{n}")) for n in names)))
            for name in ("gain_correlation", "partial_correlation", "size_correlation"):
                rows.append((cell, name.replace("_", " "), _mean(results.metric(arm, name)), *[""] * 8))
    return Table(("cell", "weights", *(name.replace("_", " ") for name in names)), rows)


def _arms_of(results: Results, cell: str) -> list[str]:
    return [name.split("/", 1)[1] for name in results.outcomes if name.startswith(f"{cell}/")]


def _mean(values: Mapping[int, float]) -> float | str:
    mean = estimate(list(values.values())).mean
    return "none" if mean is None else float(mean)


def _legend(axis: Axes) -> None:
    handles, _ = axis.get_legend_handles_labels()
    if handles:
        axis.legend(fontsize="small")
