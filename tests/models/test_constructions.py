"""Explicit weights equal the algorithms they carry out, to rounding."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from jaxtyping import TypeCheckError

from gradatim.models.constructions import (
    copy_layer,
    divergent,
    gradient_descent,
    gradient_descent_pp,
    newton,
    preconditioned_gradient_descent,
    softmax_gradient_descent,
)
from gradatim.models.linear_attention import LinearAttentionRegressor, LSAConfig


def contexts(batch=3, n=7, d=4, q=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, n, d, generator=g, dtype=torch.float64)
    y = torch.randn(batch, n, generator=g, dtype=torch.float64)
    query = torch.randn(batch, q, d, generator=g, dtype=torch.float64)
    return x, y, query


def descend(x, y, rates, w0=None):
    """Weights after gradient descent on the mean loss, context by context."""
    weights = []
    for xs, ys in zip(x, y, strict=True):
        w = torch.zeros(x.shape[-1], dtype=x.dtype) if w0 is None else w0.clone()
        for rate in rates:
            w = w + rate / len(ys) * xs.T @ (ys - xs @ w)
        weights.append(w)
    return torch.stack(weights)


def answers(w, query):
    return (query @ w[..., None])[..., 0]


def close(a, b, tol=1e-12):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


@pytest.mark.parametrize(("d", "n"), [(1, 1), (4, 7), (6, 3)])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("start", [False, True])
def test_layers_are_steps_of_gradient_descent(d, n, steps, start):
    x, y, query = contexts(n=n, d=d)
    w0 = torch.linspace(-1, 2, d, dtype=torch.float64) if start else None
    model = gradient_descent(d, n, 0.3, steps, w0)
    assert len(model.layers) == 1
    close(model(x, y, query=query).predictions, answers(descend(x, y, [0.3] * steps, w0), query))


def test_rates_per_step_are_layers_of_their_own():
    x, y, query = contexts()
    rates = [0.1, 0.5, 0.2]
    model = gradient_descent(4, 7, rates)
    assert len(model.layers) == 3
    close(model(x, y, query=query).predictions, answers(descend(x, y, rates), query))


@pytest.mark.parametrize("tokens", ["concat", "interleaved"])
def test_normalized_layers_serve_every_prefix(tokens):
    x, y, _ = contexts()
    found = gradient_descent(4, 7, 0.3, 2, normalize="n", tokens=tokens)(x, y).predictions
    assert (found[:, 0] == 0).all()
    for t in range(1, 7):
        w = descend(x[:, :t], y[:, :t], [0.3, 0.3])
        close(found[:, t], (w * x[:, t]).sum(-1))


def gd_pp_by_hand(x, y, query, rates, gammas):
    """GD++ as the paper writes it: residuals y and inputs x of every token change together."""
    n = x.shape[1]
    asked = torch.zeros(query.shape[:2], dtype=x.dtype)
    for rate, gamma in zip(rates, gammas, strict=True):
        w = rate / n * (x.mT @ y[..., None])[..., 0]
        s = x.mT @ x
        y, asked = y - answers(w, x), asked + answers(w, query)
        x, query = x - gamma * x @ s, query - gamma * query @ s
    return asked


def test_gd_pp_layers():
    x, y, query = contexts()
    x = x / 4
    rates, gammas = [2.0, 1.0, 3.0], [0.1, 0.2, 0.05]
    model = gradient_descent_pp(4, 7, rates, gammas)
    close(model(x, y, query=query).predictions, gd_pp_by_hand(x, y, query, rates, gammas))
    looped = gradient_descent_pp(4, 7, 2.0, 0.1, 3)
    assert len(looped.layers) == 1
    close(looped(x, y, query=query).predictions, gd_pp_by_hand(x, y, query, [2.0] * 3, [0.1] * 3))
    mixed = gradient_descent_pp(4, 7, 2.0, gammas)
    close(mixed(x, y, query=query).predictions, gd_pp_by_hand(x, y, query, [2.0] * 3, gammas))


def test_gamma_zero_is_gradient_descent():
    x, y, query = contexts()
    plain = gradient_descent(4, 7, [0.1, 0.4])(x, y, query=query).predictions
    close(gradient_descent_pp(4, 7, [0.1, 0.4], 0.0)(x, y, query=query).predictions, plain)


def test_layers_equal_the_reference_algorithms():
    from gradatim.probes.reference_algorithms import GradientDescent, GradientDescentPlusPlus

    x, y, _ = contexts()
    x = x / 3
    last = slice(0, 6)
    gd = GradientDescent(3, 0.7, reduction="mean").predict(x, y)
    close(gradient_descent(4, 7, 0.7, 3, normalize="n")(x, y).predictions, gd, 1e-10)
    rates, gammas = (2.0, 1.0, 3.0), (0.125, 0.25, 0.0625)
    pp = GradientDescentPlusPlus(rates, gammas).predict(x, y)[:, -1:]
    found = gradient_descent_pp(4, 6, rates, gammas)(x[:, last], y[:, last], query=x[:, -1:]).predictions
    close(found, pp)


def test_preconditioned_descent_with_a_matrix_that_is_not_symmetric():
    x, y, query = contexts()
    p = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 4
    found = preconditioned_gradient_descent(p, 7, 2)(x, y, query=query).predictions
    w = torch.zeros(3, 4, dtype=torch.float64)
    for _ in range(2):
        w = w + ((y - answers(w, x))[:, None] @ x)[:, 0] @ p.T / 7
    close(found, answers(w, query))


def test_copying_makes_pairs_of_interleaved_tokens():
    x, y, query = contexts(q=1)
    model = LinearAttentionRegressor(
        LSAConfig(d=4, tokens="interleaved", pos_dim=15), torch.Generator()
    ).double()
    tokens = model.embed(x, y, query)
    for softmax in (True, False):
        after = copy_layer(4, 7, softmax=softmax)(tokens)
        assert torch.equal(after[:, 0:14:2, :5], torch.cat([x, y[..., None]], dim=-1))
        assert torch.equal(after[:, 1::2], tokens[:, 1::2])  # y-tokens and the query stay as they were
        assert torch.equal(after[:, -1], tokens[:, -1])
        assert torch.equal(after[..., 5:], tokens[..., 5:])


def test_interleaved_descent_takes_one_layer_more():
    x, y, query = contexts()
    model = gradient_descent(4, 7, 0.3, 2, tokens="interleaved")
    assert len(model.layers) == 3
    close(model(x, y, query=query).predictions, answers(descend(x, y, [0.3, 0.3]), query))
    with pytest.raises(ValueError, match="cannot name position"):
        gradient_descent(4, 6, 0.3, tokens="interleaved")(x, y, query=query)


@torch.no_grad()
def test_two_softmax_heads_are_a_step_on_centred_inputs():
    x, y, query = contexts()
    centred = x - x.mean(1, keepdim=True)
    exact = answers(0.3 / 7 * (centred.mT @ y[..., None])[..., 0], query)
    errors = []
    for epsilon in (4e-2, 2e-2, 1e-2):
        found = softmax_gradient_descent(4, 0.3, epsilon)(x, y, query=query).predictions
        errors.append(float((found - exact).abs().max()))
    assert errors[-1] < 1e-2
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.1)  # the error falls with epsilon squared
    plain = answers(descend(x, y, [0.3]), query)
    assert float((found - plain).abs().max()) > 10 * errors[-1]


def test_interpolating_products_of_another_scale_changes_nothing():
    x, y, query = contexts()
    model = gradient_descent(4, 7, 0.3, 2)
    before = model(x, y, query=query).predictions
    a, v = model.layers[0].products()
    model.layers[0].set_products(3.7 * a, v / 3.7)
    close(model(x, y, query=query).predictions, before)


def newton_by_hand(x, y, steps, alpha):
    s = x.mT @ x
    m = alpha * s
    for _ in range(steps):
        m = 2 * m - m @ s @ m
    return (m @ x.mT @ y[..., None])[..., 0]


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_newton_construction(steps):
    x, y, query = contexts(n=9)
    alpha = 1e-3
    model = newton(4, 9, steps, alpha)
    assert len(model.layers) == steps + 3
    assert model.converges(x).all()
    close(model(x, y, query=query).predictions, answers(newton_by_hand(x, y, steps, alpha), query), 1e-10)
    found = model(x, y).predictions
    assert (found[:, 0] == 0).all()
    for t in (1, 4, 8):
        w = newton_by_hand(x[:, :t], y[:, :t], steps, alpha)
        close(found[:, t], (w * x[:, t]).sum(-1), 1e-10)


def test_newton_construction_is_the_reference_algorithm():
    from gradatim.probes import IterativeNewton

    x, y, _ = contexts(n=9)
    found = newton(4, 9, 5, 1e-3)(x, y).predictions
    close(found, IterativeNewton(5, 1e-3).predict(x, y), 1e-10)


def test_newton_construction_reaches_least_squares():
    x, y, query = contexts(n=9)
    w = torch.linalg.lstsq(x, y[..., None]).solution[..., 0]
    close(newton(4, 9, 18, 1e-3)(x, y, query=query).predictions, answers(w, query), 1e-8)


@torch.no_grad()
def test_newton_needs_values_of_opposite_sign():
    x, y, query = contexts(n=9)
    model = newton(4, 9, 2, 1e-3)
    exact = answers(newton_by_hand(x, y, 2, 1e-3), query)
    for layer in model.layers[1:3]:
        layer.value[1] *= -1  # as printed: both heads add the same values
    wrong = model(x, y, query=query).predictions
    assert float((wrong - exact).abs().max()) > 1e-2 * float(exact.abs().max())


def test_newton_diverges_where_alpha_is_too_large():
    x, y, query = contexts(n=9)
    alpha = 2.1 / float(torch.linalg.eigvalsh(x.mT @ x)[:, -1].min()) ** 2
    model = newton(4, 9, 8, alpha)
    bad = ~model.converges(x)
    assert bad.any()
    w = torch.linalg.lstsq(x, y[..., None]).solution[..., 0]
    error = (model(x, y, query=query).predictions - answers(w, query)).abs().amax(-1)
    assert (error[bad] > 1).all()


def test_divergent_contexts_are_named():
    x = torch.eye(2, dtype=torch.float64).expand(2, -1, -1) * torch.tensor([1.0, 3.0])[:, None, None]
    assert divergent(x, 1.0).tolist() == [False, True]  # eigenvalues 1 and 9, n = 2
    assert divergent(x, 0.1, 0.2).tolist() == [False, True]
    assert divergent(x, [0.1, 0.1], [0.2, 0.2]).tolist() == [False, True]


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: gradient_descent(4, 0, 0.1), "at least 1"),
        (lambda: gradient_descent(4, 3, 0.1, 0), "steps must be at least 1"),
        (lambda: gradient_descent(4, 3, [0.1, 0.2], 3), "names 2 steps"),
        (lambda: gradient_descent_pp(4, 3, [0.1, 0.2], [0.1]), "gamma names 1 steps"),
        (lambda: softmax_gradient_descent(4, 0.1, 0.0), "epsilon"),
        (lambda: copy_layer(4, 3, softmax=True, scale=10.0), "scale"),
        (lambda: newton(4, 3, -1, 0.1), "steps"),
        (lambda: newton(4, 3, 1, 0.0), "alpha"),
    ],
)
def test_bad_settings_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_bad_shapes_are_refused():
    with pytest.raises((ValueError, TypeCheckError)):
        gradient_descent(4, 3, 0.1, w0=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="w0 must be"):
        gradient_descent(4, 3, 0.1, w0=torch.zeros(3))
    with pytest.raises((ValueError, TypeCheckError)):
        preconditioned_gradient_descent(torch.zeros(2, 3), 3)
    x, y, _ = contexts()
    with pytest.raises((ValueError, TypeCheckError)):
        newton(3, 3, 1, 0.1)(x, y)
