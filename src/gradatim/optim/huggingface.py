"""Recording and refined schedules in the Hugging Face `Trainer`."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradatim.optim.ranks import assert_same_on_all_ranks
from gradatim.optim.recorder import GradNormRecorder
from gradatim.optim.refined_schedule import RefinedSchedule
from gradatim.optim.refinement import Norms, refine_schedule
from gradatim.optim.traces import GradNormTrace


class GradNormCallback(TrainerCallback):
    """Records gradient norms while a `Trainer` trains, and saves them when it is done.

    The norms are those that the optimizer sees, after the Trainer's clipping (`max_grad_norm`); the
    Trainer's own log holds L2 norms before clipping, which `read_trace` finds in `trainer_state.json`.

    Args:
        norm: 1 for Adam, 2 for SGD.
        path: `.json` or `.csv` to write at the end of training, on the first process; None writes nothing.
        every: record every so many optimizer steps.

    After training, `callback.trace` holds the `GradNormTrace`.
    """

    def __init__(
        self, norm: Literal[1, 2] = 1, path: str | os.PathLike[str] | None = None, every: int = 1
    ) -> None:
        self.norm = norm
        self.path = path
        self.every = every
        self.recorder: GradNormRecorder | None = None
        self.trace: GradNormTrace | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook the Trainer's optimizer."""
        optimizer = kwargs["optimizer"]
        while not isinstance(optimizer, Optimizer) or hasattr(optimizer, "optimizer"):
            # Accelerate wraps the optimizer; its hooks live on the one inside.
            optimizer = optimizer.optimizer
        self.recorder = GradNormRecorder(optimizer, self.norm, self.every)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Unhook, keep the trace, save it."""
        if self.recorder is None:
            return
        self.recorder.close()
        if self.recorder.norms().numel():
            batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            clip = args.max_grad_norm if args.max_grad_norm else None
            self.trace = self.recorder.trace(batch_size=batch, clip=clip)
            if self.path is not None and state.is_world_process_zero:
                self.trace.save(self.path)


class TableFactor:
    """factors[min(step, T-1)] as a callable whose values go into `LambdaLR`'s state."""

    def __init__(self, factors: np.ndarray) -> None:
        self.factors: list[float] = factors.tolist()

    def __call__(self, step: int) -> float:
        return self.factors[min(step, len(self.factors) - 1)]


def refined_lambda_lr(
    optimizer: Optimizer,
    trace: Norms | RefinedSchedule,
    *,
    total_steps: int | None = None,
    last_epoch: int = -1,
    **refinement: Any,
) -> LambdaLR:
    """A `LambdaLR` for `Trainer(optimizers=(optimizer, refined_lambda_lr(optimizer, trace)))`.

    `total_steps` has to be the Trainer's number of optimizer steps; None takes the trace's. `refinement`
    goes to `refine_schedule`. In a distributed run every rank has to call this (ranks are compared).
    Raises ValueError as `refine_schedule` does, and for a finished schedule of another length.
    """
    if isinstance(trace, RefinedSchedule):
        if refinement or total_steps not in (None, len(trace)):
            raise ValueError(f"the schedule is finished and has {len(trace)} steps; refine the trace instead")
        schedule = trace
    else:
        schedule = refine_schedule(trace, steps=total_steps, **refinement)
    assert_same_on_all_ranks(schedule.factors)
    return LambdaLR(optimizer, TableFactor(schedule.factors), last_epoch)
