"""Paper 10's own figures: pull by rank, recall over label noise, recall over temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import bootstrap

from gradatim.bench import Results, StudyFigure, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "lse-pair": "LSEPair",
    "joint-lh": "JointLH / m",
    "sum-marg-lh": "SumMargLH",
    "rand1-lh": "Rand1LH",
    "expected-rand1-lh": "ExpRand1",
    "infonce": "one positive",
}
COLOURS = {name: f"C{i}" for i, name in enumerate(LABELS)}
NOISE = (("clean", 0.0), ("noisy", 0.2), ("heavy", 0.5))
RECALL = "recall@10"
PULLED = ("lse-pair", "joint-lh", "sum-marg-lh", "expected-rand1-lh")


def _mean_curve(results: Results, arm: str, name: str) -> tuple[Sequence[float], np.ndarray] | None:
    curves = list(results.curves(arm, name).values())
    if not curves:
        return None
    return curves[0].x, np.mean([curve.y for curve in curves], axis=0)


def draw_pull(figure: Figure, results: Results) -> None:
    """Left: share of the pull by rank of the positive; right: share that false positives get."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ranks: Sequence[float] = ()
    for i, name in enumerate(PULLED):
        found = _mean_curve(results, f"clean/{name}", "pull")
        if found is not None:
            ranks, shares = found
            at = np.asarray(ranks) + 0.2 * (i - 1.5)
            left.bar(at, shares, width=0.18, color=COLOURS[name], label=LABELS[name])
    left.axhline(0, color="0.5", linewidth=0.8)
    left.set_xticks(list(ranks))
    left.set_xlabel("positive, by score (1 = highest)")
    left.set_ylabel("share of the pull")
    left.set_title("clean labels")
    _legend(left)
    regimes = [regime for regime, rho in NOISE if rho]
    for i, name in enumerate(PULLED):
        values = _false_shares(results, name, regimes)
        shown = [(k, v) for k, v in enumerate(values) if v is not None]
        at = np.array([k for k, _ in shown]) + 0.2 * (i - 1.5)
        right.bar(at, [v for _, v in shown], width=0.18, color=COLOURS[name])
    right.set_xticks(range(len(regimes)), [f"rho = {rho:g}" for _, rho in NOISE if rho])
    right.set_ylabel("share pulled by false positives")
    right.set_title("rows with a false positive")


def _false_shares(results: Results, name: str, regimes: Sequence[str]) -> list[float | None]:
    found = [list(results.metric(f"{regime}/{name}", "pull_false").values()) for regime in regimes]
    return [float(np.mean(values)) if values else None for values in found]


def pull_table(results: Results) -> Table:
    """The shares of both panels."""
    rows: list[Sequence[str | float]] = []
    for name in PULLED:
        found = _mean_curve(results, f"clean/{name}", "pull")
        if found is not None:
            rows += [
                [LABELS[name], f"rank {x:g}, clean", round(float(y), 4)] for x, y in zip(*found, strict=True)
            ]
        for regime, rho in NOISE:
            (value,) = _false_shares(results, name, [regime])
            if value is not None:
                rows.append([LABELS[name], f"false positives, rho {rho:g}", round(value, 4)])
    return Table(["objective", "which positives", "share of the pull"], rows)


def draw_noise(figure: Figure, results: Results) -> None:
    """Recall against the error rate of the annotator, one line per objective, a dot per seed."""
    axis = figure.subplots()
    for name in LABELS:
        if name == "infonce":
            values = list(results.metric("clean/infonce", RECALL).values())
            if values:
                axis.axhline(float(np.mean(values)), color=COLOURS[name], linestyle="--", label=LABELS[name])
            continue
        _line(
            axis,
            {rho: list(results.metric(f"{regime}/{name}", RECALL).values()) for regime, rho in NOISE},
            name,
        )
    axis.set_xlabel("rho: chance that a wrong candidate is marked positive")
    axis.set_ylabel("recall@10 (gold and links)")
    _legend(axis)


def _legend(axis: Axes) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small")


def _line(axis: Axes, values: Mapping[float, Sequence[float]], name: str) -> None:
    points = [(x, float(np.mean(ys))) for x, ys in values.items() if len(ys)]
    if not points:
        return
    axis.plot(*zip(*points, strict=True), marker="o", color=COLOURS[name], label=LABELS[name])
    for x, ys in values.items():
        axis.plot([x] * len(ys), ys, ".", color=COLOURS[name], alpha=0.3, markersize=4)


def noise_table(results: Results) -> Table:
    """Mean recall by objective and error rate."""
    rows: list[Sequence[str | float]] = []
    for name, label in LABELS.items():
        for regime, rho in NOISE:
            values = list(results.metric(f"{regime}/{name}", RECALL).values())
            if values:
                rows.append([label, rho, round(float(np.mean(values)), 4), len(values)])
    return Table(["objective", "rho", "recall@10", "seeds"], rows)


def draw_scale(figure: Figure, results: Results) -> None:
    """Recall on the dev queries against the temperature scale, clean labels and heavy noise."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (regime, title) in zip(axes, (("clean", "clean labels"), ("heavy", "rho = 0.5")), strict=True):
        for name in LABELS:
            found = _mean_curve(results, f"{regime}/{name}", "scale")
            if found is not None:
                axis.plot(*found, marker="o", markersize=4, color=COLOURS[name], label=LABELS[name])
        axis.set_title(title)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("scale (1 / temperature)")
    found = _mean_curve(results, "clean/lse-pair", "scale")
    if found is not None:
        for axis in axes:
            axis.set_xticks(list(found[0]), [f"{x:g}" for x in found[0]])
    axes[0].set_ylabel("recall@10 on dev queries")
    _legend(axes[0])


def scale_table(results: Results) -> Table:
    """Recall on the dev queries by regime, objective and scale."""
    rows: list[Sequence[str | float]] = []
    for regime in ("clean", "noisy", "heavy", "mixed"):
        for name, label in LABELS.items():
            found = _mean_curve(results, f"{regime}/{name}", "scale")
            if found is not None:
                rows += [[regime, label, x, round(float(y), 4)] for x, y in zip(*found, strict=True)]
    return Table(["labels", "objective", "scale", "recall@10 on dev queries"], rows)


DIFFERENCES = tuple(
    (f"{regime}/{name}", f"{regime}/rand1-lh") for regime in ("clean", "mixed", "heavy") for name in PULLED
)


def _query_interval(results: Results, arm: str, baseline: str) -> tuple[float, float, float] | None:
    """Mean difference in recall (means over the shared seeds) and its 95% bootstrap interval over queries."""
    ours, theirs = results.curves(arm, "queries"), results.curves(baseline, "queries")
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    by_query = np.mean([np.subtract(ours[seed].y, theirs[seed].y) for seed in seeds], axis=0)
    if np.ptp(by_query) == 0:
        return float(by_query[0]), float(by_query[0]), float(by_query[0])
    interval = bootstrap(
        (by_query,), np.mean, n_resamples=4000, rng=np.random.default_rng(0), method="BCa"
    ).confidence_interval
    return float(by_query.mean()), float(interval.low), float(interval.high)


def draw_queries(figure: Figure, results: Results) -> None:
    """Each objective minus Rand1LH, with the interval over test queries."""
    axis = figure.subplots()
    names: list[str] = []
    for arm, baseline in DIFFERENCES:
        found = _query_interval(results, arm, baseline)
        if found is None:
            continue
        mean, low, high = found
        regime, _, name = arm.partition("/")
        axis.plot([low, high], [len(names)] * 2, color=COLOURS[name])
        axis.plot([mean], [len(names)], "o", color=COLOURS[name])
        names.append(f"{LABELS[name]}, {regime}")
    axis.axvline(0, color="0.5", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("recall@10 minus that of Rand1LH, 95% interval over test queries")


def queries_table(results: Results) -> Table:
    """The differences and intervals drawn."""
    rows: list[Sequence[str | float]] = []
    for arm, baseline in DIFFERENCES:
        found = _query_interval(results, arm, baseline)
        if found is not None:
            rows.append([arm, baseline, *(round(value, 4) for value in found)])
    return Table(["arm", "minus", "difference in recall@10", "low", "high"], rows)


FIGURES = (
    StudyFigure(
        name="pull",
        title="Who is pulled: share of each positive's gradient by its rank",
        alt="Bars of gradient share by rank of the positive: LSEPair rises towards the lowest-scored one, "
        "SumMargLH towards the highest, JointLH pushes the highest down, ExpRand1 is nearly even. "
        "Beside it, the share that false positives get under two noise rates, highest for LSEPair.",
        draw=draw_pull,
        table=pull_table,
    ),
    StudyFigure(
        name="noise",
        title="Recall against label noise, each objective at its own best temperature",
        alt="Lines of recall at ten over the annotator's error rate for five objectives, falling with noise, "
        "and a dashed level for training with one positive.",
        draw=draw_noise,
        table=noise_table,
    ),
    StudyFigure(
        name="temperature",
        title="Recall against temperature, on queries kept for choosing it",
        alt="Lines of recall at ten over the scale for each objective, for clean labels and heavy noise; "
        "most peak at a middle scale.",
        draw=draw_scale,
        table=scale_table,
    ),
    StudyFigure(
        name="queries",
        title="Differences to Rand1LH, with intervals over test queries",
        alt="Dots with horizontal intervals: recall at ten of LSEPair, JointLH, SumMargLH and ExpRand1 minus "
        "that of Rand1LH, for clean, mixed and heavily noisy labels, beside a line at zero.",
        draw=draw_queries,
        table=queries_table,
    ),
)
