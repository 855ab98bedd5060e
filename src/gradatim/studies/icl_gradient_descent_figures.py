"""The figures of study 11: losses beside rivals, weights in between, shifts, repetition, copying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from gradatim.bench import Curve, Results, Table, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYERS = (
    ("layer/one", "1 layer", ("gd1",)),
    ("layer/looped", "2 looped layers", ("gd", "gd_own", "pp", "pp_own")),
    ("layer/untied", "5 layers", ("gd", "gd_own", "pp", "pp_own")),
)
NAMES = {
    "gd1": "GD, one step",
    "gd": "GD, one rate",
    "gd_own": "GD, a rate per step",
    "pp": "GD++, one (rate, γ)",
    "pp_own": "GD++, its own per step",
}
TRAINED = ("layer/one", "layer/skewed", "layer/looped", "layer/untied", "tokens/interleaved")
COLORS = {"gd1": "C1", "gd": "C1", "gd_own": "C2", "pp": "C0", "pp_own": "C4"}
KINDS = {
    "x_scale": "inputs scaled by",
    "w_scale": "weights scaled by",
    "family": "other families, norm",
    "distractors": "labels replaced",
}
LEARNERS = (
    ("model", "C0", "trained layer"),
    ("gd1", "C1", "one step of GD"),
    ("pp", "C2", "two steps of GD++"),
)


def draw_losses(figure: Figure, results: Results) -> None:
    """Loss of every depth beside its rivals at their best rates."""
    axes = figure.subplots(1, len(LAYERS), sharey=True)
    for axis, (arm, title, rivals) in zip(axes, LAYERS, strict=True):
        rows = [("loss", "trained", "C3")]
        rows += [(f"loss_{r}", NAMES[r], COLORS[r]) for r in rivals]
        known = [(label, _mean(results.metric(arm, metric)), color) for metric, label, color in rows]
        shown = [(label, value, color) for label, value, color in known if isinstance(value, float)]
        for k, (_, value, color) in enumerate(shown):
            axis.bar(k, value, color=color, width=0.7)
            axis.annotate(f"{value:.3f}", (k, value), ha="center", va="bottom", fontsize="x-small")
        axis.set_xticks(range(len(shown)), [s[0] for s in shown], rotation=60, ha="right", fontsize="small")
        axis.set(title=title)
    axes[0].set_ylabel("loss")


def table_losses(results: Results) -> Table:
    """Mean loss and cosine by rival."""
    rows: list[tuple[str | float, ...]] = []
    for arm, title, rivals in LAYERS:
        if arm not in results.outcomes:
            continue
        rows.append((title, "trained", _mean(results.metric(arm, "loss")), 1.0))
        for rival in rivals:
            loss = _mean(results.metric(arm, f"loss_{rival}"))
            rows.append((title, NAMES[rival], loss, _mean(results.metric(arm, f"cos_{rival}"))))
    return Table(("model", "learner", "loss", "cosine with the trained model"), rows)


def draw_between(figure: Figure, results: Results) -> None:
    """Losses of the models between a trained layer and the construction."""
    axis = figure.subplots()
    for arm, color, label in (
        ("layer/one", "C0", "1 layer, towards GD"),
        ("layer/looped", "C1", "2 looped layers, towards GD++"),
    ):
        for k, curve in enumerate(results.curves(arm, "between").values()):
            axis.plot(curve.x, curve.y, color=color, alpha=0.6, label=label if k == 0 else None)
    axis.set(xlabel="share of the construction", ylabel="loss", ylim=(0, None))
    _legend(axis)


def table_between(results: Results) -> Table:
    """Mean losses along the line."""
    rows: list[tuple[str | float, ...]] = []
    for arm in ("layer/one", "layer/looped"):
        mean = _mean_curve(results, arm, "between")
        if mean:
            rows += [(arm, share, loss) for share, loss in zip(mean.x, mean.y, strict=True)]
    return Table(("model", "share of the construction", "mean loss"), rows)


def draw_shifts(figure: Figure, results: Results) -> None:
    """Median losses of the trained layer, one step of GD and two of GD++ as the task shifts."""
    axes = figure.subplots(1, len(KINDS))
    for axis, (kind, title) in zip(axes, KINDS.items(), strict=True):
        for name, color, label in LEARNERS:
            mean = _mean_curve(results, "layer/one", f"{kind}/{name}/median")
            if mean:
                style = "o-" if name == "model" else "--"
                axis.plot(mean.x, mean.y, style, color=color, ms=3, label=label)
        axis.set(xlabel=title, yscale="log")
    axes[0].set_ylabel("median loss")
    _legend(axes[0])


def table_shifts(results: Results) -> Table:
    """Mean and median losses by shift."""
    rows: list[tuple[str | float, ...]] = []
    for kind in KINDS:
        for name, _, label in LEARNERS:
            mean = _mean_curve(results, "layer/one", f"{kind}/{name}")
            median = _mean_curve(results, "layer/one", f"{kind}/{name}/median")
            if mean and median:
                rows += [(kind, label, *row) for row in zip(mean.x, mean.y, median.y, strict=True)]
    return Table(("shift", "learner", "value", "mean loss", "median loss"), rows)


def draw_repetition(figure: Figure, results: Results) -> None:
    """Loss over applications of the one layer, damped and not."""
    axis = figure.subplots()
    for damping, style in (("damped", "-"), ("plain", ":")):
        for name, color, label in LEARNERS[:2]:
            mean = _mean_curve(results, "layer/one", f"{damping}/{name}")
            if mean:
                text = f"{label}, {'damping 0.75' if damping == 'damped' else 'undamped'}"
                axis.plot(mean.x, mean.y, style, color=color, label=text)
    axis.set(xlabel="applications of the layer", ylabel="loss", yscale="log", ylim=(None, 10))
    _legend(axis)


def table_repetition(results: Results) -> Table:
    """Losses after some numbers of applications."""
    rows: list[tuple[str | float, ...]] = []
    for damping in ("damped", "plain"):
        for name, _, label in LEARNERS[:2]:
            mean = _mean_curve(results, "layer/one", f"{damping}/{name}")
            if mean:
                rows += [(label, damping, k, mean.y[k]) for k in (0, 1, 2, 5, 10, 20, 50)]
    return Table(("learner", "damping", "applications", "mean loss"), rows)


def draw_training(figure: Figure, results: Results) -> None:
    """Left: plateaus of one head and of two. Right: copying and the loss of the interleaved model."""
    left, right = figure.subplots(1, 2)
    for arm, color, label in (
        ("plateau/one-head", "C0", "one head"),
        ("plateau/wide-head", "C2", "one head, twice as wide"),
        ("plateau/two-heads", "C1", "two heads"),
    ):
        for k, curve in enumerate(results.curves(arm, "training").values()):
            left.plot(curve.x, curve.y, color=color, alpha=0.6, lw=1, label=label if k == 0 else None)
    left.set(xlabel="step", ylabel="training loss", title="plateaus of a layer")
    _legend(left)
    for name, color, label in (("loss", "C0", "loss"), ("copying", "C3", "reads the next token")):
        axis = right if name == "loss" else right.twinx()
        for k, curve in enumerate(results.curves("tokens/interleaved", name).values()):
            axis.plot(curve.x, curve.y, color=color, alpha=0.6, lw=1, label=label if k == 0 else None)
        axis.set_ylabel(label if name == "loss" else "sensitivity, next / others")
        if name == "copying":
            axis.set_yscale("log")
            _legend(axis, "center right")
    right.set(xlabel="step", title="tokens apart: first copy, then descend")
    _legend(right, "upper right")


def table_training(results: Results) -> Table:
    """Share of training spent waiting, which seeds were late, and what the interleaved model ends with."""
    rows: list[tuple[str | float, ...]] = [
        (arm, "share of training on the plateau", _mean(results.metric(arm, "waited")))
        for arm in ("plateau/one-head", "plateau/wide-head", "plateau/two-heads")
        if arm in results.outcomes
    ]
    for arm in TRAINED:
        for seed, left_at in results.metric(arm, "left_at").items():
            late = "" if results.metric(arm, "left_plateau")[seed] else ", too late: not counted"
            rows.append((arm, f"seed {seed}: share of training before it left the plateau{late}", left_at))
    if "tokens/interleaved" in results.outcomes:
        for metric in ("loss", "loss_gd1", "loss_gd", "copying"):
            rows.append(("tokens/interleaved", metric, _mean(results.metric("tokens/interleaved", metric))))
    return Table(("arm", "what", "mean"), rows)


def draw_gamma(figure: Figure, results: Results) -> None:
    """Best gamma by number of pairs, the paper's trained layers, and ours."""
    from gradatim.studies.icl_gradient_descent_trials import PAPER_GAMMA

    axis = figure.subplots()
    found = {n: _mean(results.metric(f"filter/n{n}", "gamma")) for n in PAPER_GAMMA}
    shown = {n: g for n, g in found.items() if isinstance(g, float)}
    axis.plot(list(shown), list(shown.values()), "o-", color="C0", label="best γ of the filter, no training")
    axis.plot(
        list(PAPER_GAMMA), list(PAPER_GAMMA.values()), "x", color="C1", ms=8, label="the paper's layers"
    )
    for k, (arm, n) in enumerate((("layer/looped", 10), ("layer/looped-n25", 25), ("layer/looped-n50", 50))):
        ours = _mean(results.metric(arm, "gamma"))
        if isinstance(ours, float):
            label = "our trained layers" if k == 0 else None
            axis.plot([n], [ours], "s", color="C2", mfc="none", ms=9, label=label)
    axis.set(xlabel="pairs N", ylabel="γ", xscale="log", yscale="log")
    axis.set_xticks(list(PAPER_GAMMA), [str(n) for n in PAPER_GAMMA])
    _legend(axis)


def table_gamma(results: Results) -> Table:
    """Rates, gamma and losses by number of pairs."""
    from gradatim.studies.icl_gradient_descent_trials import PAPER_GAMMA

    names = ("lr", "gamma", "loss", "loss_gd", "one_step_lr", "one_step_loss")
    rows = [
        (n, printed, *(_mean(results.metric(f"filter/n{n}", name)) for name in names))
        for n, printed in PAPER_GAMMA.items()
        if f"filter/n{n}" in results.outcomes
    ]
    return Table(("N", "paper's γ", "η", "γ", "loss", "GD's loss", "one step: η*", "one step: L₁"), rows)


def _mean(values: Mapping[int, float]) -> float | str:
    mean = estimate(list(values.values())).mean
    return "none" if mean is None else float(mean)


def _mean_curve(results: Results, arm: str, name: str) -> Curve | None:
    curves: Sequence[Curve] = list(results.curves(arm, name).values())
    if not curves:
        return None
    return Curve(curves[0].x, np.mean([c.y for c in curves], axis=0).tolist())


def _legend(axis: Axes, where: Literal["best", "center right", "upper right"] = "best") -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles, labels, loc=where, fontsize="small")
