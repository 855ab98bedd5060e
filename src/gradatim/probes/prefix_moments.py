"""Sums over the pairs of every prefix, and what is read off them."""

from __future__ import annotations

import torch
from torch import Tensor

from gradatim.probes.spectral import before, to_double


def moments(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """S_t and b_t of every prefix, [batch, n, d, d] and [batch, n, d]."""
    x, y = to_double(x, y)
    return before(torch.einsum("bni,bnj->bnij", x, x)), before(x * y[..., None])


def totals(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """S and b over all pairs, [batch, d, d] and [batch, d]."""
    x, y = to_double(x, y)
    return x.mT @ x, torch.einsum("bnd,bn->bd", x, y)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector, over leading axes."""
    return (matrix @ vector[..., None])[..., 0]


def read(w: Tensor, x: Tensor) -> Tensor:
    """w.x of every prefix, as x has it."""
    return torch.linalg.vecdot(w, x.to(w)).to(x)
