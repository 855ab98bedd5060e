"""How much an answer depends on the order of the demonstrations.

    Sen = mean over texts of sum_v std over orders of p_order(v | text)

with the sample standard deviation; two algorithms that are the same have the same Sen. From Shen, Mishra and
Khashabi (2023, arXiv 2310.08540).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.probes.distribution_overlap import total_variation


class RunningSpread:
    """Mean and standard deviation of distributions as they come, in float64 (Welford): none is kept."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(0, dtype=torch.float64)
        self._squares: Tensor = torch.zeros(0, dtype=torch.float64)

    def add(self, p: Float[Tensor, "texts vocabulary"]) -> RunningSpread:
        """One more order."""
        x = p.double()
        if self.count == 0:
            self.mean, self._squares = torch.zeros_like(x), torch.zeros_like(x)
        self.count += 1
        off = x - self.mean
        self.mean += off / self.count
        self._squares += off * (x - self.mean)
        return self

    def std(self) -> Float[Tensor, "texts vocabulary"]:
        """Sample standard deviation. Raises ValueError for fewer than two orders."""
        if self.count < 2:
            raise ValueError(f"a spread over orders needs two of them, got {self.count}")
        return (self._squares / (self.count - 1)).sqrt()

    def per_text(self) -> np.ndarray:
        """sum_v std_v of each text."""
        return self.std().sum(-1).cpu().numpy()


@dataclass(frozen=True)
class OrderSensitivity:
    """What several orders of the same demonstrations answer.

    sen         mean of `per_text`
    per_text    sum_v std_v, [texts]
    on_labels   the part of `per_text` that lies on the classes' words, [texts]
    per_move    sen / mean total variation from `reference`, where one was given: how much of the way that
                the answers have come depends on the order
    flips       share of texts whose likeliest token is not the same in every order
    orders      the orders, as drawn
    top_ids, top_probs   the k likeliest tokens of each order and text, [orders, texts, k]
    probs       all distributions [orders, texts, vocabulary], where they were asked for
    """

    sen: float
    per_text: np.ndarray
    on_labels: np.ndarray
    per_move: float | None
    flips: float
    orders: tuple[tuple[int, ...], ...]
    top_ids: Tensor
    top_probs: Tensor
    probs: Tensor | None = None

    def __str__(self) -> str:
        move = "" if self.per_move is None else f", {self.per_move:.3f} per probability moved"
        return (
            f"order sensitivity {self.sen:.3f} over {len(self.orders)} orders and {len(self.per_text)} texts"
            f"{move}; the likeliest token changes in {self.flips:.0%} of texts"
        )


def order_sensitivity(
    predictor: Any,
    X: Sequence[str] | np.ndarray,
    y: Sequence[str] | np.ndarray,
    X_test: Sequence[str] | np.ndarray,
    n_orders: int = 10,
    seed: int = 0,
    *,
    k: int = 10,
    reference: Float[Tensor, "texts vocabulary"] | None = None,
    keep: bool = False,
) -> OrderSensitivity:
    """Fit `predictor` on `n_orders` orders of (X, y), drawn uniformly without repetition, and ask each.

    All orders are taken where there are no more. `reference` are distributions without demonstrations, to
    measure what the demonstrations have moved; `keep=True` returns every distribution.
    Raises ValueError for fewer than two orders or demonstrations, or k above the vocabulary.
    """
    from gradatim.inference.in_context_text import orders as draw_orders

    drawn = draw_orders(len(X), n_orders, seed)
    answers = (predictor.fit(X, y, order).next_token_proba(X_test) for order in drawn)
    return spread_of(answers, drawn, list(predictor.label_ids.values()), k=k, reference=reference, keep=keep)


def spread_of(
    answers: Any,
    orders: Sequence[Sequence[int]],
    words: Sequence[int],
    *,
    k: int = 10,
    reference: Tensor | None = None,
    keep: bool = False,
) -> OrderSensitivity:
    """The same from distributions [texts, vocabulary] that come one order after another."""
    spread, ids, probs, kept, moved = RunningSpread(), [], [], [], []
    for p in answers:
        if k > p.shape[-1]:
            raise ValueError(f"k must be between 1 and the vocabulary of {p.shape[-1]}, got {k}")
        spread.add(p)
        top = p.topk(k, dim=-1)
        ids.append(top.indices)
        probs.append(top.values)
        if reference is not None:
            moved.append(float(total_variation(p.double(), reference.double()).mean()))
        if keep:
            kept.append(p)
    per_text = spread.per_text()
    top_ids = torch.stack(ids)
    first = top_ids[:, :, 0]
    sen = float(per_text.mean())
    return OrderSensitivity(
        sen,
        per_text,
        spread.std()[:, list(words)].sum(-1).cpu().numpy(),
        sen / float(np.mean(moved)) if moved and float(np.mean(moved)) > 0 else None,
        float((first != first[0]).any(0).double().mean()),
        tuple(tuple(int(i) for i in o) for o in orders),
        top_ids,
        torch.stack(probs),
        torch.stack(kept) if keep else None,
    )
