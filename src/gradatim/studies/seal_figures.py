"""Study 13's own figures: keys and their weights, ways of scoring, learning, and differences by query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binomtest, bootstrap

from gradatim.bench import Results, StudyFigure, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHOD = "intersective"
WAYS: tuple[tuple[str, str, str], ...] = (
    ("seal", "intersective", "intersective"),
    ("seal", "beta=0", "no cover (beta = 0)"),
    ("seal", "alpha=1", "alpha = 1"),
    ("seal", "lm+fm", "LM+FM, best key"),
    ("seal", "lm", "LM, best key"),
    ("seal/untrained", "intersective", "untrained generator"),
    ("bm25", "bm25", "BM25"),
    ("bm25/translated", "bm25", "BM25, query translated"),
)


def _pooled(results: Results, arm: str, way: str) -> np.ndarray:
    """1 / rank of every test query of every seed, in order of seed."""
    curves = results.curves(arm, f"figure/queries {way}")
    return np.concatenate([np.asarray(curve.y) for curve in curves.values()] or [np.empty(0)])


def _share(hits: np.ndarray) -> tuple[float, float, float]:
    """Share and its Wilson 95% interval."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, "wilson")
    return float(hits.mean()), float(interval.low), float(interval.high)


def _hits(results: Results) -> list[tuple[str, str, float, float, float, int]]:
    rows = []
    for arm, way, label in WAYS:
        ranks = _pooled(results, arm, way)
        for name, cut in (("hits@1", 1.0), ("hits@10", 0.1)):
            if len(ranks):
                rows.append((label, name, *_share(ranks >= cut), len(ranks)))
    return rows


def draw_ways(figure: Figure, results: Results) -> None:
    """Dots with intervals: hits@1 and hits@10 of every way to find the document."""
    axis = figure.subplots()
    rows = _hits(results)
    labels = list(dict.fromkeys(row[0] for row in rows))
    for colour, name, shift in (("C0", "hits@1", -0.14), ("C1", "hits@10", 0.14)):
        mine = [row for row in rows if row[1] == name]
        for row in mine:
            y = labels.index(row[0]) + shift
            axis.plot([row[3], row[4]], [y, y], color=colour)
            axis.plot([row[2]], [y], "o", color=colour, label=name if row is mine[0] else None)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of test queries")
    if rows:
        axis.legend(fontsize="small", loc="center right")  # where the weak rankings leave room


def ways_table(results: Results) -> Table:
    """The shares and intervals drawn."""
    rows: list[Sequence[str | float]] = [
        [label, name, round(mean, 3), round(low, 3), round(high, 3), n]
        for label, name, mean, low, high, n in _hits(results)
    ]
    return Table(["ranking", "metric", "share", "low", "high", "queries"], rows)


def draw_keys(figure: Figure, results: Results) -> None:
    """The keys of one query by frequency and probability, with lines of equal weight."""
    axis = figure.subplots()
    drawn = []
    for name, colour, label in (("out", "C1", "not in its document"), ("in", "C0", "in its document")):
        curves = list(results.curves("seal", f"figure/keys {name}").values())
        if curves:
            axis.plot(curves[0].x, curves[0].y, ".", color=colour, label=label, alpha=0.8)
            drawn += [*curves[0].x]
    if drawn:
        x = np.linspace(min(drawn), max(drawn), 50)
        for weight in (0.0, 4.0, 8.0):
            y = _line(x, weight)
            axis.plot(x[y < -0.01], y[y < -0.01], "--", color="0.5", linewidth=0.8)
            # At the lines' lower ends, where they lie apart.
            axis.annotate(
                f"w = {weight:g}", (x[0], y[0]), (0, 10), textcoords="offset points", fontsize="small"
            )
        axis.legend(fontsize="small")
    axis.set_xlabel("log P(n), smoothed frequency in the corpus")
    axis.set_ylabel("log P(n | q) of the generator")


def _line(x: np.ndarray, weight: float) -> np.ndarray:
    """log P(n|q) at which the log-odds are `weight`."""
    odds = weight + x - np.log1p(-np.exp(x))
    return odds - np.log1p(np.exp(odds))


def keys_table(results: Results) -> Table:
    """The keys drawn."""
    rows: list[Sequence[str | float]] = []
    for name, label in (("in", "yes"), ("out", "no")):
        for curve in list(results.curves("seal", f"figure/keys {name}").values())[:1]:
            rows += [[label, x, y] for x, y in zip(curve.x, curve.y, strict=True)]
    return Table(["in the document", "log P(n)", "log P(n|q)"], rows)


def _learning(results: Results) -> tuple[Sequence[float], np.ndarray] | None:
    curves = list(results.curves("seal", "figure/learning").values())
    if not curves:
        return None
    return curves[0].x, np.array([curve.y for curve in curves])


def draw_learning(figure: Figure, results: Results) -> None:
    """MRR of intersective scoring while the generator is trained, beside both BM25s."""
    axis = figure.subplots()
    found = _learning(results)
    if found is not None:
        steps, values = found
        axis.plot(steps, values.mean(axis=0), "o-", color="C0", label="SEAL, intersective")
        for row in values:
            axis.plot(steps, row, "-", color="C0", alpha=0.25, linewidth=0.8)
    for arm, colour, label in (
        ("bm25", "C1", "BM25"),
        ("bm25/translated", "C2", "BM25, query translated"),
    ):
        level = list(results.metric(arm, "mrr").values())
        if level:
            axis.axhline(float(np.mean(level)), color=colour, linestyle="--", label=label)
    axis.set_xlabel("training steps of the generator")
    axis.set_ylabel("MRR")
    axis.set_ylim(bottom=0)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small")


def learning_table(results: Results) -> Table:
    """The points drawn."""
    found = _learning(results)
    rows: list[Sequence[str | float]] = []
    if found is not None:
        steps, values = found
        rows = [[x, round(float(y), 3)] for x, y in zip(steps, values.mean(axis=0), strict=True)]
    return Table(["step", "MRR, mean over seeds"], rows)


def _differences(results: Results) -> list[tuple[str, float, float, float]]:
    """Intersective minus every other ranking, paired by query, with bootstrap intervals."""
    ours, rows = _pooled(results, "seal", METHOD), []
    for arm, way, label in WAYS[1:]:
        theirs = _pooled(results, arm, way)
        if not len(ours) or len(theirs) != len(ours):
            continue
        gap = ours - theirs
        if np.ptp(gap) == 0:
            rows.append((label, float(gap[0]), float(gap[0]), float(gap[0])))
            continue
        interval = bootstrap(
            (gap,), np.mean, n_resamples=2000, rng=np.random.default_rng(0), method="percentile"
        ).confidence_interval
        rows.append((label, float(gap.mean()), float(interval.low), float(interval.high)))
    return rows


def draw_differences(figure: Figure, results: Results) -> None:
    """Dots with intervals over queries, beside a line at zero."""
    axis = figure.subplots()
    rows = _differences(results)
    for y, (_, mean, low, high) in enumerate(rows):
        axis.plot([low, high], [y, y], color="C0")
        axis.plot([mean], [y], "o", color="C0")
    axis.axvline(0, color="0.5", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [row[0] for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel("MRR of intersective scoring minus that of ..., 95% interval over queries")


def differences_table(results: Results) -> Table:
    """The differences and intervals drawn."""
    rows: list[Sequence[str | float]] = [
        [label, *(round(v, 3) for v in values)] for label, *values in _differences(results)
    ]
    return Table(["minus", "difference in MRR", "low", "high"], rows)


FIGURES = (
    StudyFigure(
        name="ways",
        title="Finding the document: scoring of keys, and BM25",
        alt="Dots with intervals of hits at one and at ten for intersective scoring, its variants, the best "
        "single key, the untrained generator and BM25 with the query as it is and translated.",
        draw=draw_ways,
        table=ways_table,
    ),
    StudyFigure(
        name="keys",
        title="The keys of one query: probability against frequency",
        alt="Points of log-probability given the query over log-frequency in the corpus for the n-grams of "
        "one query, in and not in its document, with dashed lines of equal weight.",
        draw=draw_keys,
        table=keys_table,
    ),
    StudyFigure(
        name="learning",
        title="Without training the generator finds nothing",
        alt="A line of mean reciprocal rank over training steps rising from near zero, and dashed levels of "
        "BM25 with the query as it is and translated.",
        draw=draw_learning,
        table=learning_table,
    ),
    StudyFigure(
        name="differences",
        title="Intersective scoring minus each other ranking, by query",
        alt="Dots with horizontal intervals of differences in mean reciprocal rank beside a line at zero.",
        draw=draw_differences,
        table=differences_table,
    ),
)
