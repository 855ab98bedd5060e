"""The compact rows of a token index: an FM-index of the reversed text, about a third of a suffix array.

Every look-up costs a walk over the bits of a symbol instead of one comparison: 3 to 10 times the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int, Integer, UInt

from gradatim.inference import wavelet_kernels as kernels
from gradatim.inference.index_file import IndexFormatError, require
from gradatim.inference.suffix_sort import suffix_array

EVERY = 32
"""Places between two sampled ones: fewer bytes, longer walks."""

_BLOCK = 64 * kernels.WORDS


@dataclass(frozen=True)
class WaveletRows:
    """Rows of the suffixes of the reversed text and an end mark, row 0 being the mark alone.

    bits         [levels x blocks x 8 words] the transform, from the highest bit of its symbols to the lowest
    counts       [levels x blocks] ones of the level before each block
    zeros        [levels] number of zeros of each level
    firsts       first row of every symbol, and the number of rows
    marks, mark_counts, samples   which rows have their place sampled, and the places, in units of EVERY
    documents    the row that begins with the boundary before each document
    head         [1] the row that the whole reversed text fills: it has no symbol before it
    """

    bits: UInt[np.ndarray, " words"]
    counts: UInt[np.ndarray, " level_blocks"]
    zeros: Int[np.ndarray, " levels"]
    firsts: Int[np.ndarray, " symbols_and_one"]
    marks: UInt[np.ndarray, " mark_words"]
    mark_counts: UInt[np.ndarray, " mark_blocks"]
    samples: UInt[np.ndarray, " samples"]
    rows_of_documents: Int[np.ndarray, " docs"]
    head: Int[np.ndarray, " 1"]

    def __post_init__(self) -> None:
        for array in self.arrays().values():  # as a mapped file's are: one compiled form serves both
            array.flags.writeable = False

    @classmethod
    def build(
        cls, text: UInt[np.ndarray, " n"], symbols: int, starts: Int[np.ndarray, " bounds"]
    ) -> WaveletRows:
        """Transform a text of symbols 0 ... symbols - 1; `starts` are the places of its boundaries."""
        n = len(text)
        backwards = np.ascontiguousarray(text[::-1])
        order = suffix_array(backwards)
        small = np.uint32 if n < 2**32 - 1 else np.uint64
        primary = 1 + int(np.flatnonzero(order == 0)[0])
        before = order[order != 0] - 1
        # Row 0 is the end mark; the symbol before it is the last one of the text.
        transform = np.concatenate([backwards[-1:], backwards[before]])
        firsts = np.ones(symbols + 1, dtype=np.int64)
        firsts[1:] += np.cumsum(np.bincount(text, minlength=symbols))
        bits, counts, zeros = _wavelet(transform, max(1, (symbols - 1).bit_length()), small)
        sampled = np.concatenate([[n % EVERY == 0], order % EVERY == 0])
        places = np.concatenate([[n], order])[sampled] // EVERY
        marks, mark_counts = _bitmap(sampled, small)
        row_of_place = np.empty(len(starts), dtype=np.int64)
        boundary_rows = order[: len(starts)]  # symbol 0 sorts first
        row_of_place[np.searchsorted(starts, n - 1 - boundary_rows)] = 1 + np.arange(len(starts))
        rows = row_of_place[:-1].astype(np.int32 if n < 2**31 - 1 else np.int64)
        head = np.array([primary], dtype=np.int64)
        return cls(bits, counts, zeros, firsts, marks, mark_counts, places.astype(small), rows, head)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], n: int, symbols: int, starts: Int[np.ndarray, " bounds"]
    ) -> WaveletRows:
        """Arrays of a file, with their sizes and the small tables checked."""
        levels = max(1, (symbols - 1).bit_length())
        blocks, mark_blocks = n // _BLOCK + 1, (n + 1) // _BLOCK + 1
        shifted = {**arrays, "firsts": require(arrays, "firsts", "i", symbols + 1) - 1}
        require(shifted, "firsts", "i", symbols + 1, last=n)
        zeros = require(arrays, "zeros", "i", levels)
        head = require(arrays, "head", "i", 1)
        if zeros.min() < 0 or zeros.max() > n or not 0 < head[0] <= n:
            raise IndexFormatError("the index is damaged: a table of the transform is out of bounds")
        return cls(
            bits=_words(arrays, "bits", levels * blocks * kernels.WORDS),
            counts=require(arrays, "counts", "u", levels * blocks),
            zeros=zeros.astype(np.int64),
            firsts=arrays["firsts"].astype(np.int64),
            marks=_words(arrays, "marks", mark_blocks * kernels.WORDS),
            mark_counts=require(arrays, "mark_counts", "u", mark_blocks),
            samples=require(arrays, "samples", "u", n // EVERY + 1),
            rows_of_documents=require(arrays, "rows_of_documents", "i", len(starts) - 1),
            head=head.astype(np.int64),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file has to hold."""
        names = ("bits", "counts", "zeros", "firsts", "marks", "mark_counts", "samples", "head")
        return {**{name: getattr(self, name) for name in names}, "rows_of_documents": self.rows_of_documents}

    @property
    def n_rows(self) -> int:
        return int(self.firsts[-1])

    def extend(
        self,
        lo: Int[np.ndarray, " m"],
        hi: Int[np.ndarray, " m"],
        depth: Int[np.ndarray, " m"],
        symbols: Int[np.ndarray, " m"],
    ) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """Ranges of the same n-grams with one symbol more; the depth is not needed."""
        out_lo, out_hi = np.empty_like(lo), np.empty_like(hi)
        kernels.extend(*self._tables, lo, hi, symbols, out_lo, out_hi)
        return out_lo, out_hi

    def continuations(
        self, lo: Int[np.ndarray, " m"], hi: Int[np.ndarray, " m"], depth: Int[np.ndarray, " m"]
    ) -> tuple[Int[np.ndarray, " m_and_one"], Integer[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """Offsets per range, next symbols above 0 in ascending order, and their counts."""
        room = int(np.minimum(np.maximum(hi - lo, 0), len(self.firsts)).sum())
        symbols, counts = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.int64)
        offsets = np.empty(len(lo) + 1, dtype=np.int64)
        bits, ones, zeros, firsts, _, levels, blocks, n, primary = self._tables
        found = kernels.continuations(
            bits, ones, zeros, firsts, levels, blocks, n, primary, lo, hi, symbols, counts, offsets
        )
        return offsets, symbols[:found], counts[:found]

    def positions(self, rows: Int[np.ndarray, " m"], depth: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Where in the text the n-grams of these rows begin."""
        places = np.empty(len(rows), dtype=np.int64)
        kernels.positions(*self._tables, self.marks, self.mark_counts, self.samples, EVERY, rows, places)
        n = self.n_rows - 1
        found = n - places - depth
        # Row 0 is the end mark: the empty n-gram after the whole text.
        if len(found) and (places.min() < 0 or found.min() < 0 or (found > n - (depth > 0)).any()):
            raise IndexFormatError("the index is damaged: a suffix lies outside the text; build it again")
        return found

    def symbols(
        self, begin: Int[np.ndarray, " docs"], end: Int[np.ndarray, " docs"], docs: Int[np.ndarray, " docs"]
    ) -> Int[np.ndarray, " total"]:
        """The symbols at [begin, end), the inside of every document, one after another."""
        lengths = end - begin
        out = np.empty(int(lengths.sum()), dtype=np.int64)
        rows = self.rows_of_documents[docs].astype(np.int64)
        if not kernels.extract(*self._tables, rows, np.cumsum(lengths) - lengths, lengths, out):
            raise IndexFormatError("the index is damaged: a document cannot be read; build it again")
        return out

    @cached_property
    def _tables(
        self,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, int, int, int]:
        n, levels = self.n_rows - 1, len(self.zeros)
        # The last level is sorted by the reversed bits of the symbols.
        symbols = np.arange(len(self.firsts) - 1)
        flipped = np.zeros_like(symbols)
        for level in range(levels):
            flipped |= ((symbols >> level) & 1) << (levels - 1 - level)
        order = np.argsort(flipped)
        leaves = np.zeros(len(symbols), dtype=np.int64)
        leaves[order[1:]] = np.cumsum(np.diff(self.firsts)[order])[:-1]
        leaves.flags.writeable = False
        blocks = n // _BLOCK + 1
        return self.bits, self.counts, self.zeros, self.firsts, leaves, levels, blocks, n, int(self.head[0])


def _wavelet(transform: np.ndarray, levels: int, small: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits, counts and zeros: every level sorts, stably, the ones of the last behind its zeros."""
    bits, counts, zeros = [], [], np.empty(levels, dtype=np.int64)
    for level in range(levels):
        ones = (transform >> (levels - 1 - level)) & 1 == 1
        words, before = _bitmap(ones, small)
        bits.append(words)
        counts.append(before)
        zeros[level] = len(ones) - int(ones.sum())
        transform = np.concatenate([transform[~ones], transform[ones]])
    return np.concatenate(bits), np.concatenate(counts), zeros


def _bitmap(ones: np.ndarray, small: type) -> tuple[np.ndarray, np.ndarray]:
    """Words of a bit vector, with room for a rank at its end, and the ones before every block."""
    blocks = len(ones) // _BLOCK + 1
    padded = np.zeros(blocks * _BLOCK, dtype=bool)
    padded[: len(ones)] = ones
    words = np.packbits(padded, bitorder="little").view("<u8")
    per_block = padded.reshape(blocks, _BLOCK).sum(axis=1)
    return words, (np.cumsum(per_block) - per_block).astype(small)


def _words(arrays: Mapping[str, np.ndarray], name: str, length: int) -> np.ndarray:
    words = require(arrays, name, "u", length)
    if words.dtype != np.uint64:
        raise IndexFormatError(f"the index is damaged: array {name!r} is {words.dtype}, not uint64")
    return words
