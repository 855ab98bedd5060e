"""The suffix array of a text of integers: the order of its suffixes, a shorter one before its extensions."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from jaxtyping import Int, UInt

MOST_INT32 = 2**31 - 1


def suffix_array(text: UInt[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Positions of the sorted suffixes, int32 while they fit, by libdivsufsort where it is installed.

    Raises ValueError for an empty text.
    """
    if len(text) == 0:
        raise ValueError("an empty text has no suffixes")
    if find_spec("pydivsufsort") is None:
        return prefix_doubling(text)
    import pydivsufsort

    found = pydivsufsort.divsufsort(np.ascontiguousarray(text))
    return found.astype(position_type(len(text)), copy=False)


def prefix_doubling(text: UInt[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The same by sorting on the first 1, 2, 4 ... symbols: O(n log^2 n) (Manber and Myers 1990)."""
    n = len(text)
    rank = np.unique(text, return_inverse=True)[1].astype(np.int64) + 1  # 0 stands for "past the end"
    reach = 1
    while True:
        later = np.zeros(n, dtype=np.int64)
        later[: max(n - reach, 0)] = rank[reach:]
        pair = rank * (n + 1) + later
        order = np.argsort(pair, kind="stable")
        ordered = pair[order]
        rank = np.empty(n, dtype=np.int64)
        rank[order] = 1 + np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])
        if rank.max() == n:
            return order.astype(position_type(n))
        reach *= 2


def position_type(n: int) -> np.dtype:
    """The smallest integer type that holds every position of a text of n symbols."""
    return np.dtype(np.int32) if n <= MOST_INT32 else np.dtype(np.int64)
