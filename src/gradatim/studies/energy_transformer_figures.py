"""The figures of study 01 on text: scaling curves, thinking, a descent on the simplex."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradatim.bench import Curve, Results, StudyFigure, Table
from gradatim.bench.scaling_law import PowerLaw, scaling_law

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODELS = (
    ("text/transformer", "Transformer++", "C1"),
    ("text/transformer-compute", "Transformer++, equal compute", "C2"),
    ("text/s1", "energy, S1", "C0"),
    ("text/s2", "energy, S2", "C3"),
)
FAMILIES = (("transformer", "Transformer++", "C1"), ("s1", "energy, S1", "C0"))
WIDTHS = (24, 48, 96)
SETS = (
    ("text", "test part of the text", "C0"),
    ("dyck", "brackets (Dyck)", "C1"),
    ("arithmetic", "sums", "C2"),
    ("python", "program source", "C3"),
)
THINKER = "text/s2"
AXES = ("data", "parameters", "compute")


def arm_of(family: str, width: int) -> str:
    """The arm of a family at a width; the middle one is the arm of the other claims."""
    return f"text/{family}" if width == WIDTHS[1] else f"size/{family}-w{width}"


def scaling_points(
    results: Results, family: str, axis: str
) -> dict[int, tuple[Sequence[float], Sequence[float]]]:
    """x and perplexity by seed: along a run ("data"), at its end by size ("parameters"), best by FLOPs.

    For "compute", readings of all sizes along their runs are pooled and those kept that no reading with fewer
    FLOPs undercuts. Seeds with fewer than two points drop out.
    """
    if axis == "data":
        found = results.curves(arm_of(family, WIDTHS[1]), "scaling")
        return {seed: (curve.x, curve.y) for seed, curve in found.items() if len(curve.x) > 1}
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for width in WIDTHS:
        arm = arm_of(family, width)
        sizes, flops = results.metric(arm, "parameters"), results.metric(arm, "train_gflops")
        for seed, curve in results.curves(arm, "scaling").items():
            if axis == "parameters":
                points = [(sizes[seed], curve.y[-1])]
            else:
                points = [(flops[seed] * x / curve.x[-1], y) for x, y in zip(curve.x, curve.y, strict=True)]
            by_seed.setdefault(seed, []).extend(points)
    kept = {
        seed: _frontier(points) if axis == "compute" else sorted(points) for seed, points in by_seed.items()
    }
    return {s: ([x for x, _ in p], [y for _, y in p]) for s, p in kept.items() if len({x for x, _ in p}) > 1}


def law(results: Results, family: str, axis: str) -> PowerLaw | None:
    """The fitted exponent with its interval, or None without points."""
    points = scaling_points(results, family, axis)
    return scaling_law(points) if points else None


def draw_scaling(figure: Figure, results: Results) -> None:
    """Perplexity against data, parameters and compute (what was varied), with fitted power laws."""
    from matplotlib.ticker import NullFormatter

    names = {"data": "characters seen", "parameters": "parameters", "compute": "training GFLOPs"}
    kinds = [k for k in AXES if any(law(results, family, k) for family, _, _ in FAMILIES)] or AXES[:1]
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axis, kind in zip(axes, kinds, strict=True):
        for family, label, color in FAMILIES:
            points = scaling_points(results, family, kind)
            found = law(results, family, kind)
            if found is None:
                continue
            for x, y in points.values():
                axis.plot(x, y, "o", ms=3, alpha=0.6, color=color)
            ends = [min(x[0] for x, _ in points.values()), max(x[-1] for x, _ in points.values())]
            text = f"{label}: {found.exponent:.2f}"
            axis.plot(ends, [found(x) for x in ends], color=color, label=text)
        axis.set(xlabel=names[kind], xscale="log", yscale="log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        _legend(axis)
    axes[0].set_ylabel("perplexity of the next character")


def table_scaling(results: Results) -> Table:
    """Exponents with intervals."""
    rows: list[tuple[str | float, ...]] = []
    for kind in AXES:
        for family, label, _ in FAMILIES:
            found = law(results, family, kind)
            if found is not None:
                low, high = ("none" if b is None else b for b in (found.low, found.high))
                rows.append((kind, label, found.exponent, low, high))
    return Table(("axis", "model", "exponent of perplexity", "95% low", "95% high"), rows)


def draw_levels(figure: Figure, results: Results) -> None:
    """Perplexity along training, by model."""
    axis = figure.subplots()
    for arm, label, color in MODELS:
        curve = _mean(results.curves(arm, "scaling"))
        if curve is not None:
            axis.plot(curve[0], curve[1], "o-", ms=3, color=color, label=label)
    axis.set(xlabel="characters seen", ylabel="perplexity of the next character", xscale="log", yscale="log")
    _legend(axis)


def table_levels(results: Results) -> Table:
    """Perplexity at the end, with cost, on the text and on the other sets."""
    rows: list[tuple[str | float, ...]] = []
    for arm, label, _ in MODELS:
        if arm not in results.outcomes:
            continue
        first = [_mean_of(results, arm, m) for m in ("updates", "parameters", "train_gflops", "ppl")]
        others = [_mean_of(results, arm, f"{name}_loss") for name, _, _ in SETS[1:]]
        rows.append((label, *first, *(math.exp(v) if isinstance(v, float) else v for v in others)))
    header = ("model", "updates", "parameters", "GFLOPs", "text", *(label for _, label, _ in SETS[1:]))
    return Table(header, rows)


def draw_thinking(figure: Figure, results: Results) -> None:
    """Perplexity by steps, and by candidates, over that of the trained amount."""
    left, right = figure.subplots(1, 2, sharey=True)
    for name, label, color in SETS:
        steps = _mean(results.curves(THINKER, f"thinking/{name}"))
        best = _mean(results.curves(THINKER, f"verifying/{name}"))
        average = _mean(results.curves(THINKER, f"averaging/{name}"))
        if steps is not None and best is not None:
            base = best[1][0]
            shown = [(x, y / base) for x, y in zip(*steps, strict=True) if x > 1]
            left.plot([x for x, _ in shown], [y for _, y in shown], "o-", ms=3, color=color, label=label)
            right.plot(best[0], [y / base for y in best[1]], "o-", ms=3, color=color)
        if average is not None:
            right.plot(average[0], [y / average[1][0] for y in average[1]], ":", color=color)
    left.axhline(1, color="C7", lw=0.8)
    right.axhline(1, color="C7", lw=0.8)
    left.set(xlabel="steps", ylabel="perplexity / that of 3 steps, one start")
    right.set(xlabel="candidates", title="best by energy (solid), averaged (dotted)")
    _legend(left)


def table_thinking(results: Results) -> Table:
    """Mean perplexity by set and amount of thinking."""
    rows: list[tuple[str | float, ...]] = []
    for name, label, _ in SETS:
        for kind, what in (
            ("thinking", "steps"),
            ("verifying", "candidates, lowest energy"),
            ("averaging", "candidates, averaged"),
            ("oracle", "candidates, lowest loss"),
        ):
            found = _mean(results.curves(THINKER, f"{kind}/{name}"))
            if found is not None:
                rows += [(label, what, x, y) for x, y in zip(*found, strict=True)]
    return Table(("text", "what", "number", "perplexity"), rows)


def draw_descent(figure: Figure, results: Results) -> None:
    """Probabilities of five characters and the energy along the steps, first seed, S2."""
    left, right = figure.subplots(1, 2)
    outcome = next(iter(results.outcomes.get(THINKER, {}).values()), None)
    for name, curve in sorted((outcome.curves if outcome else {}).items()):
        if name == "figure/descent/energy":
            right.plot(curve.x, curve.y, "o-", ms=3, color="C0")
        elif name.startswith("figure/descent/"):
            left.plot(curve.x, curve.y, "o-", ms=3, label=name.removeprefix("figure/descent/"))
    left.set(xlabel="steps", ylabel="probability", title="one place of the text")
    right.set(xlabel="steps", ylabel="mean energy", title="the whole test part")
    _legend(left)


def table_descent(results: Results) -> Table:
    """The same numbers."""
    rows: list[tuple[str | float, ...]] = []
    outcome = next(iter(results.outcomes.get(THINKER, {}).values()), None)
    for name, curve in sorted((outcome.curves if outcome else {}).items()):
        if name.startswith("figure/descent/"):
            rows += [
                (name.removeprefix("figure/descent/"), x, y) for x, y in zip(curve.x, curve.y, strict=True)
            ]
    return Table(("character, or energy", "steps", "value"), rows)


def _frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return kept


def _mean(curves: Mapping[int, Curve]) -> tuple[list[float], list[float]] | None:
    lines = list(curves.values())
    if not lines:
        return None
    return list(lines[0].x), np.mean([line.y for line in lines], axis=0).tolist()


def _mean_of(results: Results, arm: str, metric: str) -> float | str:
    values = list(results.metric(arm, metric).values())
    return float(np.mean(values)) if values else "none"


def _legend(axis: Axes) -> None:
    handles, _ = axis.get_legend_handles_labels()
    if handles:
        axis.legend(fontsize="small")


TEXT_FIGURES = (
    StudyFigure(
        "descent",
        "A prediction on its way down",
        "Left: probabilities of five characters over the steps of one prediction, from noise to one"
        " favourite. Right: the mean energy over the steps, falling.",
        draw_descent,
        table_descent,
    ),
    StudyFigure(
        "thinking",
        "More steps, and the best of several tries",
        "Perplexity relative to three steps from one start, over steps (left) and over candidates (right),"
        " for the text and three texts of other kinds.",
        draw_thinking,
        table_thinking,
    ),
    StudyFigure(
        "scaling",
        "Scaling: data, parameters, compute",
        "Perplexity on logarithmic axes with fitted power laws for the energy transformer and"
        " Transformer++. In the quick profile one size is trained: parameters are missing, compute follows"
        " data.",
        draw_scaling,
        table_scaling,
    ),
    StudyFigure(
        "levels",
        "The same curves at equal updates and at equal compute",
        "Perplexity along training: two energy transformers, Transformer++ with as many updates, and"
        " Transformer++ with as much compute, which ends lowest.",
        draw_levels,
        table_levels,
    ),
)
