"""What every in-context task hands out: contexts of pairs, and a stream of them for a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info


@dataclass(frozen=True)
class ICLBatch:
    """A batch of contexts: inputs, labels and, where the task is linear, the weights behind them.

    Entry t of a learner's predictions [batch, n] answers `x[:, t]` from the pairs before t alone.
    `w` is None for tasks that are not linear in x.
    """

    x: Float[Tensor, "batch n d"]
    y: Float[Tensor, "batch n"]
    w: Float[Tensor, "batch d"] | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ICLBatch:
        """The same contexts elsewhere or in another precision."""
        moved = None if self.w is None else self.w.to(device, dtype)
        return replace(self, x=self.x.to(device, dtype), y=self.y.to(device, dtype), w=moved)

    def __len__(self) -> int:
        return len(self.x)


@runtime_checkable
class ContextTask(Protocol):
    """Anything that draws contexts: `d` inputs wide, `n` pairs long."""

    @property
    def d(self) -> int:
        """Inputs of a pair."""
        ...

    @property
    def n(self) -> int:
        """Pairs of a context."""
        ...

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ICLBatch:
        """`batch` fresh contexts; with a generator the same generator state gives the same contexts."""
        ...


class ContextStream(IterableDataset[dict[str, Tensor]]):
    """An endless stream of batches {"x", "y", "labels"} for a DataLoader (batch_size=None) or HF Trainer.

    Batch k of worker v on rank r depends on (seed, r, v, k) alone, so ranks and workers never repeat one
    another. `labels` is `y`, under the name that Hugging Face's Trainer passes on.

    Raises ValueError for a batch below 1 or a negative seed.
    """

    def __init__(self, task: ContextTask, batch: int, seed: int = 0, rank: int = 0) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if seed < 0 or rank < 0:
            raise ValueError(f"seed and rank must not be negative, got {seed} and {rank}")
        self.task, self.batch, self.seed, self.rank = task, batch, seed, rank

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        index = 0 if worker is None else worker.id
        step = 0
        while True:
            drawn = self.task.sample(
                self.batch, generator=context_generator(self.seed, self.rank, index, step)
            )
            yield {"x": drawn.x, "y": drawn.y, "labels": drawn.y}
            step += 1


def context_generator(*key: int) -> torch.Generator:
    """A generator that depends on the whole key (seed, rank, step ...) and on nothing else."""
    import numpy as np

    # SeedSequence pads short keys with zeros; the length keeps (1,) and (1, 0) apart.
    state = np.random.SeedSequence([len(key), *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
