"""From pairs to tokens and back: how an in-context learner reads (x_1, y_1), ..., (x_n, y_n)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.models.decoder import vectorised

Tokens = Literal["interleaved", "paired"]
YColumn = Literal["own", "shared"]
Objective = Literal["regression", "binary"]


class ReadIn(nn.Module):
    """Two tokens per pair, embedded by one linear map W: x_1, y_1, x_2, y_2, ...

        x token   [0, x_i]          ->  W_x x_i + b
        y token   [y_i, 0]          ->  y_i w_y + b             (tokens="interleaved")
                  [y_i, x_i]        ->  W_x x_i + y_i w_y + b   (tokens="paired")

    The wide, mostly empty token matrix is never built. `y_column="own"` gives y a column of its own (tokens
    d + 1 wide); "shared" puts it into the first column of x (d wide), as Garg et al. 2022 do, which a paired
    token cannot. `hidden` puts a three-layer ReLU network in place of W.
    """

    def __init__(
        self, d: int, width: int, tokens: Tokens, y_column: YColumn, hidden: int | None = None
    ) -> None:
        super().__init__()
        self.tokens, self.own = tokens, y_column == "own"
        self.map = nn.Linear(d + self.own, width) if hidden is None else network(d + self.own, hidden, width)

    def forward(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]
    ) -> Float[Tensor, "batch two_n width"]:
        """Embeddings of all 2n tokens."""
        if not isinstance(self.map, nn.Linear):
            return self.map(self.raw(x, y))
        weight, bias = self.map.weight, self.map.bias
        at_x = F.linear(x, weight[:, 1:] if self.own else weight, bias)
        at_y = y.unsqueeze(-1) * weight[:, 0] + (at_x if self.tokens == "paired" else bias)
        return torch.stack([at_x, at_y], dim=2).flatten(1, 2)

    def raw(self, x: Tensor, y: Tensor) -> Tensor:
        """[batch, 2n, d or d + 1]: the tokens themselves."""
        at_x = F.pad(x, (int(self.own), 0))
        if self.tokens == "paired":
            at_y = torch.cat([y.unsqueeze(-1), x], dim=-1)
        else:
            at_y = F.pad(y.unsqueeze(-1), (0, at_x.shape[-1] - 1))
        return torch.stack([at_x, at_y], dim=2).flatten(1, 2)


def network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three linear layers with ReLU between them."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def context_loss(
    objective: Objective, predictions: Tensor, labels: Tensor, scored: Tensor | None = None
) -> Tensor:
    """Mean over all positions (those where `scored` is not 0) of the squared error, or of the logistic loss.

    "binary" takes predictions as logits; labels are -1 and +1, or 0 and 1.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"labels must have shape {tuple(predictions.shape)}, got {tuple(labels.shape)}")
    if objective == "binary":
        if not vectorised(labels) and not bool(((labels.abs() == 1) | (labels == 0)).all()):
            raise ValueError("labels of a binary objective must be -1 and +1, or 0 and 1")
        each = F.binary_cross_entropy_with_logits(
            predictions, (labels > 0).to(predictions.dtype), reduction="none"
        )
    else:
        each = (predictions - labels).square()
    if scored is None:
        return each.mean()
    weight = scored.to(each.dtype).expand_as(each)
    return (each * weight).sum() / weight.sum()


def check_context(x: Tensor, y: Tensor, d: int, n_positions: int) -> None:
    """Raises ValueError for shapes that do not fit, contexts that are too long, NaN or infinite entries."""
    if x.dim() != 3:
        raise ValueError(f"x must have shape (batch, n, d), got {tuple(x.shape)}")
    if y.shape != x.shape[:2]:
        raise ValueError(f"y must have shape {tuple(x.shape[:2])} as x has, got {tuple(y.shape)}")
    if x.shape[2] != d:
        raise ValueError(f"x has {x.shape[2]} columns, but the model was made for d = {d}")
    if not 1 <= x.shape[1] <= n_positions:
        raise ValueError(f"contexts must have 1 to {n_positions} pairs (n_positions), got {x.shape[1]}")
    if not torch.compiler.is_compiling() and not (vectorised(x) or vectorised(y)):
        for name, values in (("x", x), ("y", y)):
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"{name} contains NaN or infinite entries")
