"""Delta momentum against its formula, and against SGD and RMSprop where it must equal them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradatim.optim import DeltaMomentumSGD
from gradatim.optim.delta_momentum import along_rows

SHAPES = ((3, 5), (4,), (2, 3, 2, 2), (6, 2))


def run(make, steps=6, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64)) for s in SHAPES]
    optimizer = make(params)
    for t in range(steps):
        for p in params:
            p.grad = scale * torch.randn(p.shape, generator=g, dtype=torch.float64)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + t)
        optimizer.step()
    return [p.detach() for p in params]


def assert_same(a, b, tolerance=1e-12):
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def test_without_delta_it_is_momentum_sgd():
    ours = run(lambda p: DeltaMomentumSGD(p, lr=0.1, delta=0.0, momentum=0.8, weight_decay=0.03))
    assert_same(ours, run(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.03)))


def test_without_delta_and_with_rms_values_it_is_rmsprop():
    ours = run(lambda p: DeltaMomentumSGD(p, lr=0.1, delta=0.0, momentum=0.8, value="rms", alpha=0.95))
    assert_same(ours, run(lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.8, alpha=0.95)))


@pytest.mark.parametrize("normalize", [True, False])
def test_steps_follow_the_printed_rule(normalize):
    """m <- m (a I - c K^T K) - lr G; W <- W + m, with explicit [in, in] matrices."""
    g = torch.Generator().manual_seed(3)
    w = nn.Parameter(torch.randn(3, 5, generator=g, dtype=torch.float64))
    expected, m = w.detach().clone(), torch.zeros(3, 5, dtype=torch.float64)
    optimizer = DeltaMomentumSGD([w], lr=0.1, momentum=0.7, delta=0.4, normalize_key=normalize)
    for _ in range(5):
        w.grad = torch.randn(3, 5, generator=g, dtype=torch.float64) * 0.5
        key = w.grad / w.grad.norm() if normalize else w.grad
        m = m @ (0.7 * torch.eye(5, dtype=torch.float64) - 0.4 * key.mT @ key) - 0.1 * w.grad
        expected = expected + m
        optimizer.step()
        torch.testing.assert_close(w.detach(), expected, rtol=1e-12, atol=1e-12)


def test_the_forgetting_term_is_the_gradient_of_the_squared_objective():
    g = torch.Generator().manual_seed(0)
    m, key, value = (torch.randn(s, generator=g).double() for s in ((3, 5), (3, 5), (3, 3)))
    gradient = torch.func.grad(lambda m: 0.5 * (m @ key.mT - value).square().sum())(m)
    torch.testing.assert_close(along_rows(m, key) - value @ key, gradient, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_both_orders_of_the_product_agree(out, inputs, seed):
    g = torch.Generator().manual_seed(seed)
    m, key = (torch.randn(out, inputs, generator=g).double() for _ in range(2))
    torch.testing.assert_close(along_rows(m, key), m @ key.mT @ key, rtol=1e-10, atol=1e-10)


def test_a_repeated_direction_is_remembered_less_than_by_momentum():
    def memory(delta):
        w = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
        optimizer = DeltaMomentumSGD([w], lr=0.0, momentum=0.9, delta=delta)
        for _ in range(200):
            w.grad = torch.tensor([[1.0, 0, 0], [0, 0, 0]], dtype=torch.float64)
            optimizer.step()
        return float(optimizer.state[w]["momentum_buffer"][0, 0])

    assert memory(0.0) == pytest.approx(10.0, rel=1e-6)  # 1 / (1 - a)
    assert memory(1.0) == pytest.approx(1 / (1 - 0.9 + 1.0), rel=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_normalised_keys_do_not_see_the_gradients_size(size):
    unit = run(lambda p: DeltaMomentumSGD(p, lr=0.1, delta=0.5))
    start = run(lambda p: DeltaMomentumSGD(p, lr=0.1, delta=0.5), steps=0)
    other = run(lambda p: DeltaMomentumSGD(p, lr=0.1, delta=0.5), scale=size)
    if size > 1:
        moved = [(o - s) / size for o, s in zip(other, start, strict=True)]
        assert_same(moved, [u - s for u, s in zip(unit, start, strict=True)], 1e-9)
    else:
        assert_same(other, start)


def test_a_zero_gradient_lets_the_memory_fade():
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = DeltaMomentumSGD([w], lr=1.0, momentum=0.5)
    w.grad = torch.ones(2, 2)
    optimizer.step()
    w.grad = torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.full((2, 2), -0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"delta": 2.5}, "delta must be at most 1 \\+ momentum = 1.9"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DeltaMomentumSGD([nn.Parameter(torch.ones(1))], **{"lr": 0.1, **options})


def test_gradients_that_are_not_finite_are_refused_unless_asked_for():
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))]
    for p in params:
        p.grad = torch.ones_like(p)
    params[1].grad[0, 0] = float("inf")
    with pytest.raises(RuntimeError, match=r"gradient 1 of its group, of shape \(2, 2\), is not finite"):
        DeltaMomentumSGD(params, lr=0.1).step()
    assert all(p.eq(1).all() for p in params)
    DeltaMomentumSGD(params, lr=0.1, check_finite=False).step()
    assert not params[0].eq(1).any()
