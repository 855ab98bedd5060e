"""Rows that change with the epoch and an evaluator with a value per query, inside the real trainer."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from transformers import TrainerControl, TrainerState

from gradatim.losses import MultiPositiveRankingLoss
from gradatim.tasks import GradedRetrievalEvaluator, ResampleCallback, RetrievalTask, draw_rows
from tiny_encoder import WORDS, tiny_encoder

CORPUS = {f"d{i}": f"{WORDS[i]} of the {WORDS[(3 * i) % 40]}" for i in range(40)}
QUERIES = {f"q{i}": f"given {WORDS[i]}" for i in range(8)}
POSITIVES = {f"q{i}": [f"d{i}", f"d{i + 8}", f"d{i + 16}"] for i in range(8)}
POOL = {f"q{i}": [f"d{j}" for j in range(24, 40)] for i in range(8)}
TASK = RetrievalTask("toy", QUERIES, CORPUS, {q: dict.fromkeys(docs, 1) for q, docs in POSITIVES.items()})


def arguments(folder, **options):
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # the trainer's loader on a CPU machine
def test_every_epoch_trains_on_its_own_rows(tmp_path):
    model = tiny_encoder(tmp_path)
    loss = MultiPositiveRankingLoss(model, objective="rand1-lh")
    options = {"n_passages": 4, "max_positives": 2, "seed": 3}
    callback = ResampleCallback(QUERIES, POSITIVES, CORPUS, POOL, **options, loss=loss)
    seen: list[tuple[int | None, str, str]] = []
    evaluator = GradedRetrievalEvaluator(TASK, recall_at=(5,))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments(tmp_path / "run", num_train_epochs=3, eval_strategy="epoch", warmup_steps=0),
        train_dataset=callback.dataset,
        loss=loss,
        evaluator=evaluator,
        callbacks=[callback],
    )
    kind = type(trainer.data_collator)

    class Recording(kind):
        def __call__(self, rows):
            seen.extend((loss.epoch, row["query"], row["doc_1"]) for row in rows)
            assert all(list(row) == ["query", "doc_1", "doc_2", "doc_3", "doc_4", "label"] for row in rows)
            return super().__call__(rows)

    trainer.data_collator.__class__ = Recording
    trainer.train()
    assert len(seen) == 24
    for epoch in range(3):
        drawn = draw_rows(POSITIVES, POOL, 4, 2, "random", 3, epoch)
        expected = {(QUERIES[row.query], CORPUS[row.docs[0]]) for row in drawn}
        assert {(query, doc) for e, query, doc in seen if e == epoch} == expected
    assert evaluator.scores is not None
    assert evaluator.scores.per_query["ndcg@10"].shape == (8,)
    logged = [entry for entry in trainer.state.log_history if "eval_toy_ndcg@10" in entry]
    assert len(logged) == 3


def test_persistent_workers_are_refused(tmp_path):
    callback = ResampleCallback(QUERIES, POSITIVES, CORPUS, POOL, 4, 2)
    persistent = arguments(tmp_path, dataloader_persistent_workers=True, dataloader_num_workers=1)
    with pytest.raises(ValueError, match="dataloader_persistent_workers"):
        callback.on_epoch_begin(persistent, TrainerState(), TrainerControl())


def test_evaluator_equals_the_metrics_of_its_embeddings(tmp_path):
    model = tiny_encoder(tmp_path)
    evaluator = GradedRetrievalEvaluator(TASK, recall_at=(5,), mrr_at=3, name="")
    metrics = evaluator(model, output_path=str(tmp_path / "out"), epoch=1, steps=2)
    queries, docs = (model.encode(list(t.values())) for t in (QUERIES, CORPUS))
    similarity = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        docs / np.linalg.norm(docs, axis=1, keepdims=True)
    ).T
    names = list(CORPUS)
    found = [len({names[j] for j in np.argsort(-row)[:5]} & set(p)) / 3
             for row, p in zip(similarity, POSITIVES.values(), strict=True)]  # fmt: skip
    np.testing.assert_allclose(evaluator.scores.per_query["recall@5"], found)
    assert metrics["recall@5"] == pytest.approx(np.mean(found))
    assert set(metrics) == {"mrr@3", "ndcg@10", "recall@5"}
    assert evaluator.primary_metric in metrics
    lines = (tmp_path / "out" / "_results.csv").read_text().splitlines()
    assert lines[0] == "epoch,steps,mrr@3,ndcg@10,recall@5"
    assert lines[1].startswith("1,2,")
