"""Files of an index: written whole or not at all, and read only where they are what the manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.inference.search.errors import IndexDamagedError, SearchError

FORMAT, VERSION = "gradatim-search-index", 1
MANIFEST = "manifest.json"
MOST_SHARDS = 4096


@dataclass(frozen=True)
class Manifest:
    """What an index holds: its settings, counts, and the size and SHA-256 of each of its files.

    `generation` is the folder below the index that holds the files. An update writes a new generation and
    then replaces the manifest, so that a reader sees the old index or the new one and nothing in between.
    """

    generation: str
    folder: str
    created: str
    shards: int
    passages: int
    files: int
    settings: Mapping[str, Any]
    skipped: Mapping[str, Any]
    parts: Mapping[str, tuple[int, str]]

    def write(self, index: Path) -> None:
        document = {"format": FORMAT, "version": VERSION, **vars(self)}
        write_whole(index / MANIFEST, (json.dumps(document, indent=1) + "\n").encode("ascii"))


def read_manifest(index: Path) -> Manifest:
    """The manifest of an index. Raises IndexDamagedError for anything else."""
    path = index / MANIFEST
    try:
        if not index.is_dir():
            raise IndexDamagedError(f"no search index at {index}; make one: gradatim index DIR --out {index}")
        if not path.is_file():
            raise IndexDamagedError(
                f"{index} holds no {MANIFEST}: make an index: gradatim index DIR --out {index}"
            )
        if path.stat().st_size > 256 * 2**20:
            raise IndexDamagedError(f"{path} is too large to be a manifest")
        document = json.loads(path.read_bytes())
        if document.get("format") != FORMAT:
            raise IndexDamagedError(f"{path} is no manifest of a search index")
        if document["version"] != VERSION:
            raise IndexDamagedError(
                f"{path} has version {str(document['version'])[:20]} where {VERSION} is read; make it again"
            )
        return _checked(document)
    except IndexDamagedError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise IndexDamagedError(f"{path} is damaged ({reason}); make the index again") from error


def _checked(d: Mapping[str, Any]) -> Manifest:
    if not re.fullmatch(r"g\d{6,12}", d["generation"]):
        raise ValueError("generation")
    for name, most in (("shards", MOST_SHARDS), ("passages", 2**40), ("files", 2**40)):
        if type(d[name]) is not int or not 0 <= d[name] <= most:
            raise ValueError(name)
    for name in ("folder", "created"):
        if not isinstance(d[name], str):
            raise ValueError(name)
    parts = {}
    for part, (size, digest) in d["parts"].items():
        if type(size) is not int or size < 0 or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(part[:80])
        parts[part] = (size, digest)
    return Manifest(
        d["generation"], d["folder"], d["created"], max(1, d["shards"]), d["passages"], d["files"],
        dict(d["settings"]), dict(d["skipped"]), parts,
    )  # fmt: skip


class CheckedFolder:
    """The files of one shard, each compared with its size and SHA-256 the first time it is opened."""

    def __init__(self, index: Path, manifest: Manifest, below: str) -> None:
        self.root = index / manifest.generation / below
        self.below = below
        self.parts = manifest.parts
        self._good: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the manifest lists the file."""
        return f"{self.below}/{name}" in self.parts

    def path(self, name: str) -> Path:
        """The file, after its check. Raises IndexDamagedError when it is not what was written."""
        path = self.root / name
        known = self.parts.get(f"{self.below}/{name}")
        if known is None:
            raise IndexDamagedError(f"the manifest names no {self.below}/{name}; make the index again")
        if name in self._good:
            return path
        try:
            with open(path, "rb") as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_size != known[0]:
                    raise IndexDamagedError(
                        f"{path}: {status.st_size} bytes where {known[0]} were written; make the index again"
                    )
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise IndexDamagedError(
                f"{path} cannot be read ({error.strerror}); make the index again"
            ) from error
        if digest != known[1]:
            raise IndexDamagedError(f"{path} has changed since it was written; make the index again")
        self._good.add(name)
        return path

    def folder(self, name: str) -> Path:
        """A folder whose files all pass their checks and that holds no others."""
        prefix = f"{self.below}/{name}/"
        listed = {part.removeprefix(prefix) for part in self.parts if part.startswith(prefix)}
        for file in listed:
            self.path(f"{name}/{file}")
        here = self.root / name
        found = (
            {str(p.relative_to(here)) for p in here.rglob("*") if not p.is_dir()} if here.is_dir() else set()
        )
        if found != listed or not listed:
            raise IndexDamagedError(f"{here} holds other files than were written; make the index again")
        return here

    def array(self, name: str, dtype: str, *shape: int | None) -> np.ndarray:
        """A memory-mapped array of this type and shape (None: any length)."""
        path = self.path(name)
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a hostile header fails in many ways, tokenize's own among them
            raise IndexDamagedError(f"{path} holds no array; make the index again") from error
        right = found.dtype == np.dtype(dtype) and found.ndim == len(shape) and found.flags.c_contiguous
        if not right or any(n is not None and n != m for n, m in zip(shape, found.shape, strict=True)):
            raise IndexDamagedError(
                f"{path} holds {found.dtype} {found.shape}, not {dtype} {shape}; make the index again"
            )
        return found


def write_array(path: Path, array: np.ndarray) -> None:
    """An .npy file, on the disk when this returns."""
    with open(path, "wb") as stream:
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the target and rename: others see the old file or the new one."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with open(unfinished, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise SearchError(f"{path} cannot be written ({error.strerror or error})") from error


def sync_folder(path: Path) -> None:
    """Make renames in a folder last, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def parts_below(root: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file below a folder, by its path with "/"."""
    parts = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        parts[path.relative_to(root).as_posix()] = (path.stat().st_size, digest)
    return parts
