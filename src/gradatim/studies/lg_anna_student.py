"""Paper 23's small student: word-piece embeddings, one linear map, and three ingredients to switch on.

A text is the mean of MiniLM's input word-piece embeddings weighted by log inverse document frequency,
standardised by the passages; a square matrix, the identity at first, is trained on top in about a second.
MiniLM itself mines the negatives, and together with BM25 it is the teacher.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.bench.study import Scale
from gradatim.curricula import BM25, AbsoluteMargin, AdaptiveMargin, MinedRows, RelativeMargin, mine_rows
from gradatim.curricula.margins import Margin
from gradatim.curricula.teachers import normalized
from gradatim.losses import SoftLabelRankingLoss
from gradatim.models.text_encoder import encode_texts, load_text_encoder
from gradatim.tasks.docstrings import GOLD, docstring_retrieval
from gradatim.tasks.retrieval import RetrievalScores, RetrievalTask, dense_run, evaluate_run

SPLIT_SEED = 2
TRAIN_SHARE = 0.675
TOKENS = 96
NEIGHBOURS = 20
SMOOTHING = 0.1


@dataclass(frozen=True)
class Bench:
    """Task, split, the student's features, the miner's vectors and the teacher's scores over the corpus."""

    task: RetrievalTask
    train: tuple[str, ...]
    test: tuple[str, ...]
    row_of: Mapping[str, int]
    queries: Float[Tensor, "queries dim"]
    passages: Float[Tensor, "docs dim"]
    miner_queries: Float[Tensor, "queries dim"]
    miner_passages: Float[Tensor, "docs dim"]
    teacher: Float[Tensor, "queries docs"]


@lru_cache(maxsize=1)
def bench(model: str) -> Bench:
    """Encodes the corpus once per machine (the cache is shared); the rest takes seconds."""
    task = docstring_retrieval()
    ids = list(task.queries)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(ids))
    cut = round(TRAIN_SHARE * len(ids))
    queries, passages = list(task.queries.values()), list(task.corpus.values())
    of_queries = F.normalize(torch.from_numpy(encode_texts(queries, model, TOKENS)), dim=1)
    of_passages = F.normalize(torch.from_numpy(encode_texts(passages, model, TOKENS)), dim=1)
    student_queries, student_passages = word_piece_features(queries, passages, model)
    dense = normalized(of_queries @ of_passages.T, "zscore")
    words = normalized(BM25().matrix(queries, passages), "zscore")
    return Bench(
        task=task,
        train=tuple(ids[i] for i in order[:cut]),
        test=tuple(ids[i] for i in order[cut:]),
        row_of={doc: i for i, doc in enumerate(task.doc_ids)},
        queries=student_queries,
        passages=student_passages,
        miner_queries=of_queries,
        miner_passages=of_passages,
        teacher=0.5 * dense + 0.5 * words,
    )


def word_piece_features(
    queries: list[str], passages: list[str], model: str
) -> tuple[Float[Tensor, "queries dim"], Float[Tensor, "docs dim"]]:
    """IDF-weighted means of input embeddings, each dimension at mean 0 and deviation 1 over the passages."""
    encoder: Any = load_text_encoder(model)
    table = encoder[0].model.get_input_embeddings().weight.detach()
    options: dict[str, Any] = {"add_special_tokens": False, "truncation": True, "max_length": 4 * TOKENS}
    of_passages = encoder.tokenizer(passages, **options)["input_ids"]
    of_queries = encoder.tokenizer(queries, **options)["input_ids"]
    frequency = torch.zeros(len(table))
    for ids in of_passages:
        frequency[list(set(ids))] += 1
    idf = torch.log((1 + len(passages)) / (1 + frequency))

    def means(rows: list[list[int]]) -> Tensor:
        found = torch.zeros(len(rows), table.shape[1])
        for i, ids in enumerate(rows):
            weight = idf[ids]
            found[i] = (weight[:, None] * table[ids]).sum(dim=0) / weight.sum().clamp(min=1e-6)
        return found

    values = means(of_passages)
    centre, spread = values.mean(dim=0), values.std(dim=0).clamp(min=1e-6)
    return (means(of_queries) - centre) / spread, (values - centre) / spread


@dataclass(frozen=True)
class Recipe:
    """The ingredients of an arm. `margin` names the filter, None is no hard negatives at all."""

    noise: float
    margin: str | None
    value: float = 0.0
    soft_weight: float = 0.0
    hard_weight: float = 1.0
    temperature: float = 0.5
    teacher: str = "fused"
    soft: str = "kl"


def annotated(b: Bench, noise: float, seed: int) -> Int[Tensor, " train"]:
    """Each training query's positive: its own passage or, with probability `noise`, one of the 20 passages
    that MiniLM puts nearest, right or wrong."""
    rng = np.random.default_rng([seed, 11])
    rows = np.array([b.row_of[query] for query in b.train])
    near = (b.miner_queries[rows] @ b.miner_passages.T).topk(NEIGHBOURS + 1, dim=1).indices.numpy()
    for i, row in enumerate(rows.tolist()):
        wrong = [doc for doc in near[i].tolist() if doc != row][:NEIGHBOURS]
        drawn, hit = wrong[int(rng.integers(NEIGHBOURS))], rng.random() < noise
        rows[i] = drawn if hit else row
    return torch.from_numpy(rows)


def mined(b: Bench, recipe: Recipe, positives: Tensor, seed: int, scale: Mapping[str, Any]) -> MinedRows:
    """The pool of negatives of every training query, from MiniLM's nearest passages."""
    margins: dict[str, Callable[[float], Margin]] = {
        "absolute": AbsoluteMargin,
        "relative": RelativeMargin,
        "adaptive": AdaptiveMargin,
    }
    made = margins.get(str(recipe.margin))
    # The control: easier negatives without looking at the positive.
    skipped = int(recipe.value) if recipe.margin == "skip" else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return mine_rows(
            b.miner_queries[[b.row_of[query] for query in b.train]],
            b.miner_passages,
            [[int(p)] for p in positives],
            None if made is None else made(recipe.value),
            num_negatives=int(scale["pool"]),
            range_min=skipped,
            range_max=int(scale["range_max"]) + skipped,
            seed=seed,
            most_emptied=1.0,
        )


def train_student(b: Bench, recipe: Recipe, seed: int, scale: Scale) -> tuple[Tensor, dict[str, float]]:
    """The matrix after training, and what mining and the teacher looked like."""
    positives = annotated(b, recipe.noise, seed)
    own = torch.tensor([b.row_of[query] for query in b.train])
    facts: dict[str, float] = {"wrong positives": float((positives != own).float().mean())}
    pool: Tensor | None = None
    if recipe.margin is not None:
        found = mined(b, recipe, positives, seed, scale)
        pool = found.rows
        facts |= pool_facts(b, found)
    loss = SoftLabelRankingLoss(
        None,  # type: ignore[arg-type]
        scale=float(scale["similarity"]),
        teacher_temperature=recipe.temperature,
        soft_weight=recipe.soft_weight,
        hard_weight=recipe.hard_weight,
        soft=recipe.soft,
        hard_targets="mask",
        in_batch_teacher=in_batch(b, recipe, positives),
    )
    weight = torch.eye(b.passages.shape[1]).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=float(scale["lr"]), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    size, count = int(scale["batch"]), int(scale["negatives"])
    for _ in range(int(scale["epochs"])):
        order = torch.randperm(len(own), generator=generator)
        for rows in order[: len(order) // size * size].split(size):
            docs = positives[rows, None]
            if pool is not None:
                lots = torch.rand(size, pool.shape[1], generator=generator)
                docs = torch.cat([docs, pool[rows].gather(1, lots.argsort(dim=1)[:, :count])], dim=1)
            else:  # an empty place: the loss wants a second column
                docs = torch.cat([docs, docs], dim=1)
            marks = torch.zeros(docs.shape) if pool is not None else torch.full(docs.shape, -1.0)
            marks[:, 0] = 1
            q = b.queries[own[rows]] @ weight.T
            d = b.passages[docs.flatten()] @ weight.T
            columns = [q, *d.reshape(size, docs.shape[1], -1).unbind(1)]
            given = b.teacher[own[rows][:, None], docs]
            labels = torch.stack([given, marks], dim=1)
            parts = loss.compute_loss_from_embeddings(columns, labels, (rows, docs))
            optimizer.zero_grad()
            torch.stack(list(parts.values())).sum().backward()
            optimizer.step()
    if recipe.soft_weight and pool is not None:
        facts["agreement"] = loss.agreement
    return weight.detach(), facts


def in_batch(b: Bench, recipe: Recipe, positives: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The teacher of any (training row, passage) pair: fused scores, or smoothed labels as the control."""
    own = torch.tensor([b.row_of[query] for query in b.train])

    def fused(rows: Tensor, docs: Tensor) -> Tensor:
        return b.teacher[own[rows]][:, docs]

    def smoothed(rows: Tensor, docs: Tensor) -> Tensor:
        n = docs.unique().numel()
        share = torch.where(positives[rows][:, None] == docs, 1 - SMOOTHING + SMOOTHING / n, SMOOTHING / n)
        return recipe.temperature * share.log()

    return {"fused": fused, "smoothed": smoothed}[recipe.teacher]


def pool_facts(b: Bench, found: MinedRows) -> dict[str, float]:
    """What is among the mined negatives: relatives linked by the author, the true passage, random fillers."""
    links = own = mined_count = 0
    for query, row, scores in zip(b.train, found.rows.tolist(), found.scores.tolist(), strict=True):
        grades = {b.row_of[doc]: grade for doc, grade in b.task.qrels[query].items()}
        for doc, score in zip(row, scores, strict=True):
            mined_count += score == score
            links += grades.get(doc, 0) in range(1, GOLD)
            own += grades.get(doc, 0) == GOLD
    places = found.rows.numel()
    report = found.report
    return {
        "dropped": report.dropped / report.candidates,
        "padded": report.padded / places,
        "linked negatives": links / places,
        "true passage as negative": own / places,
        "margin": float(np.nan_to_num(report.margin_quantiles[2])) if report.margin_quantiles else 0.0,
    }


def evaluate(b: Bench, weight: Tensor) -> dict[str, float]:
    """MRR@10 of the own passage over all test queries; graded nDCG@10 over those with links."""
    rows = [b.row_of[query] for query in b.test]
    q = F.normalize(b.queries[rows] @ weight.T, dim=1).numpy()
    d = F.normalize(b.passages @ weight.T, dim=1).numpy()
    return scored(b, dense_run(q, d, b.test, b.task.doc_ids, k=10))


def evaluate_scores(b: Bench, scores: Float[Tensor, "queries docs"]) -> dict[str, float]:
    """The same for a matrix of scores over all queries: the teacher's, or MiniLM's."""
    best = scores[[b.row_of[query] for query in b.test]].topk(10, dim=1).indices.tolist()
    run = {
        query: {b.task.doc_ids[doc]: float(10 - place) for place, doc in enumerate(row)}
        for query, row in zip(b.test, best, strict=True)
    }
    return scored(b, run)


def scored(b: Bench, run: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Both metrics of a run over the test queries."""

    def measured(ids: list[str]) -> RetrievalScores:
        return evaluate_run(run, b.task.of_queries(ids).qrels, recall_at=(10,), mrr_least_grade=GOLD)

    linked = [query for query in b.test if len(b.task.qrels[query]) > 1]
    return {"mrr@10": measured(list(b.test))["mrr@10"], "ndcg@10": measured(linked)["ndcg@10"]}


def freeze(scale: Scale) -> str:
    """A scale as a string that can key a cache."""
    return json.dumps(dict(scale), sort_keys=True)
