"""MAP and NDCG@k of rankings full of ties, as Hamming distances give them.

At 32 bits whole groups of documents share a distance, and a metric of one arbitrary order says little. Here a
tied group counts with the mean over all its orders, in closed form: McSherry and Najork, "Computing
Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores", ECIR 2008.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Num, Shaped

from gradatim.tasks.retrieval import RetrievalScores


def retrieval_scores(
    similarity: Num[np.ndarray, "queries docs"],
    relevance: Shaped[np.ndarray, "queries docs"],
    k: int = 10,
    distances: bool = False,
) -> RetrievalScores:
    """`map` over the whole ranking and `ndcg@k` (gain = relevance) of every query with a relevant document.

    `relevance` holds booleans or whole numbers of at least 0 (`shared_labels` makes it from labels); the
    average precision counts every document above 0 as relevant. With `distances` small values stand first.

    In a tied group of n documents, r of them relevant, behind N documents with R relevant ones, position
    N + i adds (r / n) (R + 1 + (i - 1) (r - 1) / (n - 1)) / (N + i) to the expected sum of precisions; every
    position has the group's mean gain.

    Raises ValueError for shapes that differ, NaN, k < 1, negative relevance, or when no query has a relevant
    document.
    """
    if similarity.shape != relevance.shape:
        raise ValueError(f"similarity {similarity.shape} and relevance {relevance.shape} differ in shape")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if np.issubdtype(similarity.dtype, np.floating) and np.isnan(similarity).any():
        raise ValueError("similarity holds NaN; check the vectors")
    gains = np.asarray(relevance, dtype=np.float64)
    if (gains < 0).any():
        raise ValueError(f"relevance must be at least 0, got {gains.min():g}")
    judged = np.flatnonzero((gains > 0).any(axis=1))
    if not len(judged):
        raise ValueError("no query has a relevant document; nothing to measure")
    found = np.array([_row(similarity[q], gains[q], k, distances) for q in judged])
    return RetrievalScores(tuple(str(q) for q in judged), {"map": found[:, 0], f"ndcg@{k}": found[:, 1]})


def shared_labels(
    query_labels: Shaped[np.ndarray, "queries ..."], labels: Shaped[np.ndarray, "docs ..."]
) -> Shaped[np.ndarray, "queries docs"]:
    """Relevance: equal labels [n], or how many labels two rows of a 0/1 label matrix [n, labels] share."""
    if query_labels.ndim == 1:
        return query_labels[:, None] == labels[None]
    return np.asarray(query_labels, dtype=np.int64) @ np.asarray(labels, dtype=np.int64).T


def _row(scores: np.ndarray, gains: np.ndarray, k: int, distances: bool) -> tuple[float, float]:
    order = np.argsort(scores, kind="stable")
    if not distances:
        order = order[::-1]
    ranked, gain = scores[order], gains[order]
    relevant = (gain > 0).astype(np.float64)
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    sizes = np.diff(np.r_[starts, len(ranked)])
    group_relevant = np.add.reduceat(relevant, starts)
    before = np.r_[0.0, np.cumsum(group_relevant)[:-1]]
    of = np.repeat(np.arange(len(starts)), sizes)
    place = np.arange(len(ranked)) - starts[of]
    n, r = sizes[of].astype(np.float64), group_relevant[of]
    others = place * (r - 1.0) / np.maximum(n - 1.0, 1.0)
    precision = (before[of] + 1.0 + others) / np.arange(1, len(ranked) + 1)
    average_precision = float((r / n * precision).sum() / relevant.sum())
    cut = min(k, len(ranked))
    discount = 1.0 / np.log2(np.arange(2, cut + 2))
    expected = (np.add.reduceat(gain, starts) / sizes)[of][:cut]
    ideal = np.sort(gains)[::-1][:cut]
    return average_precision, float((expected @ discount) / (ideal @ discount))
