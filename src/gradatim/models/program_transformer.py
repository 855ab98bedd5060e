r"""A program of primitives as a decoder: softmax attention copies, GELU multiplies, layer norm divides.

Appendix C of "What learning algorithm is in-context learning?" (2022, arXiv 2211.15661), with two changes:
the identity passes GELU as GELU(u) - GELU(-u) = u, exact for every u and without large constants; and a
division's layer norm is applied to the rows it needs instead of hiding the others behind large entries.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from gradatim.models.context_programs import Aff, Div, Mov, Mul, Operation, Program

# exp(-1600) is 0 in every precision: attention reads exactly one column.
_LOGIT = 1600.0
_SMALLEST = 1e-300


class ProgramTransformer(nn.Module):
    """Decoder layers that carry out a program, one per operation.

    A column of memory is a token: its rows, a 1, and the one-hot code of its position. A first token of
    zeros is added, which heads look at where an operation leaves a column alone.
    """

    def __init__(self, program: Program, eps: float) -> None:
        super().__init__()
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        self.rows, self.columns = program.rows, program.columns
        self.width = program.rows + 1 + program.columns + 1
        self.layers = nn.ModuleList(self._layer(operation, eps) for operation in program.operations)

    def _layer(self, operation: Operation, eps: float) -> nn.Module:
        from gradatim.models.context_programs import Aff, Div, Mov, Mul

        if isinstance(operation, Mov):
            return CopyAttention(operation, self.rows, self.columns)
        if isinstance(operation, Mul):
            return GeluBlock(*_product_weights(operation, self.width, eps))
        if isinstance(operation, Aff):
            return GeluBlock(*_affine_weights(operation, self.width, self.rows))
        assert isinstance(operation, Div)
        return NormBlock(*_division_weights(operation, self.width, eps))

    def forward(self, memory: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
        """The memory after all layers, in its own dtype."""
        if memory.shape[-2:] != (self.rows, self.columns):
            raise ValueError(f"memory must end in {self.rows, self.columns}, got {tuple(memory.shape)}")
        tokens = F.pad(memory.mT, (0, self.width - self.rows, 1, 0))  # the token of zeros comes first
        code = torch.eye(self.columns + 1, dtype=memory.dtype, device=memory.device)
        one = F.pad(code.new_ones(self.columns, 1), (0, 0, 1, 0))
        tokens = tokens + F.pad(torch.cat([one, code], dim=-1), (self.rows, 0))
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens[..., 1:, : self.rows].mT


class CopyAttention(nn.Module):
    """H <- H + sum_h softmax_causal(H Q_h (H K)^T) H V_h: one head fetches, one removes what was there.

    Positions pick exactly one column; the columns that the operation leaves alone pick the token of zeros.
    """

    def __init__(self, operation: Mov, rows: int, columns: int) -> None:
        super().__init__()
        width = rows + columns + 2
        where = slice(rows + 1, width)
        size = operation.rows[1] - operation.rows[0]
        read, written = torch.arange(*operation.rows), torch.arange(operation.to, operation.to + size)
        query = torch.zeros(2, width, columns + 1, dtype=torch.float64)
        key, value = torch.zeros(width, columns + 1).double(), torch.zeros(2, width, width).double()
        key[where] = torch.eye(columns + 1)
        query[:, where, 0] = _LOGIT
        for head, column in enumerate((operation.source, operation.target)):
            query[head, rows + 1 + operation.target + 1] = 0.0
            query[head, rows + 1 + operation.target + 1, column + 1] = _LOGIT
        value[0, read, written] = 1.0
        value[1, written, written] = -1.0
        self.query, self.key, self.value = (nn.Parameter(w) for w in (query, key, value))

    def forward(self, tokens: Float[Tensor, "*batch t width"]) -> Float[Tensor, "*batch t width"]:
        """The tokens after the layer."""
        h = tokens.unsqueeze(-3)
        logits = (h @ self.query.to(h)) @ (h @ self.key.to(h)).mT
        t = tokens.shape[-2]
        future = torch.ones(t, t, dtype=torch.bool, device=h.device).triu(1)
        weights = torch.softmax(logits.masked_fill(future, -math.inf), dim=-1)
        return tokens + (weights @ (h @ self.value.to(h))).sum(dim=-3)


class GeluBlock(nn.Module):
    """H <- H + GELU(H W_in) W_out."""

    def __init__(self, inner: Float[Tensor, "width hidden"], outer: Float[Tensor, "hidden width"]) -> None:
        super().__init__()
        self.inner, self.outer = nn.Parameter(inner), nn.Parameter(outer)

    def forward(self, tokens: Float[Tensor, "*batch t width"]) -> Float[Tensor, "*batch t width"]:
        """The tokens after the layer."""
        return tokens + F.gelu(tokens @ self.inner.to(tokens)) @ self.outer.to(tokens)


class NormBlock(nn.Module):
    """H <- H + LayerNorm(H W_in) W_out - H W_old."""

    def __init__(
        self,
        inner: Float[Tensor, "width hidden"],
        outer: Float[Tensor, "hidden width"],
        old: Float[Tensor, "width width"],
    ) -> None:
        super().__init__()
        self.inner, self.outer, self.old = (nn.Parameter(w) for w in (inner, outer, old))

    def forward(self, tokens: Float[Tensor, "*batch t width"]) -> Float[Tensor, "*batch t width"]:
        """The tokens after the layer."""
        z = tokens @ self.inner.to(tokens)
        smallest = max(_SMALLEST, torch.finfo(tokens.dtype).tiny)
        normed = F.layer_norm(z, z.shape[-1:], eps=smallest)
        return tokens + normed @ self.outer.to(tokens) - tokens @ self.old.to(tokens)


def _product_weights(operation: Mul, width: int, eps: float) -> tuple[Tensor, Tensor]:
    """u v = sqrt(pi/2) (GELU(e(u + v)) - GELU(e u) - GELU(e v)) / e^2 + O(e^2), summed over j."""
    a, b, c = operation.shape
    i, j, k = (g.flatten() for g in torch.meshgrid(*map(torch.arange, (a, b, c)), indexing="ij"))
    u, v = operation.left + i * b + j, operation.right + j * c + k
    to = operation.to + i * c + k
    units = torch.arange(len(u))
    inner = torch.zeros(width, 3, len(u), dtype=torch.float64)
    for place, rows in ((0, u), (0, v), (1, u), (2, v)):
        inner[rows, place, units] += eps  # where u and v are one row, their sum is twice it
    outer = torch.zeros(3, len(u), width, dtype=torch.float64)
    for place, sign in ((0, 1.0), (1, -1.0), (2, -1.0)):
        outer[place, units, to] = sign * math.sqrt(math.pi / 2) / eps**2
    remove, back = _removal(torch.arange(operation.to, operation.to + a * c), width)
    return torch.cat([inner.flatten(1), remove], 1), torch.cat([outer.flatten(0, 1), back], 0)


def _affine_weights(operation: Aff, width: int, rows: int) -> tuple[Tensor, Tensor]:
    """z = W_1 h_1 + W_2 h_2 + b 1 - h_old passes as GELU(z) - GELU(-z) = z."""
    size = len(operation.bias)
    z = torch.zeros(width, size, dtype=torch.float64)
    for (start, stop), weight in operation.terms:
        z[start:stop] += weight.to(z).T
    z[rows] += operation.bias.to(z)
    written = torch.arange(operation.to, operation.to + size)
    z[written, torch.arange(size)] -= 1.0
    return _identity(z, written, width)


def _division_weights(operation: Div, width: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm of (v/e, -v/e, u, -u) gives u sqrt(k + 1) / sqrt((v/e)^2 + |u|^2), u of size k."""
    read = torch.arange(*operation.rows)
    size = len(read)
    units = torch.arange(size)
    inner = torch.zeros(width, 2 + 2 * size, dtype=torch.float64)
    inner[operation.by, 0], inner[operation.by, 1] = 1 / eps, -1 / eps
    inner[read, 2 + units] = 1.0
    inner[read, 2 + size + units] = -1.0
    written = torch.arange(operation.to, operation.to + size)
    outer = torch.zeros(2 + 2 * size, width, dtype=torch.float64)
    outer[2 + units, written] = 1 / (eps * math.sqrt(size + 1))
    old = torch.zeros(width, width, dtype=torch.float64)
    old[written, written] = 1.0
    return inner, outer, old


def _removal(rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """A block that takes these rows away."""
    z = torch.zeros(width, len(rows), dtype=torch.float64)
    z[rows, torch.arange(len(rows))] = -1.0
    return _identity(z, rows, width)


def _identity(z: Tensor, written: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Add h z [width, k] to rows `written`: GELU(u) - GELU(-u) = u."""
    back = torch.zeros(z.shape[1], width, dtype=torch.float64)
    back[torch.arange(z.shape[1]), written] = 1.0
    return torch.cat([z, -z], 1), torch.cat([back, -back], 0)
