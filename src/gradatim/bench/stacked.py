"""Several models of one architecture trained as one tensor program: seeds, noise levels, learning rates.

Small models are bound by the dispatch of small kernels. Here S of them share every kernel: their parameters
lie in one tensor [S, P], `torch.func.functional_call` under `vmap` runs all forward passes at once, and one
`backward` gives all gradients. Each model keeps its own data, learning rate, gradient clipping and optimizer
state, and gets what it would have got alone, whoever else is in the stack.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer

from gradatim.bench import stacked_checkpoint

Engine = Literal["auto", "vmap", "loop"]
Draw = Callable[[int], Sequence[Tensor]]
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class StackedTraining:
    """What S models ended with.

    models     the S trained modules, in evaluation mode
    losses     [steps, S] training loss of each model before each step
    engine     "vmap", or "loop" where a module could not be vectorised
    snapshots  {step: S modules as they stood after that many steps}
    """

    models: list[nn.Module]
    losses: np.ndarray
    engine: str
    snapshots: Mapping[int, list[nn.Module]] = field(default_factory=dict)

    def smoothed(self, window: int = 50) -> np.ndarray:
        """[steps, S] mean loss over the last `window` steps: what to draw."""
        total = np.cumsum(np.concatenate([np.zeros((1, self.losses.shape[1])), self.losses]), axis=0)
        end = np.arange(1, len(self.losses) + 1)
        start = np.maximum(end - window, 0)
        return (total[end] - total[start]) / (end - start)[:, None]


def labelled_loss(model: Callable[..., Any], x: Tensor, y: Tensor) -> Tensor:
    """The loss of an in-context learner on its own labels: `model(x, y, labels=y).loss`."""
    return model(x, y, labels=y).loss


def warmup_cosine(step: int, steps: int, warmup: float = 0.1) -> float:
    """Factor of the learning rate: linear over the first `warmup` share of the steps, then a cosine to 0.

    With W = round(warmup * steps): (t + 1) / W for t < W, then (1 + cos(pi (t - W) / (steps - W))) / 2.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def train_stacked(
    models: Sequence[nn.Module] | Callable[[int], nn.Module],
    draw: Draw,
    loss: Loss = labelled_loss,
    *,
    steps: int,
    lr: float | Sequence[float],
    seeds: Iterable[int] | None = None,
    warmup: float = 0.1,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = 1.0,
    optimizer: Callable[..., Optimizer] | None = None,
    engine: Engine = "auto",
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    snapshots: Sequence[int] = (),
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 1000,
) -> StackedTraining:
    """Train S models of one architecture at once; none depends on which others are in the stack.

    Args:
        models: S modules, or `make_model(seed)` called for every seed of `seeds`. They are not changed.
        draw: `draw(step)` gives the tensors of one step, each [S, batch, ...]: the data of model s in row s.
            A pure function of the step, so that a resumed run sees the data an uninterrupted one sees.
        loss: `loss(model, *tensors)` -> scalar, written for ONE model and its own [batch, ...] tensors.
            The default is `model(x, y, labels=y).loss`.
        steps: optimizer steps.
        lr: one rate, or one per model.
        warmup, schedule: linear warm-up over this share of the steps, then a cosine to 0; or your own
            factor of the step (0 .. steps - 1), which takes the place of both.
        clip: largest norm of each model's own gradient, or None.
        optimizer: takes parameter groups ({"params": [row], "lr": rate}, one per model). The default is
            `torch.optim.AdamW` with betas (0.9, 0.98), no weight decay, fused. It sees each model as one
            vector, so it must treat entries alike: AdamW, SGD, not a method that needs matrices.
        engine: "vmap"; "loop" runs the models one by one on the same rows; "auto" tries the first and falls
            back to the second for modules that cannot be vectorised (the result says which was used).
        autocast: run forward passes in this type (torch.bfloat16) on the device.
        snapshots: steps after which copies of all models are kept.
        checkpoint: a safetensors file. It is written every `checkpoint_every` steps; where it exists, the
            run goes on from it and ends with the same numbers as an uninterrupted one.

    Modules must be deterministic in training mode: dropout is refused by vmap, which has no generator per
    model. Parameters without `requires_grad` stay as they are.

    Raises ValueError for an empty stack, models of different shapes, data without a leading axis of S, a
    wrong number of rates, or a checkpoint of another run; FloatingPointError, which names the models, where a
    loss is no longer finite.
    """
    made = [models(seed) for seed in seeds or ()] if callable(models) else list(models)
    if not made:
        raise ValueError("nothing to train: give at least one model, or seeds for make_model")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    rates = [float(lr)] * len(made) if isinstance(lr, int | float) else [float(rate) for rate in lr]
    if len(rates) != len(made):
        raise ValueError(f"lr needs one rate, or one for each of the {len(made)} models, got {len(rates)}")
    factor = schedule or partial(warmup_cosine, steps=steps, warmup=warmup)

    stack = Stack(made, device)
    make_optimizer = optimizer or partial(torch.optim.AdamW, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    moves = make_optimizer(
        [{"params": [row], "lr": rate} for row, rate in zip(stack.rows, rates, strict=True)]
    )
    losses = np.zeros((steps, len(made)))
    kept: dict[int, list[nn.Module]] = {}
    first = 0
    run = {"steps": steps, "rates": rates, "clip": clip, "sizes": stack.sizes}
    if checkpoint is not None and Path(checkpoint).exists():
        first, done = stacked_checkpoint.load(Path(checkpoint), run, stack.flat, moves)
        losses[:first] = done
    used = _choose(engine, stack, loss, draw, first, autocast) if first < steps else "vmap"

    for step in range(first, steps):
        drawn = stack.place(draw(step))
        with torch.autocast(stack.flat.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            each = stack.losses(loss, drawn, used)
        (gradient,) = torch.autograd.grad(each.sum(), stack.flat)
        if clip is not None:
            norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient = gradient * (clip / (norms + 1e-6)).clamp(max=1.0)
        losses[step] = each.detach().double().cpu().numpy()
        if not np.isfinite(losses[step]).all():
            lost = np.flatnonzero(~np.isfinite(losses[step])).tolist()
            raise FloatingPointError(f"the loss of model(s) {lost} is not finite at step {step}; lower lr")
        for group, rate, row, row_gradient in zip(
            moves.param_groups, rates, stack.rows, gradient, strict=True
        ):
            group["lr"] = rate * factor(step)
            row.grad = row_gradient
        moves.step()
        if step + 1 in snapshots:
            kept[step + 1] = stack.modules()
        if checkpoint is not None and ((step + 1) % checkpoint_every == 0 or step + 1 == steps):
            stacked_checkpoint.save(Path(checkpoint), run, step + 1, losses[: step + 1], stack.flat, moves)
    return StackedTraining(stack.modules(), losses, used, kept)


class Stack:
    """S modules of one architecture: trainable parameters as one leaf [S, P], the rest beside it.

    `rows[s]` is model s's part of `flat`, sharing its memory. Frozen parameters and buffers that are equal in
    all models are kept once.
    """

    def __init__(self, models: Sequence[nn.Module], device: torch.device | str | None = None) -> None:
        _check_alike(models)
        self.base = copy.deepcopy(models[0]).to(device).train()
        trained = [dict(_trainable(model)) for model in models]
        self.names = list(trained[0])
        self.shapes = [trained[0][name].shape for name in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]
        if not self.names:
            raise ValueError("nothing to train: no parameter requires a gradient")
        rows = [torch.cat([p[name].detach().reshape(-1) for name in self.names]) for p in trained]
        self.flat = torch.stack(rows).to(device).requires_grad_()
        self.rows = [nn.Parameter(row) for row in self.flat.detach()]
        self.shared, self.own = _constants(models, self.flat.device)

    def place(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The step's tensors on the stack's device."""
        for tensor in tensors:
            if tensor.dim() < 1 or len(tensor) != len(self.rows):
                raise ValueError(
                    f"draw must give tensors with a leading axis of {len(self.rows)} models, "
                    f"got shape {tuple(tensor.shape)}"
                )
        return tuple(tensor.to(self.flat.device, non_blocking=True) for tensor in tensors)

    def losses(self, loss: Loss, tensors: Sequence[Tensor], engine: str) -> Tensor:
        """[S] losses, differentiable with respect to `flat`."""

        def one(parameters: dict[str, Tensor], own: dict[str, Tensor], *data: Tensor) -> Tensor:
            state = {**parameters, **own, **self.shared}
            return loss(lambda *args, **kwargs: functional_call(self.base, state, args, kwargs), *data)

        parts = {
            name: part.view(len(self.rows), *shape)
            for name, part, shape in zip(
                self.names, self.flat.split(self.sizes, dim=1), self.shapes, strict=True
            )
        }
        if engine == "vmap":
            return vmap(one)(parts, self.own, *tensors)
        found = []
        for s in range(len(self.rows)):
            mine, own = ({k: v[s] for k, v in group.items()} for group in (parts, self.own))
            found.append(one(mine, own, *(tensor[s] for tensor in tensors)))
        return torch.stack(found)

    def modules(self) -> list[nn.Module]:
        """The models as they stand now: independent copies in evaluation mode."""
        found = []
        for s, row in enumerate(self.rows):
            model = copy.deepcopy(self.base).eval()
            parameters = dict(_trainable(model))
            with torch.no_grad():
                for name, part in zip(self.names, row.detach().split(self.sizes), strict=True):
                    parameters[name].copy_(part.view_as(parameters[name]))
                rest = {**dict(model.named_parameters()), **dict(model.named_buffers())}
                for name, values in self.own.items():
                    rest[name].copy_(values[s])
            found.append(model)
        return found


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _check_alike(models: Sequence[nn.Module]) -> None:
    described = [
        [(name, p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()]
        for model in models
    ]
    for s, other in enumerate(described):
        if other != described[0]:
            different = next((a, b) for a, b in zip(described[0], other, strict=False) if a != b)
            raise ValueError(f"model {s} is not of model 0's architecture: {different[0]} and {different[1]}")
    # Settings without weights (positions, activations) do not show in the parameters.
    settings = [_settings(model) for model in models]
    for s, setting in enumerate(settings):
        if setting != settings[0]:
            raise ValueError(f"model {s} is not of model 0's architecture: their configurations differ")
    kinds = {p.dtype for _, p in _trainable(models[0])}
    if len(kinds) > 1:
        raise ValueError(f"all trained parameters must share one type, got {sorted(map(str, kinds))}")


def _settings(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    found = config.to_dict() if hasattr(config, "to_dict") else config
    return {k: v for k, v in found.items() if k != "_name_or_path"} if isinstance(found, dict) else None


def _constants(
    models: Sequence[nn.Module], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is not trained, by name: once where all models agree, else stacked [S, ...]."""
    rest = [
        {name: p for name, p in model.named_parameters() if not p.requires_grad} | dict(model.named_buffers())
        for model in models
    ]
    shared: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for name, first in rest[0].items():
        values = [r[name].detach() for r in rest]
        if all(torch.equal(first, value) for value in values[1:]):
            shared[name] = first.detach().to(device)
        else:
            own[name] = torch.stack(values).to(device)
    return shared, own


def _choose(
    engine: Engine, stack: Stack, loss: Loss, draw: Draw, step: int, autocast: torch.dtype | None
) -> str:
    if engine not in ("auto", "vmap", "loop"):
        raise ValueError(f'engine must be "auto", "vmap" or "loop", got {engine!r}')
    if engine != "auto":
        return engine
    if len(stack.rows) == 1:
        return "loop"
    try:
        drawn = stack.place(draw(step))
        with (
            torch.no_grad(),
            torch.autocast(stack.flat.device.type, autocast or torch.bfloat16, enabled=autocast is not None),
        ):
            stack.losses(loss, drawn, "vmap")
    except (RuntimeError, NotImplementedError):
        # Not vectorisable: fused recurrent cells, data-dependent control flow. A real defect of the model
        # shows itself again in the loop, with a message about the model alone.
        return "loop"
    return "vmap"
