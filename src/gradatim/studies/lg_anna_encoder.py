"""Paper 23 with a whole encoder through the sentence-transformers trainer: the ladder, and the in-context
task.

Standard profile: the last layers of MiniLM on the docstrings, its teacher joined by a cross-encoder. Paper
profile: a causal language model with low-rank adapters on a folder in BEIR layout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from gradatim.bench.study import Scale
from gradatim.curricula import BM25, RelativeMargin, TaskBatchSampler, TeacherEnsemble, mine_negatives
from gradatim.models.text_encoder import load_text_encoder
from gradatim.studies.lg_anna_prompts import SHOWN
from gradatim.studies.lg_anna_student import Bench, annotated, bench
from gradatim.studies.multi_positive_trainer import Material, beir_material, data_folder, freeze_below, judge
from gradatim.tasks.docstrings import GOLD, LINK
from gradatim.tasks.in_context_prompt import InContextPrompt
from gradatim.tasks.retrieval import RetrievalTask, dense_run, evaluate_run

EXAMPLES = 64

RELATIONS: Mapping[str, tuple[str, int]] = {
    "own": ("Given a one-line summary of a function, retrieve the documentation of that function.", GOLD),
    "related": (
        "Given a one-line summary of a function, retrieve the documentation of related functions.",
        LINK,
    ),
}


def ladder_scores(settings: Mapping[str, Any], seed: int, scale: Scale) -> dict[str, float]:
    """Trains one rung of the ladder; MRR@10 of the gold and nDCG@10 of the test queries."""
    folder = data_folder(scale) if scale["trainer"]["data"] == "beir" else ""
    if scale["trainer"]["data"] == "beir":
        material = beir_material(folder)
    else:
        material = docstring_material(bench(scale["model"]), float(settings["noise"]), seed)
    student = student_of(scale)
    ids = list(material.positives)
    data = mine_negatives(
        {query: material.queries[query] for query in ids},
        {query: material.positives[query] for query in ids},
        material.corpus,
        miner_of(scale["model"]),
        margin=None if settings["margin"] == "naive" else RelativeMargin(0.95),
        num_negatives=int(scale["trainer"]["negatives"]),
        range_max=40,
        sampling="random",
        max_positives=1,
        seed=seed,
        most_emptied=1.0,
    )
    if settings["margin"] is None:  # in-batch negatives alone
        data = data.map(lambda row: {"label": [x if x == 1 else -1 for x in row["label"]]})
    soft = float(settings["soft_weight"])
    if soft:
        data = teacher_of(scale, seed).annotate(data, keep_labels=True)
    return fit(student, data, soft, seed, scale, material)


def docstring_material(b: Bench, noise: float, seed: int) -> Material:
    """The docstring task with this seed's annotation errors."""
    rows = annotated(b, noise, seed).tolist()
    return Material(
        queries=b.task.queries,
        corpus=b.task.corpus,
        positives={q: [b.task.doc_ids[row]] for q, row in zip(b.train, rows, strict=True)},
        negatives={},
        test=b.task.of_queries(b.test),
        gold=GOLD,
    )


def fit(
    student: Any, data: Any, soft: float, seed: int, scale: Scale, material: Material
) -> dict[str, float]:
    """One run of the trainer with hard or hard and soft labels, then the test queries."""
    from gradatim.losses import MultiPositiveRankingLoss, SoftLabelRankingLoss

    similarity = float(scale["similarity"])
    if soft:
        loss: Any = SoftLabelRankingLoss(student, scale=similarity, soft_weight=soft, hard_targets="mask")
    else:
        loss = MultiPositiveRankingLoss(student, objective="infonce", scale=similarity)
    run_trainer(student, data, loss, seed, scale)
    return judge(student, material)


def context_scores(kind: str, seed: int, scale: Scale) -> dict[str, float]:
    """The in-context task: one query text, two relations, told apart by nothing but the prompt.

    `kind` is none, instruction or examples. Gives nDCG@10 under the right and the wrong prompt, averaged over
    the relations ("own documentation": the gold passage; "related functions": the links).
    """
    from datasets import DatasetDict

    from gradatim.losses import MultiPositiveRankingLoss
    from gradatim.tasks.in_context_collator import InContextCollator

    b = bench(scale["model"])
    student = prompted_student(scale)
    linked = [query for query in b.train if len(b.task.qrels[query]) > 1]
    asked = [query for query in b.test if len(b.task.qrels[query]) > 1]
    data, prompts, wanted = {}, {}, {}
    for name, (task, grade) in RELATIONS.items():
        positives = {q: [d for d, g in b.task.qrels[q].items() if g == grade] for q in linked}
        wanted[name] = {q: {d: 1 for d, g in b.task.qrels[q].items() if g == grade} for q in asked}
        data[name] = mine_negatives(
            {q: b.task.queries[q] for q in linked},
            positives,
            b.task.corpus,
            miner_of(scale["model"]),
            margin=None,
            num_negatives=int(scale["trainer"]["negatives"]),
            range_max=40,
            sampling="random",
            max_positives=1,
            seed=seed,
        )
        # A related function may be a test query itself; its passage is not shown as an example.
        tested = set(asked)
        pairs = [(q, d) for q in linked for d in positives[q] if d not in tested][:EXAMPLES]
        prompts[name] = InContextPrompt(
            task,
            [(b.task.queries[q], b.task.corpus[d]) for q, d in pairs],
            k=2 if kind == "examples" else 0,
            max_example_tokens=SHOWN,
            ids=pairs,
            tokenizer=student.tokenizer,
        )
        prompts[name].check_leak(asked)
    collator = None
    if kind != "none":
        collator = InContextCollator(student.preprocess, in_context=prompts, seed=seed)
    losses = {
        name: MultiPositiveRankingLoss(student, objective="infonce", scale=float(scale["similarity"]))
        for name in RELATIONS
    }
    run_trainer(student, DatasetDict(data), losses, seed, scale, collator)
    student.eval()
    found = {"right": 0.0, "wrong": 0.0}
    quiet: dict[str, Any] = {"show_progress_bar": False, "normalize_embeddings": True}
    docs = student.encode(list(b.task.corpus.values()), **quiet)
    names = list(RELATIONS)
    for told, name in enumerate(names):
        prefix = None if kind == "none" else prompts[name].prefix(max_tokens=student.max_seq_length)
        queries = student.encode([b.task.queries[q] for q in asked], prompt=prefix, **quiet)
        run = dense_run(queries, docs, asked, b.task.doc_ids, k=10)
        for expected, other in enumerate(names):
            score = evaluate_run(run, wanted[other], recall_at=(10,))["ndcg@10"]
            found["right" if told == expected else "wrong"] += score / len(names)
    return {"ndcg@10": found["right"], **found, "difference": found["right"] - found["wrong"]}


def run_trainer(student: Any, data: Any, loss: Any, seed: int, scale: Scale, collator: Any = None) -> None:
    """The library's own trainer, without files or progress bars."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from transformers import PrinterCallback

    settings = scale["trainer"]
    cuda = torch.cuda.is_available()
    sampler: Any = TaskBatchSampler.of_datasets
    student.model_card_data.generate_widget_examples = False
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=int(settings["steps"]) or -1,
            num_train_epochs=float(settings["epochs"]),
            per_device_train_batch_size=int(settings["batch"]),
            learning_rate=float(settings["lr"]),
            warmup_steps=float(settings["warmup"]),
            multi_dataset_batch_sampler=sampler,
            bf16=cuda,
            use_cpu=not cuda,
            dataloader_pin_memory=cuda,
            seed=seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_drop_last=True,
        )
        trainer = SentenceTransformerTrainer(
            model=student, args=arguments, train_dataset=data, loss=loss, data_collator=collator
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def student_of(scale: Scale) -> Any:
    """A fresh student: MiniLM with its last layers trainable, or a causal language model with adapters."""
    settings = scale["trainer"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if settings["backbone"]:
        from gradatim.models import causal_embedder

        return causal_embedder(
            str(settings["backbone"]),
            max_seq_length=int(settings["tokens"]),
            device=device,
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            lora_rank=int(settings["lora_rank"]) or None,
        )
    model = load_text_encoder(scale["model"], device, int(settings["tokens"]))
    freeze_below(model, int(settings["trainable_layers"]))
    return model


def prompted_student(scale: Scale) -> Any:
    """The student with a mean over the query's own tokens, and room for examples."""
    from sentence_transformers import SentenceTransformer

    from gradatim.models import InstructionPooling

    model = student_of(scale)
    model.max_seq_length = int(scale["trainer"]["context_tokens"])
    pooling = InstructionPooling(model[0].get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[model[0], pooling], device=str(model.device))


@lru_cache(maxsize=1)
def miner_of(model: str) -> Any:
    """The encoder that mines and teaches; its weights stay as they come."""
    return load_text_encoder(model)


@lru_cache(maxsize=1)
def reranker(model: str, steps: int, batch: int, tokens: int, seed: int) -> Any:
    """A cross-encoder trained for some steps from the encoder's own weights, on clean training pairs."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from transformers import PrinterCallback

    b = bench(model)
    with tempfile.TemporaryDirectory() as folder:
        encoder: Any = load_text_encoder(model)
        encoder[0].save(folder)
        cross = CrossEncoder(folder, num_labels=1, max_length=2 * tokens, device="cpu")
        data = mine_negatives(
            {q: b.task.queries[q] for q in b.train},
            {q: [q] for q in b.train},
            b.task.corpus,
            miner_of(model),
            num_negatives=1,
            range_max=40,
            sampling="random",
            seed=seed,
        )
        pairs = Dataset.from_dict(
            {
                "query": [*data["query"], *data["query"]],
                "passage": [*data["doc_1"], *data["doc_2"]],
                "label": [1.0] * len(data) + [0.0] * len(data),
            }
        )
        arguments = CrossEncoderTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=1e-4,
            warmup_steps=0.1,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = CrossEncoderTrainer(
            model=cross, args=arguments, train_dataset=pairs, loss=BinaryCrossEntropyLoss(cross)
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return cross.eval()


def teacher_of(scale: Scale, seed: int) -> TeacherEnsemble:
    """BM25, the miner, and a cross-encoder where the scale trains one."""
    settings = scale["trainer"]
    rerankers = []
    if settings["reranker_steps"]:
        rerankers.append(
            reranker(
                scale["model"],
                int(settings["reranker_steps"]),
                int(settings["batch"]),
                int(settings["tokens"]),
                seed,
            )
        )
    if settings["reranker"]:
        from sentence_transformers import CrossEncoder

        rerankers.append(CrossEncoder(str(settings["reranker"]), trust_remote_code=False))
    corpus: RetrievalTask | Material = (
        beir_material(data_folder(scale)) if settings["data"] == "beir" else bench(scale["model"]).task
    )
    return TeacherEnsemble([BM25(), miner_of(scale["model"])], rerankers).fit(list(corpus.corpus.values()))
