"""A first stage's scores and a re-ranker's, mixed.

    blend(q, d) = (1 - a) z(first(q, d)) + a z(second(q, d))

z puts each one's scores of a query's re-ranked documents at mean 0 and deviation 1. Two rankers that err in
different places are better together than either alone, and a re-ranker that has learnt little does no harm
at a small a.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from gradatim.curricula.run_pairs import ranked_documents
from gradatim.tasks.retrieval import Qrels, Run, evaluate_run, ranked

WEIGHTS = tuple(i / 20 for i in range(21))


def blend_run(first: Run, second: Run, weight: float | int = 1.0) -> dict[str, dict[str, float]]:
    """`first` with the documents that `second` scores in the order of the blend; the others stay behind.

    Scores fall with rank; equal blends keep the first stage's order. Raises ValueError for a weight a outside
    [0, 1], an empty run or scores that are not finite.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight} must lie in [0, 1]: 0 is the first stage, 1 the re-ranker")
    better: dict[str, dict[str, float]] = {}
    for query, docs in first.items():
        order = ranked_documents(query, docs)
        scored = second.get(query, {})
        top = [doc for doc in order if doc in scored]
        mixed = (1 - weight) * standardised([docs[doc] for doc in top]) + weight * standardised(
            [scored[doc] for doc in top]
        )
        best = [top[i] for i in np.argsort(-mixed, kind="stable")]
        better[query] = ranked([*best, *(doc for doc in order if doc not in scored)])
    return better


def choose_blend(first: Run, second: Run, qrels: Qrels, weights: Sequence[float] = WEIGHTS) -> float:
    """The weight of highest MRR@10 on these judgements; where several are equally good, their median.

    Choose it on queries that the re-ranker was not trained on. Raises ValueError for no weights.
    """
    if not weights:
        raise ValueError("no weights to choose from")
    shown = {query: first[query] for query in qrels if first.get(query)}
    found = np.array([evaluate_run(blend_run(shown, second, a), qrels)["mrr@10"] for a in weights])
    best = [a for a, value in zip(weights, found, strict=True) if value >= found.max() - 1e-12]
    return best[len(best) // 2]


def standardised(values: Sequence[float]) -> Float[np.ndarray, " docs"]:
    """The values at mean 0 and deviation 1; equal ones become 0."""
    found = np.asarray(values, dtype=np.float64)
    spread = found.std() if len(found) else 0.0
    if spread <= 1e-9 * max(1.0, float(np.abs(found).max(initial=0.0))):
        return np.zeros(len(found))
    return (found - found.mean()) / spread
