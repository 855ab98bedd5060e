"""`Linear`: nn.Linear whose float32 products on a CPU run through oneDNN.

PyTorch sends float32 matrix products to MKL, which on CPUs that are not Intel's does without AVX-512, about
half of the machine. oneDNN's kernel, which PyTorch carries for its compiler, uses it. Same weights, same
gradients, same checkpoint; where the kernel does not apply (small products, other types and devices,
autocast, `torch.func` transforms, forward-mode differentiation, `torch.compile`) this is nn.Linear.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

SMALLEST = 4_000_000
"""Products with fewer multiply-adds than this go to MKL: a call of the kernel costs ten microseconds more."""


_WEIGHTS_WANTED: ContextVar[bool] = ContextVar("weights_wanted", default=True)


@contextmanager
def inputs_only() -> Iterator[None]:
    """Backward passes in this block ask for gradients of inputs alone.

    For `torch.autograd.grad(energy, input)`: the engine leaves out what nobody asked for, but cannot look
    into a function of ours, which would take the weights' gradients for nothing.
    """
    token = _WEIGHTS_WANTED.set(False)
    try:
        yield
    finally:
        _WEIGHTS_WANTED.reset(token)


def weights_wanted() -> bool:
    """Whether a backward pass that runs now has to find the gradients of weights: not in `inputs_only`."""
    return _WEIGHTS_WANTED.get()


class Linear(nn.Linear):
    """y = x W^T + b, as nn.Linear; see the module for what differs."""

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """[..., inputs] -> [..., outputs]."""
        return linear(x, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "*batch outputs"]:
    """x W^T + b; differentiable as often as wanted."""
    if not _applies(x, weight, bias):
        return F.linear(x, weight, bias)
    found: Tensor = _Product.apply(x, weight, bias)
    return found


class _Product(torch.autograd.Function):
    """Y = X W^T + b for rows X, with dX = G W, dW = G^T X, db = sum of G's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        rows = torch.ops.mkldnn._linear_pointwise(x.flatten(0, -2), weight, bias, "none", [], "")
        return rows.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (g,) = gradients
        x, weight = ctx.saved_tensors
        to_x = linear(g, weight.T) if ctx.needs_input_grad[0] else None
        if not weights_wanted():
            return to_x, None, None
        wanted, g, x = ctx.needs_input_grad, g.flatten(0, -2), x.flatten(0, -2)
        return (
            to_x,
            # Over long batches and few columns MKL is the faster of the two here.
            (linear(g.T, x.T) if min(weight.shape) >= 128 else g.T @ x) if wanted[1] else None,
            g.sum(0) if wanted[2] else None,
        )


def _applies(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        x.dim() >= 2
        and x.shape[-1] == weight.shape[1]  # the kernel does not check
        and x.numel() * weight.shape[0] >= SMALLEST
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)
        and forward_ad._current_level < 0
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
