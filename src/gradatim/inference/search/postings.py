"""Counts of terms by passage, and BM25 over them.

For a term t that stands in df of N passages, and tf times in passage d of length |d| (in terms),

    idf(t) = ln(1 + (N - df + 1/2) / (df + 1/2))
    score(q, d) = sum over t in q of  idf(t) tf / (tf + k1 (1 - b + b |d| / mean |d|))

(Lucene's variant of S. Robertson and H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond",
2009). Counts are stored, not finished scores: shards add up their N, df and lengths and then rank as one
index would, and an update adds and drops passages without a look at the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from gradatim.inference.search.errors import IndexDamagedError

K1, B = 1.4, 0.4


@dataclass(frozen=True)
class TermStatistics:
    """What BM25 needs to know of a whole collection: passages, terms in all, and passages per term."""

    passages: int
    total_length: int
    frequencies: Mapping[str, int]

    def __add__(self, other: TermStatistics) -> TermStatistics:
        together = dict(self.frequencies)
        for term, count in other.frequencies.items():
            together[term] = together.get(term, 0) + count
        return TermStatistics(
            self.passages + other.passages, self.total_length + other.total_length, together
        )


@dataclass(frozen=True)
class Postings:
    """Passages (ascending) and counts by term: those of `terms[i]` stand at `starts[i]:starts[i + 1]`."""

    terms: Sequence[str]
    starts: Int[np.ndarray, " terms_and_one"]
    passages: Int[np.ndarray, " entries"]
    counts: Int[np.ndarray, " entries"]
    lengths: Int[np.ndarray, " passages"] = field(repr=False)

    @cached_property
    def _row(self) -> dict[str, int]:
        return {term: i for i, term in enumerate(self.terms)}

    @cached_property
    def total_length(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    def of(self, term: str) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """Passages that hold a term, and how often. Raises IndexDamagedError where they cannot be right."""
        row = self._row.get(term)
        if row is None:
            return np.empty(0, np.int32), np.empty(0, np.int32)
        begin, end = int(self.starts[row]), int(self.starts[row + 1])
        if not 0 <= begin <= end <= len(self.passages):
            raise IndexDamagedError(f"postings of {term!r} lie outside their file; build the index again")
        passages, counts = self.passages[begin:end], self.counts[begin:end]
        if len(passages) and (int(passages.min()) < 0 or int(passages.max()) >= len(self.lengths)):
            raise IndexDamagedError(f"postings of {term!r} name unknown passages; build the index again")
        return passages, counts

    def statistics(self, terms: Iterable[str]) -> TermStatistics:
        """This collection's part of what BM25 needs."""
        frequencies = {term: len(self.of(term)[0]) for term in terms}
        return TermStatistics(len(self.lengths), self.total_length, frequencies)

    def scores(
        self, terms: Iterable[str], of_all: TermStatistics, k1: float = K1, b: float = B
    ) -> Float[np.ndarray, " passages"]:
        """BM25 of every passage for a question's terms, under the statistics of the whole collection."""
        scores = np.zeros(len(self.lengths), dtype=np.float64)
        mean = of_all.total_length / max(of_all.passages, 1) or 1.0
        for term in terms:
            passages, counts = self.of(term)
            if not len(passages):
                continue
            df = of_all.frequencies.get(term, len(passages))
            idf = np.log1p((of_all.passages - df + 0.5) / (df + 0.5))
            tf = counts.astype(np.float64)
            with np.errstate(all="ignore"):  # a damaged length may divide by zero
                penalty = k1 * (1 - b + b * self.lengths[passages].astype(np.float64) / mean)
                scores[passages] += idf * tf / (tf + penalty)
        return scores


def build_postings(documents: Iterable[Sequence[str]]) -> Postings:
    """Count the terms of each document."""
    ids: dict[str, int] = {}
    rows: list[int] = []
    passages: list[int] = []
    counts: list[int] = []
    lengths: list[int] = []
    for number, words in enumerate(documents):
        lengths.append(len(words))
        for term, count in Counter(words).items():
            rows.append(ids.setdefault(term, len(ids)))
            passages.append(number)
            counts.append(count)
    return _sorted(
        list(ids), np.array(rows, np.int64), np.array(passages, np.int32), np.array(counts, np.int32),
        np.array(lengths, np.int32),
    )  # fmt: skip


def merge_postings(parts: Sequence[tuple[Postings, Int[np.ndarray, " _"]]], passages: int) -> Postings:
    """One collection out of parts; the array of each says where its passages go, -1 for those left out.

    Raises ValueError where a part's array has another length than its passages.
    """
    ids: dict[str, int] = {}
    rows, places, counts = [np.empty(0, np.int64)], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    lengths = np.zeros(passages, np.int32)
    for part, where in parts:
        if len(where) != len(part.lengths):
            raise ValueError(f"{len(where)} places for {len(part.lengths)} passages")
        own = np.array([ids.setdefault(term, len(ids)) for term in part.terms], np.int64)
        moved = where[part.passages]
        kept = moved >= 0
        rows.append(np.repeat(own, np.diff(part.starts))[kept])
        places.append(moved[kept].astype(np.int32))
        counts.append(np.asarray(part.counts)[kept])
        lengths[where[where >= 0]] = part.lengths[where >= 0]
    return _sorted(list(ids), np.concatenate(rows), np.concatenate(places), np.concatenate(counts), lengths)


def _sorted(
    terms: list[str],
    rows: Int[np.ndarray, " entries"],
    passages: Int[np.ndarray, " entries"],
    counts: Int[np.ndarray, " entries"],
    lengths: Int[np.ndarray, " passages"],
) -> Postings:
    """Terms by code point, without those that nobody holds; entries by term and passage."""
    held = np.bincount(rows, minlength=len(terms))
    order = sorted((i for i in range(len(terms)) if held[i]), key=lambda i: terms[i])
    new = np.full(len(terms), -1, np.int64)
    new[order] = np.arange(len(order))
    rows = new[rows]
    at = np.lexsort((passages, rows))
    starts = np.zeros(len(order) + 1, np.int64)
    np.cumsum(held[order], out=starts[1:])
    return Postings([terms[i] for i in order], starts, passages[at], counts[at], lengths)
