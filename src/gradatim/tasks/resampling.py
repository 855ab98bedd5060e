"""Fresh passages for every epoch, inside the ordinary sentence-transformers trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradatim.tasks.annotations import Annotation, Row, Select, draw_rows, rows_to_dataset

if TYPE_CHECKING:
    from datasets import Dataset


class ResampleCallback(TrainerCallback):
    """Draws every query's positives and negatives anew at the start of each epoch.

    Give `callback.dataset` to the trainer as `train_dataset` and the callback in `callbacks`. Rows follow
    from (seed, epoch, query id), so a resumed run sees the rows it would have seen. With `loss`, its
    `set_epoch` is called as well. With `teacher` (a score per query and document) the label is [scores,
    labels], as `SoftLabelRankingLoss(hard_targets="mask")` reads it. Persistent data-loader workers would
    keep the first epoch's rows and are refused.
    """

    def __init__(
        self,
        queries: Mapping[str, str],
        positives: Annotation,
        corpus: Mapping[str, str],
        negatives: Mapping[str, Sequence[str]],
        n_passages: int = 8,
        max_positives: int = 4,
        select: Select = "random",
        seed: int = 0,
        loss: Any = None,
        teacher: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self.corpus = corpus
        self._draw = lambda epoch: draw_rows(
            positives, negatives, n_passages, max_positives, select, seed, epoch
        )
        self.loss = loss
        self.teacher = teacher
        self.rows: list[Row] = self._draw(0)
        dataset = rows_to_dataset(self.rows, queries, corpus)
        dataset = dataset.add_column("row", list(range(len(dataset))))
        dataset.set_transform(self._current)
        self.dataset: Dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Makes `dataset` yield the rows of this epoch."""
        self.rows = self._draw(epoch)
        if self.loss is not None:
            self.loss.set_epoch(epoch)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the trainer."""
        if args.dataloader_persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers=True keeps the first epoch's rows; set it to False to resample"
            )
        self.set_epoch(int(state.epoch or 0))

    def _current(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if "row" not in batch:  # a column was asked for by name: nothing to redraw
            return batch
        rows = [self.rows[i] for i in batch["row"]]
        columns: dict[str, list[Any]] = {"query": batch["query"]}
        for i in range(len(rows[0].docs)):
            columns[f"doc_{i + 1}"] = [self.corpus[row.docs[i]] for row in rows]
        columns["label"] = [list(row.labels) for row in rows]
        if self.teacher is not None:
            scores = [[float(self.teacher[row.query][doc]) for doc in row.docs] for row in rows]
            columns["label"] = [
                [s, [float(x) for x in row.labels]] for s, row in zip(scores, rows, strict=True)
            ]
        return columns
