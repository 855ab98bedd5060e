"""The plain language models of `compare language`: counts of short token sequences, no training by gradients.

Witten-Bell interpolation, with c the counts of the training part, h the last k tokens, h' the last k - 1, and
t(h) the number of different tokens seen after h ("The Zero-Frequency Problem", Witten and Bell 1991):

    p_k(w | h) = (c(h w) + t(h) p_{k-1}(w | h')) / (c(h) + t(h)),     p_{-1}(w) = 1 / V.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def count_model_losses(train: Tensor, windows: Tensor, vocab_size: int, order: int) -> np.ndarray:
    """Nats of every token after the first of each window, [count, length - 1].

    Args:
        train: [n] ids that are counted.
        windows: [count, length] ids. As a network would, a token sees its own window only.
        order: the most tokens looked back at; 0 are plain frequencies.
    """
    learned = train.numpy().astype(np.int64)
    asked = windows.numpy().astype(np.int64)
    count, length = asked.shape
    tokens = asked.ravel()
    depth = np.tile(np.arange(length), count)  # tokens of the window before each place
    probability = np.full(len(tokens), 1.0 / vocab_size)
    # The k tokens just before each place, as one number in both texts; none yet.
    seen, known = np.zeros_like(learned), np.zeros_like(tokens)
    for k in range(order + 1):
        seen_token, known_token, kinds = _numbered(seen, learned, known, tokens, vocab_size)
        usable = np.arange(len(learned)) >= k
        counts = np.bincount(seen_token[usable], minlength=kinds)
        size = int(max(seen.max(), known.max())) + 1
        total = np.bincount(seen[usable], minlength=size)
        distinct = np.bincount(seen[usable][_firsts(seen_token[usable])], minlength=size)
        looked = (depth >= k) & (total[known] > 0)
        below = counts[known_token] + distinct[known] * probability
        probability = np.where(looked, below / np.maximum(total[known] + distinct[known], 1), probability)
        # The k + 1 tokens before a place: the k tokens before the place before it, and the token there.
        seen = np.concatenate([[0], seen_token[:-1]])
        known = np.concatenate([[0], known_token[:-1]])
    return -np.log(probability).reshape(count, length)[:, 1:]


def _firsts(numbers: np.ndarray) -> np.ndarray:
    """Places where each number occurs first."""
    return np.unique(numbers, return_index=True)[1]


def _numbered(
    seen: np.ndarray, learned: np.ndarray, known: np.ndarray, tokens: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Each context with the token after it as one number, alike in both texts, and how many there are."""
    both = np.concatenate([seen * vocab_size + learned, known * vocab_size + tokens])
    different, numbers = np.unique(both, return_inverse=True)
    return numbers[: len(learned)], numbers[len(learned) :], len(different)
