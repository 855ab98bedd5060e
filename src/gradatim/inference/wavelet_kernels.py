"""Compiled look-ups in an FM-index whose Burrows-Wheeler transform is a wavelet matrix.

Ferragina and Manzini, "Opportunistic data structures with applications" (2000); Claude, Navarro and Ordonez,
"The wavelet matrix" (2015). The indexed text is the reversed one, so that putting a symbol in front of a
pattern, which is what an FM-index can do, makes the n-gram longer at its end. Bits stand in 64-bit words, the
number of ones before every block of 8 words beside them.

As in `suffix_kernels`, nothing read from an array is used as an index before it is within its bounds.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

WORDS = 8  # 512 bits share a count


@njit(cache=True, inline="always", nogil=True)
@no_type_check
def ones_of(word):
    """Number of set bits of a 64-bit word."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, inline="always", nogil=True)
@no_type_check
def rank(bits, counts, base, blocks, i):
    """Ones among the first i bits of the level that begins at block `base` (and at count base + level)."""
    block = i >> 9
    total = np.int64(counts[base + block])
    word = (base + block) * 8
    last = word + ((i >> 6) & 7)
    while word < last:
        total += ones_of(bits[word])
        word += 1
    rest = i & 63
    if rest:
        total += ones_of(bits[word] & ((np.uint64(1) << np.uint64(rest)) - np.uint64(1)))
    return min(max(total, 0), i)


@njit(cache=True, inline="always", nogil=True)
@no_type_check
def step_back(bits, counts, zeros, firsts, leaves, levels, blocks, n, primary, i, symbol):
    """Row reached from boundary i by putting `symbol` in front: firsts[symbol] + occurrences before i."""
    i = i - 1 if i > primary else i
    for level in range(levels):
        ones = rank(bits, counts, level * blocks, blocks, i)
        bit = (symbol >> (levels - 1 - level)) & 1
        i = zeros[level] + ones if bit else i - ones
        i = min(max(i, 0), n)
    return min(max(firsts[symbol] + i - leaves[symbol], 0), n + 1)


@njit(cache=True, nogil=True)
@no_type_check
def extend(
    bits, counts, zeros, firsts, leaves, levels, blocks, n, primary, los, his, symbols, out_lo, out_hi
):
    """Ranges of reversed patterns with one symbol more."""
    for k in range(los.shape[0]):
        lo = min(max(los[k], 0), n + 1)
        hi = min(max(his[k], lo), n + 1)
        symbol = symbols[k]
        if symbol < 0 or symbol + 1 >= firsts.shape[0] or lo == hi:
            out_lo[k] = lo
            out_hi[k] = lo
            continue
        low = step_back(bits, counts, zeros, firsts, leaves, levels, blocks, n, primary, lo, symbol)
        high = step_back(bits, counts, zeros, firsts, leaves, levels, blocks, n, primary, hi, symbol)
        out_lo[k] = low
        out_hi[k] = max(low, high)


@njit(cache=True, nogil=True)
@no_type_check
def continuations(
    bits, counts, zeros, firsts, levels, blocks, n, primary, los, his, out_symbol, out_count, offsets
):
    """Distinct symbols above 0 of every range of the transform: down the levels, the 0 branch first."""
    room = out_symbol.shape[0]
    stack = np.empty((levels + 2, 4), dtype=np.int64)
    at = 0
    for k in range(los.shape[0]):
        offsets[k] = at
        lo = min(max(los[k], 0), n + 1)
        hi = min(max(his[k], lo), n + 1)
        stack[0, 0] = 0
        stack[0, 1] = lo - 1 if lo > primary else lo
        stack[0, 2] = hi - 1 if hi > primary else hi
        stack[0, 3] = 0
        height = 1
        while height > 0:
            height -= 1
            level, low, high, symbol = stack[height]
            if low >= high:
                continue
            if level == levels:
                if symbol > 0 and at < room:
                    out_symbol[at] = symbol
                    out_count[at] = high - low
                    at += 1
                continue
            ones_low = rank(bits, counts, level * blocks, blocks, low)
            ones_high = rank(bits, counts, level * blocks, blocks, high)
            stack[height, 0] = level + 1
            stack[height, 1] = min(max(zeros[level] + ones_low, 0), n)
            stack[height, 2] = min(max(zeros[level] + ones_high, 0), n)
            stack[height, 3] = 2 * symbol + 1
            stack[height + 1, 0] = level + 1
            stack[height + 1, 1] = low - ones_low
            stack[height + 1, 2] = max(high - ones_high, 0)
            stack[height + 1, 3] = 2 * symbol
            height += 2
    offsets[los.shape[0]] = at
    return at


@njit(cache=True, inline="always", nogil=True)
@no_type_check
def symbol_before(bits, counts, zeros, levels, blocks, n, i):
    """The symbol at place i of the transform (its row without symbol left out), and where it is sorted to."""
    symbol = np.int64(0)
    for level in range(levels):
        word = bits[(level * blocks) * 8 + (i >> 6)]
        bit = np.int64((word >> np.uint64(i & 63)) & np.uint64(1))
        ones = rank(bits, counts, level * blocks, blocks, i)
        i = zeros[level] + ones if bit else i - ones
        i = min(max(i, 0), n)
        symbol = 2 * symbol + bit
    return symbol, i


@njit(cache=True, inline="always", nogil=True)
@no_type_check
def row_before(bits, counts, zeros, firsts, leaves, levels, blocks, n, primary, row):
    """The row of the suffix one longer at the front, and its first symbol; -1 where there is none."""
    if row == primary or row < 0 or row > n:
        return np.int64(-1), np.int64(-1)
    place = row - 1 if row > primary else row
    if place >= n:
        return np.int64(-1), np.int64(-1)
    symbol, at = symbol_before(bits, counts, zeros, levels, blocks, n, place)
    if symbol + 1 >= firsts.shape[0]:
        return np.int64(-1), np.int64(-1)
    return symbol, min(max(firsts[symbol] + at - leaves[symbol], 0), n)


@njit(cache=True, nogil=True)
@no_type_check
def positions(
    bits,
    counts,
    zeros,
    firsts,
    leaves,
    levels,
    blocks,
    n,
    primary,
    marks,
    mark_counts,
    samples,
    every,
    rows,
    out,
):
    """Place in the reversed text of the given rows: walk to the next sampled one; -1 where there is none."""
    for k in range(out.shape[0]):
        row = rows[k]
        out[k] = -1
        if row < 0 or row > n:
            continue
        for steps in range(every + 1):
            if (marks[row >> 6] >> np.uint64(row & 63)) & np.uint64(1):
                sample = rank(marks, mark_counts, 0, 0, row)
                if sample < samples.shape[0]:
                    out[k] = np.int64(samples[sample]) * every + steps
                break
            _, row = row_before(bits, counts, zeros, firsts, leaves, levels, blocks, n, primary, row)
            if row < 0:
                break


@njit(cache=True, nogil=True)
@no_type_check
def extract(bits, counts, zeros, firsts, leaves, levels, blocks, n, primary, rows, at, lengths, out):
    """The symbols that follow in the text after each row's; False where a walk leaves the index."""
    for i in range(rows.shape[0]):
        row = rows[i]
        for k in range(lengths[i]):
            symbol, row = row_before(bits, counts, zeros, firsts, leaves, levels, blocks, n, primary, row)
            if row < 0 or at[i] + k >= out.shape[0]:
                return False
            out[at[i] + k] = symbol
    return True
