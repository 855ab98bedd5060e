"""BM25's best passages put in a better order by a re-ranker that begins as the encoder's cosine.

How much it weighs beside BM25 is chosen before it is trained, on all queries that are not for testing; then
one linear map on the frozen encoder learns from pairs of BM25's passages, a relevant one and one that is not.
The iteration that was best on the held-out queries is kept, or the start where none was better.

`rerank` trains on pairs as they come; `rerank-curriculum`, equal in all else, weighs easy pairs first, as
BM25's scores tell them ("Training Curricula for Open Domain Answer Re-Ranking", 2020, arXiv 2004.14269).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from gradatim.bench.study import Scale
from gradatim.compare.comparison import Winner, freeze
from gradatim.compare.errors import DataError
from gradatim.compare.retrieval_head import as_sentence_transformer
from gradatim.compare.retrieval_source import load, vectors
from gradatim.tasks.retrieval import Run, bm25_run

if TYPE_CHECKING:
    from gradatim.models import EmbeddingRanker

DEPTH = 100
ITERATIONS, STEPS, BATCH = 20, 8, 16
CURRICULUM_END = 5
RATE = 1e-3
KEPT = "sentence-transformers format; blend.json says how much it weighs beside BM25"


@dataclass(frozen=True)
class Reranker:
    """The ranker, and its weight beside BM25."""

    ranker: EmbeddingRanker
    blend: float


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


def fit(scale: Scale, seed: int, train: Sequence[str], dev: Sequence[str], curriculum: bool) -> Reranker:
    """A map trained on `train`, its best iteration kept by `dev`."""
    from gradatim.curricula import LinearCurriculum
    from gradatim.models import choose_blend, score_run, train_reranker

    task = load(scale).task
    ranker = start(scale)
    run = {q: first_stage(scale)[q] for q in [*train, *dev] if first_stage(scale).get(q)}
    qrels = {q: task.qrels[q] for q in [*train, *dev] if task.relevant(q)}
    # Nothing is trained yet: every one of these queries is fit to choose with.
    blend = choose_blend(run, score_run(ranker, task.queries, task.corpus, run, DEPTH), qrels)
    train_reranker(
        ranker,
        task.queries,
        task.corpus,
        run,
        qrels,
        curriculum=LinearCurriculum(CURRICULUM_END, iteration_size=STEPS * BATCH) if curriculum else None,
        iterations=ITERATIONS,
        steps_per_iteration=STEPS,
        batch_size=BATCH,
        learning_rate=RATE,
        validation_qrels={q: qrels[q] for q in dev if q in qrels} or None,
        validate_top=DEPTH,
        keep_start=True,
        blend=blend,
        seed=seed,
    )
    return Reranker(ranker, blend)


def start(scale: Scale) -> EmbeddingRanker:
    """The ranker before training, with the vectors of every text of the collection."""
    from gradatim.models import EmbeddingRanker, load_text_encoder

    task, found = load(scale).task, vectors(scale)
    encoder = load_text_encoder(scale["model"], scale["device"], scale["tokens"])
    ranker = EmbeddingRanker(encoder, found.passages.shape[1])
    ranker.remember(list(task.queries.values()), found.queries)
    return ranker.remember(list(task.corpus.values()), found.passages)


def rank(fitted: Reranker, scale: Scale, queries: Sequence[str]) -> Run:
    """BM25's run of these queries in the order of the blend."""
    from gradatim.models import rerank_run

    task, run = load(scale).task, first_stage(scale)
    asked = {q: run[q] for q in queries if run.get(q)}
    return rerank_run(fitted.ranker, task.queries, task.corpus, asked, DEPTH, blend=fitted.blend)


def save(fitted: Reranker, scale: Scale, folder: Path) -> None:
    """The encoder with the map behind it, and the weight beside BM25."""
    ranker = fitted.ranker
    as_sentence_transformer(ranker.encoder, ranker.weight.detach()).save(str(folder))
    (folder / "blend.json").write_text(json.dumps({"reranker": fitted.blend}) + "\n", encoding="utf-8")


def code(won: Winner, scale: Scale, saved: Path | None) -> str:
    """The lines that re-rank with it, or that train it."""
    if saved is not None:
        return "\n".join(
            [
                "from sentence_transformers import SentenceTransformer",
                "",
                f"model = SentenceTransformer({str(saved)!r})",
                "# passages: what BM25 found for this query. blend.json holds the share of these scores",
                "# beside BM25's own, both at mean 0 and deviation 1: gradatim.models.blend_run.",
                "scores = model.similarity(model.encode(queries[:1]), model.encode(passages))[0]",
            ]
        )
    weighted = won.arm == "rerank-curriculum"
    return "\n".join(
        [
            *(["from gradatim.curricula import LinearCurriculum"] if weighted else []),
            "from gradatim.losses import PairwiseCurriculumLoss",
            "from gradatim.models import EmbeddingRanker, load_text_encoder",
            "",
            f"encoder = load_text_encoder({scale['model']!r})",
            "model = EmbeddingRanker(encoder, encoder.get_embedding_dimension())",
            f"loss = PairwiseCurriculumLoss(model, curriculum=LinearCurriculum({CURRICULUM_END}))"
            if weighted
            else "loss = PairwiseCurriculumLoss(model)",
            "# --save FOLDER keeps the model that was trained; gradatim.models.train_reranker trains one.",
        ]
    )
