"""The keys of one query, weighed and ranked, as the arrays that matching and scoring work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from gradatim.inference.key_weights import log_odds
from gradatim.inference.substring_beams import Key
from gradatim.inference.substring_index import SubstringIndex, ranges_of_many


@dataclass(frozen=True)
class KeyTable:
    """Keys in descending order of value, equal ones by their tokens.

    values         w(n, q), or log P(n|q)
    ranges         where the index has them
    begin, tokens  the n-grams one after another, as shifted tokens: token + 1, the document boundary is 0
    bound          above every shifted token
    """

    keys: list[Key]
    values: Float[np.ndarray, " keys"]
    counts: Int[np.ndarray, " keys"]
    ranges: Int[np.ndarray, "keys shards 2"]
    begin: Int[np.ndarray, " keys_and_one"]
    tokens: Int[np.ndarray, " total"]
    bound: int

    @property
    def lengths(self) -> Int[np.ndarray, " keys"]:
        return np.diff(self.begin)

    @classmethod
    def of(
        cls,
        index: SubstringIndex,
        keys: Sequence[Key],
        *,
        smoothing: float,
        length_penalty: float,
        most: int,
        by_odds: bool,
        partial: bool,
    ) -> KeyTable:
        """Those that can add to a score, each n-gram once: it occurs, at most `most` times, and has a weight.

        `by_odds` gives them w(n, q) and not log P(n|q); `partial` keeps keys that are not complete.
        """
        best: dict[tuple[int, ...], Key] = {}
        for key in keys:
            if key.tokens and (partial or key.complete):
                ngram = key.ngram
                known = best.get(ngram)
                if known is None or key.log_prob > known.log_prob:
                    best[ngram] = key
        found, ngrams = list(best.values()), list(best)
        values = np.array([key.log_prob for key in found], dtype=np.float64)
        counts = np.array([key.count for key in found], dtype=np.int64)
        useful = (counts > 0) & (counts <= most)
        if by_odds:
            lengths = np.array([len(key.tokens) for key in found], dtype=np.int64)
            values = log_odds(values, counts, index.n_tokens, smoothing, lengths, length_penalty)
            useful &= values > 0
        ranked = sorted(
            zip((-values[useful]).tolist(), (ngrams[i] for i in np.flatnonzero(useful).tolist()), strict=True)
        )
        kept = [ngram for _, ngram in ranked]
        tokens = np.array([token for ngram in kept for token in ngram], dtype=np.int64)
        return cls(
            [best[ngram] for ngram in kept],
            -np.array([value for value, _ in ranked], dtype=np.float64),
            np.array([best[ngram].count for ngram in kept], dtype=np.int64),
            ranges_of_many(index, kept),
            np.concatenate([[0], np.cumsum([len(ngram) for ngram in kept])]).astype(np.int64),
            np.where(tokens == index.eod, 0, tokens + 1),
            index.vocab_size + 2,
        )

    def part(self, chosen: Bool[np.ndarray, " keys"]) -> tuple[np.ndarray, np.ndarray]:
        """`begin` and `tokens` of some of the keys."""
        sizes = np.where(chosen, self.lengths, 0)
        return np.concatenate([[0], np.cumsum(sizes[chosen])]), self.tokens[np.repeat(chosen, self.lengths)]

    def distinct_tokens(self) -> tuple[Int[np.ndarray, " keys_and_one"], Int[np.ndarray, " total"]]:
        """`begin` and `tokens` with every token of a key once, and without the boundary: it is no token."""
        key = np.repeat(np.arange(len(self.keys)), self.lengths)
        inside = self.tokens > 0
        key, tokens = np.divmod(np.unique(key[inside] * self.bound + self.tokens[inside]), self.bound)
        return np.searchsorted(key, np.arange(len(self.keys) + 1)), tokens
