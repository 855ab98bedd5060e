"""Compiled passes of Paragraph Vector: PV-DBOW and PV-DM, real, binary and Real-Binary.

For a hidden vector x (bias as a last component 1) and output rows u, a pair with noise words adds

    log sigma(x . u_word) + sum over noise words of log sigma(-x . u_noise)

to the objective, so that with e = target - sigma(x . u) a step is u += lr e x and the gradient of the hidden
vector is g = sum e u. Sources: Le and Mikolov, "Distributed Representations of Sentences and Documents",
2014, arXiv 1405.4053; Grzegorczyk and Kurdziel, "Binary Paragraph Vectors", 2017, arXiv 1611.01116.
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
    uniform,
)

REAL, ROUNDED, SMOOTH, NOISY = 0, 1, 2, 3
"""How a document vector becomes the hidden vector: itself, round(sigma), sigma, sigma of a noisy vector."""

MEAN, CONCAT, ORDERED = 0, 1, 2
"""How PV-DM joins document and context: one mean, [document; mean of words], [document; words in order]."""

LARGEST_PREACTIVATION = np.float32(6.0)

GROUP = 6
"""Output rows that one pass over the hidden vector serves: six sums and the input fit the registers."""


@kernel
@no_type_check
def hidden_vector(d, P, c, how, noise, dropout, table, h, slope, state):
    """Fills h and dh/dz from z = d, or z = P d + c where P has rows; returns the random state.

    Rounding is the identity in the backward pass: its slope is that of the sigmoid.
    """
    n = h.shape[0]
    if how == REAL and P.shape[0] == 0 and dropout == 0:
        for i in range(n):
            h[i] = d[i]
            slope[i] = np.float32(1.0)
        return state
    for i in range(n):
        if P.shape[0] > 0:
            z = c[i]
            for j in range(d.shape[0]):
                z += P[i, j] * d[j]
        else:
            z = d[i]
        if how == REAL:
            h[i] = z
            slope[i] = np.float32(1.0)
        else:
            if how == NOISY:
                state = next_state(state)
                radius = np.sqrt(np.float32(-2.0) * np.log(uniform(state)))
                state = next_state(state)
                z += np.float32(noise) * radius * np.cos(np.float32(2.0 * np.pi) * uniform(state))
            p = sigmoid(z, table)
            slope[i] = p * (np.float32(1.0) - p)
            h[i] = p
            if how == ROUNDED:
                h[i] = np.float32(1.0) if z > 0 else np.float32(0.0)
        if dropout > 0:
            state = next_state(state)
            if uniform(state) < dropout:
                h[i] = np.float32(0.0)
                slope[i] = np.float32(0.0)
            else:
                h[i] /= np.float32(1.0) - np.float32(dropout)
                slope[i] /= np.float32(1.0) - np.float32(dropout)
    return state


@kernel
@no_type_check
def update_document(d, P, c, how, g, slope, doc_lr, lr, learn):
    """Carries the gradient g of the hidden vector to the document vector and, while learning, to P and c."""
    n = slope.shape[0]
    if P.shape[0] == 0:
        for i in range(n):
            d[i] += doc_lr * g[i] * slope[i]
        if how != REAL:
            for i in range(n):
                d[i] = min(max(d[i], -LARGEST_PREACTIVATION), LARGEST_PREACTIVATION)
        return
    back = np.zeros(d.shape[0], np.float32)
    for i in range(n):
        gz = g[i] * slope[i]
        for j in range(d.shape[0]):
            back[j] += gz * P[i, j]
        if learn:
            for j in range(d.shape[0]):
                P[i, j] += lr * gz * d[j]
            c[i] += lr * gz
    for j in range(d.shape[0]):
        d[j] += doc_lr * back[j]


@kernel
@no_type_check
def six_errors(x, U, rows, error, weight, first, table, g):
    """Six outputs in one pass over x: `error` turns from what each is to have into e, and g += sum e u."""
    width = x.shape[0]
    r0, r1, r2 = np.uint64(rows[first]), np.uint64(rows[first + 1]), np.uint64(rows[first + 2])
    r3, r4, r5 = np.uint64(rows[first + 3]), np.uint64(rows[first + 4]), np.uint64(rows[first + 5])
    s0 = np.float32(0.0)
    s1 = np.float32(0.0)
    s2 = np.float32(0.0)
    s3 = np.float32(0.0)
    s4 = np.float32(0.0)
    s5 = np.float32(0.0)
    for i in range(width):
        y = x[i]
        s0 += y * U[r0, i]
        s1 += y * U[r1, i]
        s2 += y * U[r2, i]
        s3 += y * U[r3, i]
        s4 += y * U[r4, i]
        s5 += y * U[r5, i]
    e0 = error[first] - weight[first] * sigmoid(s0, table)
    e1 = error[first + 1] - weight[first + 1] * sigmoid(s1, table)
    e2 = error[first + 2] - weight[first + 2] * sigmoid(s2, table)
    e3 = error[first + 3] - weight[first + 3] * sigmoid(s3, table)
    e4 = error[first + 4] - weight[first + 4] * sigmoid(s4, table)
    e5 = error[first + 5] - weight[first + 5] * sigmoid(s5, table)
    for i in range(width):
        g[i] += (e0 * U[r0, i] + e1 * U[r1, i]) + (e2 * U[r2, i] + e3 * U[r3, i]) + (
            e4 * U[r4, i] + e5 * U[r5, i]
        )  # fmt: skip
    error[first], error[first + 1], error[first + 2] = e0, e1, e2
    error[first + 3], error[first + 4], error[first + 5] = e3, e4, e5


@kernel
@no_type_check
def output_rows(x, U, rows, error, weight, n, lr, learn, table, g):
    """One step on the first n of `rows`: g = sum e u, then every u += lr e x, where x and u end with the bias
    and padding.

    e = weight (target - sigma(x . u)); `error` holds weight * target before and e afterwards. Everything is
    computed from the old rows, so that a row named twice moves twice, as in the gradient of the sum.
    """
    whole = (n + GROUP - 1) // GROUP * GROUP
    for j in range(n, whole):
        rows[j], error[j], weight[j] = rows[0], np.float32(0.0), np.float32(0.0)
    for i in range(g.shape[0]):
        g[i] = np.float32(0.0)
    for first in range(0, whole, GROUP):
        six_errors(x, U, rows, error, weight, first, table, g)
    if learn:
        for j in range(n):
            r = np.uint64(rows[j])
            step = lr * error[j]
            for i in range(x.shape[0]):
                U[r, i] += step * x[i]


@kernel
@no_type_check
def dbow_document(
    tokens, n, d, U, P, c, threshold, other, table, how, noise, dropout, negative, block, shared, lr, doc_lr,
    learn, h, x, slope, g, rows, error, weight, state,
):  # fmt: skip
    """One pass over a document: blocks of tokens share the hidden vector and `shared` noise words.

    Every token asks for `negative` noise words; a shared one stands for (tokens of the block that it differs
    from) * negative / shared of them. block = 1 with shared = negative is word2vec's own step.
    """
    one = np.float32(1.0)
    size = h.shape[0]
    for begin in range(0, n, block):
        end = min(begin + block, n)
        drawn = shared if end - begin == block else negative
        state = hidden_vector(d, P, c, how, noise, dropout, table, h, slope, state)
        for i in range(size):
            x[i] = h[i]
        m = end - begin
        for t in range(m):
            rows[t], error[t], weight[t] = tokens[begin + t], one, one
        for _ in range(drawn):
            state = next_state(state)
            word = draw_word(state, threshold, other)
            different = 0
            for t in range(begin, end):
                if tokens[t] != word:
                    different += 1
            rows[m], error[m] = word, np.float32(0.0)
            weight[m] = np.float32(different * negative) / np.float32(drawn)
            m += 1
        output_rows(x, U, rows, error, weight, m, lr, learn, table, g)
        update_document(d, P, c, how, g, slope, doc_lr, lr, learn)
    return state


@kernel
@no_type_check
def dm_document(
    tokens, n, d, U, P, c, W, Q, threshold, other, table, how, noise, dropout, negative, window, combine, lr,
    doc_lr, learn, h, x, slope, g, rows, error, weight, around, gh, state,
):  # fmt: skip
    """One pass over a document: the hidden vector and the words around predict the word in the middle.

    MEAN: (d + sum of words) / (1 + words) for real vectors, Q h + mean of words for codes. CONCAT: [h; mean
    of words]. ORDERED: [h; word at -window ... word at +window], zeros where there is none. As in word2vec,
    each vector of a mean is given the whole gradient of the mean.
    """
    one = np.float32(1.0)
    size, width = h.shape[0], W.shape[1]
    start = 0 if combine == MEAN else size
    stride = width if combine == ORDERED else 0
    total = start + max(2 * window * stride, width)
    projected = combine == MEAN and Q.shape[0] > 0
    for i in range(n):
        reach = window
        if combine != ORDERED:
            state = next_state(state)
            reach = 1 + below(state, window)
        low, high = max(0, i - reach), min(n, i + reach + 1)
        first_slot = start + (low - i + window) * stride
        state = hidden_vector(d, P, c, how, noise, dropout, table, h, slope, state)
        if combine == ORDERED:
            for j in range(start, total):
                x[j] = np.float32(0.0)
            slot = first_slot
            for t in range(low, high):
                if t != i:
                    r, part = np.uint64(tokens[t]), x[slot : slot + width]
                    for j in range(width):
                        part[j] = W[r, j]
                    slot += stride
        else:
            for j in range(width):
                around[j] = np.float32(0.0)
            for t in range(low, high):
                if t != i:
                    r = np.uint64(tokens[t])
                    for j in range(width):
                        around[j] += W[r, j]
            words = high - low - 1
            if combine == MEAN and not projected:
                words += 1
                for j in range(size):
                    around[j] += h[j]
            share, part = one / np.float32(max(words, 1)), x[start:total]
            for j in range(width):
                part[j] = share * around[j]
        if projected:
            for j in range(width):
                for q in range(size):
                    x[j] += Q[j, q] * h[q]
        elif combine != MEAN:
            for j in range(size):
                x[j] = h[j]
        rows[0], error[0], weight[0] = tokens[i], one, one
        m = 1
        for _ in range(negative):
            state = next_state(state)
            word = draw_word(state, threshold, other)
            rows[m], error[m] = word, np.float32(0.0)
            weight[m] = np.float32(word != tokens[i])
            m += 1
        output_rows(x, U, rows, error, weight, m, lr, learn, table, g)
        if projected:
            for q in range(size):
                gh[q] = np.float32(0.0)
            for j in range(width):
                for q in range(size):
                    gh[q] += g[j] * Q[j, q]
                    if learn:
                        Q[j, q] += lr * g[j] * h[q]
        else:
            for q in range(size):
                gh[q] = g[q]
        update_document(d, P, c, how, gh, slope, doc_lr, lr, learn)
        if learn:
            slot = first_slot
            for t in range(low, high):
                if t != i:
                    r, part = np.uint64(tokens[t]), g[slot : slot + width]
                    for j in range(width):
                        W[r, j] += lr * part[j]
                    slot += stride
    return state


@kernel
@no_type_check
def paragraph_pass(
    ids, offsets, first, last, D, U, P, c, W, Q, keep, threshold, other, table, dm, how, noise, dropout,
    negative, block, shared, window, combine, lr, doc_lr, end_share, epoch, epochs, learn, seeds,
):  # fmt: skip
    """Trains documents `first` to `last` (exclusive), step sizes falling linearly to `end_share` of theirs.

    While learning this is one epoch over the shard, with one random stream from `seeds[0]`. Otherwise it is
    all epochs for one document after the other, U, P, c, W and Q frozen, each with its own stream, so that a
    document's vector does not depend on its neighbours. Returns the number of tokens trained on.
    """
    buffer = np.empty(longest_document(offsets, first, last), np.int64)
    size = P.shape[0] if P.shape[0] > 0 else D.shape[1]
    h = np.zeros(size, np.float32)
    slope = np.zeros(size, np.float32)
    x = np.zeros(U.shape[1], np.float32)
    g = np.zeros(U.shape[1], np.float32)
    if not dm:
        x[size] = np.float32(1.0)
    elif combine == MEAN:
        x[W.shape[1]] = np.float32(1.0)
    else:
        x[size + W.shape[1] * (2 * window if combine == ORDERED else 1)] = np.float32(1.0)
    most = negative + 1 if dm else block + max(shared, negative)
    rows = np.zeros(most + GROUP, np.int64)
    error = np.zeros(most + GROUP, np.float32)
    weight = np.zeros(most + GROUP, np.float32)
    around = np.zeros(W.shape[1], np.float32)
    gh = np.zeros(size, np.float32)
    state = scrambled(seeds[0])
    all_tokens = max(1, offsets[last] - offsets[first])
    trained = 0
    for doc in range(first, last):
        rounds = 1
        if not learn:
            rounds = epochs
            state = scrambled(seeds[doc])
        for round_ in range(rounds):
            if learn:
                done = (epoch + (offsets[doc] - offsets[first]) / all_tokens) / epochs
            else:
                done = round_ / epochs
            fall = 1.0 - (1.0 - end_share) * done
            rate, doc_rate = np.float32(lr * fall), np.float32(doc_lr * fall)
            n, state = kept_tokens(ids, offsets[doc], offsets[doc + 1], keep, buffer, state)
            trained += n
            if dm:
                state = dm_document(
                    buffer, n, D[doc], U, P, c, W, Q, threshold, other, table, how, noise, dropout, negative,
                    window, combine, rate, doc_rate, learn, h, x, slope, g, rows, error, weight, around, gh,
                    state,
                )  # fmt: skip
            else:
                state = dbow_document(
                    buffer, n, D[doc], U, P, c, threshold, other, table, how, noise, dropout, negative, block,
                    shared, rate, doc_rate, learn, h, x, slope, g, rows, error, weight, state,
                )  # fmt: skip
    return trained
