"""Losses against definitions written out with plain math, steps against brute force over a grid."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.models.boosted_objectives import (
    CrossEntropy,
    LogExponential,
    SquaredError,
    block_step,
    clip_step,
    exact_step,
    newton_step,
)


def _case(name, n=40, seed=0):
    rng = np.random.default_rng(seed)
    if name == "squared":
        return SquaredError(), rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    if name == "binary":
        return LogExponential(), rng.choice([-1.0, 1.0], (n, 1)), rng.normal(size=(n, 1))
    return CrossEntropy(), np.eye(4)[rng.integers(0, 4, n)], rng.normal(size=(n, 4))


CASES = ("squared", "binary", "multiclass")


def _loss_by_hand(name, y, F):
    if name == "squared":
        return sum(0.5 * (a - b) ** 2 for a, b in zip(y, F, strict=True))
    if name == "binary":
        return math.log(1 + math.exp(-2 * y[0] * F[0]))
    return -math.log(math.exp(F[int(np.argmax(y))]) / sum(math.exp(v) for v in F))


@pytest.mark.parametrize("name", CASES)
def test_loss_equals_its_definition_row_by_row(name):
    objective, y, F = _case(name)
    by_hand = [_loss_by_hand(name, y[i], F[i]) for i in range(len(y))]
    np.testing.assert_allclose(objective.loss(y, F), by_hand, rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradient_and_curvature_equal_central_differences(name):
    objective, y, F = _case(name)
    e = 1e-4
    for j in range(F.shape[1]):
        up, down = F.copy(), F.copy()
        up[:, j] += e
        down[:, j] -= e
        slope = (objective.loss(y, up) - objective.loss(y, down)) / (2 * e)
        bend = (objective.gradient(y, up) - objective.gradient(y, down))[:, j] / (2 * e)
        np.testing.assert_allclose(objective.gradient(y, F)[:, j], slope, atol=1e-7)
        np.testing.assert_allclose(objective.hessian_diag(y, F)[:, j], bend, atol=1e-7)


def test_binary_curvature_is_r_times_2y_minus_r():
    objective, y, F = _case("binary")
    r = -objective.gradient(y, F)
    np.testing.assert_allclose(r, 2 * y / (1 + np.exp(2 * y * F)), rtol=1e-12)
    np.testing.assert_allclose(objective.hessian_diag(y, F), r * (2 * y - r), rtol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_initial_constant_has_the_least_weighted_loss(name):
    objective, y, _ = _case(name)
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.1, 2.0, len(y))
    c = objective.initial(y, weight)

    def total(constant):
        return weight @ objective.loss(y, np.tile(constant, (len(y), 1)))

    for _ in range(50):
        assert total(c) <= total(c + 0.05 * rng.normal(size=c.shape)) + 1e-12
    if name == "binary":
        mean = (weight @ y[:, 0]) / weight.sum()
        assert c[0] == pytest.approx(0.5 * math.log((1 + mean) / (1 - mean)))
    if name == "multiclass":
        assert c.sum() == pytest.approx(0.0, abs=1e-12)


def test_newton_steps_equal_the_closed_forms_summed_in_a_loop():
    for name in ("binary", "multiclass"):
        objective, y, F = _case(name)
        h = -objective.gradient(y, F) + 0.1
        weight = np.random.default_rng(2).uniform(0.5, 2.0, len(y))
        top = bottom = 0.0
        for i in range(len(y)):
            for j in range(F.shape[1]):
                if name == "binary":
                    r = 2 * y[i, j] / (1 + math.exp(2 * y[i, j] * F[i, j]))
                    top += weight[i] * r * h[i, j]
                    bottom += weight[i] * r * h[i, j] ** 2 * (2 * y[i, j] - r)
                else:
                    p = math.exp(F[i, j]) / sum(math.exp(v) for v in F[i])
                    top += weight[i] * h[i, j] * (y[i, j] - p)
                    bottom += weight[i] * h[i, j] ** 2 * p * (1 - p)
        step = block_step(objective, y, F, h, weight, "newton")
        assert step == pytest.approx(top / bottom, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_exact_step_beats_a_fine_grid(name):
    objective, y, F = _case(name)
    h = -objective.gradient(y, F)
    weight = np.ones(len(y))
    rho = exact_step(objective, y, F, h, weight)
    losses = [objective.loss(y, F + g * h).sum() for g in np.linspace(0, 20, 4001)]
    assert objective.loss(y, F + rho * h).sum() <= min(losses) + 1e-12
    if name == "squared":
        assert rho == pytest.approx((h * (y - F)).sum() / (h * h).sum())


def test_squared_error_takes_the_whole_block_under_newton():
    objective, y, F = _case("squared")
    assert block_step(objective, y, F, 0.3 * (y - F), np.ones(len(y)), "newton") == 1.0
    assert block_step(objective, y, F, 0.3 * (y - F), np.ones(len(y)), "exact") == pytest.approx(1 / 0.3)


def test_a_block_that_does_not_descend_gets_step_0():
    for name in CASES:
        objective, y, F = _case(name)
        uphill = objective.gradient(y, F)
        weight = np.ones(len(y))
        assert newton_step(objective.gradient(y, F), objective.hessian_diag(y, F), uphill, weight) == 0.0
        assert exact_step(objective, y, F, uphill, weight) == 0.0
    assert block_step(SquaredError(), y, F, np.full_like(F, np.inf), weight, "newton") == 0.0


def test_separable_rows_give_a_finite_exact_step():
    y, F = np.array([[1.0], [-1.0]]), np.zeros((2, 1))
    assert np.isfinite(exact_step(LogExponential(), y, F, y.copy(), np.ones(2)))


@given(st.floats(-1e4, 1e4), st.sampled_from([-1.0, 1.0]))
def test_binary_loss_never_overflows(score, label):
    y, F = np.array([[label]]), np.array([[score]])
    o = LogExponential()
    for value in (o.loss(y, F), o.gradient(y, F), o.hessian_diag(y, F)):
        assert np.isfinite(value).all()


@given(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=6))
def test_multiclass_loss_never_overflows(scores):
    F = np.array([scores])
    y = np.eye(len(scores))[[0]]
    o = CrossEntropy()
    for value in (o.loss(y, F), o.gradient(y, F), o.hessian_diag(y, F)):
        assert np.isfinite(value).all()


@settings(max_examples=50)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(1e-2, 10))
def test_clipping_halves_until_it_fits_and_no_further(step, h, r, limit):
    clipped = clip_step(step, h, r, limit)
    halvings = math.log2(step / clipped)
    assert halvings == pytest.approx(round(halvings), abs=1e-9)
    assert clipped * h <= limit * r * (1 + 1e-9)
    if clipped < step:
        assert 2 * clipped * h > limit * r * (1 - 1e-9)
    assert clip_step(step, h, r, None) == step
