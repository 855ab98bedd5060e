"""The figures of study 03: accuracy by examples, the same prompts for three mixtures, training, classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from gradatim.bench import Results, Table, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEARNERS = (
    ("transformer", "Transformer", "C0", "-"),
    ("bayes-inputs", "Bayes, labels and inputs", "C2", "-"),
    ("bayes", "Bayes, labels only", "C2", "--"),
    ("elimination", "elimination", "C1", "-"),
    ("gf2", "GF(2) elimination, else a coin", "C1", "-"),
    ("1-nn", "nearest neighbour", "C3", "-"),
    ("null", "always negative", "C7", ":"),
)
PANELS = (("conjunction", "Conjunctions"), ("sparse_parity", "Parities of two bits"))
SHARES = (
    ("conjunction/transformer", "0"),
    ("conjunction/mixed", "1/2"),
    ("conjunction/taught", "1"),
)
PROMPTS = (
    ("late", "ordinary prompt, last points"),
    ("taught", "after the teaching prefix"),
    ("permuted", "after the prefix in random order"),
    ("random", "after as many random points"),
)
CLASSES = ("conjunction", "dnf", "majority", "threshold", "sparse_parity", "nearest_neighbour")
BARS = (
    ("transformer", "Transformer", "C0"),
    ("gru", "GRU", "C4"),
    ("retnet", "RetNet", "C5"),
    ("bayes", "Bayes, labels only", "C2"),
    ("1-nn", "nearest neighbour", "C3"),
)


def draw_curves(figure: Figure, results: Results) -> None:
    """Accuracy over the number of earlier examples, one panel per class."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (task, title) in zip(axes, PANELS, strict=True):
        for arm, label, color, style in LEARNERS:
            found = _mean_curve(results, f"{task}/{arm}", "accuracy")
            if found is not None:
                x, mean, low, high = found
                axis.plot(x, mean, style, color=color, label=label, lw=2 if arm == "transformer" else 1.3)
                if arm == "transformer":
                    axis.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        axis.axhline(0.5, color="0.7", lw=0.8, ls=":")
        axis.set(title=title, xlabel="earlier examples", ylim=(0.35, 1.03))
        _legend(axis, "lower right" if task == "conjunction" else "upper left")
    axes[0].set_ylabel("accuracy")


def table_curves(results: Results) -> Table:
    """Accuracy at 1, 2, 4, 8 ... earlier examples and at the end."""
    rows: list[tuple[str | float, ...]] = []
    for task, _ in PANELS:
        for arm, label, _, _ in LEARNERS:
            found = _mean_curve(results, f"{task}/{arm}", "accuracy")
            if found is not None:
                x, mean, _, _ = found
                shown = [i for i, t in enumerate(x) if t in (1, 2, 4, 8, 16, 32) or i == len(x) - 1]
                rows += [(task, label, float(x[i]), float(mean[i])) for i in shown]
    return Table(("class", "learner", "earlier examples", "accuracy"), rows)


def draw_shares(figure: Figure, results: Results) -> None:
    """The same four kinds of prompts for models of three training mixtures; lines show elimination."""
    axis = figure.subplots()
    for i, (metric, label) in enumerate(PROMPTS):
        for j, (arm, _) in enumerate(SHARES):
            values = list(results.metric(arm, metric).values())
            e = estimate(values)
            if e.mean is None:
                continue
            axis.bar(j + 0.2 * (i - 1.5), e.mean, 0.19, color=f"C{i}", label=label if j == 0 else None)
            axis.plot([j + 0.2 * (i - 1.5)] * len(values), values, ".", color="0.15", ms=3)
        plain = estimate(list(results.metric("conjunction/elimination", metric).values())).mean
        if plain is not None:
            axis.axhline(plain, color=f"C{i}", lw=1, ls="--")
    axis.set_xticks(range(len(SHARES)), [share for _, share in SHARES])
    axis.set(
        xlabel="share of training prompts that begin with a teaching sequence",
        ylabel="accuracy (dashed: elimination)",
        ylim=(0.5, 1.02),
    )
    _legend_above(axis)


def table_shares(results: Results) -> Table:
    """Accuracy by training mixture and kind of prompt."""
    arms = (*SHARES, ("conjunction/elimination", "elimination"), ("conjunction/bayes", "Bayes, labels only"))
    rows = []
    for arm, share in arms:
        if arm in results.outcomes:
            rows.append((share, *(_mean(results, arm, metric) for metric, _ in PROMPTS)))
    return Table(("training share or learner", *(label for _, label in PROMPTS)), rows)


def draw_training(figure: Figure, results: Results) -> None:
    """Training loss of every seed on parities, with and without the teaching sequence."""
    axis = figure.subplots()
    for arm, label, color in (
        ("sparse_parity/transformer", "ordinary prompts", "C3"),
        ("sparse_parity/taught", "prompts with a teaching sequence", "C0"),
    ):
        for i, curve in enumerate(results.curves(arm, "loss").values()):
            axis.plot(curve.x, curve.y, color=color, label=label if i == 0 else None)
    axis.axhline(np.log(2), color="0.6", lw=0.8, ls=":")
    axis.set(xlabel="step", ylabel="training loss (dotted: a coin)", ylim=(0, None))
    _legend(axis, "lower left")


def table_training(results: Results) -> Table:
    """Last training loss by seed."""
    rows: list[tuple[str | float, ...]] = []
    for arm in ("sparse_parity/transformer", "sparse_parity/taught"):
        rows += [(arm, s, c.x[-1], c.y[-1]) for s, c in results.curves(arm, "loss").items()]
    return Table(("arm", "seed", "step", "training loss"), rows)


def draw_classes(figure: Figure, results: Results) -> None:
    """Accuracy on the last points, class by class."""
    axis = figure.subplots()
    known = [task for task in CLASSES if _value(results, f"{task}/transformer", "late") is not None]
    for i, (arm, label, color) in enumerate(BARS):
        shown = [(j, _value(results, f"{task}/{arm}", "late")) for j, task in enumerate(known)]
        bars = [(j, v) for j, v in shown if v is not None]
        if bars:
            axis.bar(
                [j + 0.16 * (i - 2) for j, _ in bars], [v for _, v in bars], 0.15, color=color, label=label
            )
    for j, task in enumerate(known):
        null = _value(results, f"{task}/transformer", "null")
        if null is not None:
            axis.plot([j - 0.4, j + 0.4], [null, null], color="0.3", lw=1, ls=":")
    axis.set_xticks(range(len(known)), [task.replace("_", "\n") for task in known])
    axis.set(ylabel="accuracy on the last points", ylim=(0.4, 1.02))
    _legend_above(axis)


def table_classes(results: Results) -> Table:
    """Accuracy on the last points by class and learner, with what must stand beside it."""
    rows: list[tuple[str | float, ...]] = []
    for task in CLASSES:
        for arm, label, _ in BARS:
            name = f"{task}/{arm}"
            if _value(results, name, "late") is not None:
                metrics = ("late", "balanced", "null", "mean", "shifted", "noisy")
                rows.append((task, label, *(_mean(results, name, metric) for metric in metrics)))
    header = ("last points", "balanced", "always negative", "all points", "shifted inputs", "noisy labels")
    return Table(("class", "learner", *header), rows)


def _mean_curve(
    results: Results, arm: str, name: str
) -> tuple[Sequence[float], np.ndarray, np.ndarray, np.ndarray] | None:
    curves = list(results.curves(arm, name).values())
    if not curves:
        return None
    y = np.array([curve.y for curve in curves])
    return curves[0].x, y.mean(0), y.min(0), y.max(0)


def _value(results: Results, arm: str, metric: str) -> float | None:
    mean = estimate(list(results.metric(arm, metric).values())).mean
    return None if mean is None else float(mean)


def _mean(results: Results, arm: str, metric: str) -> float | str:
    value = _value(results, arm, metric)
    return "none" if value is None else value


def _legend(axis: Axes, where: Literal["lower right", "lower left", "upper left"]) -> None:
    handles, _ = axis.get_legend_handles_labels()
    if handles:
        axis.legend(loc=where, fontsize="small")


def _legend_above(axis: Axes) -> None:
    """Bars fill the axes: the legend stands over them."""
    handles, _ = axis.get_legend_handles_labels()
    if handles:
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small", frameon=False)
