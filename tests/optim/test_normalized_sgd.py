"""Steps of NormalizedSGD against its formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradatim.optim import NormalizedSGD


def step(grads, **options):
    params = [nn.Parameter(torch.arange(6.0).double().view(2, 3)), nn.Parameter(torch.ones(4).double())]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.double()
    before = [p.detach().clone() for p in params]
    optimizer = NormalizedSGD(params, **options)
    optimizer.step()
    return [b - p.detach() for b, p in zip(before, params, strict=True)], optimizer, params


@settings(deadline=None)
@given(st.floats(-20, 20), st.floats(1e-4, 10.0))
def test_every_step_has_length_lr(exponent, lr):
    g = torch.Generator().manual_seed(0)
    grads = [torch.randn(2, 3, generator=g) * 10.0 ** (exponent / 2), torch.randn(4, generator=g)]
    moved, *_ = step(grads, lr=lr)
    for m, grad in zip(moved, grads, strict=True):
        assert m.norm().item() == pytest.approx(lr, rel=1e-3, abs=2e-6)
        torch.testing.assert_close(m / m.norm(), (grad / grad.norm()).double(), atol=1e-6, rtol=0)


def test_group_norm_keeps_the_proportions():
    grads = [torch.ones(2, 3) * 3, torch.ones(4)]
    moved, *_ = step(grads, lr=1.0, per_param=False)
    total = torch.cat([m.flatten() for m in moved])
    assert total.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert (moved[0][0, 0] / moved[1][0]).item() == pytest.approx(3.0, rel=1e-4)


def test_weight_decay_enters_before_normalisation():
    grads = [torch.zeros(2, 3), torch.zeros(4)]
    moved, *_ = step(grads, lr=0.5, weight_decay=0.1)
    expected = torch.arange(6.0).double().view(2, 3)
    torch.testing.assert_close(moved[0], 0.5 * expected / expected.norm())


def test_eps_bounds_the_step_of_a_small_gradient():
    moved, *_ = step([torch.full((2, 3), 1e-9), torch.ones(4)], lr=1.0, eps=1.0)
    assert moved[0].norm() < 1e-6
    assert moved[1].norm().item() == pytest.approx(2 / 3, rel=1e-5)


def test_a_zero_gradient_changes_nothing_and_is_counted():
    moved, optimizer, params = step([torch.zeros(2, 3), torch.ones(4)], lr=1.0)
    assert moved[0].eq(0).all()
    assert [int(optimizer.state[p]["n_zero"]) for p in params] == [1, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    p = nn.Parameter(torch.zeros(8, dtype=dtype))
    p.grad = torch.ones(8, dtype=dtype)
    NormalizedSGD([p], lr=1.0).step()
    assert p.detach().float().norm().item() == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("size", [5e-324, 1e-200, 1e-30, 1e30, 1e200])
def test_the_smallest_and_the_largest_gradients_still_step_by_lr(size):
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    p.grad = torch.full((4,), size, dtype=torch.float64)
    NormalizedSGD([p], lr=0.1).step()
    assert p.detach().norm().item() == pytest.approx(0.1, rel=1e-12)


def test_float16_gradients_whose_squares_overflow():
    p = nn.Parameter(torch.zeros(64, dtype=torch.float16))
    p.grad = torch.full((64,), 6e4, dtype=torch.float16)
    NormalizedSGD([p], lr=1.0).step()
    assert p.detach().float().norm().item() == pytest.approx(1.0, rel=1e-2)


def test_maximize_steps_uphill():
    down, *_ = step([torch.ones(2, 3), torch.ones(4)], lr=0.3)
    up, *_ = step([torch.ones(2, 3), torch.ones(4)], lr=0.3, maximize=True)
    for a, b in zip(down, up, strict=True):
        torch.testing.assert_close(a, -b)


@pytest.mark.parametrize("per_param", [True, False])
@pytest.mark.parametrize("options", [{}, {"eps": 0.1, "weight_decay": 0.2, "maximize": True}])
def test_one_kernel_for_all_equals_one_each(per_param, options):
    g = torch.Generator().manual_seed(0)
    for grads in (
        [torch.randn(2, 3, generator=g), torch.randn(4, generator=g)],
        [torch.zeros(2, 3), torch.randn(4, generator=g)],
        [torch.zeros(2, 3), torch.zeros(4)],
    ):
        ours = [step(grads, lr=0.3, per_param=per_param, foreach=f, **options) for f in (True, False)]
        for a, b in zip(ours[0][0], ours[1][0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)
        counts = [[int(o.state[p]["n_zero"]) for p in params] for _, o, params in ours]
        assert counts[0] == counts[1]


def test_parameters_of_two_precisions_share_a_group():
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    for p in params:
        p.grad = torch.ones_like(p)
    NormalizedSGD(params, lr=1.0, foreach=True).step()
    for p in params:
        assert p.detach().norm().item() == pytest.approx(1.0, rel=1e-6)
