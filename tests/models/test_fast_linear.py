"""The oneDNN linear map is nn.Linear: values, gradients of every order, and every case it steps aside for."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from gradatim.models import fast_linear
from gradatim.models.fast_linear import Linear, linear


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(fast_linear, "SMALLEST", 1)


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def spy(monkeypatch):
    calls, product = [], fast_linear._Product.apply

    def counted(*args):
        calls.append(args[0].shape)
        return product(*args)

    monkeypatch.setattr(fast_linear._Product, "apply", counted)
    return calls


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 4, 5), (1, 5), (0, 5), (200, 5)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("outputs", [3, 150])
def test_values_and_gradients_are_those_of_the_formula(shape, biased, outputs, monkeypatch):
    calls = spy(monkeypatch)
    x, w, b = made(*shape), made(outputs, 5, seed=1), made(outputs, seed=2) if biased else None
    g = made(*shape[:-1], outputs, seed=3).detach()
    inputs = [t for t in (x, w, b) if t is not None]
    ours, theirs = linear(x, w, b), F.linear(x, w, b)
    assert bool(calls) == (0 not in shape)
    torch.testing.assert_close(ours, theirs)
    for a, c in zip(
        torch.autograd.grad(ours, inputs, g), torch.autograd.grad(theirs, inputs, g), strict=True
    ):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)


def test_wide_weights_use_the_kernel_in_both_gradients(monkeypatch):
    calls = spy(monkeypatch)
    x, w = made(9, 520), made(530, 520, seed=1)
    linear(x, w).sum().backward()
    assert len(calls) == 3
    torch.testing.assert_close(w.grad, torch.ones(9, 530).T @ x.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outputs", [4, 513])
def test_second_derivatives(outputs):
    x, v = made(6, 512), made(6, 512, seed=2).detach()
    w = (made(outputs, 512, seed=1).detach() / 20).requires_grad_()

    def curvature(map_):
        h = torch.tanh(map_(x, w)).square().sum()
        (first,) = torch.autograd.grad(h, x, create_graph=True)
        return torch.autograd.grad((first * v).sum(), (x, w))

    for a, c in zip(curvature(linear), curvature(F.linear), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-4)


def test_inputs_that_are_not_contiguous():
    x, w = made(5, 8, 4), made(6, 8, seed=1)
    torch.testing.assert_close(linear(x.transpose(1, 2), w), F.linear(x.transpose(1, 2), w))
    torch.testing.assert_close(linear(x[::2, :, 1], w[::3]), F.linear(x[::2, :, 1], w[::3]))


# The first use of forward-mode differentiation scripts a few formulas inside torch.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_it_steps_aside(monkeypatch):
    calls = spy(monkeypatch)
    layer, x = Linear(5, 3), made(7, 5)
    weights = {k: v.detach() for k, v in layer.named_parameters()}

    def loss(p, row):
        return functional_call(layer, p, (row,)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(weights, x.unsqueeze(1))
    torch.testing.assert_close(each["bias"], 2 * layer(x))
    calls.clear()
    _, tangent = jvp(lambda t: layer(t), (x.detach(),), (torch.ones(7, 5),))
    torch.testing.assert_close(tangent, torch.ones(7, 5) @ layer.weight.T)
    double = copy.deepcopy(layer).double()
    torch.testing.assert_close(double(x.double()), layer(x).double())
    calls.clear()
    double(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer.bfloat16()(x.bfloat16())
    linear(x[0], weights["weight"])
    assert not calls
    monkeypatch.setattr(fast_linear, "SMALLEST", 106)  # 7 x 5 x 3 = 105
    linear(x, weights["weight"])
    assert not calls
    monkeypatch.setattr(fast_linear, "SMALLEST", 105)
    linear(x, weights["weight"])
    assert calls


def test_a_linear_layer_by_every_other_measure(tmp_path):
    layer, theirs = Linear(5, 3), nn.Linear(5, 3)
    layer.load_state_dict(theirs.state_dict())
    assert isinstance(layer, nn.Linear)
    x = made(7, 5)
    torch.testing.assert_close(layer(x), theirs(x))
    checkpointed = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    torch.testing.assert_close(checkpointed, theirs(x))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), theirs(x))


def test_wrong_widths_are_refused():
    with pytest.raises((RuntimeError, TypeError)):  # by torch, or by the shape checks of the tests
        linear(made(4, 6), made(3, 5))
    assert not fast_linear._applies(made(4, 6), made(3, 5), None)
