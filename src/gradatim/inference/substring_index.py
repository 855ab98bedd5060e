"""What a decoder needs from an index, be it one file or many shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int


@runtime_checkable
class SubstringIndex(Protocol):
    """Ranges [m, shards, 2] of m n-grams, made longer together: a `TokenIndex` or a `ShardedTokenIndex`.

    An n-gram occurs as often as the lengths of its ranges add up to: see `counts`.
    """

    vocab_size: int
    eod: int
    labels: Sequence[str] | None

    @property
    def n_tokens(self) -> int: ...

    @property
    def n_documents(self) -> int: ...

    def tokens(self, doc: int) -> Int[np.ndarray, " length"]: ...

    def roots(self, m: int) -> Int[np.ndarray, "m shards 2"]: ...

    def advance(
        self, ranges: Int[np.ndarray, "m shards 2"], depth: Any, tokens: Int[np.ndarray, " m"]
    ) -> Int[np.ndarray, "m shards 2"]: ...

    def probe(
        self, ranges: Int[np.ndarray, "m shards 2"], depth: Any, tokens: Int[np.ndarray, "m k"]
    ) -> Int[np.ndarray, "m k"]: ...

    def next_tokens(
        self, ranges: Int[np.ndarray, "m shards 2"], depth: Any
    ) -> tuple[Int[np.ndarray, " m_and_one"], Int[np.ndarray, " found"], Int[np.ndarray, " found"]]: ...

    def places(
        self, ranges: Int[np.ndarray, "m shards 2"], depth: Int[np.ndarray, " m"]
    ) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"], Int[np.ndarray, " found"]]: ...

    def tokens_of(
        self, docs: Int[np.ndarray, " docs"]
    ) -> tuple[Int[np.ndarray, " docs_and_one"], Int[np.ndarray, " total"]]: ...


def counts(ranges: Int[np.ndarray, "m shards 2"]) -> Int[np.ndarray, " m"]:
    """How often each n-gram occurs."""
    return np.asarray((ranges[..., 1] - ranges[..., 0]).sum(axis=-1))


def ranges_of(index: SubstringIndex, tokens: Iterable[int]) -> Int[np.ndarray, "1 shards 2"]:
    """The ranges of one n-gram."""
    ranges = index.roots(1)
    for depth, token in enumerate(tokens):
        ranges = index.advance(ranges, depth, np.array([token]))
    return ranges


def ranges_of_many(index: SubstringIndex, ngrams: Sequence[Sequence[int]]) -> Int[np.ndarray, "m shards 2"]:
    """The ranges of many n-grams of any lengths, one call of the index per length."""
    ranges = index.roots(len(ngrams))
    lengths = np.array([len(ngram) for ngram in ngrams], dtype=np.int64)
    begin = np.cumsum(lengths) - lengths
    tokens = np.array([token for ngram in ngrams for token in ngram], dtype=np.int64)
    for depth in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > depth)
        ranges[rows] = index.advance(ranges[rows], depth, tokens[begin[rows] + depth])
    return ranges


def check_start(index: SubstringIndex, start: Sequence[int]) -> None:
    """Raises ValueError where no document holds the n-gram that decoding is to begin after."""
    if len(start) and not counts(ranges_of(index, start))[0]:
        hint = (
            " (-1 is the document boundary)" if index.eod < 0 else f" ({index.eod} is the document boundary)"
        )
        raise ValueError(f"start={list(start)[:8]} occurs in no document of the index{hint}")
