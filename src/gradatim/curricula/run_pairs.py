"""Training pairs from a first-stage run: a relevant document and lower-labelled ones of the same run.

Pair `index` of epoch `epoch` follows from (seed, epoch, index) alone: not from workers, batch size or which
other pairs are drawn.

Source: Training Curricula for Open Domain Answer Re-Ranking, SIGIR 2020, arXiv 2004.14269.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from gradatim.curricula.difficulty import (
    Heuristic,
    pairwise_difficulty,
    resolve_heuristic,
)
from gradatim.tasks.retrieval import Qrels, Run

if TYPE_CHECKING:
    from datasets import Dataset

BY = ("query", "positive")


@dataclass(frozen=True)
class Pair:
    """A query, a relevant document and documents labelled lower, by id."""

    query: str
    positive: str
    negatives: tuple[str, ...]


class RunPairs(TorchDataset[Pair]):
    """The pairs of one epoch as a map-style dataset; `set_epoch` draws the next epoch's.

    An epoch is a shuffled pass over the queries (`by="query"`, one of the query's positives drawn uniformly)
    or over all positives (`by="positive"`). Positives are documents of the run judged at least `least_grade`;
    each negative is drawn uniformly, with replacement, from the run's documents with a lower label than the
    positive's (unjudged: 0). Positives without such a document are left out.

    Raises ValueError for an unknown `by`, a query whose run is empty, a score that is not finite, fewer than
    1 negative, or when no pair is left.
    """

    def __init__(
        self,
        run: Run,
        qrels: Qrels,
        seed: int,
        by: str = "query",
        negatives: int = 1,
        least_grade: int = 1,
    ) -> None:
        if by not in BY:
            raise ValueError(f"by={by!r} is unknown; choose query or positive")
        if negatives < 1:
            raise ValueError(f"negatives={negatives}: a pair needs at least 1")
        if least_grade < 1:
            raise ValueError(f"least_grade={least_grade}: a positive needs a grade of at least 1")
        if seed < 0:
            raise ValueError(f"seed={seed} must be at least 0")
        self.seed, self.by, self.negatives = seed, by, negatives
        self.epoch = 0
        self.queries: list[str] = []
        self.docs: list[list[str]] = []  # of each query, lowest label first
        rows: list[tuple[int, int, int]] = []  # query, place of the positive, documents labelled lower
        for query, grades in qrels.items():
            if query not in run:
                continue
            ranked = ranked_documents(query, run[query])
            labels = np.array([int(grades.get(doc, 0)) for doc in ranked])
            order = np.argsort(labels, kind="stable")
            lower = np.searchsorted(labels[order], labels[order], side="left")
            usable = np.flatnonzero((labels[order] >= least_grade) & (lower > 0))
            if len(usable):
                rows += [(len(self.queries), int(place), int(lower[place])) for place in usable]
                self.queries.append(query)
                self.docs.append([ranked[i] for i in order])
        if not rows:
            raise ValueError(
                f"no query has a document of grade {least_grade} or more and one labelled lower in the run"
            )
        self._rows = np.array(rows)
        counts = np.bincount(self._rows[:, 0], minlength=len(self.queries))
        self._first, self._count = np.cumsum(counts) - counts, counts

    def __len__(self) -> int:
        return len(self.queries) if self.by == "query" else len(self._rows)

    def set_epoch(self, epoch: int) -> None:
        """From here on items are those of this epoch."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Pair:
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        places = self.draw(np.array([index % len(self)]), np.array([self.epoch]))
        return self.pair(*(column[0] for column in places))

    def stream(self, count: int) -> list[Pair]:
        """The first `count` pairs of epoch 0, then 1 and so on."""
        if count < 1:
            raise ValueError(f"count={count}: ask for at least 1 pair")
        at = np.arange(count)
        places = self.draw(at % len(self), at // len(self))
        return [self.pair(*row) for row in zip(*places, strict=True)]

    def draw(
        self, index: Int[np.ndarray, " pairs"], epoch: Int[np.ndarray, " pairs"]
    ) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Int[np.ndarray, "pairs negatives"]]:
        """Number of the query, and places of positive and negatives among its documents, of these pairs."""
        item = np.empty_like(index)
        for e in np.unique(epoch):
            chosen = epoch == e
            shuffled = np.random.default_rng([self.seed, int(e)]).permutation(len(self))
            item[chosen] = shuffled[index[chosen]]
        lots = uniform_lots(self.seed, epoch, index, 1 + self.negatives)
        if self.by == "query":
            item = self._first[item] + (lots[:, 0] * self._count[item]).astype(np.int64)
        query, positive, lower = self._rows[item].T
        return query, positive, (lots[:, 1:] * lower[:, None]).astype(np.int64)

    def pair(
        self, query: int | np.integer, positive: int | np.integer, negatives: Int[np.ndarray, " negatives"]
    ) -> Pair:
        """The ids behind the numbers that `draw` gives."""
        docs = self.docs[int(query)]
        return Pair(self.queries[int(query)], docs[int(positive)], tuple(docs[i] for i in negatives))


def sample_pairs(
    run: Run,
    qrels: Qrels,
    seed: int,
    by: str = "query",
    count: int | None = None,
    negatives: int = 1,
    least_grade: int = 1,
) -> list[Pair]:
    """`count` pairs over as many shuffled passes as it takes; one pass by default. See `RunPairs`."""
    source = RunPairs(run, qrels, seed, by, negatives, least_grade)
    return source.stream(len(source) if count is None else count)


def pairs_to_dataset(pairs: Sequence[Pair], queries: Mapping[str, str], corpus: Mapping[str, str]) -> Dataset:
    """Texts and ids as a dataset: query, positive, negative, negative_2 ... and the same with _id.

    `attach_difficulty` turns the ids into the column `label`, after which the texts are what a loss reads.
    """
    from datasets import Dataset

    if not pairs:
        raise ValueError("no pairs to make a dataset of")
    columns: dict[str, list[str]] = {
        "query": [queries[pair.query] for pair in pairs],
        "positive": [corpus[pair.positive] for pair in pairs],
    }
    ids = {"query_id": [p.query for p in pairs], "positive_id": [p.positive for p in pairs]}
    for i in range(len(pairs[0].negatives)):
        name = "negative" if i == 0 else f"negative_{i + 1}"
        columns[name] = [corpus[pair.negatives[i]] for pair in pairs]
        ids[f"{name}_id"] = [pair.negatives[i] for pair in pairs]
    return Dataset.from_dict({**columns, **ids})


def attach_difficulty(dataset: Dataset, run: Run, heuristic: Heuristic | str) -> Dataset:
    """The dataset with `label` as the curriculum losses want it, and without its id columns.

    Pairwise: columns query_id, positive_id, negative_id (negative_2_id ...): `label` becomes D(q, d+, d-), a
    list of one per negative where there are several. Pointwise: columns query_id, doc_id and `relevance`:
    `label` becomes [relevance, H]. A document outside the run has H = 0. `heuristic` is one of
    `gradatim.curricula`, or "recip", "norm", "kde".

    Raises ValueError for missing columns, or a query that the run does not have or has no documents for.
    """
    names = list(dataset.column_names)
    if "query_id" not in names:
        raise ValueError(f"the dataset has no column query_id; it has {', '.join(names)}")
    table = heuristic_table(run, dict.fromkeys(dataset["query_id"]), heuristic)
    queries = dataset["query_id"]

    def values(column: str) -> Tensor:
        pairs = zip(queries, dataset[column], strict=True)
        return torch.tensor([table[query].get(doc, 0.0) for query, doc in pairs])

    negatives = [name for name in names if name.startswith("negative") and name.endswith("_id")]
    if "positive_id" in names and negatives:
        easy = values("positive_id")
        each = torch.stack([pairwise_difficulty(easy, values(n)[:, None]) for n in negatives], dim=1)
        label: list[float] | list[list[float]] = (each[:, 0] if len(negatives) == 1 else each).tolist()
        used = ["query_id", "positive_id", *negatives]
    elif "doc_id" in names and "relevance" in names:
        relevance = torch.tensor(dataset["relevance"], dtype=torch.float32)
        label = torch.stack([relevance, values("doc_id")], dim=1).tolist()
        used = ["query_id", "doc_id", "relevance"]
    else:
        raise ValueError(
            "the dataset needs the columns positive_id and negative_id, or doc_id and relevance; it has "
            + ", ".join(names)
        )
    return dataset.remove_columns([*used, *({"label"} & set(names))]).add_column("label", label)


def heuristic_table(
    run: Run, queries: Mapping[str, object] | Sequence[str], heuristic: Heuristic | str, chunk: int = 256
) -> dict[str, dict[str, float]]:
    """H of every document of these queries' runs, `chunk` queries at a time."""
    measure = resolve_heuristic(heuristic)
    ids = list(queries)
    missing = [query for query in ids if query not in run]
    if missing:
        raise ValueError(f"the run has no query {missing[0]!r}; leave its rows out or run it")
    table: dict[str, dict[str, float]] = {}
    for begin in range(0, len(ids), chunk):
        block = ids[begin : begin + chunk]
        docs = [ranked_documents(query, run[query]) for query in block]
        scores, mask = padded(
            [[float(run[q][d]) for d in ranked] for q, ranked in zip(block, docs, strict=True)]
        )
        for query, ranked, row in zip(block, docs, measure(scores, mask).tolist(), strict=True):
            table[query] = dict(zip(ranked, row, strict=False))
    return table


def ranked_documents(query: str, scores: Mapping[str, float]) -> list[str]:
    """A run's documents by (score, id), both descending, as TREC's tools rank them.

    Raises ValueError for an empty run or a score that is not finite.
    """
    if not scores:
        raise ValueError(f"the run of query {query!r} is empty; leave the query out")
    wrong = next((doc for doc, score in scores.items() if not np.isfinite(score)), None)
    if wrong is not None:
        raise ValueError(
            f"score {scores[wrong]} of ({query!r}, {wrong!r}) is not finite; check the first stage"
        )
    return sorted(scores, key=lambda doc: (scores[doc], doc), reverse=True)


def padded(rows: Sequence[Sequence[float]]) -> tuple[Float[Tensor, "rows width"], Tensor]:
    """Rows of unequal length as one float64 matrix, and which places are in use."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    values = torch.zeros(mask.shape, dtype=torch.float64)
    values[mask] = torch.tensor([value for row in rows for value in row], dtype=torch.float64)
    return values, mask


_MIX = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)


def uniform_lots(
    seed: int, epoch: Int[np.ndarray, " pairs"], index: Int[np.ndarray, " pairs"], places: int
) -> Float[np.ndarray, "pairs places"]:
    """Numbers in [0, 1) that follow from (seed, epoch, index, place): splitmix64 of each part in turn."""
    state: np.ndarray = np.full(len(index), seed, dtype=np.int64).astype(np.uint64)
    for part in (epoch, index):
        state = _mixed(state + _MIX[0]) ^ part.astype(np.uint64)
    each = _mixed(_mixed(state)[:, None] + np.arange(1, places + 1, dtype=np.uint64) * _MIX[0])
    return (each >> np.uint64(11)).astype(np.float64) / 2**53


def _mixed(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * _MIX[1]
    value = (value ^ (value >> np.uint64(27))) * _MIX[2]
    return value ^ (value >> np.uint64(31))
