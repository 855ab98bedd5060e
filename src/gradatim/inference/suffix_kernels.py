"""Compiled look-ups in a suffix array.

A *row* is a place in the suffix array; all suffixes that begin with a given n-gram fill a range of rows
[lo, hi). Arrays may come from a file that somebody else wrote, so that no value read from one is used as an
index before it is compared with the bounds: a wrong file gives wrong rows, never a read outside an array.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit


@njit(cache=True, inline="always", nogil=True)
@no_type_check
def symbol_at(text, sa, row, depth):
    """Symbol `depth` places into the row's suffix; -1 past the end of the text."""
    place = np.int64(sa[row]) + depth
    if place < 0 or place >= text.shape[0]:
        return np.int64(-1)
    return np.int64(text[place])


@njit(cache=True, nogil=True)
@no_type_check
def lower_bound(text, sa, lo, hi, depth, symbol):
    """First row of [lo, hi) whose symbol at `depth` is at least `symbol`."""
    while lo < hi:
        middle = (lo + hi) >> 1
        if symbol_at(text, sa, middle, depth) < symbol:
            lo = middle + 1
        else:
            hi = middle
    return lo


@njit(cache=True, nogil=True)
@no_type_check
def run_end(text, sa, lo, hi, depth, symbol):
    """First row after `lo` whose symbol at `depth` is larger: doubling steps, then bisection."""
    step = 1
    while lo + step < hi and symbol_at(text, sa, lo + step, depth) <= symbol:
        lo += step
        step *= 2
    return lower_bound(text, sa, lo + 1, min(lo + step, hi), depth, symbol + 1)


@njit(cache=True, nogil=True)
@no_type_check
def whole_first(text, sa, firsts, lo, hi):
    """The symbol all of whose suffixes are the rows [lo, hi), or -1."""
    if lo >= hi:
        return np.int64(-1)
    symbol = symbol_at(text, sa, lo, 0)
    if symbol < 0 or symbol + 1 >= firsts.shape[0]:
        return np.int64(-1)
    if firsts[symbol] != lo or firsts[symbol + 1] != hi:
        return np.int64(-1)
    return symbol


@njit(cache=True, nogil=True)
@no_type_check
def extend(text, sa, firsts, pair_begin, pair_symbol, pair_row, los, his, depths, symbols, out_lo, out_hi):
    """For every i the rows of [los, his) whose suffix goes on with symbols[i] after depths[i] symbols."""
    n = sa.shape[0]
    for i in range(los.shape[0]):
        lo, hi, depth, symbol = los[i], his[i], depths[i], symbols[i]
        lo = min(max(lo, 0), n)
        hi = min(max(hi, lo), n)
        out_lo[i] = lo
        out_hi[i] = lo
        if symbol < 0 or symbol + 1 >= firsts.shape[0] or lo == hi or depth < 0:
            continue
        if depth == 0 and lo == 0 and hi == n:
            out_lo[i] = firsts[symbol]
            out_hi[i] = firsts[symbol + 1]
            continue
        first = whole_first(text, sa, firsts, lo, hi) if depth == 1 else -1
        if first >= 0:
            begin, end = pair_begin[first], pair_begin[first + 1]
            left, right = begin, end
            while left < right:
                middle = (left + right) >> 1
                if pair_symbol[middle] < symbol:
                    left = middle + 1
                else:
                    right = middle
            if left < end and pair_symbol[left] == symbol:
                row = min(max(np.int64(pair_row[left]), lo), hi)
                last = np.int64(pair_row[left + 1]) if left + 1 < end else hi
                out_lo[i] = row
                out_hi[i] = min(max(last, row), hi)
            continue
        row = lower_bound(text, sa, lo, hi, depth, symbol)
        out_lo[i] = row
        if row < hi and symbol_at(text, sa, row, depth) == symbol:
            out_hi[i] = run_end(text, sa, row, hi, depth, symbol)
        else:
            out_hi[i] = row


@njit(cache=True, nogil=True)
@no_type_check
def continuations(
    text, sa, firsts, pair_begin, pair_symbol, pair_row, los, his, depths, out_symbol, out_count, offsets
):
    """Distinct next symbols above 0 and their counts, one range after another; returns how many in all."""
    n = sa.shape[0]
    room = out_symbol.shape[0]
    at = 0
    for i in range(los.shape[0]):
        offsets[i] = at
        depth = max(depths[i], 0)
        lo = min(max(los[i], 0), n)
        hi = min(max(his[i], lo), n)
        if depth == 0 and lo == 0 and hi == n:
            for symbol in range(1, firsts.shape[0] - 1):
                count = firsts[symbol + 1] - firsts[symbol]
                if count > 0 and at < room:
                    out_symbol[at] = symbol
                    out_count[at] = count
                    at += 1
            continue
        first = whole_first(text, sa, firsts, lo, hi) if depth == 1 else -1
        if first >= 0:
            begin, end = pair_begin[first], pair_begin[first + 1]
            for entry in range(begin, end):
                last = np.int64(pair_row[entry + 1]) if entry + 1 < end else hi
                count = last - np.int64(pair_row[entry])
                if pair_symbol[entry] > 0 and count > 0 and at < room:
                    out_symbol[at] = pair_symbol[entry]
                    out_count[at] = count
                    at += 1
            continue
        row = lo
        while row < hi:
            symbol = symbol_at(text, sa, row, depth)
            end = run_end(text, sa, row, hi, depth, symbol)
            if symbol > 0 and at < room:
                out_symbol[at] = symbol
                out_count[at] = end - row
                at += 1
            row = end
    offsets[los.shape[0]] = at
    return at


@njit(cache=True, nogil=True)
@no_type_check
def count_pairs(text, sa, counts):
    """counts[a] = number of distinct symbols that follow a."""
    last_first, last_second = np.int64(-1), np.int64(-1)
    for row in range(sa.shape[0]):
        first = symbol_at(text, sa, row, 0)
        second = symbol_at(text, sa, row, 1)
        if second >= 0 and (first != last_first or second != last_second):
            counts[first] += 1
        last_first, last_second = first, second


@njit(cache=True, nogil=True)
@no_type_check
def fill_pairs(text, sa, pair_symbol, pair_row):
    """Second symbol and first row of every distinct pair, in row order."""
    last_first, last_second = np.int64(-1), np.int64(-1)
    at = 0
    for row in range(sa.shape[0]):
        first = symbol_at(text, sa, row, 0)
        second = symbol_at(text, sa, row, 1)
        if second >= 0 and (first != last_first or second != last_second):
            pair_symbol[at] = second
            pair_row[at] = row
            at += 1
        last_first, last_second = first, second


@njit(cache=True, nogil=True)
@no_type_check
def read(text, begin, end, out):
    """The symbols of many ranges, one after another."""
    at = 0
    for i in range(begin.shape[0]):
        for place in range(max(begin[i], 0), min(end[i], text.shape[0])):
            if at < out.shape[0]:
                out[at] = text[place]
                at += 1


@njit(cache=True, nogil=True)
@no_type_check
def translate(symbols, alphabet, tokens):
    """tokens[i] = alphabet[symbols[i] - 1]; False where there is a symbol of no token."""
    for i in range(tokens.shape[0]):
        at = np.int64(symbols[i]) - 1
        if at < 0 or at >= alphabet.shape[0]:
            return False
        tokens[i] = alphabet[at]
    return True


@njit(cache=True, nogil=True)
@no_type_check
def holders(starts, blocks, shift, places, out):
    """Number of the range starts[i] ... starts[i + 1] that holds each place.

    blocks[b] is that of place b << shift, so that few steps of bisection are left.
    """
    for k in range(places.shape[0]):
        block = places[k] >> shift
        low, high = blocks[block], blocks[block + 1] + 1
        while high - low > 1:
            middle = (low + high) >> 1
            if starts[middle] <= places[k]:
                low = middle
            else:
                high = middle
        out[k] = low
