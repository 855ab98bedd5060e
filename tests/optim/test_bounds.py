import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.optim import (
    last_iterate_bound,
    minimize_bound,
    optimal_base_lr,
    refine_schedule,
    weighted_average_bound,
)
from gradatim.optim.bounds import _telescoped
from gradatim.optim.shapes import flat, inverse_sqrt, linear

positive = st.floats(0.01, 100.0)


def brute_force(eta: list[float], G: list[float], D: float) -> float:
    """The bound's formula with 1-based sums, written as loops."""
    T = len(eta)
    S = [sum(eta[k:]) for k in range(T)]
    total = D * D / (2 * S[0]) + sum(e * e * g * g for e, g in zip(eta, G, strict=True)) / (2 * S[0])
    for k in range(T - 1):
        tail = sum(eta[t] ** 2 * G[t] ** 2 for t in range(k, T))
        total += 0.5 * eta[k] / S[k + 1] * tail / S[k]
    return total


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=12), positive)
@settings(deadline=None, max_examples=60)
def test_bound_equals_the_loops(pairs: list[tuple[float, float]], D: float) -> None:
    eta, G = [p[0] for p in pairs], [p[1] for p in pairs]
    expected = brute_force(eta, G, D)
    assert last_iterate_bound(eta, G, D) == pytest.approx(expected, rel=1e-10)
    terms = last_iterate_bound(eta, G, D, split=True)
    assert terms.distance == pytest.approx(D * D / (2 * sum(eta)))
    assert terms.total == pytest.approx(expected, rel=1e-10)
    assert _telescoped(np.array(eta), np.array(G) ** 2)[0] == pytest.approx(
        brute_force(eta, G, 1.0), rel=1e-9
    )


def test_gradient_of_the_telescoped_bound() -> None:
    rng = np.random.default_rng(0)
    eta, q = rng.random(15) + 0.1, rng.random(15)
    _, gradient = _telescoped(eta, q)
    for i in range(15):
        h = np.zeros(15)
        h[i] = 1e-6
        slope = (_telescoped(eta + h, q)[0] - _telescoped(eta - h, q)[0]) / 2e-6
        assert gradient[i] == pytest.approx(slope, rel=1e-5, abs=1e-7)


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=10), positive)
@settings(deadline=None, max_examples=40)
def test_best_base_rate_is_the_best_multiple(pairs: list[tuple[float, float]], D: float) -> None:
    eta, G = np.array([p[0] for p in pairs]), [p[1] for p in pairs]
    c, value = optimal_base_lr(eta, G, D)
    assert last_iterate_bound(c * eta, G, D) == pytest.approx(value, rel=1e-9)
    for factor in (0.9, 1.1):
        assert last_iterate_bound(factor * c * eta, G, D) > value


def test_constant_norms_give_the_known_constants() -> None:
    root = math.sqrt(2000)
    value = {f.__name__: optimal_base_lr(f(2000), 1.0)[1] * root for f in (linear, flat, inverse_sqrt)}
    assert value == pytest.approx({"linear": 2.0038, "flat": 3.0295, "inverse_sqrt": 2.6629}, abs=1e-4)
    gaps = [optimal_base_lr(linear(T), 1.0)[1] * math.sqrt(T) - 2.0 for T in (100, 1000, 10_000)]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 1e-3


def test_tailored_bound_is_one_for_constant_norms() -> None:
    T, D, G = 500, 3.0, 2.0
    w = np.full(T, D / (G * math.sqrt(T)))
    assert weighted_average_bound(w, G, D) == pytest.approx(D * G / math.sqrt(T))


def test_tailored_bound_is_least_for_inverse_square_norms() -> None:
    rng = np.random.default_rng(1)
    G = rng.random(50) + 0.5
    best = G**-2.0 / math.sqrt(np.sum(G**-2.0))
    least = weighted_average_bound(best, G)
    assert least == pytest.approx(1 / math.sqrt(np.sum(G**-2.0)))
    for _ in range(20):
        assert weighted_average_bound(best * np.exp(0.1 * rng.standard_normal(50)), G) > least


def test_tail_sums_do_not_cancel() -> None:
    # With total - cumsum the last sums of this schedule are rounding noise and the bound explodes.
    norms = np.linspace(3.0, 0.3, 20_000)
    shape = refine_schedule(norms, tau=1e-4, max_peak=1.0).factors
    exact = [math.fsum(shape[k:]) for k in (19_990, 19_998)]
    assert exact[1] > 0
    refined, straight = (optimal_base_lr(s, norms)[1] for s in (shape, linear(20_000)))
    assert 0.3 * straight < refined < straight


def test_trailing_zeros_are_void_and_inner_zeros_are_not() -> None:
    assert last_iterate_bound([0.3, 0.2, 0.0, 0.0], [1, 2, 3, 4]) == last_iterate_bound([0.3, 0.2], [1, 2])
    assert last_iterate_bound([0.3, 0.0, 0.2], [1, 2, 3]) == pytest.approx(
        brute_force([0.3, 0.0, 0.2], [1, 2, 3], 1.0)
    )


def test_numerical_optimum_is_not_above_linear_and_hardly_below() -> None:
    T = 300
    best = minimize_bound(np.ones(T))
    straight = optimal_base_lr(linear(T), 1.0)[1]
    assert best.bound == pytest.approx(last_iterate_bound(best.lrs, 1.0), rel=1e-9)
    assert 0.99 * straight < best.bound <= straight


def test_numerical_optimum_scales_with_distance_and_norms() -> None:
    G = np.linspace(3, 1, 60)
    one, other = minimize_bound(G), minimize_bound(10 * G, distance=5.0)
    assert other.bound == pytest.approx(50 * one.bound, rel=1e-6)
    np.testing.assert_allclose(other.lrs, one.lrs * 5 / 10, rtol=1e-3, atol=1e-6)


def test_numerical_optimum_beats_the_closed_form_on_uneven_norms() -> None:
    G = np.concatenate([np.linspace(10, 1, 30), np.ones(270)])
    refined = refine_schedule(G, tau=1e-3)
    assert minimize_bound(G).bound <= refined.bound(G) < optimal_base_lr(linear(300), G)[1]


def test_closed_form_and_numerical_optimum_have_one_shape() -> None:
    G = np.concatenate([np.linspace(8, 1, 20), np.ones(180)])
    numerical = minimize_bound(G).lrs
    np.testing.assert_allclose(
        refine_schedule(G, tau=1e-3).factors[:180], (numerical / numerical.max())[:180], atol=1e-2
    )


def test_a_solver_that_is_cut_short_says_so() -> None:
    with pytest.raises(RuntimeError, match="max_iterations"):
        minimize_bound(np.linspace(5, 1, 100), max_iterations=2)


@pytest.mark.parametrize(
    ("lrs", "norms", "distance"),
    [
        ([0.1, -0.1], 1.0, 1.0),
        ([0.1, float("nan")], 1.0, 1.0),
        ([0.0, 0.0], 1.0, 1.0),
        ([], 1.0, 1.0),
        ([[0.1]], 1.0, 1.0),
        ([0.1, 0.1], [1.0, 2.0, 3.0], 1.0),
        ([0.1, 0.1], [-1.0, 2.0], 1.0),
        ([0.1, 0.1], 1.0, 0.0),
    ],
)
def test_bad_input_is_refused(lrs, norms, distance) -> None:
    with pytest.raises(ValueError, match=r"must|bound|one per step|above 0"):
        last_iterate_bound(lrs, norms, distance)


def test_zero_norms_have_no_best_rate() -> None:
    for call in (lambda: optimal_base_lr([0.1, 0.1], 0.0), lambda: minimize_bound(np.zeros(4))):
        with pytest.raises(ValueError, match="all gradient norms are 0"):
            call()
    with pytest.raises(ValueError, match="at least 2"):
        minimize_bound([1.0])
    with pytest.raises(ValueError, match="weight"):
        weighted_average_bound([0.0, 0.0], 1.0)
