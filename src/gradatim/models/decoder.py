"""A decoder-only transformer in one readable file: embeddings in, hidden states out.

    h <- h + Attention(LN(h));   h <- h + W2 gelu(W1 LN(h));   LN at the end            (norm="pre")

Causal attention, with learned, sinusoidal, rotary or no positions, and a cache of keys and values. It knows
nothing of tokens or tasks: a language model or an in-context learner puts its read-in and read-out around it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradatim.models.fast_linear import Linear, linear

Positions = Literal["learned", "sinusoidal", "rotary", "none"]
Norm = Literal["pre", "replace", "branch"]


@runtime_checkable
class Cache(Protocol):
    """Where earlier keys and values are kept; `transformers.DynamicCache` is one."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append to a layer; returns all keys and values of that layer, the new ones last."""
        ...

    def get_seq_length(self) -> int:
        """How many positions are stored."""
        ...


class KeyValueCache:
    """Keys and values [batch, heads, time, head size] of every layer so far.

    `peek()` gives a view that hands out old and new together but stores nothing: for queries that must not
    become part of the context.
    """

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append to a layer and return everything it holds."""
        both = self._with(key_states, value_states, layer_idx)
        if layer_idx == len(self.layers):
            self.layers.append(both)
        else:
            self.layers[layer_idx] = both
        return both

    def get_seq_length(self) -> int:
        """How many positions are stored."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def peek(self) -> Cache:
        """The same content, read only."""
        return _Peek(self)

    def _with(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if layer >= len(self.layers):
            return keys, values
        old_keys, old_values = self.layers[layer]
        return torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)


class _Peek:
    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        return self.cache._with(key_states, value_states, layer_idx)

    def get_seq_length(self) -> int:
        return self.cache.get_seq_length()


class Decoder(nn.Module):
    """L blocks of causal attention and a GELU network, width H.

    Args:
        width: H.
        layers: L; 0 gives the positions and the final norm alone.
        heads: M attention heads; M must divide H.
        max_positions: rows of the learned table; the longest sequence it accepts.
        positions: "learned" (a trained table), "sinusoidal" (fixed waves, added), "rotary" (queries and
            keys are turned by angles of their position) or "none".
        norm: "pre" normalises the input of each branch and the last hidden state. "replace" lets the
            normalised value take the stream's place, h <- LN(h); h <- h + branch(h), with no final norm;
            "branch" normalises what a branch adds, h <- h + LN(branch(h)), with no final norm.
        head_size: size of one head, H / M unless given (attention is then M head_size wide inside).
        mlp_ratio: width of the network inside a block, in units of H.
        epsilon: of the layer norms.
        initializer_range: standard deviation of the weights (branch outputs: divided by sqrt(2L), as GPT-2).

    Raises ValueError for sizes below 1, a width that heads do not divide, odd heads with rotary positions.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        max_positions: int,
        positions: Positions = "learned",
        norm: Norm = "pre",
        head_size: int | None = None,
        mlp_ratio: int = 4,
        epsilon: float = 1e-5,
        initializer_range: float = 0.02,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("heads", heads), ("max_positions", max_positions)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if layers < 0:
            raise ValueError(f"layers must not be negative, got {layers}")
        if head_size is None and width % heads:
            raise ValueError(f"width {width} cannot be divided among {heads} heads")
        head_size = head_size or width // heads
        if positions == "rotary" and head_size % 2:
            raise ValueError(f"rotary positions need heads of even size, got {head_size}")
        self.positions: Positions = positions
        self.max_positions = max_positions
        self.initializer_range = initializer_range
        self.position_table = nn.Embedding(max_positions, width) if positions == "learned" else None
        rotary = positions == "rotary"
        self.blocks = nn.ModuleList(
            Block(i, width, heads, head_size, mlp_ratio, norm, epsilon, rotary) for i in range(layers)
        )
        self.final_norm = nn.LayerNorm(width, eps=epsilon) if norm == "pre" else None
        # Set by PreTrainedModel.gradient_checkpointing_enable(), which looks for these two names.
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Any = partial(checkpoint, use_reentrant=False)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights N(0, initializer_range), branch outputs smaller by sqrt(2L), biases 0, norms 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.initializer_range, generator=generator)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, Block)
            for last in (block.attention.out, block.mlp.down):
                with torch.no_grad():
                    last.weight.div_(math.sqrt(2 * len(self.blocks)))

    def forward(
        self,
        h: Float[Tensor, "batch time width"],
        *,
        read: slice | None = None,
        output_hidden_states: bool = False,
        cache: Cache | None = None,
        mask: Bool[Tensor, "time all_time"] | None = None,
        position_ids: Int[Tensor, " time"] | None = None,
    ) -> tuple[Float[Tensor, "batch read width"], tuple[Tensor, ...] | None]:
        """Hidden states of the last layer and, where asked for, of the embedding and every layer.

        Args:
            h: embeddings, without positions.
            read: only these positions are wanted: the last layer computes no others. Hidden states come at
                the same positions.
            cache: keys and values of what came before; extended by this call.
            mask: True where a position (row) may look at a key (stored ones first); default causal.
            position_ids: default: counted on from the cache.

        Raises ValueError for sequences longer than `max_positions` with a learned table.
        """
        past = cache.get_seq_length() if cache is not None else 0
        time = h.shape[1]
        last = past + time if position_ids is None else int(position_ids.max()) + 1
        if self.positions == "learned" and last > self.max_positions:
            raise ValueError(
                f"{last} positions, but the learned table has {self.max_positions}: "
                "raise max_positions, or choose rotary, sinusoidal or no positions"
            )
        if position_ids is None:
            position_ids = torch.arange(past, past + time, device=h.device)
        if self.position_table is not None:
            h = h + self.position_table(position_ids)
        elif self.positions == "sinusoidal":
            h = h + sinusoids(position_ids, h.shape[-1]).to(h.dtype)
        rotation = None
        if self.positions == "rotary" and self.blocks:
            first = self.blocks[0]
            assert isinstance(first, Block)
            rotation = rotary_angles(position_ids, first.attention.head_size)
        if mask is None and past:
            mask = torch.ones(time, past + time, dtype=torch.bool, device=h.device).tril(past)

        states = [h[:, read] if read is not None else h] if output_hidden_states else None
        for i, block in enumerate(self.blocks):
            rows = read if i == len(self.blocks) - 1 else None
            if self.gradient_checkpointing and self.training:
                h = self._gradient_checkpointing_func(
                    block, h, rows, rotation, None, mask, use_reentrant=False
                )
            else:
                h = block(h, rows, rotation, cache, mask)
            if states is not None and i < len(self.blocks) - 1:
                states.append(h[:, read] if read is not None else h)
        if not self.blocks and read is not None:
            h = h[:, read]
        if self.final_norm is not None:
            h = self.final_norm(h)
        if states is None:
            return h, None
        return h, (*states, h) if self.blocks else (*states,)


class Block(nn.Module):
    """One layer: attention, then the network, each added to the stream."""

    def __init__(
        self,
        index: int,
        width: int,
        heads: int,
        head_size: int,
        mlp_ratio: int,
        norm: Norm,
        epsilon: float,
        rotary: bool,
    ) -> None:
        super().__init__()
        self.norm: Norm = norm
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.attention = CausalAttention(index, width, heads, head_size, rotary)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.mlp = MLP(width, mlp_ratio * width)

    def forward(
        self,
        h: Tensor,
        rows: slice | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """[batch, time, H] -> [batch, time or rows, H]."""
        seen = h if self.norm == "branch" else self.attention_norm(h)
        stream = seen if self.norm == "replace" else h
        if rows is not None:
            stream = stream[:, rows]
        added = self.attention(seen, rows, rotation, cache, mask)
        h = stream + (self.attention_norm(added) if self.norm == "branch" else added)
        seen = h if self.norm == "branch" else self.mlp_norm(h)
        stream = seen if self.norm == "replace" else h
        added = self.mlp(seen)
        return stream + (self.mlp_norm(added) if self.norm == "branch" else added)


class CausalAttention(nn.Module):
    """softmax(Q K^T / sqrt(head size) + causal mask) V, in M heads."""

    def __init__(self, index: int, width: int, heads: int, head_size: int, rotary: bool) -> None:
        super().__init__()
        self.index, self.heads, self.head_size, self.rotary = index, heads, head_size, rotary
        self.qkv = Linear(width, 3 * heads * head_size)
        self.out = Linear(heads * head_size, width)

    def forward(
        self,
        h: Tensor,
        rows: slice | None,
        rotation: tuple[Tensor, Tensor] | None,
        cache: Cache | None,
        mask: Tensor | None,
    ) -> Tensor:
        """[batch, time, H] -> [batch, time or rows, H]; `rows` ask, all positions answer."""
        inner = self.heads * self.head_size
        if rows is None:
            q, k, v = (self._split(part) for part in self.qkv(h).split(inner, dim=-1))
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = self._split(linear(h[:, rows], weight[:inner], bias[:inner]))
            k, v = (self._split(p) for p in linear(h, weight[inner:], bias[inner:]).split(inner, dim=-1))
        if rotation is not None:
            cos, sin = rotation
            k = rotate(k, cos, sin)
            q = rotate(q, cos, sin) if rows is None else rotate(q, cos[rows], sin[rows])
        if cache is not None:
            k, v = cache.update(k, v, self.index)
        if mask is None and rows is not None:
            mask = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).tril()
        if mask is not None and rows is not None:
            mask = mask[rows]
        mixed = attend(q, k, v, mask)  # [batch, heads, rows, size]
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)


class MLP(nn.Module):
    """W2 gelu(W1 h + b1) + b2, with the tanh form of GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = Linear(width, inner)
        self.down = Linear(inner, width)

    def forward(self, h: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return self.down(F.gelu(self.up(h), approximate="tanh"))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention [.., rows, size] over [.., time, size]; `mask` [rows, time] is True where allowed.

    None means causal, for as many rows as there are keys. Under `torch.func.vmap` the fused kernel would run
    once per model; there the formula is written out, which vectorises. (`softmax` itself is slow on rows as
    short as a small context: plain exponentials, divided by their sum at the end, take less time.)
    """
    if not vectorised(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    if mask is None:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    hidden = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -math.inf)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + hidden
    weights = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return (weights @ v) / weights.sum(-1, keepdim=True)


def vectorised(tensor: Tensor) -> bool:
    """Whether `tensor` is being mapped over by `torch.func.vmap`: its values cannot be asked for then."""
    return bool(torch._C._functorch.is_batchedtensor(tensor))


def sinusoids(position_ids: Tensor, width: int) -> Tensor:
    """[time, width]: sin and cos of t / 10000^(2i / width) in turn ("Attention Is All You Need", 2017)."""
    rates = torch.exp(torch.arange(0, width, 2, device=position_ids.device) * (-math.log(10_000.0) / width))
    angles = position_ids[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


def rotary_angles(position_ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """cos and sin [time, size] of t / 10000^(2i / size), for both halves of a head ("RoFormer", 2021)."""
    rates = torch.exp(torch.arange(0, size, 2, device=position_ids.device) * (-math.log(10_000.0) / size))
    angles = (position_ids[:, None] * rates).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn entry i of the first half with entry i of the second half by the angle of its position."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)
