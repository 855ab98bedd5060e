"""One block against finite differences, brute-force loops and scikit-learn's MLPRegressor."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.neural_network import MLPRegressor

from gradatim.models.boosted_block import (
    Block,
    _full_objective,
    _reduced_objective,
    draw_start,
    fit_block,
    initial_bound,
    with_ones,
)

ACTIVATIONS = ("logistic", "tanh", "relu", "identity")
PLAIN = {
    "logistic": expit,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "identity": lambda z: z,
}


def _data(n=80, d=4, k=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    R = np.column_stack([np.sin(X[:, 0]) + 0.3 * X[:, 1], X[:, 2] * X[:, 0]])[:, :k]
    return X, R + 0.1 * rng.normal(size=R.shape), rng.uniform(0.2, 2.0, n)


def _objective_by_hand(X, R, weight, W1, c1, W2, c2, activation, alpha):
    total = 0.0
    for i in range(len(X)):
        h = PLAIN[activation](X[i] @ W1 + c1) @ W2 + c2
        total += 0.5 * weight[i] * float(((h - R[i]) ** 2).sum())
    ridge = 0.5 * alpha * (float((W1**2).sum()) + float((W2**2).sum()))
    return (total + ridge) / weight.sum()


def _unpack(theta, d, units, k):
    inner = theta[: units * (d + 1)].reshape(units, d + 1)
    outer = theta[units * (d + 1) :].reshape(k, units + 1)
    return inner[:, :-1].T, inner[:, -1], outer[:, :-1].T, outer[:, -1]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_both_objectives_equal_the_formula_and_their_gradients_its_differences(activation, weighted):
    X, R, weight = _data()
    units, d, k, alpha = 3, 4, 2, 0.7
    given = weight if weighted else None
    w = weight if weighted else np.ones(len(X))
    theta = draw_start(d, units, k, activation, np.random.default_rng(3))
    full = _full_objective(with_ones(X), R.T.copy(), units, given, w.sum(), activation, alpha)
    value, gradient = full(theta)
    by_hand = _objective_by_hand(X, R, w, *_unpack(theta, d, units, k), activation, alpha)
    assert value == pytest.approx(by_hand, rel=1e-12)
    reduced = _reduced_objective(with_ones(X), R.T.copy(), units, given, w.sum(), activation, alpha)
    inner = theta[: units * (d + 1)]
    value, short, outer = reduced(inner)
    at_best = np.concatenate([inner, outer.T.ravel()])
    assert value == pytest.approx(full(at_best)[0], rel=1e-12)
    # The eliminated weights are where the full gradient over them vanishes.
    np.testing.assert_allclose(full(at_best)[1][units * (d + 1) :], 0.0, atol=1e-11)
    for function, point, g in ((full, theta, gradient), (reduced, inner, short)):
        for j in range(0, len(point), 3):
            up, down = point.copy(), point.copy()
            up[j] += 1e-6
            down[j] -= 1e-6
            assert g[j] == pytest.approx((function(up)[0] - function(down)[0]) / 2e-6, abs=1e-7)


def _sklearn_from(start, X, R, units, activation, alpha, max_iter, tol, weight=None):
    """MLPRegressor(solver='lbfgs') made to start where we start, by its warm start."""
    mlp = MLPRegressor(
        hidden_layer_sizes=(units,), activation=activation, solver="lbfgs", alpha=alpha, tol=tol,
        max_iter=1, warm_start=True, random_state=0,
    )  # fmt: skip
    y = R.ravel() if R.shape[1] == 1 else R
    mlp.fit(X, y)
    W1, c1, W2, c2 = _unpack(start, X.shape[1], units, R.shape[1])
    mlp.coefs_ = [W1.copy(), W2.copy()]
    mlp.intercepts_ = [c1.copy(), c2.copy()]
    mlp.set_params(max_iter=max_iter)
    return mlp.fit(X, y, sample_weight=weight)


# MLPRegressor warns where it stops at max_iter, as its first, one-iteration fit must.
# One output: with several, MLPRegressor averages its value over outputs but not its gradient.
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("activation", ["logistic", "tanh"])
@pytest.mark.parametrize("weighted", [False, True])
def test_same_objective_and_same_weights_as_mlp_regressor_from_the_same_start(activation, weighted):
    X, R, weight = _data(k=1)
    w = weight if weighted else None
    start = draw_start(4, 2, 1, activation, np.random.default_rng(5))
    settings = {"activation": activation, "alpha": 0.5, "max_iter": 500, "tol": 1e-7}
    ours = fit_block(with_ones(X), R, 2, start=start, weight=w, solver="lbfgs", **settings)
    theirs = _sklearn_from(start, X, R, 2, weight=w, **settings)
    assert ours.objective == pytest.approx(theirs.loss_, rel=1e-9)
    np.testing.assert_allclose(ours(with_ones(X))[:, 0], theirs.predict(X), atol=1e-5)
    np.testing.assert_allclose(ours.W1, theirs.coefs_[0], atol=1e-4)
    # And after five iterations only, far from the optimum: it is the same search, not only the same end.
    settings["max_iter"] = 5
    ours = fit_block(with_ones(X), R, 2, start=start, weight=w, solver="lbfgs", **settings)
    theirs = _sklearn_from(start, X, R, 2, weight=w, **settings)
    np.testing.assert_allclose(ours.W1, theirs.coefs_[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.W2, theirs.coefs_[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("solver", ["lbfgs", "varpro"])
def test_the_end_is_a_minimum_of_the_formula(solver, k):
    X, R, weight = _data(n=40, k=k)
    start = draw_start(4, 2, k, "logistic", np.random.default_rng(1))
    block = fit_block(
        with_ones(X), R, 2, start=start, weight=weight, alpha=0.5, max_iter=2000, tol=1e-8, solver=solver
    )

    def formula(theta):
        return _objective_by_hand(X, R, weight, *_unpack(theta, 4, 2, k), "logistic", 0.5)

    theta = np.concatenate([np.column_stack([block.W1.T, block.c1]).ravel(),
                            np.column_stack([block.W2.T, block.c2]).ravel()])  # fmt: skip
    assert formula(theta) == pytest.approx(block.objective, rel=1e-10)
    onward = minimize(formula, theta, method="BFGS", options={"maxiter": 3})
    assert onward.fun > block.objective - 1e-7


def test_variable_projection_needs_fewer_iterations_to_as_low_an_objective():
    X, R, _ = _data(n=300, k=1)
    totals = {}
    for solver in ("lbfgs", "varpro"):
        blocks = [
            fit_block(
                with_ones(X), R, 1, start=draw_start(4, 1, 1, "logistic", np.random.default_rng(s)),
                alpha=1e-2, max_iter=200, tol=1e-6, solver=solver,
            )
            for s in range(20)
        ]  # fmt: skip
        totals[solver] = (np.mean([b.objective for b in blocks]), sum(b.n_iter for b in blocks))
    assert totals["varpro"][1] < 0.7 * totals["lbfgs"][1]
    assert totals["varpro"][0] <= totals["lbfgs"][0] * 1.05


def test_integer_weights_equal_repeated_rows():
    X, R, _ = _data(n=50)
    times = np.random.default_rng(0).integers(1, 4, 50)
    start = draw_start(4, 2, 2, "tanh", np.random.default_rng(1))
    for solver in ("varpro", "lbfgs"):
        settings = {"start": start, "activation": "tanh", "alpha": 1.0, "tol": 1e-9, "solver": solver}
        weighted = fit_block(with_ones(X), R, 2, weight=times.astype(float), **settings)
        repeated = fit_block(with_ones(np.repeat(X, times, 0)), np.repeat(R, times, 0), 2, **settings)
        np.testing.assert_allclose(weighted(with_ones(X)), repeated(with_ones(X)), atol=1e-7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_block_call_equals_the_formula(activation):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(7, 3))
    W1, c1, W2, c2 = rng.normal(size=(3, 2)), rng.normal(size=2), rng.normal(size=(2, 4)), rng.normal(size=4)
    block = Block(W1, c1, W2, c2, activation, 0.0, 1, 1)
    expected = PLAIN[activation](X @ W1 + c1) @ W2 + c2
    np.testing.assert_allclose(block(with_ones(X)), expected, rtol=1e-13, atol=1e-13)


def test_huge_inputs_and_dead_units_stay_finite():
    X = np.vstack([np.full((10, 2), 1e6), np.full((10, 2), -1e6)])
    R = np.repeat([[1.0], [-1.0]], 10, 0)
    for activation, alpha in itertools.product(("logistic", "relu"), (0.0, 1e-2)):
        for seed in range(4):
            start = draw_start(2, 2, 1, activation, np.random.default_rng(seed))
            block = fit_block(with_ones(X), R, 2, start=start, activation=activation, alpha=alpha)
            assert np.isfinite(block(with_ones(X))).all()
    constant = fit_block(with_ones(np.zeros((6, 2))), np.ones((6, 1)), 1, start=np.zeros(5), alpha=0.0)
    np.testing.assert_allclose(constant(with_ones(np.zeros((6, 2)))), 1.0, atol=1e-6)


def test_start_follows_the_stated_bounds():
    assert initial_bound(20, 1, "logistic") == pytest.approx((2 / 21) ** 0.5)
    assert initial_bound(20, 1, "relu") == pytest.approx((6 / 21) ** 0.5)
    theta = draw_start(50, 4, 1, "tanh", np.random.default_rng(0))
    inner, outer = theta[: 4 * 51], theta[4 * 51 :]
    assert np.abs(inner).max() <= (6 / 54) ** 0.5 < 1.05 * np.abs(inner).max()
    assert np.abs(outer).max() <= (6 / 5) ** 0.5
