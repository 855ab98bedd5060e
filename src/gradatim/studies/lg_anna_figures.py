"""Paper 23's own figures: the ladder, what the filter removes, the sweeps, and prompts without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradatim.bench import Results, StudyFigure, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MRR = "mrr@10"
NOISE = (("clean", "clean labels"), ("noisy", "40 % wrong positives"))
LADDER = (
    ("in-batch", "in-batch only"),
    ("naive", "+ naive hard negatives"),
    ("skip", "+ hard negatives, best 10 skipped"),
    ("absolute", "+ absolute margin 0.05"),
    ("relative", "+ relative margin 0.95"),
    ("adaptive", "+ adaptive margin 0.5 sd"),
    ("in-batch+soft", "in-batch + soft"),
    ("naive+soft", "naive + soft"),
    ("relative+soft", "relative + soft"),
    ("relative+smoothed", "relative + smoothed labels"),
    ("relative+soft-only", "relative, soft labels only"),
)
FACTS = ("linked negatives", "true passage as negative", "dropped")
SWEEPS = (
    (
        "relative margin rho",
        (("relative-0.8", 0.8), ("relative-0.9", 0.9), ("relative", 0.95), ("relative-1", 1.0)),
    ),
    (
        "adaptive margin kappa",
        (("adaptive-0.25", 0.25), ("adaptive", 0.5), ("adaptive-1", 1.0), ("adaptive-2", 2.0)),
    ),
    (
        "weight of the soft labels",
        (("relative", 0.0), ("relative+soft-0.3", 0.3), ("relative+soft", 1.0), ("relative+soft-3", 3.0)),
    ),
)
PROMPTS = (("none", "no prompt"), ("instruction", "instruction"), ("examples", "instruction + 2 examples"))
POOLED = (("mrr@10", "prompt left out of the mean"), ("mrr@10 prompt pooled", "prompt in the mean"))


def _values(results: Results, arm: str, metric: str = MRR) -> list[float]:
    return list(results.metric(arm, metric).values())


def draw_ladder(figure: Figure, results: Results) -> None:
    """A dot per seed and a bar's end at the mean, for each rung and noise level; lines for the references."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (noise, title) in zip(axes, NOISE, strict=True):
        for i, (name, _) in enumerate(LADDER):
            values = _values(results, f"{noise}/{name}")
            if values:
                axis.plot(values, [i] * len(values), ".", color="C0", alpha=0.4)
                axis.plot([float(np.mean(values))], [i], "o", color="C0")
        for arm, label, colour in (("untrained", "untrained", "C1"), ("minilm", "the miner, MiniLM", "C2")):
            reference = _values(results, arm)
            if reference:
                axis.axvline(float(np.mean(reference)), color=colour, linestyle="--", label=label)
        axis.set_title(title)
        axis.set_xlabel("MRR@10 of the own passage")
    axes[0].set_yticks(range(len(LADDER)), [label for _, label in LADDER])
    axes[0].invert_yaxis()
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize="small")


def ladder_table(results: Results) -> Table:
    """Means and deviations over seeds."""
    rows: list[Sequence[str | float]] = []
    for noise, title in NOISE:
        for name, label in LADDER:
            values = _values(results, f"{noise}/{name}")
            if values:
                ndcg = _values(results, f"{noise}/{name}", "ndcg@10")
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                rows.append(
                    [
                        title,
                        label,
                        *(round(v, 4) for v in (float(np.mean(values)), spread, float(np.mean(ndcg)))),
                    ]
                )
    for arm, label in (("untrained", "untrained student"), ("minilm", "MiniLM"), ("teacher", "the teacher")):
        values = _values(results, arm)
        if values:
            ndcg = _values(results, arm, "ndcg@10")
            rows.append(["any", label, round(float(np.mean(values)), 4), 0.0, round(float(np.mean(ndcg)), 4)])
    return Table(["labels", "arm", "MRR@10", "sd", "nDCG@10"], rows)


def draw_filter(figure: Figure, results: Results) -> None:
    """What is among the ten mined negatives of a query, by filter."""
    axes = figure.subplots(1, 2, sharey=True)
    names = ("naive", "skip", "absolute", "relative", "adaptive")
    labels = dict(LADDER)
    for axis, (noise, title) in zip(axes, NOISE, strict=True):
        for k, fact in enumerate(FACTS[:2]):
            at = np.arange(len(names)) + 0.4 * (k - 0.5)
            means = [
                float(np.mean(v)) if (v := _values(results, f"{noise}/{n}", fact)) else 0.0 for n in names
            ]
            axis.barh(at, [100 * m for m in means], height=0.36, color=f"C{k}", label=fact)
        axis.set_title(title)
        axis.set_xlabel("% of the mined negatives")
    axes[0].set_yticks(range(len(names)), [labels[n].removeprefix("+ ") for n in names])
    axes[0].invert_yaxis()
    axes[1].legend(fontsize="small")


def filter_table(results: Results) -> Table:
    """Shares among mined negatives, and the share of candidates that the margin dropped."""
    rows: list[Sequence[str | float]] = []
    for noise, title in NOISE:
        for name in ("naive", "skip", "absolute", "relative", "adaptive"):
            found = [_values(results, f"{noise}/{name}", fact) for fact in (*FACTS, "padded", "margin")]
            if all(found):
                rows.append([title, name, *(round(float(np.mean(v)), 4) for v in found)])
    return Table(
        ["labels", "filter", *FACTS, "filled at random", "median margin"],
        rows,
    )


def draw_sweeps(figure: Figure, results: Results) -> None:
    """MRR@10 against the margin's strength and the weight of the soft labels, clean and noisy."""
    axes = figure.subplots(1, len(SWEEPS), sharey=True)
    for axis, (title, points) in zip(axes, SWEEPS, strict=True):
        for k, (noise, label) in enumerate(NOISE):
            found = [(x, v) for arm, x in points if (v := _values(results, f"{noise}/{arm}"))]
            if found:
                axis.plot(
                    [x for x, _ in found],
                    [float(np.mean(v)) for _, v in found],
                    "o-",
                    color=f"C{k}",
                    label=label,
                )
                for x, values in found:
                    axis.plot([x] * len(values), values, ".", color=f"C{k}", alpha=0.3)
        axis.set_xlabel(title)
    axes[0].set_ylabel("MRR@10")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize="small")


def sweep_table(results: Results) -> Table:
    """The means drawn."""
    rows: list[Sequence[str | float]] = []
    for title, points in SWEEPS:
        for noise, label in NOISE:
            for arm, x in points:
                values = _values(results, f"{noise}/{arm}")
                if values:
                    rows.append([title, label, x, round(float(np.mean(values)), 4)])
    return Table(["setting", "labels", "value", "MRR@10"], rows)


def draw_prompts(figure: Figure, results: Results) -> None:
    """Zero-shot MRR@10 of MiniLM under three prompts and two poolings."""
    axis = figure.subplots()
    for k, (metric, label) in enumerate(POOLED):
        at = np.arange(len(PROMPTS)) + 0.4 * (k - 0.5)
        found = [_values(results, f"prompt/{name}", metric) for name, _ in PROMPTS]
        axis.bar(at, [float(np.mean(v)) if v else 0.0 for v in found], width=0.36, color=f"C{k}", label=label)
        for x, values in zip(at, found, strict=True):
            axis.plot([x] * len(values), values, ".", color="0.4", markersize=4)
    axis.set_xticks(range(len(PROMPTS)), [label for _, label in PROMPTS])
    axis.set_ylabel("MRR@10, never trained with prompts")
    axis.legend(fontsize="small")


def prompt_table(results: Results) -> Table:
    """The means drawn, with the length of the prompt."""
    rows: list[Sequence[str | float]] = []
    for name, label in PROMPTS:
        tokens = _values(results, f"prompt/{name}", "prompt tokens")
        for metric, pooling in POOLED:
            values = _values(results, f"prompt/{name}", metric)
            if values:
                rows.append([label, pooling, round(float(np.mean(values)), 4), round(float(np.mean(tokens)))])
    return Table(["prompt", "pooling", "MRR@10", "prompt tokens"], rows)


FIGURES = (
    StudyFigure(
        name="ladder",
        title="The ladder: negatives and labels, clean and noisy",
        alt="Dots of MRR at ten for eleven ways to train the same student, on clean labels and with 40 "
        "percent "
        "wrong positives, beside lines for the untrained student and for MiniLM.",
        draw=draw_ladder,
        table=ladder_table,
    ),
    StudyFigure(
        name="filter",
        title="What is among the mined negatives",
        alt="Bars by filter: the share of mined negatives that are linked relatives of the query, and the "
        "share "
        "that is the query's own true passage, on clean and on noisy labels.",
        draw=draw_filter,
        table=filter_table,
    ),
    StudyFigure(
        name="sweeps",
        title="Margin and weight: how much of each",
        alt="Three panels of lines: MRR at ten over the relative margin, the adaptive margin and the weight "
        "of "
        "the soft labels, one line for clean and one for noisy labels.",
        draw=draw_sweeps,
        table=sweep_table,
    ),
    StudyFigure(
        name="prompts",
        title="Prompts that nobody trained with",
        alt="Bars of MRR at ten for no prompt, an instruction, and an instruction with two examples, with "
        "the "
        "prompt's tokens in the mean and left out of it.",
        draw=draw_prompts,
        table=prompt_table,
    ),
)
