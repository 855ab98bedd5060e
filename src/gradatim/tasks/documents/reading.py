"""Reading many files in worker processes that may hang or die without harm to the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradatim.tasks.documents.passages import Passage
from gradatim.tasks.documents.walking import MOST_BYTES, FoundFile

MOST_PASSAGES = 2_000_000

# The front of the room `tasks` imports torch, two seconds and 200 MB that no reader of a file needs: an empty
# package in its place counts as imported already.
_START = """
import importlib.util, sys
spec = importlib.util.find_spec("gradatim")
room = importlib.util.spec_from_loader("gradatim.tasks", None, is_package=True)
room.submodule_search_locations[:] = [path + "/tasks" for path in spec.submodule_search_locations]
sys.modules["gradatim.tasks"] = importlib.util.module_from_spec(room)
from gradatim.tasks.documents.worker import main
main()
"""


@dataclass(frozen=True)
class ReadFile:
    """A file's passages and the SHA-256 of the bytes they come from; or why it could not be read."""

    file: FoundFile
    passages: tuple[Passage, ...] = ()
    sha256: str = ""
    error: str = ""


@dataclass(frozen=True)
class ReadLimits:
    """What one file may take: seconds between two signs of life, megabytes beyond the reader's own, bytes."""

    seconds: float = 30.0
    megabytes: int = 2048
    most_bytes: int = MOST_BYTES

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.most_bytes < 1:
            raise ValueError(f"limits must be above 0, got {self.seconds} s and {self.most_bytes} bytes")


def read_files(
    folder: str | Path, files: Iterable[FoundFile], limits: ReadLimits | None = None, jobs: int = 1
) -> Iterator[ReadFile]:
    """Read files below `folder`, each as soon as it is done (with `jobs` > 1 in any order).

    A file that fails, hangs, crashes its reader or takes too much memory comes back with its `error` set.
    """
    limits = limits or ReadLimits()
    waiting = iter(files)
    workers = [_Worker(limits) for _ in range(max(1, jobs))]
    pool = ThreadPoolExecutor(len(workers))
    try:
        running: dict[Future[ReadFile], _Worker] = {}
        for worker in workers:
            if (file := next(waiting, None)) is not None:
                running[pool.submit(worker.read, Path(folder), file)] = worker
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                worker = running.pop(future)
                if (file := next(waiting, None)) is not None:
                    running[pool.submit(worker.read, Path(folder), file)] = worker
                yield future.result()
    finally:
        for worker in workers:
            worker.close()
        pool.shutdown(cancel_futures=True)
        for worker in workers:  # one that its thread had started again meanwhile
            worker.close()


class _Worker:
    """One reading process, started when needed and again after it was lost."""

    def __init__(self, limits: ReadLimits) -> None:
        self.limits = limits
        self.process: subprocess.Popen[str] | None = None

    def read(self, folder: Path, file: FoundFile) -> ReadFile:
        most = self.limits.most_bytes * (10 if file.format == "jsonl" else 1)
        request = {
            "file": str(folder / file.path), "path": file.path, "format": file.format,
            "most_bytes": most, "most_passages": MOST_PASSAGES,
        }  # fmt: skip
        process = self._started()
        passages: list[Passage] = []
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except OSError:
            self.close()
            return ReadFile(file, error="the reader could not be started")
        while True:
            message, late = self._message(process)
            if message is None:
                self.close()
                seconds = f"{self.limits.seconds:g} s"
                return ReadFile(file, error=f"took longer than {seconds}" if late else "crashed its reader")
            if "error" in message:
                return ReadFile(file, error=message["error"])
            if "sha256" in message:
                return ReadFile(file, tuple(passages), message["sha256"])
            passages += [Passage(**p) for p in message["passages"]]

    def _message(self, process: subprocess.Popen[str]) -> tuple[dict[str, Any] | None, bool]:
        """The next line of the process; None when it ended, and whether because its time was up."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.limits.seconds, kill)
        timer.daemon = True
        timer.start()
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            return None, late.is_set()
        return json.loads(line), False

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, str(self.limits.megabytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="ascii",
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
            )
        return self.process

    def close(self) -> None:
        # Taken away at once: the thread that reads and the one that gives up may both close.
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass
        process.wait()
