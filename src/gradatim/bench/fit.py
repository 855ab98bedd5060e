"""The one training loop, on Hugging Face Accelerate.

The same call trains in one process, under `torchrun` or `accelerate launch` (DDP, FSDP), in float32 or mixed
precision, and resumes from a checkpoint to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from gradatim.bench.checkpoint import FitResult, Position, rng_state, save, set_rng_state, usable

FLUSH = 50


class NonFiniteLossError(ArithmeticError):
    """The loss stopped being a number; the message names the step."""


@dataclass(frozen=True)
class Step:
    """What `on_step` sees after an optimizer step: `loss` is the mean over all examples of the step,
    `grad_norm` the norm before clipping (None without clipping)."""

    step: int
    loss: Tensor
    grad_norm: Tensor | None
    lr: float


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    *,
    scheduler: LRScheduler | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    precision: Literal["no", "fp16", "bf16"] = "no",
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    trackers: Sequence[str] = (),
    on_step: Callable[[Step], None] | None = None,
    accelerator: Accelerator | None = None,
) -> FitResult:
    """Train `model` in place.

    `loss_fn(model, batch)` returns the mean loss over the batch. One *step* is one optimizer step over
    `accumulate` batches per process; the scheduler advances once per step, whatever the number of processes.
    Stops after `steps` steps or `epochs` passes (one of the two). `clip` bounds the L2 norm of the gradient.
    `evaluate(model)` runs in eval mode every `evaluate_every` steps and at the end. `checkpoint` is a folder:
    written every `checkpoint_every` steps and at the end, always whole; with `resume` training continues from
    it, bit for bit: the epoch is replayed from its start (RNG, and the sampler's own state where it has
    `state_dict`/`load_state_dict`), so the order within an epoch must follow from the state at its start.
    `trackers` are names Accelerate knows (tensorboard, mlflow, wandb).

    Raises ValueError for a request that cannot run, NonFiniteLossError when the loss is no longer finite.
    """
    if (steps is None) == (epochs is None):
        raise ValueError(f"give steps or epochs, one of the two; got steps={steps}, epochs={epochs}")
    for name, value in (("steps", steps), ("epochs", epochs), ("accumulate", accumulate)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if checkpoint_every is not None and checkpoint is None:
        raise ValueError("checkpoint_every needs checkpoint=, the folder to write to")
    if accelerator is None:
        # Accelerate keeps the precision of a process's first Accelerator; ours is per call.
        AcceleratorState._reset_state()
        accelerator = Accelerator(
            mixed_precision=precision, log_with=list(trackers) or None, project_dir=str(checkpoint or ".")
        )
    sampler = next((s for s in (loader.batch_sampler, loader.sampler) if hasattr(s, "load_state_dict")), None)
    model_, optimizer_, loader_ = accelerator.prepare(model, optimizer, loader)
    if len(loader_) == 0:
        raise ValueError("the loader is empty: no batch to train on")
    # The scheduler stays ours: a prepared one would advance once per process and step.
    position = Position()
    accelerator.register_for_checkpointing(position, *([scheduler] if scheduler is not None else []))
    if trackers:
        accelerator.init_trackers("gradatim")
    folder = Path(checkpoint) if checkpoint is not None else None
    skip = 0
    if folder is not None and resume and (saved := usable(folder)) is not None:
        accelerator.load_state(str(saved))
        skip = position.batch
    fresh: list[Tensor] = []
    total = steps if steps is not None else math.ceil(len(loader_) / accumulate) * (epochs or 0)
    model_.train()
    while position.step < total:
        for group in _groups(_epoch(loader_, sampler, position, skip), accumulate):
            loss, norm = _update(accelerator, model_, optimizer_, loss_fn, group, clip)
            lr = float(optimizer_.param_groups[0]["lr"])
            if scheduler is not None and not accelerator.optimizer_step_was_skipped:
                scheduler.step()
            position.step += 1
            position.batch += len(group)
            fresh.append(loss)
            if on_step is not None:
                on_step(Step(position.step, loss, norm, lr))
            if trackers:
                accelerator.log({"loss": loss.item(), "lr": lr}, step=position.step)
            last = position.step == total
            due = checkpoint_every and position.step % checkpoint_every == 0
            if len(fresh) == FLUSH or last or due:
                _flush(fresh, position)
            if evaluate is not None and (last or (evaluate_every and position.step % evaluate_every == 0)):
                model_.eval()
                metrics = {name: float(v) for name, v in evaluate(accelerator.unwrap_model(model_)).items()}
                model_.train()
                position.result.evaluations.append((position.step, metrics))
            if folder is not None and (due or last):
                save(accelerator, folder)
            if last:
                break
        else:
            position.epoch, position.batch, position.epoch_start = position.epoch + 1, 0, {}
        skip = 0
    if trackers:
        accelerator.end_training()
    return position.result


def _update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    group: Sequence[Any],
    clip: float | None,
) -> tuple[Tensor, Tensor | None]:
    """One optimizer step on the mean loss of a group of batches; gradients are averaged over processes."""
    total = torch.zeros((), device=accelerator.device)
    for i, batch in enumerate(group):
        with accelerator.no_sync(model) if i + 1 < len(group) else nullcontext():
            with accelerator.autocast():
                loss = loss_fn(model, batch) / len(group)
            accelerator.backward(loss)
        total += loss.detach().float()
    norm = accelerator.clip_grad_norm_(model.parameters(), clip) if clip is not None else None
    optimizer.step()
    optimizer.zero_grad()
    return accelerator.reduce(total, "mean"), norm


def _groups(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while group := list(islice(batches, size)):
        yield group


def _epoch(loader: Any, sampler: Any, position: Position, skip: int) -> Iterator[Any]:
    """The batches of an epoch in the order its start fixed; on resume, those that are left."""
    now = rng_state()
    if not position.epoch_start:
        position.epoch_start = {"rng": now, "sampler": sampler.state_dict() if sampler is not None else {}}
    set_rng_state(position.epoch_start["rng"])
    if sampler is not None:
        sampler.load_state_dict(position.epoch_start["sampler"])
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(position.epoch)
    batches = iter(loader)
    if skip:
        for _ in islice(batches, skip):
            pass
        set_rng_state(now)
    yield from batches


def _flush(fresh: list[Tensor], position: Position) -> None:
    losses = torch.stack(fresh).tolist() if fresh else []
    first = position.step - len(losses) + 1
    for i, value in enumerate(losses):
        if not math.isfinite(value):
            raise NonFiniteLossError(f"the loss is {value} at step {first + i}; lower the rate, or clip=1.0")
    position.result.losses += losses
    position.result.steps = position.step
    fresh.clear()
