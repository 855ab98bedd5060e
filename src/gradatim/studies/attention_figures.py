"""The figures of study 22: alignment along training, width, spectra, and the path in the plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from gradatim.bench import Curve, Results, Table, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS = (2, 3, 4, 5, 7, 10, 15, 20)
NORM_COLORS = (("frobenius", "C0"), ("nuclear", "C1"))


def draw_alignment(figure: Figure, results: Results) -> None:
    """Alignment with both SVMs over steps, W on the left and K, Q on the right."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, arm, title in zip(axes, ("bias/w", "bias/kq"), ("W trained", "K and Q trained"), strict=True):
        for norm, color in NORM_COLORS:
            curves = list(results.curves(arm, norm).values())
            if curves:
                y = np.array([c.y for c in curves])
                axis.plot(curves[0].x, y.mean(0), color=color, label=f"{norm} SVM")
                band = np.quantile(y, (0.1, 0.9), axis=0)
                axis.fill_between(curves[0].x, *band, color=color, alpha=0.2, lw=0)
        axis.set(xscale="log", title=title, xlabel="step", ylim=(-0.05, 1.05))
        _legend(axis, "lower right")
    axes[0].set_ylabel("alignment")


def table_alignment(results: Results) -> Table:
    """Mean alignment by arm, norm and step."""
    rows: list[tuple[str | float, ...]] = []
    for arm in ("bias/w", "bias/kq"):
        for norm, _ in NORM_COLORS:
            curves = list(results.curves(arm, norm).values())
            if curves:
                means = np.mean([c.y for c in curves], axis=0)
                rows += [(arm, norm, s, float(m)) for s, m in zip(curves[0].x, means, strict=True)]
    return Table(("arm", "SVM", "step", "mean alignment"), rows)


def _plane_curve(results: Results, name: str) -> Curve | None:
    """A curve of the first problem that has an SVM to compare with."""
    separable = results.metric("plane/w", "separable")
    shown = next((seed for seed, yes in separable.items() if yes), None)
    return None if shown is None else results.curves("plane/w", name).get(shown)


def draw_plane(figure: Figure, results: Results) -> None:
    """Per sequence: the tokens, the path of W z / ||W||, and the direction the SVM names."""
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for k, axis in enumerate(axes):
        for name, marker, color, label in (
            ("tokens", "o", "0.6", "other tokens"),
            ("selected", "o", "C1", "selected token"),
        ):
            curve = _plane_curve(results, f"{name}-{k}")
            if curve:
                axis.plot(curve.x, curve.y, marker, color=color, label=label, ls="")
        path = _plane_curve(results, f"path-{k}")
        if path:
            axis.plot(path.x, path.y, color="C0", label="W z over training")
            axis.plot(path.x[-1:], path.y[-1:], "s", color="C0", ms=4)
        end = _plane_curve(results, f"svm-{k}")
        if end:
            axis.plot([0, 1.5 * end.x[0]], [0, 1.5 * end.y[0]], "--", color="C2", label="SVM direction")
        axis.axhline(0, color="0.85", lw=0.5, zorder=0)
        axis.axvline(0, color="0.85", lw=0.5, zorder=0)
        axis.set(title=f"sequence {k}", xlabel="first coordinate", aspect="equal")
    axes[0].set_ylabel("second coordinate")
    _legend(axes[0], "best")


def table_plane(results: Results) -> Table:
    """Start and end of the paths, and the SVM's direction."""
    rows: list[tuple[str | float, ...]] = []
    for k in (0, 1):
        path = _plane_curve(results, f"path-{k}")
        end = _plane_curve(results, f"svm-{k}")
        if path:
            rows.append((k, "first step", path.x[0], path.y[0]))
            rows.append((k, "last step", path.x[-1], path.y[-1]))
        if end:
            rows.append((k, "SVM", end.x[0], end.y[0]))
    return Table(("sequence", "W z / ||W||", "first coordinate", "second coordinate"), rows)


def draw_width(figure: Figure, results: Results) -> None:
    """Shares of problems over width."""
    axis = figure.subplots()
    for color, metric, label in (
        ("C0", "feasible", "SVM of the best tokens feasible"),
        ("C1", "global", "best tokens selected"),
        ("C2", "saturated", "attention saturated"),
    ):
        known = [(d, _mean(results.metric(f"width/d{d}", metric))) for d in WIDTHS]
        shown = [(d, m) for d, m in known if isinstance(m, float)]
        if shown:
            axis.plot([d for d, _ in shown], [m for _, m in shown], "o-", color=color, label=label)
    first = {d: _mean(results.metric(f"width/d{d}-first-step", "global")) for d in (2, 20)}
    marks = [(d, m) for d, m in first.items() if isinstance(m, float)]
    if marks:
        axis.plot([d for d, _ in marks], [m for _, m in marks], "x--", color="C1", label="after one step")
    axis.axvline(5, color="0.6", lw=1, ls=":")
    axis.set(xlabel="width d (dotted: max(T - 1, n))", ylabel="share of problems", ylim=(0, 1.05))
    _legend(axis, "lower right")


def table_width(results: Results) -> Table:
    """Shares by width."""
    names = ("feasible", "global", "saturated", "alignment")
    rows = [
        (d, *(_mean(results.metric(f"width/d{d}", name)) for name in names))
        for d in WIDTHS
        if f"width/d{d}" in results.outcomes
    ]
    return Table(("d", "SVM feasible", "best tokens", "saturated", "alignment where best"), rows)


def draw_spectra(figure: Figure, results: Results) -> None:
    """Singular values of both solutions, and of a loosely solved one, on a logarithmic axis."""
    axis = figure.subplots()
    for arm, color, label in (
        ("rank/frobenius", "C0", "Frobenius"),
        ("rank/nuclear", "C1", "nuclear"),
        ("rank/nuclear-loose", "C2", "nuclear, loose solve"),
    ):
        for i, curve in enumerate(results.curves(arm, "spectrum").values()):
            shown = np.maximum(curve.y, 1e-14)
            axis.plot(curve.x, shown, color=color, alpha=0.35, lw=1, label=label if i == 0 else None)
    axis.axhline(1e-4, color="0.5", lw=1, ls=":")
    axis.set(yscale="log", xlabel="index", ylabel="singular value / largest")
    _legend(axis, "lower left")


def table_spectra(results: Results) -> Table:
    """Mean ranks."""
    rows = []
    for arm in ("rank/frobenius", "rank/nuclear", "rank/nuclear-loose"):
        if arm in results.outcomes:
            rank = _mean(results.metric(arm, "rank"))
            rows.append((arm, rank, _mean(results.metric(arm, "entropy_rank"))))
    return Table(("solution", "mean rank", "mean entropy rank"), rows)


def _mean(values: Mapping[int, float]) -> float | str:
    mean = estimate(list(values.values())).mean
    return "none" if mean is None else float(mean)


def _legend(axis: Axes, where: Literal["lower right", "lower left", "best"]) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles, labels, loc=where, fontsize="small")
