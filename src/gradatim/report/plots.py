"""The plots of a paper's page: every seed of every arm as a dot, learning curves, the study's own figures."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from gradatim.bench.statistics import Estimate, estimate
from gradatim.bench.study import Arm, Curve, Results, Study, StudyFigure, Table
from gradatim.report.formatting import number, shown
from gradatim.report.svg import CYCLE, LINE, MUTED, clean, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 400
_CURVE_POINTS = 300
_TABLE_POINTS = 12
_DASHES = {"method": "-", "baseline": (0, (5, 2)), "control": (0, (1.5, 1.8))}


@dataclass(frozen=True)
class Key:
    """A legend entry: colour number, SVG dash pattern, label."""

    color: int
    dash: str
    label: str


@dataclass(frozen=True)
class Plot:
    """A drawn plot with the numbers behind it; `error` says why there is no drawing."""

    title: str
    alt: str
    svg: str
    table: Table
    legend: tuple[Key, ...] = ()
    note: str = ""
    error: str = ""


def task_of(arm: Arm) -> str:
    """`task` of an arm named `task/arm`, else nothing."""
    task, slash, _ = arm.name.partition("/")
    return task if slash else ""


def label_of(arm: Arm) -> str:
    """How an arm is called on a plot of its task."""
    return arm.label or arm.name.removeprefix(f"{task_of(arm)}/")


def by_task(arms: Iterable[Arm]) -> dict[str, list[Arm]]:
    """Arms grouped by task, tasks in order of first appearance."""
    arms = list(arms)
    order = list(dict.fromkeys(task_of(a) for a in arms))
    return {task: [a for a in arms if task_of(a) == task] for task in order}


def arm_plots(study: Study, results: Results, key: str) -> list[Plot]:
    """One dot plot per headline metric and task; none where no arm of the task has the metric."""
    plots = []
    for m, (metric, better) in enumerate(study.headline):
        for t, (task, arms) in enumerate(by_task(study.arms).items()):
            values = {a.name: results.metric(a.name, metric) for a in arms}
            arms = [a for a in arms if values[a.name]]
            if arms:
                plots.append(_arm_plot(metric, better, task, arms, values, f"{key}-m{m}t{t}"))
    return plots


def _arm_plot(
    metric: str,
    better: str,
    task: str,
    arms: Sequence[Arm],
    values: Mapping[str, Mapping[int, float]],
    key: str,
) -> Plot:
    estimates = [estimate(list(values[a.name].values())) for a in arms]
    title = f"{task}: {metric}" if task else metric
    best = sorted(
        zip(arms, estimates, strict=True), key=lambda p: p[1].mean or 0.0, reverse=better == "higher"
    )[0]
    alt = (
        f"Each seed's {metric} for {len(arms)} arms; {better} is better. "
        f"The best mean has {label_of(best[0])}, {number(best[1].mean)}."
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _dots(axes, arms, [list(values[a.name].values()) for a in arms], estimates)
        arrow = "→" if better == "higher" else "←"
        axes.set_xlabel(clean(f"{metric} ({better} is better {arrow})"), parse_math=False)

    table = Table(
        ("arm", "role", "seeds", "mean", "95% interval", "sd", "each seed"),
        [
            (
                label_of(a), a.role, e.n, shown(e, signed=False).mean,
                shown(e, signed=False).interval or "–", number(e.sd),
                "  ".join(number(v, 4) for v in values[a.name].values()),
            )
            for a, e in zip(arms, estimates, strict=True)
        ],
    )  # fmt: skip
    return Plot(title, alt, render(draw, (WIDTH, 62 + 46 * len(arms)), key, title, alt), table)


def _dots(
    axes: Axes, arms: Sequence[Arm], values: Sequence[Sequence[float]], estimates: Sequence[Estimate]
) -> None:
    flat = [v for row in values for v in row]
    logarithmic = min(flat) > 0 and max(flat) / min(flat) > 300
    if logarithmic:
        axes.set_xscale("log")
    across = axes.get_yaxis_transform()
    for i, (arm, row, e) in enumerate(zip(arms, values, estimates, strict=True)):
        color = {"method": CYCLE[0], "baseline": CYCLE[7], "control": CYCLE[1]}[arm.role]
        # The same number at every seed is one dot, not a pile.
        x, y = _swarm(row if e.sd else row[:1], flat, logarithmic)
        face = "none" if arm.role == "control" else color
        axes.scatter(x, [i + v for v in y], s=17, facecolors=face, edgecolors=color, alpha=0.6, lw=1)
        if e.sd and e.mean is not None and e.low is not None and e.high is not None:
            low = max(e.low, min(flat) / 3) if logarithmic else e.low
            axes.plot([low, e.high], [i + 0.21] * 2, color=color, lw=2, solid_capstyle="butt")
            axes.plot([e.mean] * 2, [i + 0.11, i + 0.31], color=color, lw=2, solid_capstyle="butt")
        if i:
            axes.plot([0, 1], [i - 0.56] * 2, color=LINE, lw=0.6, transform=across)
        for at, side, text in ((0.0, "left", label_of(arm)), (1.0, "right", shown(e, signed=False).mean)):
            axes.text(at, i - 0.2, clean(text), transform=across, ha=side, va="bottom", parse_math=False)
    axes.set_ylim(len(arms) - 0.55, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=LINE, lw=0.6)
    axes.set_axisbelow(True)
    for written in axes.texts:
        written.set_in_layout(False)
    _plain_ticks(axes, "x", logarithmic)


def _swarm(row: Sequence[float], flat: Sequence[float], log: bool) -> tuple[list[float], list[float]]:
    """Dots in order of value, moved up and down by turns where they would lie on one another."""
    place = math.log if log else float
    span = place(max(flat)) - place(min(flat)) or 1.0
    x = sorted(row)
    y: list[float] = []
    for i, v in enumerate(x):
        near = sum(1 for u in x[:i] if place(v) - place(u) < 0.018 * span)
        y.append(0.05 * min((near + 1) // 2, 3) * (-1 if near % 2 else 1) if near else 0.0)
    return x, y


def curve_plots(study: Study, results: Results, key: str) -> list[Plot]:
    """One plot per curve name and task: the mean over seeds with its 95% band.

    Curves named "figure/..." are left to the study's own figures: what only one seed has, or a picture.
    """
    plots = []
    names = dict.fromkeys(
        name
        for by_seed in results.outcomes.values()
        for o in by_seed.values()
        for name in o.curves
        if not name.startswith("figure/")
    )
    for n, name in enumerate(names):
        for t, (task, arms) in enumerate(by_task(study.arms).items()):
            lines = [
                (i, a, _over_seeds(list(results.curves(a.name, name).values()))) for i, a in enumerate(arms)
            ]
            drawn = [(i, a, line) for i, a, line in lines if line is not None]
            if drawn:
                plots.append(_curve_plot(name, task, drawn, f"{key}-c{n}t{t}"))
    return plots


@dataclass(frozen=True)
class _Line:
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    x_label: str
    y_label: str


def _over_seeds(curves: Sequence[Curve]) -> _Line | None:
    """Mean and pointwise 95% t interval of curves of several seeds, on their common range of x."""
    pairs = [_finite(c) for c in curves]
    pairs = [(x, y) for x, y in pairs if len(x)]
    if not pairs:
        return None
    first = pairs[0][0]
    if all(np.array_equal(x, first) for x, _ in pairs):
        x, ys = first, np.stack([y for _, y in pairs])
    else:
        low, high = max(x[0] for x, _ in pairs), min(x[-1] for x, _ in pairs)
        if low > high:
            return None
        union = np.unique(np.concatenate([p[0] for p in pairs]))
        x = union[(union >= low) & (union <= high)]
        ys = np.stack([np.interp(x, px, py) for px, py in pairs])
    if len(x) > _CURVE_POINTS:
        keep = np.unique(np.linspace(0, len(x) - 1, _CURVE_POINTS).round().astype(int))
        x, ys = x[keep], ys[:, keep]
    mean = ys.mean(axis=0)
    half = np.zeros_like(mean)
    if len(ys) > 1:
        from scipy import stats

        half = stats.t.ppf(0.975, len(ys) - 1) * ys.std(axis=0, ddof=1) / math.sqrt(len(ys))
    return _Line(x, mean, mean - half, mean + half, len(ys), curves[0].x_label, curves[0].y_label)


def _finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
    good = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[good], kind="stable")
    return x[good][order], y[good][order]


def _curve_plot(name: str, task: str, lines: Sequence[tuple[int, Arm, _Line]], key: str) -> Plot:
    title = f"{task}: {name}" if task else name
    some = lines[0][2]
    alt = (
        f"{name} over {some.x_label} for {len(lines)} arms, mean over seeds with its 95% band. "
        + "; ".join(f"{label_of(a)} ends at {number(float(line.mean[-1]))}" for _, a, line in lines[:6])
    )
    values = np.concatenate([line.mean for _, _, line in lines])
    logarithmic = bool(values.min() > 0 and values.max() / values.min() > 100)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, arm, line in lines:
            color = CYCLE[i % len(CYCLE)]
            axes.plot(line.x, line.mean, color=color, ls=_DASHES[arm.role], lw=1.6)
            if line.n > 1:
                low = np.maximum(line.low, values.min() / 3) if logarithmic else line.low
                axes.fill_between(line.x, low, line.high, color=color, alpha=0.15, lw=0)
        if logarithmic:
            axes.set_yscale("log")
        if all(_geometric(line.x) for _, _, line in lines):
            axes.set_xscale("log")
        axes.grid(axis="y", color=LINE, lw=0.6)
        axes.set_xlabel(clean(some.x_label), parse_math=False)
        axes.set_ylabel(clean(some.y_label), parse_math=False)
        _plain_ticks(axes, "y", logarithmic)

    legend = tuple(
        Key(i % len(CYCLE), {"method": "", "baseline": "7 3", "control": "2 3"}[a.role], label_of(a))
        for i, a, _ in lines
    )
    svg = render(draw, (WIDTH, 260), key, title, alt)
    return Plot(title, alt, svg, _curve_table(some.x_label, lines), legend)


def _geometric(x: np.ndarray) -> bool:
    """Whether `x` goes up by factors rather than by steps, as a grid of learning rates does."""
    if len(x) < 3 or x[0] <= 0 or x[-1] / x[0] < 10:
        return False
    steps, factors = np.diff(x), np.diff(np.log(x))
    return bool(factors.std() / factors.mean() < steps.std() / steps.mean() / 2)


def _curve_table(x_label: str, lines: Sequence[tuple[int, Arm, _Line]]) -> Table:
    low = min(line.x[0] for _, _, line in lines)
    high = max(line.x[-1] for _, _, line in lines)
    grid = np.linspace(low, high, _TABLE_POINTS)
    # Whole numbers stay whole: half a step is no place to read a value.
    if all(np.array_equal(line.x, line.x.round()) for _, _, line in lines):
        grid = np.unique(grid.round())
    rows = []
    for x in grid:
        row: list[str | float] = [number(float(x), 5)]
        for _, _, line in lines:
            inside = line.x[0] <= x <= line.x[-1]
            row.append(number(float(np.interp(x, line.x, line.mean)), 4) if inside else "–")
        rows.append(row)
    return Table((x_label, *(label_of(a) for _, a, _ in lines)), rows)


def _plain_ticks(axes: Axes, which: str, logarithmic: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    if not logarithmic:
        axis.set_major_locator(MaxNLocator(5))
    axes.tick_params(color=MUTED, length=3)


def study_plots(study: Study, results: Results, key: str) -> list[Plot]:
    """The study's own figures; one that cannot be drawn says why and does not stop the others."""
    return [_study_plot(f, results, f"{key}-f{i}") for i, f in enumerate(study.figures)]


def _study_plot(f: StudyFigure, results: Results, key: str) -> Plot:
    plot = Plot(f.title, f.alt, "", Table((), ()))
    try:
        svg = render(lambda figure: f.draw(figure, results), (760, 390), key, f.title, f.alt)
        plot = replace(plot, svg=svg)
        return replace(plot, table=_plain_table(f.table(results)))
    except Exception as e:
        return replace(plot, error=f"{type(e).__name__}: {e}", note=traceback.format_exc())


def _plain_table(table: Table) -> Table:
    return Table(tuple(map(str, table.header)), [[_cell(c) for c in row] for row in table.rows])


def _cell(value: Any) -> str:
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | np.integer):
        return str(int(value))
    return number(float(value), 4) if value is not None else "–"


def metrics_table(arms: Sequence[Arm], estimates: Mapping[str, Mapping[str, Estimate]]) -> Table:
    """Every metric of every arm: mean with its 95% interval."""
    names = [*dict.fromkeys(name for arm in arms for name in estimates[arm.name])]
    rows: list[list[str | float]] = []
    for _, group in groupby(arms, key=task_of):
        for a in group:
            mine = estimates[a.name]
            cells = [str(shown(mine[n], signed=False)) if n in mine else "–" for n in names]
            rows.append([a.name if not a.label else f"{a.label} ({a.name})", *cells])
    return Table(("arm", *names), rows)
