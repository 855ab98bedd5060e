"""The keys, values and rates that a self-modifying memory writes for itself, over a block of tokens at once.

What token t writes is read from the memory as the tokens before it left it:

    u_t = Phi_(t-1) x_t,   k_t = unit(M_k u_t),  v_t = unit(M_v u_t),
    eta_t = sigmoid(M_eta u_t + b_eta),          a_t = sigmoid(M_alpha u_t + b_alpha),

and Phi_(t-1) is made of the writes before t. That is a nonlinear recurrence z_t = F_t(z_1 .. z_(t-1)) for
z = (k, v, eta, log a): no closed form, but strictly causal. So F is applied to all tokens of a block at
once, again and again. Sweep n leaves the first n tokens exactly as the token loop has them: C sweeps always
suffice, and far fewer do where tokens disturb each other little. The sweeps end when nothing changes any
more, to rounding.

The backward pass needs lambda = g + (dF/dz)^T lambda; the same nilpotency makes its sweeps end as well. It
recomputes F from the block's inputs: memory does not grow with the number of sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gradatim.models.memory_scan import MatrixState, block_kernel, read, solve_writes


class Written(NamedTuple):
    """k, v [..., C, d]; eta and log a [..., C]."""

    keys: Tensor
    values: Tensor
    eta: Tensor
    log_decay: Tensor


@dataclass(frozen=True)
class SelfRule:
    """How a memory writes to itself: the switches of `SelfModifyingMemory`."""

    decay: bool = True
    normalize_value: bool = True
    delta_gradient: bool = True
    momentum: float = 0.0
    inner_keys: bool = True
    inner_values: bool = True
    inner_rates: bool = True
    inner_queries: bool = False

    @property
    def two(self) -> bool:
        """Whether the gradient gathers in a velocity of its own."""
        return self.momentum != 0.0

    @property
    def still(self) -> bool:
        """Whether a memory of k, v, eta or alpha stays at its initial state."""
        return not (self.inner_keys and self.inner_values and self.inner_rates)

    @property
    def given(self) -> bool:
        """Whether all of them do: what tokens write is then known beforehand."""
        return not (self.inner_keys or self.inner_values or self.inner_rates)


def unit(x: Tensor) -> Tensor:
    """x / |x|, with a norm no smaller than 1e-6."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-12).rsqrt()


def output_layer(x: Tensor, initial: Tensor, bias: Tensor, rule: SelfRule) -> tuple[Tensor, Tensor]:
    """(W [heads, 2d + 2, d], c [batch, heads, C, 2d + 2]) with W u + c what the four memories put out.

    `initial` [heads, 2d + 2, d] holds M_k, M_v, M_eta and M_alpha; bias [heads, 2] those of eta and alpha. A
    memory that stays at its initial state reads x itself, not u = Phi x: its rows of W are 0.
    """
    d = x.shape[-1]
    offset = torch.cat([bias.new_zeros(len(bias), 2 * d), bias], dim=1)[:, None]
    if not rule.still:
        return initial, offset.expand(*x.shape[:3], -1)
    inner = [rule.inner_keys] * d + [rule.inner_values] * d + [rule.inner_rates] * 2
    moving = torch.tensor(inner, dtype=x.dtype, device=x.device)[:, None]
    return initial * moving, offset + torch.einsum("bhtd,hmd->bhtm", x, initial * (1 - moving))


def written(
    addressed: Tensor, weights: Tensor, offset: Tensor, rule: SelfRule, mask: Tensor | None
) -> Written:
    """k, v, eta and log a from u = Phi x [batch, heads, C, d] and the two parts of `output_layer`.

    Where `mask` [batch, 1, C] is False, eta and log a are 0: the token leaves the memory as it is.
    """
    if rule.given:
        return from_outputs(offset, rule, mask)
    return from_outputs(torch.einsum("bhtd,hmd->bhtm", addressed, weights) + offset, rule, mask)


def from_outputs(made: Tensor, rule: SelfRule, mask: Tensor | None) -> Written:
    """k, v, eta and log a from what the four memories put out, [batch, heads, C, 2d + 2]."""
    d = made.shape[-1] // 2 - 1
    keys, values, rates = made[..., :d], made[..., d : 2 * d], made[..., 2 * d :]
    eta = torch.sigmoid(rates[..., 0])
    log_decay = F.logsigmoid(rates[..., 1]) if rule.decay else torch.zeros_like(eta)
    if mask is not None:
        eta, log_decay = eta * mask, log_decay * mask
    return Written(unit(keys), unit(values) if rule.normalize_value else values, eta, log_decay)


def left_vectors(z: Written, rule: SelfRule) -> Tensor:
    """p [..., C, n, d] of the exact rule, whose gradient is taken at the state just before the token.

    S (a I - eta k k^T) - eta S (k - v) k^T: p = 2k - v with delta gradient descent, k - v without; with
    momentum the decay's part k (or nothing) and the gradient's part k - v are written separately.
    """
    gradient = z.keys - z.values
    if rule.two:
        forget = z.keys if rule.delta_gradient else torch.zeros_like(z.keys)
        return torch.stack([forget, gradient], dim=-2)
    return (z.keys + gradient if rule.delta_gradient else gradient).unsqueeze(-2)


def self_written(
    state: MatrixState,
    x: Tensor,
    weights: Tensor,
    offset: Tensor,
    rule: SelfRule,
    mask: Tensor | None = None,
    sweeps: bool | None = None,
) -> Written:
    """What the tokens x [batch, heads, C, d] of a block write, exactly as one after the other would.

    `weights` and `offset` are those of `output_layer`.
    `sweeps` computes all tokens at once, again and again; otherwise one after the other, without a graph.
    Default: sweeps with momentum and away from the CPU.
    """
    if x.shape[-2] == 1 or rule.given:
        return written(x @ state.value.transpose(-2, -1), weights, offset, rule, mask)
    velocity = state.velocity if state.velocity is not None else torch.zeros_like(state.value)
    if sweeps is None:
        sweeps = rule.two or x.device.type != "cpu"
    if rule.two and not sweeps:
        raise ValueError("the loop knows no momentum: use sweeps")
    return Written(*_SelfWritten.apply(rule, mask, sweeps, state.value, velocity, x, weights, offset))


class _SelfWritten(torch.autograd.Function):
    """z with z = F(z): sweeps forward, sweeps backward."""

    @staticmethod
    def forward(
        ctx: Any, rule: SelfRule, mask: Tensor | None, sweeps: bool, value: Tensor, velocity: Tensor,
        x: Tensor, weights: Tensor, offset: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        z: tuple[Tensor, ...]
        if sweeps:
            sweep = _sweep(rule, mask, value, velocity, x, weights, offset)
            first = written(x @ value.transpose(-2, -1), weights, offset, rule, mask)
            z, _ = settle(sweep, first, x.shape[-2])
            ctx.kept = None
        else:
            # numba, which it compiles with, takes a second to import
            from gradatim.models.self_reference_loop import loop_forward

            z, ctx.kept = loop_forward(value, x, weights, offset, *_switches(rule), mask)
        ctx.rule, ctx.mask = rule, mask
        ctx.save_for_backward(value, velocity, x, weights, offset, *z)
        return z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, keys, values, eta, log_decay = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if ctx.kept is not None:
            from gradatim.models.self_reference_loop import loop_adjoint

            value, _, x, weights, offset = inputs
            switches = (*_switches(ctx.rule), ctx.mask)
            z = (keys, values, eta, log_decay)
            of_value, *others = loop_adjoint(value, x, weights, offset, *switches, z, ctx.kept, gradients)
            return (None, None, None, of_value, None, *others)
        with torch.enable_grad():
            given = [t.detach().requires_grad_(need) for t, need in zip(inputs, needed, strict=True)]
            z = Written(*(t.detach().requires_grad_() for t in (keys, values, eta, log_decay)))
            again = _sweep(ctx.rule, ctx.mask, *given)(z)

            def pull(weights: Written) -> Written:
                found = _pulled(again, z, weights, retain_graph=True)
                return Written(*(g if d is None else g + d for g, d in zip(gradients, found, strict=True)))

            total, _ = settle(pull, Written(*gradients), keys.shape[-2])
            wanted = [t for t in given if t.requires_grad]
            found = iter(_pulled(again, wanted, total))
        return (None, None, None, *(next(found) if need else None for need in needed))


def _pulled(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor], **options: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of the outputs that have any: a rate that is fixed has none."""
    moving = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    return torch.autograd.grad(
        [o for o, _ in moving], inputs, [w for _, w in moving], allow_unused=True, **options
    )


def _switches(rule: SelfRule) -> tuple[bool, bool, bool]:
    return rule.delta_gradient, rule.normalize_value, rule.decay


def _sweep(
    rule: SelfRule, mask: Tensor | None, value: Tensor, velocity: Tensor, x: Tensor, weights: Tensor,
    offset: Tensor,
) -> Callable[[Written], Written]:  # fmt: skip
    state = MatrixState(value, velocity if rule.two else None)

    def sweep(z: Written) -> Written:
        kernel = block_kernel(z.log_decay, rule.momentum, mask, two=rule.two)
        writes = solve_writes(state, kernel, z.keys, left_vectors(z, rule), None, z.eta)
        return written(read(state, kernel, z.keys, writes, x), weights, offset, rule, mask)

    return sweep


def settle(sweep: Callable[[Written], Written], z: Written, size: int) -> tuple[Written, int]:
    """Sweep until nothing changes by more than rounding, `size` times at most; also says how often."""
    tolerance = 8 * torch.finfo(z.keys.dtype).eps
    for n in range(1, size + 1):
        new = sweep(z)
        change = torch.stack([(a - b).abs().amax() for a, b in zip(new, z, strict=True)])
        largest = torch.stack([a.abs().amax() for a in new])
        z = new
        # NaN compares false: a state that is lost is swept to the end, and found by its owner.
        if bool((change <= tolerance * largest.clamp(min=1e-3)).all()):
            return z, n
    return z, size
