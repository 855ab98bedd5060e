"""Duplicate ids in a stream of any length, at eight bytes an id."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

import numpy as np


class IdLog:
    """Remembers a 64-bit hash of every id.

    Ten million different ids share a hash by chance with probability 3e-6; so a shared hash is only a
    suspicion, which `first_duplicate` settles by reading the suspects again.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, identifier: str) -> None:
        self._hashes.append(_hash(identifier))

    def suspects(self) -> frozenset[int]:
        """Hashes that occur more than once."""
        if not self._hashes:
            return frozenset()
        values, counts = np.unique(np.frombuffer(self._hashes, dtype=np.uint64), return_counts=True)
        return frozenset(int(value) for value in values[counts > 1])


def first_duplicate(
    records: Iterable[tuple[int, str]], suspects: frozenset[int]
) -> tuple[str, int, int] | None:
    """(id, line it first stands on, line it comes again on) among (line, id) records, or None."""
    seen: dict[str, int] = {}
    for line, identifier in records:
        if _hash(identifier) not in suspects:
            continue
        if identifier in seen:
            return identifier, seen[identifier], line
        seen[identifier] = line
    return None


def _hash(identifier: str) -> int:
    return int.from_bytes(hashlib.blake2b(identifier.encode("utf-8"), digest_size=8).digest(), "little")
