"""The passages of a shard on disk: one JSON line each, and where each line begins."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.inference.search.errors import IndexDamagedError
from gradatim.inference.search.files import CheckedFolder, write_array

LONGEST_LINE = 4 * 2**20


@dataclass(frozen=True)
class StoredPassage:
    """A passage with the file it stands in (path below the indexed folder, with "/") and its number there."""

    file: str
    number: int
    title: str
    text: str
    line: int | None = None
    end_line: int | None = None
    page: int | None = None
    start: int | None = None
    end: int | None = None

    @property
    def whole(self) -> str:
        """What is indexed: the title, then the text."""
        return f"{self.title}\n{self.text}" if self.title else self.text


def write_passages(folder: Path, passages: Iterable[StoredPassage]) -> None:
    """`passages.jsonl` and `passage-starts.npy`."""
    starts = [0]
    with open(folder / "passages.jsonl", "wb") as stream:
        for passage in passages:
            # ASCII: names of files may hold bytes that are no UTF-8, kept as lone surrogates.
            line = (json.dumps(asdict(passage)) + "\n").encode("ascii")
            stream.write(line)
            starts.append(starts[-1] + len(line))
    write_array(folder / "passage-starts.npy", np.array(starts, np.int64))


class PassageFile:
    """Passages by row, read when asked for."""

    def __init__(self, files: CheckedFolder) -> None:
        self.path = files.path("passages.jsonl")
        self._starts = files.array("passage-starts.npy", "<i8", None)
        size = self.path.stat().st_size
        if len(self._starts) < 1 or self._starts[0] != 0 or self._starts[-1] != size:
            raise IndexDamagedError(f"{self.path} does not fit passage-starts.npy; make the index again")
        self._data = np.memmap(self.path, np.uint8, "r") if size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> StoredPassage:
        begin, end = int(self._starts[row]), int(self._starts[row + 1])
        if not 0 <= begin < end <= len(self._data) or end - begin > LONGEST_LINE:
            raise IndexDamagedError(f"{self.path}: passage {row} lies outside the file; make the index again")
        try:
            return parse_passage(json.loads(self._data[begin:end].tobytes()))
        except (ValueError, TypeError, RecursionError) as error:
            raise IndexDamagedError(f"{self.path}: passage {row} is damaged; make the index again") from error

    def __iter__(self) -> Iterator[StoredPassage]:
        return (self[row] for row in range(len(self)))


def parse_passage(row: Any) -> StoredPassage:
    """A passage from its JSON. Raises ValueError or TypeError for anything else."""
    passage = StoredPassage(**row)
    for name in ("file", "title", "text"):
        if not isinstance(getattr(passage, name), str):
            raise TypeError(name)
    places = (passage.line, passage.end_line, passage.page, passage.start, passage.end)
    if type(passage.number) is not int or not all(p is None or type(p) is int for p in places):
        raise TypeError("place")
    return passage
