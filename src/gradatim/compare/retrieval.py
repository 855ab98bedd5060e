"""Which training objective for my retriever? On a BEIR folder or a JSON Lines file of queries.

Arms are the objectives of `gradatim.losses.multi_positive_loss`, each at its own scale (1 / temperature):
every seed trains at four scales on the training queries, chooses by MRR@10 on held-out ones, and is
judged once on the test queries, ranked against the whole corpus. Beside them: the untrained encoder and
BM25, the plain controls.

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
from gradatim.compare.comparison import Task, Winner, as_metrics, comparison_study
from gradatim.compare.retrieval_finetune import encode, finetune
from gradatim.compare.retrieval_head import apply_head, as_sentence_transformer, train_head
from gradatim.compare.retrieval_source import (
    Collection,
    Vectors,
    collection_digest,
    hard_negatives,
    load,
    unit_rows,
    vectors,
)
from gradatim.losses.multi_positive import OBJECTIVES
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

LABELS = {
    "infonce": "InfoNCE (first positive)",
    "joint-lh": "JointLH",
    "sum-marg-lh": "SumMargLH",
    "lse-pair": "LSEPair",
    "rand1-lh": "Rand1LH",
    "expected-rand1-lh": "expected Rand1LH",
}
ARMS: dict[str, Arm] = {
    **{name: Arm(name, {"objective": name}, label=LABELS[name]) for name in OBJECTIVES},
    "untrained": Arm("untrained", label="the untrained encoder", role="control"),
    "bm25": Arm("bm25", label="BM25", role="control"),
}

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
    best: tuple[float, float, dict[str, float]] | None = None
    for value in scale["scales"]:
        encoder = _trained(str(arm.settings["objective"]), value, seed, scale, split.train)
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
    steps = len(split.train) * scale["epochs"] * len(scales)
    return comparison_study(
        TASK,
        arms,
        metrics=METRICS,
        unit="",
        scale=scale,
        seeds=seeds,
        core_seconds=seeds * 7 * steps * (0.0005 if train == "head" else 0.3)
        + len(collection.task.corpus) * 0.03,
        overlap=collection.overlap,
        source=Path(data).name,
        remark=remark,
    )


def fit_winner(won: Winner, scale: Scale) -> Any:
    """The winner as a `SentenceTransformer`, trained on every query that is not held back for testing.

    None where BM25 won: it has no weights.
    """
    if won.arm == "bm25":
        return None
    encoder = load_text_encoder(scale["model"], scale["device"], scale["tokens"])
    if won.arm == "untrained":
        return encoder
    queries = load(scale).not_for_testing
    if scale["train"] == "full":
        return _finetuned(won.arm, won.settings["scale"], 0, scale, queries)
    return as_sentence_transformer(encoder, _head(won.arm, won.settings["scale"], 0, scale, queries))


def save_model(model: Any, folder: Path) -> None:
    """Write a `SentenceTransformer` into a folder, without its progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save(str(folder))
    finally:
        if shown:
            logging.enable_progress_bar()


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
    return "\n".join(
        [
            "from gradatim.losses import MultiPositiveRankingLoss",
            "from gradatim.models.text_encoder import load_text_encoder",
            "",
            f"model = load_text_encoder({scale['model']!r})",
            f"loss = MultiPositiveRankingLoss(model, objective={won.arm!r}, scale={won.settings['scale']!r})",
            how,
        ]
    )


def _trained(objective: str, value: float, seed: int, scale: Scale, queries: Sequence[str]) -> Encode:
    collection = load(scale)
    if scale["train"] == "head":
        found = vectors(scale)
        weight = _head(objective, value, seed, scale, queries)
        passages = apply_head(weight, found.passages)
        return lambda ids, kind: passages if kind == "passages" else apply_head(weight, found.of_queries(ids))
    encoder = _finetuned(objective, value, seed, scale, queries)
    texts = encode(encoder, list(collection.task.corpus.values()))
    return lambda ids, kind: (
        texts if kind == "passages" else encode(encoder, [collection.task.queries[q] for q in ids])
    )


def _head(objective: str, value: float, seed: int, scale: Scale, queries: Sequence[str]) -> Any:
    found: Vectors = vectors(scale)
    return train_head(
        load(scale).task,
        {q: found.queries[found.query_row[q]] for q in queries},
        found.passages,
        found.passage_row,
        hard_negatives(scale),
        objective=objective,
        scale=value,
        seed=seed,
        epochs=scale["epochs"],
    )


def _finetuned(objective: str, value: float, seed: int, scale: Scale, queries: Sequence[str]) -> Any:
    return finetune(
        load(scale).task,
        queries,
        hard_negatives(scale),
        model=scale["model"],
        objective=objective,
        scale=value,
        seed=seed,
        epochs=scale["epochs"],
        tokens=scale["tokens"],
        device=scale["device"],
    )


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
    title="Retrieval objectives compared",
    plain_words=(
        "Each arm trains the same encoder on the same queries with another contrastive objective, at its own"
        " best scale; test queries are ranked against the whole corpus."
    ),
    rooms=("losses",),
    arms=ARMS,
    default=tuple(OBJECTIVES),
    plain=("untrained", "bm25"),
    trial=trial,
    data=collection_digest,
)
