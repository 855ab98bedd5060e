"""From weighted n-grams to ranked documents.

    lm             W(d) = max over complete keys n in d of log P(n|q)
    lm+fm          W(d) = max over keys n in d of w(n, q)
    intersective   W(d) = sum over n in K(d) of w(n, q)^alpha cover(n) + unigrams

"Autoregressive Search Engines" (Bevilacqua et al. 2022, arXiv 2204.10628). K(d) is chosen greedily by weight:
occurrences must not overlap. cover(n) = 1 - beta + beta |set(n) - C| / |set(n)|, C being the tokens of the
better keys chosen in d, so that keys which repeat one another count little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from gradatim.inference import ngram_kernels as kernels
from gradatim.inference.key_table import KeyTable
from gradatim.inference.key_weights import log_odds
from gradatim.inference.ngram_matches import KeyTrie, Matches, read_with_boundaries
from gradatim.inference.substring_beams import Key
from gradatim.inference.substring_index import SubstringIndex

Scoring = Literal["lm", "lm+fm", "intersective"]
_FIRST_BATCH, _LARGEST_BATCH = 32, 512
_ROUNDING = 1e-9  # far above what the order of a sum can change


@dataclass(frozen=True)
class KeyScoring:
    """How keys become document scores.

    Args:
        scoring: see the module.
        alpha: exponent of a key's weight. Unigrams that are no keys have none.
        beta: how much a key loses for tokens that better keys have: 0 nothing, 1 all of it.
        smoothing: s, added to counts.
        max_hits: keys that occur at most so often bring documents in; the others only add to those.
        max_count: keys that occur more often are dropped.
        fully_score: so many documents, best by the rare keys, are read and scored with all keys.
        single_key: share of the best key's w^alpha in the score, the rest being the sum.
        length_penalty: see `log_odds`.
        partial_keys: whether n-grams on the way to complete ones are keys; None: except for "lm", where a
            short n-gram would always beat a longer one that contains it.

    Raises ValueError for values out of range.
    """

    scoring: Scoring = "intersective"
    alpha: float = 2.0
    beta: float = 0.8
    smoothing: float = 5.0
    max_hits: int = 1500
    max_count: int = 10_000_000
    fully_score: int = 1500
    single_key: float = 0.0
    length_penalty: float = 0.0
    partial_keys: bool | None = None

    def __post_init__(self) -> None:
        if self.scoring not in ("lm", "lm+fm", "intersective"):
            raise ValueError(f"scoring={self.scoring!r}; choose 'lm', 'lm+fm' or 'intersective'")
        for name in ("beta", "single_key"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.alpha <= 0 or self.smoothing < 0 or not 0 <= self.length_penalty < 1:
            raise ValueError(
                "alpha must be above 0, smoothing at least 0 and length_penalty in [0, 1), got "
                f"{self.alpha}, {self.smoothing} and {self.length_penalty}"
            )
        for name in ("max_hits", "max_count", "fully_score"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class ScoredDocument:
    """A document, its score, and its keys with what each added, best first."""

    doc: int
    score: float
    keys: list[tuple[Key, float]]


def score_documents(
    index: SubstringIndex,
    keys: Sequence[Key],
    settings: KeyScoring,
    unigram_weights: Float[np.ndarray, " vocab"] | None = None,
    k: int | None = None,
) -> list[ScoredDocument]:
    """The `k` best documents (all that a rare key brings in for None), best first, ties by document.

    `unigram_weights` holds w(t, q) of single tokens, 0 where there is none; see `unigram_weights_of`.

    Rare keys are located in the index, the others by reading documents: in descending order of a bound on
    their scores, until no other document can be among the `k` best.
    """
    best_only = settings.scoring != "intersective"
    by_odds = settings.scoring != "lm"
    table = KeyTable.of(
        index,
        keys,
        smoothing=settings.smoothing,
        length_penalty=settings.length_penalty,
        most=settings.max_count,
        by_odds=by_odds,
        partial=by_odds if settings.partial_keys is None else settings.partial_keys,
    )
    frequent = table.counts > settings.max_hits
    rare = np.flatnonzero(~frequent)
    if not len(rare):
        return []
    number, docs, places = index.places(table.ranges[rare], table.lengths[rare])
    found = Matches.sort(docs, rare[number], places + 1)
    scorer = _BestKey(table) if best_only else _Intersection(table, settings, unigram_weights)
    more = frequent.any() or scorer.reads_documents
    if len(found.docs) > settings.fully_score or not more:
        first = scorer.score(found, None)
        kept = np.lexsort((first.docs, -first.scores))[: settings.fully_score]
        if not more:
            return _best([first], [kept], table, k)
        found = found.of(np.sort(kept))
    return _fully_scored(index, table, frequent, found, scorer, k)


def _fully_scored(
    index: SubstringIndex,
    table: KeyTable,
    frequent: Bool[np.ndarray, " keys"],
    found: Matches,
    scorer: _Scorer,
    k: int | None,
) -> list[ScoredDocument]:
    """Documents with all keys, in the order of what they could reach, until no other can be among the k."""
    trie = KeyTrie.of(table, frequent)
    bounds = scorer.bounds(found, frequent)
    order = np.argsort(-bounds, kind="stable")
    bounds = bounds[order]
    done: list[_Scores] = []
    at, end, size = 0, len(order), len(order) if k is None else max(_FIRST_BATCH, k)
    while at < end:
        batch = found.of(np.sort(order[at : min(at + size, end)]))
        texts = read_with_boundaries(index, batch.docs)
        if frequent.any():
            batch = batch.joined(*trie.find(*texts))
        done.append(scorer.score(batch, texts))
        at, size = at + size, min(2 * size, _LARGEST_BATCH)
        if k is not None and k <= at < end:
            worst = np.partition(np.concatenate([part.scores for part in done]), -k)[-k]
            end = int(np.searchsorted(-bounds, -(worst - _ROUNDING * abs(worst)), side="right"))
    return _best(done, [np.arange(len(part.docs)) for part in done], table, k)


def _best(
    parts: Sequence[_Scores], rows: Sequence[Int[np.ndarray, " _"]], table: KeyTable, k: int | None
) -> list[ScoredDocument]:
    """The k best of the given rows of each part."""
    docs, scores = (
        np.concatenate([getattr(part, name)[of_part] for part, of_part in zip(parts, rows, strict=True)])
        for name in ("docs", "scores")
    )
    part = np.repeat(np.arange(len(parts)), [len(of_part) for of_part in rows])
    row = np.concatenate(rows)
    return [
        ScoredDocument(int(docs[i]), float(scores[i]), parts[part[i]].keys_of(int(row[i]), table))
        for i in np.lexsort((docs, -scores))[:k].tolist()
    ]


def unigram_weights_of(
    index: SubstringIndex,
    log_probs: Float[np.ndarray, " vocab"],
    most: int = 5000,
    smoothing: float = 5.0,
    barred: Sequence[int] = (),
) -> Float[np.ndarray, " vocab"]:
    """w(t, q) of the `most` tokens that the model finds likeliest first, 0 for the rest and for `barred`."""
    counts = np.zeros(max(len(log_probs), index.vocab_size), dtype=np.int64)
    _, tokens, numbers = index.next_tokens(index.roots(1), 0)
    counts[tokens] = numbers
    counts = counts[: len(log_probs)]
    likely = np.argsort(-log_probs, kind="stable")[:most]
    likely = likely[counts[likely] > 0]
    weights = np.zeros(len(log_probs))
    weights[likely] = log_odds(
        log_probs[likely].astype(np.float64), counts[likely], index.n_tokens, smoothing
    )
    weights[[t for t in barred if 0 <= t < len(weights)]] = 0.0
    return weights


@dataclass(frozen=True)
class _Scores:
    """Scores of documents, and the keys chosen in docs[i] from chosen_begin[i] on with what each added."""

    docs: Int[np.ndarray, " docs"]
    scores: Float[np.ndarray, " docs"]
    chosen_begin: Int[np.ndarray, " docs_and_one"]
    chosen_key: Int[np.ndarray, " chosen"]
    chosen_gain: Float[np.ndarray, " chosen"]

    def keys_of(self, i: int, table: KeyTable) -> list[tuple[Key, float]]:
        at = slice(int(self.chosen_begin[i]), int(self.chosen_begin[i + 1]))
        pairs = zip(self.chosen_key[at].tolist(), self.chosen_gain[at].tolist(), strict=True)
        return [(table.keys[key], gain) for key, gain in pairs]


Texts = tuple[Int[np.ndarray, " docs_and_one"], Int[np.ndarray, " total"]]


class _BestKey:
    """W(d) = the value of the best key in d."""

    reads_documents = False

    def __init__(self, table: KeyTable) -> None:
        self.values = table.values

    def score(self, found: Matches, texts: Texts | None) -> _Scores:
        best = found.key[found.begin[:-1]]
        values = self.values[best]
        return _Scores(found.docs, values, np.arange(len(best) + 1), best, values)

    def bounds(self, found: Matches, frequent: Bool[np.ndarray, " keys"]) -> Float[np.ndarray, " docs"]:
        """What documents cannot exceed, with keys of which no occurrence is known."""
        return np.maximum(
            self.values[found.key[found.begin[:-1]]], self.values[frequent].max(initial=-np.inf)
        )


class _Intersection:
    """W(d) = sum over chosen keys of w^alpha cover, then unigrams; arrays are kept from call to call."""

    def __init__(
        self, table: KeyTable, settings: KeyScoring, unigram_weights: Float[np.ndarray, " vocab"] | None
    ) -> None:
        self.beta, self.single_key = float(settings.beta), settings.single_key
        self.gain = table.values**settings.alpha
        self.lengths, self.sets = table.lengths, table.distinct_tokens()
        self.reads_documents = unigram_weights is not None
        self.unigrams = np.zeros(0)
        if unigram_weights is not None:
            self.unigrams = np.zeros(table.bound)
            self.unigrams[1 : 1 + len(unigram_weights)] = unigram_weights  # shifted: 0 is the boundary
            # A key takes the places of its own token: none is left, and what documents can reach is less.
            self.unigrams[table.tokens[table.begin[:-1][self.lengths == 1]]] = 0.0
        self.stamp = np.full(table.bound, -1, dtype=np.int32)
        self.counted = self.stamp.copy() if self.reads_documents else self.stamp[:0]
        self.used = np.full(1024, -1, dtype=np.int32)
        self.base = 0

    def score(self, found: Matches, texts: Texts | None) -> _Scores:
        """Scores of the documents of `found`; unigrams only with their texts."""
        reach = int((found.place + self.lengths[found.key]).max(initial=0))
        offsets, tokens = np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64)
        if texts is not None and self.reads_documents:
            offsets, tokens = texts
            reach = max(reach, int(np.diff(offsets).max(initial=0)))
        if reach > len(self.used):
            self.used = np.full(2 * reach, -1, dtype=np.int32)
        n = len(found.docs)
        scores, begin = np.empty(n), np.empty(n + 1, dtype=np.int64)
        chosen, gains = np.empty(len(found.key), dtype=np.int64), np.empty(len(found.key))
        kernels.choose(
            found.begin,
            found.key,
            found.place,
            self.lengths,
            *self.sets,
            self.gain,
            self.beta,
            offsets,
            tokens,
            self.unigrams,
            self.base,
            self.used,
            self.stamp,
            self.counted,
            scores,
            begin,
            chosen,
            gains,
        )
        self.base += n
        return _Scores(
            found.docs, self._mixed(scores, self.gain[found.key[found.begin[:-1]]]), begin, chosen, gains
        )

    def bounds(self, found: Matches, frequent: Bool[np.ndarray, " keys"]) -> Float[np.ndarray, " docs"]:
        """What documents cannot exceed, with keys of which no occurrence is known."""
        known = np.add.reduceat(np.where(found.first_of_key(), self.gain[found.key], 0.0), found.begin[:-1])
        unknown = float(self.gain[frequent].sum() + np.maximum(self.unigrams, 0.0).sum())
        best = np.maximum(self.gain[found.key[found.begin[:-1]]], self.gain[frequent].max(initial=0.0))
        return self._mixed(known + unknown, best)

    def _mixed(self, total: Float[np.ndarray, " docs"], best: np.ndarray) -> Float[np.ndarray, " docs"]:
        return (1 - self.single_key) * total + self.single_key * best if self.single_key else total


_Scorer = _BestKey | _Intersection
