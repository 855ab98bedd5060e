"""Self-modification of two-layer memories M(z) = z + W1 gelu(W2 z), chunk by chunk in the dual form.

Inside a chunk the gradient of 1/2 |M(k) - vhat|^2 is taken at the chunk's start, so that of each layer is
an outer product of an error and that layer's input: e (W1) and W1^T e * gelu'(W2 k) (W2). Rank-one writes
again: the algebra of `memory_scan` gives every token's read without one gradient being formed.

For a layer with input y that is no unit vector, delta gradient descent in closed form takes the step

    W <- W (I - eta' y y^T) - eta' delta y^T,        eta' = eta / (1 + eta |y|^2),

which cannot overshoot along y; the same eta' serves without the delta term.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gradatim.models.memory_scan import BlockKernel, MatrixState, block_kernel, last_state, read, solve_writes
from gradatim.models.memory_state import Lane
from gradatim.models.self_reference import SelfRule, Written, unit

# In this order, two lanes each (W2, then W1): keys and values as a pair, the two rates as a pair, the
# memory read.
GROUPS = ("key_value", "rates", "read")


def initial_shapes(d: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the learned first and second layers per head."""
    return {
        "key_value_in": (2, hidden, d),
        "key_value_out": (2, d, hidden),
        "rates_in": (2, hidden, d),
        "rates_out": (2, 1, hidden),
        "read_in": (hidden, d),
        "read_out": (d, hidden),
    }


def lane_chunks(chunks: tuple[int, int]) -> tuple[int, ...]:
    """Chunk size of each lane."""
    memory, others = chunks
    return (others,) * 4 + (memory,) * 2


def fresh_lanes(
    like: Tensor, initial: Mapping[str, Tensor], chunks: tuple[int, int], rule: SelfRule
) -> tuple[Lane, ...]:
    """The learned weights, once per sample."""
    lanes = []
    names = [f"{group}_{side}" for group in GROUPS for side in ("in", "out")]
    for name, chunk in zip(names, lane_chunks(chunks), strict=True):
        value = initial[name].to(like.dtype).expand(like.shape[0], *initial[name].shape)
        velocity = torch.zeros_like(value) if rule.two else None
        lanes.append(Lane(MatrixState(value, velocity), value if chunk > 1 else None))
    return tuple(lanes)


class Slope(NamedTuple):
    """One layer's gradient delta y^T: its input y [.., C, in] and its error delta [.., C, out]."""

    keys: Tensor
    error: Tensor


def mlp_block(
    lanes: tuple[Lane, ...],
    x: Tensor,
    queries: Tensor,
    bias: Tensor,
    rule: SelfRule,
    mask: Tensor | None,
    after: bool,
) -> tuple[Tensor, tuple[Lane, ...]]:
    """One block inside all chunks: o [batch, heads, C, d] and the lanes after it."""
    pair = x.unsqueeze(2)  # one input for both memories of a pair
    keys, values = (pair + _through(lanes[0].start, lanes[1].start, pair)).unbind(2)
    rates = _through(lanes[2].start, lanes[3].start, pair)[..., 0] + bias[:, :, None]
    eta, log_decay = torch.sigmoid(rates[:, :, 0]), F.logsigmoid(rates[:, :, 1])
    if not rule.decay:
        log_decay = torch.zeros_like(log_decay)
    if mask is not None:
        eta, log_decay = eta * mask, log_decay * mask
    z = Written(unit(keys), unit(values) if rule.normalize_value else values, eta, log_decay)

    kernel = block_kernel(z.log_decay, rule.momentum, mask, two=rule.two)
    moved, last = [], None
    for group in range(3):
        inner, outer = lanes[2 * group : 2 * group + 2]
        paired = group < 2
        k, v = (t.unsqueeze(2) if paired else t for t in (z.keys, z.values))
        rate = z.eta.unsqueeze(2) if paired else z.eta
        kernels = _widen(kernel) if paired else kernel
        slopes = _slopes(inner.start, outer.start, k, v, residual=group != 1)
        last = []
        for lane, slope in zip((inner, outer), slopes, strict=True):
            slope = Slope(*(t.expand(*lane.matrix.value.shape[:-2], *t.shape[-2:]) for t in slope))
            writes = _solve(lane, kernels, slope, rate, rule)
            moved.append(replace(lane, matrix=last_state(lane.matrix, kernels, slope.keys, writes)))
            last.append((lane.matrix, kernels, slope.keys, writes))
    assert last is not None
    inner_read, outer_read = last
    hidden = F.gelu(read(*inner_read, queries, after))
    return queries + read(*outer_read, hidden, after), tuple(moved)


def _through(inner: Tensor, outer: Tensor, z: Tensor) -> Tensor:
    return F.gelu(z @ inner.transpose(-2, -1)) @ outer.transpose(-2, -1)


def _slopes(inner: Tensor, outer: Tensor, k: Tensor, v: Tensor, residual: bool) -> tuple[Slope, Slope]:
    """Both layers' writes for 1/2 |M(k) - M(v)|^2, M(v) being the target."""
    before = k @ inner.transpose(-2, -1)
    hidden = F.gelu(before)
    error = hidden @ outer.transpose(-2, -1) - _through(inner, outer, v)
    if residual:
        error = error + k - v
    back = (error @ outer) * _gelu_slope(before)
    return Slope(k, back), Slope(hidden, error)


def _gelu_slope(x: Tensor) -> Tensor:
    """d gelu(x) / dx = P(x) + x p(x), with P and p of the normal distribution."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)


def _solve(lane: Lane, kernel: BlockKernel, slope: Slope, eta: Tensor, rule: SelfRule) -> Tensor:
    nothing, nowhere = torch.zeros_like(slope.keys), torch.zeros_like(slope.error)
    forget = slope.keys if rule.delta_gradient else nothing
    eta = eta / (1 + eta * slope.keys.square().sum(-1))
    left, right = forget.unsqueeze(-2), slope.error.unsqueeze(-2)
    if rule.two:
        left = torch.stack([forget, nothing], dim=-2)
        right = torch.stack([nowhere, slope.error], dim=-2)
    return solve_writes(lane.matrix, kernel, slope.keys, left, right, eta)


def _widen(kernel: BlockKernel) -> BlockKernel:
    """The kernel of one head for the pair of memories in it."""
    return BlockKernel(
        kernel.start.unsqueeze(2),
        kernel.writes.unsqueeze(2),
        None if kernel.velocity is None else kernel.velocity.unsqueeze(2),
        None if kernel.carry is None else kernel.carry.unsqueeze(2),
    )
