"""Negatives behind a margin, and a teacher's grades, for the arms that train with them.

The untrained encoder mines: a query's nearest passages, less its relevant ones, less what scores within 5 %
of the lowest of those. The teacher is BM25 and the untrained encoder, each standardised over the query's own
candidates.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch

from gradatim.bench.study import Scale
from gradatim.compare.comparison import freeze
from gradatim.compare.retrieval_source import HARD, load, unit_rows, vectors
from gradatim.curricula import BM25, RelativeMargin, mine_rows
from gradatim.curricula.teachers import normalized

MARGIN = 0.95


def mined_negatives(scale: Scale) -> dict[str, list[str]]:
    """Per query up to 20 mined passages; named negatives of the file come first, whatever they score."""
    return _mined_negatives(freeze(scale))


@lru_cache(maxsize=1)
def _mined_negatives(frozen: str) -> dict[str, list[str]]:
    scale = json.loads(frozen)
    collection = load(scale)
    task, found = collection.task, vectors(scale)
    asked = [query for query in task.queries if task.relevant(query)]
    rows = {doc: i for i, doc in enumerate(task.doc_ids)}
    count = min(HARD, max(1, len(rows) - 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # positives of negative cosine are the data's own
        mined = mine_rows(
            torch.from_numpy(unit_rows(found.of_queries(asked))),
            torch.from_numpy(unit_rows(found.passages)),
            [[rows[doc] for doc in task.relevant(query)] for query in asked],
            RelativeMargin(MARGIN),
            num_negatives=count,
            range_max=max(100, count),
            most_emptied=1.0,
        )
    named = collection.data.negatives
    pools = {query: list(named.get(query, ())) for query in task.queries}
    for query, row in zip(asked, mined.rows.tolist(), strict=True):
        pools[query] = list(dict.fromkeys([*pools[query], *(task.doc_ids[i] for i in row if i >= 0)]))
    return pools


def teacher_grades(scale: Scale) -> Mapping[str, Mapping[str, float]]:
    """Per query: the fused teacher's score of each of its relevant and mined passages."""
    return _teacher_grades(freeze(scale))


@lru_cache(maxsize=1)
def _teacher_grades(frozen: str) -> dict[str, dict[str, float]]:
    scale = json.loads(frozen)
    task, found = load(scale).task, vectors(scale)
    bm25 = BM25().fit(list(task.corpus.values()))
    pools = mined_negatives(scale)
    grades: dict[str, dict[str, float]] = {}
    for query, pool in pools.items():
        docs = list(dict.fromkeys([*task.relevant(query), *pool]))
        if not docs:
            continue
        words = bm25.pairs([task.queries[query]], [[task.corpus[doc] for doc in docs]])
        own = unit_rows(found.of_queries([query]))[0]
        near = unit_rows(found.passages[[found.passage_row[doc] for doc in docs]]) @ own
        dense = torch.from_numpy(np.asarray(near, dtype=np.float32))[None]
        fused = 0.5 * normalized(words, "zscore") + 0.5 * normalized(dense, "zscore")
        grades[query] = dict(zip(docs, fused[0].tolist(), strict=True))
    return grades
