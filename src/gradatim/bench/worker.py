"""What happens inside a worker process: a few trials, timed, with every failure caught and kept."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gradatim.bench.study import Arm, BatchFunction, Outcome, Scale, TrialFunction


class TrialTimeout(Exception):
    """A trial ran past its limit."""


@dataclass(frozen=True)
class Finished:
    """A trial's outcome or its failure, as it travels back from a worker."""

    arm: str
    seed: int
    outcome: Outcome
    seconds: float
    reason: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Chunk:
    """Seeds of one arm that a worker runs in one call."""

    arm: Arm
    seeds: tuple[int, ...]


def prepare_worker(parent: int | None = None) -> None:
    """Once per worker process: one thread, deaf to Ctrl-C, and gone when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _limit(seconds: float | None) -> Iterator[None]:
    """Raise TrialTimeout in the running code after `seconds` (POSIX main thread; elsewhere no limit)."""
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not usable:
        yield
        return

    def ring(signum: int, frame: Any) -> None:
        raise TrialTimeout(f"ran past its limit of {seconds:g} s (--timeout)")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_chunk(
    trial: TrialFunction | None,
    batch: BatchFunction | None,
    chunk: Chunk,
    scale: Scale,
    timeout: float | None,
) -> list[Finished]:
    """Run the seeds of a chunk; a batch that fails is run again seed by seed to spare the sound ones."""
    with _one_thread():
        if trial is not None:
            return [_guarded(lambda s=s: [trial(chunk.arm, s, scale)], chunk.arm, (s,), timeout)[0]
                    for s in chunk.seeds]  # fmt: skip
        assert batch is not None
        whole = None if timeout is None else timeout * len(chunk.seeds)
        done = _guarded(lambda: list(batch(chunk.arm, chunk.seeds, scale)), chunk.arm, chunk.seeds, whole)
        if len(chunk.seeds) == 1 or not all(f.reason for f in done):
            return done
        return [_guarded(lambda s=s: list(batch(chunk.arm, (s,), scale)), chunk.arm, (s,), timeout)[0]
                for s in chunk.seeds]  # fmt: skip


def _guarded(call: Any, arm: Arm, seeds: Sequence[int], timeout: float | None) -> list[Finished]:
    start = time.perf_counter()
    try:
        with _limit(timeout):
            outcomes = call()
        if len(outcomes) != len(seeds):
            raise ValueError(f"arm {arm.name!r}: {len(seeds)} seeds gave {len(outcomes)} outcomes")
    except Exception as e:
        each = (time.perf_counter() - start) / len(seeds)
        reason = f"{type(e).__name__}: {e}".splitlines()[0][:300]
        trace = traceback.format_exc()
        return [Finished(arm.name, s, Outcome({}), each, reason, trace) for s in seeds]
    each = (time.perf_counter() - start) / len(seeds)
    return [_checked(arm, s, o, each) for s, o in zip(seeds, outcomes, strict=True)]


def _checked(arm: Arm, seed: int, outcome: Outcome, seconds: float) -> Finished:
    metrics = {name: float(value) for name, value in outcome.metrics.items()}
    bad = Outcome(metrics).first_non_finite()
    if bad is not None:
        return Finished(arm.name, seed, Outcome({}), seconds, f"metric {bad!r} is {metrics[bad]}")
    return Finished(arm.name, seed, Outcome(metrics, outcome.curves), seconds)
