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
from jaxtyping import Float, Int

from gradatim.inference import ngram_kernels as kernels
from gradatim.inference.key_weights import log_odds
from gradatim.inference.substring_beams import Key
from gradatim.inference.substring_index import SubstringIndex, ranges_of_many

Scoring = Literal["lm", "lm+fm", "intersective"]


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
    """
    table = _weigh(index, keys, settings)
    if not table.keys:
        return []
    best_only = settings.scoring != "intersective"
    rare = np.flatnonzero(table.counts <= settings.max_hits)
    number, docs, places = index.places(table.ranges[rare], table.lengths[rare])
    first = _score(table, settings, docs, rare[number], places + 1, None, None)
    kept = np.lexsort((first.docs, -first.scores))[: settings.fully_score]
    chosen = np.sort(first.docs[kept])
    if not len(chosen):
        return []
    offsets, tokens = _with_boundaries(index, chosen)
    doc, key, place = _matches(table, offsets, tokens)
    unigrams = None
    if unigram_weights is not None and not best_only:
        unigrams = np.zeros(table.bound)
        unigrams[1 : 1 + len(unigram_weights)] = unigram_weights  # tokens are shifted: 0 is the boundary
        single = [n.ngram[0] for n in table.keys if len(n.ngram) == 1]
        unigrams[np.array(single, dtype=np.int64) + 1] = 0.0
        unigrams[0] = 0.0
    full = _score(table, settings, doc, key, place, (offsets, tokens), unigrams)
    order = np.lexsort((full.docs, -full.scores))[:k]
    return [
        ScoredDocument(int(chosen[full.docs[i]]), float(full.scores[i]), full.keys_of(i, table))
        for i in order.tolist()
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
class _Table:
    """Keys in descending order of value, and their n-grams as shifted tokens."""

    keys: list[Key]
    values: Float[np.ndarray, " keys"]
    counts: Int[np.ndarray, " keys"]
    ranges: Int[np.ndarray, "keys shards 2"]
    lengths: Int[np.ndarray, " keys"]
    begin: Int[np.ndarray, " keys_and_one"]
    tokens: Int[np.ndarray, " total"]
    bound: int


@dataclass(frozen=True)
class _Scores:
    docs: Int[np.ndarray, " docs"]
    scores: Float[np.ndarray, " docs"]
    chosen_begin: Int[np.ndarray, " docs_and_one"]
    chosen_key: Int[np.ndarray, " chosen"]
    chosen_gain: Float[np.ndarray, " chosen"]

    def keys_of(self, i: int, table: _Table) -> list[tuple[Key, float]]:
        at = slice(int(self.chosen_begin[i]), int(self.chosen_begin[i + 1]))
        pairs = zip(self.chosen_key[at], self.chosen_gain[at], strict=True)
        return [(table.keys[key], float(gain)) for key, gain in pairs]


def _weigh(index: SubstringIndex, keys: Sequence[Key], settings: KeyScoring) -> _Table:
    partial = settings.scoring != "lm" if settings.partial_keys is None else settings.partial_keys
    best: dict[tuple[int, ...], Key] = {}
    for key in keys:
        if key.tokens and (partial or key.complete):
            known = best.get(key.ngram)
            if known is None or key.log_prob > known.log_prob:
                best[key.ngram] = key
    found = list(best.values())
    log_probs = np.array([key.log_prob for key in found], dtype=np.float64)
    counts = np.array([key.count for key in found], dtype=np.int64)
    lengths = np.array([len(key.tokens) for key in found], dtype=np.int64)
    if settings.scoring == "lm":
        values = log_probs
        useful = counts > 0
    else:
        values = log_odds(
            log_probs, counts, index.n_tokens, settings.smoothing, lengths, settings.length_penalty
        )
        useful = (counts > 0) & (values > 0)
    useful &= counts <= settings.max_count
    order = sorted(np.flatnonzero(useful), key=lambda i: (-values[i], found[i].ngram))
    kept = [found[i] for i in order]
    ngrams = [key.ngram for key in kept]
    shifted = [[0 if t == index.eod else t + 1 for t in ngram] for ngram in ngrams]
    sizes = np.array([len(ngram) for ngram in ngrams], dtype=np.int64)
    return _Table(
        kept,
        values[order] if order else np.empty(0),
        counts[order] if order else np.empty(0, dtype=np.int64),
        ranges_of_many(index, ngrams),
        sizes,
        np.concatenate([[0], np.cumsum(sizes)]),
        np.array([t for ngram in shifted for t in ngram], dtype=np.int64),
        index.vocab_size + 2,
    )


def _with_boundaries(
    index: SubstringIndex, docs: Int[np.ndarray, " docs"]
) -> tuple[Int[np.ndarray, " docs_and_one"], Int[np.ndarray, " total"]]:
    """Shifted tokens of documents, each with the boundary 0 in front."""
    offsets, tokens = index.tokens_of(docs)
    offsets = offsets + np.arange(len(offsets))
    shifted = np.zeros(int(offsets[-1]), dtype=np.int64)
    inside = np.ones(len(shifted), dtype=bool)
    inside[offsets[:-1]] = False
    shifted[inside] = tokens + 1
    return offsets, shifted


def _matches(
    table: _Table, offsets: Int[np.ndarray, " docs_and_one"], tokens: Int[np.ndarray, " total"]
) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
    """Document, key and place of every occurrence of every key."""
    size = 1 << max(4, int(2 * len(table.tokens)).bit_length())
    nodes, edges, children = (np.full(size, -1, dtype=np.int64) for _ in range(3))
    ends = np.full(len(table.tokens) + 1, -1, dtype=np.int64)
    kernels.build_trie(table.begin, table.tokens, nodes, edges, children, ends)
    longest = int(table.lengths.max())
    room = max(1024, len(tokens))
    while True:
        out = [np.empty(room, dtype=np.int64) for _ in range(3)]
        count = kernels.match(nodes, edges, children, ends, longest, offsets, tokens, *out)
        if count <= room:
            return out[0][:count], out[1][:count], out[2][:count]
        room = count


def _score(
    table: _Table,
    settings: KeyScoring,
    docs: Int[np.ndarray, " found"],
    key: Int[np.ndarray, " found"],
    place: Int[np.ndarray, " found"],
    texts: tuple[Int[np.ndarray, " docs_and_one"], Int[np.ndarray, " total"]] | None,
    unigrams: Float[np.ndarray, " bound"] | None,
) -> _Scores:
    """Scores of the documents with a match. Without `texts` unigrams are left out."""
    docs, key, place = _sorted(docs, key, place, len(table.keys))
    begin = np.flatnonzero(np.concatenate([[True], docs[1:] != docs[:-1]]))[: len(docs)]
    names = docs[begin]
    begin = np.concatenate([begin, [len(docs)]]).astype(np.int64)
    if settings.scoring != "intersective":
        best = key[begin[:-1]]
        return _Scores(names, table.values[best], np.arange(len(names) + 1), best, table.values[best])
    gain = table.values**settings.alpha
    set_begin, set_token = _distinct(table)
    scores = np.empty(len(names))
    chosen_begin = np.empty(len(names) + 1, dtype=np.int64)
    chosen_key, chosen_gain = np.empty(len(docs), dtype=np.int64), np.empty(len(docs))
    reach = int((place + table.lengths[key]).max(initial=0))
    if texts is not None and unigrams is not None:
        offsets, tokens = texts
        begins, sizes = offsets[names], np.diff(offsets)[names]
        reach = max(reach, int(sizes.max(initial=0)))
        doc_begin = np.concatenate([[0], np.cumsum(sizes)])
        doc_token = tokens[np.arange(int(sizes.sum())) + np.repeat(begins - doc_begin[:-1], sizes)]
    else:
        unigrams = np.zeros(table.bound)
        doc_begin, doc_token = np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64)
    kernels.choose(
        begin,
        key,
        place,
        table.lengths,
        set_begin,
        set_token,
        gain,
        float(settings.beta),
        doc_begin,
        doc_token,
        unigrams,
        np.zeros(reach, dtype=np.bool_),
        np.full(table.bound, -1, dtype=np.int64),
        np.full(table.bound, -1, dtype=np.int64),
        scores,
        chosen_begin,
        chosen_key,
        chosen_gain,
    )
    if settings.single_key:
        scores = (1 - settings.single_key) * scores + settings.single_key * gain[key[begin[:-1]]]
    return _Scores(names, scores, chosen_begin, chosen_key, chosen_gain)


def _sorted(
    docs: Int[np.ndarray, " found"],
    key: Int[np.ndarray, " found"],
    place: Int[np.ndarray, " found"],
    keys: int,
) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
    """Matches by document, key and place: as one number each where it fits, which sorts faster."""
    reach = int(place.max(initial=0)) + 1
    if int(docs.max(initial=0)) + 1 < 2**62 // (keys * reach):
        code = np.sort((docs * keys + key) * reach + place)
        code, place = np.divmod(code, reach)
        docs, key = np.divmod(code, keys)
        return docs, key, place
    order = np.lexsort((place, key, docs))
    return docs[order], key[order], place[order]


def _distinct(table: _Table) -> tuple[Int[np.ndarray, " keys_and_one"], Int[np.ndarray, " total"]]:
    """Distinct tokens of every key, the boundary left out: it is no token."""
    sets = [
        [int(t) for t in dict.fromkeys(table.tokens[a:b].tolist()) if t]
        for a, b in zip(table.begin[:-1], table.begin[1:], strict=True)
    ]
    begin = np.concatenate([[0], np.cumsum([len(s) for s in sets])]).astype(np.int64)
    return begin, np.array([t for s in sets for t in s], dtype=np.int64)
