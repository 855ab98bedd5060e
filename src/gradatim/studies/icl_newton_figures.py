"""The figures of study 21: matched steps, errors by layer and by step, heat maps, forgetting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from gradatim.bench import Results, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARMS = (("transformer", "C0", "isotropic inputs"), ("transformer-ill", "C1", "ill-conditioned inputs"))
FAMILIES = (("newton", "Newton steps"), ("gd", "gradient steps"))


def _mean(results: Results, arm: str, name: str) -> tuple[list[float], np.ndarray] | None:
    """x and the mean over seeds of one curve."""
    curves = list(results.curves(arm, name).values())
    return (list(curves[0].x), np.mean([c.y for c in curves], axis=0)) if curves else None


def _median(results: Results, arm: str, name: str) -> tuple[list[float], np.ndarray] | None:
    curves = list(results.curves(arm, name).values())
    return (list(curves[0].x), np.median([c.y for c in curves], axis=0)) if curves else None


def draw_steps(figure: Figure, results: Results) -> None:
    """Matched steps over layers: Newton on a linear axis, gradient descent on a logarithmic one."""
    axes = figure.subplots(1, 2, sharex=True)
    for axis, (family, label) in zip(axes, FAMILIES, strict=True):
        for arm, color, title in ARMS:
            found = _median(results, arm, f"{family}/steps")
            low, high = (_median(results, arm, f"{family}/steps/{end}") for end in ("low", "high"))
            if found and low and high:
                axis.plot(*found, "o-", color=color, label=title, ms=3)
                axis.fill_between(found[0], low[1], high[1], color=color, alpha=0.2, lw=0)
        axis.set(xlabel="layer (last: the model's own answer)", ylabel=f"matched {label}")
        _legend(axis, "upper left")
    axes[1].set_yscale("log", base=2)


def table_steps(results: Results) -> Table:
    """Median matched steps and mean similarity by arm, family and layer."""
    rows: list[tuple[str | float, ...]] = []
    for arm, _, _ in ARMS:
        for family in ("newton", "gd", "gd++"):
            steps = _median(results, arm, f"{family}/steps")
            similarity = _mean(results, arm, f"{family}/similarity")
            if steps and similarity:
                each = zip(steps[0], steps[1], similarity[1], strict=True)
                rows += [(arm, family, layer, float(s), float(v)) for layer, s, v in each]
    return Table(("arm", "algorithm", "layer", "matched steps", "similarity of errors"), rows)


ERROR_PANELS = (
    ("error", "layer", "linear"),
    ("newton/error", "steps of Newton (line), GD++ (dashes)", "linear"),
    ("gd/error", "steps of gradient descent", "log"),
)


def draw_errors(figure: Figure, results: Results) -> None:
    """Log error over layers, and over the steps of each algorithm."""
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (name, label, scale) in zip(axes, ERROR_PANELS, strict=True):
        for arm, color, title in ARMS:
            found = _mean(results, arm, name)
            if found:
                axis.plot(*found, "o-", color=color, label=title, ms=3)
            other = _mean(results, arm, "gd++/error") if name == "newton/error" else None
            if other:
                axis.plot(*other, "--", color=color)
        axis.set(xlabel=label, yscale="log", ylim=(5e-3, 2))
        axis.set_xscale(scale, **({"base": 2} if scale == "log" else {}))
    axes[0].set_ylabel("error / d")
    _legend(axes[0], "lower left")


def table_errors(results: Results) -> Table:
    """Mean error by arm and layer or step."""
    rows: list[tuple[str | float, ...]] = []
    for arm, _, _ in ARMS:
        for name, axis in (("error", "layer"), ("newton/error", "Newton step"), ("gd++/error", "GD++ steps"),
                           ("gd/error", "gradient step")):  # fmt: skip
            found = _mean(results, arm, name)
            if found:
                rows += [(arm, axis, x, float(v)) for x, v in zip(*found, strict=True)]
    return Table(("arm", "axis", "at", "error / d"), rows)


def _heat(results: Results, family: str) -> tuple[list[float], np.ndarray] | None:
    rows: list[np.ndarray] = []
    steps: list[float] = []
    while (found := _mean(results, "transformer", f"{family}/heat/{len(rows)}")) is not None:
        steps = found[0]
        rows.append(found[1])
    return (steps, np.array(rows)) if rows else None


def draw_heat(figure: Figure, results: Results) -> None:
    """Similarity of errors, layers by steps, for Newton and gradient descent."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (family, label) in zip(axes, FAMILIES, strict=True):
        found = _heat(results, family)
        if found is None:
            continue
        steps, matrix = found
        image = axis.imshow(matrix, aspect="auto", origin="lower", cmap="viridis", vmin=0.5, vmax=1.0)
        axis.plot(matrix.argmax(1), range(len(matrix)), "o", mfc="none", mec="w", ms=7)
        shown = range(0, len(steps), 2)
        axis.set_xticks(list(shown), [f"{int(steps[i])}" for i in shown], fontsize=7)
        axis.set(xlabel=label)
        if family == "gd":
            figure.colorbar(image, ax=axis, label="similarity of errors")
    axes[0].set_ylabel("layer")


def table_heat(results: Results) -> Table:
    """The matrices behind the heat maps."""
    rows: list[tuple[str | float, ...]] = []
    for family, _ in FAMILIES:
        found = _heat(results, family)
        if found:
            for layer, values in enumerate(found[1]):
                rows += [(family, layer, s, float(v)) for s, v in zip(found[0], values, strict=True)]
    return Table(("algorithm", "layer", "steps", "similarity of errors"), rows)


REMEMBERING = (
    ("transformer", "forgetting", "C0", "transformer"),
    ("lstm", "forgetting", "C1", "LSTM"),
    ("lstm", "forgetting/online GD", "C2", "online gradient descent"),
)


def draw_forgetting(figure: Figure, results: Results) -> None:
    """Error on pairs already seen, by how many pairs ago."""
    axis = figure.subplots()
    for arm, name, color, label in REMEMBERING:
        found = _mean(results, arm, name)
        if found:
            axis.plot(*found, "o-", color=color, label=label, ms=3)
    axis.set(xlabel="pairs since", ylabel="error / d", ylim=(0, None))
    _legend(axis, "upper left")


def table_forgetting(results: Results) -> Table:
    """Mean error by learner and gap."""
    rows: list[tuple[str | float, ...]] = []
    for arm, name, _, label in REMEMBERING:
        found = _mean(results, arm, name)
        if found:
            rows += [(label, x, float(v)) for x, v in zip(*found, strict=True)]
    return Table(("learner", "pairs since", "error / d"), rows)


def _legend(axis: Axes, where: Literal["upper left", "lower left"]) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc=where, fontsize=8)
