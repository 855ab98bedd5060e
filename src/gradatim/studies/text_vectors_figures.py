"""Paper 16's own figures: codes by bits, and senses found by each way to find them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradatim.bench import Results, StudyFigure, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BITS = (32, 64, 128)
CODES = {
    "bpv": "binary PV",
    "bpv-smooth": "binary PV, unrounded",
    "real-binary": "Real-Binary PV",
    "pv-lsh": "PV + hyperplanes",
    "pv-sign": "PV + sign",
    "pv-median": "PV + median",
    "pv-itq": "PV + ITQ",
    "lsa-itq": "LSA + ITQ",
    "autoencoder": "autoencoder",
}
CEILINGS = {"pv-cosine": "PV, real", "tfidf-cosine": "tf-idf"}
SENSES = {
    "dsg": "disambiguated skip-gram",
    "dsg-stage1": "stage 1 alone",
    "dsg-no-entropy": "without entropy reward",
    "mssg": "nearest cluster (MSSG)",
    "kmeans": "k-means on contexts",
    "one-sense": "one sense",
}


def _values(results: Results, arm: str, metric: str) -> list[float]:
    return list(results.metric(arm, metric).values())


def draw_codes(figure: Figure, results: Results) -> None:
    """MAP and NDCG@10 per arm, one mark per number of bits, a small dot per seed."""
    names = [n for n in CODES if any(_values(results, f"codes/{n}-{b}", "map") for b in BITS)]
    shown = [b for b in BITS if any(_values(results, f"codes/{n}-{b}", "map") for n in names)]
    axes = np.atleast_1d(figure.subplots(1, 2, sharey=True))
    for axis, metric in zip(axes, ("map", "ndcg@10"), strict=True):
        for k, bits in enumerate(shown):
            marked = False
            for row, name in enumerate(names):
                values = _values(results, f"codes/{name}-{bits}", metric)
                if not values:
                    continue
                at = row + 0.22 * (k - (len(shown) - 1) / 2)
                label = None if marked else f"{bits} bits"
                axis.plot(np.mean(values), at, "o", color=f"C{k}", label=label)
                axis.plot(values, [at] * len(values), ".", color=f"C{k}", alpha=0.35, markersize=4)
                marked = True
        for k, (name, label) in enumerate(CEILINGS.items()):
            values = _values(results, f"codes/{name}", metric)
            if values:
                axis.axvline(float(np.mean(values)), color=f"C{5 + k}", linestyle=("--", ":")[k], label=label)
        axis.set_yticks(range(len(names)), [CODES[n] for n in names])
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.locator_params(axis="x", nbins=5)
        axis.set_xlabel(metric.upper() if metric == "map" else "NDCG@10")
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)


def codes_table(results: Results) -> Table:
    """Means over seeds of both metrics, and the share of distinct codes."""
    rows: list[Sequence[str | float]] = []
    for name, label in CODES.items():
        for bits in BITS:
            arm = f"codes/{name}-{bits}"
            if _values(results, arm, "map"):
                means = [round(float(np.mean(_values(results, arm, m))), 4) for m in ("map", "ndcg@10")]
                distinct = float(np.mean(_values(results, arm, "distinct")))
                rows.append([label, bits, *means, f"{distinct:.0%}"])
    for name, label in CEILINGS.items():
        if _values(results, f"codes/{name}", "map"):
            means = [
                round(float(np.mean(_values(results, f"codes/{name}", m))), 4) for m in ("map", "ndcg@10")
            ]
            rows.append([label, "-", *means, "-"])
    return Table(["codes", "bits", "MAP", "NDCG@10", "distinct"], rows)


def draw_senses(figure: Figure, results: Results) -> None:
    """Mean adjusted Rand index of each way to find senses, a dot per seed, and how many senses stay."""
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    names = [n for n in SENSES if _values(results, f"senses/{n}", "ari")]
    for row, name in enumerate(names):
        values = _values(results, f"senses/{name}", "ari")
        left.plot(np.mean(values), row, "o", color="C0" if name == "dsg" else "C7")
        left.plot(values, [row] * len(values), ".", color="C0" if name == "dsg" else "C7", alpha=0.4)
        used = _values(results, f"senses/{name}", "senses in use")
        right.barh(row, float(np.mean(used)), color="C0" if name == "dsg" else "C7", height=0.5)
    left.set_yticks(range(len(names)), [SENSES[n] for n in names])
    if names:
        left.invert_yaxis()
    left.set_xlabel("mean adjusted Rand index")
    right.set_xlabel("senses in use (2 are true)")
    right.axvline(2.0, color="0.5", linestyle="--", linewidth=0.8)


def senses_table(results: Results) -> Table:
    """Means over seeds."""
    rows: list[Sequence[str | float]] = []
    for name, label in SENSES.items():
        values = _values(results, f"senses/{name}", "ari")
        if values:
            used = float(np.mean(_values(results, f"senses/{name}", "senses in use")))
            rows.append([label, round(float(np.mean(values)), 4), round(used, 2)])
    return Table(["senses by", "mean ARI", "in use"], rows)


FIGURES = (
    StudyFigure(
        "codes",
        "Retrieval by binary codes",
        "MAP and NDCG@10 of document codes by arm and number of bits, with real vectors as dashed lines.",
        draw_codes,
        codes_table,
    ),
    StudyFigure(
        "senses",
        "Telling merged words apart",
        "Adjusted Rand index of each way to induce senses, and the mean number of senses left in use.",
        draw_senses,
        senses_table,
    ),
)
