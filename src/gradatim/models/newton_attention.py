"""Iterative Newton as layers of ReLU attention: k iterations in k + 3 layers of width 4 d + 4."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from gradatim.models.in_context_output import ICLOutput


class ReLUAttention(nn.Module):
    r"""H <- H + sum_h (1/n) ReLU(H Q_h (H K_h)^T) H V_h, then H <- H + H W.

    Full attention over all tokens, no mask. `n` is a constant of the layer. Products are held as they are
    used: `query`, `key`, `value` [heads, width, width] and the residual linear map `mlp` [width, width].
    """

    def __init__(self, width: int, heads: int, n: int) -> None:
        super().__init__()
        self.n = n
        zeros = torch.zeros(heads, width, width, dtype=torch.float64)
        self.query, self.key, self.value = (nn.Parameter(zeros.clone()) for _ in range(3))
        self.mlp = nn.Parameter(zeros[0].clone())

    def forward(self, tokens: Float[Tensor, "batch t width"]) -> Float[Tensor, "batch t width"]:
        """The tokens after the layer."""
        h = tokens.unsqueeze(-3)
        weights = torch.relu((h @ self.query) @ (h @ self.key).mT) / self.n
        tokens = tokens + (weights @ (h @ self.value)).sum(dim=-3)
        return tokens + tokens @ self.mlp


@dataclass(frozen=True)
class _Rows:
    """Where a token of NewtonAttention keeps what."""

    d: int

    @property
    def moved(self) -> slice:
        """M_k x_j of a context token."""
        return slice(0, self.d)

    @property
    def x(self) -> slice:
        """x_j of a context token."""
        return slice(self.d, 2 * self.d)

    @property
    def asked(self) -> slice:
        """x of a query token: apart, so that queries are never keys."""
        return slice(2 * self.d, 3 * self.d)

    @property
    def w(self) -> slice:
        """M_k X^T y, in every token."""
        return slice(3 * self.d, 4 * self.d)

    @property
    def y(self) -> int:
        return 4 * self.d

    @property
    def one(self) -> int:
        """1 in every token."""
        return 4 * self.d + 1

    @property
    def first(self) -> int:
        """1 in the first context token."""
        return 4 * self.d + 2

    @property
    def answer(self) -> int:
        """w^T x of a query token."""
        return 4 * self.d + 3

    @property
    def width(self) -> int:
        return 4 * self.d + 4


class NewtonAttention(nn.Module):
    r"""`steps` iterations of M <- 2 M - M S M from M_0 = alpha S, S = X^T X, by layers of ReLU attention.

    Layer 1 writes M_0 x_j beside every x_j; each of the next `steps` layers is one iteration (attention
    makes M x - M S M x / 2, the linear map doubles it); then one layer multiplies by y_j and adds up
    w = sum_j y_j M x_j, and one takes the inner product with the query. Every product uses two heads with
    values of opposite sign, ReLU(s) - ReLU(-s) = s; with equal signs, as printed in "Transformers learn
    higher-order optimization methods for in-context learning" (2023, arXiv 2310.17086), they would give
    |s|. Queries live in rows of their own, so attention is full and unmasked.

    `alpha` is a weight: it cannot depend on the data, and the iteration converges only where
    alpha < 2 / lambda_max(S)^2 (`converges`). The vectors M x_j are held one by one, and what rounding adds
    to them outside the range of a linear map doubles with every iteration: about 2^k 1e-16 after k.

    `forward` as in every in-context learner; `query` [batch, q, d] answers from all n pairs. Hidden states
    are the query's tokens after the embedding and every layer.
    """

    def __init__(self, d: int, n: int, steps: int, alpha: float) -> None:
        super().__init__()
        if d < 1 or n < 1:
            raise ValueError(f"d and n must be at least 1, got d={d}, n={n}")
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        if not alpha > 0:
            raise ValueError(f"alpha must be above 0, got {alpha}")
        self.d, self.n, self.steps, self.alpha = d, n, steps, alpha
        rows = _Rows(d)
        iterations = [self._iteration(rows) for _ in range(steps)]
        self.layers = nn.ModuleList(
            [self._start(rows), *iterations, self._product_and_sum(rows), self._inner_product(rows)]
        )

    @torch.no_grad()
    def _start(self, rows: _Rows) -> ReLUAttention:
        """M_0 x_t = alpha sum_j (x_t . x_j) x_j."""
        layer = ReLUAttention(rows.width, 2, self.n)
        eye = torch.eye(self.d, dtype=torch.float64)
        for head, sign in enumerate((1.0, -1.0)):
            layer.query[head, rows.x, rows.x] = self.alpha * self.n * eye
            layer.key[head, rows.x, rows.x] = sign * eye
            layer.value[head, rows.x, rows.moved] = sign * eye
        return layer

    @torch.no_grad()
    def _iteration(self, rows: _Rows) -> ReLUAttention:
        """M x_t <- 2 (M x_t - (1/2) sum_j (x_t . M x_j) M x_j)."""
        layer = ReLUAttention(rows.width, 2, self.n)
        eye = torch.eye(self.d, dtype=torch.float64)
        for head, sign in enumerate((1.0, -1.0)):
            layer.query[head, rows.x, rows.x] = -0.5 * self.n * eye
            layer.key[head, rows.moved, rows.x] = sign * eye
            layer.value[head, rows.moved, rows.moved] = sign * eye
        layer.mlp[rows.moved, rows.moved] = eye
        return layer

    @torch.no_grad()
    def _product_and_sum(self, rows: _Rows) -> ReLUAttention:
        """w = sum_j y_j M x_j, written into every token."""
        layer = ReLUAttention(rows.width, 2, self.n)
        eye = torch.eye(self.d, dtype=torch.float64)
        for head, sign in enumerate((1.0, -1.0)):
            layer.query[head, rows.one, rows.one] = self.n
            layer.key[head, rows.y, rows.one] = sign
            layer.value[head, rows.moved, rows.w] = sign * eye
        return layer

    @torch.no_grad()
    def _inner_product(self, rows: _Rows) -> ReLUAttention:
        """x_query . w, with w read from the first context token."""
        layer = ReLUAttention(rows.width, 2, self.n)
        eye = torch.eye(self.d, dtype=torch.float64)
        for head, sign in enumerate((1.0, -1.0)):
            layer.query[head, rows.asked, rows.x] = self.n * eye
            layer.key[head, rows.w, rows.x] = sign * eye
            layer.value[head, rows.first, rows.answer] = sign
        return layer

    def converges(self, x: Float[Tensor, "batch n d"]) -> Bool[Tensor, " batch"]:
        """Contexts on which alpha < 2 / lambda_max(X^T X)^2."""
        largest = torch.linalg.eigvalsh(x.double().mT @ x.double())[:, -1]
        return self.alpha * largest**2 < 2

    def embed(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], query: Float[Tensor, "batch q d"]
    ) -> Float[Tensor, "batch t width"]:
        """Context tokens, then query tokens."""
        rows = _Rows(self.d)
        n, q = x.shape[1], query.shape[1]
        before, after = self.d, rows.width - 2 * self.d
        context = F.pad(x, (before, after)) + _unit(rows.y, rows.width, x) * y[..., None]
        if n:
            mark = F.one_hot(torch.zeros(1, dtype=torch.long), n).to(x).T  # the first context token
            context = context + mark * _unit(rows.first, rows.width, x)
        asked = F.pad(query, (2 * self.d, rows.width - 3 * self.d))
        return torch.cat([context, asked], dim=1) + _unit(rows.one, rows.width, x).expand(n + q, -1)

    def forward(
        self,
        x: Float[Tensor, "batch n d"],
        y: Float[Tensor, "batch n"],
        labels: Float[Tensor, "batch answers"] | None = None,
        output_hidden_states: bool = False,
        *,
        query: Float[Tensor, "batch q d"] | None = None,
    ) -> ICLOutput:
        """Predictions for every prefix, or for `query`; `loss` is the mean squared error from `labels`.

        Computed in the weights' own precision. Raises ValueError for wrong shapes.
        """
        if x.ndim != 3 or x.shape[-1] != self.d or y.shape != x.shape[:2] or x.shape[1] == 0:
            raise ValueError(
                f"x must be [batch, n, {self.d}] and y [batch, n], got {tuple(x.shape)}, {tuple(y.shape)}"
            )
        dtype = next(self.parameters()).dtype
        x, y = x.to(dtype), y.to(dtype)
        if query is not None:
            states = self._answer(x, y, query.to(dtype))
        else:
            prefixes = [self._answer(x[:, :t], y[:, :t], x[:, t : t + 1]) for t in range(x.shape[1])]
            states = [torch.cat(layer, dim=1) for layer in zip(*prefixes, strict=True)]
        predictions = states[-1][..., _Rows(self.d).answer]
        loss = None if labels is None else F.mse_loss(predictions, labels.to(dtype))
        return ICLOutput(loss, predictions, tuple(states) if output_hidden_states else None)

    def _answer(self, x: Tensor, y: Tensor, query: Tensor) -> list[Tensor]:
        tokens = self.embed(x, y, query)
        states = [tokens[:, x.shape[1] :]]
        for layer in self.layers:
            tokens = layer(tokens)
            states.append(tokens[:, x.shape[1] :])
        return states


def newton(d: int, n: int, steps: int, alpha: float) -> NewtonAttention:
    """The ReLU-attention construction of `steps` Newton iterations, starting from alpha X^T X.

    Raises ValueError for sizes below 1, negative steps, or alpha at or below 0.
    """
    return NewtonAttention(d, n, steps, alpha)


def _unit(index: int, width: int, like: Tensor) -> Tensor:
    return F.one_hot(torch.tensor(index, device=like.device), width).to(like)
