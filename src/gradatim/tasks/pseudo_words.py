"""Pseudo-words: two words merged into one token, so that the sense of every occurrence is known.

H. Schuetze, "Context space", 1992; Gale, Church and Yarowsky, "Work on statistical methods for word sense
disambiguation", 1992. Unlimited labelled data for word sense induction, easier than real senses: the two
words are unrelated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Occurrence:
    """Where a pseudo-word stands, and which of its two words (0 or 1) stood there."""

    document: int
    position: int
    sense: int


@dataclass(frozen=True)
class PseudoWords:
    """The changed documents, and the occurrences of every pseudo-word by its token `first+second`."""

    documents: list[list[str]]
    occurrences: dict[str, list[Occurrence]]

    def context(self, occurrence: Occurrence, window: int) -> list[str]:
        """The words within `window` on each side."""
        tokens, at = self.documents[occurrence.document], occurrence.position
        return tokens[max(0, at - window) : at] + tokens[at + 1 : at + 1 + window]


def pseudo_words(
    documents: Sequence[Sequence[str]], pairs: int, seed: int, counts: tuple[int, int] = (350, 1500)
) -> PseudoWords:
    """Merges `pairs` random pairs of words that occur between `counts[0]` and `counts[1]` times.

    The words of a pair have neighbouring counts, so that neither sense is rare. Raises ValueError when there
    are too few such words.
    """
    frequency = Counter(word for document in documents for word in document)
    candidates = sorted(w for w, n in frequency.items() if counts[0] <= n <= counts[1])
    if len(candidates) < 2 * pairs:
        raise ValueError(
            f"{pairs} pairs need {2 * pairs} words that occur {counts[0]} to {counts[1]} times; there are "
            f"{len(candidates)}"
        )
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(candidates, 2 * pairs, replace=False), key=lambda w: (frequency[w], w))
    merged = {}
    for first, second in zip(chosen[::2], chosen[1::2], strict=True):
        for sense, word in enumerate((first, second)):
            merged[str(word)] = (f"{first}+{second}", sense)
    changed: list[list[str]] = []
    occurrences: dict[str, list[Occurrence]] = {token: [] for token, _ in merged.values()}
    for d, document in enumerate(documents):
        tokens = list(document)
        for i, word in enumerate(document):
            if word in merged:
                tokens[i], sense = merged[word]
                occurrences[tokens[i]].append(Occurrence(d, i, sense))
        changed.append(tokens)
    return PseudoWords(changed, occurrences)
