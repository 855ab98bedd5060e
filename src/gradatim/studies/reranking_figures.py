"""Paper 08's own figures: what the weights know, gains and curves, where to end, rankers of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import stats

from gradatim.bench import Results, StudyFigure, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "norm": "norm",
    "recip": "recip",
    "kde": "kde",
    "norm-kept": "norm, never fading",
    "norm-anti": "hard first",
    "norm-shuffled": "norm, dealt out at random",
}
COLOURS = {name: f"C{i}" for i, name in enumerate(LABELS)}
PANELS = (
    ("pair-0", "pairwise, true labels"),
    ("pair-0.5", "pairwise, half wrong"),
    ("point-0", "pointwise, true labels"),
    ("point-0.5", "pointwise, half wrong"),
)
HEURISTICS = ("recip", "norm", "kde")


def gains(results: Results, arm: str, baseline: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Mean paired difference of the MRR@10 curves at every iteration, and half its 95% interval."""
    ours, theirs = results.curves(arm, "mrr"), results.curves(baseline, "mrr")
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    each = np.array([np.subtract(ours[seed].y, theirs[seed].y) for seed in seeds])
    half = np.zeros(each.shape[1])
    if len(seeds) > 1:
        half = stats.t.ppf(0.975, len(seeds) - 1) * each.std(axis=0, ddof=1) / np.sqrt(len(seeds))
    return np.asarray(ours[seeds[0]].x), each.mean(axis=0), half


def _mean_curve(results: Results, arm: str) -> tuple[Sequence[float], np.ndarray] | None:
    curves = list(results.curves(arm, "mrr").values())
    return (curves[0].x, np.mean([curve.y for curve in curves], axis=0)) if curves else None


def _mean(results: Results, arm: str, metric: str) -> float | None:
    values = list(results.metric(arm, metric).values())
    return float(np.mean(values)) if values else None


def _legend(axis: Axes, columns: int = 1, where: Literal["best", "upper center"] = "best") -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small", ncols=columns, loc=where)


def _shared_legend(figure: Figure, axis: Axes) -> None:
    """One legend for all panels, below them: inside a panel it would cover lines."""
    handles, names = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, fontsize="small", ncols=4, loc="outside lower center")


# What the weights know of the labels ------------------------------------------------------------------------

KINDS = (
    ("weight_right", "right document", "C0"),
    ("weight_wrong", "mislabelled document", "C1"),
    ("weight_negative", "negatives", "C2"),
)


def draw_weights(figure: Figure, results: Results) -> None:
    """Mean weight at the start of positives that are right, of wrong ones, and of negatives."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (loss, title) in zip(axes, (("pair", "pairwise"), ("point", "pointwise")), strict=True):
        for i, (metric, label, colour) in enumerate(KINDS):
            values = [_mean(results, f"{loss}-0.5/{name}", metric) for name in HEURISTICS]
            shown = [(k, v) for k, v in enumerate(values) if v is not None]
            if shown:
                at = np.array([k for k, _ in shown]) + 0.27 * (i - 1)
                axis.bar(at, [v for _, v in shown], width=0.25, color=colour, label=label)
        axis.set_xticks(range(len(HEURISTICS)), HEURISTICS)
        axis.set_title(f"{title}, half of the labels wrong")
        axis.set_ylim(0, 1.2)
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes[0].set_ylabel("mean weight before fading")
    _legend(axes[1], columns=3, where="upper center")


def weights_table(results: Results) -> Table:
    """The heights of the bars."""
    rows: list[Sequence[str | float]] = []
    for loss in ("pair", "point"):
        for name in HEURISTICS:
            for metric, label, _ in KINDS:
                value = _mean(results, f"{loss}-0.5/{name}", metric)
                if value is not None:
                    rows.append([loss, name, label, round(value, 3)])
    return Table(["loss", "heuristic", "positives or negatives", "mean weight"], rows)


# Gains over no curriculum -----------------------------------------------------------------------------------


def draw_gains(figure: Figure, results: Results) -> None:
    """Difference to training without a curriculum at every iteration, with paired intervals."""
    axes = figure.subplots(2, 2, sharex=True).flatten()
    for axis, (group, title) in zip(axes, PANELS, strict=True):
        spread = 0.0
        for name in LABELS:
            found = gains(results, f"{group}/{name}", f"{group}/none")
            if found is None:
                continue
            x, mean, half = found
            axis.plot(x, mean, color=COLOURS[name], label=LABELS[name])
            axis.fill_between(x, mean - half, mean + half, color=COLOURS[name], alpha=0.15)
            # The first iterations, and hard first, dwarf the rest; the table has them all.
            if name != "norm-anti" and len(mean) > 3:
                spread = max(spread, float((np.abs(mean) + half)[3:].max()))
        axis.axhline(0, color="0.5", linewidth=0.8)
        if spread:
            axis.set_ylim(-1.3 * spread, 1.3 * spread)
        axis.set_title(title, fontsize="medium")
    for axis in axes[2:]:
        axis.set_xlabel("iteration")
    for axis in axes[::2]:
        axis.set_ylabel("MRR@10 gained")
    _shared_legend(figure, axes[1])


def gains_table(results: Results) -> Table:
    """Difference and interval at the first, third, fifth and last iteration."""
    rows: list[Sequence[str | float]] = []
    for group, title in PANELS:
        for name, label in LABELS.items():
            found = gains(results, f"{group}/{name}", f"{group}/none")
            if found is None:
                continue
            x, mean, half = found
            for i in sorted({0, min(2, len(x) - 1), min(4, len(x) - 1), len(x) - 1}):
                rows.append([title, label, float(x[i]), round(float(mean[i]), 4), round(float(half[i]), 4)])
    return Table(["setting", "arm", "iteration", "MRR@10 gained", "half of the 95% interval"], rows)


# The curves themselves --------------------------------------------------------------------------------------

SHOWN = ("none", "norm", "norm-kept", "norm-anti", "norm-batch")
SHOWN_LABELS = {**LABELS, "none": "no curriculum", "norm-batch": "norm, one weight per batch"}
SHOWN_COLOURS = {**COLOURS, "none": "0.35", "norm-batch": "C6"}


def draw_curves(figure: Figure, results: Results) -> None:
    """MRR@10 along training, beside BM25's order and that of the frozen encoder."""
    axes = figure.subplots(2, 2, sharex=True).flatten()
    for axis, (group, title) in zip(axes, PANELS, strict=True):
        for by, style in (("bm25", ":"), ("cosine", "--")):
            level = _mean(results, f"first stage/{by}", "final_mrr")
            if level is not None:
                axis.axhline(level, color="0.6", linestyle=style, linewidth=1, label=by)
        for name in SHOWN:
            found = _mean_curve(results, f"{group}/{name}")
            if found is not None:
                axis.plot(*found, color=SHOWN_COLOURS[name], label=SHOWN_LABELS[name])
        axis.set_title(title, fontsize="medium")
    for axis in axes[2:]:
        axis.set_xlabel("iteration")
    for axis in axes[::2]:
        axis.set_ylabel("MRR@10")
    _shared_legend(figure, axes[1])


def curves_table(results: Results) -> Table:
    """Area, best and last MRR@10, best P@1 and the iteration chosen, mean over seeds."""
    metrics = ("area_mrr", "best_mrr", "final_mrr", "best_p1", "best_iteration")
    rows: list[Sequence[str | float]] = []
    for group, title in PANELS:
        for name in ("none", *LABELS, "norm-batch", "norm-mean1"):
            values = [_mean(results, f"{group}/{name}", metric) for metric in metrics]
            if None not in values:
                rows.append([title, name, *(round(value, 4) for value in values if value is not None)])
    return Table(
        ["setting", "arm", "area MRR@10", "best MRR@10", "last MRR@10", "best P@1", "iteration"], rows
    )


# Where to end, and rankers that read ------------------------------------------------------------------------

ENDS = ((2, "norm-m2"), (5, "norm"), (10, "norm-m10"), (20, "norm-m20"))


def draw_ends(figure: Figure, results: Results) -> None:
    """Gain at the best-validated and last iteration over where the curriculum ends."""
    axes = figure.subplots(1, 2)
    for axis, (loss, title) in zip(axes, (("pair", "pairwise"), ("point", "pointwise")), strict=True):
        for i, (metric, label) in enumerate(
            (("best_mrr", "best-validated"), ("final_mrr", "last iteration"))
        ):
            points = _ends(results, loss, metric)
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", color=f"C{i}", label=label)
        axis.axhline(0, color="0.5", linewidth=0.8)
        axis.set_title(f"{title}, half of the labels wrong")
        axis.set_xlabel("iteration at which the weights are equal")
    axes[0].set_ylabel("MRR@10 gained over no curriculum")
    _legend(axes[1])


def _ends(results: Results, loss: str, metric: str) -> list[tuple[float, float]]:
    plain = _mean(results, f"{loss}-0.5/none", metric)
    found = [(float(end), _mean(results, f"{loss}-0.5/{name}", metric)) for end, name in ENDS]
    return [(end, value - plain) for end, value in found if value is not None and plain is not None]


def ends_table(results: Results) -> Table:
    """The points drawn."""
    rows: list[Sequence[str | float]] = []
    for loss in ("pair", "point"):
        for metric in ("best_mrr", "final_mrr"):
            rows += [[loss, metric, end, round(gain, 4)] for end, gain in _ends(results, loss, metric)]
    return Table(["loss", "metric", "end", "MRR@10 gained"], rows)


TEXT = (("knrm-pair-0.5", "ConvKNRM"), ("cross-pair-0.5", "cross-encoder, two layers trained"))


def draw_text(figure: Figure, results: Results) -> None:
    """MRR@10 along training of the rankers that read the text; a line per arm, thin ones per seed."""
    axes = figure.subplots(1, 2)
    for axis, (group, title) in zip(axes, TEXT, strict=True):
        for name in ("none", "norm", "norm-kept", "norm-anti"):
            for curve in results.curves(f"{group}/{name}", "mrr").values():
                axis.plot(curve.x, curve.y, color=SHOWN_COLOURS[name], alpha=0.15, linewidth=0.8)
            found = _mean_curve(results, f"{group}/{name}")
            if found is not None:
                axis.plot(*found, color=SHOWN_COLOURS[name], label=SHOWN_LABELS[name])
        axis.set_title(title)
        axis.set_xlabel("iteration")
    axes[0].set_ylabel("MRR@10")
    _legend(axes[0])


def text_table(results: Results) -> Table:
    """Mean MRR@10 by iteration."""
    rows: list[Sequence[str | float]] = []
    for group, title in TEXT:
        for name in ("none", "norm", "norm-kept", "norm-anti"):
            found = _mean_curve(results, f"{group}/{name}")
            if found is not None:
                rows += [[title, name, x, round(float(y), 4)] for x, y in zip(*found, strict=True)]
    return Table(["ranker", "arm", "iteration", "MRR@10"], rows)


FIGURES = (
    StudyFigure(
        name="weights",
        title="What the weights know: mean weight of right and of mislabelled positives",
        alt="Bars of mean weight for three heuristics: right positives weigh more than mislabelled ones, "
        "most clearly with the pointwise loss, where the weights of negatives differ from both.",
        draw=draw_weights,
        table=weights_table,
    ),
    StudyFigure(
        name="gains",
        title="MRR@10 gained over training without a curriculum, with paired 95% intervals",
        alt="Four panels of differences along training: pairwise and pointwise, true labels and half wrong. "
        "Curricula start above zero and return to it; hard first starts far below; weights that never fade "
        "stay above zero where labels are wrong.",
        draw=draw_gains,
        table=gains_table,
    ),
    StudyFigure(
        name="curves",
        title="MRR@10 along training",
        alt="Four panels of learning curves with two horizontal lines for the order of BM25 and of the "
        "frozen encoder.",
        draw=draw_curves,
        table=curves_table,
    ),
    StudyFigure(
        name="ends",
        title="Where the curriculum ends",
        alt="Lines of MRR@10 gained over the iteration at which the weights become equal, for the "
        "best-validated and the last iteration, pairwise and pointwise.",
        draw=draw_ends,
        table=ends_table,
    ),
    StudyFigure(
        name="text",
        title="Rankers that read the text, half of the labels wrong",
        alt="Learning curves of a ConvKNRM and of a partly trained cross-encoder, with and without a "
        "curriculum; thin lines are single seeds.",
        draw=draw_text,
        table=text_table,
    ),
)
