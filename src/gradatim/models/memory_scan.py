"""Linear memories over a block of tokens at once: the compact form of products of rank-one updates.

A matrix memory that forgets and writes one outer product per token,

    S_t = a_t S_(t-1) - w_t k_t^T,        w_t = eta_t (S_(t-1) p_t + r_t),

covers linear attention (p = 0, r = -v), the delta rule (p = k, r = -v; "Linear Transformers Are Secretly Fast
Weight Programmers", 2021, arXiv 2102.11174) and the self-modifying memory (p = 2k - v, r = 0; "Nested
Learning", 2025, arXiv 2512.24695). Unrolled from the state S_b before a block, with g_t = a_1 ... a_t,

    S_t = g_t S_b - sum_(s <= t) (g_t / g_s) w_s k_s^T,

so that the writes of a block of C tokens solve one unit triangular system of C x C, and reads and the last
state are products of C x C and C x d matrices ("Parallelizing Linear Transformers with the Delta Rule",
2024, arXiv 2406.06484). Ratios g_t / g_s are at most 1 and are formed from sums of logarithms: nothing
overflows.

With momentum mu the gradient part gathers in a second matrix V:

    V_t = mu V_(t-1) - g_t k_t^T,         S_t = a_t S_(t-1) - h_t k_t^T + V_t,
    h_t = eta_t (S_(t-1) p1_t + r1_t),    g_t = eta_t (S_(t-1) p2_t + r2_t):

two writes per token, each with its own kernel of the distance in time, and a system of 2C x 2C.

Rows: a table of C + 1 rows describes the states between the tokens of a block. Row t is the state before
token t (0-based), row C the state after the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MatrixState:
    """The running matrices of a memory: S [..., out, d] and, with momentum, the velocity V of that shape."""

    value: Tensor
    velocity: Tensor | None = None


@dataclass(frozen=True)
class BlockKernel:
    """How much of the past is left in each row of a block.

    start     [..., C + 1]        weight of S_b
    velocity  [..., C + 1]        weight of V_b, None without momentum
    writes    [..., C + 1, C, n]  weight of the n-th write of token s (strictly below the diagonal)
    carry     [..., C + 1]        weights of V_b and of the C gradients in the velocity after the block; None
                                  without momentum
    """

    start: Tensor
    writes: Tensor
    velocity: Tensor | None = None
    carry: Tensor | None = None


def block_kernel(
    log_decay: Tensor, momentum: float = 0.0, mask: Tensor | None = None, two: bool = False
) -> BlockKernel:
    """The kernel of a block from log a_t [..., C].

    `mask` [..., C] is False at tokens that are not there: they must come with log_decay 0 (and eta 0), and
    the velocity neither decays nor is added at them. `two` gives two kinds of writes also for momentum 0.
    """
    size = log_decay.shape[-1]
    total = log_decay.cumsum(-1)
    rows = torch.cat([torch.zeros_like(total[..., :1]), total], dim=-1)  # log g_(t-1), C + 1 of them
    later = torch.ones(size + 1, size, dtype=torch.bool, device=log_decay.device).tril(-1)
    ratio = (rows.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~later, -torch.inf).exp()
    if not two and momentum == 0.0:
        return BlockKernel(rows.exp(), ratio.unsqueeze(-1))
    there = torch.ones_like(log_decay) if mask is None else mask.to(log_decay.dtype).expand_as(log_decay)
    # mu^(number of tokens between): 0^0 = 1 keeps momentum 0 exact.
    count = there.cumsum(-1)
    apart = (count.unsqueeze(-1) - count.unsqueeze(-2)).clamp(min=0)
    mu = torch.as_tensor(momentum, dtype=log_decay.dtype, device=log_decay.device)
    since = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril()
    powers = torch.where(since, mu**apart, 0.0)  # [j, s]: share of token s's gradient in V_j
    added = ratio * there.unsqueeze(-2)  # V_j enters S_j only at tokens that are there
    slow = added @ powers
    aged = mu**count
    return BlockKernel(
        start=rows.exp(),
        writes=torch.stack([ratio, slow], dim=-1),
        velocity=(added @ aged.unsqueeze(-1)).squeeze(-1),
        carry=torch.cat([aged[..., -1:], powers[..., -1, :]], dim=-1),
    )


def solve_writes(
    state: MatrixState,
    kernel: BlockKernel,
    keys: Tensor,
    left: Tensor,
    right: Tensor | None,
    eta: Tensor,
) -> Tensor:
    """All writes of a block, [..., C, n, out].

    Args:
        keys: k [..., C, d].
        left: p [..., C, n, d].
        right: r [..., C, n, out], or None for 0.
        eta: [..., C].
    """
    size, kinds = left.shape[-3], left.shape[-2]
    # Weights of tokens go to the narrow factor of each product. Token-major rows: the system is triangular
    # token by token.
    rows = (left * eta[..., None, None]).flatten(-3, -2)
    free = (rows * _each(kernel.start[..., :-1], kinds)) @ state.value.transpose(-2, -1)
    if state.velocity is not None and kernel.velocity is not None:
        moved = rows * _each(kernel.velocity[..., :-1], kinds)
        free = free + moved @ state.velocity.transpose(-2, -1)
    if right is not None:
        free = free + (right * eta[..., None, None]).flatten(-3, -2)
    if size == 1:
        return free.unflatten(-2, (size, kinds))
    overlap = (rows @ keys.transpose(-2, -1)).unflatten(-2, (size, kinds))  # eta_t k_s . p_t
    system = (overlap.unsqueeze(-1) * kernel.writes[..., :-1, None, :, :]).flatten(-2, -1).flatten(-3, -2)
    # [..., C n, C n]; the diagonal is not read: it stands for 1.
    if free.shape[-1] > 2 * system.shape[-1]:
        # For many columns: a small inverse and one product are faster than substituting in each column.
        eye = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device).expand_as(system)
        inverse = torch.linalg.solve_triangular(system, eye, upper=False, unitriangular=True)
        return (inverse @ free).unflatten(-2, (size, kinds))
    solved = torch.linalg.solve_triangular(system, free, upper=False, unitriangular=True)
    return solved.unflatten(-2, (size, kinds))


def _each(weights: Tensor, kinds: int) -> Tensor:
    """[..., C] -> [..., C n, 1]."""
    return (weights if kinds == 1 else weights.repeat_interleave(kinds, dim=-1)).unsqueeze(-1)


def read(
    state: MatrixState,
    kernel: BlockKernel,
    keys: Tensor,
    writes: Tensor,
    queries: Tensor,
    after: bool = False,
) -> Tensor:
    """S q for every token's own state: before its write, or after it. queries [..., C, d] -> [..., C,
    out].
    """
    rows = slice(1, None) if after else slice(None, -1)
    found = (queries * kernel.start[..., rows, None]) @ state.value.transpose(-2, -1)
    if state.velocity is not None and kernel.velocity is not None:
        moved = queries * kernel.velocity[..., rows, None]
        found = found + moved @ state.velocity.transpose(-2, -1)
    overlap = queries @ keys.transpose(-2, -1)
    weights = (overlap.unsqueeze(-1) * kernel.writes[..., rows, :, :]).flatten(-2, -1)
    return found - weights @ writes.flatten(-3, -2)


def last_state(state: MatrixState, kernel: BlockKernel, keys: Tensor, writes: Tensor) -> MatrixState:
    """The state after the block."""
    weighted = (keys.unsqueeze(-2) * kernel.writes[..., -1, :, :, None]).flatten(-3, -2)  # [..., C n, d]
    value = state.value * kernel.start[..., -1, None, None]
    value = value - writes.flatten(-3, -2).transpose(-2, -1) @ weighted
    if kernel.velocity is None or kernel.carry is None:
        return MatrixState(value)
    kept = state.velocity
    velocity = -writes[..., -1, :].transpose(-2, -1) @ (keys * kernel.carry[..., 1:, None])
    if kept is not None:
        value = value + kept * kernel.velocity[..., -1, None, None]
        velocity = velocity + kept * kernel.carry[..., :1, None]
    return MatrixState(value, velocity)


def step(
    state: MatrixState,
    decay: Tensor,
    key: Tensor,
    left: Tensor,
    right: Tensor | None,
    eta: Tensor,
    momentum: float = 0.0,
) -> MatrixState:
    """One token, written as the formulas above read: decay, eta [...]; key [..., d]; left, right [..., n, .].

    With two writes the second one goes through the velocity.
    """
    drawn = left @ state.value.transpose(-2, -1)
    if right is not None:
        drawn = drawn + right
    writes = drawn * eta[..., None, None]  # [..., n, out]
    value = state.value * decay[..., None, None] - writes[..., 0, :, None] * key[..., None, :]
    if writes.shape[-2] == 1:
        return MatrixState(value)
    velocity = -writes[..., 1, :, None] * key[..., None, :]
    if state.velocity is not None:
        velocity = velocity + momentum * state.velocity
    return MatrixState(value + velocity, velocity)
