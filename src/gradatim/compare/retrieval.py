"""Which training objective for my retriever? On a BEIR folder or a JSON Lines file of queries.

Arms are the objectives of `gradatim.losses.multi_positive_loss`, each at its own scale (1 / temperature):
every seed trains at four scales on the training queries, chooses by MRR@10 on held-out ones, and is
judged once on the test queries, ranked against the whole corpus. `margin-mined` and `soft-labels` train
InfoNCE with negatives mined behind a margin, the latter also on a teacher's grades. Systems of another kind
stand beside them, each with settings of its own: `binary` (codes of paragraph vectors), `rerank` and
`rerank-curriculum` (BM25's best in a better order), `seal` (a language model that writes search keys).
The plain controls are the untrained encoder and BM25.

`train="head"` (default) freezes the encoder and trains one linear map on its embeddings, in seconds;
`train="full"` fine-tunes every weight with sentence-transformers' trainer.

Where the files name train and test queries, the seeds repeat the training and the interval speaks of its
randomness. Elsewhere the seeds are folds over the queries, and the interval allows for their overlap.

    from gradatim.compare import retrieval
    study = retrieval.comparison("my-beir-folder", ["infonce", "lse-pair"])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gradatim.bench.study import Arm, Better, Outcome, Scale, Study
from gradatim.compare import retrieval_binary, retrieval_rerank, retrieval_seal
from gradatim.compare.comparison import Task, Winner, as_metrics, choose_arms, comparison_study
from gradatim.compare.retrieval_arms import ARMS, DEFAULT, SYSTEMS, cost, loss_code
from gradatim.compare.retrieval_finetune import encode, finetune
from gradatim.compare.retrieval_head import apply_head, as_sentence_transformer, train_head
from gradatim.compare.retrieval_mined import mined_negatives, teacher_grades
from gradatim.compare.retrieval_source import (
    Collection,
    Vectors,
    collection_digest,
    hard_negatives,
    load,
    unit_rows,
    vectors,
)
from gradatim.models.text_encoder import DEFAULT_ENCODER, check_text_encoder, load_text_encoder
from gradatim.tasks.retrieval import Run, bm25_run, dense_run, evaluate_run

METRICS: tuple[tuple[str, Better], ...] = (
    ("MRR@10", "higher"),
    ("nDCG@10", "higher"),
    ("Recall@100", "higher"),
)
SCALES = (5.0, 10.0, 20.0, 40.0)
EPOCHS = {"head": 6, "full": 1}
RANKED = 100

Encode = Callable[[Sequence[str], Literal["queries", "passages"]], np.ndarray]
"""Unit vectors of queries or passages by their ids."""


def trial(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """One seed of one arm: train at each scale, choose on held-out queries, judge on the test queries."""
    collection = load(scale)
    split = collection.split(seed)
    if arm.name == "bm25":
        run = bm25_run(collection.task, k=RANKED, query_ids=split.test)
        return Outcome(_scores(run, collection, split.test))
    if arm.name == "untrained":
        return Outcome(_scores(_ranked(_untrained(scale), collection, split.test), collection, split.test))
    if arm.name in SYSTEMS:
        system = _fit_system(arm.name, seed, scale, split.train, split.dev)
        return Outcome(_scores(_system_run(arm.name, system, scale, split.test), collection, split.test))
    best: tuple[float, float, dict[str, float]] | None = None
    for value in scale["scales"]:
        encoder = _trained(arm.name, value, seed, scale, split.train)
        chosen_by = _scores(_ranked(encoder, collection, split.dev), collection, split.dev)["MRR@10"]
        if best is None or chosen_by > best[0]:
            judged = _scores(_ranked(encoder, collection, split.test), collection, split.test)
            best = (chosen_by, value, judged)
    assert best is not None
    return Outcome({**best[2], **as_metrics({"scale": best[1]})})


def comparison(
    data: str | Path,
    arms: Sequence[str] = (),
    *,
    seeds: int = 5,
    train: Literal["head", "full"] = "head",
    model: str = DEFAULT_ENCODER,
    scales: Sequence[float] = SCALES,
    epochs: int | None = None,
    tokens: int | None = 128,
    device: str = "cpu",
    max_passages: int = 100_000,
    max_queries: int = 20_000,
    sample_seed: int = 0,
) -> Study:
    """The study that compares objectives (the first arm is the baseline) on a collection.

    `data` is a BEIR folder or a JSON Lines file; above `max_passages` and `max_queries` a seeded sample
    is used (judged passages always stay), and the study says so. `tokens` truncates texts.
    Raises DataError for data or arms that cannot be used, EncoderUnavailableError for the model.
    """
    check_text_encoder(model)
    scale: dict[str, Any] = {
        "data": str(Path(data).absolute()),
        "train": train,
        "model": str(Path(model).absolute()) if Path(model).is_dir() else model,
        "scales": [float(s) for s in scales],
        "epochs": EPOCHS[train] if epochs is None else epochs,
        "tokens": tokens,
        "device": device,
        "max_passages": max_passages,
        "max_queries": max_queries,
        "sample_seed": sample_seed,
    }
    collection = load(scale)
    split = collection.split(0)
    how = "as the files split them" if collection.fixed else "5-fold over the queries"
    what = "a linear map on the frozen encoder" if train == "head" else "the whole encoder fine-tuned"
    spoken = (
        " Seeds repeat the training on one split: the interval holds its randomness, not the queries'."
        if collection.fixed
        else ""
    )
    remark = (
        f"{len(collection.task.corpus):,} passages; {len(split.train)} training, {len(split.dev)} held-out"
        f" and {len(split.test)} test queries, {how}; {what} ({model}), scale chosen from"
        f" {', '.join(f'{s:g}' for s in scales)}.{spoken} {collection.data.sampled}"
    ).strip()
    named = choose_arms(TASK, arms)
    for arm in (*named[0], *named[1]):
        if arm.name == "binary":
            retrieval_binary.check(scale)
        if arm.name in ("rerank", "rerank-curriculum"):
            retrieval_rerank.check(scale)
    return comparison_study(
        TASK,
        arms,
        metrics=METRICS,
        unit="",
        scale=scale,
        seeds=seeds,
        core_seconds=cost([arm.name for part in named for arm in part], seeds, scale, collection, split),
        overlap=collection.overlap,
        source=Path(data).name,
        remark=remark,
    )


def fit_winner(won: Winner, scale: Scale) -> Any:
    """The winner, trained on every query that is not held back for testing: a `SentenceTransformer`, or a
    ParagraphVector, re-ranker or SEALRetriever where one of these won.

    None where BM25 won: it has no weights.
    """
    if won.arm == "bm25":
        return None
    if won.arm in SYSTEMS:
        # Held-out queries choose when to stop, as they did in the comparison.
        split, free = load(scale).split(0), load(scale).not_for_testing
        dev = [query for query in split.dev if query in set(free)]
        return _fit_system(won.arm, 0, scale, [query for query in free if query not in set(dev)], dev)
    encoder = load_text_encoder(scale["model"], scale["device"], scale["tokens"])
    if won.arm == "untrained":
        return encoder
    queries = load(scale).not_for_testing
    if scale["train"] == "full":
        return _finetuned(won.arm, won.settings["scale"], 0, scale, queries)
    return as_sentence_transformer(encoder, _head(won.arm, won.settings["scale"], 0, scale, queries))


def save_model(model: Any, folder: Path, won: Winner | None = None, scale: Scale | None = None) -> str:
    """Write a winner into a folder; what can read it again.

    A `SentenceTransformer` needs no more than itself; the other kinds are named by `won`.
    """
    if won is not None and scale is not None and won.arm in SYSTEMS:
        part = _SYSTEM[won.arm]
        part.save(model, scale, folder)
        return str(part.KEPT)
    from gradatim.models.quiet import quietly

    with quietly():
        model.save(str(folder))
    return "sentence-transformers format"


def winner_code(won: Winner, scale: Scale, saved: Path | None = None) -> str:
    """The lines that use the winner: the saved model where there is one, else the loss at its scale."""
    if won.arm == "bm25":
        return "\n".join(
            [
                "import bm25s",
                "",
                "index = bm25s.BM25(k1=1.4, b=0.4)",
                'index.index(bm25s.tokenize(passages, stopwords="en"))',
                'found, scores = index.retrieve(bm25s.tokenize(queries, stopwords="en"), k=10)',
            ]
        )
    if won.arm in SYSTEMS:
        return str(_SYSTEM[won.arm].code(won, scale, saved))
    if saved is not None or won.arm == "untrained":
        name = str(saved) if saved is not None else scale["model"]
        load_line = f"model = SentenceTransformer({name!r})"
        if saved is None and name == DEFAULT_ENCODER:
            load_line = f"model = load_text_encoder({name!r})"
            return f"from gradatim.models.text_encoder import load_text_encoder\n\n{load_line}"
        return f"from sentence_transformers import SentenceTransformer\n\n{load_line}"
    how = (
        "# Measured: a linear map on the frozen encoder. --save FOLDER keeps it as a SentenceTransformer;\n"
        "# --train full, or these lines, train every weight with the same loss."
        if scale["train"] == "head"
        else "# --save FOLDER keeps the model that was trained."
    )
    return loss_code(won.arm, scale["model"], won.settings["scale"], how)


def _trained(arm: str, value: float, seed: int, scale: Scale, queries: Sequence[str]) -> Encode:
    collection = load(scale)
    if scale["train"] == "head":
        found = vectors(scale)
        weight = _head(arm, value, seed, scale, queries)
        passages = apply_head(weight, found.passages)
        return lambda ids, kind: passages if kind == "passages" else apply_head(weight, found.of_queries(ids))
    encoder = _finetuned(arm, value, seed, scale, queries)
    texts = encode(encoder, list(collection.task.corpus.values()))
    return lambda ids, kind: (
        texts if kind == "passages" else encode(encoder, [collection.task.queries[q] for q in ids])
    )


def _material(arm: str, scale: Scale) -> dict[str, Any]:
    """The arm's negatives, and the teacher's grades where it learns from them."""
    settings = ARMS[arm].settings
    grades = teacher_grades(scale) if settings.get("soft") else None
    pools = mined_negatives(scale) if settings.get("mined") else hard_negatives(scale)
    return {"negatives": pools, "teacher": grades, "objective": str(settings["objective"])}


def _head(arm: str, value: float, seed: int, scale: Scale, queries: Sequence[str]) -> Any:
    found: Vectors = vectors(scale)
    return train_head(
        load(scale).task,
        {q: found.queries[found.query_row[q]] for q in queries},
        found.passages,
        found.passage_row,
        scale=value,
        seed=seed,
        epochs=scale["epochs"],
        **_material(arm, scale),
    )


def _finetuned(arm: str, value: float, seed: int, scale: Scale, queries: Sequence[str]) -> Any:
    return finetune(
        load(scale).task,
        queries,
        model=scale["model"],
        scale=value,
        seed=seed,
        epochs=scale["epochs"],
        tokens=scale["tokens"],
        device=scale["device"],
        **_material(arm, scale),
    )


_SYSTEM: dict[str, Any] = {
    "binary": retrieval_binary,
    "rerank": retrieval_rerank,
    "rerank-curriculum": retrieval_rerank,
    "seal": retrieval_seal,
}


def _fit_system(arm: str, seed: int, scale: Scale, train: Sequence[str], dev: Sequence[str]) -> Any:
    if arm == "binary":
        return retrieval_binary.fit(scale, seed)
    if arm == "seal":
        return retrieval_seal.fit(scale, seed, train)
    return retrieval_rerank.fit(scale, seed, train, dev, arm == "rerank-curriculum")


def _system_run(arm: str, system: Any, scale: Scale, queries: Sequence[str]) -> Run:
    if arm == "binary":
        return retrieval_binary.rank(system, scale, queries, RANKED)
    if arm == "seal":
        return retrieval_seal.rank(system, scale, queries, RANKED)
    return retrieval_rerank.rank(system, scale, queries)


def _untrained(scale: Scale) -> Encode:
    found = vectors(scale)
    return lambda ids, kind: unit_rows(found.passages if kind == "passages" else found.of_queries(ids))


def _ranked(encoder: Encode, collection: Collection, queries: Sequence[str]) -> Run:
    ids = collection.task.doc_ids
    return dense_run(encoder(queries, "queries"), encoder(ids, "passages"), queries, ids, k=RANKED)


def _scores(run: Run, collection: Collection, queries: Sequence[str]) -> dict[str, float]:
    qrels = {query: collection.task.qrels[query] for query in queries}
    found = evaluate_run(run, qrels, recall_at=(RANKED,))
    return {
        "MRR@10": found["mrr@10"],
        "nDCG@10": found["ndcg@10"],
        "Recall@100": found["recall@100"],
    }


TASK = Task(
    slug="compare-retrieval",
    title="Retrieval compared",
    plain_words=(
        "Each objective trains the same encoder on the same queries, at its own best scale; re-rankers, codes"
        " and generated keys are systems of their own. Test queries are ranked against the whole corpus."
    ),
    rooms=("losses", "curricula", "models", "inference"),
    arms=ARMS,
    default=DEFAULT,
    plain=("untrained", "bm25"),
    trial=trial,
    data=collection_digest,
)
