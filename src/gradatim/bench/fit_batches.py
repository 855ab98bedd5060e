"""Batches from a loader, this process's share of them, with a position that can be saved and found again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import synchronize_rng_states
from torch.utils.data import DataLoader, IterableDataset

from gradatim.bench.checkpoint import rng_state, set_rng_state


class Batches:
    """Walks a loader epoch by epoch and knows where it is.

    A saved position holds the random state at the start of the epoch, the state of the loader or its
    sampler where they have one, and the number of batches taken. Finding it again replays the epoch up to
    there, loading and dropping its batches, so that shuffling, random augmentation and worker processes
    come out as they were. A stateful loader, or a stateful sampler read without worker processes by one
    process, is set to its place instead; that also holds for samplers whose order depends on training.

    Of N processes, number k takes batches k, k + N, k + 2N ... of the loader; where the last round is
    incomplete Accelerate fills it up from the epoch's first examples.

    Call `begin` or `load_state_dict` first. Raises TypeError where several processes are to share something
    that is not a DataLoader.
    """

    def __init__(self, loader: Iterable[Any], accelerator: Accelerator) -> None:
        self.loader, self.sharded = loader, None
        self.epoch = self.taken = 0
        self.start: dict[str, Any] = {}
        self._batches: Iterator[Any] = iter(())
        if accelerator.num_processes > 1:
            if not isinstance(loader, DataLoader):
                raise TypeError(f"several processes share a DataLoader, not a {type(loader).__name__}")
            self.sharded = prepare_data_loader(
                loader,
                num_processes=accelerator.num_processes,
                process_index=accelerator.process_index,
                dispatch_batches=False,
                rng_types=["generator"],
            )
        chain = _chain(loader)
        self.generators = _unique(
            g for p in chain if isinstance(g := getattr(p, "generator", None), torch.Generator)
        )
        self.epoch_aware = [p for p in chain if hasattr(p, "set_epoch")]
        # A data set's own state is left alone: a shuffle buffer, for one, is not part of it.
        order = [p for p in chain if p is not getattr(loader, "dataset", None)]
        self.stateful = next(
            (p for p in order if hasattr(p, "state_dict") and hasattr(p, "load_state_dict")), None
        )
        self.seekable = self.stateful is not None and (
            self.stateful is loader
            or (self.sharded is None and isinstance(loader, DataLoader) and loader.num_workers == 0)
        )

    def __len__(self) -> int:
        """Batches per epoch for this process; TypeError where the loader does not know."""
        return len(self.loader if self.sharded is None else self.sharded)  # type: ignore[arg-type]

    def begin(self, epoch: int) -> None:
        """Start an epoch."""
        self.epoch, self.taken = epoch, 0
        for part in self.epoch_aware:
            part.set_epoch(epoch)
        if self.sharded is not None and self.sharded.rng_types:
            synchronize_rng_states(self.sharded.rng_types, self.sharded.synchronized_generator)
        self.start = {
            "rng": rng_state(),
            "generators": [g.get_state() for g in self.generators],
            "stateful": self.stateful.state_dict() if self.stateful is not None else None,
        }
        self._batches = self._iterate()

    def take(self, n: int) -> list[Any]:
        """The next `n` batches, fewer at the end of the epoch, none after it."""
        taken = list(itertools.islice(self._batches, n))
        self.taken += len(taken)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """The position: plain values and tensors."""
        now = self.stateful.state_dict() if self.seekable and self.stateful is not None else None
        return {"epoch": self.epoch, "taken": self.taken, "start": self.start, "now": now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position. Moves the global random state: restore it afterwards."""
        self.epoch, self.taken, self.start = state["epoch"], state["taken"], state["start"]
        for part in self.epoch_aware:
            part.set_epoch(self.epoch)
        set_rng_state(self.start["rng"])
        for generator, saved in zip(self.generators, self.start["generators"], strict=True):
            generator.set_state(saved)
        if self.stateful is not None:
            self.stateful.load_state_dict(state["now"] if self.seekable else self.start["stateful"])
        self._batches = self._iterate()
        if not self.seekable:
            for _ in range(self.taken):
                next(self._batches)

    def _iterate(self) -> Iterator[Any]:
        # Accelerate's own iteration reads one batch ahead, which would put a sampler's state out of step.
        return iter(self.loader if self.sharded is None else self.sharded.base_dataloader)


def _chain(loader: Iterable[Any]) -> list[Any]:
    """The loader and everything in it that may decide the order."""
    if not isinstance(loader, DataLoader):
        return [loader]
    parts: list[Any] = [loader, loader.dataset]
    if not isinstance(loader.dataset, IterableDataset):
        parts += [loader.batch_sampler, loader.sampler, getattr(loader.batch_sampler, "sampler", None)]
    return _unique(p for p in parts if p is not None)


def _unique(parts: Iterable[Any]) -> list[Any]:
    return list({id(part): part for part in parts}.values())
