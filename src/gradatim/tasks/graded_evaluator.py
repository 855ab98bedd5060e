"""Graded retrieval metrics inside the sentence-transformers trainer."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from gradatim.tasks.retrieval import RetrievalScores, RetrievalTask, dense_run, evaluate_run

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class GradedRetrievalEvaluator(SentenceEvaluator):
    """MRR, nDCG with graded gains and recall of a model on a `RetrievalTask`; a value per query is kept.

    `scores` holds the last call's `RetrievalScores`, for paired tests between models. `primary_metric` is
    `{name}_ndcg@{ndcg_at}`. Similarity is cosine, or the dot product with `normalize=False`. With
    `write_csv` and an output path each call adds a line to `{name}_results.csv`.
    """

    def __init__(
        self,
        task: RetrievalTask,
        recall_at: Sequence[int] = (10, 100),
        mrr_at: int = 10,
        ndcg_at: int = 10,
        mrr_least_grade: int = 1,
        query_prompt: str | None = None,
        corpus_prompt: str | None = None,
        batch_size: int = 32,
        normalize: bool = True,
        write_csv: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.recall_at = tuple(recall_at)
        self.mrr_at, self.ndcg_at, self.mrr_least_grade = mrr_at, ndcg_at, mrr_least_grade
        self.query_prompt, self.corpus_prompt = query_prompt, corpus_prompt
        self.batch_size = batch_size
        self.normalize = normalize
        self.write_csv = write_csv
        self.name = task.name if name is None else name
        self.primary_metric: str | None = f"ndcg@{ndcg_at}"
        self.scores: RetrievalScores | None = None

    def __call__(  # type: ignore[override]
        self,
        model: SentenceTransformer,
        output_path: str | None = None,
        epoch: int | float = -1,
        steps: int = -1,
    ) -> dict[str, float]:
        """Encodes queries and corpus, and gives each metric's mean over queries."""
        queries = self._encode(model, self.task.queries, self.query_prompt)
        corpus = self._encode(model, self.task.corpus, self.corpus_prompt)
        depth = max(*self.recall_at, self.mrr_at, self.ndcg_at)
        run = dense_run(queries, corpus, list(self.task.queries), self.task.doc_ids, depth)
        self.scores = evaluate_run(
            run, self.task.qrels, self.recall_at, self.mrr_at, self.ndcg_at, self.mrr_least_grade
        )
        metrics = self.scores.means()
        if output_path is not None and self.write_csv:
            self._append(Path(output_path), {"epoch": epoch, "steps": steps, **metrics})
        named: dict[str, float] = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, named, int(epoch), steps)
        return named

    def get_config_dict(self) -> dict[str, Any]:
        return {"task": self.task.name, "recall_at": list(self.recall_at), "normalize": self.normalize}

    def _encode(self, model: SentenceTransformer, texts: Mapping[str, str], prompt: str | None) -> np.ndarray:
        vectors = model.encode(
            list(texts.values()),
            prompt=prompt,
            batch_size=self.batch_size,
            normalize_embeddings=self.normalize,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)

    def _append(self, folder: Path, line: Mapping[str, int | float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}_results.csv"
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(line)
            writer.writerow(line.values())
