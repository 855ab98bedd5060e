"""Batches of one task each, for training one encoder on many tasks.

    sampler = TaskBatchSampler.of_datasets  # multi_dataset_batch_sampler= of the training arguments
    losses = losses_by_task(kinds, lambda own: MultiPositiveRankingLoss(model, in_batch_negatives=own))
    SentenceTransformerTrainer(model, arguments, train_dataset=DatasetDict(...), loss=losses)

Source: LG-ANNA-Embedding, 2025, arXiv 2506.07438 (one recipe for IR and non-IR tasks); homogeneous batches
are usual in this family of encoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import Sampler

OWN_NEGATIVES = ("classification", "clustering")
KINDS = ("retrieval", "similarity", *OWN_NEGATIVES)
Loss = TypeVar("Loss")


class TaskBatchSampler(Sampler[list[int]]):
    """Shuffled batches, each of one task; every example once an epoch.

    Args:
        tasks: the task of each example.
        batch_size: examples per batch and process.
        drop_last: leave out a task's incomplete last step instead of giving a smaller batch.
        smoothing: 1 takes tasks by their size. Below 1 a task of n examples gives about n^smoothing of
            them, scaled so that the largest task is taken whole: a smaller one repeats its examples,
            reshuffled each time.
        processes: batches come in groups of this many of one task and one size. Accelerate deals batch i to
            process i mod processes, so all processes then work on one task at a time. Where a last group has
            too few examples, some of its task are repeated.
        seed: of the order, which follows from (seed, epoch) alone.

    `set_epoch` chooses the epoch; `state_dict` holds (epoch, batches given out), and after `load_state_dict`
    the next iteration goes on from there. The trainer of Hugging Face skips batches on resuming by itself: do
    not restore the state there as well.

    Raises ValueError for no examples, sizes out of range, or a drop_last that leaves no batch.
    """

    def __init__(
        self,
        tasks: Sequence[Hashable],
        batch_size: int,
        drop_last: bool = False,
        smoothing: float | int = 1.0,
        processes: int = 1,
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or processes < 1:
            raise ValueError(f"batch_size={batch_size} and processes={processes} must be at least 1")
        if not 0 <= smoothing <= 1:
            raise ValueError(f"smoothing={smoothing} must lie in [0, 1]")
        if not len(tasks):
            raise ValueError("no examples to batch")
        # Over several processes accelerate leaves out, and refills with other tasks' rows, every group of
        # batches shorter than `batch_size`; one of no set size it deals out as it is.
        self.batch_size = batch_size if processes == 1 else None
        self.largest, self.drop_last = batch_size, drop_last
        self.processes, self.seed = processes, seed
        members: dict[Hashable, list[int]] = {}
        for i, task in enumerate(tasks):
            members.setdefault(task, []).append(i)
        self.members = {task: np.array(own) for task, own in members.items()}
        largest = max(len(own) for own in members.values())
        self.wanted = {
            task: max(len(own), round(largest * (len(own) / largest) ** smoothing))
            for task, own in members.items()
        }
        self.epoch = 0
        self._given = 0
        self._resumed = 0
        if not len(self):
            sizes = {str(task): len(own) for task, own in members.items()}
            raise ValueError(
                f"drop_last=True leaves no batch of {batch_size} for {processes} process(es) from tasks of "
                f"{sizes}"
            )

    @classmethod
    def of_datasets(
        cls,
        dataset: Any,
        batch_samplers: Sequence[Any],
        generator: Any = None,
        seed: int = 0,
        smoothing: float | int = 1.0,
    ) -> TaskBatchSampler:
        """As `multi_dataset_batch_sampler` of sentence-transformers: one task per dataset of a
        `DatasetDict`."""
        from accelerate import PartialState

        sizes = [len(part) for part in dataset.datasets]
        return cls(
            np.repeat(np.arange(len(sizes)), sizes).tolist(),
            batch_samplers[0].batch_size,
            batch_samplers[0].drop_last,
            smoothing,
            PartialState().num_processes,
            seed,
        )

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is of this epoch, from its start; a state just loaded for it is kept."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._resumed = 0

    def __len__(self) -> int:
        step = self.largest * self.processes
        steps = [n // step if self.drop_last else math.ceil(n / step) for n in self.wanted.values()]
        return sum(steps) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        first, self._resumed = self._resumed, 0
        self._given = first
        for batch in self._batches()[first:]:
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where this epoch stands."""
        return {"epoch": self.epoch, "given": self._given}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """The next iteration goes on where the state was taken. Raises ValueError for another sampler's
        state."""
        given = int(state["given"])
        if not 0 <= given <= len(self):
            raise ValueError(
                f"the state has given {given} batches, this sampler has {len(self)}: another data set?"
            )
        self.epoch = int(state["epoch"])
        self._given = self._resumed = given

    def _batches(self) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        step = self.largest * self.processes
        groups: list[list[list[int]]] = []
        for task, own in self.members.items():
            repeats = math.ceil(self.wanted[task] / len(own))
            order = np.concatenate([rng.permutation(own) for _ in range(repeats)])[: self.wanted[task]]
            for begin in range(0, len(order), step):
                rows = order[begin : begin + step]
                if len(rows) < step and self.drop_last:
                    break
                short = -len(rows) % self.processes
                rows = np.concatenate([rows, rng.choice(own, size=short)]) if short else rows
                size = len(rows) // self.processes
                groups.append([rows[i * size : (i + 1) * size].tolist() for i in range(self.processes)])
        return [batch for i in rng.permutation(len(groups)) for batch in groups[i]]


def losses_by_task(kinds: Mapping[str, str], build: Callable[[bool], Loss]) -> dict[str, Loss]:
    """A loss per dataset: `build(in_batch_negatives)`, off for classification and clustering.

    There other rows of the batch share labels, so their passages are not negatives. Raises ValueError for a
    kind other than retrieval, similarity, classification, clustering.
    """
    wrong = next((f"{name}: {kind!r}" for name, kind in kinds.items() if kind not in KINDS), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is no kind of task; choose {', '.join(KINDS)}")
    return {name: build(kind not in OWN_NEGATIVES) for name, kind in kinds.items()}
