"""Differentiating through one step of descent: g = dE/de, three ways to its derivative.

Let u = dJ/dg be what comes back from the loss. The derivative of J with respect to the parameters through g
is d<u, dE/de>/dtheta, and there are three exact or nearly exact ways to it:

- double_backward: differentiate the backward pass. The graph of the first one is kept.
- forward_over_reverse: <u, dE/de> is the tangent of E at e in direction u; differentiate that.
- finite_difference: [E(e + r u) - E(e - r u)] / 2r, differentiated once. First-order kernels alone.

The last two keep nothing between the passes, and run the energy again when the loss comes back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gradatim.models.fast_linear import inputs_only

Energy = Callable[[Tensor, Sequence[Tensor], bool], Tensor]
"""energy(e, context tensors, by_hand) -> [*items]."""


def energy_gradient(
    energy: Energy,
    e: Tensor,
    context: Sequence[Tensor],
    parameters: Sequence[Tensor],
    *,
    route: str,
    create_graph: bool,
) -> tuple[Tensor, Tensor]:
    """dE/de [*items, width], which carries a graph if asked to, and the energies [*items], detached.

    `context` and `parameters` are the tensors besides `e` that the energy depends on.
    """
    if create_graph and route != "double_backward":
        g, energies = _Gradient.apply(energy, route, len(context), e, *context, *parameters)
        return g, energies
    with torch.enable_grad():
        if not e.requires_grad:
            e = e.detach().requires_grad_()
        energies = energy(e, context, False)
        with inputs_only():
            (g,) = torch.autograd.grad(energies.sum(), e, create_graph=create_graph)
    return g, energies.detach()


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, energy: Energy, route: str, split: int, e: Tensor, *others: Tensor) -> Any:
        context = [x.detach() for x in others[:split]]
        with torch.enable_grad():
            leaf = e.detach().requires_grad_()
            energies = energy(leaf, context, False)
            with inputs_only():
                (g,) = torch.autograd.grad(energies.sum(), leaf)
        ctx.energy, ctx.route, ctx.split = energy, route, split
        ctx.autocast = (torch.is_autocast_enabled(e.device.type), torch.get_autocast_dtype(e.device.type))
        ctx.save_for_backward(e, *others)
        energies = energies.detach()
        ctx.mark_non_differentiable(energies)
        return g, energies

    @staticmethod
    def backward(ctx: Any, u: Tensor, _: Tensor) -> Any:
        e, *others = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        enabled, dtype = ctx.autocast
        with torch.enable_grad(), torch.autocast(e.device.type, dtype=dtype, enabled=enabled):
            leaf = e.detach().requires_grad_()
            context = [x.detach().requires_grad_() for x in others[: ctx.split]]
            inputs = [leaf, *context, *others[ctx.split :]]
            along = _along_tangent if ctx.route == "forward_over_reverse" else _along_difference
            value = along(ctx.energy, leaf, u, context)
            chosen = [x for x, w in zip(inputs, wanted, strict=True) if w]
            found = iter(torch.autograd.grad(value, chosen, allow_unused=True))
        return (None, None, None, *(next(found) if w else None for w in wanted))


def _along_tangent(energy: Energy, e: Tensor, u: Tensor, context: Sequence[Tensor]) -> Tensor:
    """<u, dE/de> as the forward-mode derivative."""
    # The first use makes torch script its own forward-mode rules, of which newer versions warn.
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        dual = energy(forward_ad.make_dual(e, u), context, True)
        return forward_ad.unpack_dual(dual).tangent.sum()


def _along_difference(energy: Energy, e: Tensor, u: Tensor, context: Sequence[Tensor]) -> Tensor:
    """<u, dE/de> as a central difference, each item with the radius that balances rounding and curvature."""
    length = u.detach().norm(dim=-1)
    reach = 2 * torch.finfo(e.dtype).eps ** (1 / 3) * e.detach().norm(dim=-1)
    radius = torch.where(length > 0, reach / length, torch.ones_like(reach))
    shift = radius.unsqueeze(-1) * u
    ahead, behind = energy(e + shift, context, False), energy(e - shift, context, False)
    return ((ahead - behind) / (2 * radius)).sum()
