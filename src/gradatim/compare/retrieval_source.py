"""A retrieval collection as the arms share it: read once per process, split the same way for every arm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from gradatim.bench.study import Scale
from gradatim.compare.comparison import content_digest, freeze
from gradatim.compare.errors import DataError
from gradatim.compare.readers.beir import files_of, read_beir
from gradatim.compare.readers.pairs import read_pairs
from gradatim.compare.readers.retrieval_data import RetrievalData
from gradatim.models.text_encoder import encode_texts, encoder_digest
from gradatim.tasks.retrieval import RetrievalTask, bm25_run, dense_run, pooled_negatives

FOLDS = 5
DEV_SHARE = 0.15
LEAST_QUERIES = 20
HARD = 20


@dataclass(frozen=True)
class Split:
    """Query ids: trained on, chosen with, judged on."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Collection:
    """The data as a task over all its queries, which split each query is in, and named negatives.

    `fixed` tells whether the files say which queries are for testing; otherwise seeds are folds.
    """

    task: RetrievalTask
    data: RetrievalData
    fixed: bool

    def split(self, seed: int) -> Split:
        """The split of a seed.

        With splits in the files: train, dev (or a seeded 15 % of train) and test. Without: fold s mod 5 of
        the s // 5-th shuffled 5-fold split of the queries, and 15 % of the rest to choose with.
        """
        rng = np.random.default_rng(seed)
        qrels = self.data.qrels
        if self.fixed:
            test = tuple(qrels["test"] if "test" in qrels else qrels["dev"])
            train = list(qrels["train"])
            if "test" in qrels and "dev" in qrels:
                return Split(tuple(train), tuple(qrels["dev"]), test)
        else:
            repeat, fold = divmod(seed, FOLDS)
            shuffled = np.random.default_rng(repeat).permutation(sorted(self.task.queries)).tolist()
            test = tuple(shuffled[fold::FOLDS])
            train = [q for i, q in enumerate(shuffled) if i % FOLDS != fold]
        order = rng.permutation(len(train))
        held_out = max(1, round(DEV_SHARE * len(train)))
        return Split(
            tuple(train[i] for i in sorted(order[held_out:])),
            tuple(train[i] for i in sorted(order[:held_out])),
            test,
        )

    @property
    def not_for_testing(self) -> tuple[str, ...]:
        """Every query that a model to keep may be trained on."""
        held_back = set(self.split(0).test) if self.fixed else set()
        return tuple(q for q in self.task.queries if q not in held_back)

    @property
    def overlap(self) -> float:
        """n_test / n_train of the folds, 0 for a fixed split."""
        return 0.0 if self.fixed else 1 / (FOLDS - 1)


def collection_digest(scale: Scale) -> str:
    """A digest of the files, of how they are read, and of the encoder's weights."""
    path = Path(scale["data"])
    files = files_of(path) if path.is_dir() else (path,)
    options = {k: v for k, v in scale.items() if k != "data"}
    return content_digest(files, {**options, "encoder": encoder_digest(scale["model"])})


def load(scale: Scale) -> Collection:
    """The collection that a scale names, read once per process."""
    return _load(scale["data"], scale["max_passages"], scale["max_queries"], scale["sample_seed"])


@lru_cache(maxsize=2)
def _load(path: str, max_passages: int, max_queries: int, seed: int) -> Collection:
    if Path(path).is_dir():
        data = read_beir(path, max_passages=max_passages, max_queries=max_queries, seed=seed)
    else:
        data = read_pairs(path, max_queries=max_queries, seed=seed)
    qrels = {query: grades for rows in data.qrels.values() for query, grades in rows.items()}
    fixed = "train" in data.qrels and ("test" in data.qrels or "dev" in data.qrels)
    if len(qrels) < LEAST_QUERIES:
        raise DataError(
            f"judges {len(qrels)} quer{'y' if len(qrels) == 1 else 'ies'}",
            f"give relevant passages for at least {LEAST_QUERIES}",
            file=path,
        )
    if len(data.corpus) < 3:
        raise DataError(f"holds {len(data.corpus)} passages", "give at least 3", file=path)
    return Collection(RetrievalTask(Path(path).name, data.queries, data.corpus, qrels), data, fixed)


@dataclass(frozen=True)
class Vectors:
    """Embeddings of the untrained encoder: row i belongs to id i."""

    queries: np.ndarray
    passages: np.ndarray
    query_row: Mapping[str, int]
    passage_row: Mapping[str, int]

    def of_queries(self, ids: Sequence[str]) -> np.ndarray:
        return self.queries[[self.query_row[q] for q in ids]]


def vectors(scale: Scale) -> Vectors:
    """Embeddings of every query and passage, from the cache on disk where it holds them."""
    return _vectors(freeze(scale))


@lru_cache(maxsize=1)
def _vectors(frozen: str) -> Vectors:
    scale = json.loads(frozen)
    task = load(scale).task
    options = {"encoder": scale["model"], "max_seq_length": scale["tokens"], "device": scale["device"]}
    queries = encode_texts(list(task.queries.values()), **options)
    passages = encode_texts(list(task.corpus.values()), **options)
    return Vectors(
        queries,
        passages,
        {q: i for i, q in enumerate(task.queries)},
        {p: i for i, p in enumerate(task.doc_ids)},
    )


def hard_negatives(scale: Scale) -> dict[str, list[str]]:
    """Per query: the passages named as negatives, then the top 20 of BM25 and of the encoder, less its own
    relevant ones."""
    return _hard_negatives(freeze(scale))


@lru_cache(maxsize=1)
def _hard_negatives(frozen: str) -> dict[str, list[str]]:
    scale = json.loads(frozen)
    collection = load(scale)
    task, found = collection.task, vectors(scale)
    ids = list(task.queries)
    dense = dense_run(unit_rows(found.queries), unit_rows(found.passages), ids, task.doc_ids, k=2 * HARD)
    pools = pooled_negatives(task, [bm25_run(task, k=2 * HARD), dense], k=HARD)
    named = collection.data.negatives
    return {q: list(dict.fromkeys([*named.get(q, ()), *pool])) for q, pool in pools.items()}


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Every row at length 1 (rows of zeros stay)."""
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
