"""One layer of attention with one query per sequence, and its key-query weights in the open."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class SingleQueryAttention(nn.Module):
    r"""f(X, z) = h(X^T softmax(X W z)), W given directly or as K Q^T.

    `parameterization="w"` trains W [d, d]; `"kq"` trains K and Q [d, head_dim] with W = K Q^T. No scaling
    by 1/sqrt(d), no bias: the setting of "Transformers as Support Vector Machines" (2023, arXiv
    2308.16898). `value` is a fixed vector v [d] (the output is v^T X^T a, [n]), a fixed matrix V [d, k]
    (V^T X^T a, [n, k]) or None (the pooled token [n, d]); `head` is applied to that output. Weights
    start uniform in +-1/sqrt(d).

    Raises ValueError for an unknown parameterization or a `value` of another size.
    """

    def __init__(
        self,
        d: int,
        *,
        parameterization: str = "w",
        head_dim: int | None = None,
        value: Float[Tensor, " d"] | Float[Tensor, "d k"] | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if parameterization not in ("w", "kq"):
            raise ValueError(f"parameterization must be 'w' or 'kq', got {parameterization!r}")
        if value is not None and (value.ndim not in (1, 2) or len(value) != d):
            raise ValueError(f"value must have shape ({d},) or ({d}, k), got {tuple(value.shape)}")
        if d < 1 or (head_dim is not None and head_dim < 1):
            raise ValueError(f"d and head_dim must be at least 1, got d={d}, head_dim={head_dim}")
        self.parameterization = parameterization
        bound = 1.0 / math.sqrt(d)
        m = d if head_dim is None else head_dim

        def uniform(columns: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(d, columns).uniform_(-bound, bound, generator=generator))

        if parameterization == "w":
            if head_dim is not None:
                raise ValueError("head_dim belongs to parameterization='kq'; W is d x d")
            self.weight = uniform(d)
        else:
            self.key, self.query = uniform(m), uniform(m)
        self.value: Tensor | None
        self.register_buffer("value", value)
        self.head = head

    @property
    def combined_weight(self) -> Float[Tensor, "d d"]:
        """W, with logits x^T W z."""
        return self.weight if self.parameterization == "w" else self.key @ self.query.T

    def forward(
        self,
        x: Float[Tensor, "n t d"],
        z: Float[Tensor, "n d"],
        key_padding_mask: Bool[Tensor, "n t"] | None = None,
    ) -> tuple[Tensor, Float[Tensor, "n t"]]:
        """Output [n, ...] and attention [n, t]; True in `key_padding_mask` marks tokens to ignore."""
        if key_padding_mask is not None:
            # What stands in padded places must not matter, not even where it is NaN.
            x = x.masked_fill(key_padding_mask.unsqueeze(-1), 0.0)
        kq = self.parameterization == "kq"
        direction = (z @ self.query) @ self.key.T if kq else z @ self.weight.T  # [n, d]
        logits = torch.einsum("ntd,nd->nt", x, direction)
        if key_padding_mask is not None:
            logits = logits.masked_fill(key_padding_mask, -torch.inf)
        attention = logits.softmax(dim=-1)
        out = torch.einsum("nt,ntd->nd", attention, x)
        if self.value is not None:
            out = out @ self.value
        return (out if self.head is None else self.head(out)), attention
