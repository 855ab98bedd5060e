"""A suffix array over symbols: 6 bytes per token and 8 more per distinct pair, the fastest look-ups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Integer, UInt

from gradatim.inference import suffix_kernels as kernels
from gradatim.inference.index_file import IndexFormatError, require
from gradatim.inference.suffix_sort import position_type, suffix_array


@dataclass(frozen=True)
class SuffixRows:
    """Rows of the suffixes of `text`, in which 0 ends a document and tokens are symbols from 1 on.

    firsts       first row of every symbol, and the number of rows
    pair_*       for every symbol the distinct symbols after it and the first row of each pair: ranges of
                 one symbol are the only ones with thousands of continuations
    """

    text: UInt[np.ndarray, " n"]
    sa: Int[np.ndarray, " n"]
    firsts: Int[np.ndarray, " symbols_and_one"]
    pair_begin: Int[np.ndarray, " symbols_and_one"]
    pair_symbol: UInt[np.ndarray, " pairs"]
    pair_row: Int[np.ndarray, " pairs"]

    def __post_init__(self) -> None:
        for array in self.arrays().values():  # as a mapped file's are: one compiled form serves both
            array.flags.writeable = False

    @classmethod
    def build(
        cls, text: UInt[np.ndarray, " n"], symbols: int, starts: Int[np.ndarray, " bounds"]
    ) -> SuffixRows:
        """Sort the suffixes of a text of symbols 0 ... symbols - 1."""
        sa = suffix_array(text)
        firsts = np.zeros(symbols + 1, dtype=np.int64)
        np.cumsum(np.bincount(text, minlength=symbols), out=firsts[1:])
        counts = np.zeros(symbols, dtype=np.int64)
        kernels.count_pairs(text, sa, counts)
        begin = np.zeros(symbols + 1, dtype=np.int64)
        np.cumsum(counts, out=begin[1:])
        pair_symbol = np.empty(begin[-1], dtype=text.dtype)
        pair_row = np.empty(begin[-1], dtype=position_type(len(text)))
        kernels.fill_pairs(text, sa, pair_symbol, pair_row)
        return cls(text, sa, firsts, begin, pair_symbol, pair_row)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], n: int, symbols: int, starts: Int[np.ndarray, " bounds"]
    ) -> SuffixRows:
        """Arrays of a file, with their sizes and the small tables checked."""
        text, sa = require(arrays, "text", "u", n), require(arrays, "sa", "i", n)
        firsts = require(arrays, "firsts", "i", symbols + 1, last=n)
        begin = require(arrays, "pair_begin", "i", symbols + 1)
        pairs = int(begin[-1])
        require(arrays, "pair_begin", "i", symbols + 1, last=pairs)
        return cls(
            text,
            sa,
            firsts.astype(np.int64),
            begin.astype(np.int64),
            require(arrays, "pair_symbol", "u", pairs),
            require(arrays, "pair_row", "i", pairs),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file has to hold."""
        names = ("text", "sa", "firsts", "pair_begin", "pair_symbol", "pair_row")
        return {name: getattr(self, name) for name in names}

    @property
    def n_rows(self) -> int:
        return len(self.sa)

    def extend(
        self,
        lo: Int[np.ndarray, " m"],
        hi: Int[np.ndarray, " m"],
        depth: Int[np.ndarray, " m"],
        symbols: Int[np.ndarray, " m"],
    ) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """Ranges of the same n-grams with one symbol more."""
        out_lo, out_hi = np.empty_like(lo), np.empty_like(hi)
        kernels.extend(*self._tables(), lo, hi, depth, symbols, out_lo, out_hi)
        return out_lo, out_hi

    def continuations(
        self, lo: Int[np.ndarray, " m"], hi: Int[np.ndarray, " m"], depth: Int[np.ndarray, " m"]
    ) -> tuple[Int[np.ndarray, " m_and_one"], Integer[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """Offsets per range, next symbols above 0 in ascending order, and their counts."""
        room = int(np.minimum(np.maximum(hi - lo, 0), len(self.firsts)).sum())
        symbols, counts = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.int64)
        offsets = np.empty(len(lo) + 1, dtype=np.int64)
        found = kernels.continuations(*self._tables(), lo, hi, depth, symbols, counts, offsets)
        return offsets, symbols[:found], counts[:found]

    def positions(self, rows: Int[np.ndarray, " m"], depth: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Where in the text the n-grams of these rows begin; the depth is not needed."""
        found = self.sa[rows].astype(np.int64)
        if len(found) and (found.min() < 0 or found.max() >= len(self.text)):
            raise IndexFormatError("the index is damaged: a suffix lies outside the text; build it again")
        return found

    def symbols(
        self, begin: Int[np.ndarray, " docs"], end: Int[np.ndarray, " docs"], docs: Int[np.ndarray, " docs"]
    ) -> UInt[np.ndarray, " total"]:
        """The symbols at [begin, end) of every document, one after another."""
        out = np.empty(int((end - begin).sum()), dtype=self.text.dtype)
        kernels.read(self.text, begin, end, out)
        return out

    def _tables(self) -> tuple[np.ndarray, ...]:
        return self.text, self.sa, self.firsts, self.pair_begin, self.pair_symbol, self.pair_row


def concatenated_ranges(
    begin: Int[np.ndarray, " m"], end: Int[np.ndarray, " m"]
) -> Int[np.ndarray, " total"]:
    """begin[0], begin[0] + 1 ... end[0] - 1, begin[1] ..."""
    lengths = np.maximum(end - begin, 0)
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(begin - before, lengths)
