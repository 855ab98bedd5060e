"""Words and their numbers: what the text-vector kernels read.

A corpus becomes one flat array of word numbers with document offsets; the vocabulary gives the chance that a
frequent word is kept (word2vec's sub-sampling) and the alias table from which noise words are drawn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

Tokenizer = Callable[[str], Sequence[str]]

_WORD = re.compile(r"\w+")
BIGRAM_JOINT = " "


def default_tokenizer(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class EncodedCorpus:
    """Word numbers of all documents end to end, and where each document begins (one more than documents)."""

    ids: Int[np.ndarray, " tokens"]
    offsets: Int[np.ndarray, " bounds"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def shards(self, n: int) -> list[tuple[int, int]]:
        """At most `n` runs of documents with about equally many tokens each."""
        goals = np.linspace(0, self.offsets[-1], max(1, min(n, len(self))) + 1)[1:-1]
        cuts = [0, *np.searchsorted(self.offsets, goals).tolist(), len(self)]
        return [(a, b) for a, b in pairwise(cuts) if b > a]


@dataclass(frozen=True)
class AliasTable:
    """Walker's alias method: a cell is drawn uniformly, then its own word or the one it shares with.

    `threshold` is the chance of the own word in units of 2^-32.
    """

    threshold: Shaped[np.ndarray, " words"]
    other: Int[np.ndarray, " words"]


@dataclass(frozen=True)
class Vocabulary:
    """Words by number, most frequent first, and how often each occurred."""

    words: tuple[str, ...]
    counts: Int[np.ndarray, " words"]

    @cached_property
    def index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def keep_thresholds(self, sample: float) -> Shaped[np.ndarray, " words"]:
        """The chance sqrt(t/f) + t/f (at most 1) that a token of frequency f stays, in units of 2^-32.

        `sample` is t; 0 keeps every token.
        """
        if sample <= 0:
            return np.full(len(self), 2**32 - 1, dtype=np.uint32)
        ratio = sample * self.counts.sum() / self.counts
        return np.asarray(np.minimum(np.sqrt(ratio) + ratio, 1.0) * (2**32 - 1), dtype=np.uint32)

    def noise(self, exponent: float | None) -> AliasTable:
        """Draws a word with probability proportional to count^exponent.

        `exponent=None` is the log-uniform law over frequency rank, P(r) ~ log((r + 2) / (r + 1)).
        """
        return alias_table(self.noise_weights(exponent))

    def noise_weights(self, exponent: float | None) -> np.ndarray:
        """The unnormalised probabilities of `noise`."""
        if exponent is None:
            rank = np.arange(len(self), dtype=np.float64)
            return np.asarray(np.log((rank + 2.0) / (rank + 1.0)))
        return np.asarray(self.counts.astype(np.float64) ** exponent)

    def encode(self, documents: Iterable[Sequence[str]], ngram: int = 1) -> EncodedCorpus:
        """The numbers of known words (and, with `ngram` above 1, of known runs of words after them)."""
        index, ids, offsets = self.index, [], [0]
        total = 0
        for tokens in documents:
            known = [index[token] for token in with_ngrams(tokens, ngram) if token in index]
            ids.append(np.array(known, dtype=np.int32))
            total += len(known)
            offsets.append(total)
        flat = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
        return EncodedCorpus(flat, np.array(offsets, dtype=np.int64))


def build_vocabulary(
    documents: Iterable[Sequence[str]], min_count: int = 1, max_vocab: int | None = None, ngram: int = 1
) -> Vocabulary:
    """Words (and runs of up to `ngram` words) that occur at least `min_count` times, at most `max_vocab`.

    Equally frequent words stand in alphabetical order. Raises ValueError when nothing is left.
    """
    counts: Counter[str] = Counter()
    for tokens in documents:
        counts.update(with_ngrams(tokens, ngram))
    kept = sorted((-n, word) for word, n in counts.items() if n >= min_count)[:max_vocab]
    if not kept:
        most = max(counts.values(), default=0)
        seen = f"the most frequent of {len(counts)} words occurs {most} times" if most else "there is no word"
        raise ValueError(f"empty vocabulary: min_count={min_count}, but {seen}; lower min_count")
    return Vocabulary(tuple(word for _, word in kept), np.array([-n for n, _ in kept], dtype=np.int64))


def with_ngrams(tokens: Sequence[str], ngram: int) -> Sequence[str]:
    """The tokens, then their runs of 2 to `ngram` words, joined by a blank."""
    if ngram == 1:
        return tokens
    runs = [
        BIGRAM_JOINT.join(tokens[i : i + n]) for n in range(2, ngram + 1) for i in range(len(tokens) - n + 1)
    ]
    return [*tokens, *runs]


def tokenized(documents: Iterable[Any], tokenizer: Tokenizer | None = None) -> list[list[str]]:
    """Documents as lists of tokens: strings go through the tokenizer, token lists stay as they are.

    Raises TypeError for a single string (meant as one document?), for a document that is neither, and for a
    token that is no string.
    """
    if isinstance(documents, str | bytes):
        raise TypeError("expected an iterable of documents, got one string; wrap it in a list")
    split = default_tokenizer if tokenizer is None else tokenizer
    found = []
    for i, document in enumerate(documents):
        if isinstance(document, str):
            found.append(list(split(document)))
            continue
        if isinstance(document, bytes | int | float) or not isinstance(document, Iterable):
            raise TypeError(
                f"document {i} is {document!r:.60}: expected a string or a list of tokens (no NaN, no bytes)"
            )
        tokens = list(document)
        wrong = next((token for token in tokens if not isinstance(token, str)), None)
        if wrong is not None:
            raise TypeError(f"document {i} holds the token {wrong!r:.60}: tokens are strings")
        found.append(tokens)
    return found


def alias_table(weights: np.ndarray) -> AliasTable:
    """Walker's alias table for probabilities proportional to `weights` (positive, finite)."""
    n = len(weights)
    share = weights * (n / weights.sum())
    own, other = np.ones(n), np.arange(n, dtype=np.int32)
    small = [i for i in range(n) if share[i] < 1.0]
    large = [i for i in range(n) if share[i] >= 1.0]
    while small and large:
        poor, rich = small.pop(), large[-1]
        own[poor], other[poor] = share[poor], rich
        share[rich] -= 1.0 - share[poor]
        if share[rich] < 1.0:
            small.append(large.pop())
    return AliasTable(np.asarray(own * (2**32 - 1), dtype=np.uint32), other)
