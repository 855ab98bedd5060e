"""The one training loop: any model, optimizer, schedule and loss of torch, on Hugging Face Accelerate."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradatim.bench.checkpoint import (
    kept_rng,
    load_checkpoint,
    remove_checkpoints,
    rng_state,
    save_checkpoint,
    set_rng_state,
    steps_saved,
)
from gradatim.bench.fit_batches import Batches
from gradatim.bench.fit_setup import check_settings, make_accelerator, prepared
from gradatim.bench.fit_step import evaluation, gradient


@dataclass(frozen=True)
class Step:
    """One optimizer step: counted from 1, the rate it used, the gradient's L2 norm before clipping.

    `norm` is None without `clip`; `skipped` steps are those whose fp16 gradients overflowed.
    """

    step: int
    epoch: int
    loss: float
    rate: float
    norm: float | None
    skipped: bool


@dataclass(frozen=True)
class FitResult:
    """What a run did from its first step on, also where it was resumed (from step `resumed_from`)."""

    history: tuple[Step, ...]
    evaluations: tuple[tuple[int, Mapping[str, float]], ...]
    resumed_from: int = field(default=0, compare=False)

    @property
    def steps(self) -> int:
        return len(self.history)

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(s.loss for s in self.history)


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    loader: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    *,
    scheduler: LRScheduler | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    precision: Literal["no", "bf16", "fp16"] | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    stateful: Mapping[str, Any] | None = None,
    trackers: Sequence[Any] = (),
    log_dir: str | os.PathLike[str] = "runs",
    on_gradients: Callable[[], Any] | None = None,
    on_step: Callable[[Step], Any] | None = None,
    accelerator: Accelerator | None = None,
    seed: int | None = None,
) -> FitResult:
    """Train `model` in place: alone, or with `torchrun` / `accelerate launch` as part of a group.

    One step takes `accumulate` batches (what the epoch has left of them at its end), follows the gradient of

        L = mean over processes, mean over the step's batches, of loss_fn(model, batch),

    and moves the schedule once. `loss_fn` returns the mean over the examples of its batch, a scalar; so N
    processes do what one does with batches N times as large.

    Args:
        loader: a DataLoader, or in a single process anything that can be iterated once per epoch.
        steps, epochs: where to stop, whichever comes first; optimizer steps, passes over the loader.
        clip: largest L2 norm of the gradient; `math.inf` only measures it.
        precision: None takes what `accelerate launch` was told, else full precision. fp16 needs a GPU.
        evaluate: metrics of the model, called in eval mode without gradients, on every process, every
            `evaluate_every` steps and at the end. What it draws at random does not disturb the training.
        checkpoint: a folder for the newest checkpoint, written every `checkpoint_every` steps and at the
            end. With `resume` a run continues from it bit for bit, in the middle of an epoch too; with
            `resume=False` checkpoints found there are removed first. See `Batches` and `save_checkpoint`.
        stateful: further objects with `state_dict` and `load_state_dict` that belong into it, by name.
        trackers: Accelerate's, by name ("tensorboard", "mlflow", "wandb" ...), writing under `log_dir`.
        on_gradients: called before clipping, as in `on_gradients=recorder.observe`.
        on_step: called after each step (progress, early records). Gradients still stand, clipped.
        accelerator: your own, with nothing prepared by it; `precision` and `trackers` are then its matter.
        seed: of the global random state (dropout, shuffling without a generator) of this call; process k
            takes `seed + k`. The state outside stays as it was. None draws from it, as plain torch does.

    Raises ValueError for settings that cannot be right and for an empty loader, FloatingPointError where the
    loss or the gradient is not finite, naming the step. Where no accelerator is given and an earlier one
    had another precision, Accelerate's shared state is set anew.
    """
    check_settings(steps, epochs, clip, scheduler, checkpoint, (accumulate, evaluate_every, checkpoint_every))
    acc = make_accelerator(precision, trackers, log_dir) if accelerator is None else accelerator
    if acc.gradient_accumulation_steps != 1 or acc._models:
        raise ValueError("accelerator must have prepared nothing yet and leave accumulation to accumulate=")
    folder = None if checkpoint is None else Path(checkpoint)
    parts = {**({} if scheduler is None else {"scheduler": scheduler}), **(stateful or {})}
    history: list[Step] = []
    evaluations: list[tuple[int, dict[str, float]]] = []
    saved = 0

    def keep() -> int:
        if folder is not None and saved != len(history):
            states = {name: part.state_dict() for name, part in parts.items()}
            steps_taken = [asdict(step) for step in history]
            loop = {"history": steps_taken, "evaluations": evaluations, "parts": states}
            loop |= {"batches": batches.state_dict(), "rng": rng_state()}
            save_checkpoint(acc, folder, len(history), loop)
        return len(history)

    rng = nullcontext() if seed is None else kept_rng(seed + acc.process_index)
    with rng, prepared(acc, model, optimizer) as (wrapped, stepper):
        batches = Batches(loader, acc)
        if folder is not None and not resume and acc.is_main_process:
            remove_checkpoints(folder)
        acc.wait_for_everyone()
        found = {} if folder is None else steps_saved(folder)
        if found:
            saved = max(found)
            loop = load_checkpoint(acc, found[saved])
            history += [Step(**row) for row in loop["history"]]
            evaluations += [(at, metrics) for at, metrics in loop["evaluations"]]
            for name, part in parts.items():
                part.load_state_dict(loop["parts"][name])
            batches.load_state_dict(loop["batches"])
            set_rng_state(loop["rng"])
        else:
            batches.begin(0)
        resumed_from = saved
        windows = _windows(batches, accumulate, epochs)
        while len(history) < (steps or math.inf) and (window := next(windows, None)):
            n = len(history) + 1
            loss, norm = gradient(acc, wrapped, loss_fn, stepper, window, clip, on_gradients, n)
            rate = float(optimizer.param_groups[0]["lr"])
            stepper.step()
            skipped = acc.optimizer_step_was_skipped
            if scheduler is not None and not skipped:
                scheduler.step()
            history.append(Step(n, batches.epoch, loss, rate, norm, skipped))
            acc.log({"loss": loss, "rate": rate} | ({} if norm is None else {"norm": norm}), step=n)
            if on_step is not None:
                on_step(history[-1])
            if evaluate is not None and evaluate_every is not None and n % evaluate_every == 0:
                evaluations.append((n, evaluation(acc, wrapped, stepper, evaluate, n)))
            if checkpoint_every is not None and n % checkpoint_every == 0:
                saved = keep()
        last = len(history)
        if evaluate is not None and last not in dict(evaluations):
            evaluations.append((last, evaluation(acc, wrapped, stepper, evaluate, last)))
        keep()
        if accelerator is None:
            for tracker in acc.trackers:
                tracker.finish()
    return FitResult(tuple(history), tuple(evaluations), resumed_from)


def _windows(batches: Batches, size: int, epochs: int | None) -> Iterator[list[Any]]:
    """The batches of one step after another, through the epochs."""
    while True:
        if window := batches.take(size):
            yield window
        elif batches.taken == 0:
            raise ValueError(f"the loader gave no batch in epoch {batches.epoch} (counted from 0)")
        elif epochs is not None and batches.epoch + 1 >= epochs:
            return
        else:
            batches.begin(batches.epoch + 1)
