"""Closed forms are the operations they replace: values and derivatives of every order, in every type."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, vmap

from gradatim.models import fast_linear
from gradatim.models.fast_linear import Linear, inputs_only
from gradatim.models.twice_differentiable import RMSNorm, gate, rms_norm, rotate

EPSILON = 0.1  # large, so that it takes part


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def turn() -> tuple[Tensor, Tensor]:
    angles = drawn(4, 3, seed=7).detach().repeat(1, 2)
    return angles.cos(), angles.sin()


def turned(x: Tensor) -> Tensor:
    cos, sin = turn()
    z = torch.complex(x[..., :3], x[..., 3:]) * torch.complex(cos[:, :3], sin[:, :3])
    return torch.cat([z.real, z.imag], dim=-1)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "norm": (lambda x, w: rms_norm(x, w, EPSILON), normed, (drawn(2, 4, 6), drawn(6, seed=1))),
    "gate": (gate, lambda a, b: a / (1 + (-a).exp()) * b, (drawn(4, 6), drawn(4, 6, seed=1))),
    "rotation": (lambda x: rotate(x, *turn()), turned, (drawn(2, 4, 6),)),
    "rotation of a view": (
        lambda x: rotate(x.transpose(0, 1), *turn()),
        lambda x: turned(x.transpose(0, 1)),
        (drawn(4, 2, 6),),
    ),
}
EVERY = pytest.mark.parametrize("name", CASES)


@EVERY
def test_values_and_three_derivatives_are_those_of_the_formula(name: str) -> None:
    ours, formula, inputs = CASES[name]

    def derivatives(f: Callable[..., Tensor]) -> list[Tensor]:
        found = [f(*inputs)]
        value = found[0].sin().sum()
        for order in range(3):
            slopes = torch.autograd.grad(value, inputs, create_graph=order < 2)
            found += slopes
            value = sum((s * (i + 1 + s)).sin().sum() for i, s in enumerate(slopes))
        return found

    for a, b in zip(derivatives(ours), derivatives(formula), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@EVERY
def test_against_differences(name: str) -> None:
    ours, _, inputs = CASES[name]
    assert gradcheck(ours, inputs)
    assert gradgradcheck(ours, inputs)


@EVERY
# The first use of forward-mode differentiation scripts a few formulas inside torch.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_plain_expressions_where_closed_forms_do_not_apply(name: str) -> None:
    ours, formula, inputs = CASES[name]
    x, *others = inputs
    others = [t.detach() for t in others]
    with forward_ad.dual_level():
        dual = ours(forward_ad.make_dual(x, torch.ones_like(x)), *others)
        tangent = forward_ad.unpack_dual(dual).tangent
    expected = torch.autograd.functional.jvp(lambda t: formula(t, *others), x, torch.ones_like(x))[1]
    torch.testing.assert_close(tangent, expected)
    if name in ("norm", "gate"):
        each = vmap(
            grad(lambda t, *o: ours(t, *o).sum()),
            in_dims=(0, *(None if o.dim() < x.dim() else 0 for o in others)),
        )
        (whole,) = torch.autograd.grad(formula(x, *others).sum(), x)
        torch.testing.assert_close(each(x, *others), whole)


def test_half_precision_is_computed_wide() -> None:
    x, w = drawn(5, 64, dtype=torch.float32) * 300, drawn(64, seed=1, dtype=torch.float32)
    half = rms_norm(x.half(), w.half(), EPSILON)  # squares of 300 and more overflow
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), normed(x, w), rtol=5e-3, atol=5e-3)


def test_a_norm_is_that_of_torch() -> None:
    ours, theirs = RMSNorm(6, eps=EPSILON), torch.nn.RMSNorm(6, eps=EPSILON)
    ours.load_state_dict(theirs.state_dict())
    x = drawn(3, 6, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x))
    assert isinstance(ours, torch.nn.RMSNorm)


def test_gradients_of_weights_are_left_out_where_only_inputs_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fast_linear, "SMALLEST", 1)
    layer, norm, x = Linear(6, 6), RMSNorm(6), drawn(4, 6, dtype=torch.float32)
    plain = [layer.weight, norm.weight, x]

    def energy() -> Tensor:
        return layer(norm(x)).tanh().square().sum()

    (expected,) = torch.autograd.grad(energy(), x, create_graph=True)
    whole = torch.autograd.grad(expected.square().sum(), plain)
    kernel, seen = fast_linear.linear, []
    monkeypatch.setattr(fast_linear, "linear", lambda *args: seen.append(args[1].shape) or kernel(*args))
    with inputs_only():
        (found,) = torch.autograd.grad(energy(), x, create_graph=True)
    torch.testing.assert_close(found, expected)
    # Only the energy itself was differentiated so; the weights' second derivatives are all there.
    for a, b in zip(torch.autograd.grad(found.square().sum(), plain), whole, strict=True):
        torch.testing.assert_close(a, b)
    with inputs_only():
        one, other = torch.autograd.grad(energy(), [layer.weight, norm.weight], allow_unused=True)
    assert one is None
    assert other is None
    assert fast_linear.weights_wanted()
