"""One step of the training loop: the gradient of its batches; and one evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from gradatim.bench.checkpoint import kept_rng


def gradient(
    acc: Accelerator,
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    stepper: Any,
    window: list[Any],
    clip: float | None,
    on_gradients: Callable[[], Any] | None,
    step: int,
) -> tuple[float, float | None]:
    """Leave the step's gradient in the parameters; its loss (over all processes) and norm (with `clip`)."""
    stepper.zero_grad()
    total = torch.zeros((), device=acc.device)
    for i, batch in enumerate(window):
        # Processes exchange gradients once per step, with the last of its batches.
        with nullcontext() if i + 1 == len(window) else acc.no_sync(model):
            with acc.autocast():
                loss = loss_fn(model, send_to_device(batch, acc.device)) / len(window)
            if loss.dim():
                raise ValueError(f"loss_fn must return a scalar, got the shape {tuple(loss.shape)}")
            acc.backward(loss)
        total += loss.detach()
    value = float(acc.reduce(total, "mean"))
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value} at step {step}: lower the learning rate or clip")
    clipper = acc.clip_grad_norm_
    if on_gradients is not None:
        acc.unscale_gradients()
        on_gradients()
        if acc.scaler is not None:  # Accelerate's would unscale once more
            clipper = nn.utils.clip_grad_norm_
    norm = None if clip is None else float(clipper(model.parameters(), clip))
    if norm is not None and acc.scaler is None and not math.isfinite(norm):
        raise FloatingPointError(f"the gradient's norm is {norm} at step {step}, the loss {value}")
    return value, norm


def evaluation(
    acc: Accelerator, model: nn.Module, stepper: Any, evaluate: Callable[[nn.Module], Any], step: int
) -> dict[str, float]:
    """Metrics of the model as it stands, leaving the random state and the mode of training alone."""
    with kept_rng(), torch.no_grad():
        stepper.eval()
        metrics = {name: float(v) for name, v in evaluate(acc.unwrap_model(model.eval())).items()}
    model.train()
    stepper.train()
    acc.log(metrics, step=step)
    return metrics
