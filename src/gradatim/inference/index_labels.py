"""Names of documents as one block of UTF-8: decoded one by one, so that millions of them cost no memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import numpy as np

from gradatim.inference.index_file import IndexFormatError, require


class Labels(Sequence[str]):
    """A read-only sequence of strings."""

    def __init__(self, block: np.ndarray, ends: np.ndarray) -> None:
        self._block, self._ends = block, ends

    @classmethod
    def of(cls, labels: Sequence[str]) -> Labels:
        """Raises TypeError for a label that is no string."""
        for label in labels:
            if not isinstance(label, str):
                raise TypeError(f"labels are strings, got {label!r}; use str(...)")
        encoded = [label.encode("utf-8", "surrogatepass") for label in labels]
        ends = np.cumsum([0, *map(len, encoded)])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], count: int) -> Labels:
        """Raises IndexFormatError where the ends do not fit the block."""
        block = require(arrays, "labels", "u", len(arrays["labels"]))
        if block.dtype != np.uint8:
            raise IndexFormatError("the index is damaged: labels are no bytes; build it again")
        return cls(block, require(arrays, "label_ends", "i", count + 1, last=len(block)))

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file has to hold."""
        return {"labels": self._block, "label_ends": self._ends}

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, item: int) -> str: ...
    @overload
    def __getitem__(self, item: slice) -> list[str]: ...
    def __getitem__(self, item: int | slice) -> str | list[str]:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        number = item + len(self) if item < 0 else item
        if not 0 <= number < len(self):
            raise IndexError(f"label {item}, but there are {len(self)}")
        raw = self._block[int(self._ends[number]) : int(self._ends[number + 1])].tobytes()
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:  # somebody else's file
            return raw.decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))
