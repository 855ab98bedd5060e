"""Every reference algorithm against a step-by-step loop or a closed form; then properties."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.probes import (
    BFGS,
    LBFGS,
    Averaging,
    BayesLinear,
    ConjugateGradient,
    ContextSpectra,
    GradientDescent,
    GradientDescentPlusPlus,
    GradientFlow,
    IterativeNewton,
    KernelFilter,
    KernelGradientDescent,
    KNeighbors,
    LeastSquares,
    OnlineGradientDescent,
    PreconditionedGradientDescent,
    Predictor,
    Ridge,
    Zero,
    sweep,
)
from gradatim.probes.spectral import geometric_complement
from gradatim.tasks import LinearRegressionTask

F64 = torch.float64


def contexts(d=5, n=12, batch=4, seed=0, **options):
    drawn = LinearRegressionTask(d, n, **options).sample(
        batch, generator=torch.Generator().manual_seed(seed), dtype=F64
    )
    return drawn.x, drawn.y


def by_prefix(solve, x, y):
    """Predictions of `solve(X, y) -> w` refitted on every prefix of every context."""
    out = torch.zeros_like(y)
    for b in range(len(x)):
        for t in range(1, x.shape[1]):
            out[b, t] = x[b, t] @ solve(x[b, :t], y[b, :t])
    return out


def gd_loop(steps, lr, momentum=0.0, mean=False, factor=1.0):
    def solve(x, y):
        rates = [lr] * steps if isinstance(lr, float) else lr
        w = last = torch.zeros(x.shape[1], dtype=x.dtype)
        for rate in rates:
            gradient = factor * x.T @ (x @ w - y) / (len(x) if mean else 1)
            w, last = w - rate * gradient + momentum * (w - last), w
        return w

    return solve


def newton_loop(steps, alpha):
    def solve(x, y):
        s = x.T @ x
        m = {"frobenius": 1 / torch.linalg.norm(s @ s.T), "spectral": 1 / torch.linalg.norm(s, 2) ** 2}.get(
            alpha, alpha
        ) * s
        for _ in range(steps):
            m = 2 * m - m @ s @ m
        return m @ x.T @ y

    return solve


def gd_pp_loop(schedule, mean=True):
    """On the inputs themselves: every step moves labels and inputs, and the query with them."""

    def predict(x, y, query):
        pairs, labels, q, out = x.clone(), y.clone(), query.clone(), 0.0
        for lr, gamma in schedule:
            rate = lr / (len(x) if mean else 1)
            w = rate * pairs.T @ labels
            out += w @ q
            labels = labels - pairs @ w
            move = torch.eye(x.shape[1], dtype=x.dtype) - gamma * pairs.T @ pairs
            pairs, q = pairs @ move, move @ q
        return out

    return predict


@pytest.mark.parametrize("alpha", ["frobenius", "spectral", 1e-4])
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 12])
def test_newton_is_the_matrix_iteration(steps, alpha):
    x, y = contexts()
    got = IterativeNewton(steps, alpha).predict(x, y)
    assert torch.allclose(got, by_prefix(newton_loop(steps, alpha), x, y), atol=1e-10)


@pytest.mark.parametrize(("steps", "lr"), [(0, 0.1), (1, 0.02), (2, 0.02), (7, 0.03), (40, 0.04)])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_gradient_descent_is_its_loop(steps, lr, momentum):
    x, y = contexts()
    got = GradientDescent(steps, lr, momentum=momentum).predict(x, y)
    assert torch.allclose(got, by_prefix(gd_loop(steps, lr, momentum), x, y), atol=1e-10)


def test_conventions_of_gradient_descent():
    x, y = contexts()
    mean = GradientDescent(3, 0.1, "mean", factor=2.0)
    assert torch.allclose(mean.predict(x, y), by_prefix(gd_loop(3, 0.1, mean=True, factor=2.0), x, y))
    own = GradientDescent(3, (0.01, 0.05, 0.02), momentum=0.3)
    assert torch.allclose(own.predict(x, y), by_prefix(gd_loop(3, [0.01, 0.05, 0.02], 0.3), x, y))
    plain = GradientDescent(3, [0.01, 0.05, 0.02])
    assert torch.allclose(plain.predict(x, y), by_prefix(gd_loop(3, [0.01, 0.05, 0.02]), x, y))
    assert mean.name == "GD(3 steps, 0.1, mean, factor 2)"
    assert GradientDescent(1, 0.01).name == "GD(1 step, 0.01)"
    # Akyurek's one batch step on the summed square, as its formula has it.
    one = GradientDescent(1, 0.01, factor=2.0)
    assert torch.allclose(one.predict(x, y), by_prefix(lambda a, b: 2 * 0.01 * a.T @ b, x, y))


@pytest.mark.parametrize("mean", [True, False])
def test_gd_plus_plus_moves_inputs_and_labels(mean):
    x, y = contexts(d=4, n=9)
    scale = 1.0 if mean else 0.1
    schedule = [(0.3 * scale, 0.01), (0.5 * scale, 0.02), (0.2 * scale, -0.01)]
    step = gd_pp_loop(schedule, mean)
    want = torch.zeros_like(y)
    for b in range(len(x)):
        for t in range(1, 9):
            want[b, t] = step(x[b, :t], y[b, :t], x[b, t])
    lr, gamma = zip(*schedule, strict=True)
    got = GradientDescentPlusPlus(lr, gamma, reduction="mean" if mean else "sum").predict(x, y)
    assert torch.allclose(got, want, atol=1e-12)


def test_gd_plus_plus_without_gamma_is_gradient_descent():
    x, y = contexts()
    assert torch.allclose(
        GradientDescentPlusPlus(0.2, 0.0, 4).predict(x, y), GradientDescent(4, 0.2, "mean").predict(x, y)
    )
    assert GradientDescentPlusPlus(0.2, (0.1, 0.2)).steps == 2
    assert GradientDescentPlusPlus(0.2, 0.1).steps == 1


@pytest.mark.parametrize(("d", "n"), [(5, 12), (9, 6)])
def test_closed_forms(d, n):
    x, y = contexts(d, n, sigma=0.3)
    eye = torch.eye(d, dtype=F64)

    def ridge(alpha):
        return by_prefix(lambda a, b: torch.linalg.solve(a.T @ a + alpha * eye, a.T @ b), x, y)

    ols = by_prefix(lambda a, b: torch.linalg.pinv(a) @ b, x, y)
    assert torch.allclose(LeastSquares().predict(x, y), ols, atol=1e-8)
    assert torch.allclose(Ridge(0.0).predict(x, y), ols, atol=1e-8)
    assert torch.allclose(Ridge(0.7).predict(x, y), ridge(0.7), atol=1e-11)
    assert torch.allclose(BayesLinear(0.5, 2.0).predict(x, y), ridge(0.0625), atol=1e-11)
    mean = by_prefix(lambda a, b: a.T @ b / len(a), x, y)
    assert torch.allclose(Averaging().predict(x, y), mean)
    flow = by_prefix(
        lambda a, b: torch.linalg.pinv(a.T @ a) @ (eye - torch.matrix_exp(-0.3 * a.T @ a)) @ a.T @ b, x, y
    )
    assert torch.allclose(GradientFlow(0.3).predict(x, y), flow, atol=1e-8)
    assert torch.equal(Zero().predict(x, y), torch.zeros_like(y))
    assert torch.allclose(KernelFilter(lambda v: 1 / (v + 0.7)).predict(x, y), ridge(0.7), atol=1e-11)


@pytest.mark.parametrize(("d", "n"), [(5, 12), (9, 6)])
def test_long_newton_and_long_descent_end_at_least_squares(d, n):
    x, y = contexts(d, n, batch=8, seed=3)
    ols = LeastSquares().predict(x, y)
    assert torch.allclose(IterativeNewton(60).predict(x, y), ols, atol=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(IterativeNewton(2000, "spectral").predict(x, y), ols, atol=1e-8)
    assert torch.allclose(GradientFlow(1e12).predict(x, y), ols, atol=1e-8)


@pytest.mark.parametrize("boundary", [1.0, 1.5])
def test_newton_refuses_the_divergence_boundary(boundary):
    x, y = contexts()
    largest = torch.linalg.eigvalsh(x[:, :-1].mT @ x[:, :-1]).max()
    with pytest.raises(ValueError, match="would not converge"):
        IterativeNewton(3, float(2 / largest**2) * boundary).predict(x, y)
    IterativeNewton(3, float(1.99 / largest**2)).predict(x, y)


@pytest.mark.parametrize("d", [3, 6])
def test_krylov_methods_end_at_least_squares_and_agree(d):
    x, y = contexts(d, 10, batch=8, seed=1, sigma=0.1)
    ols = LeastSquares().predict(x, y)
    cg = ConjugateGradient(d)
    assert torch.allclose(cg.predict(x, y), ols, atol=1e-7)
    assert torch.allclose(BFGS(d).predict(x, y), ols, atol=1e-7)
    assert torch.allclose(LBFGS(d, d).predict(x, y), ols, atol=1e-7)
    paths = [p.path(x, y, 3) for p in (ConjugateGradient(0), BFGS(0), LBFGS(0))]
    assert torch.allclose(paths[0], paths[1], atol=1e-9)
    assert torch.allclose(paths[0], paths[2], atol=1e-9)
    # Many steps after convergence neither divide by zero nor wander off.
    for p in (ConjugateGradient(50), BFGS(50), LBFGS(50, 2)):
        assert torch.allclose(p.predict(x, y), ols, atol=1e-6)


def test_conjugate_gradients_against_scipy():
    from scipy.sparse.linalg import cg

    x, y = contexts(6, 12, seed=2)
    a, b = x[0, :-1].T @ x[0, :-1], x[0, :-1].T @ y[0, :-1]
    seen = []
    cg(a.numpy(), b.numpy(), rtol=1e-14, callback=lambda w: seen.append(w.copy()))
    for k in (1, 2, 3, 4):
        ours = ConjugateGradient(k).coef(x[:1], y[:1])[0, -1]
        assert np.allclose(ours, seen[k - 1], atol=1e-8)


@pytest.mark.parametrize("search", ["unit", "armijo"])
def test_inexact_bfgs_differs_on_the_way_and_meets_least_squares(search):
    x, y = contexts(4, 10, batch=6, x="normal*0.3")
    assert not torch.allclose(BFGS(2, search).predict(x, y), ConjugateGradient(2).predict(x, y), atol=1e-3)
    assert torch.allclose(BFGS(60, search).predict(x, y), LeastSquares().predict(x, y), atol=1e-5)


def bfgs_unit_loop(steps):
    def solve(x, y):
        d = x.shape[1]
        w, inverse, eye = torch.zeros(d, dtype=F64), torch.eye(d, dtype=F64), torch.eye(d, dtype=F64)
        for _ in range(steps):
            g = x.T @ (x @ w - y)
            s = -inverse @ g
            u = x.T @ x @ s
            r = u @ s
            left = eye - torch.outer(s, u) / r
            inverse = left @ inverse @ left.T + torch.outer(s, s) / r
            w = w + s
        return w

    return solve


def test_bfgs_follows_its_formula_with_unit_steps():
    x, y = contexts(4, 8, x="normal*0.4")
    got = BFGS(3, "unit").predict(x, y)[:, 2:]
    assert torch.allclose(got, by_prefix(bfgs_unit_loop(3), x, y)[:, 2:], atol=1e-10)


def test_online_descent():
    x, y = contexts(sigma=0.2)
    coef = OnlineGradientDescent().coef(x, y)
    newest = (coef[:, 1:] * x[:, :-1]).sum(-1)
    assert torch.allclose(newest, y[:, :-1], atol=1e-12)
    w = torch.full((4, 5), 0.1, dtype=F64)
    got = OnlineGradientDescent(0.03, factor=2.0, decay=0.5, w0=[0.1] * 5).coef(x, y)
    for t in range(12):
        assert torch.allclose(got[:, t], w)
        error = (x[:, t] * w).sum(-1, keepdim=True) - y[:, t, None]
        w = w - 2 * 0.03 * (x[:, t] * error + 0.5 * w)
    silent = OnlineGradientDescent().predict(torch.zeros(1, 3, 2), torch.ones(1, 3))
    assert torch.equal(silent, torch.zeros(1, 3))


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_neighbours_against_scikit_learn(weights):
    from sklearn.neighbors import KNeighborsRegressor

    x, y = contexts(3, 10, batch=2)
    got = KNeighbors(3, weights).predict(x, y)
    how = weights if weights == "uniform" else (lambda distance: distance**-2)
    for b in range(2):
        for t in range(1, 10):
            peer = KNeighborsRegressor(min(3, t), weights=how).fit(x[b, :t].numpy(), y[b, :t].numpy())
            assert float(got[b, t]) == pytest.approx(peer.predict(x[b, t : t + 1].numpy())[0])
    repeated = torch.cat([x[:, :4], x[:, 2:3]], dim=1)
    exact = KNeighbors(3, "distance").predict(repeated, torch.cat([y[:, :4], y[:, :1]], dim=1))
    assert torch.allclose(exact[:, 4], y[:, 2])
    assert torch.equal(got[:, 0], torch.zeros(2, dtype=F64))


def test_preconditioned_and_kernel_descent():
    x, y = contexts(3, 8)
    p = torch.tensor([[0.2, 0.1, 0.0], [0.0, 0.3, 0.0], [0.05, 0.0, 0.1]], dtype=F64)
    got = PreconditionedGradientDescent(p).predict(x, y)
    assert torch.allclose(got, by_prefix(lambda a, b: p @ a.T @ b / len(a), x, y))

    def twice(a, b):
        w = p @ a.T @ b
        return w - p @ (a.T @ a @ w - a.T @ b)

    got = PreconditionedGradientDescent(p, 2, "sum").predict(x, y)
    assert torch.allclose(got, by_prefix(twice, x, y))
    for m in (2, 20):  # narrower and wider than the context is long
        lift = torch.randn(3, m, generator=torch.Generator().manual_seed(m), dtype=F64)

        def features(x, lift=lift):
            return torch.tanh(x @ lift)

        got = KernelGradientDescent(features, 0.1, 4).predict(x, y)
        assert torch.allclose(got, by_prefix(gd_loop(4, 0.1, mean=True), features(x), y), atol=1e-11)


FILTERS = [
    Zero(),
    LeastSquares(),
    Ridge(0.3),
    BayesLinear(0.4, 1.5),
    Averaging(),
    GradientFlow(0.2),
    GradientFlow(0.2, "mean"),
    GradientDescent(6, 0.02),
    GradientDescent(3, (0.01, 0.02, 0.03), "mean"),
    GradientDescent(5, 0.02, momentum=0.5),
    GradientDescentPlusPlus(0.3, 0.01, 3),
    IterativeNewton(4),
    IterativeNewton(2, "spectral"),
]
OTHERS = [
    OnlineGradientDescent(),
    ConjugateGradient(2),
    BFGS(2),
    LBFGS(2, 1),
    KNeighbors(2),
    PreconditionedGradientDescent([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.2, 0.1]]),
    KernelGradientDescent(torch.tanh, 0.1, 2),
]


@pytest.mark.parametrize("p", [*FILTERS, *OTHERS], ids=lambda p: p.name)
def test_every_predictor_is_causal_and_keeps_the_dtype(p):
    x, y = contexts(3, 8)
    assert isinstance(p, Predictor)
    first = p.predict(x, y)
    assert torch.equal(first[:, 0], torch.zeros(4, dtype=F64))
    later_x, later_y = x.clone(), y.clone()
    later_x[:, 6:] += 1.0
    later_y[:, 5:] -= 2.0
    assert torch.allclose(p(later_x, later_y)[:, :6], first[:, :6], atol=1e-12)
    single = p.predict(x.float(), y.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), first, atol=1e-4)
    if hasattr(p, "coef"):
        coef = p.coef(x, y)
        assert torch.allclose((coef * x).sum(-1), first, atol=1e-10)
        assert torch.equal(coef[:, 0], torch.zeros(4, 3, dtype=F64))
    if hasattr(p, "weights") and not isinstance(p, KNeighbors):
        longer = torch.cat([x, x[:, :1]], dim=1), torch.cat([y, y[:, :1]], dim=1)
        assert torch.allclose(p.weights(x, y), p.coef(*longer)[:, -1], atol=1e-9)


@pytest.mark.parametrize("p", FILTERS, ids=lambda p: p.name)
def test_wide_inputs_take_the_other_decomposition_to_the_same_answer(p):
    # Padding with zero columns changes no algorithm, but sends the context through X X^T.
    x, y = contexts(3, 8, sigma=0.2)
    padded = torch.cat([x, torch.zeros(4, 8, 7, dtype=F64)], dim=-1)
    assert torch.allclose(p.predict(padded, y), p.predict(x, y), atol=1e-9)
    assert torch.allclose(p.coef(padded, y)[..., :3], p.coef(x, y), atol=1e-9)


def test_a_sweep_is_the_predictions_one_by_one():
    x, y = contexts(3, 8, batch=7)
    together = sweep([*FILTERS, *OTHERS], x, y)
    kept = ContextSpectra(x, y)
    for p, got in zip([*FILTERS, *OTHERS], together, strict=True):
        assert torch.allclose(got, p.predict(x, y), atol=1e-12)
        assert torch.allclose(kept.predict(p), got, atol=1e-12)
    assert sweep([KNeighbors(2)], x.float(), y.float()).dtype == torch.float32


def test_chunks_do_not_show(monkeypatch):
    import gradatim.probes.spectral as spectral

    x, y = contexts(3, 8, batch=7)
    whole = sweep(FILTERS, x, y)
    coef = Ridge(0.3).coef(x, y)
    monkeypatch.setattr(spectral, "CHUNK", 150)
    assert torch.allclose(sweep(FILTERS, x, y), whole, atol=1e-13)
    assert torch.allclose(Ridge(0.3).coef(x, y), coef, atol=1e-13)


@pytest.mark.parametrize(
    "p",
    [GradientDescent(1, 0.02), GradientDescentPlusPlus(0.2, 0.01), IterativeNewton(1), ConjugateGradient(1)],
)
def test_a_path_is_one_prediction_per_step_count(p):
    from dataclasses import replace

    x, y = contexts()
    path = p.path(x, y, 3)
    assert path.shape == (3, 4, 12)
    for k in (1, 2, 3):
        assert torch.allclose(path[k - 1], replace(p, steps=k).predict(x, y), atol=1e-12)
    chosen = p.path(x, y, [4, 0, 2])
    assert torch.allclose(chosen[2], path[1])
    with pytest.raises(ValueError, match="step counts"):
        p.path(x, y, [])


@pytest.mark.parametrize("p", [p for p in FILTERS if p.name != "averaging"], ids=lambda p: p.name)
def test_risk_is_the_mean_squared_error_over_weights_noise_and_queries(p):
    d, n, trials, tau, sigma, scale = 3, 6, 40_000, 1.3, 0.5, 0.7
    g = torch.Generator().manual_seed(5)
    x = scale * torch.randn(1, n, d, generator=g, dtype=F64)
    eigenvalues = torch.linalg.eigvalsh(x[0].T @ x[0])
    risk = p.risk(eigenvalues, n, tau=tau, sigma=sigma, second_moment=scale**2)
    # The estimator is linear in y: its matrix comes from unit labels, and weights and noise are drawn.
    matrix = p.weights(x.expand(n, n, d), torch.eye(n, dtype=F64)).T  # [d, n]
    w = tau * torch.randn(trials, d, generator=g, dtype=F64)
    y = w @ x[0].T + sigma * torch.randn(trials, n, generator=g, dtype=F64)
    query = scale * torch.randn(trials, d, generator=g, dtype=F64)
    errors = ((w - y @ matrix.T) * query).sum(-1).square()
    assert float(risk) == pytest.approx(float(errors.mean()), abs=5 * float(errors.std()) / trials**0.5)


def test_a_risk_that_needs_the_number_of_pairs_says_so():
    with pytest.raises(ValueError, match="count="):
        GradientDescent(1, 0.1, "mean").risk(torch.ones(3))
    assert float(Averaging().risk(torch.full((3,), 4.0, dtype=F64), 4)) == 0


@pytest.mark.parametrize(
    "p",
    [
        GradientDescent(2, 1.0),
        GradientDescent(2000, 0.5),
        GradientDescent(900, 2.0, momentum=0.5),
        GradientDescentPlusPlus(0.1, 0.2, 2),
        GradientDescentPlusPlus(4.0, 0.0, 3),
    ],
)
def test_divergence_warns_and_stays_finite(p):
    x, y = contexts()
    with pytest.warns(RuntimeWarning, match="diverges"):
        found = p.predict(x, y)
    assert bool(found.isfinite().all())
    sweep([p], x, y)  # no warning: a sweep is meant to include such rates


def test_a_single_large_step_does_not_diverge():
    x, y = contexts()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradientDescent(1, 10.0).predict(x, y)
        GradientDescent(2, [10.0, 1.0]).predict(x, y)


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1.999), st.integers(0, 200))
def test_the_complement_of_a_power_is_exact(z, steps):
    from fractions import Fraction

    got = float(geometric_complement(torch.tensor([z], dtype=F64), steps)[0])
    want = 1 - (1 - Fraction(z)) ** steps
    assert math.isclose(got, float(want), rel_tol=1e-11, abs_tol=1e-300 if z < 1e-3 else 1e-13)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(1, 7), st.floats(0.05, 5.0), st.integers(0, 100))
def test_scaling_labels_scales_predictions(d, n, scale, seed):
    x, y = contexts(d, n, 2, seed, sigma=0.1)
    for p in (
        Ridge(0.2),
        IterativeNewton(3),
        GradientDescent(2, 0.01),
        OnlineGradientDescent(),
        KNeighbors(2),
    ):
        assert torch.allclose(p(x, scale * y), scale * p(x, y), atol=1e-9)


def test_newton_steps_and_gradient_steps_are_two_axes_of_one_curve():
    """Best-matching GD steps (powers of two, rate .01) of each Newton step, as tried for the sheet."""
    x, y = contexts(20, 41, batch=60, seed=4)
    table = {1: 1, 3: 2, 5: 8, 8: 16, 10: 32, 12: 64, 14: 128, 17: 512, 20: 1024}
    newton = IterativeNewton(0).path(x, y, list(table))
    descent = GradientDescent(1, 0.01).path(x, y, [2**j for j in range(13)])
    errors = torch.nn.functional.normalize((torch.cat([newton, descent]) - y)[..., 1:], dim=-1)
    cosine = torch.einsum("pbn,qbn->pq", errors[: len(table)], errors[len(table) :]) / len(x)
    for row, steps in zip(cosine, table.values(), strict=True):
        assert abs(int(row.argmax()) - math.log2(steps)) <= 1
        assert float(row.max()) > 0.97


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ridge(-1.0), "alpha"),
        (lambda: BayesLinear(0.1, 0.0), "tau"),
        (lambda: LeastSquares(1.5), "rcond"),
        (lambda: GradientDescent(-1, 0.1), "steps"),
        (lambda: GradientDescent(2, 0.0), "lr"),
        (lambda: GradientDescent(2, [0.1]), "as many rates"),
        (lambda: GradientDescent(2, 0.1, "median"), "reduction"),
        (lambda: GradientDescent(2, 0.1, momentum=1.0), "momentum"),
        (lambda: GradientDescentPlusPlus([0.1, 0.2], [0.1]), "disagree"),
        (lambda: GradientDescentPlusPlus(0.1, float("nan")), "finite"),
        (lambda: IterativeNewton(2, "largest"), "alpha"),
        (lambda: IterativeNewton(2, -0.1), "alpha"),
        (lambda: GradientFlow(-1.0), "time"),
        (lambda: OnlineGradientDescent("adam"), "nlms"),
        (lambda: OnlineGradientDescent(0.1, decay=-1.0), "decay"),
        (lambda: LBFGS(2, 0), "history_size"),
        (lambda: BFGS(2, "wolfe"), "line_search"),
        (lambda: KNeighbors(0), "k must"),
        (lambda: KNeighbors(2, "inverse"), "weights"),
        (lambda: PreconditionedGradientDescent([[1.0, 0.0]]), "square"),
        (lambda: KernelGradientDescent(torch.tanh, -1.0), "lr"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("p", [Ridge(0.1), ConjugateGradient(2), OnlineGradientDescent(), KNeighbors(2)])
def test_bad_contexts_are_refused(p):
    x, y = contexts()
    bad = x.clone()
    bad[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        p.predict(bad, y)


def test_filters_check_what_they_are_given():
    x, y = contexts()
    with pytest.raises(ValueError, match="keep the shape"):
        KernelFilter(lambda v: v.sum(-1)).predict(x, y)
    with pytest.raises(ValueError, match="wide"):
        PreconditionedGradientDescent([[1.0]]).predict(x, y)
    with pytest.raises(ValueError, match="w0"):
        OnlineGradientDescent(w0=[1.0]).predict(x, y)
    with pytest.raises(ValueError, match="one rate"):
        GradientDescent(1, [0.1]).path(x, y, 2)
