"""Self-modification of two-layer memories M(z) = z + W1 gelu(W2 z), chunk by chunk in the dual form.

Inside a chunk the gradient of 1/2 |M(k) - vhat|^2 is taken at the chunk's start, so that of each layer is
an outer product of an error and that layer's input: e (W1) and W1^T e * gelu'(W2 k) (W2). Rank-one writes
again: the algebra of `memory_scan` gives every token's read without one gradient being formed.

For a layer with input y that is no unit vector, delta gradient descent in closed form takes the step

    W <- W (I - eta' y y^T) - eta' delta y^T,        eta' = eta / (1 + eta |y|^2),

which cannot overshoot along y; the same eta' serves without the delta term.

All first layers see the same key: those of equal chunks are one tall matrix with one triangular system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gradatim.models.memory_scan import BlockKernel, MatrixState, block_kernel, last_state, read, solve_writes
from gradatim.models.memory_state import Lane
from gradatim.models.self_reference import SelfRule, Written, unit

# Two memories in one parameter each: (name of the parameter, which of the two).
PAIRS = {"k": ("key_value", 0), "v": ("key_value", 1), "eta": ("rates", 0), "alpha": ("rates", 1)}
SINGLES = {"q": "query", "mem": "read"}


def initial_shapes(d: int, hidden: int, queries: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes of the learned first and second layers per head."""
    shapes: dict[str, tuple[int, ...]] = {
        "key_value_in": (2, hidden, d),
        "key_value_out": (2, d, hidden),
        "rates_in": (2, hidden, d),
        "rates_out": (2, 1, hidden),
    }
    for name in ("query", "read") if queries else ("read",):
        shapes |= {f"{name}_in": (hidden, d), f"{name}_out": (d, hidden)}
    return shapes


class Part(NamedTuple):
    """Memories that are written together: `narrow` ones (eta and alpha) put out one number, `wide` ones d."""

    narrow: tuple[str, ...]
    wide: tuple[str, ...]
    chunk: int

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in the order of their first layers."""
        return self.narrow + self.wide


def parts(chunks: tuple[int, int], rule: SelfRule) -> tuple[Part, ...]:
    """Who is written, and when: one part, or two where chunks differ. "mem" is the last of the last part."""
    narrow = ("eta", "alpha") if rule.inner_rates else ()
    inner = {"k": rule.inner_keys, "v": rule.inner_values, "q": rule.inner_queries}
    wide = tuple(name for name, moves in inner.items() if moves)
    memory, others = chunks
    if memory == others or not (narrow or wide):
        return (Part(narrow, (*wide, "mem"), memory),)
    return Part(narrow, wide, others), Part((), ("mem",), memory)


def lane_chunks(chunks: tuple[int, int], rule: SelfRule) -> tuple[int, ...]:
    """Chunk size of each lane: first layers, then second layers of the narrow and of the wide memories."""
    return tuple(
        part.chunk for part in parts(chunks, rule) for group in (True, part.narrow, part.wide) if group
    )


def _layers(name: str, initial: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The learned W2 [heads, hidden, d] and W1 [heads, d or 1, hidden] of one memory."""
    if name in SINGLES:
        return initial[f"{SINGLES[name]}_in"], initial[f"{SINGLES[name]}_out"]
    group, place = PAIRS[name]
    return initial[f"{group}_in"][:, place], initial[f"{group}_out"][:, place]


def fresh_lanes(
    like: Tensor, initial: Mapping[str, Tensor], chunks: tuple[int, int], rule: SelfRule
) -> tuple[Lane, ...]:
    """The learned weights, per sample: first layers [.., n * hidden, d], second ones [.., n, out, hidden]."""
    lanes = []
    for part in parts(chunks, rule):
        values = [torch.cat([_layers(n, initial)[0] for n in part.names], dim=1)]
        values += [
            torch.stack([_layers(n, initial)[1] for n in group], dim=1)
            for group in (part.narrow, part.wide)
            if group
        ]
        for value in values:
            value = value.to(like.dtype).expand(like.shape[0], *value.shape)
            velocity = torch.zeros_like(value) if rule.two else None
            lanes.append(Lane(MatrixState(value, velocity), value if part.chunk > 1 else None))
    return tuple(lanes)


def mlp_block(
    lanes: tuple[Lane, ...],
    x: Tensor,
    queries: Tensor | None,
    initial: Mapping[str, Tensor],
    bias: Tensor,
    rule: SelfRule,
    chunks: tuple[int, int],
    mask: Tensor | None,
    after: bool,
) -> tuple[Tensor, tuple[Lane, ...]]:
    """One block inside all chunks: o [batch, heads, C, d] and the lanes after it.

    x and queries [batch, heads, C, d]; without queries they come from the memory M_q.
    """
    layout = parts(chunks, rule)
    found = _answers(layout[0], lanes, x, initial)
    if queries is None:
        queries = unit(x + found["q"])
    rates = torch.cat([found["eta"], found["alpha"]], dim=-1) + bias[:, None]
    eta, log_decay = torch.sigmoid(rates[..., 0]), F.logsigmoid(rates[..., 1])
    if not rule.decay:
        log_decay = torch.zeros_like(log_decay)
    if mask is not None:
        eta, log_decay = eta * mask, log_decay * mask
    keys, values = unit(x + found["k"]), x + found["v"]
    z = Written(keys, unit(values) if rule.normalize_value else values, eta, log_decay)

    kernel = block_kernel(z.log_decay, rule.momentum, mask, two=rule.two)
    moved: list[Lane] = []
    for part in layout:
        mine = lanes[len(moved) : len(moved) + 1 + bool(part.narrow) + bool(part.wide)]
        slopes = _slopes(part, mine, z)
        last = []
        for lane, slope, shared in zip(mine, slopes, (True, False, False), strict=False):
            kernels = kernel if shared else _widen(kernel)
            rate = z.eta if shared else z.eta.unsqueeze(2)
            writes = _solve(lane, kernels, slope, rate, rule)
            moved.append(replace(lane, matrix=last_state(lane.matrix, kernels, slope.keys, writes)))
            last.append((lane.matrix, slope.keys, writes))
    # The memory that is read: the last rows of the first layers, the last of the second ones.
    (inner, inner_keys, inner_writes), (outer, outer_keys, outer_writes) = last[0], last[-1]
    size = outer.value.shape[-1]
    rows = MatrixState(inner.value[..., -size:, :], _last(inner.velocity, size, -2))
    hidden = F.gelu(read(rows, kernel, inner_keys, inner_writes[..., -size:], queries, after))
    mine_only = MatrixState(
        outer.value[:, :, -1], None if outer.velocity is None else outer.velocity[:, :, -1]
    )
    found_o = read(mine_only, kernel, outer_keys[:, :, -1], outer_writes[:, :, -1], hidden, after)
    return queries + found_o, tuple(moved)


def _last(t: Tensor | None, size: int, axis: int) -> Tensor | None:
    return None if t is None else t.narrow(axis, t.shape[axis] - size, size)


def _answers(
    part: Part, lanes: Sequence[Lane], x: Tensor, initial: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """W1 gelu(W2 x) of every memory but the one that is read, written or not, by name."""
    asked = tuple(n for n in part.names if n != "mem")
    found: dict[str, Tensor] = {}
    if asked:
        outer = list(lanes[1:])
        size = outer[0].start.shape[-1]
        inner = lanes[0].start[..., : len(asked) * size, :]
        hidden = _apart(F.gelu(x @ inner.transpose(-2, -1)), size)
        for group in (part.narrow, part.wide):
            names = [n for n in group if n != "mem"]
            if not group:
                continue
            weights = outer.pop(0).start[:, :, : len(names)]
            first = len(found)
            answers = hidden[:, :, first : first + len(names)] @ weights.transpose(-2, -1)
            found |= dict(zip(names, answers.unbind(2), strict=True))
    for name in ("k", "v", "eta", "alpha"):
        if name not in found:
            first_layer, second_layer = _layers(name, initial)
            found[name] = F.gelu(x @ first_layer.transpose(-2, -1)) @ second_layer.transpose(-2, -1)
    return found


def _apart(t: Tensor, size: int) -> Tensor:
    """[.., C, n * hidden] -> [.., n, C, hidden]."""
    return t.unflatten(-1, (-1, size)).movedim(-2, -3)


class Slope(NamedTuple):
    """A layer's gradient delta y^T: its input y [.., C, in] and its error delta [.., C, out]."""

    keys: Tensor
    error: Tensor


def _slopes(part: Part, lanes: Sequence[Lane], z: Written) -> list[Slope]:
    """What each lane writes for 1/2 |M(k) - M(v)|^2, M(v) being the target."""
    inner, *outer = (lane.start for lane in lanes)
    size, count = outer[0].shape[-1], z.keys.shape[-2]
    both = torch.cat([z.keys, z.values], dim=-2) @ inner.transpose(-2, -1)
    before, target = both.split(count, dim=-2)
    of_keys = _apart(F.gelu(before), size)
    gap = of_keys - _apart(F.gelu(target), size)
    groups = [g for g in (part.narrow, part.wide) if g]
    sizes = [len(g) for g in groups]
    back, slopes = [], []
    for group, weights, seen, apart in zip(
        groups, outer, of_keys.split(sizes, dim=2), gap.split(sizes, dim=2), strict=True
    ):
        error = apart @ weights.transpose(-2, -1)
        if group is part.wide:
            error = error + (z.keys - z.values).unsqueeze(2)
        slopes.append(Slope(seen, error))
        back.append(error @ weights)
    # gelu_backward(g, y) = g gelu'(y), and is differentiable itself.
    wide_back = torch.cat(back, dim=2).movedim(-3, -2).flatten(-2)
    return [Slope(z.keys, torch.ops.aten.gelu_backward(wide_back, before)), *slopes]


def _solve(lane: Lane, kernel: BlockKernel, slope: Slope, eta: Tensor, rule: SelfRule) -> Tensor:
    eta = eta / (1 + eta * slope.keys.square().sum(-1))
    forget = slope.keys if rule.delta_gradient else torch.zeros_like(slope.keys)
    left, right = forget.unsqueeze(-2), slope.error.unsqueeze(-2)
    if rule.two:
        left = torch.stack([forget, torch.zeros_like(forget)], dim=-2)
        right = torch.stack([torch.zeros_like(slope.error), slope.error], dim=-2)
    return solve_writes(lane.matrix, kernel, slope.keys, left, right, eta)


def _widen(kernel: BlockKernel) -> BlockKernel:
    """The kernel of one head for the several memories in it."""
    return BlockKernel(
        kernel.start.unsqueeze(2),
        kernel.writes.unsqueeze(2),
        None if kernel.velocity is None else kernel.velocity.unsqueeze(2),
        None if kernel.carry is None else kernel.carry.unsqueeze(2),
    )
