"""How alike are two answers to the same questions, token by token?

Measures of Shen, Mishra and Khashabi, "Revisiting the Hypothesis: Do pretrained Transformers Learn
In-Context by Gradient Descent?" (2023, arXiv 2310.08540). T_k(p) are the k likeliest tokens of p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def token_overlap(
    p: Float[Tensor, "*items vocabulary"], q: Float[Tensor, "*items vocabulary"], k: int = 10
) -> Float[Tensor, "*items"]:
    """|T_k(p) and T_k(q)| / k. Raises ValueError for k outside 1..vocabulary."""
    return _shared(p, q, k).sum(-1).to(p.dtype) / k


def overlap_cosine(
    p: Float[Tensor, "*items vocabulary"], q: Float[Tensor, "*items vocabulary"], k: int = 10
) -> Float[Tensor, "*items"]:
    """sum_O p q / sqrt(sum_O p^2 sum_O q^2 max(1, k - |O|)) with O = T_k(p) and T_k(q); 0 where O is empty.

    The published formula divides by k - |O|, hence by zero where both have the same k tokens; the factor is
    held at 1 there.
    """
    shared = _shared(p, q, k)
    top = p.topk(k, dim=-1).indices
    a, b = p.gather(-1, top) * shared, q.gather(-1, top) * shared
    missing = (k - shared.sum(-1)).clamp(min=1)
    scale = (a.square().sum(-1) * b.square().sum(-1) * missing).sqrt()
    return torch.where(scale > 0, (a * b).sum(-1) / scale.clamp(min=torch.finfo(p.dtype).tiny), 0.0)


def union_cosine(
    p: Float[Tensor, "*items vocabulary"], q: Float[Tensor, "*items vocabulary"], k: int = 10
) -> Float[Tensor, "*items"]:
    """Cosine of p and q on the tokens that are in T_k(p) or T_k(q)."""
    _check(p, k)
    either = torch.zeros_like(p, dtype=torch.bool)
    for d in (p, q):
        either.scatter_(-1, d.topk(k, dim=-1).indices, True)
    return torch.cosine_similarity(p * either, q * either, dim=-1)


def kl_divergence(
    p: Float[Tensor, "*items vocabulary"], q: Float[Tensor, "*items vocabulary"]
) -> Float[Tensor, "*items"]:
    """sum_v p_v log(p_v / q_v) in nats; infinite where q gives nothing to a token of p."""
    return torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)


def total_variation(
    p: Float[Tensor, "*items vocabulary"], q: Float[Tensor, "*items vocabulary"]
) -> Float[Tensor, "*items"]:
    """Half of sum_v |p_v - q_v|: the probability mass that has moved."""
    return (p - q).abs().sum(-1) / 2


@dataclass(frozen=True)
class Comparison:
    """Two predictors on the same texts: one number per text in every array, `mean` over them.

    `agreement` is 1 where both have the same likeliest token; `accuracy_a` and `accuracy_b` are over the
    whole vocabulary, `restricted_a` and `restricted_b` over the classes' words; None without true labels.
    """

    token_overlap: np.ndarray
    overlap_cosine: np.ndarray
    union_cosine: np.ndarray
    kl: np.ndarray
    total_variation: np.ndarray
    agreement: np.ndarray
    accuracy_a: np.ndarray | None = None
    accuracy_b: np.ndarray | None = None
    restricted_a: np.ndarray | None = None
    restricted_b: np.ndarray | None = None

    def mean(self) -> dict[str, float]:
        """The mean of each measure over the texts."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: float(np.mean(v)) for name, v in values.items() if v is not None}

    def __str__(self) -> str:
        n = len(self.agreement)
        rows = [f"{name:16s} {value:.3f}" for name, value in self.mean().items()]
        return "\n".join([f"two predictors on {n} texts, means", *rows])


def compare(
    a: Any, b: Any, X: Sequence[str] | np.ndarray, y: Sequence[str] | np.ndarray | None = None, k: int = 10
) -> Comparison:
    """Compare two fitted predictors (anything with `next_token_proba(X)` and `label_ids`) on texts `X`.

    Raises ValueError for k outside 1..vocabulary, or a label in `y` that `a` has no word for.
    """
    p, q = a.next_token_proba(X), b.next_token_proba(X)
    found = compare_distributions(p, q, k)
    if y is None:
        return Comparison(**found)
    unknown = [c for c in y if c not in a.label_ids]
    if unknown:
        raise ValueError(f"no word for label {unknown[0]!r}; words are given for {sorted(a.label_ids)}")
    right: dict[str, np.ndarray] = {}
    for name, d, labels in (("a", p, a.label_ids), ("b", q, b.label_ids)):
        full, restricted = accuracy(d, [labels[c] for c in y], list(labels.values()))
        right |= {f"accuracy_{name}": full, f"restricted_{name}": restricted}
    return Comparison(**found, **right)


def compare_distributions(
    p: Float[Tensor, "items vocabulary"], q: Float[Tensor, "items vocabulary"], k: int = 10
) -> dict[str, np.ndarray]:
    """Every measure that needs no labels, one number per item."""
    measures = {
        "token_overlap": token_overlap(p, q, k),
        "overlap_cosine": overlap_cosine(p, q, k),
        "union_cosine": union_cosine(p, q, k),
        "kl": kl_divergence(p, q),
        "total_variation": total_variation(p, q),
        "agreement": (p.argmax(-1) == q.argmax(-1)).to(p.dtype),
    }
    return {name: value.double().cpu().numpy() for name, value in measures.items()}


def accuracy(
    p: Float[Tensor, "items vocabulary"], answers: Sequence[int], words: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """1 where the right token is the likeliest, over the whole vocabulary and among `words`."""
    truth = torch.tensor(list(answers), device=p.device)
    tokens = torch.tensor(list(words), device=p.device)
    full = p.argmax(-1) == truth
    restricted = tokens[p[:, tokens].argmax(-1)] == truth
    return full.double().cpu().numpy(), restricted.double().cpu().numpy()


def _check(p: Tensor, k: int) -> None:
    if not 1 <= k <= p.shape[-1]:
        raise ValueError(f"k must be between 1 and the vocabulary of {p.shape[-1]}, got {k}")


def _shared(p: Tensor, q: Tensor, k: int) -> Tensor:
    """For each of p's k likeliest tokens, whether it is among q's, [..., k]."""
    _check(p, k)
    member = torch.zeros_like(q, dtype=torch.bool).scatter_(-1, q.topk(k, dim=-1).indices, True)
    return member.gather(-1, p.topk(k, dim=-1).indices)
