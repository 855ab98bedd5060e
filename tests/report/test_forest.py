"""Geometry of the forest plot against its closed form."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradatim.bench import Arm, Claim, Control, Outcome, Profile, Results, Study, judge
from gradatim.report.forest import Axis, axis_for, cells, row


def verdict(values, control=(0.1, 0.2, 0.3), *, paper=None, test="positive", margin=0.0, control_margin=0.0):
    """A judged claim whose effect takes the given values."""
    values, control = dict(enumerate(values)), dict(enumerate(control))
    rest = Control("c", lambda r: control, test if control_margin else "positive", control_margin)
    claim = Claim("c", "s", lambda r: values, rest, test=test, margin=margin, paper=paper)
    study = Study("s", "s", "", (), (Arm("a"),), (claim,), {"quick": Profile(3)}, (), trial=_never)
    return judge(study, Results({"a": {0: Outcome({})}}))[0]


def _never(arm, seed, scale):
    raise AssertionError


def test_axis_is_asinh():
    axis = Axis(-math.sinh(1), math.sinh(3))
    assert axis.zero == pytest.approx(0.25)
    assert axis.at(math.sinh(1)) == pytest.approx(0.5)
    assert axis.at(-1e9) == 0.0
    assert axis.at(1e9) == 1.0


@given(st.floats(-1e4, -1.5), st.floats(3, 1e6), st.lists(st.floats(-1e7, 1e7), min_size=2))
def test_axis_keeps_order_and_ticks_stand_apart(low, high, points):
    axis = Axis(low, high)
    at = [axis.at(p) for p in sorted(points)]
    assert at == sorted(at)
    assert all(0 <= a <= 1 for a in at)
    ticks = axis.ticks()
    assert [t for t in ticks if t.value == 0]
    assert len(ticks) >= 2
    assert all(b.at - a.at >= 0.0749 for a, b in pairwise(ticks))
    assert all(low <= t.value <= high and t.at == axis.at(t.value) for t in ticks)


def test_row_stands_where_the_standardised_effect_is():
    v = verdict([2.0, 4.0, 6.0], paper=3.0, margin=1.0)
    axis = axis_for([v])
    r = row(v, axis)
    d, low, high = v.estimate.standardized
    assert d == pytest.approx(2.0)
    assert r.effect.at == axis.at(d)
    assert (r.effect.low, r.effect.high) == (axis.at(low), axis.at(high))
    assert r.control.at == axis.at(v.control.estimate.standardized[0])
    assert r.paper == axis.at(1.5)
    assert not r.paper_cut
    assert r.band == (axis.zero, axis.at(0.5))


def test_equivalence_band_is_symmetric_about_zero():
    v = verdict([0.1, -0.1, 0.05, 0.0], test="equivalent", margin=0.2)
    axis = Axis(-10, 10)
    low, high = row(v, axis).band
    assert high == axis.at(0.2 / v.estimate.sd)
    assert low == pytest.approx(1 - high)


@pytest.mark.parametrize(("value", "edge"), [(2.0, 1), (-2.0, -1), (0.0, 0)])
def test_exact_results_are_arrows_at_the_edge(value, edge):
    v = verdict([value] * 4, paper=1.0)
    axis = axis_for([v])
    mark = row(v, axis).effect
    assert mark.exact
    assert mark.edge == edge
    assert mark.at == {1: 1.0, -1: 0.0, 0: axis.zero}[edge]
    assert row(v, axis).paper is None


def test_exact_result_within_its_margin_stands_on_zero():
    inside = verdict([1e-9] * 4, test="equivalent", margin=1e-6)
    outside = verdict([1e-3] * 4, test="equivalent", margin=1e-6)
    axis = axis_for([inside, outside])
    assert row(inside, axis).effect.at == axis.zero
    assert row(outside, axis).effect.edge == 1
    assert row(inside, axis).band == (0.0, 1.0)


def test_wild_intervals_and_papers_are_cut_not_followed():
    v = verdict([-0.9, 1.0], control=(-1.0, 1.1), paper=1e6)
    axis = axis_for([v])
    assert v.estimate.standardized[2] > 8
    assert axis.high < 5
    r = row(v, axis)
    assert r.effect.cut_high
    assert r.effect.cut_low
    assert r.effect.high == 1.0
    assert r.paper_cut
    assert r.paper == 1.0


@pytest.mark.parametrize("values", [[], [1.0]])
def test_without_interval_there_is_no_mark(values):
    v = verdict(values, control=values)
    r = row(v, axis_for([v]))
    assert r.effect is None
    assert r.control is None
    assert r.band is None


def test_axis_without_claims():
    assert axis_for([]) == Axis(pytest.approx(-1.5), pytest.approx(3.0))


def test_cells_agree_with_the_row():
    v = verdict([1.0, 2.0, 3.0, 2.5], paper=5.0)
    axis = axis_for([v])
    r = row(v, axis)
    line = cells(r, axis, 60)
    assert len(line) == 60
    assert line.index("●") == int(r.effect.at * 60)
    assert line.index("│") == int(axis.zero * 60)
    assert line.index("╎") == int(r.paper * 60)
    assert line.index("◇") == int(r.control.at * 60)
    exact = verdict([1.0] * 3)
    assert cells(row(exact, axis), axis, 20)[-1] == "▶"
    assert cells(replace(r, effect=None, control=None, paper=None), axis, 20).strip() == "│"


def test_axis_ends_where_spread_stops_mattering():
    near, far = verdict([1.0, 2.0, 3.0]), verdict([1e6, 1e6 + 1, 1e6 + 2])
    axis = axis_for([near, far])
    assert axis.high < 150
    mark = row(far, axis).effect
    assert mark.at == 1.0
    assert mark.cut_high
