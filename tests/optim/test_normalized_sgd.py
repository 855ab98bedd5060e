"""Steps of NormalizedSGD against its formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
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
