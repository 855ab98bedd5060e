"""Attention behind the same call as the recurrent memories: the mixer of Hope-Attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradatim.models.decoder import rotate
from gradatim.models.fast_linear import Linear
from gradatim.models.hope_cache import AttentionState
from gradatim.models.self_modifying_memory import check_heads, count, split


class RotaryAttention(nn.Module):
    """softmax(Q K^T / sqrt(d) + causal mask) V in `num_heads` heads, rotary positions, no biases.

    A memory of frequency infinity: it keeps every pair (k, v) as it is. Positions count the tokens that are
    there, so padding shifts nothing.

    Raises ValueError where heads do not divide the width, and for a state of another batch.
    """

    def __init__(self, dim: int, num_heads: int, rope_theta: float = 10_000.0) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.head_dim, self.rope_theta = num_heads, dim // num_heads, rope_theta
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.out = Linear(dim, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        state: AttentionState | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], AttentionState]:
        """y [batch, time, D], and keys and values with those of x appended."""
        batch, time, _ = x.shape
        if state is not None and len(state) != batch:
            raise ValueError(f"the state holds {len(state)} samples, the input {batch}")
        q, k, v = (split(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        start = torch.zeros(batch, dtype=torch.long, device=x.device) if state is None else state.tokens
        cos, sin = self._angles(start[:, None] + torch.arange(time, device=x.device))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        here = torch.ones(batch, time, dtype=torch.bool, device=x.device) if mask is None else mask
        before = 0 if state is None else state.keys.shape[2]
        if state is not None:
            k, v = torch.cat([state.keys, k], dim=2), torch.cat([state.values, v], dim=2)
        present = here if state is None else torch.cat([state.present, here], dim=1)
        if state is None and mask is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            causal = torch.ones(time, before + time, dtype=torch.bool, device=x.device).tril(before)
            # A place without a token sees itself, so that its (unused) row stays finite.
            own = torch.eye(time, dtype=torch.bool, device=x.device)
            allowed = causal & (present[:, None] | F.pad(own, (before, 0)))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None])
        y = self.out(mixed.transpose(1, 2).flatten(2))
        return y, AttentionState(k, v, present, start + count(mask, time))

    def _angles(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [batch, 1, time, d] of place / theta^(2i / d), for both halves of a head."""
        steps = torch.arange(0, self.head_dim, 2, device=places.device) / self.head_dim
        angles = (places[:, None, :, None] * self.rope_theta**-steps).repeat(1, 1, 1, 2)
        return angles.cos(), angles.sin()
