"""Paper 10 with a real encoder: full or partial fine-tuning through the sentence-transformers trainer."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradatim.bench.study import Scale
from gradatim.models.text_encoder import load_text_encoder
from gradatim.tasks.retrieval import RetrievalTask, bm25_run, dense_run, evaluate_run, pooled_negatives

DATA_VARIABLE = "GRADATIM_BEIR"


@dataclass(frozen=True)
class Material:
    """What to train on and what to judge by; positives are in the annotator's order."""

    queries: Mapping[str, str]
    corpus: Mapping[str, str]
    positives: Mapping[str, Sequence[str]]
    negatives: Mapping[str, Sequence[str]]
    test: RetrievalTask
    gold: int


def docstring_material(model: str, seed: int) -> Material:
    """The docstring task with clean labels: gold and links."""
    from gradatim.studies.multi_positive_head import annotate, bench
    from gradatim.tasks.docstrings import GOLD

    b = bench(model)
    return Material(
        queries=b.task.queries,
        corpus=b.task.corpus,
        positives=annotate(b, "clean", seed, b.train),
        negatives=b.negatives,
        test=b.task.of_queries(b.test),
        gold=GOLD,
    )


@lru_cache(maxsize=1)
def beir_material(folder: str) -> Material:
    """A BEIR folder: trained on its train judgments (all grades above 0), judged on dev, else on test.

    Hard negatives are BM25's best passages that are not judged relevant, after any that the folder names.
    """
    if not folder:
        raise ValueError(f"the paper profile trains on a folder in BEIR layout; set {DATA_VARIABLE}=FOLDER")
    from gradatim.compare.readers.beir import read_beir

    data = read_beir(folder, max_passages=10**8, max_queries=10**8)
    judged = next((data.qrels[s] for s in ("dev", "test") if s in data.qrels), None)
    if "train" not in data.qrels or judged is None:
        raise ValueError(
            f"{folder} needs qrels/train.tsv and qrels/dev.tsv (or test.tsv); it has other splits"
        )
    train = data.qrels["train"]
    whole = RetrievalTask("train", {q: data.queries[q] for q in train}, data.corpus, train)
    pools = pooled_negatives(whole, [bm25_run(whole, 30)], 30)
    return Material(
        queries=data.queries,
        corpus=data.corpus,
        positives={query: whole.relevant(query) for query in train},
        negatives={q: [*data.negatives.get(q, ()), *pools[q]] for q in train},
        test=RetrievalTask("test", {q: data.queries[q] for q in judged}, data.corpus, judged),
        gold=1,
    )


def train_encoder(
    material: Material, objective: str, scale: Scale, seed: int, temperature_scale: float
) -> dict[str, float]:
    """Fine-tunes the encoder with an objective; recall@10, MRR@10 and nDCG@10 of the test queries."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.util import cos_sim, dot_score
    from transformers import PrinterCallback

    from gradatim.losses.multi_positive_ranking import MultiPositiveRankingLoss
    from gradatim.tasks.resampling import ResampleCallback

    settings = dict(scale["trainer"])
    cuda = torch.cuda.is_available()
    model = load_text_encoder(scale["model"], "cuda" if cuda else "cpu", int(settings["tokens"]))
    model.model_card_data.generate_widget_examples = False
    freeze_below(model, int(settings["trainable_layers"]))
    dot = settings["similarity"] == "dot"
    loss = MultiPositiveRankingLoss(
        model,
        objective=objective,
        scale=1.0 if dot else temperature_scale,
        similarity_fct=dot_score if dot else cos_sim,
        seed=seed,
    )
    single = objective == "infonce"
    rows = ResampleCallback(
        material.queries,
        material.positives,
        material.corpus,
        material.negatives,
        n_passages=int(settings["passages"]),
        max_positives=1 if single else int(settings["max_positives"]),
        select="first" if single else settings["select"],
        seed=seed,
        loss=loss,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=int(settings["steps"]) or -1,
            num_train_epochs=float(settings["epochs"]),
            per_device_train_batch_size=int(settings["batch"]),
            learning_rate=float(settings["lr"]),
            warmup_steps=float(settings["warmup"]),
            fp16=cuda,
            use_cpu=not cuda,
            seed=seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_drop_last=True,
        )
        callbacks: Any = [rows]
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=rows.dataset, loss=loss, callbacks=callbacks
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return judge(model, material)


def judge(model: Any, material: Material) -> dict[str, float]:
    """Metrics of an encoder on the material's test queries, over its whole corpus."""
    model.eval()
    quiet: dict[str, Any] = {"show_progress_bar": False, "normalize_embeddings": True}
    test = material.test
    queries = np.asarray(model.encode(list(test.queries.values()), **quiet), dtype=np.float32)
    passages = np.asarray(model.encode(list(test.corpus.values()), **quiet), dtype=np.float32)
    run = dense_run(queries, passages, list(test.queries), test.doc_ids, k=10)
    return evaluate_run(run, test.qrels, recall_at=(10,), mrr_least_grade=material.gold).means()


def freeze_below(model: Any, trainable: int) -> None:
    """Leaves the last `trainable` transformer layers and what follows them to train; 0 leaves all."""
    if trainable == 0:
        return
    network = model[0].auto_model
    layers = network.encoder.layer
    if not 1 <= trainable <= len(layers):
        raise ValueError(f"trainable_layers={trainable}: the encoder has {len(layers)} layers")
    for part in (network.embeddings, *layers[: len(layers) - trainable]):
        part.requires_grad_(False)


def data_folder(scale: Scale) -> str:
    """The folder of the paper profile: the scale's own, else GRADATIM_BEIR, else ""."""
    return str(Path(folder)) if (folder := scale.get("data") or os.environ.get(DATA_VARIABLE, "")) else ""
