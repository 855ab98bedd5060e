"""What the training loop needs before its first step: settings that make sense, and an accelerator."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


def make_accelerator(
    precision: str | None, trackers: Sequence[Any], log_dir: str | os.PathLike[str]
) -> Accelerator:
    """An accelerator of the loop's own; ValueError where precision or trackers cannot be had here."""
    wanted = precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
        AcceleratorState._reset_state()
    for name in trackers:
        if name in LoggerType.list() and LoggerType(name) not in get_available_trackers():
            raise ValueError(f"tracker {str(name)!r} is not installed: pip install {name}")
    acc = Accelerator(mixed_precision=wanted, log_with=list(trackers) or None, project_dir=log_dir)
    if wanted == "fp16" and acc.device.type == "cpu":
        raise ValueError("precision 'fp16' needs a GPU; on the CPU use 'bf16'")
    if trackers:
        acc.init_trackers("gradatim")
    return acc


@contextmanager
def prepared(acc: Accelerator, model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[nn.Module, Any]]:
    """Model and optimizer as the accelerator trains them, in train mode.

    On leaving, the model is as it came but for its parameters; an optimizer that keeps averages has them in
    place, as for evaluation.
    """
    was_training, attributes = model.training, set(vars(model))
    wrapped, stepper = acc.prepare(model, optimizer)
    wrapped.train()
    stepper.train()
    try:
        yield wrapped, stepper
    finally:
        stepper.eval()
        acc.unwrap_model(wrapped, keep_fp32_wrapper=False).train(was_training)
        for left in {"forward", "_original_forward", "_is_accelerate_prepared"} - attributes:
            vars(model).pop(left, None)


def check_settings(
    steps: int | None,
    epochs: int | None,
    clip: float | None,
    scheduler: LRScheduler | None,
    checkpoint: Any,
    counts: tuple[int | None, ...],
) -> None:
    """Refuse settings of `fit` that cannot be right. `counts`: accumulate and the two `_every`."""
    if steps is None and epochs is None:
        raise ValueError("fit needs steps= or epochs=, got neither")
    names = ("steps", "epochs", "accumulate", "evaluate_every", "checkpoint_every")
    for name, count in zip(names, (steps, epochs, *counts), strict=True):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0 (math.inf only measures the norm), got {clip}")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError("ReduceLROnPlateau needs a metric: step it in evaluate, and name it in stateful=")
    if counts[-1] is not None and checkpoint is None:
        raise ValueError("checkpoint_every needs a folder: give checkpoint=")
