"""Record the norm of the gradient that every optimizer step uses, without waiting for the device."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from gradatim.optim.traces import GradNormTrace

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SKIPPED = -1.0
FIRST_CAPACITY = 1024


class GradNormRecorder:
    """Records ||g_t||_p of the full gradient over all parameter groups at every optimizer step.

    A pre-hook of `optimizer.step` reads the gradients as the optimizer will: after the all-reduce of data
    parallel training, after accumulation, after clipping. The norms stay on the device; only `norms()`,
    `trace()` and `save()` wait for them.

    Args:
        optimizer: any torch optimizer.
        norm: 2 for refining an SGD schedule, 1 for Adam.
        every: record every so many steps.
        max_steps: stop recording after this many optimizer steps; None never stops.
        clipped: True records what the optimizer sees. False records what `observe()` saw: call it once
            per optimizer step, after backward and before clipping.
        sharded_over: a process group over which the `.grad`s are plain shards of the parameters (FSDP with
            flat parameters). Their p-th powers are then summed over it. `DTensor` gradients (FSDP2, tensor
            parallel) need nothing: their placements say what to sum.

    Mixed precision: a `GradScaler` unscales before the hook runs; with a fused optimizer that takes the
    scale itself, the norm is divided by it. Steps that the scaler skips record nothing.

    Usable as a context manager; `close()` removes the hook. Raises ValueError for another norm or
    counts below 1; TypeError in the step for sparse gradients; RuntimeError for a step without `observe()`
    when `clipped=False`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        norm: Literal[1, 2] = 2,
        every: int = 1,
        max_steps: int | None = None,
        *,
        clipped: bool = True,
        sharded_over: dist.ProcessGroup | None = None,
    ) -> None:
        if norm not in (1, 2):
            raise ValueError(f"norm must be 1 (for Adam) or 2 (for SGD), got {norm}")
        if every < 1 or (max_steps is not None and max_steps < 1):
            raise ValueError(f"every and max_steps must be at least 1, got {every} and {max_steps}")
        self.optimizer = optimizer
        self.norm: int = norm
        self.every = every
        self.max_steps = max_steps
        self.clipped = clipped
        self.sharded_over = sharded_over
        self._seen = 0
        self._recorded = 0
        self._buffer: Tensor | None = None
        self._pending: Tensor | None = None
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def observe(self, total_norm: Tensor | None = None) -> None:
        """Take the gradients' norm now, for the step that follows.

        `total_norm`: what `clip_grad_norm_` (L2) returned, which saves reading the gradients again.
        Raises RuntimeError where the recorder was built with `clipped=True`.
        """
        if self.clipped:
            raise RuntimeError("observe() is for GradNormRecorder(..., clipped=False)")
        if not self._due():
            return
        if total_norm is None:
            total_norm = self._total_norm()
        elif (sharded := _as_dtensor(total_norm)) is not None:
            total_norm = sharded.full_tensor()
        self._pending = total_norm.detach().clone()

    def norms(self) -> Tensor:
        """[n] recorded norms, float32, on the CPU, without skipped steps."""
        values = self._values()
        return values[values != SKIPPED]

    def steps(self) -> Tensor:
        """[n] the optimizer steps, counted from 0, that `norms()` belongs to."""
        values = self._values()
        return (torch.arange(values.numel()) * self.every)[values != SKIPPED]

    def trace(self, *, batch_size: int | None = None, clip: float | None = None) -> GradNormTrace:
        """The record with what is known of the run. Raises ValueError where nothing was recorded."""
        return GradNormTrace(
            norms=self.norms().double().numpy(),
            steps=self.steps().numpy().astype(np.int64),
            norm_type=self.norm,
            optimizer=type(self.optimizer).__name__,
            batch_size=batch_size,
            clip=clip,
        )

    def save(
        self, path: str | os.PathLike[str], *, batch_size: int | None = None, clip: float | None = None
    ) -> None:
        """Write the trace as `.json` or `.csv`."""
        self.trace(batch_size=batch_size, clip=clip).save(path)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; loads with `torch.load(weights_only=True)`."""
        return {
            "norm": self.norm,
            "every": self.every,
            "clipped": self.clipped,
            "seen": self._seen,
            "values": self._values(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a record. Raises ValueError where norm, every or clipped differ."""
        for name in ("norm", "every", "clipped"):
            if state_dict[name] != getattr(self, name):
                raise ValueError(
                    f"the saved record has {name}={state_dict[name]}, this one {getattr(self, name)};"
                    " records of different kinds cannot be joined"
                )
        values = state_dict["values"]
        self._seen = int(state_dict["seen"])
        self._recorded = values.numel()
        self._buffer = values.clone() if values.numel() else None

    def close(self) -> None:
        """Stop recording; the record stays readable."""
        self._handle.remove()

    def __enter__(self) -> GradNormRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _due(self) -> bool:
        open_ = self.max_steps is None or self._seen < self.max_steps
        return open_ and self._seen % self.every == 0

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._due():
            if not self.clipped and self._pending is None:
                raise RuntimeError(
                    "clipped=False: call observe() after backward, before every optimizer.step()"
                )
            value = self._total_norm() if self._pending is None else self._pending
            if self.clipped:
                value = self._unscaled(value)
            self._append(value.to(torch.float32))
        self._pending = None
        self._seen += 1

    def _unscaled(self, value: Tensor) -> Tensor:
        """Undo the loss scale that a fused optimizer is about to divide by; mark a step it will skip."""
        scale = getattr(self.optimizer, "grad_scale", None)
        found_inf = getattr(self.optimizer, "found_inf", None)
        if scale is not None:
            value = value / scale.to(value.device).reshape(())
        if found_inf is not None:
            skipped = found_inf.to(value.device).reshape(()) > 0
            value = torch.where(skipped, torch.full_like(value, SKIPPED), value)
        return value

    def _append(self, value: Tensor) -> None:
        if self._buffer is None or self._recorded == self._buffer.numel():
            capacity = FIRST_CAPACITY if self._buffer is None else 2 * self._buffer.numel()
            larger = torch.empty(capacity, dtype=torch.float32, device=value.device)
            if self._buffer is not None:
                larger[: self._recorded] = self._buffer
            self._buffer = larger
        self._buffer[self._recorded] = value
        self._recorded += 1

    def _values(self) -> Tensor:
        if self._buffer is None:
            return torch.empty(0)
        return self._buffer[: self._recorded].to("cpu", copy=True)

    def _gradients(self) -> Iterator[Tensor]:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.layout != torch.strided:
                    raise TypeError(
                        "GradNormRecorder cannot read sparse gradients; use sparse=False in the embedding, or"
                        " leave its parameters to another optimizer"
                    )
                yield gradient

    @torch.no_grad()
    def _total_norm(self) -> Tensor:
        plain: list[Tensor] = []
        sharded: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
        for gradient in self._gradients():
            as_dtensor = _as_dtensor(gradient)
            if as_dtensor is not None:
                groups, local = _local_shard(as_dtensor)
                (sharded.setdefault(groups, []) if groups else plain).append(local)
            else:
                plain.append(gradient)
        if not sharded and self.sharded_over is None:
            return _norm(plain, self.norm, self._device())
        device = plain[0].device if plain else next((g[0].device for g in sharded.values()), self._device())
        # A rank may own no element of any shard and must still take part in the sums.
        powers = _norm(plain, self.norm, device).double() ** self.norm
        if self.sharded_over is not None:
            dist.all_reduce(powers, group=self.sharded_over)
        for groups, locals_ in sharded.items():
            part = _norm(locals_, self.norm, device).double() ** self.norm
            for group in groups:
                dist.all_reduce(part, group=group)
            powers = powers + part
        return powers ** (1.0 / self.norm)

    def _device(self) -> torch.device:
        device: torch.device = self.optimizer.param_groups[0]["params"][0].device
        return device


def _as_dtensor(tensor: Tensor) -> DTensor | None:
    # Importing DTensor takes half a second, and there is none before somebody has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return tensor if module is not None and isinstance(tensor, module.DTensor) else None


def _local_shard(gradient: DTensor) -> tuple[tuple[dist.ProcessGroup, ...], Tensor]:
    """This rank's part of a gradient, and the groups over which its p-th powers add up."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    placements = gradient.placements
    if any(isinstance(p, Partial) for p in placements):
        whole = [Replicate() if isinstance(p, Partial) else p for p in placements]
        gradient = gradient.redistribute(placements=whole)
    mesh = gradient.device_mesh
    groups = tuple(mesh.get_group(i) for i, p in enumerate(gradient.placements) if isinstance(p, Shard))
    return groups, gradient.to_local()


def _norm(tensors: list[Tensor], p: int, device: torch.device) -> Tensor:
    """The p-norm of all elements of `tensors`, accumulated in float32 at least."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for t in tensors:
        if t.numel():
            by_kind.setdefault((t.device, t.dtype), []).append(t)
    norms: list[Tensor] = []
    for (where, dtype), kind in by_kind.items():
        # Half precision overflows when ten thousand ordinary gradients are added up.
        wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else None
        if where.type == "cpu":
            norms += [torch.linalg.vector_norm(t, p, dtype=wide) for t in kind]
        else:
            norms += [n.to(device) for n in torch._foreach_norm(kind, p, dtype=wide)]
    if not norms:
        return torch.zeros((), device=device)
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), p)
