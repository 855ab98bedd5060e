"""Linear self-attention over in-context pairs: one layer, its products, and softmax beside it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

ATTENTION_KINDS = ("linear", "softmax", "mixed")
# The standard deviation of a normal distribution cut at two of its own.
_CUT_AT_TWO = 0.87962566103423978


class LinearSelfAttention(nn.Module):
    r"""H <- H + damping * sum_h (H A_h) (C^T C) V_h, with A = W_Q W_K^T and V = W_V P.

    `tokens` H are rows [batch, T, dim]; the last `queries` of them are queries and C holds the others:
    queries read and are not read, unless `include_query=True` (then one query at a time). There is no
    softmax, no 1/sqrt(key_dim) and no causal mask. C^T C is formed once, so that many queries of one
    context share it, and no T x T map exists. "Transformers learn in-context by gradient descent"
    (2022, arXiv 2212.07677).

    - `attention="softmax"`: sum_h softmax(H A_h C^T / sqrt(key_dim)) C V_h; `"mixed"` learns one number g
      and takes sigmoid(g) of softmax and the rest of linear attention.
    - `bias=True` lets queries, keys and values carry a constant: A and V gain a first index for it.
    - `normalize="n"` divides the update by the number of keys, so that one layer serves contexts of every
      length. (Softmax already averages and is left alone.)
    - `sum_normalize=True` divides every query and every key by the sum of its entries.
    - `only` names the one coordinate that the layer changes; `clamp` bounds the new tokens to +-clamp.

    Weights start from normals cut at two standard deviations with variance `init_scale` / fan_in.

    Raises ValueError for sizes below 1, an unknown kind of attention, or several queries with
    `include_query`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        key_dim: int | None = None,
        *,
        include_query: bool = False,
        attention: str = "linear",
        damping: float = 1.0,
        clamp: float | None = None,
        bias: bool = False,
        normalize: str | None = None,
        sum_normalize: bool = False,
        only: int | None = None,
        init_scale: float = 0.002,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        key_dim = dim if key_dim is None else key_dim
        for name, size in (("dim", dim), ("num_heads", num_heads), ("key_dim", key_dim)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if attention not in ATTENTION_KINDS:
            raise ValueError(f"attention must be one of {', '.join(ATTENTION_KINDS)}, got {attention!r}")
        if normalize not in (None, "n"):
            raise ValueError(f"normalize must be None or 'n', got {normalize!r}")
        if clamp is not None and clamp <= 0:
            raise ValueError(f"clamp must be above 0, got {clamp}")
        if only is not None and not 0 <= only < dim:
            raise ValueError(f"only must name a coordinate below {dim}, got {only}")
        self.dim, self.num_heads, self.key_dim = dim, num_heads, key_dim
        self.include_query, self.attention, self.bias = include_query, attention, bias
        self.damping, self.clamp, self.normalize = damping, clamp, normalize
        self.sum_normalize, self.only, self.init_scale = sum_normalize, only, init_scale
        inputs = dim + bias
        self.query = nn.Parameter(torch.empty(num_heads, inputs, key_dim))
        self.key = nn.Parameter(torch.empty(num_heads, inputs, key_dim))
        self.value = nn.Parameter(torch.empty(num_heads, inputs, key_dim))
        self.output = nn.Parameter(torch.empty(num_heads, key_dim, dim))
        self.gate = nn.Parameter(torch.empty(())) if attention == "mixed" else None
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: variance `init_scale` / fan_in, the heads' outputs counting as one input."""
        for weight in (self.query, self.key, self.value, self.output):
            fan_in = weight.shape[1] * (self.num_heads if weight is self.output else 1)
            std = math.sqrt(self.init_scale / fan_in) / _CUT_AT_TWO
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
        if self.gate is not None:
            nn.init.zeros_(self.gate)

    def products(self) -> tuple[Float[Tensor, "heads inputs inputs"], Float[Tensor, "heads inputs dim"]]:
        """A = W_Q W_K^T and V = W_V P of every head: all that a linear layer depends on."""
        return self.query @ self.key.mT, self.value @ self.output

    @torch.no_grad()
    def set_products(
        self, a: Float[Tensor, "heads inputs inputs"], v: Float[Tensor, "heads inputs dim"]
    ) -> LinearSelfAttention:
        """Give the layer these products: W_Q = A, W_V = V, W_K and P the identity.

        Raises ValueError where keys are narrower than tokens or with a bias: then no identity fits.
        """
        if self.bias or self.key_dim != self.dim:
            raise ValueError("products can be set where key_dim equals dim and there is no bias")
        identity = torch.eye(self.dim, dtype=self.key.dtype, device=self.key.device)
        self.query.copy_(a)
        self.value.copy_(v)
        self.key.copy_(identity.expand_as(self.key))
        self.output.copy_(identity.expand_as(self.output))
        return self

    def forward(
        self, tokens: Float[Tensor, "*batch t dim"], queries: int = 1, *, only_queries: bool = False
    ) -> Float[Tensor, "*batch rows dim"]:
        """The tokens after the layer; with `only_queries` the queries alone, at their share of the cost."""
        return self.add(tokens, self.update(tokens, queries, only_queries=only_queries))

    def add(
        self, tokens: Float[Tensor, "*batch t dim"], update: Float[Tensor, "*batch rows dim"]
    ) -> Float[Tensor, "*batch rows dim"]:
        """The last rows of the tokens with their update: damped, in one coordinate if asked, clamped."""
        if self.only is not None:
            update = F.pad(update[..., self.only, None], (self.only, self.dim - self.only - 1))
        rows = tokens[..., tokens.shape[-2] - update.shape[-2] :, :] + self.damping * update
        return rows if self.clamp is None else rows.clamp(-self.clamp, self.clamp)

    def update(
        self, tokens: Float[Tensor, "*batch t dim"], queries: int = 1, *, only_queries: bool = False
    ) -> Float[Tensor, "*batch rows dim"]:
        """sum_h (H A_h) (C^T C) V_h for every row, or for the queries alone."""
        if tokens.shape[-1] != self.dim:
            raise ValueError(f"tokens must be {self.dim} wide, got {tuple(tokens.shape)}")
        if not 1 <= queries <= tokens.shape[-2]:
            raise ValueError(f"queries must be between 1 and {tokens.shape[-2]}, got {queries}")
        if self.include_query and queries != 1:
            raise ValueError(f"include_query reads one query at a time, got {queries}")
        context = tokens.shape[-2] - queries
        keys = tokens if self.include_query else tokens[..., :context, :]
        rows = tokens[..., context:, :] if only_queries else tokens
        if self.bias:
            rows, keys = F.pad(rows, (1, 0), value=1.0), F.pad(keys, (1, 0), value=1.0)
        if self.attention == "linear":
            return self._linear(rows, keys)
        if self.attention == "softmax":
            return self._softmax(rows, keys)
        assert self.gate is not None
        share = torch.sigmoid(self.gate)
        return share * self._softmax(rows, keys) + (1 - share) * self._linear(rows, keys)

    def _linear(self, rows: Tensor, keys: Tensor) -> Tensor:
        count = max(keys.shape[-2], 1) if self.normalize == "n" else 1
        if self.sum_normalize:
            q, k, v = self._project(rows, keys)
            return self._merge((q @ k.mT) @ v) / count
        a, v = self.products()
        gram = keys.mT @ keys  # [*batch, inputs, inputs]: shared by all queries
        if self.num_heads == 1:
            return rows @ (a[0] @ gram @ v[0]) / count
        return rows @ (a @ gram.unsqueeze(-3) @ v).sum(dim=-3) / count

    def _softmax(self, rows: Tensor, keys: Tensor) -> Tensor:
        q, k, v = self._project(rows, keys)
        return self._merge(torch.softmax(q @ k.mT / math.sqrt(self.key_dim), dim=-1) @ v)

    def _project(self, rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [*batch, heads, tokens, key_dim]."""
        rows, keys = rows.unsqueeze(-3), keys.unsqueeze(-3)
        q, k, v = rows @ self.query, keys @ self.key, keys @ self.value
        if self.sum_normalize:
            q, k = q / _away_from_zero(q.sum(-1, keepdim=True)), k / _away_from_zero(k.sum(-1, keepdim=True))
        return q, k, v

    def _merge(self, read: Tensor) -> Tensor:
        """[*batch, heads, rows, key_dim] to [*batch, rows, dim]: every head through its output, added."""
        return (read @ self.output).sum(dim=-3)


def _away_from_zero(total: Tensor) -> Tensor:
    return torch.where(total.abs() < 1e-4, torch.where(total < 0, -1e-4, 1e-4).to(total), total)
