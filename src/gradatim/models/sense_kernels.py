"""Compiled passes of the disambiguated skip-gram: every word has several vectors, chosen by its context.

For a centre word w and its context C, with sense vectors E, output rows O and a linear classifier A, a:

    ctx = mean of O_c over C (no gradient),  l = A ctx + a,  pi = softmax((l + Gumbel noise) / T) or softmax(l
    / T) v = sum over s of pi_s E_{w,s};  maximise log p(y | v) for every y of C, and -lambda H(softmax(l))
    per pair.

With g = the gradient of v: E_s += lr pi_s g, and dl_s = pi_s (g . E_s - sum over r of pi_r g . E_r) / T.
The gradient of -lambda H is lambda p_s (log p_s + H). Sources: Grzegorczyk and Kurdziel, "Disambiguated
skip-gram model", EMNLP 2018; hard assignment to context clusters: Neelakantan et al., "Efficient
Non-parametric Estimation of Multiple Embeddings per Word in Vector Space", 2014, arXiv 1504.06654.
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

UNIFORM, SOFTMAX, GUMBEL, HARD = 0, 1, 2, 3
"""How a context becomes sense weights; HARD keeps sums of contexts in A and their number in a."""


@kernel
@no_type_check
def context_mean(tokens, low, high, centre, O, ctx):
    """Mean output row of the window, the centre left out."""
    for d in range(ctx.shape[0]):
        ctx[d] = np.float32(0.0)
    share = np.float32(1.0) / np.float32(high - low - 1)
    for c in range(low, high):
        if c != centre:
            for d in range(ctx.shape[0]):
                ctx[d] += share * O[tokens[c], d]


@kernel
@no_type_check
def sense_logits(ctx, A, a, alive, logits):
    """A ctx + a; senses that were pruned get -inf."""
    for s in range(logits.shape[0]):
        total = a[s]
        for d in range(ctx.shape[0]):
            total += A[s, d] * ctx[d]
        logits[s] = total if alive[s] else np.float32(-1e30)


@kernel
@no_type_check
def softmax(logits, temperature, weights):
    """softmax(logits / T)."""
    top = logits[0]
    for s in range(1, logits.shape[0]):
        top = max(top, logits[s])
    total = np.float32(0.0)
    for s in range(logits.shape[0]):
        weights[s] = np.exp((logits[s] - top) / temperature)
        total += weights[s]
    for s in range(logits.shape[0]):
        weights[s] /= total


@kernel
@no_type_check
def nearest_cluster(ctx, sums, counts, alive, weights):
    """One-hot weights of the cluster whose mean context has the highest cosine; an empty one goes first."""
    best, best_score = 0, np.float32(-2.0)
    for s in range(counts.shape[0]):
        if not alive[s]:
            continue
        if counts[s] == 0:
            best = s
            break
        dot = np.float32(0.0)
        norm = np.float32(0.0)
        for d in range(ctx.shape[0]):
            dot += sums[s, d] * ctx[d]
            norm += sums[s, d] * sums[s, d]
        score = dot / np.sqrt(max(norm, np.float32(1e-20)))
        if score > best_score or best_score == -2:
            best, best_score = s, score
    for s in range(weights.shape[0]):
        weights[s] = np.float32(0.0)
    weights[best] = np.float32(1.0)
    return best


@kernel
@no_type_check
def predict_word(v, rows, n, O, bias, log_expected, sampled_softmax, table, lr, scores, gradient):
    """One step on the outputs for input v; rows[0] is the word to predict, the others are noise.

    `gradient` becomes the sum of e times the old rows. Noise that equals the word is left out. Sampled
    softmax compares the words' scores, each less the log of how often it is drawn.
    """
    width = v.shape[0]
    top = np.float32(-1e30)
    for j in range(n):
        total = bias[rows[j]]
        for d in range(width):
            total += v[d] * O[rows[j], d]
        if sampled_softmax:
            total -= log_expected[rows[j]]
            if j > 0 and rows[j] == rows[0]:
                total = np.float32(-1e30)
        scores[j] = total
        top = max(top, total)
    if sampled_softmax:
        whole = np.float32(0.0)
        for j in range(n):
            scores[j] = np.exp(scores[j] - top)
            whole += scores[j]
        for j in range(n):
            scores[j] = -scores[j] / whole
    else:
        for j in range(n):
            scores[j] = -sigmoid(scores[j], table)
            if j > 0 and rows[j] == rows[0]:
                scores[j] = np.float32(0.0)
    scores[0] += np.float32(1.0)
    for d in range(width):
        gradient[d] = np.float32(0.0)
    for j in range(n):
        e = scores[j]
        if e == 0:
            continue
        o = O[rows[j]]
        for d in range(width):
            old = o[d]
            gradient[d] += e * old
            o[d] = old + lr * e * v[d]
        bias[rows[j]] += lr * e


@kernel
@no_type_check
def sense_pass(
    ids, offsets, first, last, E, O, bias, A, a, alive, keep, threshold, other, log_expected, table,
    assignment, sampled_softmax, window, full_windows, negative, shared, lr, classifier_lr, end_share,
    entropy, t_begin, t_end, t_epochs, epoch, epochs, seed,
):  # fmt: skip
    """One epoch over documents `first` to `last` (exclusive); returns the number of pairs.

    A has one classifier for all words, or one per word. The temperature goes linearly from `t_begin` to
    `t_end` within the first `t_epochs` epochs. With `shared`, pairs of one centre share its noise words.
    """
    senses, width = E.shape[1], E.shape[2]
    per_word = A.shape[0] > 1
    buffer = np.empty(longest_document(offsets, first, last), np.int64)
    rows = np.zeros(negative + 1, np.int64)
    scores = np.zeros(negative + 1, np.float32)
    ctx = np.zeros(width, np.float32)
    v = np.zeros(width, np.float32)
    gradient = np.zeros(width, np.float32)
    logits = np.zeros(senses, np.float32)
    noisy = np.zeros(senses, np.float32)
    weights = np.zeros(senses, np.float32)
    toward = np.zeros(senses, np.float32)
    ascent = np.zeros(senses, np.float32)
    plain = np.zeros(senses, np.float32)
    tokens = max(1, offsets[last] - offsets[first])
    state = scrambled(seed)
    pairs = 0
    for doc in range(first, last):
        passed = epoch + (offsets[doc] - offsets[first]) / tokens
        fall = 1.0 - (1.0 - end_share) * passed / epochs
        step, classifier_step = np.float32(lr * fall), np.float32(classifier_lr * fall)
        cooled = 1.0 if t_epochs <= 0 else min(1.0, passed / t_epochs)
        temperature = np.float32(t_begin + (t_end - t_begin) * cooled)
        n, state = kept_tokens(ids, offsets[doc], offsets[doc + 1], keep, buffer, state)
        for i in range(n):
            reach = window
            if not full_windows:
                state = next_state(state)
                reach = 1 + below(state, window)
            low, high = max(0, i - reach), min(n, i + reach + 1)
            if high - low < 2:
                continue
            pairs += high - low - 1
            word = buffer[i]
            owner = word if per_word else 0
            if assignment == UNIFORM:
                for s in range(senses):
                    weights[s] = np.float32(1.0) / np.float32(senses)
            else:
                context_mean(buffer, low, high, i, O, ctx)
                if assignment == HARD:
                    s = nearest_cluster(ctx, A[owner], a[owner], alive[word], weights)
                    for d in range(width):
                        A[owner, s, d] += ctx[d]
                    a[owner, s] += np.float32(1.0)
                else:
                    sense_logits(ctx, A[owner], a[owner], alive[word], logits)
                    softmax(logits, np.float32(1.0), plain)
                    softmax(logits, temperature, weights)
            for s in range(senses):
                ascent[s] = np.float32(0.0)
            if shared:
                for j in range(1, negative + 1):
                    state = next_state(state)
                    rows[j] = draw_word(state, threshold, other)
            for c in range(low, high):
                if c == i:
                    continue
                rows[0] = buffer[c]
                if not shared:
                    for j in range(1, negative + 1):
                        state = next_state(state)
                        rows[j] = draw_word(state, threshold, other)
                if assignment == GUMBEL:
                    for s in range(senses):
                        state = next_state(state)
                        noisy[s] = logits[s] - np.log(-np.log(uniform(state)))
                    softmax(noisy, temperature, weights)
                for d in range(width):
                    v[d] = np.float32(0.0)
                for s in range(senses):
                    if weights[s] > 0:
                        for d in range(width):
                            v[d] += weights[s] * E[word, s, d]
                predict_word(
                    v,
                    rows,
                    negative + 1,
                    O,
                    bias,
                    log_expected,
                    sampled_softmax,
                    table,
                    step,
                    scores,
                    gradient,
                )
                mean = np.float32(0.0)
                for s in range(senses):
                    toward[s] = np.float32(0.0)
                    if weights[s] > 0:
                        pull = np.float32(0.0)
                        move = step * weights[s]
                        for d in range(width):
                            old = E[word, s, d]
                            pull += gradient[d] * old
                            E[word, s, d] = old + move * gradient[d]
                        toward[s] = pull
                        mean += weights[s] * pull
                for s in range(senses):
                    ascent[s] += weights[s] * (toward[s] - mean) / temperature
            if assignment in (SOFTMAX, GUMBEL):
                h = np.float32(0.0)
                for s in range(senses):
                    if plain[s] > 0:
                        h -= plain[s] * np.log(plain[s])
                count = np.float32(high - low - 1)
                for s in range(senses):
                    push = ascent[s]
                    if entropy != 0 and plain[s] > 0:
                        push += np.float32(entropy) * count * plain[s] * (np.log(plain[s]) + h)
                    a[owner, s] += classifier_step * push
                    for d in range(width):
                        A[owner, s, d] += classifier_step * push * ctx[d]
    return pairs


@kernel
@no_type_check
def sense_usage(ids, offsets, O, A, a, alive, assignment, window, usage):
    """Adds the sense weights of every occurrence to `usage` [V, S]: plain softmax, or the nearest cluster."""
    senses, width = alive.shape[1], O.shape[1]
    ctx = np.zeros(width, np.float32)
    logits = np.zeros(senses, np.float32)
    weights = np.zeros(senses, np.float32)
    for doc in range(offsets.shape[0] - 1):
        tokens = ids[offsets[doc] : offsets[doc + 1]]
        n = tokens.shape[0]
        for i in range(n):
            low, high = max(0, i - window), min(n, i + window + 1)
            if high - low < 2:
                continue
            word = tokens[i]
            owner = word if A.shape[0] > 1 else 0
            context_mean(tokens, low, high, i, O, ctx)
            if assignment == HARD:
                nearest_cluster(ctx, A[owner], a[owner], alive[word], weights)
            else:
                sense_logits(ctx, A[owner], a[owner], alive[word], logits)
                softmax(logits, np.float32(1.0), weights)
            for s in range(senses):
                usage[word, s] += weights[s]
