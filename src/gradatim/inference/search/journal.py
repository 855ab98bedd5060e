"""What has been read so far, line by line, so that a killed `gradatim index` goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradatim.tasks.documents import FoundFile, Passage, ReadFile


class Journal:
    """Files that were read, on disk as soon as `add` returns; the torn last line of a killed run is dropped.

    `version` names the readers: what others have read is not taken over.
    """

    def __init__(self, path: Path, version: str) -> None:
        self._read: dict[str, dict[str, Any]] = {}
        good = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if entry is None or entry.get("version") != version:
                    break
                self._read[entry["path"]] = entry
                good += len(line)
        self._version = version
        self._stream = open(path, "ab")  # noqa: SIM115 - closed by __exit__
        self._stream.truncate(good)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def get(self, file: FoundFile) -> tuple[str, list[Passage]] | None:
        """SHA-256 and passages of a file, if it was read just as it is now."""
        from gradatim.tasks.documents import Passage

        entry = self._read.get(file.path)
        if entry is None or (entry["size"], entry["mtime_ns"], entry["format"]) != (
            file.size, file.mtime_ns, file.format,
        ):  # fmt: skip
            return None
        return entry["sha256"], [Passage(**p) for p in entry["passages"]]

    def add(self, read: ReadFile) -> None:
        """Write down a file that was read."""
        entry = {
            "version": self._version, "path": read.file.path, "size": read.file.size,
            "mtime_ns": read.file.mtime_ns, "format": read.file.format, "sha256": read.sha256,
            "passages": [vars(p) for p in read.passages],
        }  # fmt: skip
        self._stream.write((json.dumps(entry) + "\n").encode("ascii"))
        self._stream.flush()
