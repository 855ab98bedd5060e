"""BM25's best passages put in a better order by a ConvKNRM, trained on the training queries.

`rerank` trains on pairs as they come; `rerank-curriculum` weighs easy pairs first, as BM25's scores tell them
("Training Curricula for Open Domain Answer Re-Ranking", 2020, arXiv 2004.14269). Both keep the iteration that
was best on the held-out queries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradatim.bench.study import Scale
from gradatim.compare.comparison import Winner, freeze
from gradatim.compare.errors import DataError
from gradatim.compare.retrieval_source import load
from gradatim.tasks.retrieval import Run, bm25_run

if TYPE_CHECKING:
    from gradatim.models import ConvKNRM

DEPTH = 100
TOP = 30
ITERATIONS = 12
CURRICULUM_END = 6
KEPT = "gradatim.models.ConvKNRM.from_pretrained reads it; it re-ranks what BM25 finds"


def check(scale: Scale) -> None:
    """Raises DataError where BM25 gives no pair to learn from."""
    collection = load(scale)
    run = first_stage(scale)
    task = collection.task
    usable = sum(
        any(doc not in task.qrels[q] or task.qrels[q][doc] < 1 for doc in run.get(q, {}))
        and bool(task.relevant(q))
        for q in task.queries
    )
    if not usable:
        raise DataError(
            "BM25 finds no passage that is not relevant to any query",
            "leave out --arm rerank",
            file=scale["data"],
        )


def first_stage(scale: Scale) -> Run:
    """BM25's best 100 of every query with its scores, computed once per process."""
    return _first_stage(freeze(scale))


@lru_cache(maxsize=1)
def _first_stage(frozen: str) -> Run:
    return bm25_run(load(json.loads(frozen)).task, DEPTH, keep_scores=True)


def fit(scale: Scale, seed: int, train: Sequence[str], dev: Sequence[str], curriculum: bool) -> ConvKNRM:
    """A ConvKNRM on the encoder's word vectors, trained on `train`, its best iteration kept by `dev`."""
    from gradatim.curricula import LinearCurriculum
    from gradatim.models import ConvKNRM
    from gradatim.models.reranker_training import train_reranker

    task, run = load(scale).task, first_stage(scale)
    tokens: dict[str, Any] = {"max_doc_tokens": scale["tokens"]} if scale["tokens"] else {}
    model = ConvKNRM.from_sentence_transformer(scale["model"], seed=seed, **tokens)
    model.to(scale["device"])
    train_reranker(
        model,
        task.queries,
        task.corpus,
        {q: run[q] for q in [*train, *dev] if run.get(q)},
        {q: task.qrels[q] for q in [*train, *dev]},
        curriculum=LinearCurriculum(CURRICULUM_END) if curriculum else None,
        iterations=ITERATIONS,
        validation_qrels={q: task.qrels[q] for q in dev} or None,
        seed=seed,
    )
    return model


def rank(model: ConvKNRM, scale: Scale, queries: Sequence[str]) -> Run:
    """BM25's run of these queries with its best 30 in the model's order."""
    from gradatim.models.reranker_training import rerank_run

    task, run = load(scale).task, first_stage(scale)
    asked = {q: run[q] for q in queries if run.get(q)}
    return rerank_run(model, task.queries, task.corpus, asked, TOP)


def save(model: ConvKNRM, scale: Scale, folder: Path) -> None:
    """The model's own files."""
    model.save_pretrained(folder)


def code(won: Winner, scale: Scale, saved: Path | None) -> str:
    """The lines that re-rank with it, or that train it."""
    if saved is not None:
        return "\n".join(
            [
                "from gradatim.models import ConvKNRM",
                "",
                f"model = ConvKNRM.from_pretrained({str(saved)!r})",
                "best_first = model.rank(queries[0], passages)  # passages: what BM25 found for this query",
            ]
        )
    weighted = won.arm == "rerank-curriculum"
    return "\n".join(
        [
            *(["from gradatim.curricula import LinearCurriculum"] if weighted else []),
            "from gradatim.losses import PairwiseCurriculumLoss",
            "from gradatim.models import ConvKNRM",
            "",
            f"model = ConvKNRM.from_sentence_transformer({scale['model']!r})",
            f"loss = PairwiseCurriculumLoss(model, curriculum=LinearCurriculum({CURRICULUM_END}))"
            if weighted
            else "loss = PairwiseCurriculumLoss(model)",
            "# --save FOLDER keeps the model that was trained; gradatim.models.reranker_training trains one.",
        ]
    )
