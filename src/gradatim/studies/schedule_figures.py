"""The schedule study's own figures: the refined shape beside its norms, and loss against base rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradatim.bench import Results, StudyFigure, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STREAMS = (("lad", "least absolute deviations"), ("sgd", "network, SGD"), ("adam", "network, Adam"))
RATE_TASKS = (("lad", "least absolute deviations"), ("sgd", "network, SGD"))
SHAPES = ("linear", "refined", "cosine", "1/sqrt(t)", "flat")


def _mean_curve(results: Results, arm: str, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean over seeds at the points that every seed has."""
    curves = list(results.curves(arm, name).values())
    if not curves:
        return None
    shared = sorted(set.intersection(*(set(c.x) for c in curves)))
    if not shared:
        return None
    rows = [[dict(zip(c.x, c.y, strict=True))[x] for x in shared] for c in curves]
    return np.asarray(shared), np.mean(rows, axis=0)


def draw_refined(figure: Figure, results: Results) -> None:
    """Norms above, the schedules that they give below, one column per task."""
    axes = figure.subplots(2, len(STREAMS), sharex="col", squeeze=False)
    for column, (task, title) in enumerate(STREAMS):
        above, below = axes[0][column], axes[1][column]
        norms = _mean_curve(results, f"{task}/refined", "grad_norms")
        factors = _mean_curve(results, f"{task}/refined", "factors")
        above.set_title(title)
        if norms is not None and factors is not None:
            above.plot(*norms, color="C1", label="mean gradient norm")
            for curve in results.curves(f"{task}/refined", "factors").values():
                below.plot(curve.x, curve.y, color="C0", alpha=0.2, linewidth=0.8)
            below.plot(*factors, color="C0", label="refined (mean of seeds)")
            below.plot([0, factors[0][-1]], [1, 0], color="C2", linestyle="--", label="linear decay")
        above.set_ylim(bottom=0)
        below.set_ylim(0, 1.05)
        below.set_xlabel("step")
    axes[0][0].set_ylabel("gradient norm")
    axes[1][0].set_ylabel("factor of the base rate")
    drawn = next((axis for axis in axes[1] if axis.lines), None)
    if drawn is not None:
        drawn.legend(loc="upper right", fontsize="small")


def refined_table(results: Results) -> Table:
    """Norms and factors at tenths of the run."""
    header = ["task", "part of the run", "gradient norm", "refined factor", "linear decay"]
    rows: list[list[str | float]] = []
    for task, title in STREAMS:
        norms = _mean_curve(results, f"{task}/refined", "grad_norms")
        factors = _mean_curve(results, f"{task}/refined", "factors")
        if norms is None or factors is None:
            continue
        end = factors[0][-1]
        for tenth in range(11):
            i = int(np.argmin(np.abs(factors[0] - end * tenth / 10)))
            rows.append(
                [title, f"{tenth * 10}%", round(float(norms[1][i]), 4), round(float(factors[1][i]), 4),
                 round(1 - tenth / 10, 4)]
            )  # fmt: skip
    return Table(header, rows)


def draw_rates(figure: Figure, results: Results) -> None:
    """Final loss against base rate, one line per schedule."""
    axes = figure.subplots(1, len(RATE_TASKS), squeeze=False)[0]
    for axis, (task, title) in zip(axes, RATE_TASKS, strict=True):
        lowest = []
        for i, name in enumerate(SHAPES):
            mean = _mean_curve(results, f"{task}/{name}", "loss_by_rate")
            if mean is not None:
                axis.plot(*mean, marker="o", markersize=3, color=f"C{i}", label=name)
                lowest.append(float(mean[1].min()))
        axis.set_xscale("log")
        axis.set_title(title)
        axis.set_xlabel("base learning rate")
        if lowest and max(lowest) > min(lowest):
            # Diverging rates would squeeze the part that decides into a line.
            low, high = min(lowest), max(lowest)
            axis.set_ylim(low - 0.1 * (high - low), high + 1.5 * (high - low))
    axes[0].set_ylabel("final loss (mean of seeds)")
    # The first task has every schedule in every profile.
    drawn = next((axis for axis in axes if axis.lines), None)
    if drawn is not None:
        drawn.legend(fontsize="small")


def rates_table(results: Results) -> Table:
    """Mean final loss per schedule and rate."""
    rows: list[list[str | float]] = []
    for task, title in RATE_TASKS:
        for name in SHAPES:
            mean = _mean_curve(results, f"{task}/{name}", "loss_by_rate")
            if mean is not None:
                rows += [
                    [title, name, float(f"{x:.4g}"), round(float(y), 4)] for x, y in zip(*mean, strict=True)
                ]
    return Table(["task", "schedule", "base rate", "final loss"], rows)


FIGURES = (
    StudyFigure(
        "refined-schedule",
        "Gradient norms and the schedule they give",
        "Above, the gradient norms of linear-decay runs in three tasks; below, the refined schedules computed"
        " from them beside the straight line of linear decay.",
        draw_refined,
        refined_table,
    ),
    StudyFigure(
        "loss-by-rate",
        "Every schedule over its whole grid of rates",
        "Final loss against base learning rate, one line per schedule; each schedule is judged at the rate"
        " that tuning seeds chose.",
        draw_rates,
        rates_table,
    ),
)
