"""Gradients through an inner loop of gradient descent, in closed form: no graph over the steps.

Meta-SGD (Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017, arXiv
1707.09835) adapts with θ_{k+1} = θ_k - α g_k, g_k = ∇L_S(θ_k), elementwise. With u_K = ∂L_Q/∂θ_K:

- first order, g_k held constant:   dθ = u_K,   dα = -(Σ_k g_k) u_K;
- exact:   dα -= g_k u_{k+1},   u_k = u_{k+1} - H_S(θ_k)(α u_{k+1}),   dθ = u_0,

where weights φ that tasks do not adapt get dφ -= (∂g_k/∂φ)ᵀ(α u_{k+1}). Both are sums over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Losses = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""(weights of each task [T, ...], common weights) -> support losses [T]."""


@dataclass(frozen=True)
class InnerLoop:
    """`steps` of gradient descent on `losses`; `checkpoint` keeps every sqrt(K)-th state and recomputes."""

    losses: Losses
    steps: int
    first_order: bool = False
    checkpoint: bool = False

    def gradients(self, own: Sequence[Tensor], shared: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gradient of every task's own loss in its own weights [T, ...]; unused weights get zeros."""
        with torch.enable_grad():
            leaves = [w.detach().requires_grad_() for w in own]
            loss = self.losses(leaves, [w.detach() for w in shared]).sum()
            return torch.autograd.grad(loss, leaves, materialize_grads=True)

    def linked(self, own: Sequence[Tensor], shared: Sequence[Tensor], with_shared: bool) -> Linked:
        """The same gradients with their graph, from which products with the Hessian can be taken once."""
        with torch.enable_grad():
            leaves = [w.detach().requires_grad_() for w in own]
            common = [w.detach().requires_grad_(with_shared and w.is_floating_point()) for w in shared]
            loss = self.losses(leaves, common).sum()
            gradients = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        return Linked(gradients, leaves, common)


@dataclass(frozen=True)
class Linked:
    """Gradients g [T, ...] of own weights at one state, still linked to the weights they depend on."""

    gradients: tuple[Tensor, ...]
    leaves: list[Tensor]
    common: list[Tensor]

    def products(self, along: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """H w and (∂g/∂φ)ᵀ w, zeros for common weights without gradient; frees the graph."""
        wanted = [*self.leaves, *(w for w in self.common if w.requires_grad)]
        live = [(g, w) for g, w in zip(self.gradients, along, strict=True) if g.requires_grad]
        if not live:
            # A loss linear in the weights has no curvature.
            found: tuple[Tensor, ...] = tuple(torch.zeros_like(w) for w in wanted)
        else:
            found = torch.autograd.grad(
                [g for g, _ in live], wanted, [w for _, w in live], materialize_grads=True
            )
        mixed = iter(found[len(self.leaves) :])
        back = tuple(next(mixed) if w.requires_grad else torch.zeros_like(w) for w in self.common)
        return found[: len(self.leaves)], back


def descend(
    loop: InnerLoop,
    tasks: int,
    own: Sequence[Tensor],
    rates: Sequence[Tensor],
    shared: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """θ_K [T, ...] of every adapted weight, differentiable in weights, rates and common weights."""
    found: tuple[Tensor, ...] = _Descent.apply(loop, tasks, len(own), *own, *rates, *shared)
    return found


def path(
    loop: InnerLoop,
    tasks: int,
    own: Sequence[Tensor],
    rates: Sequence[Tensor],
    shared: Sequence[Tensor],
) -> list[list[Tensor]]:
    """θ_0 ... θ_K [T, ...], without gradients."""
    states = [[w.detach().expand(tasks, *w.shape) for w in own]]
    for _ in range(loop.steps):
        states.append(_moved(states[-1], rates, loop.gradients(states[-1], shared)))
    return states


def _moved(own: Sequence[Tensor], rates: Sequence[Tensor], g: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [torch.addcmul(w, a.to(w.dtype), d, value=-1) for w, a, d in zip(own, rates, g, strict=True)]


class _Descent(torch.autograd.Function):
    """Forward: the inner loop. Backward: one of the two closed forms."""

    @staticmethod
    def forward(ctx: Any, loop: InnerLoop, tasks: int, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        own, rates, shared = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        ctx.loop, ctx.tasks, ctx.count = loop, tasks, count
        state = [w.detach().expand(tasks, *w.shape) for w in own]
        every = max(1, math.isqrt(loop.steps)) if loop.checkpoint else 1
        ctx.every = every
        ctx.kept = {}
        # The first order needs only the sum of the gradients, and that only where rates are learned.
        sums = loop.first_order and any(ctx.needs_input_grad[3 + count : 3 + 2 * count])
        ctx.sums, ctx.last = None, None
        # The way back begins with the last step: its graph, one step's worth, is kept for it.
        keep = not (loop.first_order or loop.checkpoint) and any(ctx.needs_input_grad)
        for k in range(loop.steps):
            if not loop.first_order and k % every == 0 and k:
                ctx.kept[k] = state
            if keep and k + 1 == loop.steps:
                ctx.last = loop.linked(state, shared, any(ctx.needs_input_grad[3 + 2 * count :]))
                g = tuple(d.detach() for d in ctx.last.gradients)
            else:
                g = loop.gradients(state, shared)
            if sums:
                ctx.sums = list(g) if ctx.sums is None else list(torch._foreach_add(ctx.sums, list(g)))
            state = _moved(state, rates, g)
        ctx.save_for_backward(*tensors)
        return tuple(state) if loop.steps else tuple(w.clone() for w in state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *u_last: Tensor) -> tuple[Tensor | None, ...]:
        count, loop = ctx.count, ctx.loop
        tensors = ctx.saved_tensors
        own, rates, shared = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        u = list(u_last)
        wants_rates = any(ctx.needs_input_grad[3 + count : 3 + 2 * count])
        wants_shared = any(ctx.needs_input_grad[3 + 2 * count :])
        d_rates: list[Tensor | None] = [None] * count
        d_shared: list[Tensor | None] = [None] * len(shared)
        if loop.first_order:
            if ctx.sums is not None:
                d_rates = [-_reduced(s * v, a) for s, v, a in zip(ctx.sums, u, rates, strict=True)]
        elif loop.steps:
            for state in _backwards(ctx, own, rates, shared):
                # Its graph serves once: whoever goes back a second time computes it again.
                linked, ctx.last = ctx.last or loop.linked(state, shared, wants_shared), None
                along = [a.to(v.dtype) * v for a, v in zip(rates, u, strict=True)]
                hessian, mixed = linked.products(along)
                if wants_rates:
                    moved = [d.detach() * v for d, v in zip(linked.gradients, u, strict=True)]
                    d_rates = [
                        _minus(t, _reduced(m, a)) for t, m, a in zip(d_rates, moved, rates, strict=True)
                    ]
                u = [v - h for v, h in zip(u, hessian, strict=True)]
                if wants_shared:
                    d_shared = [_minus(t, m) for t, m in zip(d_shared, mixed, strict=True)]
        return (None, None, None, *(v.sum(0) for v in u), *d_rates, *d_shared)


def _backwards(ctx: Any, own: Sequence[Tensor], rates: Sequence[Tensor], shared: Sequence[Tensor]) -> Any:
    """θ_k for k = K-1 .. 0, recomputing what a checkpointed loop did not keep."""
    loop = ctx.loop
    first = [w.detach().expand(ctx.tasks, *w.shape) for w in own]
    starts = range((loop.steps - 1) // ctx.every * ctx.every, -1, -ctx.every)
    for start in starts:
        segment = [ctx.kept[start] if start else first]
        for _ in range(start, min(start + ctx.every, loop.steps) - 1):
            segment.append(_moved(segment[-1], rates, loop.gradients(segment[-1], shared)))
        yield from reversed(segment)


def _minus(total: Tensor | None, part: Tensor) -> Tensor:
    return -part if total is None else total - part


def _reduced(per_task: Tensor, like: Tensor) -> Tensor:
    """Summed over tasks and over whatever entries share one rate."""
    return per_task.sum(0).sum_to_size(like.shape).to(like.dtype)
