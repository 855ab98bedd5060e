"""The figures of study 04."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradatim.bench import Curve, Results, Table, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gradatim.probes.nested_levels import NestedLevels

CONTINUAL = (
    ("digits/one", "one speed", "C1", "-"),
    ("digits/cms", "levels 1, 8, 64, mean", "C0", "-"),
    ("digits/rate-matched", "one speed, rates matched", "C2", "--"),
    ("digits/cms-sum", "levels 1, 8, 64, sum", "C4", "-"),
    ("digits/cms-reversed", "levels 64, 8, 1, sum", "C4", ":"),
    ("digits/nested", "nested levels", "C3", "-"),
    ("digits/independent", "levels side by side", "C5", "-"),
    ("digits/slow", "one speed, a tenth of the rate", "C2", ":"),
    ("digits/ewc", "elastic weight consolidation", "C6", "-"),
    ("digits/replay", "replay", "C7", "-"),
)
OPTIMIZERS = (
    ("m3/adamw", "AdamW", "C1", "-"),
    ("m3/muon", "Muon", "C2", "-"),
    ("m3/muon-longer", "Muon, 1.3 × steps", "C2", ":"),
    ("m3/m3", "M3", "C0", "-"),
    ("m3/no-slow", "M3, no slow memory", "C0", ":"),
    ("m3/long-fast", "M3, one memory, β = 0.99", "C0", "--"),
    ("m3/no-second-moment", "M3, no V", "C4", "-"),
    ("m3/means-undivided", "M3, means, as printed", "C5", "-"),
    ("m3/literal", "M3 as printed", "C3", "-"),
    ("m3/frozen", "output layer alone", "C3", ":"),
    ("m3/sgd", "momentum SGD", "C6", "-"),
    ("m3/delta", "delta momentum", "C7", "-"),
    ("m3/deep", "deep momentum", "C7", ":"),
)
RULES = (
    ("self-modifying", "self-modifying", "C0", "-"),
    ("self-modifying, no DGD", "the same, plain gradient", "C0", ":"),
    ("self-modifying, literal v", "the same, values as printed", "C3", "-"),
    ("delta (0,1)", "delta rule, rates below 1", "C1", "-"),
    ("delta (0,2)", "delta rule, rates up to 2", "C2", "--"),
    ("linear attention", "linear attention", "C4", "-"),
    ("LSTM", "LSTM", "C5", "-"),
    ("Transformer", "Transformer", "C6", "-"),
)
ORTHOGONAL = (
    ("orthogonal/gd", "gradient descent", "C2", "--"),
    ("orthogonal/momentum", "momentum", "C1", "-"),
    ("orthogonal/delta", "delta momentum", "C0", "-"),
    ("orthogonal/deep", "deep momentum", "C4", "-"),
    ("orthogonal/dgd", "DGD", "C3", "-"),
    ("orthogonal/dgd-doubled", "DGD, doubled targets", "C3", ":"),
)
VALLEY = (
    ("valley/momentum", "momentum", "C1"),
    ("valley/delta", "delta momentum", "C0"),
    ("valley/raw", "delta momentum, raw keys", "C3"),
)


def draw_continual(figure: Figure, results: Results) -> None:
    """Accuracy on the tasks so far, over tasks learned; what the first task keeps."""
    left, right = figure.subplots(1, 2, sharey=True)
    for axis, name in ((left, "seen"), (right, "first")):
        for arm, label, color, style in CONTINUAL:
            mean = _mean_curve(results, arm, name)
            if mean:
                axis.plot(mean.x, mean.y, style, color=color, label=label)
        axis.set(xlabel="tasks learned", xticks=range(1, 6), ylim=(0, 1))
    left.set(ylabel="accuracy", title="all tasks so far")
    right.set(title="the first task")
    _legend(left)


def table_continual(results: Results) -> Table:
    """Means over seeds after the last task."""
    metrics = ("accuracy", "forgetting", "plasticity", "first_task")
    rows = [
        (label, *_means(results, arm, metrics)) for arm, label, *_ in CONTINUAL if arm in results.outcomes
    ]
    return Table(
        ("network", "accuracy over all tasks", "forgetting", "accuracy when learned", "first task"), rows
    )


def draw_optimizers(figure: Figure, results: Results) -> None:
    """Training loss over steps; test loss at the end."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    shown = [row for row in OPTIMIZERS if row[0] in results.outcomes]
    for arm, label, color, style in shown:
        mean = _mean_curve(results, arm, "training")
        if mean:
            left.plot(mean.x, mean.y, style, color=color, label=label)
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    _legend(left)
    for k, (arm, _, color, _) in enumerate(shown[::-1]):
        found = estimate(list(results.metric(arm, "test_loss").values()))
        if found.mean is not None:
            right.plot([found.mean], [k], "o", color=color)
            if found.low is not None and found.high is not None:
                right.plot([max(found.low, 1e-3), found.high], [k, k], color=color)
    right.set_yticks(range(len(shown)), [label for _, label, *_ in shown[::-1]], fontsize="small")
    right.set(xlabel="test loss", xscale="log")


def table_optimizers(results: Results) -> Table:
    """Means over seeds at the end of training."""
    metrics = ("train_loss", "test_loss", "accuracy", "diverged")
    rows = [
        (label, *_means(results, arm, metrics)) for arm, label, *_ in OPTIMIZERS if arm in results.outcomes
    ]
    return Table(("optimizer", "training loss", "test loss", "accuracy", "share diverged"), rows)


def draw_languages(figure: Figure, results: Results) -> None:
    """Accuracy over string length on parity."""
    axis = figure.subplots()
    for rule, label, color, style in RULES:
        mean = _mean_curve(results, f"parity/{rule}", "accuracy")
        if mean:
            axis.plot(mean.x, mean.y, style, marker="o", ms=4, color=color, label=label)
    axis.axhline(0.5, color="0.6", lw=1, ls=":")
    axis.set(
        xlabel="symbols in the string", ylabel="accuracy, last 8 positions", xscale="log", ylim=(0.4, 1.03)
    )
    ticks = sorted({x for o in results.outcomes.get("parity/self-modifying", {}).values()
                    for x in (o.curves["accuracy"].x if "accuracy" in o.curves else ())})  # fmt: skip
    if ticks:
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
    _legend(axis)


def table_languages(results: Results) -> Table:
    """Per language and rule: share diverged, and whole strings right in each range of lengths."""
    rows: list[tuple[str | float, ...]] = []
    found = [a for a in results.outcomes if a.partition("/")[2] in {rule for rule, *_ in RULES}]
    exact = sorted(
        {m for a in found for o in results.outcomes[a].values() for m in o.metrics if m.startswith("exact")},
        key=lambda m: int(m.removeprefix("exact").partition("-")[0]),
    )
    for arm in found:
        language, _, rule = arm.partition("/")
        rows.append((language, rule, *_means(results, arm, ("diverged", *exact))))
    heads = (f"strings right, length {m.removeprefix('exact')}" for m in exact)
    return Table(("language", "rule", "share diverged", *heads), rows)


def draw_stream(figure: Figure, results: Results) -> None:
    """Squared error over a noiseless stream."""
    axis = figure.subplots()
    for name, label, color, style in (
        ("gd", "gradient descent", "C1", "-"),
        ("dgd", "DGD as printed", "C0", "-"),
        ("doubled", "DGD, doubled targets", "C2", "--"),
    ):
        mean = _mean_curve(results, "identity", name)
        if mean:
            axis.plot(mean.x, np.maximum(mean.y, 1e-18), style, color=color, label=label)
    axis.set(xlabel="sample", ylabel="squared error", yscale="log")
    _legend(axis)


def table_stream(results: Results) -> Table:
    """Where each rule ends, and how exactly the identities hold."""
    rows: list[tuple[str | float, ...]] = []
    if "identity" in results.outcomes:
        for metric, text in (
            ("slope_dgd", "DGD as printed: share of the truth"),
            ("slope_gd", "gradient descent: share of the truth"),
            ("slope_doubled", "DGD, doubled targets: share of the truth"),
            ("argmin_error", "largest gradient of DGD's own objective at its step"),
            ("doubled_error", "largest difference of DGD with doubled targets from GD of twice the rate"),
        ):
            rows.append((text, *_means(results, "identity", (metric,))))
    return Table(("what", "mean over seeds"), rows)


def draw_toys(figure: Figure, results: Results) -> None:
    """Orthogonal and overlapping tasks; soft and stiff valleys."""
    axes = figure.subplots(1, 4)
    for axis, name, title in ((axes[0], "pure", "orthogonal tasks"), (axes[1], "mixed", "overlapping tasks")):
        for arm, label, color, style in ORTHOGONAL:
            mean = _mean_curve(results, arm, name)
            if mean:
                axis.plot(mean.x, np.maximum(mean.y, 1e-12), style, color=color, label=label)
        axis.set(xlabel="tasks learned", yscale="log", title=title)
    axes[0].set_ylabel("loss on earlier tasks")
    _legend(axes[0])
    for axis, name, title in ((axes[2], "k1", "valley, κ = 1"), (axes[3], "k10", "valley, κ = 10")):
        for arm, label, color in VALLEY:
            for k, curve in enumerate(results.curves(arm, name).values()):
                values = np.clip(curve.y, 1e-30, 1e6)
                axis.plot(curve.x, values, color=color, lw=1, alpha=0.6, label=label if k == 0 else None)
        axis.set(xlabel="step", yscale="log", title=title)
    _legend(axes[2])


def table_toys(results: Results) -> Table:
    """Mean decades of loss and the chosen rates."""
    rows: list[tuple[str | float, ...]] = []
    for arm, label, *_ in ORTHOGONAL:
        if arm in results.outcomes:
            rows += [
                (label, f"{name} tasks", *_means(results, arm, (f"log_earlier_{key}", f"lr_{key}")))
                for name, key in (("orthogonal", "pure"), ("overlapping", "mixed"))
            ]
    for arm, label, _ in VALLEY:
        if arm in results.outcomes:
            rows += [
                (label, f"valley, κ = {k}", *_means(results, arm, (f"log_k{k}", f"lr_k{k}"))) for k in (1, 10)
            ]
    return Table(("rule", "problem", "mean log10 of the loss", "rate"), rows)


def levels_shown() -> NestedLevels:
    """The continuum memory of part (c), trained by M3: what `probes.nested_levels` says of it."""
    from gradatim.models.continuum_memory import ContinuumMemory
    from gradatim.optim import M3, MultiFrequency
    from gradatim.probes.nested_levels import nested_levels

    memory = ContinuumMemory(64, (1, 8, 64), 64)
    optimizer = MultiFrequency(lambda groups: M3(groups, slow_period=20), memory.groups(lr=3e-3))
    return nested_levels(memory, optimizer, tokens_per_step=16)


def draw_levels(figure: Figure, results: Results) -> None:
    """The lens on the method itself: needs no results."""
    levels_shown().plot(figure)


def table_levels(results: Results) -> Table:
    """The same levels as rows."""
    from gradatim.probes.nested_levels import show_frequency

    rows = [
        (s.name, s.context_flow, s.objective, s.update_rule, show_frequency(s.frequency), s.numbers)
        for s in levels_shown().levels
    ]
    return Table(
        ("level", "context flow", "objective", "update rule", "updates per example", "numbers"), rows
    )


def _means(results: Results, arm: str, metrics: Iterable[str]) -> tuple[float | str, ...]:
    return tuple(_mean(results.metric(arm, metric)) for metric in metrics)


def _mean(values: Mapping[int, float]) -> float | str:
    mean = estimate(list(values.values())).mean
    return "none" if mean is None else float(mean)


def _mean_curve(results: Results, arm: str, name: str) -> Curve | None:
    """Mean over seeds; a curve that ends early (a run that diverged) cuts none of the others short."""
    curves: Sequence[Curve] = list(results.curves(arm, name).values())
    if not curves:
        return None
    longest = max(curves, key=lambda c: len(c.x))
    padded = [[*c.y, *[np.nan] * (len(longest.x) - len(c.y))] for c in curves]
    return Curve(longest.x, np.nanmean(padded, axis=0).tolist())


def _legend(axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles, labels, fontsize="small")
