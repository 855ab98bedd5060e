"""Effects and figures of study 09: switching units off, and mean ranks over data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gradatim.bench import Contrast, Results, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MLPS = ("mlp-adam", "mlp-lbfgs", "mlp-sgd")
RANKED = ("gbnn", *MLPS, "hist-gb")
REGRESSION = ("friedman1", "diabetes")
SOLVERS = ("adam", "lbfgs")
RULES = ("random", "rescaled", "weight")
SWITCHED = ("waveform", "ringnorm")


def quality(results: Results, task: str, arm: str) -> dict[int, float]:
    """Accuracy by seed, or minus the root mean squared error: higher is better."""
    if task in REGRESSION:
        return {seed: -v for seed, v in results.metric(f"{task}/{arm}", "rmse").items()}
    return results.metric(f"{task}/{arm}", "accuracy")


@dataclass(frozen=True)
class NotFarBelowBestMLP:
    """gbnn - best MLP + allowance, seed by seed; above 0 means less than the allowance is lost.

    The best of the three perceptrons is the one with the best mean on these very seeds, which favours
    it. For regression the difference of RMSE is relative to the perceptron's.
    """

    task: str
    allowance: float

    def __call__(self, results: Results) -> dict[int, float]:
        candidates = [q for arm in MLPS if (q := quality(results, self.task, arm))]
        if not candidates:
            return {}
        best = max(candidates, key=lambda q: float(np.mean(list(q.values()))))
        ours = quality(results, self.task, "gbnn")
        scale = {s: abs(v) if self.task in REGRESSION else 1.0 for s, v in best.items()}
        return {s: (ours[s] - best[s]) / scale[s] + self.allowance for s in ours if s in best}


@dataclass(frozen=True)
class AboveLinear:
    """gbnn - linear model, seed by seed (relative for regression): is there anything to be learned?"""

    task: str

    def __call__(self, results: Results) -> dict[int, float]:
        ours, linear = quality(results, self.task, "gbnn"), quality(results, self.task, "linear")
        scale = {s: abs(v) if self.task in REGRESSION else 1.0 for s, v in linear.items()}
        return {s: (ours[s] - linear[s]) / scale[s] for s in ours if s in linear}


@dataclass(frozen=True)
class RankAdvantage:
    """Mean over data sets of (mean rank of `others`) - (rank of gbnn), seed by seed."""

    tasks: tuple[str, ...]
    others: tuple[str, ...]

    def __call__(self, results: Results) -> dict[int, float]:
        by_task = []
        for task in self.tasks:
            found = {arm: quality(results, task, arm) for arm in RANKED}
            if all(found.values()):
                by_task.append(found)
        if not by_task:
            return {}
        seeds = set.intersection(*(set(q) for found in by_task for q in found.values()))
        return {
            seed: self._advantage([{a: q[seed] for a, q in f.items()} for f in by_task]) for seed in seeds
        }

    def _advantage(self, scores: Sequence[dict[str, float]]) -> float:
        ranks = [dict(zip(RANKED, rank([s[a] for a in RANKED]), strict=True)) for s in scores]
        return float(np.mean([np.mean([r[a] for a in self.others]) - r["gbnn"] for r in ranks]))


@dataclass(frozen=True)
class KeptAccuracy:
    """accuracy(percent of the units) - accuracy(all) + allowance, in training order."""

    arm: str
    percent: int
    allowance: float

    def __call__(self, results: Results) -> dict[int, float]:
        part = results.metric(self.arm, f"score_{self.percent}pct_units")
        whole = results.metric(self.arm, "score_100pct_units")
        return {s: part[s] - whole[s] + self.allowance for s in part if s in whole}


@dataclass(frozen=True)
class NotFarBelow:
    """accuracy(arm) - accuracy(baseline) + allowance, seed by seed."""

    arm: str
    baseline: str
    allowance: float

    def __call__(self, results: Results) -> dict[int, float]:
        difference = Contrast(self.arm, self.baseline, "accuracy")(results)
        return {seed: value + self.allowance for seed, value in difference.items()}


@dataclass(frozen=True)
class LosesLessThanDense:
    """(drop of the dense net) - (drop of gbnn) when the same share of units is switched off.

    The dense net is given the solver and the rule under which it loses least on average.
    """

    task: str
    percent: int

    def __call__(self, results: Results) -> dict[int, float]:
        drops = []
        for solver in SOLVERS:
            whole = results.metric(f"{self.task}/dense-{solver}", "accuracy")
            for rule in RULES:
                part = results.metric(f"{self.task}/dense-{solver}", f"score_{self.percent}pct_units_{rule}")
                if whole and part:
                    drops.append({s: whole[s] - part[s] for s in whole if s in part})
        ours = KeptAccuracy(f"{self.task}/gbnn", self.percent, 0.0)(results)
        if not drops or not ours:
            return {}
        kindest = min(drops, key=lambda d: float(np.mean(list(d.values()))))
        return {s: kindest[s] + ours[s] for s in ours if s in kindest}


def rank(scores: Sequence[float]) -> list[float]:
    """1 for the highest; equal scores share their mean rank."""
    from scipy.stats import rankdata

    return [float(r) for r in rankdata(-np.asarray(scores))]


@dataclass(frozen=True)
class Ranking:
    """Mean ranks over data sets, Friedman's test, and Nemenyi's critical difference at 5%."""

    arms: tuple[str, ...]
    tasks: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    friedman_p: float | None
    critical_difference: float | None


def ranking(results: Results, tasks: Sequence[str]) -> Ranking:
    """Rank the arms on every data set that all of them finished, by their mean over splits.

    CD = q_0.05 sqrt(k (k + 1) / (6 N)), q the studentised range of k means over sqrt 2 (Demsar, JMLR
    7, 2006).
    """
    from scipy.stats import friedmanchisquare, studentized_range

    table = {}
    for task in tasks:
        found = [quality(results, task, arm) for arm in RANKED]
        if all(found):
            table[task] = [float(np.mean(list(q.values()))) for q in found]
    if not table:
        return Ranking(RANKED, (), (), None, None)
    ranks = np.array([rank(row) for row in table.values()])
    k, n = len(RANKED), len(ranks)
    p = cd = None
    if n >= 3:
        p = float(friedmanchisquare(*ranks.T).pvalue)
        q = float(studentized_range.ppf(0.95, k, np.inf)) / np.sqrt(2.0)
        cd = float(q * np.sqrt(k * (k + 1) / (6.0 * n)))
    return Ranking(RANKED, tuple(table), tuple(float(m) for m in ranks.mean(0)), p, cd)


def draw_switching(figure: Figure, results: Results) -> None:
    """Accuracy over active units: boosted in training order beside dense nets."""
    axes = np.atleast_1d(figure.subplots(1, len(SWITCHED), sharex=True))
    for axis, task in zip(axes, SWITCHED, strict=True):
        for i, (label, x, y) in enumerate(_switching_lines(results, task)):
            style = "-" if label.startswith("boosted") else "--"
            axis.plot(
                x, y, style, color=f"C{i}", label=label, marker=None if len(x) > 8 else "o", markersize=4
            )
        axis.set_title(task)
        axis.set_xlabel("active units")
        axis.set_ylabel("test accuracy")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def switching_table(results: Results) -> Table:
    rows: list[list[str | float]] = []
    for task in SWITCHED:
        for label, x, y in _switching_lines(results, task):
            at = [
                int(np.argmin(np.abs(np.asarray(x) - share * x[-1]))) for share in (0.1, 0.25, 0.5, 0.75, 1.0)
            ]
            rows.append([task, label, *(round(float(y[i]), 4) for i in at)])
    return Table(["data", "network", "10%", "25%", "50%", "75%", "100%"], rows)


def _switching_lines(results: Results, task: str) -> list[tuple[str, list[float], list[float]]]:
    wanted = [("boosted", "gbnn", "units"), ("boosted, quarter step", "gbnn-small-step", "units")]
    names = {"adam": "Adam", "lbfgs": "L-BFGS"}
    rules = {"random": "at random", "weight": "by weight"}
    wanted += [(f"dense {names[s]}, {rules[r]}", f"dense-{s}", r) for s in SOLVERS for r in rules]
    lines = []
    for label, arm, curve in wanted:
        curves = list(results.curves(f"{task}/{arm}", curve).values())
        # A setting chosen per task is the same for every seed, so the curves share their units.
        if curves and all(len(c.x) == len(curves[0].x) for c in curves):
            lines.append((label, list(curves[0].x), list(np.mean([c.y for c in curves], axis=0))))
    return lines


def draw_ranks(figure: Figure, results: Results, tasks: Sequence[str]) -> None:
    """Mean ranks on a line, with the critical difference as a bar."""
    found = ranking(results, tasks)
    axis = figure.subplots()
    if not found.tasks:
        axis.text(0.5, 0.5, "no data set finished by every arm", ha="center", transform=axis.transAxes)
        return
    order = np.argsort(found.mean_ranks)
    names = [found.arms[i] for i in order]
    values = [found.mean_ranks[i] for i in order]
    colours = ["C0" if name == "gbnn" else "C7" for name in names]
    axis.scatter(values, range(len(names)), c=colours, s=60, zorder=3)
    axis.hlines(range(len(names)), 1, values, colors=colours, linewidth=1.5)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0.9, len(names) + 0.1)
    axis.set_xlabel(f"mean rank over {len(found.tasks)} data sets (1 is best)")
    if found.critical_difference is not None:
        start, width = values[0], min(found.critical_difference, len(names) - values[0])
        axis.hlines(-0.6, start, start + width, colors="C3", linewidth=4)
        axis.text(start, -0.75, "critical difference (Nemenyi, 5%)", va="bottom", color="C3")
        axis.set_ylim(len(names) - 0.5, -1.3)


def ranks_table(results: Results, tasks: Sequence[str]) -> Table:
    found = ranking(results, tasks)
    rows: list[list[str | float]] = [
        [arm, round(r, 3)] for arm, r in zip(found.arms, found.mean_ranks, strict=False)
    ]
    if found.friedman_p is not None and found.critical_difference is not None:
        rows.append(["Friedman test, p", float(f"{found.friedman_p:.3g}")])
        rows.append(["critical difference (Nemenyi, 5%)", round(found.critical_difference, 3)])
    return Table(["arm", "mean rank"], rows)
