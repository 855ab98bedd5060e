"""Generators against their definitions and their known best accuracies."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from gradatim.tasks import tabular


@pytest.mark.parametrize("name", [n for n, t in tabular.TABULAR_TASKS.items() if t.draw is not None])
def test_draws_are_seeded_and_leave_global_state_alone(name):
    draw = tabular.TABULAR_TASKS[name].draw
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    X, y = draw(50, 3)
    np.testing.assert_array_equal(X, draw(50, 3)[0])
    np.testing.assert_array_equal(X, draw(50, np.random.default_rng(3))[0])
    assert not np.array_equal(X, draw(50, 4)[0])
    assert len(X) == len(y) == 50
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        draw(0, 0)


def test_twonorm_s_linear_rule_reaches_phi_of_2():
    X, y = tabular.twonorm(40_000, 0)
    assert X.shape == (40_000, 20)
    assert ((X.sum(1) > 0) == y).mean() == pytest.approx(norm.cdf(2.0), abs=0.004)


def test_ringnorm_s_classes_have_their_means_and_spreads():
    for shift in (2 / 20**0.5, 1 / 20**0.5):
        X, y = tabular.ringnorm(40_000, 0, shift)
        np.testing.assert_allclose(X[y == 1].mean(0), 0.0, atol=0.06)
        np.testing.assert_allclose(X[y == 1].std(0), 2.0, atol=0.05)
        np.testing.assert_allclose(X[y == 0].mean(0), shift, atol=0.03)
        np.testing.assert_allclose(X[y == 0].std(0), 1.0, atol=0.03)
    X, y = tabular.ringnorm(5_000, 1)
    a = np.full(20, 2 / 20**0.5)
    bayes = multivariate_normal(np.zeros(20), 4 * np.eye(20)).logpdf(X) > multivariate_normal(a).logpdf(X)
    assert 0.97 < (bayes == y).mean() < 0.995


def test_waveform_by_hand():
    waves = tabular.base_waves()
    for j, c in enumerate((7, 15, 11)):
        for i in range(1, 22):
            assert waves[j, i - 1] == max(6 - abs(i - c), 0)
    X, y = tabular.waveform(60_000, 0)
    for k, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        rows = X[y == k]
        np.testing.assert_allclose(rows.mean(0), (waves[a] + waves[b]) / 2, atol=0.06)
        # Along the difference of its two waves a class varies by 1/12 |h_a - h_b|^2 beside the noise.
        gap = waves[a] - waves[b]
        along = (rows @ gap) / np.linalg.norm(gap)
        assert along.var() == pytest.approx(1 + gap @ gap / 12, rel=0.03)


def test_friedman1_residual_is_the_noise():
    X, y = tabular.friedman1(20_000, 0)
    signal = 10 * np.sin(np.pi * X[:, 0] * X[:, 1]) + 20 * (X[:, 2] - 0.5) ** 2 + 10 * X[:, 3] + 5 * X[:, 4]
    assert (y - signal).std() == pytest.approx(1.0, abs=0.03)
    assert (tabular.friedman1(50, 0, noise=0.0)[0] == tabular.friedman1(50, 0)[0]).all()


def test_bundled_sets_have_their_documented_shapes():
    shapes = {"breast_cancer": (569, 30), "digits": (1797, 64), "wine": (178, 13), "iris": (150, 4),
              "diabetes": (442, 10)}  # fmt: skip
    for name, shape in shapes.items():
        task = tabular.TABULAR_TASKS[name]
        X, y = task.load()
        assert X.shape == shape
        assert X.dtype == np.float64
        assert (len(np.unique(y)) > 20) == (task.kind == "regression")
