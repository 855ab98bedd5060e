"""Compiled passes of skip-gram with negative sampling.

Centre word x predicts, or is predicted by, each word c of its window; with input rows w and output rows u a
pair with k noise words n adds

    log sigma(w_c . u_x) + sum over n of log sigma(-w_c . u_n)

to the objective. e = target - sigma(logit); w_c += lr sum e u and u += lr e w_c, all from the old values.
Sources: Mikolov et al., "Distributed Representations of Words and Phrases and their Compositionality", 2013,
arXiv 1310.4546; shared noise words: Ji, Satish, Li and Dubey, "Parallelizing Word2Vec in Shared and
Distributed Memory", 2016, arXiv 1604.04661.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from gradatim.models.compiled import (
    below,
    draw_word,
    kept_tokens,
    kernel,
    longest_document,
    next_state,
    scrambled,
    sigmoid,
)

GROUP = 6
"""Output rows that one pass over an input row serves: six sums and the input fit the vector registers."""


@kernel
@no_type_check
def plain_pair(w, centre, U, threshold, other, table, negative, lr, gradient, state):
    """word2vec's own step for one pair: noise words of its own, a noise word equal to the centre skipped."""
    width = w.shape[0]
    for d in range(width):
        gradient[d] = np.float32(0.0)
    for j in range(negative + 1):
        word, target = np.int64(centre), np.float32(1.0)
        if j > 0:
            state = next_state(state)
            word, target = draw_word(state, threshold, other), np.float32(0.0)
            if word == centre:
                continue
        u = U[word]
        score = np.float32(0.0)
        for d in range(width):
            score += w[d] * u[d]
        step = lr * (target - sigmoid(score, table))
        for d in range(width):
            old = u[d]
            gradient[d] += step * old
            u[d] = old + step * w[d]
    for d in range(width):
        w[d] += gradient[d]
    return state


@kernel
@no_type_check
def draw_block(centre, U, threshold, other, negative, rows, rate, lr, B, state):
    """Gathers the rows of the centre and of its distinct noise words into the block B.

    A noise word equal to the centre or drawn before gets rate 0 and is not written back: two copies of one
    row in the block would overwrite each other.
    """
    rows[0], rate[0] = centre, lr
    for j in range(1, negative + 1):
        state = next_state(state)
        word = draw_word(state, threshold, other)
        rows[j], rate[j] = word, lr
        for i in range(j):
            if rows[i] == word:
                rate[j] = np.float32(0.0)
    for j in range(negative + 1):
        u = U[rows[j]]
        for d in range(B.shape[1]):
            B[j, d] = u[d]
    return state


@kernel
@no_type_check
def block_pair(w, B, rate, first_group, table, gradient):
    """One input row against six rows of the block: six sums in one pass, both updates in a second.

    `gradient` collects what the input row moves by, so that every group sees its old value.
    """
    width = w.shape[0]
    q = GROUP * first_group
    b0, b1, b2, b3, b4, b5 = B[q], B[q + 1], B[q + 2], B[q + 3], B[q + 4], B[q + 5]
    s0 = np.float32(0.0)
    s1 = np.float32(0.0)
    s2 = np.float32(0.0)
    s3 = np.float32(0.0)
    s4 = np.float32(0.0)
    s5 = np.float32(0.0)
    for d in range(width):
        x = w[d]
        s0 += x * b0[d]
        s1 += x * b1[d]
        s2 += x * b2[d]
        s3 += x * b3[d]
        s4 += x * b4[d]
        s5 += x * b5[d]
    e0 = -sigmoid(s0, table) * rate[q]
    if q == 0:
        e0 += rate[0]
    e1 = -sigmoid(s1, table) * rate[q + 1]
    e2 = -sigmoid(s2, table) * rate[q + 2]
    e3 = -sigmoid(s3, table) * rate[q + 3]
    e4 = -sigmoid(s4, table) * rate[q + 4]
    e5 = -sigmoid(s5, table) * rate[q + 5]
    for d in range(width):
        x = w[d]
        y0, y1, y2, y3, y4, y5 = b0[d], b1[d], b2[d], b3[d], b4[d], b5[d]
        gradient[d] += (e0 * y0 + e1 * y1) + (e2 * y2 + e3 * y3) + (e4 * y4 + e5 * y5)
        b0[d] = y0 + e0 * x
        b1[d] = y1 + e1 * x
        b2[d] = y2 + e2 * x
        b3[d] = y3 + e3 * x
        b4[d] = y4 + e4 * x
        b5[d] = y5 + e5 * x


@kernel
@no_type_check
def skip_gram_pass(
    ids, offsets, first, last, W, U, keep, threshold, other, table, window, negative, shared, lr, end_share,
    epoch, epochs, seed,
):  # fmt: skip
    """One epoch over documents `first` to `last` (exclusive); returns the number of pairs.

    The window of every position is drawn from 1 to `window`. The step falls linearly over all epochs, from
    `lr` to `end_share` of it. With `shared` the pairs of one centre share its noise words.
    """
    width = W.shape[1]
    groups = (negative + GROUP) // GROUP
    B = np.zeros((groups * GROUP, width), np.float32)
    rows = np.zeros(groups * GROUP, np.int64)
    rate = np.zeros(groups * GROUP, np.float32)
    gradient = np.zeros(width, np.float32)
    buffer = np.empty(longest_document(offsets, first, last), np.int64)
    tokens = max(1, offsets[last] - offsets[first])
    state = scrambled(seed)
    pairs = 0
    for doc in range(first, last):
        done = (epoch + (offsets[doc] - offsets[first]) / tokens) / epochs
        step = np.float32(lr * (1.0 - (1.0 - end_share) * done))
        n, state = kept_tokens(ids, offsets[doc], offsets[doc + 1], keep, buffer, state)
        for i in range(n):
            state = next_state(state)
            reach = 1 + below(state, window)
            low, high = max(0, i - reach), min(n, i + reach + 1)
            if high - low < 2:
                continue
            pairs += high - low - 1
            if not shared:
                for c in range(low, high):
                    if c != i:
                        state = plain_pair(
                            W[buffer[c]], buffer[i], U, threshold, other, table, negative, step, gradient,
                            state,
                        )  # fmt: skip
                continue
            state = draw_block(buffer[i], U, threshold, other, negative, rows, rate, step, B, state)
            for c in range(low, high):
                if c != i:
                    w = W[buffer[c]]
                    for d in range(width):
                        gradient[d] = np.float32(0.0)
                    for g in range(groups):
                        block_pair(w, B, rate, g, table, gradient)
                    for d in range(width):
                        w[d] += gradient[d]
            for j in range(negative + 1):
                if rate[j] != 0:
                    u = U[rows[j]]
                    for d in range(width):
                        u[d] = B[j, d]
    return pairs
