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

    def products(
        self, own: Sequence[Tensor], shared: Sequence[Tensor], along: Sequence[Tensor], with_shared: bool
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """g, H w and, where wanted, (∂g/∂φ)ᵀ w, at one state: one pass for all three."""
        with torch.enable_grad():
            leaves = [w.detach().requires_grad_() for w in own]
            common = [w.detach().requires_grad_(with_shared and w.is_floating_point()) for w in shared]
            loss = self.losses(leaves, common).sum()
            gradients = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
            wanted = [*leaves, *(w for w in common if w.requires_grad)]
            live = [(g, w) for g, w in zip(gradients, along, strict=True) if g.requires_grad]
            if not live:
                # A loss linear in the weights has no curvature.
                found: tuple[Tensor, ...] = tuple(torch.zeros_like(w) for w in wanted)
            else:
                found = torch.autograd.grad(
                    [g for g, _ in live], wanted, [w for _, w in live], materialize_grads=True
                )
        mixed = iter(found[len(leaves) :])
        back = tuple(next(mixed) if w.requires_grad else torch.zeros_like(w) for w in common)
        return tuple(g.detach() for g in gradients), found[: len(leaves)], back


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
        ctx.sums = [torch.zeros_like(w) for w in state] if sums else None
        for k in range(loop.steps):
            if not loop.first_order and k % every == 0 and k:
                ctx.kept[k] = state
            g = loop.gradients(state, shared)
            if ctx.sums is not None:
                torch._foreach_add_(ctx.sums, list(g))
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
            totals = [torch.zeros_like(a) for a in rates]
            back = [torch.zeros_like(w) for w in shared]
            for state in _backwards(ctx, own, rates, shared):
                along = [a.to(v.dtype) * v for a, v in zip(rates, u, strict=True)]
                g, hessian, mixed = loop.products(state, shared, along, wants_shared)
                if wants_rates:
                    totals = [t - _reduced(d * v, a) for t, d, v, a in zip(totals, g, u, rates, strict=True)]
                u = [v - h for v, h in zip(u, hessian, strict=True)]
                back = [b - m for b, m in zip(back, mixed, strict=True)]
            d_rates = list(totals) if wants_rates else d_rates
            d_shared = list(back) if wants_shared else d_shared
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


def _reduced(per_task: Tensor, like: Tensor) -> Tensor:
    """Summed over tasks and over whatever entries share one rate."""
    return per_task.sum(0).sum_to_size(like.shape).to(like.dtype)
