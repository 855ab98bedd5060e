"""The place of training in its curriculum, told by any Hugging Face trainer."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class CurriculumCallback(TrainerCallback):
    """Sets `loss.position` before every optimizer step, from the trainer's own global step.

    `loss` is any object with a `curriculum` (a `LinearCurriculum` or None), such as PairwiseCurriculumLoss.
    It is given `position`, the count that its curriculum wants, and `step`, the global step. Nothing is
    counted here, so a run resumed from a checkpoint continues exactly where it was. A step counts
    processes x batch per process x accumulation samples, whatever the last batch of an epoch holds.

    Warns once where batch-mean weighting meets gradient accumulation: the mean then covers a part of the
    batch, which is another algorithm.
    """

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the trainer."""
        if getattr(self.loss, "weighting", "sample") == "batch" and args.gradient_accumulation_steps > 1:
            warnings.warn(
                "weighting='batch' with gradient_accumulation_steps="
                f"{args.gradient_accumulation_steps} takes the mean weight of each part of the "
                "batch; use weighting='sample', or no accumulation",
                UserWarning,
                stacklevel=2,
            )
        self._tell(args, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the trainer."""
        self._tell(args, state)

    def _tell(self, args: TrainingArguments, state: TrainerState) -> None:
        self.loss.step = state.global_step
        if self.loss.curriculum is not None:
            samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            self.loss.position = self.loss.curriculum.position(
                samples=state.global_step * samples, steps=state.global_step, epochs=float(state.epoch or 0.0)
            )
