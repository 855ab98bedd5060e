"""Fine-tuning the whole encoder with sentence-transformers' own trainer and our loss."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradatim.tasks.retrieval import RetrievalTask

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

RATE = 3e-5
WARMUP = 0.1
BATCH = 16
PASSAGES = 8
MAX_POSITIVES = 4


def finetune(
    task: RetrievalTask,
    query_ids: Sequence[str],
    negatives: Mapping[str, Sequence[str]],
    *,
    model: str,
    objective: str,
    scale: float,
    seed: int,
    epochs: int,
    tokens: int | None,
    device: str,
    max_steps: int = -1,
    teacher: Mapping[str, Mapping[str, float]] | None = None,
) -> SentenceTransformer:
    """A fresh encoder trained on these queries; rows are drawn anew each epoch.

    With `teacher`, a score per query and document, soft labels are learnt beside the objective.
    """
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from gradatim.losses import MultiPositiveRankingLoss, SoftLabelRankingLoss
    from gradatim.models.text_encoder import load_text_encoder
    from gradatim.tasks.resampling import ResampleCallback

    encoder = load_text_encoder(model, device, tokens)
    # Else the trainer puts the user's own texts into the model card.
    encoder.model_card_data.generate_widget_examples = False
    options: dict[str, Any] = {"objective": objective, "scale": scale, "seed": seed}
    if teacher is None:
        loss: Any = MultiPositiveRankingLoss(encoder, **options)
    else:
        loss = SoftLabelRankingLoss(encoder, hard_targets="mask", **options)
    resample = ResampleCallback(
        task.queries,
        {query: task.relevant(query) for query in query_ids},
        task.corpus,
        negatives,
        n_passages=PASSAGES,
        max_positives=MAX_POSITIVES,
        select="first" if objective == "infonce" else "random",
        seed=seed,
        loss=loss,
        teacher=teacher,
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # A CPU has no memory to pin; the trainer's loader says so on every epoch.
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            max_steps=max_steps,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            warmup_steps=WARMUP,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            use_cpu=device == "cpu",
        )
        trainer = SentenceTransformerTrainer(
            model=encoder,
            args=arguments,
            train_dataset=resample.dataset,
            loss=loss,
            callbacks=[resample],
        )
        trainer.remove_callback(PrinterCallback)
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            trainer.train()
        finally:
            logging.disable(previous)
    return encoder.eval()


def encode(encoder: SentenceTransformer, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of the texts."""
    values = encoder.encode(list(texts), batch_size=32, show_progress_bar=False, normalize_embeddings=True)
    return np.asarray(values, dtype=np.float32)
