"""Counted FLOPs against the arithmetic on paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradatim.probes.compute import count_flops


def test_a_linear_layer_forward_and_backward():
    layer, x = nn.Linear(4, 5), torch.randn(3, 4)
    product = 2 * 3 * 4 * 5
    assert count_flops(lambda: layer(x)) == product
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * product  # x asks for no gradient
    x.requires_grad_()
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * product


def test_a_gradient_inside_a_forward_pass():
    layer, x = nn.Linear(4, 4, bias=False), torch.randn(3, 4, requires_grad=True)

    def energy_step():
        (g,) = torch.autograd.grad((layer(x) ** 2).sum(), x, create_graph=True)
        g.square().sum().backward()

    # W x, its gradient, and the gradient of both in W and in what lies between.
    assert count_flops(energy_step) == 2 * 3 * 4 * 4 * (1 + 1 + 2 + 2)


@pytest.mark.parametrize("inference", [False, True])
def test_fused_kernels_count_as_their_products(inference):
    lstm, steps = nn.LSTM(4, 6, batch_first=True), torch.randn(2, 7, 4)
    q = torch.randn(2, 3, 5, 4)
    with torch.inference_mode(inference):
        assert count_flops(lambda: lstm(steps)) == 2 * 2 * 7 * (4 * 24 + 6 * 24)
        assert count_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 3 * 5 * 5 * 4)
        assert count_flops(lambda: F.conv1d(steps.mT, torch.ones(5, 4, 3))) == 2 * 2 * 5 * 5 * 4 * 3


def test_what_it_switches_off_is_on_again():
    before = torch.backends.mkldnn.is_available(), torch._C._get_mkldnn_enabled()
    with pytest.raises(ZeroDivisionError):
        count_flops(lambda: 1 / 0)
    assert (torch.backends.mkldnn.is_available(), torch._C._get_mkldnn_enabled()) == before
    assert count_flops(lambda: torch.ones(3).exp()) == 0


def test_products_in_place_count_as_others():
    x, a, b = torch.zeros(3, 5), torch.ones(3, 4), torch.ones(4, 5)
    assert count_flops(lambda: x.addmm_(a, b)) == count_flops(lambda: torch.addmm(x, a, b)) == 2 * 3 * 4 * 5
