"""The figures of study 02: the nearest ridge by noise, the families by pairs, depth, and probes by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradatim.bench import Curve, Results, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# (arm, sigma^2 / tau^2, label)
NOISE = (
    ("noise/0-1", 0.0, "0"),
    ("noise/0.25-1", 1 / 16, "1/16"),
    ("noise/0.5-1.5", 1 / 9, "1/9"),
    ("noise/0.5-1", 1 / 4, "1/4"),
    ("noise/0.5-0.75", 4 / 9, "4/9"),
)
FAMILIES = (
    "OLS",
    "ridge",
    "GD, k steps",
    "GD, 1 step",
    "Newton, k steps",
    "online GD",
    "k-NN",
    "averaging",
    "zero",
)
DEPTHS = (
    ("depth/1-apart", "1, apart"),
    ("depth/1", "1"),
    ("depth/1-wide", "1, wide"),
    ("depth/2", "2"),
    ("depth/4", "4"),
    ("noise/0-1", "all"),
)
DEPTH_METRICS = (
    ("tuned/GD, 1 step", "one step of GD, best rate"),
    ("tuned/ridge", "ridge, best penalty"),
    ("mspd/0", "least squares (MSPD)"),
)
PROBES = (
    ("noise/0-1", "probe/xty", "X'y / n", "C0", "-"),
    ("noise/0-1", "probe/w_ols", "w_OLS", "C1", "-"),
    ("noise/0-1", "probe/w_ols_linear", "w_OLS, linear probe", "C1", ":"),
    ("noise/0-1", "probe/w_ols_untrained", "w_OLS, untrained network", "C2", "--"),
    ("noise/0-1", "probe/w_ols_linear_untrained", "w_OLS, untrained, linear probe", "C2", ":"),
    ("fixed-w", "probe/w_ols", "w_OLS, trained with w = 1", "C3", "--"),
)


def _mean(results: Results, arm: str, name: str) -> Curve | None:
    curves = list(results.curves(arm, name).values())
    if not curves:
        return None
    y = np.mean([c.y for c in curves], axis=0)
    return Curve(curves[0].x, y.tolist(), curves[0].x_label, curves[0].y_label)


def draw_valleys(figure: Figure, results: Results) -> None:
    """MSPD to ridge over its penalty; dots at the lowest point, dotted lines at sigma^2 / tau^2."""
    axis = figure.subplots()
    for i, (arm, bayes, label) in enumerate(NOISE):
        curve = _mean(results, arm, "valley")
        if curve is None:
            continue
        axis.plot(curve.x, curve.y, color=f"C{i}", label=f"trained at {label}")
        low = int(np.argmin(curve.y))
        axis.plot(curve.x[low], curve.y[low], "o", color=f"C{i}")
        if bayes:
            axis.axvline(bayes, color=f"C{i}", ls=":", lw=1)
    axis.set(xscale="log", yscale="log", xlabel="ridge penalty", ylabel="MSPD / d")
    _legend(axis, "sigma² / tau²")


def table_valleys(results: Results) -> Table:
    """Steps, Bayes penalty, nearest penalty at half and at all steps, and the excess risk."""
    rows: list[tuple[str | float, ...]] = []
    for arm, bayes, _ in NOISE:
        found = [
            results.metric(arm, name)
            for name in ("steps", "lambda_halfway", "lambda", "excess_halfway", "excess")
        ]
        if found[0]:
            rows.append((arm, bayes, *(float(np.mean(list(values.values()))) for values in found)))
    header = ("arm", "sigma²/tau²", "steps", "nearest at half", "nearest at end", "excess at half", "excess")
    return Table(header, rows)


def draw_pairs(figure: Figure, results: Results) -> None:
    """SPD to the tuned member of each family by pairs seen, without noise, with noise, and for one layer."""
    shown = (("noise/0-1", "no noise"), ("noise/0.5-1", "sigma 0.5"), ("depth/1", "one layer, no noise"))
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (arm, title) in zip(axes, shown, strict=True):
        for i, family in enumerate(FAMILIES):
            curve = _mean(results, arm, f"spd/{family}")
            if curve is not None:
                color = f"C{i}" if i < 8 else "0.6"
                axis.plot(curve.x, curve.y, color=color, label=family, lw=2 if i < 2 else 1)
        # Least squares on as many noisy pairs as dimensions has no finite mean: it leaves the picture.
        axis.set(yscale="log", title=title, xlabel="pairs seen", ylim=(1e-3, 10))
    axes[0].set_ylabel("SPD / d")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, title="tuned", fontsize="small", loc="outside right upper")


def table_pairs(results: Results) -> Table:
    """Mean SPD to every family."""
    rows: list[tuple[str | float, ...]] = []
    for arm in ("noise/0-1", "noise/0.5-1", "depth/1"):
        for family in FAMILIES:
            values = list(results.metric(arm, f"tuned/{family}").values())
            if values:
                rows.append((arm, family, float(np.mean(values))))
    return Table(("arm", "family", "SPD / d"), rows)


def draw_depth(figure: Figure, results: Results) -> None:
    """Distance to three references by number of layers, every seed a dot."""
    axis = figure.subplots()
    present = [(arm, label) for arm, label in DEPTHS if results.metric(arm, "mspd/0")]
    for i, (metric, label) in enumerate(DEPTH_METRICS):
        means = [float(np.mean(list(results.metric(arm, metric).values()))) for arm, _ in present]
        axis.plot(range(len(present)), means, "o-", color=f"C{i}", label=label)
        for place, (arm, _) in enumerate(present):
            values = list(results.metric(arm, metric).values())
            axis.plot([place] * len(values), values, ".", color=f"C{i}", alpha=0.4)
    axis.set_xticks(range(len(present)), [label for _, label in present])
    axis.set(yscale="log", xlabel="layers (no noise)", ylabel="distance / d")
    _legend(axis, "distance to")


def table_depth(results: Results) -> Table:
    """The same distances as rows."""
    rows: list[tuple[str | float, ...]] = []
    for arm, label in DEPTHS:
        found = [list(results.metric(arm, metric).values()) for metric, _ in DEPTH_METRICS]
        if all(found):
            rows.append((label, *(float(np.mean(values)) for values in found)))
    return Table(("layers", *(label for _, label in DEPTH_METRICS)), rows)


def draw_probes(figure: Figure, results: Results) -> None:
    """Probe error by layer on the left, where the best layer's probe looks on the right."""
    left, right = figure.subplots(1, 2)
    for arm, name, label, color, style in PROBES:
        curve = _mean(results, arm, name)
        if curve is not None:
            left.plot(curve.x, curve.y, style, marker="o", ms=3, color=color, label=label)
    left.set(xlabel="layer", ylabel="relative error", ylim=(0, None))
    _legend(left, "probe for")
    for name, label, color in (("xty", "X'y / n", "C0"), ("w_ols", "w_OLS", "C1")):
        curve = _mean(results, "noise/0-1", f"attention/{name}")
        if curve is not None:
            right.plot(curve.x, curve.y, "o-", ms=3, color=color, label=label)
            count = len(curve.x)
            right.set_xticks(range(1, count + 1), [f"{'xy'[t % 2]}{t // 2 + 1}" for t in range(count)])
    right.set(xlabel="token", ylabel="attention of the probe", ylim=(0, None))
    _legend(right, "")


def table_probes(results: Results) -> Table:
    """Probe error by layer."""
    rows: list[tuple[str | float, ...]] = []
    for arm, name, label, _, _ in PROBES:
        curve = _mean(results, arm, name)
        if curve is not None:
            rows += [(label, layer, error) for layer, error in zip(curve.x, curve.y, strict=True)]
    return Table(("probe", "layer", "relative error"), rows)


def _legend(axis: Axes, title: str) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(title=title or None, fontsize="small", loc="best")
