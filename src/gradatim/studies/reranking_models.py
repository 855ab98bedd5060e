"""Paper 08 with rankers that read the text: ConvKNRM, a cross-encoder, the reader's own collection."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from gradatim.bench.study import Curve, Outcome, Scale
from gradatim.curricula.linear import LinearCurriculum
from gradatim.models.conv_knrm import ConvKNRM
from gradatim.models.reranker_training import (
    RerankerHistory,
    load_cross_encoder,
    rerank_run,
    train_reranker,
)
from gradatim.models.text_encoder import load_text_encoder
from gradatim.studies.reranking_ranker import Recipe, annotate, bench
from gradatim.tasks.retrieval import RetrievalTask, bm25_run, evaluate_run

DATA_VARIABLE = "GRADATIM_BEIR"


@lru_cache(maxsize=1)
def _encoder(name: str) -> Any:
    return load_text_encoder(name)


def curriculum_of(recipe: Recipe, settings: Mapping[str, Any]) -> LinearCurriculum | None:
    """The recipe's curriculum in the text rankers' iterations."""
    if recipe.heuristic is None:
        return None
    size = int(settings["steps"]) * int(settings["batch"])
    end = 0 if recipe.end <= 0 else int(settings["end"])
    return LinearCurriculum(end, iteration_size=size, anti=recipe.anti, normalize=recipe.normalize)


def conv_knrm_outcome(recipe: Recipe, seed: int, scale: Scale) -> Outcome:
    """MRR@10 of test queries after every iteration of training a ConvKNRM on this seed's judgements."""
    settings = dict(scale["conv_knrm"])
    model = ConvKNRM.from_sentence_transformer(
        _encoder(str(scale["model"])),
        int(settings["dim"]),
        filters=int(settings["filters"]),
        max_query_tokens=int(settings["query_tokens"]),
        max_doc_tokens=int(settings["doc_tokens"]),
        seed=seed,
    )
    return _course(model, recipe, seed, scale, settings)


def cross_encoder_outcome(recipe: Recipe, seed: int, scale: Scale) -> Outcome:
    """The same for a cross-encoder of which the last layers are trained."""
    settings = dict(scale["cross_encoder"])
    model = load_cross_encoder(str(scale["model"]), int(settings["tokens"]), seed=seed)
    freeze_below(model, int(settings["trainable_layers"]))
    return _course(model, recipe, seed, scale, settings)


def freeze_below(model: Any, trainable: int) -> None:
    """Leaves the last `trainable` transformer layers and the head of a cross-encoder to train."""
    body = getattr(model.model, model.model.base_model_prefix)
    layers = body.encoder.layer
    if not 1 <= trainable <= len(layers):
        raise ValueError(f"trainable_layers={trainable}: the encoder has {len(layers)} layers")
    for part in (body.embeddings, *layers[: len(layers) - trainable]):
        part.requires_grad_(False)


def _course(model: Any, recipe: Recipe, seed: int, scale: Scale, settings: Mapping[str, Any]) -> Outcome:
    b = bench(str(scale["model"]))
    shown = b.test[: int(settings["test_queries"])]
    # The curve is read off as validation is: after every iteration, on queries that are not trained on.
    history = train_reranker(
        model,
        b.task.queries,
        b.task.corpus,
        b.run,
        annotate(b, recipe.rho, seed),
        kind="pairwise" if recipe.loss == "pair" else "pointwise",
        curriculum=curriculum_of(recipe, settings),
        heuristic=recipe.heuristic or "norm",
        weighting=recipe.weighting,
        iterations=int(settings["iterations"]),
        steps_per_iteration=int(settings["steps"]),
        batch_size=int(settings["batch"]),
        learning_rate=float(settings["lr"]),
        validation_qrels={query: {query: 1} for query in shown},
        validate_top=int(settings["test_top"]),
        patience=10**6,
        seed=seed,
    )
    return _outcome(history, settings)


def _outcome(history: RerankerHistory, settings: Mapping[str, Any]) -> Outcome:
    curve = list(history.validation)
    early = curve[: int(settings["end"])]
    metrics = {"area_mrr": sum(early) / len(early), "final_mrr": curve[-1]}
    return Outcome(metrics, {"mrr": Curve(list(range(1, len(curve) + 1)), curve, "iteration", "MRR@10")})


# The paper's own scale -------------------------------------------------------------------------------------


def data_folder(scale: Scale) -> str:
    """The folder of the paper profile: the scale's own, else GRADATIM_BEIR, else ""."""
    return str(Path(folder)) if (folder := scale.get("data") or os.environ.get(DATA_VARIABLE, "")) else ""


@lru_cache(maxsize=1)
def beir_material(folder: str, train_queries: int, depth: int) -> tuple[RetrievalTask, RetrievalTask, Any]:
    """Train and test judgements of a folder in BEIR layout, and the BM25 run of their queries."""
    if not folder:
        raise ValueError(f"the paper profile trains on a folder in BEIR layout; set {DATA_VARIABLE}=FOLDER")
    from gradatim.compare.readers.beir import read_beir

    data = read_beir(folder, max_passages=10**8, max_queries=10**8)
    judged = next((data.qrels[s] for s in ("test", "dev") if s in data.qrels), None)
    if "train" not in data.qrels or judged is None:
        raise ValueError(
            f"{folder} needs qrels/train.tsv and qrels/test.tsv (or dev.tsv); it has other splits"
        )
    kept = dict(list(data.qrels["train"].items())[:train_queries])
    train = RetrievalTask("train", {q: data.queries[q] for q in kept}, data.corpus, kept)
    test = RetrievalTask("test", {q: data.queries[q] for q in judged}, data.corpus, judged)
    run = bm25_run(train, depth, keep_scores=True) | bm25_run(test, depth, keep_scores=True)
    return train, test, run


def beir_outcome(ranker: str, recipe: Recipe, seed: int, scale: Scale) -> Outcome:
    """One of the paper's configurations on a collection: trained, validated, tested on re-ranked BM25."""
    settings = dict(scale["collection"])
    train, test, run = beir_material(
        data_folder(scale), int(settings["train_queries"]), int(settings["depth"])
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if ranker == "conv-knrm":
        model: Any = ConvKNRM.from_sentence_transformer(
            _encoder(str(scale["model"])), int(settings["dim"]), seed=seed
        ).to(device)
    else:
        model = load_cross_encoder(str(settings["encoder"]), int(settings["tokens"]), device, seed)
    held_out = dict(list(train.qrels.items())[-int(settings["validation_queries"]) :])
    history = train_reranker(
        model,
        train.queries,
        train.corpus,
        {query: docs for query, docs in run.items() if docs},
        train.qrels,
        kind="pairwise" if recipe.loss == "pair" else "pointwise",
        curriculum=curriculum_of(recipe, settings),
        heuristic=recipe.heuristic or "norm",
        iterations=int(settings["iterations"]),
        steps_per_iteration=int(settings["steps"]),
        batch_size=int(settings["batch"]),
        learning_rate=float(settings["lr"]),
        encoder_learning_rate=float(settings["encoder_lr"]),
        validation_qrels=held_out,
        autocast=device == "cuda",
        seed=seed,
    )
    shown = {query: run[query] for query in test.queries if run[query]}
    found = rerank_run(model, test.queries, test.corpus, shown, int(settings["test_top"]))
    top = evaluate_run(found, test.qrels, recall_at=(10,), mrr_at=10)
    first = evaluate_run(found, test.qrels, recall_at=(10,), mrr_at=1)
    metrics = {
        "best_mrr": top["mrr@10"],
        "best_p1": first["mrr@1"],
        "best_iteration": float(history.kept + 1),
    }
    curve = Curve(
        list(range(1, len(history.validation) + 1)), list(history.validation), "iteration", "MRR@10"
    )
    return Outcome(metrics, {"validation": curve})
