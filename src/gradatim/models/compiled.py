"""What the compiled text-vector kernels share: how they are compiled, and their random numbers.

A kernel runs without the interpreter's lock, so that threads train on shards of one corpus side by side, and
its machine code is kept on disk. Kernels are marked `no_type_check` because a type checker would wrap them
before the compiler sees them. Whoever changes a function that another file's kernel calls has to delete that
file's cache: the compiler looks at the date of the calling file alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import no_type_check

import numpy as np
from numba import njit

# fastmath lets sums be reordered and vectorised; it also voids NaN checks, so inputs are checked before.
# error_model="numpy": 0/0 is NaN as everywhere else, not an exception out of the middle of an epoch.
kernel: Callable = njit(fastmath=True, nogil=True, error_model="numpy", cache=True)

LOGIT_RANGE = 16
STEPS_PER_UNIT = 64


def sigmoid_table() -> np.ndarray:
    """sigma(x) at multiples of 1/64 from -16 to 16, as float32.

    Between its points `sigmoid` interpolates: the error is below 3e-6, and 1.2e-7 beyond the ends.
    """
    x = np.arange(2 * LOGIT_RANGE * STEPS_PER_UNIT + 2) / STEPS_PER_UNIT - LOGIT_RANGE
    return np.asarray(1.0 / (1.0 + np.exp(-x)), dtype=np.float32)


@kernel
@no_type_check
def next_state(state):
    """One step of Marsaglia's xorshift with shifts 13, 7, 17: 64 bits, never 0, period 2^64 - 1."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    state ^= state << np.uint64(17)
    return state


@kernel
@no_type_check
def scrambled(seed):
    """A state from any seed, so that neighbouring seeds give unrelated streams (SplitMix64's finish)."""
    z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    if z == np.uint64(0):
        return np.uint64(0x9E3779B97F4A7C15)
    return z


@kernel
@no_type_check
def high_bits(state):
    """The upper 32 bits of a state, mixed: the lower ones of a xorshift are weak."""
    return (state * np.uint64(2685821657736338717)) >> np.uint64(32)


@kernel
@no_type_check
def uniform(state):
    """A float32 strictly between 0 and 1: 23 bits and a half step, so that no rounding reaches either end."""
    return (np.float32(high_bits(state) >> np.uint64(9)) + np.float32(0.5)) * np.float32(2.0**-23)


@kernel
@no_type_check
def below(state, n):
    """A whole number from 0 to n - 1."""
    return np.int64((high_bits(state) * np.uint64(n)) >> np.uint64(32))


@kernel
@no_type_check
def draw_word(state, threshold, other):
    """A word from an alias table: the word itself below its threshold, else the one that shares its cell."""
    r = state * np.uint64(2685821657736338717)
    i = ((r >> np.uint64(32)) * np.uint64(threshold.shape[0])) >> np.uint64(32)
    # Which of the two it is no processor can foretell: both are read and one is chosen without a branch.
    alias = np.uint64(other[i])
    own = np.uint32(r & np.uint64(0xFFFFFFFF)) <= threshold[i]
    return np.int64(i if own else alias)


@kernel
@no_type_check
def sigmoid(x, table):
    """sigma(x) from the table, by linear interpolation."""
    y = (x + np.float32(LOGIT_RANGE)) * np.float32(STEPS_PER_UNIT)
    y = min(max(y, np.float32(0.0)), np.float32(2 * LOGIT_RANGE * STEPS_PER_UNIT))
    # Once training has diverged y is NaN, which no comparison bounds: the index has to be bounded itself.
    i = min(max(np.int32(y), np.int32(0)), np.int32(2 * LOGIT_RANGE * STEPS_PER_UNIT))
    return table[i] + (y - np.float32(i)) * (table[i + 1] - table[i])


@kernel
@no_type_check
def kept_tokens(ids, begin, end, keep, buffer, state):
    """Copies the tokens that survive sub-sampling into `buffer`; returns how many, and the state."""
    n = 0
    for t in range(begin, end):
        state = next_state(state)
        if high_bits(state) <= np.uint64(keep[ids[t]]):
            buffer[n] = ids[t]
            n += 1
    return n, state


@kernel
@no_type_check
def longest_document(offsets, first, last):
    """Tokens of the longest document of a shard."""
    longest = 1
    for i in range(first, last):
        longest = max(longest, offsets[i + 1] - offsets[i])
    return longest
