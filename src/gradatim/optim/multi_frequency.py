"""One optimizer, several clocks: parameter groups that move every step, every 8 steps, every 64 steps.

The continuum memory system of "Nested Learning" (2025, arXiv 2512.24695, Eq. 70-74) gives level l a chunk of
C_l steps: where the step count is a multiple of C_l,

    theta_l <- theta_l - sum over the last C_l steps of lr * gradient,

otherwise theta_l stays. Here any optimizer takes the place of the subtraction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradatim.optim.step_gradients import call_closure, group_gradients

Reduction = Literal["sum", "mean"]
Group = Sequence[Any] | Mapping[str, Any]


class MultiFrequency(Optimizer):
    """Steps each group of an inner optimizer by its own clock, on the gradients of its whole chunk.

    Args:
        optimizer_factory: makes the inner optimizer from a list of parameter groups, such as
            `lambda groups: torch.optim.SGD(groups, lr=0.1)`.
        groups: (params, period, reduction) each, or dicts with "params", "period", "reduction" and whatever
            else the inner optimizer takes per group ("lr" ...). Period defaults to 1, reduction to "sum".
            A plain iterable of parameters is one group of period 1.
        check_finite: refuse gradients that are not finite, before they enter a sum.

    "sum" steps on the chunk's summed gradients, as the paper writes it, and so moves a slow group `period`
    times as far per unit of lr as "mean" does. Rates are read when a chunk ends.

    A chunk that is not full when training stops is *carried*: it goes on at the next `step()`, also after a
    save and load. `flush()` steps on what there is and restarts all clocks, `discard()` forgets it; call one
    of them where a stream ends and another begins.

    `state_dict()` is that of the inner optimizer, with the clock and the sums beside it.

    Raises ValueError for a period below 1 or an unknown reduction, RuntimeError for sparse or non-finite
    gradients.
    """

    def __init__(
        self,
        optimizer_factory: Callable[[list[dict[str, Any]]], Optimizer],
        groups: Iterable[Any],
        *,
        check_finite: bool = True,
    ) -> None:
        self.check_finite = check_finite
        self.clock = 0
        self._sums: dict[Tensor, Tensor] = {}
        self.inner = optimizer_factory(_as_groups(groups))
        super().__init__(self.inner.param_groups, self.inner.defaults)
        self._share()

    def _share(self) -> None:
        # One set of groups and one state: a scheduler that changes a rate here changes it there.
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state

    def __getstate__(self) -> dict[str, Any]:
        # `Optimizer` keeps only its own three attributes in a copy.
        return {**super().__getstate__(), "inner": self.inner, "clock": self.clock, "_sums": self._sums,
                "check_finite": self.check_finite}  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "inner" in state:
            self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer; its clock runs with the others'."""
        if not hasattr(self, "param_groups") or self.param_groups is not self.inner.param_groups:
            super().add_param_group(param_group)  # while the base class sets itself up
            return
        self.inner.add_param_group(_as_group(param_group))

    def due(self) -> list[bool]:
        """Which groups the next `step()` will move."""
        return [(self.clock + 1) % group["period"] == 0 for group in self.param_groups]

    @property
    def pending(self) -> list[int]:
        """Steps taken into each group's unfinished chunk."""
        return [self.clock % group["period"] for group in self.param_groups]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take the gradients in, advance the clock, move the groups that are due."""
        loss = call_closure(closure)
        for group in self.param_groups:
            group_gradients({**group, "maximize": False, "check_finite": self.check_finite}, "MultiFrequency")
        counts = [
            group["period"] if due else 0 for group, due in zip(self.param_groups, self.due(), strict=True)
        ]
        self.clock += 1
        for group in self.param_groups:
            if group["period"] > 1:
                for p in group["params"]:
                    if p.grad is not None:
                        self._take(p, p.grad)
        self._move(counts)
        return loss

    @torch.no_grad()
    def flush(self) -> None:
        """Move every group whose chunk has begun on what it holds, and restart all clocks."""
        self._move(
            [0 if g["period"] == 1 else n for g, n in zip(self.param_groups, self.pending, strict=True)]
        )
        self.clock = 0

    def discard(self) -> None:
        """Forget unfinished chunks and restart all clocks."""
        self._sums.clear()
        self.clock = 0

    def _take(self, p: Tensor, gradient: Tensor) -> None:
        if p in self._sums:
            self._sums[p].add_(gradient)
        else:
            self._sums[p] = gradient.clone()

    def _move(self, counts: Sequence[int]) -> None:
        """Step the inner optimizer on groups with a positive count of steps; the others see no gradient."""
        if not any(counts):
            return
        kept = {p: p.grad for group in self.param_groups for p in group["params"]}
        try:
            for group, count in zip(self.param_groups, counts, strict=True):
                for p in group["params"]:
                    if not count:
                        p.grad = None
                    elif group["period"] > 1:
                        total = self._sums.pop(p, None)
                        mean = total is not None and group["reduction"] == "mean"
                        p.grad = total.div_(count) if mean and total is not None else total
            self.inner.step()
        finally:
            for p, gradient in kept.items():
                p.grad = gradient

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, "clock", and "sums" by parameter index."""
        order = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        sums = {order[p]: total for p, total in self._sums.items()}
        return {**self.inner.state_dict(), "clock": self.clock, "sums": sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state, unfinished chunks included.

        Raises ValueError where the periods differ: the clock would mean something else.
        """
        saved = [g.get("period") for g in state_dict["param_groups"]]
        ours = [g["period"] for g in self.param_groups]
        if saved != ours:
            raise ValueError(f"the saved clocks have periods {saved}, these have {ours}")
        self.inner.load_state_dict({k: state_dict[k] for k in ("state", "param_groups")})
        self._share()
        params = [p for group in self.param_groups for p in group["params"]]
        self.clock = int(state_dict["clock"])
        self._sums = {
            params[int(i)]: total.to(params[int(i)], copy=True) for i, total in state_dict["sums"].items()
        }


def _as_groups(groups: Iterable[Any]) -> list[dict[str, Any]]:
    found = list(groups)
    if found and all(isinstance(g, Tensor) for g in found):
        found = [{"params": found}]
    return [_as_group(g) for g in found]


def _as_group(group: Group) -> dict[str, Any]:
    """A dict with "params" (a list), "period" and "reduction", checked."""
    if isinstance(group, Mapping):
        made = {"period": 1, "reduction": "sum", **group}
    else:
        params, period, reduction = (*group, "sum")[:3]
        made = {"params": params, "period": period, "reduction": reduction}
    params = made["params"]
    made["params"] = [params] if isinstance(params, Tensor) else list(params)
    period = made["period"]
    if not isinstance(period, int) or period < 1:
        raise ValueError(f"a period must be a whole number of steps, at least 1, got {period}")
    if made["reduction"] not in ("sum", "mean"):
        raise ValueError(f'reduction must be "sum" or "mean", got {made["reduction"]!r}')
    return made
