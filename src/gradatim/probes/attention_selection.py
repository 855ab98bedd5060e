"""Which token does an attention row select, and how good is that token?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_scores(
    x: Float[Tensor, "n t d"], v: Float[Tensor, " d"], y: Float[Tensor, " n"] | Int[Tensor, " n"]
) -> Float[Tensor, "n t"]:
    """gamma_it = y_i v^T x_it: how much token t of sequence i speaks for its label.

    Source: "Transformers as Support Vector Machines" (2023), arXiv 2308.16898.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if x.ndim != 3 or v.shape != x.shape[-1:] or y.shape != x.shape[:1]:
        raise ValueError(
            f"expected x [n, t, d], v [d], y [n]; got {tuple(x.shape)}, {tuple(v.shape)}, {tuple(y.shape)}"
        )
    return y.to(x.dtype)[:, None] * (x @ v)


def first_largest(values: Float[Tensor, "*batch t"]) -> Int[Tensor, "*batch"]:
    """The lowest index among the largest values; `torch.argmax` leaves the choice among ties open."""
    top = values.amax(dim=-1, keepdim=True)
    index = torch.arange(values.shape[-1], device=values.device)
    return torch.where(values == top, index, values.shape[-1]).amin(dim=-1)


def selected_tokens(
    attn: Float[Tensor, "n t"], threshold: float | None = None
) -> Int[Tensor, " n"] | Bool[Tensor, "n t"]:
    """The token that each row of attention selects: its largest weight, the first one among ties.

    With `threshold` instead a mask of all tokens whose weight is at least `threshold`.
    `selection_quality` says whether a row has made up its mind and whether it tied.

    Raises:
        ValueError: if `attn` is not [n, t], not finite, or `threshold` is outside (0, 1].
    """
    _check_attention(attn)
    if threshold is None:
        return first_largest(attn)
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    return attn >= threshold


@dataclass(frozen=True)
class SelectionQuality:
    """`top` [n]: the largest weight of each row; `tied` [n]: reached by two tokens or more;
    `saturated` [n]: above the saturation level, so that the selection can be called converged."""

    top: Float[Tensor, " n"]
    tied: Bool[Tensor, " n"]
    saturated: Bool[Tensor, " n"]

    @property
    def converged(self) -> bool:
        """Every row is saturated."""
        return bool(self.saturated.all())


def selection_quality(attn: Float[Tensor, "n t"], saturation: float = 0.99) -> SelectionQuality:
    """How far to trust `selected_tokens(attn)`: a softmax below `saturation` may still change its mind."""
    _check_attention(attn)
    top = attn.amax(dim=-1)
    return SelectionQuality(top=top, tied=(attn == top[:, None]).sum(dim=-1) > 1, saturated=top > saturation)


def locally_optimal(
    scores: Float[Tensor, "n t"], selected: Int[Tensor, " n"], support: Bool[Tensor, "n t"]
) -> Bool[Tensor, " n"]:
    """gamma_{i, selected_i} > gamma_it for every support token t of sequence i.

    Support tokens are those whose constraint is active in the SVM of this selection
    (`AttentionSVMResult.support`); a selection with this property in every sequence is locally optimal.
    """
    own = scores.gather(1, selected[:, None])
    return ((own > scores) | ~support).all(dim=-1)


def _check_attention(attn: Tensor) -> None:
    if attn.ndim != 2 or attn.shape[-1] == 0:
        raise ValueError(f"attn must be [n, t] with t at least 1, got shape {tuple(attn.shape)}")
    if not bool(torch.isfinite(attn).all()):
        raise ValueError("attn holds NaN or infinite values; pass the softmax, not masked logits")
