"""Who said which passages are relevant: simulators of annotation, and rows of n passages drawn from it.

An *annotation* maps a query id to its positive documents in the annotator's order. `draw_rows` turns an
annotation and a pool of hard negatives into training rows; `to_multi_positive` makes a
sentence-transformers dataset of them. All draws follow from (seed, epoch, query id), so a query's row does
not depend on which other queries are drawn, nor on Python's salted hash.

Source: Training Dense Retrievers with Multiple Positive Passages, 2026, arXiv 2602.12727.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from gradatim.tasks.retrieval import Qrels, RetrievalTask

if TYPE_CHECKING:
    from datasets import Dataset

Annotation = Mapping[str, Sequence[str]]
Select = Literal["first", "random", "cycle"]

FALSE_POSITIVES = 3
"""How many candidates from the negative pool the simulated annotator looks at."""


@dataclass(frozen=True)
class Row:
    """One query's passages by document id and their labels: 1 positive, 0 negative, -1 padding."""

    query: str
    docs: tuple[str, ...]
    labels: tuple[int, ...]


def query_generator(seed: int, epoch: int, query_id: str) -> np.random.Generator:
    """A generator that depends on these three alone, on every machine and in every process.

    Epoch -1 is the annotator's own: never trained on, hence independent of every epoch's draw.
    """
    digest = hashlib.sha256(query_id.encode()).digest()
    return np.random.default_rng([seed, epoch + 1, *np.frombuffer(digest[:16], dtype=np.uint32).tolist()])


def homogeneous(
    task: RetrievalTask,
    negatives: Mapping[str, Sequence[str]],
    rho: float,
    seed: int = 0,
    false_positives: int = FALSE_POSITIVES,
) -> dict[str, list[str]]:
    """One annotator marks every query: all relevant documents and Binomial(3, rho) wrong ones.

    The document of the highest grade comes first; the others follow in random order, so that an option
    which takes the first k has no way to prefer the true ones. Wrong ones come from the query's negatives.
    Raises ValueError unless 0 <= rho <= 1.
    """
    return heterogeneous(
        task, negatives, human_share=0.0, rho=rho, seed=seed, false_positives=false_positives
    )


def heterogeneous(
    task: RetrievalTask,
    negatives: Mapping[str, Sequence[str]],
    human_share: float,
    rho: float,
    seed: int = 0,
    false_positives: int = FALSE_POSITIVES,
) -> dict[str, list[str]]:
    """With probability `human_share` a query has only its best document, else it is marked as above."""
    for name, value in (("rho", rho), ("human_share", human_share)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}={value} is no probability; give a number from 0 to 1")
    marked: dict[str, list[str]] = {}
    for query in task.qrels:
        relevant = task.relevant(query)
        if not relevant:
            continue
        rng = query_generator(seed, -1, query)
        human = rng.random() < human_share
        wrong = min(int(rng.binomial(false_positives, rho)), len(negatives.get(query, ())))
        chosen = rng.permutation(len(negatives.get(query, ())))[:wrong]
        others = relevant[1:] + [negatives[query][i] for i in chosen]
        rng.shuffle(others)
        marked[query] = relevant[:1] if human else relevant[:1] + others
    return marked


def draw_rows(
    positives: Annotation,
    negatives: Mapping[str, Sequence[str]],
    n_passages: int = 8,
    max_positives: int = 4,
    select: Select = "first",
    seed: int = 0,
    epoch: int = 0,
) -> list[Row]:
    """One row of `n_passages` per query: up to `max_positives` positives, then hard negatives.

    `select`: "first" takes the head of the annotator's list, "random" a fresh sample each epoch, "cycle" a
    window that moves by one each epoch. Negatives are drawn anew each epoch from the pool less the
    positives, with replacement if it holds too few; if it holds none, the row is padded (label -1).
    Raises ValueError for sizes out of range, an unknown `select`, or a query without a positive.
    """
    if n_passages < 2:
        raise ValueError(f"n_passages={n_passages}: a row needs a positive and a negative, so at least 2")
    if not 1 <= max_positives < n_passages:
        raise ValueError(
            f"max_positives={max_positives} must lie between 1 and n_passages - 1 = {n_passages - 1}"
        )
    if select not in get_args(Select):
        raise ValueError(f"select={select!r} is unknown; choose first, random or cycle")
    rows: list[Row] = []
    for query, marked in positives.items():
        if not marked:
            raise ValueError(f"query {query!r} has no positive; leave it out of the annotation")
        rng = query_generator(seed, epoch, query)
        count = min(max_positives, len(marked))
        if select == "first":
            chosen = list(marked[:count])
        elif select == "random":
            chosen = [marked[i] for i in rng.permutation(len(marked))[:count]]
        else:
            chosen = [marked[(epoch + i) % len(marked)] for i in range(count)]
        known = set(marked)
        pool = [doc for doc in negatives.get(query, ()) if doc not in known]
        wanted = n_passages - count
        drawn: list[str] = []
        if pool:
            picks = rng.choice(len(pool), size=wanted, replace=len(pool) < wanted)
            drawn = [pool[i] for i in picks]
        labels = [1] * count + [0] * len(drawn)
        padding = n_passages - len(labels)
        docs = chosen + drawn + chosen[:1] * padding
        rows.append(Row(query, tuple(docs), tuple(labels + [-1] * padding)))
    return rows


def to_multi_positive(
    queries: Mapping[str, str],
    positives: Annotation | Qrels,
    corpus: Mapping[str, str],
    negatives: Mapping[str, Sequence[str]],
    n_passages: int = 8,
    max_positives: int = 4,
    select: Select = "first",
    seed: int = 0,
    epoch: int = 0,
) -> Dataset:
    """A dataset with the columns query, doc_1 ... doc_n and label, as MultiPositiveRankingLoss reads it.

    `positives` is an annotation, or qrels (then documents of grade >= 1 count, highest grade first).
    """
    annotation = {query: _as_list(marked) for query, marked in positives.items()}
    rows = draw_rows(annotation, negatives, n_passages, max_positives, select, seed, epoch)
    return rows_to_dataset(rows, queries, corpus)


def _as_list(marked: Sequence[str] | Mapping[str, int]) -> list[str]:
    if not isinstance(marked, Mapping):
        return list(marked)
    grades = dict(marked)
    return sorted((doc for doc in grades if grades[doc] >= 1), key=lambda doc: -grades[doc])


def rows_to_dataset(rows: Sequence[Row], queries: Mapping[str, str], corpus: Mapping[str, str]) -> Dataset:
    """The texts of drawn rows as a dataset: query, doc_1 ... doc_n, label."""
    from datasets import Dataset

    if not rows:
        raise ValueError("no rows to make a dataset of")
    columns: dict[str, list[object]] = {"query": [queries[row.query] for row in rows]}
    for i in range(len(rows[0].docs)):
        columns[f"doc_{i + 1}"] = [corpus[row.docs[i]] for row in rows]
    columns["label"] = [list(row.labels) for row in rows]
    return Dataset.from_dict(columns)
