"""A uniform sample of a stream of unknown length, in memory that does not grow with it."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")

SCORES_AT_ONCE = 4096


class Reservoir(Generic[T]):
    """The `size` items with the smallest random scores: a uniform sample without replacement.

    Item number i (from 0) always gets the i-th draw of the seeded generator, so the sample depends on
    the seed and the stream alone, not on how it was cut into batches. (Efraimidis and Spirakis,
    "Weighted random sampling with a reservoir", 2006, with equal weights.)
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"a reservoir needs a size of at least 1, got {size}")
        self.size = size
        self.seen = 0
        self._generator = np.random.default_rng(seed)
        self._scores: list[float] = []
        self._heap: list[tuple[float, int, T]] = []

    def add(self, item: T) -> None:
        """Offer one item."""
        if not self._scores:
            self._scores = self._generator.random(SCORES_AT_ONCE)[::-1].tolist()
        score = self._scores.pop()
        entry = (-score, -self.seen, item)
        self.seen += 1
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def items(self) -> list[T]:
        """The sample in the order of the stream."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: -entry[1])]


class RowScores:
    """The same sample over batches of rows: which rows of each batch may still belong to it.

    `keep(n)` returns the positions within a batch of n rows, and their scores, that beat the current
    threshold; `cut(scores)` lowers the threshold when the kept rows are more than needed.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"a sample needs at least 1 row, got {size}")
        self.size = size
        self.seen = 0
        self._generator = np.random.default_rng(seed)
        self._threshold = np.inf

    def keep(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        scores = self._generator.random(rows)
        self.seen += rows
        positions = np.flatnonzero(scores < self._threshold)
        return positions, scores[positions]

    def cut(self, scores: np.ndarray) -> np.ndarray:
        """Positions of the `size` smallest of `scores`, in their order."""
        if scores.size <= self.size:
            return np.arange(scores.size)
        chosen = np.sort(np.argpartition(scores, self.size - 1)[: self.size])
        self._threshold = float(scores[chosen].max())
        return chosen
