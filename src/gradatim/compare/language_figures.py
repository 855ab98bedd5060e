"""How the arms of `compare language` learn: loss over updates and over compute, which tell two stories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradatim.bench.study import Results, StudyFigure, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPUTE, STEPS = "at equal compute", "at equal steps"
PANELS = ((f"loss {STEPS}", "updates"), (f"loss over TFLOPs {COMPUTE}", "TFLOPs"))


def draw_learning(figure: Figure, results: Results) -> None:
    """Training loss over updates at equal steps, over TFLOPs at equal compute; means over seeds."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (name, label) in zip(axes, PANELS, strict=True):
        for i, arm in enumerate(results.outcomes):
            if line := _mean(results, arm, name):
                axis.plot(*line, color=f"C{i % 8}", label=arm)
        axis.set_xlabel(label)
    axes[0].set(ylabel="training loss (nats per token)", title="equal steps")
    axes[1].set_title("equal compute")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")


def table_learning(results: Results) -> Table:
    """Mean training loss at a quarter, half and the end of both runs."""
    rows: list[list[str | float]] = []
    for arm in results.outcomes:
        for name, label in PANELS:
            if line := _mean(results, arm, name):
                x, y = line
                rows += [[arm, label, x[at], y[at]] for at in sorted({len(x) // 4, len(x) // 2, len(x) - 1})]
    return Table(("arm", "over", "where", "training loss"), rows)


def _mean(results: Results, arm: str, name: str) -> tuple[list[float], list[float]] | None:
    curves = list(results.curves(arm, name).values())
    if not curves:
        return None
    return list(curves[0].x), np.mean([curve.y for curve in curves], axis=0).tolist()


LEARNING = StudyFigure(
    name="learning",
    title="Learning at equal steps and at equal compute",
    alt="Training loss, one line per arm: over updates on the left, over TFLOPs on the right.",
    draw=draw_learning,
    table=table_learning,
)
