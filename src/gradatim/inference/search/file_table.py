"""Which files a shard holds, where their passages stand, and what came of those that failed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from gradatim.inference.search.errors import IndexDamagedError
from gradatim.inference.search.files import CheckedFolder


@dataclass(frozen=True)
class FileRecord:
    """A file as it was read: size, time of change, SHA-256; its passages are `first : first + count`."""

    path: str
    format: str
    size: int
    mtime_ns: int
    sha256: str = ""
    first: int = 0
    count: int = 0
    error: str = ""


def write_files(folder: Path, records: Iterable[FileRecord]) -> None:
    """`files.jsonl`."""
    lines = (json.dumps(asdict(record)) + "\n" for record in records)
    (folder / "files.jsonl").write_text("".join(lines), encoding="ascii")


def read_file_table(files: CheckedFolder, passages: int) -> list[FileRecord]:
    """What `write_files` wrote. Raises IndexDamagedError for anything else."""
    path = files.path("files.jsonl")
    try:
        records = [FileRecord(**json.loads(line)) for line in path.read_text("ascii").splitlines()]
        for r in records:
            numbers = (r.size, r.mtime_ns, r.first, r.count)
            words = (r.path, r.format, r.sha256, r.error)
            if not all(type(n) is int for n in numbers) or not all(isinstance(w, str) for w in words):
                raise TypeError("file record")
            if not 0 <= r.first <= r.first + r.count <= passages:
                raise ValueError("file record")
    except (ValueError, TypeError, RecursionError) as error:
        raise IndexDamagedError(f"{path} is damaged; make the index again") from error
    return records
