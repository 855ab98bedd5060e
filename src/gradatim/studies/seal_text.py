"""Study 13 on real text: summaries of docstrings as queries, their bodies as passages; or a BEIR folder.

The generator learns from the paper's pairs: spans of the passages that answer the training queries, and spans
of every passage without a query. Test queries are those whose passages it saw only without a query.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradatim.bench import Curve, Outcome, Scale
from gradatim.bench.fit import fit
from gradatim.inference.ngram_scoring import KeyScoring, score_documents, unigram_weights_of
from gradatim.inference.seal_retriever import SEALRetriever
from gradatim.models.causal_lm import load_causal_lm
from gradatim.tasks.docstrings import docstring_retrieval
from gradatim.tasks.retrieval import RetrievalTask, bm25_run
from gradatim.tasks.span_pairs import Pair, PairCollator, SpanPairs

DATA_VARIABLE = "GRADATIM_BEIR"
PASSAGE_WORDS = 100
DEPTH = 100

SCORINGS: Mapping[str, KeyScoring] = {
    "intersective": KeyScoring(),
    "lm": KeyScoring(scoring="lm"),
    "lm+fm": KeyScoring(scoring="lm+fm"),
}


@dataclass(frozen=True)
class Material:
    """Passages, training queries with their passages, and test queries with theirs."""

    passages: Mapping[str, str]
    train: Sequence[tuple[str, str]]
    test: RetrievalTask


@functools.lru_cache(maxsize=4)
def docstring_material(seed: int, queries: int) -> Material:
    """One tenth of the objects test, at most `queries` of them; the others train."""
    task = docstring_retrieval()
    passages = {name: " ".join(text.split()[:PASSAGE_WORDS]) for name, text in task.corpus.items()}
    names = np.random.default_rng([seed, 3]).permutation(np.array(list(task.queries), dtype=object)).tolist()
    held = names[: len(names) // 10]
    test = RetrievalTask(
        "docstrings",
        {name: task.queries[name] for name in held[:queries]},
        passages,
        {name: {name: 1} for name in held[:queries]},
    )
    return Material(passages, [(task.queries[name], name) for name in names[len(held) :]], test)


def beir_material(folder: str, queries: int) -> Material:
    """A folder in BEIR layout: trained on its train judgments, tested on dev, else on test."""
    if not folder:
        raise ValueError(f"the paper profile trains on a folder in BEIR layout; set {DATA_VARIABLE}=FOLDER")
    from gradatim.compare.readers.beir import read_beir

    data = read_beir(folder, max_passages=10**9, max_queries=10**9)
    judged = next((data.qrels[split] for split in ("dev", "test") if split in data.qrels), None)
    if "train" not in data.qrels or judged is None:
        raise ValueError(f"{folder} needs qrels/train.tsv and qrels/dev.tsv (or test.tsv)")
    train = [
        (data.queries[query], doc)
        for query, grades in data.qrels["train"].items()
        for doc, grade in grades.items()
        if grade > 0
    ]
    kept = list(judged)[:queries]
    test = RetrievalTask(
        "beir", {q: data.queries[q] for q in kept}, data.corpus, {q: judged[q] for q in kept}
    )
    return Material(data.corpus, train, test)


def material_of(seed: int, scale: Scale) -> Material:
    """The docstrings, or the folder that the scale or GRADATIM_BEIR names."""
    from gradatim.studies.multi_positive_trainer import data_folder

    text = scale["text"]
    if text["source"] == "docstrings":
        return docstring_material(seed, int(text["queries"]))
    return beir_material(data_folder(scale), int(text["queries"]))


def load_generator(name: str) -> tuple[Any, Any]:
    """A causal or, where its configuration says so, an encoder-decoder language model with its tokenizer."""
    if name != "smollm2":
        from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.is_encoder_decoder:
            model = AutoModelForSeq2SeqLM.from_pretrained(
                name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )
            return model.eval(), AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return load_causal_lm(name)


def text_generator_trial(settings: Mapping[str, Any], seed: int, scale: Scale) -> Outcome:
    """Fine-tune (or not), decode every test query once, and rank by every way of scoring, and with BM25."""
    material, text = material_of(seed, scale), scale["text"]
    model, tokenizer = load_generator(str(text["model"]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    metrics: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    if settings["trained"]:
        losses = fine_tune(model, tokenizer, material, seed, text)
        metrics["training loss"] = float(np.mean(losses[-20:]))
        curves["loss"] = Curve(list(range(1, len(losses) + 1)), losses, "step", "training loss")
    retriever = SEALRetriever(
        model.eval(),
        tokenizer,
        num_beams=int(text["beams"]),
        ngram_length=int(text["ngram"]),
        prompt=None if settings["trained"] else str(text["zero_shot_prompt"]),
    ).fit(list(material.passages.values()), ids=list(material.passages))
    runs = generated_runs(retriever, material.test)
    lexical = bm25_run(material.test, DEPTH)
    runs["fusion with bm25"] = {q: fused([runs["intersective"][q], list(lexical[q])]) for q in lexical}
    for name, run in runs.items():
        _record(metrics, curves, name, reciprocal_ranks(material.test, run))
    headline = {m: metrics[f"{m}/intersective"] for m in ("mrr", "hits@1", "hits@10")}
    return Outcome({**metrics, **headline}, curves)


def text_lexical_trial(seed: int, scale: Scale) -> Outcome:
    """BM25 on the same test queries."""
    task = material_of(seed, scale).test
    found = reciprocal_ranks(task, {q: list(docs) for q, docs in bm25_run(task, DEPTH).items()})
    metrics: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    _record(metrics, curves, "bm25", found)
    return Outcome({m: metrics[f"{m}/bm25"] for m in ("mrr", "hits@1", "hits@10")}, curves)


def fine_tune(
    model: Any, tokenizer: Any, material: Material, seed: int, text: Mapping[str, Any]
) -> list[float]:
    """Train the last `layers` blocks (0: everything) on the paper's pairs; the loss of every step."""
    if text["layers"]:
        freeze_below(model, int(text["layers"]))
    data = SpanPairs(material.train, material.passages, n=int(text["spans"]), seed=seed)
    encoder_decoder = bool(model.config.is_encoder_decoder)
    collate = PairCollator(tokenizer, encoder_decoder=encoder_decoder, max_source=int(text["max_source"]))
    steps = int(text["steps"])
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=float(text["lr"]), weight_decay=0.01
    )
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
    )
    found = fit(
        model.train(),
        optimizer,
        _Epochs(data, int(text["batch"]), collate, seed),
        functools.partial(
            pair_loss, smoothing=float(text["label_smoothing"]), encoder_decoder=encoder_decoder
        ),
        scheduler=schedule,
        steps=steps,
        clip=float(text["clip"]),
        precision=text["precision"] or None,
        seed=seed,
    )
    return list(found.losses)


def pair_loss(
    model: nn.Module, batch: Mapping[str, Tensor], smoothing: float = 0.0, encoder_decoder: bool = False
) -> Tensor:
    """Label-smoothed cross-entropy of the target tokens."""
    labels = batch["labels"]
    if encoder_decoder:
        logits, wanted = model(**batch).logits, labels
    else:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits, wanted = model(**inputs, use_cache=False).logits[:, :-1], labels[:, 1:]
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), wanted.flatten(), label_smoothing=smoothing
    )


@dataclass(frozen=True)
class _Epochs:
    """Shuffled batches; every pass over them draws other spans."""

    data: SpanPairs
    batch: int
    collate: PairCollator
    seed: int

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = torch.Generator().manual_seed(self.seed + self.data.epoch)
        yield from DataLoader[Pair](
            self.data, self.batch, shuffle=True, generator=order, collate_fn=self.collate
        )
        self.data.set_epoch(self.data.epoch + 1)


def freeze_below(model: Any, layers: int) -> None:
    """Leave only the last `layers` blocks of a decoder-only model to be trained, and its last norm.

    Raises ValueError for more blocks than there are.
    """
    body = getattr(model, "model", None) or getattr(model, "transformer", None)
    blocks = getattr(body, "layers", None) or getattr(body, "h", None)
    if blocks is None or layers > len(blocks):
        have = "no list of blocks" if blocks is None else f"{len(blocks)} blocks"
        raise ValueError(f"layers={layers}: the model has {have}")
    model.requires_grad_(False)
    for block in blocks[-layers:]:
        block.requires_grad_(True)


def generated_runs(retriever: SEALRetriever, task: RetrievalTask) -> dict[str, dict[str, list[str]]]:
    """Ranked documents of every query by every way of scoring; the queries are decoded once."""
    ids = list(task.queries)
    runs: dict[str, dict[str, list[str]]] = {name: {} for name in SCORINGS}
    index = retriever.index_
    labels = index.labels
    assert labels is not None
    for begin in range(0, len(ids), retriever.batch_size):
        part = ids[begin : begin + retriever.batch_size]
        found = retriever.keys_of([task.queries[query] for query in part])
        for query, (keys, first) in zip(part, found, strict=True):
            weights = unigram_weights_of(index, first, retriever.unigrams)
            for name, scoring in SCORINGS.items():
                ranked = score_documents(index, keys, scoring, weights, DEPTH)
                runs[name][query] = [labels[scored.doc] for scored in ranked]
    return runs


def fused(rankings: Sequence[Sequence[str]], k: int = 60) -> list[str]:
    """Reciprocal rank fusion: sum over rankings of 1 / (k + rank), best first, ties by first appearance."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for place, doc in enumerate(ranking, 1):
            scores[doc] = scores.get(doc, 0.0) + 1 / (k + place)
    return sorted(scores, key=lambda doc: -scores[doc])


def reciprocal_ranks(task: RetrievalTask, run: Mapping[str, Sequence[str]]) -> np.ndarray:
    """1 / rank of the first relevant document of each query, 0 outside its ranking."""
    found = []
    for query in task.queries:
        relevant = set(task.relevant(query))
        place = next((i for i, doc in enumerate(run.get(query, ()), 1) if doc in relevant), None)
        found.append(1 / place if place else 0.0)
    return np.array(found)


def _record(metrics: dict[str, float], curves: dict[str, Curve], name: str, found: np.ndarray) -> None:
    metrics[f"mrr/{name}"] = float(found.mean())
    metrics[f"hits@1/{name}"] = float((found == 1).mean())
    metrics[f"hits@10/{name}"] = float((found >= 0.1).mean())
    curves[f"figure/queries {name}"] = Curve(
        list(range(len(found))), found.round(4).tolist(), "test query", "1 / rank"
    )
