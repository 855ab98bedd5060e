"""Paper 10's bench: frozen sentence embeddings, one linear head, and annotators of several kinds.

The encoder is run once over the docstring corpus; each trial then trains a bias-free square matrix on top,
which takes under a second, so that objectives, temperatures and seeds can be crossed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from gradatim.bench.study import Scale, tuning_seeds
from gradatim.losses.multi_positive import multi_positive_loss
from gradatim.models.text_encoder import encode_texts
from gradatim.tasks.annotations import draw_rows, heterogeneous
from gradatim.tasks.docstrings import GOLD, docstring_retrieval, linked_split
from gradatim.tasks.retrieval import (
    RetrievalScores,
    RetrievalTask,
    bm25_run,
    dense_run,
    evaluate_run,
    pooled_negatives,
)

PASSAGE_TOKENS = 96
POOL = 20
DEV_SHARE = 0.25


@dataclass(frozen=True)
class Regime:
    """Who marked the positives: the share of queries a human marked (gold alone), and the error rate."""

    human_share: float
    rho: float


REGIMES: Mapping[str, Regime] = {
    "clean": Regime(0.0, 0.0),
    "noisy": Regime(0.0, 0.2),
    "heavy": Regime(0.0, 0.5),
    "mixed": Regime(0.5, 0.1),
}


@dataclass(frozen=True)
class Bench:
    """The task, its vectors and hard negatives, and which queries train and which test.

    Temperatures are chosen by training on `train` less `dev` and looking at `dev`, a part of `train`.
    """

    task: RetrievalTask
    query_vectors: Mapping[str, np.ndarray]
    passages: Tensor
    row_of: Mapping[str, int]
    negatives: Mapping[str, Sequence[str]]
    train: tuple[str, ...]
    test: tuple[str, ...]
    dev: tuple[str, ...]


@lru_cache(maxsize=2)
def bench(model: str) -> Bench:
    """Encodes the corpus (once per machine: the cache is shared) and pools hard negatives."""
    task = docstring_retrieval()
    train, test = linked_split(task)
    ids = [*train, *test]
    passages = encode_texts(list(task.corpus.values()), model, max_seq_length=PASSAGE_TOKENS)
    queries = encode_texts([task.queries[query] for query in ids], model, max_seq_length=PASSAGE_TOKENS)
    runs = [
        bm25_run(task, POOL, query_ids=ids),
        dense_run(_unit(queries), _unit(passages), ids, task.doc_ids, POOL),
    ]
    return Bench(
        task=task,
        query_vectors=dict(zip(ids, queries, strict=True)),
        passages=torch.from_numpy(passages),
        row_of={doc: i for i, doc in enumerate(task.doc_ids)},
        negatives=pooled_negatives(task, runs, POOL, ids),
        train=train,
        test=test,
        dev=train[int((1 - DEV_SHARE) * len(train)) :],
    )


# How much of what the annotator marked an arm's training knows of.
Known = Literal["all", "gold", "gold, rest masked"]


@dataclass(frozen=True)
class Recipe:
    """What an arm is made of, apart from its temperature."""

    objective: str
    regime: str
    known: Known = "all"


def annotate(b: Bench, regime: str, seed: int, train: Sequence[str]) -> dict[str, list[str]]:
    """What the regime's annotator marks on the training queries."""
    who = REGIMES[regime]
    return heterogeneous(b.task.of_queries(train), b.negatives, who.human_share, who.rho, seed)


@dataclass(frozen=True)
class Drawn:
    """A seed's annotation and its training rows: passages (as corpus rows) and labels of every epoch."""

    marked: Mapping[str, list[str]]
    docs: Int[Tensor, "epochs queries n"]
    labels: Int[Tensor, "epochs queries n"]


# Every objective and temperature trains on the same rows; drawing them again would cost as much as training.
@lru_cache(maxsize=32)
def drawn(model: str, regime: str, gold_alone: bool, seed: int, tuning: bool, frozen: str) -> Drawn:
    """The rows of all epochs; with `tuning` the dev queries are left out."""
    b, scale = bench(model), json.loads(frozen)
    held_out = set(b.dev) if tuning else set()
    marked = annotate(b, regime, seed, [query for query in b.train if query not in held_out])
    positives = {query: docs[:1] for query, docs in marked.items()} if gold_alone else marked
    n, most, epochs = int(scale["passages"]), int(scale["max_positives"]), range(int(scale["epochs"]))
    rows = [draw_rows(positives, b.negatives, n, most, "random", seed, epoch) for epoch in epochs]
    docs = torch.tensor([[[b.row_of[doc] for doc in row.docs] for row in epoch] for epoch in rows])
    return Drawn(marked, docs, torch.tensor([[row.labels for row in epoch] for epoch in rows]))


def train_head(
    b: Bench, recipe: Recipe, temperature_scale: float, seed: int, scale: Scale, tuning: bool = False
) -> Tensor:
    """The matrix W [dim, dim] after `epochs` of AdamW, from the identity; scores are scale * cos(Wq, Wd).

    Each epoch draws each query's row anew: up to `max_positives` of its positives, then hard negatives.
    Other rows' passages are negatives too, unless they are known positives of the query.
    """
    rows = drawn(scale["model"], recipe.regime, recipe.known != "all", seed, tuning, freeze(scale))
    ids = list(rows.marked)
    vectors = torch.from_numpy(np.stack([b.query_vectors[query] for query in ids]))
    known = torch.zeros(len(ids), len(b.row_of), dtype=torch.bool)
    for i, query in enumerate(ids):
        spared = rows.marked[query][: 1 if recipe.known == "gold" else None]
        known[i, [b.row_of[doc] for doc in spared]] = True
    size, n = int(scale["batch"]), int(scale["passages"])
    weight = torch.eye(vectors.shape[1], requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=float(scale["lr"]), weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    own = torch.arange(size * n).reshape(size, n)
    for docs, labels in zip(rows.docs, rows.labels, strict=True):
        order = torch.randperm(len(ids), generator=generator)
        for batch in order[: len(order) // size * size].split(size):
            columns = docs[batch].flatten()
            q = F.normalize(vectors[batch] @ weight.T, dim=1) * temperature_scale
            d = F.normalize(b.passages[columns] @ weight.T, dim=1)
            positive = torch.zeros(size, size * n, dtype=torch.bool).scatter_(1, own, labels[batch] == 1)
            ignored = (known[batch][:, columns] & ~positive) | (labels[batch].flatten() < 0)
            loss = multi_positive_loss(
                q @ d.T, positive, ignored, objective=recipe.objective, generator=generator
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weight.detach()


def evaluate(b: Bench, weight: Tensor, queries: Sequence[str]) -> RetrievalScores:
    """Recall@10 over gold and links, MRR@10 of the gold passage, graded nDCG@10, over the whole corpus."""
    vectors = torch.from_numpy(np.stack([b.query_vectors[query] for query in queries]))
    run = dense_run(
        _unit((vectors @ weight.T).numpy()),
        _unit((b.passages @ weight.T).numpy()),
        list(queries),
        b.task.doc_ids,
        k=10,
    )
    return evaluate_run(run, b.task.of_queries(queries).qrels, recall_at=(10,), mrr_least_grade=GOLD)


@lru_cache(maxsize=256)
def tuned(recipe: Recipe, frozen: str) -> tuple[float, tuple[float, ...]]:
    """The temperature scale with the best recall@10 on the dev queries, and that recall for every scale."""
    scale = json.loads(frozen)
    b = bench(scale["model"])
    recalls = []
    for value in scale["scales"]:
        heads = [
            train_head(b, recipe, value, seed, scale, tuning=True)
            for seed in tuning_seeds(int(scale["tuning_seeds"]))
        ]
        recalls.append(float(np.mean([evaluate(b, head, b.dev)["recall@10"] for head in heads])))
    return float(scale["scales"][int(np.argmax(recalls))]), tuple(recalls)


def freeze(scale: Scale) -> str:
    """A scale as a string that can key a cache."""
    return json.dumps(dict(scale), sort_keys=True)


def pull_by_rank(
    b: Bench, recipe: Recipe, temperature_scale: float, seed: int, scale: Scale
) -> tuple[np.ndarray, float]:
    """How an objective spreads its pull over a query's positives, before any training.

    Pull is -dL/ds of a positive, divided by the row's summed magnitude. First the mean share of the
    positives by rank of their score (best first), over rows with the full number of positives; then the
    mean share that goes to false positives, over rows with at least one (NaN without any).
    """
    rows = drawn(scale["model"], recipe.regime, False, seed, False, freeze(scale))
    docs, labels, ids = rows.docs[0], rows.labels[0], list(rows.marked)
    most, n = int(scale["max_positives"]), docs.shape[1]
    vectors = torch.from_numpy(np.stack([b.query_vectors[query] for query in ids]))
    q, d = F.normalize(vectors, dim=1), F.normalize(b.passages[docs], dim=2)
    scores = (torch.einsum("bd,bnd->bn", q, d) * temperature_scale).double().requires_grad_()
    positive = labels == 1
    loss = multi_positive_loss(
        scores,
        positive,
        labels < 0,
        objective=recipe.objective,
        generator=torch.Generator().manual_seed(seed),
        reduction="sum",
    )
    loss.backward()
    assert scores.grad is not None
    pull = (-scores.grad).masked_fill(~positive, 0.0)
    share = pull / pull.abs().sum(dim=1, keepdim=True).clamp(min=1e-300)
    full = positive.sum(dim=1) == most
    ranked = scores.detach().masked_fill(~positive, -torch.inf).argsort(dim=1, descending=True)
    by_rank = share.gather(1, ranked)[full][:, :most].mean(dim=0).numpy()
    true = torch.zeros(len(ids), n, dtype=torch.bool)
    for i, query in enumerate(ids):
        relevant = {b.row_of[doc] for doc in b.task.relevant(query)}
        true[i] = torch.tensor([int(doc) in relevant for doc in docs[i]])
    false = positive & ~true
    some = false.any(dim=1)
    to_false = (share * false).sum(dim=1)[some]
    return by_rank, float(to_false.mean()) if len(to_false) else float("nan")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return F.normalize(torch.from_numpy(vectors), dim=1).numpy()
