"""A meta-batch: T small tasks, each with examples to learn from (support) and to be judged on (query)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gradatim.tasks.contexts import ICLBatch


@dataclass(frozen=True)
class Tasks:
    """T tasks of equal size; whatever learns from the support must not see the query's labels.

    xs_s, ys_s  [T, n_s, ...] and [T, n_s]   support inputs and labels
    xs_q, ys_q  [T, n_q, ...] and [T, n_q]   query inputs and labels
    meta        one object per task that says what it is (a `Concept`), or nothing
    """

    xs_s: Shaped[Tensor, "tasks n_s ..."]
    ys_s: Shaped[Tensor, "tasks n_s ..."]
    xs_q: Shaped[Tensor, "tasks n_q ..."]
    ys_q: Shaped[Tensor, "tasks n_q ..."]
    meta: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.meta and len(self.meta) != len(self.xs_s):
            raise ValueError(f"{len(self.xs_s)} tasks need as many meta entries, got {len(self.meta)}")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tasks:
        """The same tasks elsewhere; `dtype` changes floating-point tensors alone."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        return Tasks(move(self.xs_s), move(self.ys_s), move(self.xs_q), move(self.ys_q), self.meta)

    def __len__(self) -> int:
        return len(self.xs_s)

    def __getitem__(self, index: slice | Sequence[int]) -> Tasks:
        """Some of the tasks, in the order asked for."""
        chosen = range(len(self))[index] if isinstance(index, slice) else list(index)
        rows = torch.as_tensor(list(chosen), dtype=torch.long, device=self.xs_s.device)
        meta = tuple(self.meta[i] for i in chosen) if self.meta else ()
        return Tasks(self.xs_s[rows], self.ys_s[rows], self.xs_q[rows], self.ys_q[rows], meta)


def concatenate(parts: Sequence[Tasks]) -> Tasks:
    """All tasks of several meta-batches as one. Raises ValueError when there is none."""
    if not parts:
        raise ValueError("nothing to concatenate: give at least one meta-batch")

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    meta = tuple(m for part in parts for m in part.meta)
    return Tasks(joined("xs_s"), joined("ys_s"), joined("xs_q"), joined("ys_q"), meta)


def tasks_of_contexts(contexts: ICLBatch, support: int) -> Tasks:
    """Regression contexts as tasks: the first `support` pairs to learn from, the rest to be judged on.

    Raises ValueError unless 1 <= support < pairs of a context.
    """
    x: Float[Tensor, "tasks n d"] = contexts.x
    if not 1 <= support < x.shape[1]:
        raise ValueError(f"support must leave a query: between 1 and {x.shape[1] - 1}, got {support}")
    y = contexts.y
    return Tasks(x[:, :support], y[:, :support], x[:, support:], y[:, support:])
