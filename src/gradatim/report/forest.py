"""Geometry of the forest plot: where every mark of a claim's row stands on one common axis.

The axis holds effects standardised by their standard deviation over seeds (Cohen's d_z), on the scale
asinh(d): linear near zero, logarithmic far out, so that d = 0.4 and d = 40 are both read with ease.
Positions are fractions of the axis, 0 at its left end and 1 at its right end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradatim.bench.statistics import Estimate
from gradatim.bench.verdict import Verdict

_LEAST_LOW, _LEAST_HIGH = -1.5, 3.0
_REACH = 3.0
_FURTHEST = 100.0
_PAD = 0.25
_TICK_GAP = 0.075


@dataclass(frozen=True)
class Tick:
    """A labelled place on the axis."""

    value: float
    label: str
    at: float


@dataclass(frozen=True)
class Axis:
    """The common axis, from `low` < 0 to `high` > 0 in standard deviations over seeds."""

    low: float
    high: float

    def at(self, d: float) -> float:
        """Fraction of the axis at which `d` stands; values off the axis stand at its ends."""
        a, b = math.asinh(self.low), math.asinh(self.high)
        return min(max((math.asinh(d) - a) / (b - a), 0.0), 1.0)

    @property
    def zero(self) -> float:
        """Where no effect stands."""
        return self.at(0.0)

    def ticks(self) -> list[Tick]:
        """Zero and +-1, 3, 10, 30 ..., as many as stand apart."""
        values = [0.0]
        step = 1.0
        while step <= max(-self.low, self.high):
            values += [v for m in (1.0, 3.0) for v in (step * m, -step * m)]
            step *= 10.0
        placed: list[Tick] = []
        # Powers of ten first: where room is short they are the ones to keep.
        for v in sorted(values, key=lambda v: (v != 0, math.log10(abs(v)) % 1 > 0 if v else 0, abs(v))):
            if self.low <= v <= self.high and all(abs(self.at(v) - t.at) >= _TICK_GAP for t in placed):
                placed.append(Tick(v, f"{v:+g}".replace("-", "−") if v else "0", self.at(v)))
        return sorted(placed, key=lambda t: t.value)


@dataclass(frozen=True)
class Mark:
    """An estimate on the axis.

    `at` is the mean, `low`/`high` the interval's ends, each with a flag where it runs off the axis.
    `edge` is -1 or +1 for an exact result (no spread over seeds): its place in standard deviations is
    infinite, so it is an arrow at that end of the axis, to be read with the raw figure.
    """

    at: float
    low: float
    high: float
    cut_low: bool = False
    cut_high: bool = False
    edge: int = 0
    exact: bool = False


@dataclass(frozen=True)
class Row:
    """All marks of one claim; None where there is nothing to draw."""

    effect: Mark | None
    control: Mark | None
    paper: float | None
    paper_cut: bool
    band: tuple[float, float] | None


def axis_for(verdicts: Iterable[Verdict]) -> Axis:
    """One axis for all the given claims.

    It holds every mean and every paper's figure that is not more than three times further out than the
    furthest mean, and the intervals as far as the same limit; the rest is cut with an arrow. Beyond
    100 standard deviations seeds hardly matter and the raw figure tells more: the axis ends there.
    """
    points, ends = [0.0], []
    for v in verdicts:
        for e in (v.estimate, v.control.estimate):
            d = e.standardized
            if d is not None:
                points.append(d[0])
                ends += [d[1], d[2]]
        tick = _paper(v)
        if tick is not None:
            ends.append(tick)
    points = [p for p in points if math.isfinite(p)]
    reach = _REACH * max(1.0, max(abs(p) for p in points))
    reach = min(reach, _FURTHEST)
    inside = [min(max(x, -reach), reach) for x in points + ends if not math.isnan(x)]
    low = min(_LEAST_LOW, math.sinh(math.asinh(min(inside)) - _PAD))
    high = max(_LEAST_HIGH, math.sinh(math.asinh(max(inside)) + _PAD))
    return Axis(low, high)


def row(v: Verdict, axis: Axis) -> Row:
    """Where the marks of one claim stand."""
    paper = _paper(v)
    return Row(
        effect=_mark(v.estimate, axis, within=v.claim.margin if v.claim.test == "equivalent" else None),
        control=_mark(
            v.control.estimate,
            axis,
            within=v.claim.control.margin if v.claim.control.test == "equivalent" else None,
        ),
        paper=None if paper is None else axis.at(paper),
        paper_cut=paper is not None and not axis.low <= paper <= axis.high,
        band=_band(v, axis),
    )


def cells(r: Row, axis: Axis, width: int) -> str:
    """The row as `width` characters, for a terminal: `──●──`, `◇` the control, `╎` the paper, `│` zero."""
    line = [" "] * width

    def cell(at: float) -> int:
        return min(int(at * width), width - 1)

    line[cell(axis.zero)] = "│"
    if r.effect is not None:
        if not r.effect.edge:
            for i in range(cell(r.effect.low), cell(r.effect.high) + 1):
                line[i] = "┼" if line[i] == "│" else "─"
        if r.effect.cut_low:
            line[0] = "◂"
        if r.effect.cut_high:
            line[-1] = "▸"
    if r.paper is not None:
        line[cell(r.paper)] = "╎"
    if r.control is not None:
        line[cell(r.control.at)] = "◇"
    if r.effect is not None:
        line[cell(r.effect.at)] = "▶" if r.effect.edge > 0 else "◀" if r.effect.edge < 0 else "●"
    return "".join(line)


def _mark(e: Estimate, axis: Axis, within: float | None) -> Mark | None:
    if e.mean is None or e.low is None or not math.isfinite(e.mean):
        return None
    d = e.standardized
    if d is None:
        # Exact. On an equivalence claim the margin, not the spread, is the yardstick: inside it, the
        # result stands on zero.
        inside = e.mean == 0.0 or (within is not None and abs(e.mean) < within)
        edge = 0 if inside else 1 if e.mean > 0 else -1
        at = axis.zero if edge == 0 else 1.0 if edge > 0 else 0.0
        return Mark(at, at, at, edge=edge, exact=True)
    mean, low, high = d
    return Mark(
        axis.at(mean),
        axis.at(low),
        axis.at(high),
        cut_low=low < axis.low,
        cut_high=high > axis.high,
    )


def _paper(v: Verdict) -> float | None:
    """The paper's figure in our standard deviations; None where it cannot stand on this axis."""
    if v.claim.paper is None or not v.estimate.sd:
        return None
    return v.claim.paper / v.estimate.sd


def _band(v: Verdict, axis: Axis) -> tuple[float, float] | None:
    margin = v.claim.margin
    if margin <= 0 or v.estimate.low is None:
        return None
    d = margin / v.estimate.sd if v.estimate.sd else math.inf
    return axis.at(-d if v.claim.test == "equivalent" else 0.0), axis.at(d)


def counts(words: Sequence[str], of: Sequence[str]) -> dict[str, int]:
    """How often each word of `of` occurs, in that order."""
    return {word: sum(w == word for w in words) for word in of}
