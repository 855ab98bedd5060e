"""Adapted layers as thin products: no task holds weights of its own.

One gradient step on n rows changes a linear layer by a matrix of rank n at most: with the layer's inputs A
[n, in] and the loss's gradients D [n, out] at its outputs, ∇W = Dᵀ A. With one rate per layer or per row of
W (α) the weights after K steps are

    W_K = W - Σ_k (α D_k)ᵀ A_k,      h W_Kᵀ = h Wᵀ - Σ_k (h A_kᵀ)(α D_k):

one product with the weights that all tasks share, and two thin ones, in place of a matrix per task. A rate
per weight has no such form. Pays where K n is well below the layers' widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from gradatim.models.fast_linear import linear
from gradatim.models.task_forward import _ELEMENTWISE

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Change:
    """What tasks change of one layer: weights by left and right factors, the bias by a shift.

    left   [T, r, out]  α D of all steps so far, None before the first
    right  [T, r, in]   A of all steps so far
    shift  [T, 1, out]  what has been taken off the bias
    """

    left: Tensor | None = None
    right: Tensor | None = None
    shift: Tensor | None = None

    def detach(self) -> Change:
        """The same as constants."""
        return Change(*(None if t is None else t.detach() for t in (self.left, self.right, self.shift)))

    def and_then(self, left: Tensor | None, right: Tensor, shift: Tensor | None) -> Change:
        """With another step."""
        if left is not None and self.left is not None and self.right is not None:
            left, right = torch.cat([self.left, left], 1), torch.cat([self.right, right], 1)
        if shift is not None and self.shift is not None:
            shift = self.shift + shift
        return Change(left, None if left is None else right, shift)


@dataclass(frozen=True)
class AdaptedLayers:
    """A chain of linear layers and elementwise functions after adaptation, for all tasks at once."""

    chain: tuple[tuple[str, nn.Module], ...]
    weights: Weights
    changes: Mapping[str, Change]

    def __call__(self, xs: Shaped[Tensor, "tasks n inputs"]) -> Shaped[Tensor, "tasks n outputs"]:
        """Outputs of every task under its own weights."""
        return self.run(xs)[0]

    def run(self, xs: Tensor, probes: bool = False) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Outputs; inputs of every linear layer; with `probes` zeros added to its outputs, for gradients."""
        h, inputs, zeros = xs, {}, {}
        for name, module in self.chain:
            if not isinstance(module, nn.Linear):
                h = module(h)
                continue
            inputs[name], change = h, self.changes[name]
            z = linear(h, self.weights[f"{name}weight"], self.weights.get(f"{name}bias"))
            if change.left is not None and change.right is not None:
                z = torch.baddbmm(z, h @ change.right.mT, change.left, alpha=-1)
            if change.shift is not None:
                z = z - change.shift
            if probes:
                zeros[name] = torch.zeros_like(z, requires_grad=True)
                z = z + zeros[name]
            h = z
        return h, inputs, zeros

    def dense(self) -> dict[str, Tensor]:
        """The adapted weights [T, ...] written out, by parameter name; unchanged ones once."""
        found = dict(self.weights)
        for name, change in self.changes.items():
            if change.left is not None and change.right is not None:
                found[f"{name}weight"] = found[f"{name}weight"] - change.left.mT @ change.right
            if change.shift is not None:
                found[f"{name}bias"] = found[f"{name}bias"] - change.shift.squeeze(1)
        return found


def linear_chain(module: nn.Module, prefix: str = "") -> tuple[tuple[str, nn.Module], ...] | None:
    """(prefix of parameter names, layer) in order; None where one is neither linear nor elementwise."""
    # Exact types: a subclass may do something else in its forward.
    if type(module) is nn.Sequential:
        found: list[tuple[str, nn.Module]] = []
        for name, child in module.named_children():
            inner = linear_chain(child, f"{prefix}{name}.")
            if inner is None:
                return None
            found += inner
        return tuple(found)
    if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"):
        return None
    return ((prefix, module),) if type(module) is nn.Linear or type(module) in _ELEMENTWISE else None


def adapt_low_rank(
    chain: Sequence[tuple[str, nn.Module]],
    weights: Weights,
    rates: Weights,
    xs: Float[Tensor, "tasks n inputs"],
    losses: Callable[[Tensor], Tensor],
    steps: int,
    first_order: bool,
) -> AdaptedLayers:
    """θ_K of every task after `steps` on its xs; differentiable in `weights` and `rates`.

    Args:
        chain: of `linear_chain`.
        weights: θ by name, common to all tasks.
        rates: α of the weights that are adapted: one number, or one per row ([out, 1] of a matrix).
        losses: outputs [T, n, ...] -> loss of each task [T].
        first_order: hold the inner gradients constant.
    """
    exact = not first_order and torch.is_grad_enabled()
    changes = {name: Change() for name, module in chain if isinstance(module, nn.Linear)}
    for _ in range(steps):
        with torch.enable_grad():
            held = (
                AdaptedLayers(tuple(chain), weights, changes)
                if exact
                else AdaptedLayers(
                    tuple(chain),
                    {n: w.detach() for n, w in weights.items()},
                    {n: c.detach() for n, c in changes.items()},
                )
            )
            outputs, inputs, probes = held.run(xs, probes=True)
            found = torch.autograd.grad(losses(outputs).sum(), list(probes.values()), create_graph=exact)
        moved = {}
        for (name, change), errors in zip(changes.items(), found, strict=True):
            left = shift = None
            if (rate := rates.get(f"{name}weight")) is not None:
                left = errors * rate.reshape(-1)
            if (rate := rates.get(f"{name}bias")) is not None:
                shift = errors.sum(1, keepdim=True) * rate.reshape(-1)
            seen = inputs[name] if exact else inputs[name].detach()
            moved[name] = change.and_then(left, seen, shift)
        changes = moved
    return AdaptedLayers(tuple(chain), weights, changes)
