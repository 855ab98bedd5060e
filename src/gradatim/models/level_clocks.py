r"""When memories of several speeds are written: chunks, sums, and memories inside memories.

"Nested Learning" (2025, arXiv 2512.24695, Eq. 70-74). Level l has a chunk of C_l steps and its own rate:

    theta_l <- theta_l - eta_l * sum over the last C_l steps of the task loss's gradient,   step = 0 mod C_l

In the nested kind each level lives inside the next slower one: when the slower chunk ends, the level's
initial state moves towards what the level has learned in it, and the level starts again from there,

    start_l <- start_l + beta (theta_l - start_l),   theta_l <- start_l.

With plain gradient steps that move is first-order meta-learning of the initial state: beta = 1 keeps
everything (as the sequential kind does), beta = 0 always returns to the same start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from gradatim.optim.step_gradients import check_at_least, refuse_non_finite

Reduction = Literal["sum", "mean"]
Partial = Literal["carry", "flush", "drop"]
Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class LevelClocks:
    """How each level is written.

    periods    C_l in steps (tokens, or training steps: whatever the caller counts)
    lr         eta_l
    reduction  "sum" as printed, or "mean": divided by C_l
    nested     levels start again when the next slower chunk ends; periods must ascend, each dividing the next
    meta_rate  beta
    check_finite  refuse a written level that is not finite (waits for the device once per write)

    Raises ValueError for a period below 1, a negative rate, as many rates as there are not levels, periods
    that do not divide one another in the nested kind.
    """

    periods: tuple[int, ...]
    lr: tuple[float, ...]
    reduction: Reduction = "sum"
    nested: bool = False
    meta_rate: float = 0.5
    check_finite: bool = True

    @classmethod
    def of(cls, periods: Sequence[int], lr: float | Sequence[float], **options: object) -> LevelClocks:
        """Clocks with one rate for all levels, or one each."""
        rates = [lr] * len(periods) if isinstance(lr, int | float) else list(lr)
        return cls(tuple(periods), tuple(float(r) for r in rates), **options)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if not self.periods:
            raise ValueError("give at least one period")
        for period in self.periods:
            if not isinstance(period, int) or period < 1:
                raise ValueError(f"a period must be a whole number of steps, at least 1, got {period}")
        if len(self.lr) != len(self.periods):
            raise ValueError(f"lr must be one rate, or one for each of {len(self.periods)}, got {self.lr}")
        for rate in self.lr:
            check_at_least("lr", rate)
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f'reduction must be "sum" or "mean", got {self.reduction!r}')
        if not 0 <= self.meta_rate <= 1:
            raise ValueError(f"meta_rate must lie in [0, 1], got {self.meta_rate}")
        if self.nested:
            for fast, slow in zip(self.periods, self.periods[1:], strict=False):
                if slow % fast:
                    raise ValueError(
                        f"nested levels need periods that each divide the next, got {self.periods}: "
                        f"{fast} does not divide {slow}"
                    )

    @property
    def chunk(self) -> int:
        """The base chunk, gcd of the periods: inside it every level is frozen."""
        return math.gcd(*self.periods)

    def step_rates(self) -> tuple[float, ...]:
        """What a level moves per step and unit of gradient: the rates of the rate-matched control."""
        mean = self.reduction == "mean"
        return tuple(r / c if mean else r for r, c in zip(self.lr, self.periods, strict=True))


@dataclass(frozen=True)
class ContinuumState:
    """Levels as they stand: {parameter name: value}, with a leading axis of samples where `per_sample`.

    fast   what the levels compute with
    start  what `reset` and the nested kind return to
    sums   gradients of the unfinished chunks (empty right after a write)
    clock  steps since the last start of all chunks
    """

    fast: tuple[Values, ...]
    start: tuple[Values, ...]
    sums: tuple[Values, ...]
    clock: int = 0
    per_sample: bool = field(default=False)

    def detach(self) -> ContinuumState:
        """The same values as new leaves: no outer gradient goes further back."""

        def cut(part: tuple[Values, ...]) -> tuple[Values, ...]:
            return tuple({n: v.detach().requires_grad_() for n, v in values.items()} for values in part)

        sums = tuple({n: g.detach() for n, g in held.items()} for held in self.sums)
        return replace(self, fast=cut(self.fast), start=cut(self.start), sums=sums)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat tensors, ready for safetensors."""
        found = {"clock": torch.tensor(self.clock), "per_sample": torch.tensor(self.per_sample)}
        for part in ("fast", "start", "sums"):
            for level, values in enumerate(getattr(self, part)):
                found |= {f"{part}.{level}.{name}": v.detach().clone() for name, v in values.items()}
        return found

    @classmethod
    def from_state_dict(cls, saved: Values) -> ContinuumState:
        """The state that `state_dict` wrote."""
        levels = 1 + max(int(k.split(".")[1]) for k in saved if k.startswith("fast."))
        parts: dict[str, tuple[dict[str, Tensor], ...]] = {}
        for part in ("fast", "start", "sums"):
            parts[part] = tuple(
                {k.split(".", 2)[2]: v for k, v in saved.items() if k.startswith(f"{part}.{level}.")}
                for level in range(levels)
            )
        return cls(**parts, clock=int(saved["clock"]), per_sample=bool(saved["per_sample"]))


def advance(
    clocks: LevelClocks, state: ContinuumState, gradients: Sequence[Values], steps: int = 1
) -> ContinuumState:
    """Take in the gradients of `steps` steps (summed over them) and write the levels whose chunk ends.

    Nothing is changed in place; what does not move is passed on as it is. Raises ValueError where `steps`
    would run over the end of a chunk, RuntimeError where a written level is not finite.
    """
    clock = state.clock + steps
    fast, start, sums = list(state.fast), list(state.start), list(state.sums)
    for level, period in enumerate(clocks.periods):
        if state.clock % period + steps > period:
            raise ValueError(
                f"{steps} steps run over the end of a chunk of level {level} (period {period}, "
                f"{state.clock % period} steps in): take at most {clocks.chunk} at a time"
            )
        held = sums[level]
        total = {n: held[n] + g if n in held else g for n, g in gradients[level].items()}
        if clock % period == 0:
            fast[level] = _written(clocks, level, fast[level], total, period, clock)
            total = {}
        sums[level] = total
    if clocks.nested:
        for level, slower in enumerate(clocks.periods[1:]):
            if clock % slower == 0:
                start[level] = {
                    n: torch.lerp(s, fast[level][n], clocks.meta_rate) for n, s in start[level].items()
                }
                fast[level] = start[level]
    return replace(state, fast=tuple(fast), start=tuple(start), sums=tuple(sums), clock=clock)


def finish(clocks: LevelClocks, state: ContinuumState, partial: Partial) -> ContinuumState:
    """What becomes of unfinished chunks where a stream ends.

    "carry" leaves them to go on; "flush" writes what they hold ("mean": over the steps they hold) and
    restarts all clocks; "drop" forgets them and restarts.
    """
    if partial not in ("carry", "flush", "drop"):
        raise ValueError(f'partial must be "carry", "flush" or "drop", got {partial!r}')
    if partial == "carry":
        return state
    fast = list(state.fast)
    if partial == "flush":
        for level, period in enumerate(clocks.periods):
            held = state.clock % period
            if held and state.sums[level]:
                fast[level] = _written(clocks, level, fast[level], state.sums[level], held, state.clock)
    return replace(state, fast=tuple(fast), sums=tuple({} for _ in fast), clock=0)


def _written(
    clocks: LevelClocks, level: int, values: Values, total: Values, steps: int, clock: int
) -> dict[str, Tensor]:
    rate = clocks.lr[level] / (steps if clocks.reduction == "mean" else 1)
    new = {n: torch.add(v, total[n], alpha=-rate) if n in total else v for n, v in values.items()}
    if clocks.check_finite:
        moved = [v.detach() for n, v in new.items() if n in total]
        refuse_non_finite(moved, f"level {level} at step {clock}", "the written memory")
    return new
