"""The outer loop: an optimizer over meta-batches, the best state on validation tasks, exact resumption."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradatim.tasks.few_shot import Tasks

if TYPE_CHECKING:
    from gradatim.models.meta_sgd import MetaSGD


@dataclass
class MetaTraining:
    """How meta-training went.

    losses      meta-loss before each step
    rates       (step, smallest, median, largest α)
    validation  (step, meta-loss on the validation tasks)
    alignment   (step, mean cosine of the meta-gradient and each task's own query gradient)
    best_step   after how many steps the kept state stood; the last where nothing was validated
    """

    losses: list[float] = field(default_factory=list)
    rates: list[tuple[int, float, float, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    alignment: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0

    @property
    def steps(self) -> int:
        """Outer steps done."""
        return len(self.losses)

    def __str__(self) -> str:
        if not self.losses:
            return "MetaTraining: no step done"
        recent = self.losses[-50:]
        mean = sum(recent) / len(recent)
        text = f"MetaTraining: {self.steps} steps, meta-loss {mean:.4f} (last {len(recent)})"
        if self.validation:
            best = min(loss for _, loss in self.validation)
            text += f", best validation {best:.4f} after step {self.best_step}"
        if self.alignment:
            text += f", alignment {self.alignment[-1][1]:.3f}"
        if self.rates:
            _, low, median, high = self.rates[-1]
            text += f", α {low:.3g} / {median:.3g} / {high:.3g} (min / median / max)"
        return text


def fit_meta(
    meta: MetaSGD,
    episodes: Iterable[Tasks],
    steps: int | None = None,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    clip: float | None = 1.0,
    optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None = None,
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    algorithm: str = "meta",
    validation: Tasks | None = None,
    alignment: Tasks | None = None,
    every: int = 100,
    callback: Callable[[int, MetaSGD], None] | None = None,
    checkpoint: Path | str | None = None,
) -> MetaTraining:
    """Meta-train θ and α; the paper's recipe is AdamW at 1e-3 with the joint gradient norm clipped to 1.

    Args:
        meta: what is trained, in place.
        episodes: meta-batches (`ConceptTasks`, a DataLoader, a list of `Tasks`).
        steps: outer steps in all; None goes through `episodes` once, which must then end.
        lr, weight_decay, clip: of AdamW; α takes no weight decay. `clip` bounds the joint norm of θ and α.
        optimizer: makes another one from parameter groups, in place of `lr` and `weight_decay`.
        schedule: makes a learning rate schedule, stepped after every outer step.
        algorithm: "meta" follows the meta-gradient; "reptile" Reptile's θ - mean θ_K.
        validation: tasks on which the meta-loss is taken every `every` steps; the state of the lowest one is
            restored in the end.
        alignment: tasks on which `gradient_alignment` is taken every `every` steps.
        callback: called as callback(step, meta) every `every` steps, and before the first.
        checkpoint: a file, written every `every` steps and at the end. Where it exists, training goes on from
            it and ends with the same numbers as without interruption: `episodes` must then begin as it did
            the first time (its first batches are passed over), or have `state_dict` and `load_state_dict`.

    Raises ValueError for steps < 0 or an unknown algorithm, RuntimeError when a loss or α is not finite.
    """
    if steps is not None and steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if algorithm not in ("meta", "reptile"):
        raise ValueError(f'algorithm must be "meta" or "reptile", got {algorithm!r}')
    groups = meta.param_groups(weight_decay)
    moves = optimizer(groups) if optimizer else torch.optim.AdamW(groups, lr=lr, fused=True)
    plan = schedule(moves) if schedule else None
    record, best = MetaTraining(), _Best()
    stream = _resume(checkpoint, meta, moves, plan, record, best, episodes)
    trained = [p for p in meta.parameters() if p.requires_grad]
    if record.steps == 0:
        _look(meta, record, best, validation, alignment, callback)
    while steps is None or record.steps < steps:
        tasks = next(stream, None)
        if tasks is None:
            break
        moves.zero_grad()
        loss = meta.meta_loss(tasks) if algorithm == "meta" else meta.reptile_loss(tasks)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, clip)
        moves.step()
        if plan is not None:
            plan.step()
        record.losses.append(float(loss.detach()))
        if record.steps % every == 0:
            _look(meta, record, best, validation, alignment, callback)
            _save(checkpoint, meta, moves, plan, record, best, episodes)
    if record.steps % every:
        _look(meta, record, best, validation, alignment, callback)
    _save(checkpoint, meta, moves, plan, record, best, episodes)
    if best.state is not None:
        meta.load_state_dict(best.state)
    record.best_step = best.step if best.state is not None else record.steps
    return record


@dataclass
class _Best:
    """The state with the lowest validation loss so far."""

    loss: float = float("inf")
    step: int = 0
    state: dict[str, torch.Tensor] | None = None


def _look(
    meta: MetaSGD,
    record: MetaTraining,
    best: _Best,
    validation: Tasks | None,
    alignment: Tasks | None,
    callback: Callable[[int, MetaSGD], None] | None,
) -> None:
    """α, the validation loss and the caller's own measurements, at this step."""
    step = record.steps
    rates = meta.rate_summary()
    if not all(map(_finite, rates)):
        raise RuntimeError(f"α is not finite after {step} steps; lower the outer rate or give lr_bounds")
    record.rates.append((step, *rates))
    if validation is not None:
        with torch.no_grad():
            loss = float(meta.meta_loss(validation))
        record.validation.append((step, loss))
        if loss < best.loss:
            best.loss, best.step = loss, step
            best.state = {k: v.detach().clone() for k, v in meta.state_dict().items()}
    if alignment is not None:
        record.alignment.append((step, float(meta.gradient_alignment(alignment).mean())))
    if callback is not None:
        callback(step, meta)


def _finite(value: float) -> bool:
    return value - value == 0.0


def _save(
    file: Path | str | None,
    meta: MetaSGD,
    moves: Optimizer,
    plan: LRScheduler | None,
    record: MetaTraining,
    best: _Best,
    episodes: Iterable[Tasks],
) -> None:
    if file is None:
        return
    content = {
        "meta": meta.state_dict(),
        "optimizer": moves.state_dict(),
        "schedule": plan.state_dict() if plan is not None else None,
        "record": [record.losses, record.rates, record.validation, record.alignment],
        "best": [best.loss, best.step, best.state],
        "episodes": episodes.state_dict() if hasattr(episodes, "state_dict") else None,
    }
    # A crash while writing leaves the former file whole.
    part = Path(f"{file}.part")
    torch.save(content, part)
    os.replace(part, file)


def _resume(
    file: Path | str | None,
    meta: MetaSGD,
    moves: Optimizer,
    plan: LRScheduler | None,
    record: MetaTraining,
    best: _Best,
    episodes: Iterable[Tasks],
) -> Iterator[Tasks]:
    """Load what the file holds, and give the stream of what is still to come."""
    if file is None or not Path(file).exists():
        return iter(episodes)
    content = torch.load(file, weights_only=True, map_location=next(meta.parameters()).device)
    meta.load_state_dict(content["meta"])
    moves.load_state_dict(content["optimizer"])
    if plan is not None and content["schedule"] is not None:
        plan.load_state_dict(content["schedule"])
    # Files of older versions hold no alignments.
    record.losses, record.rates, record.validation, *alignment = content["record"]
    record.alignment = alignment[0] if alignment else []
    best.loss, best.step, best.state = content["best"]
    if content["episodes"] is not None and hasattr(episodes, "load_state_dict"):
        episodes.load_state_dict(content["episodes"])
        return iter(episodes)
    stream = iter(episodes)
    for _ in range(record.steps):
        next(stream, None)
    return stream
