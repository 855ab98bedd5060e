"""The best rows of a list of scores, in an order that does not depend on who computed them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def best_rows(
    scores: Float[np.ndarray, " rows"], k: int, above: float = -np.inf
) -> Int[np.ndarray, " found"]:
    """At most `k` rows of the highest scores over `above`, best first; of equal ones the lower row first."""
    rows = np.flatnonzero(scores > above)
    if len(rows) > k:
        kept = scores[rows]
        least = np.partition(kept, len(kept) - k)[len(kept) - k]
        rows = rows[kept >= least]
    return rows[np.argsort(-scores[rows], kind="stable")][:k]


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]], constant: float = 60.0) -> dict[str, float]:
    """One ranking out of several: the score of an item is the sum of 1 / (constant + its rank).

    Source: "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods", Cormack,
    Clarke, Buettcher, SIGIR 2009. Items come best first; of equal ones the one met first.
    """
    fused: dict[str, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            fused[item] = fused.get(item, 0.0) + 1 / (constant + rank)
    return dict(sorted(fused.items(), key=lambda entry: -entry[1]))
