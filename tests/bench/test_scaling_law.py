"""Power laws: exact on exact laws, intervals that cover, and refused where there is nothing to fit."""

from __future__ import annotations

import numpy as np
import pytest

from gradatim.bench.scaling_law import fit_power_law, scaling_law

X = (1.0, 2.0, 4.0, 8.0)


def noisy(exponent: float, seeds: int, seed: int) -> dict[int, tuple[list[float], list[float]]]:
    rng = np.random.default_rng(seed)
    return {
        s: (list(X), [float(9 * x**-exponent * np.exp(rng.normal(0, 0.02))) for x in X]) for s in range(seeds)
    }


def test_an_exact_law_is_found_exactly() -> None:
    exponent, intercept = fit_power_law(X, [3 * x**-0.7 for x in X])
    assert exponent == pytest.approx(0.7, rel=1e-12)
    assert intercept == pytest.approx(np.log(3), rel=1e-12)
    law = scaling_law({0: (X, [3 * x**-0.7 for x in X])})
    assert law(5.0) == pytest.approx(3 * 5**-0.7)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = 0
    for trial in range(30):
        law = scaling_law(noisy(0.3, 6, trial), resamples=200)
        assert law.low < law.exponent < law.high
        held += law.low <= 0.3 <= law.high
    assert held >= 25


def test_bootstraps_repeat() -> None:
    assert scaling_law(noisy(0.3, 3, 0)) == scaling_law(noisy(0.3, 3, 0))


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ([1, 1], [1, 2], "two different x"),
        ([1, 2], [1], "two different x"),
        ([1, 2], [1, -1], "above 0"),
        ([0, 2], [1, 1], "above 0"),
    ],
)
def test_bad_points_are_refused(x: list[float], y: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit_power_law(x, y)
    with pytest.raises(ValueError, match="no curve"):
        scaling_law({})
