"""Writes the levels of a network in place while it runs: online learning at several speeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradatim.models.level_clocks import ContinuumState, LevelClocks, Partial, Values, advance, finish


class LevelWriter:
    """Moves the parameters of `levels` by the clocks, each on the summed gradients of its own chunk.

        loss = task_loss(model(x)); writer.update(loss)

    `update` computes the gradients of exactly these parameters and leaves `.grad` alone. `reset(level)`
    returns to the values of the first update (or of `mark_start()`). While `frozen`, updates do nothing.

    Args:
        levels: modules, fastest first, as many as there are periods.
        clocks: periods, rates and reduction.
        deferred: keep (input, delta) of the linear layers of levels slower than the base chunk and multiply
            them once per due chunk, instead of once per update: one product over C rows for C small ones,
            for the memory of C rows. Such levels must consist of `nn.Linear`.

    `state_dict()` (clock, sums, starts) goes beside the parameters, which are saved where they live.
    """

    def __init__(self, levels: Iterable[nn.Module], clocks: LevelClocks, *, deferred: bool = False) -> None:
        if not isinstance(levels, nn.ModuleList):
            levels = list(levels)
        if len(levels) != len(clocks.periods):
            raise ValueError(f"{len(levels)} levels need as many periods, got {clocks.periods}")
        # A module list may be rebuilt by loading; names are resolved at each use.
        self.levels: nn.ModuleList | list[nn.Module] = levels
        self.clocks = clocks
        self.frozen = False
        self.clock = 0
        self._sums: tuple[Values, ...] = tuple({} for _ in levels)
        self._start: tuple[Values, ...] | None = None
        self._seen: dict[int, list[tuple[str, Tensor, Tensor]]] = {}
        self._kept: dict[int, dict[str, list[tuple[Tensor, Tensor]]]] = {}
        self._handles: list[RemovableHandle] = []
        if deferred:
            self._defer()

    def parameters(self) -> list[dict[str, nn.Parameter]]:
        """The trainable parameters of each level, by name."""
        return [{n: p for n, p in level.named_parameters() if p.requires_grad} for level in self.levels]

    def groups(self, lr: float | None = None, *, rate_matched: bool = False) -> list[dict[str, Any]]:
        """One parameter group per level, with "period" and "reduction", for `optim.MultiFrequency`.

        `lr` takes the place of the levels' own rates. With `rate_matched` every period is 1 and a level's
        rate is what it moves per step on average: the control that a gain by frequency must beat.
        """
        clocks = self.clocks if lr is None else replace(self.clocks, lr=(lr,) * len(self.clocks.periods))
        rates = clocks.step_rates() if rate_matched else clocks.lr
        return [
            {
                "params": list(level.values()),
                "period": 1 if rate_matched else period,
                "reduction": clocks.reduction,
                "lr": rate,
            }
            for level, period, rate in zip(self.parameters(), clocks.periods, rates, strict=True)
        ]

    def mark_start(self) -> None:
        """From now on `reset` returns to the values as they are."""
        self._start = tuple({n: p.detach().clone() for n, p in level.items()} for level in self.parameters())

    @torch.no_grad()
    def reset(self, level: int | None = None) -> None:
        """Return one level, or all, to the start; forget unfinished chunks and restart the clock.

        Raises IndexError for a level that does not exist.
        """
        levels = self.parameters()
        for i in range(len(levels)) if level is None else [range(len(levels))[level]]:
            if self._start is not None:
                for name, p in levels[i].items():
                    p.copy_(self._start[i][name])
        self._drop()
        self.clock = 0

    def update(self, loss_or_grads: Tensor | Iterable[Values], steps: int = 1) -> None:
        """Count `steps` steps and write the levels whose chunk ends.

        `loss_or_grads` is a scalar loss, summed over those steps, or its gradients: one {name: gradient} per
        level. Raises ValueError as `advance` does.
        """
        if self.frozen:
            self._seen.clear()
            return
        if self._start is None:
            self.mark_start()
        if isinstance(loss_or_grads, Tensor):
            gradients: list[Values] = [*self._gradients(loss_or_grads)]
        else:
            gradients = list(loss_or_grads)
        with torch.no_grad():
            due = [(self.clock + steps) % c == 0 for c in self.clocks.periods]
            gradients = [
                {**g, **self._multiplied(i)} if is_due and i in self._kept else g
                for i, (g, is_due) in enumerate(zip(gradients, due, strict=True))
            ]
            self._take(advance(self.clocks, self._state(), gradients, steps))

    @torch.no_grad()
    def finish(self, partial: Partial) -> None:
        """End a stream: "carry", "flush" or "drop" unfinished chunks, see `level_clocks.finish`."""
        if partial == "flush":
            self._materialise()
        self._take(finish(self.clocks, self._state(), partial))
        if partial != "carry":
            self._drop()

    def state_dict(self) -> dict[str, Tensor]:
        """Clock, unfinished sums and starts as flat tensors."""
        self._materialise()
        if self._start is None:
            self.mark_start()
        state = self._state()
        return {k: v for k, v in state.state_dict().items() if not k.startswith("fast.")}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take up a saved clock with its sums and starts."""
        fast = {f"fast.{i}.{n}": p for i, level in enumerate(self.parameters()) for n, p in level.items()}
        state = ContinuumState.from_state_dict({**saved, **fast})
        self.clock = state.clock
        levels = self.parameters()
        self._sums, self._start = (
            tuple(
                {n: v.to(levels[i][n], copy=True) for n, v in values.items()} for i, values in enumerate(part)
            )
            for part in (state.sums, state.start)
        )

    def close(self) -> None:
        """Take hooks off (only with `deferred`)."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _state(self) -> ContinuumState:
        fast = tuple(self.parameters())
        return ContinuumState(fast, self._start or fast, self._sums, self.clock)

    def _take(self, state: ContinuumState) -> None:
        for level, values in zip(self.parameters(), state.fast, strict=True):
            for name, p in level.items():
                if values[name] is not p:
                    p.copy_(values[name])
        self._sums, self.clock = state.sums, state.clock
        if self._start is not None:
            self._start = state.start

    def _drop(self) -> None:
        self._sums = tuple({} for _ in self._sums)
        self._seen.clear()
        self._kept.clear()

    # -- gradients -------------------------------------------------------------------------------------------

    def _gradients(self, loss: Tensor) -> list[dict[str, Tensor]]:
        wanted: list[tuple[int, str]] = []
        inputs: list[Tensor] = []
        for i, level in enumerate(self.parameters()):
            if i not in self._deferred:
                wanted += [(i, name) for name in level]
                inputs += list(level.values())
        seen = [(i, *entry) for i, entries in self._seen.items() for entry in entries]
        found = torch.autograd.grad(loss, [*inputs, *(y for *_, y in seen)], allow_unused=True)
        gradients: list[dict[str, Tensor]] = [{} for _ in self.levels]
        for (i, name), gradient in zip(wanted, found[: len(wanted)], strict=True):
            if gradient is not None:
                gradients[i][name] = gradient
        for (i, name, x, _), delta in zip(seen, found[len(wanted) :], strict=True):
            if delta is not None:
                rows = (x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1]))
                self._kept.setdefault(i, {}).setdefault(name, []).append(rows)
        self._seen.clear()
        return gradients

    @property
    def _deferred(self) -> set[int]:
        slow = {i for i, c in enumerate(self.clocks.periods) if c > self.clocks.chunk}
        return slow if self._handles else set()

    def _defer(self) -> None:
        for i, level in enumerate(self.levels):
            if self.clocks.periods[i] == self.clocks.chunk:
                continue
            linears = {n: m for n, m in level.named_modules() if isinstance(m, nn.Linear)}
            theirs = {p for m in linears.values() for p in m.parameters()}
            if any(p not in theirs for p in level.parameters() if p.requires_grad):
                raise ValueError(f"level {i} has parameters outside nn.Linear: it cannot be deferred")
            for name, module in linears.items():
                self._handles.append(module.register_forward_hook(self._hook(i, name)))

    def _hook(self, level: int, name: str) -> Any:
        def seen(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            if self.frozen or not torch.is_grad_enabled():
                return None
            self._seen.setdefault(level, []).append((name, inputs[0].detach(), output))
            return None

        return seen

    def _multiplied(self, level: int) -> dict[str, Tensor]:
        """The kept rows of a level as gradients: delta^T x, one product per matrix."""
        found = {}
        modules = dict(self.levels[level].named_modules())
        for name, rows in self._kept.pop(level, {}).items():
            linear = modules[name]
            assert isinstance(linear, nn.Linear)
            delta = torch.cat([d for _, d in rows]).to(linear.weight.dtype)
            dot = f"{name}." if name else ""
            if linear.weight.requires_grad:
                found[f"{dot}weight"] = delta.mT @ torch.cat([x for x, _ in rows]).to(linear.weight.dtype)
            if linear.bias is not None and linear.bias.requires_grad:
                found[f"{dot}bias"] = delta.sum(0)
        return found

    def _materialise(self) -> None:
        sums = list(self._sums)
        for i in list(self._kept):
            fresh = self._multiplied(i)
            sums[i] = {**sums[i], **{n: sums[i][n] + g if n in sums[i] else g for n, g in fresh.items()}}
        self._sums = tuple(sums)
