"""The figures of study 17: order sensitivity, the paths of descent, single answers, the Boolean arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradatim.bench import Curve, Results, Table, estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = (
    ("text/icl", "in context"),
    ("text/icl-shuffled", "in context, labels shuffled"),
    ("text/sgd", "SGD, all weights"),
    ("text/value-middle", "SGD, values, middle layer"),
    ("text/value-deep", "SGD, values, deep layer"),
    ("text/gd", "full-batch GD"),
    ("text/icl-untrained", "in context, untrained"),
)
PATHS = (("text/sgd", "C1"), ("text/sgd-rates", "C1"), ("text/value-middle", "C2"),
         ("text/value-deep", "C3"), ("text/value-deep-rates", "C3"))  # fmt: skip


def _dots(figure: Figure, results: Results, metrics: Sequence[tuple[str, str]]) -> None:
    """One panel per metric; a row per arm, a dot per seed, a bar at the mean."""
    axes = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    shown = [(arm, label) for arm, label in ARMS if results.metric(arm, metrics[0][0])]
    for axis, (metric, title) in zip(axes, metrics, strict=True):
        for row, (arm, _) in enumerate(shown):
            values = list(results.metric(arm, metric).values())
            if values:
                axis.plot(values, [row] * len(values), "o", color="C0", alpha=0.5, ms=4)
                axis.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color="C1", lw=2)
        axis.set(title=title, xlabel=metric.replace("_", " "), xlim=(0, None))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(shown)), [label for _, label in shown])
    axes[0].invert_yaxis()


def draw_sensitivity(figure: Figure, results: Results) -> None:
    """Sen, and Sen per probability moved."""
    _dots(figure, results, (("sen", "order sensitivity"), ("sen_per_move", "per probability moved")))


def table_sensitivity(results: Results) -> Table:
    """Means by arm."""
    names = ("sen", "sen_per_move", "sen_on_labels", "flips", "accuracy", "restricted", "moved")
    rows = [
        (label, *(_mean(list(results.metric(arm, name).values())) for name in names))
        for arm, label in ARMS
        if results.metric(arm, "sen")
    ]
    return Table(("arm", "Sen", "per move", "on labels", "flips", "accuracy", "among words", "moved"), rows)


def _path(results: Results, arm: str) -> list[tuple[int, str, Curve, Curve]]:
    """(seed, rate, log ratio over epochs, overlap over epochs)."""
    rates = sorted({name.split("-", 1)[1] for o in results.outcomes.get(arm, {}).values()
                    for name in o.curves if name.startswith("log_ratio-")}, key=float)  # fmt: skip
    found = []
    for rate in rates:
        overlap = results.curves(arm, f"to-{rate}")
        for seed, ratio in results.curves(arm, f"log_ratio-{rate}").items():
            found.append((seed, rate, ratio, overlap[seed]))
    return found


def draw_paths(figure: Figure, results: Results) -> None:
    """Every recorded state of descent, joined over epochs; the region in which one would stand in."""
    axis = figure.subplots()
    labels = dict(ARMS)
    for arm, color in PATHS:
        for i, (_, _, ratio, overlap) in enumerate(_path(results, arm)):
            label = labels.get(arm) if i == 0 else None
            x = np.exp(np.clip(ratio.y, -7, 7))
            axis.plot(x, overlap.y, "-", color=color, alpha=0.5, lw=1, label=label)
            axis.plot(x[-1:], overlap.y[-1:], "o", color=color, ms=4)
    ceiling = list(results.metric("text/icl", "to_self").values())
    if ceiling:
        top = float(np.mean(ceiling))
        axis.plot([1], [top], "*", color="C0", ms=14, label="in context, another order")
        axis.fill_between([0.8, 1.25], top - 0.05, 1, color="C0", alpha=0.15, lw=0)
    floor = list(results.metric("text/icl", "to_zero").values())
    if floor:
        axis.axhline(float(np.mean(floor)), color="0.5", ls=":", lw=1, label="zero-shot")
    shuffled = list(results.metric("text/icl-shuffled", "to_icl").values())
    if shuffled:
        axis.axhline(float(np.mean(shuffled)), color="0.5", ls="--", lw=1, label="labels shuffled")
    ticks = (0.05, 0.1, 0.2, 0.5, 1, 2, 5)
    axis.set(
        xscale="log",
        ylim=(0, 1),
        xlabel="order sensitivity / in context's",
        ylabel="overlap of top 10 tokens",
    )
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks], minor=False)
    axis.set_xticks([], minor=True)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small", loc="lower left")


def table_paths(results: Results) -> Table:
    """Means over seeds by arm, rate and epoch."""
    rows: list[tuple[str | float, ...]] = []
    for arm, _ in PATHS:
        states: dict[tuple[str, float], list[tuple[float, float]]] = {}
        for _, rate, ratio, overlap in _path(results, arm):
            for epoch, r, o in zip(ratio.x, ratio.y, overlap.y, strict=True):
                states.setdefault((rate, epoch), []).append((r, o))
        for (rate, epoch), values in states.items():
            r, o = np.mean(values, axis=0)
            rows.append((arm, rate, epoch, len(values), math.exp(r), float(o)))
    return Table(("arm", "rate", "epoch", "sets", "Sen / in context's", "overlap"), rows)


def draw_orders(figure: Figure, results: Results) -> None:
    """P(first class) per item, a dot per order, of the first seed that both arms have."""
    axes = figure.subplots(1, 2, sharey=True)
    arms = (("text/icl", "in context"), ("text/sgd", "SGD, all weights"))
    both = set(results.outcomes.get(arms[0][0], {})) & set(results.outcomes.get(arms[1][0], {}))
    for axis, (arm, title) in zip(axes, arms, strict=True):
        axis.set(title=title, xlabel="test item", ylim=(-0.03, 1.03))
        axis.axhline(0.5, color="0.7", lw=1)
        if not both:
            continue
        curves = results.outcomes[arm][min(both)].curves
        for name in sorted(n for n in curves if n.startswith("order-")):
            axis.plot(curves[name].x, curves[name].y, "o", color="C0", alpha=0.6, ms=4)
    axes[0].set_ylabel("P(first class)")


def table_orders(results: Results) -> Table:
    """Smallest and largest probability over orders per item, of every seed."""
    rows: list[tuple[str | float, ...]] = []
    for arm in ("text/icl", "text/sgd"):
        for seed, outcome in sorted(results.outcomes.get(arm, {}).items()):
            strips = [c.y for name, c in outcome.curves.items() if name.startswith("order-")]
            if strips:
                spread = np.ptp(np.array(strips), axis=0)
                rows.append((arm, seed, float(spread.mean()), float(spread.max())))
    return Table(("arm", "set", "mean range over orders", "largest range"), rows)


def draw_boolean(figure: Figure, results: Results) -> None:
    """Prompted against trained sensitivity, one dot per model."""
    axis = figure.subplots()
    top = 0.0
    for arm, color, label in (
        ("boolean/learned", "C0", "learned positions"),
        ("boolean/none", "C1", "no positions"),
    ):
        x, y = (list(results.metric(arm, f"sen_{name}").values()) for name in ("sgd", "icl"))
        axis.plot(x, y, "o", color=color, label=label)
        top = max([top, *x, *y])
    axis.plot([0, 1.05 * top], [0, 1.05 * top], color="0.6", lw=1, label="equal")
    axis.set(
        xlabel="order sensitivity of SGD",
        ylabel="order sensitivity in context",
        xlim=(0, None),
        ylim=(0, None),
    )
    axis.legend(fontsize="small", loc="upper left")


def table_boolean(results: Results) -> Table:
    """Means by arm and way of answering."""
    rows = []
    for arm in ("boolean/learned", "boolean/none"):
        for way in ("icl", "sgd"):
            names = ("sen", "sen_per_move", "flips", "accuracy")
            values = [_mean(list(results.metric(arm, f"{n}_{way}").values())) for n in names]
            if arm in results.outcomes:
                rows.append((arm, way, *values))
    return Table(("arm", "way", "Sen", "per move", "flips", "accuracy"), rows)


def _mean(values: list[float]) -> float | str:
    mean = estimate(values).mean
    return "none" if mean is None else float(mean)
