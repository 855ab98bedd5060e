"""Self-modification of linear memories: five of them, and one d x d state for all."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

import torch
from torch import Tensor

from gradatim.models.memory_scan import MatrixState, block_kernel, last_state, read, solve_writes, step
from gradatim.models.memory_state import Lane
from gradatim.models.self_reference import (
    SelfRule,
    Written,
    from_outputs,
    left_vectors,
    self_written,
    unit,
    written,
)

# Tokens swept together where a chunk is one token: larger blocks need more sweeps, smaller ones more calls.
PARALLEL = 64


def fresh_lanes(like: Tensor, size: int, chunks: tuple[int, int], rule: SelfRule) -> tuple[Lane, ...]:
    """Phi = I for the batch and heads of `like` [batch, heads, ...]: one lane, or two where chunks differ.

    The first lane belongs to the memories of k, v, eta and alpha, the last to the memory that is read.
    """
    eye = torch.eye(size, dtype=like.dtype, device=like.device).expand(*like.shape[:2], size, size)
    velocity = torch.zeros_like(eye) if rule.two else None
    return tuple(Lane(MatrixState(eye, velocity), eye if c > 1 else None) for c in lane_chunks(chunks))


def lane_chunks(chunks: tuple[int, int]) -> tuple[int, ...]:
    """Chunk size of each lane, that of the memories which write first."""
    memory, others = chunks
    return (others,) if memory == others else (others, memory)


def block_size(chunks: tuple[int, int]) -> int:
    """Tokens that can be computed at once: up to the nearest border of any chunk."""
    large = [c for c in chunks if c > 1]
    found = gcd(*large) if large else PARALLEL
    return gcd(found, PARALLEL) if 1 in chunks else found


def linear_block(
    lanes: tuple[Lane, ...],
    x: Tensor,
    queries: Tensor | None,
    layer: tuple[Tensor, Tensor],
    own_queries: Tensor,
    rule: SelfRule,
    mask: Tensor | None,
    after: bool,
) -> tuple[Tensor, tuple[Lane, ...]]:
    """One block: Phi_(t-1) q_t [batch, heads, C, d] and the lanes after it.

    x and queries [batch, heads, C, d]; without queries they come from M_q, `own_queries` [heads, d, d].
    `layer` is what `output_layer` makes of these tokens.
    """
    writer, (weights, offset) = lanes[0], layer
    if writer.anchor is None:
        z = self_written(writer.matrix, x, weights, offset, rule, mask)
    else:
        z = written(x @ writer.anchor.transpose(-2, -1), weights, offset, rule, mask)
    kernel = block_kernel(z.log_decay, rule.momentum, mask, two=rule.two)
    moved = []
    for lane in lanes:
        left, right = _vectors(lane, z, rule)
        writes = solve_writes(lane.matrix, kernel, z.keys, left, right, z.eta)
        moved.append(replace(lane, matrix=last_state(lane.matrix, kernel, z.keys, writes)))
        if queries is None:
            # M_q is written with the first lane, and read where its gradients are taken.
            if lane.anchor is None:
                addressed = read(lane.matrix, kernel, z.keys, writes, x)
            else:
                addressed = x @ lane.anchor.transpose(-2, -1)
            queries = _queries(addressed, own_queries)
    assert queries is not None
    # `writes` and `lane` are those of the last lane: the memory that is read.
    return read(lane.matrix, kernel, z.keys, writes, queries, after), tuple(moved)


def linear_step(
    lanes: tuple[Lane, ...],
    x: Tensor,
    queries: Tensor | None,
    layer: tuple[Tensor, Tensor],
    own_queries: Tensor,
    rule: SelfRule,
    mask: Tensor | None,
    after: bool,
) -> tuple[Tensor, tuple[Lane, ...]]:
    """The same for one token, without the algebra of blocks."""
    addressed = x @ lanes[0].start.transpose(-2, -1)
    z = written(addressed, *layer, rule, mask)
    queries = _queries(addressed, own_queries) if queries is None else queries
    decay, eta, key = z.log_decay[..., 0].exp(), z.eta[..., 0], z.keys[..., 0, :]
    moved = []
    for lane in lanes:
        left, right = _vectors(lane, z, rule)
        first = None if right is None else right[..., 0, :, :]
        after_one = step(lane.matrix, decay, key, left[..., 0, :, :], first, eta, rule.momentum)
        if mask is not None and rule.two:
            there = mask[..., 0, None, None].expand(*key.shape[:2], 1, 1)
            after_one = MatrixState(
                torch.where(there, after_one.value, lane.matrix.value),
                torch.where(there, after_one.velocity, lane.matrix.velocity),  # type: ignore[arg-type]
            )
        moved.append(replace(lane, matrix=after_one))
    seen = moved[-1].matrix.value if after else lanes[-1].matrix.value
    return queries @ seen.transpose(-2, -1), tuple(moved)


def _queries(addressed: Tensor, own: Tensor) -> Tensor:
    """q = unit(M_q x) from u = Phi x."""
    return unit(torch.einsum("bhtd,hmd->bhtm", addressed, own))


def _vectors(lane: Lane, z: Written, rule: SelfRule) -> tuple[Tensor, Tensor | None]:
    """p and r of a lane: its gradient is taken at the state before each token, or at its chunk's start."""
    if lane.anchor is None:
        return left_vectors(z, rule), None
    slope = (z.keys - z.values) @ lane.anchor.transpose(-2, -1)
    nothing = torch.zeros_like(z.keys)
    forget = z.keys if rule.delta_gradient else nothing
    if rule.two:
        return torch.stack([forget, nothing], dim=-2), torch.stack([nothing, slope], dim=-2)
    return forget.unsqueeze(-2), slope.unsqueeze(-2)


def stacked_steps(
    x: Tensor, queries: Tensor, initial: Tensor, bias: Tensor, rule: SelfRule
) -> tuple[Tensor, Tensor]:
    """The definition, token by token, with all five memories as matrices of their own.

    initial [heads, 3d + 2, d] stacks M_k, M_v, M_eta, M_alpha and M_mem. Every memory M takes

        vhat = M v,    M <- M (a I - eta k k^T) - eta (M k - vhat) k^T

    from its own output. Returns o [batch, heads, T, d] and the last matrices [batch, heads, 3d + 2, d]. It
    moves 3d + 2 rows where `linear_step` moves d: a reference to measure against, not a way to train.
    """
    d = x.shape[-1]
    memories = initial.expand(x.shape[0], *initial.shape)
    velocity = torch.zeros_like(memories)
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    outputs = []
    for t in range(x.shape[2]):
        made = memories[..., : 2 * d + 2, :] @ x[:, :, t, :, None]
        shift = torch.cat([bias.new_zeros(len(bias), 2 * d), bias], dim=1)[:, None]
        z = from_outputs(made.transpose(-2, -1) + shift, rule, None)
        k, v = z.keys[..., 0, :, None], z.values[..., 0, :, None]
        eta, decay = z.eta[..., 0, None, None], z.log_decay[..., 0, None, None].exp()
        outputs.append((memories[..., 2 * d + 2 :, :] @ queries[:, :, t, :, None])[..., 0])
        slope = (memories @ k - memories @ v) @ k.transpose(-2, -1)
        velocity = rule.momentum * velocity - eta * slope
        forget = decay * eye - eta * k @ k.transpose(-2, -1) if rule.delta_gradient else decay * eye
        memories = memories @ forget + velocity
    return torch.stack(outputs, dim=2), memories
