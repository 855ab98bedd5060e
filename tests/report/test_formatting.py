"""Numbers as text: as many digits as the interval supports."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradatim.bench import estimate
from gradatim.report.formatting import count, duration, number, probability, rounded, shown


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (1.0, "1"), (0.002, "0.002"), (-0.0123456, "−0.0123"), (1234.5, "1234"),
        (99999.9, "100000"), (1.5e-9, "1.5 × 10⁻⁹"), (-2e12, "−2 × 10¹²"), (math.nan, "not a number"),
        (math.inf, "∞"), (-math.inf, "−∞"), (None, "–"),
    ],
)  # fmt: skip
def test_number(x, text):
    assert number(x) == text


def test_number_signed():
    assert number(0.25, signed=True) == "+0.25"
    assert number(0.0, signed=True) == "0"


@pytest.mark.parametrize(
    ("triple", "text"),
    [
        ((0.02134, 0.01421, 0.02847), "+0.0213 [+0.0142, +0.0285]"),
        ((-3.4, -10.0, 3.2), "−3.4 [−10.0, +3.2]"),
        ((1234.0, 1100.0, 1368.0), "+1230 [+1100, +1370]"),
        ((0.5, 0.5, 0.5), "+0.5 [+0.5, +0.5]"),
        ((0.0, 0.0, 0.0), "0 [0, 0]"),
        ((0.89e-9, 0.67e-9, 1.11e-9), "+0.89 × 10⁻⁹ [+0.67, +1.11] × 10⁻⁹"),
        ((0.99999999, 0.99999998, 1.0), "+1.00000 [+1.00000, +1.00000]"),
    ],
)
def test_rounded(triple, text):
    assert str(rounded(*triple)) == text


@given(
    st.floats(-1e12, 1e12).filter(lambda x: abs(x) > 1e-12),
    st.floats(1e-6, 1e3),
)
def test_rounding_stays_within_the_interval_s_last_digit(mean, relative):
    half = abs(mean) * relative
    s = rounded(mean, mean - half, mean + half)
    for text, value in ((s.mean, mean), (s.low, mean - half), (s.high, mean + half)):
        # Two significant digits of the half-width, or six of the largest number.
        assert abs(_value(text) - value) <= 0.051 * half + 6e-6 * (abs(mean) + half)


def _value(text: str) -> float:
    plain = text.translate(str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789"))
    return float(re.sub(r" × 10(-?\d+)", r"e\1", plain))


def test_shown_without_interval():
    assert str(shown(estimate([]))) == "–"
    assert str(shown(estimate([0.25]))) == "+0.25"
    assert shown(estimate([0.25])).interval == ""


@pytest.mark.parametrize(
    ("p", "text"),
    [(None, "–"), (0.0, "< 0.0001"), (0.00012, "0.00012"), (0.0134, "0.013"), (0.5, "0.50"), (1.0, "1.00")],
)
def test_probability(p, text):
    assert probability(p) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (-1, "0 s")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_count():
    assert [count(1, "seed"), count(2, "seed"), count(1200, "study", "studies")] == [
        "1 seed",
        "2 seeds",
        "1 200 studies",
    ]
