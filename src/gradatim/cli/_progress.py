"""A live line per step of a long command, on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def told(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (step, done, total): bars on a terminal, elsewhere a line every ten seconds."""
    import sys

    if not shown:
        yield lambda step, done, total: None
    elif sys.stderr.isatty():
        yield from _drawn()
    else:
        yield _lines()


def _drawn() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total or None)
            bars.update(tasks[step], completed=done, total=total or None)

        yield show


def _lines() -> Callable[[str, int, int], None]:
    import sys

    last: dict[str, float] = {}

    def show(step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if total and (done in (0, total) or now - last.get(step, 0.0) > 10):
            last[step] = now
            print(f"{step} {done:,} of {total:,}", file=sys.stderr, flush=True)

    return show
