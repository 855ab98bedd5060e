"""Intervals and tests against scipy, closed forms and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradatim.bench.statistics import (
    equivalence_p,
    estimate,
    estimate_proportion,
    holm,
    seeds_needed,
)

RNG = np.random.default_rng(0)
SAMPLE = RNG.normal(0.3, 1.0, 12)


def test_t_interval_and_p_agree_with_scipy():
    e = estimate(SAMPLE)
    reference = stats.ttest_1samp(SAMPLE, 0.0)
    ci = reference.confidence_interval(0.95)
    assert e.mean == pytest.approx(SAMPLE.mean(), rel=1e-14)
    assert (e.low, e.high) == pytest.approx((ci.low, ci.high), rel=1e-12)
    assert e.p == pytest.approx(reference.pvalue, rel=1e-12)
    assert e.boot_low < e.mean < e.boot_high


def test_overlap_widens_by_nadeau_and_bengio():
    plain, corrected = estimate(SAMPLE), estimate(SAMPLE, overlap=0.5)
    ratio = (corrected.high - corrected.low) / (plain.high - plain.low)
    assert ratio == pytest.approx(np.sqrt((1 / 12 + 0.5) / (1 / 12)), rel=1e-12)


def test_small_and_constant_samples():
    assert estimate([]).mean is None
    assert estimate([2.0]).low is None
    same = estimate([0.1 + 0.2] * 5)
    assert (same.sd, same.low, same.high, same.p) == (0.0, same.mean, same.mean, 0.0)
    assert estimate([0.0, 0.0]).p == 1.0


def test_standardized_is_d_z():
    d, low, high = estimate(SAMPLE).standardized
    assert d == pytest.approx(SAMPLE.mean() / SAMPLE.std(ddof=1))
    assert low < d < high
    assert estimate([1.0, 1.0]).standardized is None


def test_wilson_against_the_closed_form():
    n, k, z = 40, 37, stats.norm.ppf(0.975)
    e = estimate_proportion([1.0] * k + [0.0] * (n - k), bound=0.5, sign=1.0)
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    assert (e.low, e.high) == pytest.approx((centre - half - 0.5, centre + half - 0.5))
    flipped = estimate_proportion([0.0] * 30, bound=0.5, sign=-1.0)
    assert flipped.mean == 0.5
    assert 0 < flipped.low < flipped.mean
    with pytest.raises(ValueError, match="0 or 1"):
        estimate_proportion([0.5], 0.5, 1.0)


def test_tost_agrees_with_scipy_one_sided_tests():
    e = estimate(SAMPLE)
    lower = stats.ttest_1samp(SAMPLE, -1.0, alternative="greater").pvalue
    upper = stats.ttest_1samp(SAMPLE, 1.0, alternative="less").pvalue
    assert equivalence_p(e, 1.0) == pytest.approx(max(lower, upper), rel=1e-12)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([None, 0.02]) == [None, pytest.approx(0.04)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_monotone_and_never_below_raw(p):
    adjusted = holm(p)
    assert all(a >= raw for a, raw in zip(adjusted, p, strict=True))
    ranked = [adjusted[i] for i in np.argsort(p, kind="stable")]
    assert ranked == sorted(ranked)


def test_seeds_needed_has_the_power_it_promises():
    e = estimate(RNG.normal(0.0, 1.0, 2000))
    n = seeds_needed(e, distance=0.8)
    draws = RNG.normal(0.8, e.sd, (4000, n))
    power = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean()
    assert 0.77 < power < 0.86
    assert seeds_needed(e, 0.0) is None
    assert seeds_needed(e, 1e-9) is None
    assert seeds_needed(e, 0.8, overlap=1.0) is None


def test_interval_covers_the_truth_95_percent_of_the_time():
    draws = RNG.normal(0.5, 2.0, (1500, 6))
    hits = [e.low < 0.5 < e.high for e in (estimate(row[:3].tolist()) for row in draws)]
    assert 0.93 < np.mean(hits) < 0.97
