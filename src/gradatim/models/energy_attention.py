"""Blocks with two streams: a context that reads itself, and predictions that read the context and themselves.

Token r of the context is x_r; prediction r is about x_{r+1}. Context row r sees context 0..r. Prediction
row r sees context 0..r and itself, no other prediction: 2T rows without leakage, and the context never
depends on the predictions, so its keys and values serve every step of descent and every candidate.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gradatim.models.fast_linear import Linear
from gradatim.models.twice_differentiable import RMSNorm, gate, rotate

KeyValues = tuple[Tensor, Tensor]
"""Keys and values of a context, [batch, heads, context, size] each."""


class EnergyAttention(nn.Module):
    """Multi-head attention with rotary positions; both streams share W_q, W_k, W_v and W_o. No biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(width, width, bias=False)
        self.k_proj = Linear(width, width, bias=False)
        self.v_proj = Linear(width, width, bias=False)
        self.o_proj = Linear(width, width, bias=False)

    def keys(self, h: Float[Tensor, "batch time width"], rotation: KeyValues) -> KeyValues:
        """Keys and values [batch, heads, time, size] of context rows."""
        return rotate(self._split(self.k_proj(h)), *rotation), self._split(self.v_proj(h))

    def context(
        self,
        h: Float[Tensor, "batch time width"],
        rotation: KeyValues,
        known: KeyValues,
        mask: Bool[Tensor, "#batch 1 time context"] | None,
    ) -> Float[Tensor, "batch time width"]:
        """softmax(q K^T / sqrt(size)) V over `known` (these rows included); None masks causally.

        A fused kernel is safe here, in training too: predictions differentiate through it once only.
        """
        q = rotate(self._split(self.q_proj(h)), *rotation)
        mixed = F.scaled_dot_product_attention(q, *known, attn_mask=mask, is_causal=mask is None)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def predictions(
        self,
        h: Float[Tensor, "batch candidates time width"],
        rotation: KeyValues,
        known: KeyValues,
        mask: Bool[Tensor, "#batch 1 time context"],
        by_hand: bool = False,
    ) -> Float[Tensor, "batch candidates time width"]:
        """One softmax over [q K^T where `mask` allows | q . own key], times [V; own value].

        Written out because it is differentiated twice, for which no fused kernel exists. `by_hand` avoids
        `torch.softmax`, whose forward-mode derivative cannot be differentiated again.
        """
        shape = h.shape[:3]
        # [batch, heads, candidates, time, size]
        q, k, v = (
            p(h).unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        turn = [r.unsqueeze(2) for r in rotation]
        scale = q.shape[-1] ** -0.5
        q, k = rotate(q, *(scale * r for r in turn)), rotate(k, *turn)
        keys, values = known
        wide = torch.promote_types(q.dtype, torch.float32)
        # Candidates stand side by side as rows, so the context's keys are never copied.
        scores = (q.flatten(2, 3) @ keys.transpose(-2, -1)).unflatten(2, shape[1:]).to(wide)
        scores = scores.masked_fill(~mask.unsqueeze(2), -math.inf)
        own = (q * k).sum(-1, keepdim=True).to(wide)
        weights = _softmax(torch.cat([scores, own], dim=-1), by_hand).to(v.dtype)
        mixed = (weights[..., :-1].flatten(2, 3) @ values).unflatten(2, shape[1:]) + weights[..., -1:] * v
        out: Tensor = self.o_proj(mixed.permute(0, 2, 3, 1, 4).flatten(3))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> [batch, heads, time, size]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class EnergyBlock(nn.Module):
    """h <- h + attention(RMSNorm(h)); h <- h + SwiGLU(RMSNorm(h)), for both streams.

    With `modulated`, a vector c (the step's embedding) shifts and scales each norm's result and gates what
    each
    branch adds: six vectors per block, from a linear layer on SiLU(c), as in "Scalable diffusion models with
    transformers" (Peebles and Xie 2022, arXiv 2212.09748). Gates count from 1 where they do not start at
    zero.
    """

    def __init__(
        self, width: int, heads: int, inner: int, epsilon: float, modulated: bool, gates_at_zero: bool
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, eps=epsilon)
        self.self_attn = EnergyAttention(width, heads)
        self.post_attention_layernorm = RMSNorm(width, eps=epsilon)
        self.mlp = SwiGLU(width, inner)
        self.modulation = nn.Linear(width, 6 * width) if modulated else None
        if self.modulation is not None:
            # Read where weights are set: each tensor is given its start once, by its own module.
            self.modulation.starts_at_zero = gates_at_zero  # type: ignore[assignment]
        self.base_gate = 0.0 if gates_at_zero else 1.0

    def keys(self, h: Tensor, rotation: KeyValues, step: Tensor | None) -> KeyValues:
        """The keys and values that predictions read in this block."""
        shift, scale = self._modulation(step)[:2]
        return self.self_attn.keys(_modulate(self.input_layernorm(h), shift, scale), rotation)

    def context(
        self, h: Tensor, rotation: KeyValues, known: KeyValues, mask: Tensor | None, step: Tensor | None
    ) -> Tensor:
        """[batch, time, width] -> the same, given the keys and values of everything up to these rows."""
        shift, scale, *rest = self._modulation(step)
        seen = _modulate(self.input_layernorm(h), shift, scale)
        return self._after(h, self.self_attn.context(seen, rotation, known, mask), rest)

    def predictions(
        self,
        h: Tensor,
        rotation: KeyValues,
        known: KeyValues,
        mask: Tensor,
        step: Tensor | None,
        by_hand: bool = False,
    ) -> Tensor:
        """[batch, candidates, time, width] -> the same."""
        shift, scale, *rest = self._modulation(step)
        seen = _modulate(self.input_layernorm(h), shift, scale)
        return self._after(h, self.self_attn.predictions(seen, rotation, known, mask, by_hand), rest)

    def _after(self, h: Tensor, attended: Tensor, modulation: list[Tensor | None]) -> Tensor:
        gate, shift, scale, gate_mlp = modulation
        h = h + _gated(attended, gate, self.base_gate)
        added = self.mlp(_modulate(self.post_attention_layernorm(h), shift, scale))
        return h + _gated(added, gate_mlp, self.base_gate)

    def _modulation(self, step: Tensor | None) -> list[Tensor | None]:
        if self.modulation is None or step is None:
            return [None] * 6
        return list(self.modulation(F.silu(step)).chunk(6, dim=-1))


class SwiGLU(nn.Module):
    """W_down (SiLU(W_gate h) * W_up h)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner, bias=False)
        self.up_proj = Linear(width, inner, bias=False)
        self.down_proj = Linear(inner, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        out: Tensor = self.down_proj(gate(self.gate_proj(h), self.up_proj(h)))
        return out


def rotary(positions: Int[Tensor, "batch time"], size: int, theta: float, dtype: torch.dtype) -> KeyValues:
    """cos and sin [batch, 1, time, size] of p / theta^(2i / size), for both halves of a head ("RoFormer")."""
    wide = torch.promote_types(dtype, torch.float32)
    rates = theta ** (-torch.arange(0, size, 2, device=positions.device, dtype=wide) / size)
    angles = (positions[:, None, :, None].to(wide) * rates).repeat(1, 1, 1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _softmax(scores: Tensor, by_hand: bool) -> Tensor:
    if not by_hand:
        return scores.softmax(dim=-1)
    weights = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def _modulate(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    return x if shift is None or scale is None else x * (1 + scale) + shift


def _gated(x: Tensor, gate: Tensor | None, base: float) -> Tensor:
    return x if gate is None else x * (base + gate)
