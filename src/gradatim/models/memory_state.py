"""What a memory carries from one call to the next: fast weights of every sample, and where its chunks
stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradatim.models.memory_scan import MatrixState


@dataclass(frozen=True)
class Lane:
    """One fast matrix of every sample, and the copy of it at the start of its chunk.

    `anchor` is None where a chunk is one token: the matrix is its own chunk start.
    """

    matrix: MatrixState
    anchor: Tensor | None = None

    @property
    def start(self) -> Tensor:
        """The matrix as it stood when the current chunk began."""
        return self.matrix.value if self.anchor is None else self.anchor

    def begin_block(self, tokens: Tensor, chunk: int) -> Lane:
        """Samples whose chunk is full (tokens [batch] is a multiple of `chunk`) begin another."""
        if self.anchor is None:
            return self
        due = (tokens % chunk == 0).view(-1, *[1] * (self.anchor.dim() - 1))
        return replace(self, anchor=torch.where(due, self.matrix.value, self.anchor))


@dataclass(frozen=True)
class MemoryState:
    """The state of a memory, one row per sample: nothing of it is shared by the batch.

    lanes   fast matrices, [batch, heads, ..., out, in] each, float32 or float64
    conv    [batch, conv_size - 1, dim]: the last inputs of the short convolution
    tokens  [batch] how many tokens each sample has seen
    """

    lanes: tuple[Lane, ...]
    conv: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, change: Callable[[Tensor], Tensor]) -> MemoryState:
        """Every tensor passed through `change`."""
        lanes = tuple(
            Lane(
                MatrixState(
                    change(lane.matrix.value),
                    None if lane.matrix.velocity is None else change(lane.matrix.velocity),
                ),
                None if lane.anchor is None else change(lane.anchor),
            )
            for lane in self.lanes
        )
        return MemoryState(lanes, change(self.conv), change(self.tokens))

    def select(self, index: Tensor) -> MemoryState:
        """The samples `index`, in that order: what beam search asks for."""
        return self.map(lambda t: t.index_select(0, index.to(t.device)))

    def detach(self) -> MemoryState:
        """The same numbers without their history: training goes on, but not back beyond this point."""
        return self.map(Tensor.detach)

    def merge(self, kept: MemoryState, rows: Tensor) -> MemoryState:
        """This state in the samples where `rows` [batch] is True, `kept` in the others."""
        pairs = iter(kept.tensors())
        return self.map(lambda t: torch.where(rows.view(-1, *[1] * (t.dim() - 1)), t, next(pairs)))

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        found: list[Tensor] = []

        def keep(t: Tensor) -> Tensor:
            found.append(t)
            return t

        self.map(keep)
        return found


def blocks(time: int, tokens: Tensor, base: int, fresh: bool) -> list[tuple[int, int]]:
    """Cut `time` tokens where chunks of `base` tokens begin.

    Samples that stand at different places of their chunks share no border: they go token by token.
    """
    phase = 0
    if not fresh and base > 1:
        phases = tokens % base
        phase = int(phases[0])
        if not bool((phases == phase).all()):
            return [(t, t + 1) for t in range(time)]
    ends = list(range(base - phase, time, base))
    return list(zip([0, *ends], [*ends, time], strict=True))
