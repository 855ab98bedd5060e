"""Which files of a folder are to be read, and why the others are not."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gradatim.tasks.documents.decoding import is_binary
from gradatim.tasks.documents.formats import format_of, is_named

MOST_BYTES = 20_000_000
"""Larger files are left out, but for JSON Lines, which may be a collection: ten times as much."""

_NOT_ENTERED = frozenset({"__pycache__", "node_modules", "site-packages"})


@dataclass(frozen=True)
class FoundFile:
    """A file to be read: its path below the folder (with "/"), format, bytes and time of change."""

    path: str
    format: str
    size: int
    mtime_ns: int


@dataclass
class Walk:
    """What a folder holds: files to read in order of their path, counts of others by reason, examples."""

    files: list[FoundFile] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, path: str) -> None:
        self.skipped[reason] += 1
        self.examples.setdefault(reason, path)


def walk(
    folder: str | Path,
    *,
    hidden: bool = False,
    follow_links: bool = False,
    most_bytes: int = MOST_BYTES,
    without: Path | None = None,
) -> Walk:
    """Find the files of `folder` and of the folders below it.

    Left out and counted: names that begin with a dot (unless `hidden`), links (with `follow_links` only those
    that lead back to a folder they stand in), `__pycache__`, `node_modules`, `site-packages`, virtual
    environments, what is no regular file, binary files, files without a reader, files over `most_bytes`, what
    cannot be opened, and the folder `without` (the index itself).

    Raises NotADirectoryError when `folder` is none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    found = Walk()
    own = _identity(without) if without is not None else None
    for entry, path in _entries(root, found, hidden, follow_links, own):
        try:
            status = entry.stat()
        except OSError as error:
            found.skip(f"cannot be opened ({error.strerror})", path)
            continue
        form = format_of(path)
        if not stat.S_ISREG(status.st_mode):
            found.skip("no regular file", path)
        elif form is None:
            found.skip("no reader for its kind", path)
        elif status.st_size > most_bytes * (10 if form == "jsonl" else 1):
            found.skip("too large", path)
        elif status.st_size == 0:
            found.skip("empty", path)
        elif not is_named(path) and _looks_binary(entry.path):
            found.skip("binary", path)
        else:
            found.files.append(FoundFile(path, form, status.st_size, status.st_mtime_ns))
    found.files.sort(key=lambda f: f.path)
    return found


def _entries(
    root: Path, found: Walk, hidden: bool, follow_links: bool, own: tuple[int, int] | None
) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Everything that may be a file to read, with its path below the root."""
    # A folder with the identities of those it stands in: a link back to one of them is a loop.
    waiting: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(str(root), "", (_identity(root),))]
    while waiting:
        place, below, above = waiting.pop()
        try:
            with os.scandir(place) as scan:
                entries = sorted(scan, key=lambda e: e.name)
        except OSError as error:
            found.skip(f"cannot be opened ({error.strerror})", below or ".")
            continue
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith(".") and not hidden:
                found.skip("hidden", path)
            elif entry.is_symlink() and not follow_links:
                found.skip("link", path)
            elif _is_folder(entry):
                identity = _identity(entry.path)
                if identity in above:
                    found.skip("link in a circle", path)
                elif identity == own:
                    found.skip("the index itself", path)
                elif entry.name in _NOT_ENTERED or os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
                    found.skip("folder of installed or compiled files", path)
                else:
                    waiting.append((entry.path, path, (*above, identity)))
            else:
                yield entry, path


def _looks_binary(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return is_binary(stream.read(8192))
    except OSError:
        return False  # the reader will say why


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(path: str | Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1)
    return status.st_dev, status.st_ino
