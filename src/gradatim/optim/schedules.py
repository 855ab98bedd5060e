"""Learning-rate schedules as `torch.optim.lr_scheduler.LRScheduler`s: a table, and linear decay.

Both compute the rate from the step alone (base rate times factor): resuming is exact, `step()` may be called
once more than there are steps (the index is clamped), base rates are never changed, tensor rates stay the
same object. Inside `SequentialLR` they work like any other; inside `ChainedScheduler` a schedule of this
kind overrides the members before it, as `LambdaLR` does, because it does not read the rate they set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class TableLR(LRScheduler):
    """The rate of optimizer step t (from 0) is base_lr * factors[min(t, T-1)], in every parameter group.

    Args:
        optimizer: the optimizer whose `lr` is the base rate of each group.
        factors: [T] finite factors >= 0, one per optimizer step.
        last_epoch: as for every scheduler of torch; -1 starts anew.

    Raises ValueError for an empty table or a bad factor. `load_state_dict` raises ValueError for the state
    of a table of another length: a schedule made for T steps says nothing about other horizons.
    """

    factors: list[float]

    def __init__(
        self, optimizer: Optimizer, factors: Sequence[float | int] | np.ndarray | Tensor, last_epoch: int = -1
    ) -> None:
        # A plain list: it survives torch.load(weights_only=True), and indexing it is quick.
        self.factors = _table(factors)
        self._last_index = len(self.factors) - 1
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of step `last_epoch`."""
        t = self.last_epoch
        factor = self.factors[t if t < self._last_index else self._last_index]
        return [base_lr * factor for base_lr in self.base_lrs]

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        return self.get_lr()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`. Raises ValueError where its table has another length."""
        found = len(state_dict["factors"])
        if found != len(self.factors):
            raise ValueError(
                f"the saved schedule has {found} steps, this one {len(self.factors)}: a table cannot"
                " change its horizon in the middle of a run; build it with the saved length"
            )
        super().load_state_dict(state_dict)


class LinearDecayLR(LRScheduler):
    """Linear decay to `end_factor` at the last step, after an optional linear warm-up.

    With T = total_steps, W = warmup_steps and t = 0 .. T-1:

        factor(t) = (t + 1) / (W + 1)                              for t < W
                    1 - (1 - end_factor) (t - W) / (T - 1 - W)     from W on

    Without warm-up and with `end_factor=0` this is (T - t) / (T - 1), t = 1 .. T: the refinement of constant
    norms, whose last optimizer step does not move the weights. `end_factor=1/T` makes it move.

    Raises ValueError for total_steps < 2, warmup_steps outside [0, total_steps - 2] or end_factor outside
    [0, 1]; `load_state_dict` raises it where the horizon or the warm-up differ.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        end_factor: float | int = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if total_steps < 2:
            raise ValueError(f"total_steps must be at least 2, got {total_steps}")
        if not 0 <= warmup_steps <= total_steps - 2:
            raise ValueError(f"warmup_steps must lie in [0, {total_steps - 2}], got {warmup_steps}")
        if not 0.0 <= end_factor <= 1.0:
            raise ValueError(f"end_factor must lie in [0, 1], got {end_factor}")
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.end_factor = end_factor
        self._slope = (1.0 - end_factor) / (total_steps - 1 - warmup_steps)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of step `last_epoch`."""
        t, warmup = self.last_epoch, self.warmup_steps
        if t < warmup:
            factor = (t + 1) / (warmup + 1)
        elif t < self.total_steps - 1:
            factor = 1.0 - self._slope * (t - warmup)
        else:
            factor = self.end_factor
        return [base_lr * factor for base_lr in self.base_lrs]

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        return self.get_lr()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`. Raises ValueError where the horizon or the warm-up differ."""
        for name in ("total_steps", "warmup_steps"):
            if state_dict[name] != getattr(self, name):
                raise ValueError(
                    f"the saved schedule has {name}={state_dict[name]}, this one {getattr(self, name)}:"
                    " build it with the saved value"
                )
        super().load_state_dict(state_dict)


def set_base_lr(optimizer: Optimizer, base: float | int) -> None:
    """Give every parameter group the rate `base`, in place where it is a tensor."""
    if not (math.isfinite(base) and base >= 0):
        raise ValueError(f"base must be a finite learning rate, not negative, got {base}")
    for group in optimizer.param_groups:
        group.pop("initial_lr", None)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(base)
        else:
            group["lr"] = base


def _table(factors: Sequence[float | int] | np.ndarray | Tensor) -> list[float]:
    if isinstance(factors, Tensor):
        factors = factors.detach().to("cpu", torch.float64).numpy()
    table = np.asarray(factors, dtype=np.float64)
    if table.ndim != 1 or table.size == 0:
        raise ValueError(f"factors must be a vector with one factor per step, got shape {table.shape}")
    bad = np.flatnonzero(~np.isfinite(table) | (table < 0))
    if bad.size:
        raise ValueError(
            f"factors must be finite and not negative, got {table[bad[0]]} at step {int(bad[0])}"
        )
    values: list[float] = table.tolist()
    return values
