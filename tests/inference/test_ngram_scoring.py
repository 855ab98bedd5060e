"""Key weights and document scores against a slow computation written from the formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.inference import Key, KeyScoring, TokenIndex, ngram_scoring, score_documents
from gradatim.inference.key_weights import log_odds, log_one_minus_exp
from gradatim.inference.ngram_scoring import unigram_weights_of

EOD = 40
FORMS = ("fast", "compact")


def weight(log_prob, count, n, s, length=1, penalty=0.0):
    """w(n, q) with 50 digits."""
    getcontext().prec = 50
    given = (min(Decimal(log_prob), Decimal(0)) - Decimal("1e-10")) * Decimal(1 - penalty) ** (length - 1)
    p, pq = Decimal(count + s) / Decimal(n + s), given.exp()
    if p >= 1:
        return 0.0
    return max(0.0, float((pq * (1 - p) / (p * (1 - pq))).ln()))


@settings(max_examples=200, deadline=None)
@given(
    log_prob=st.one_of(st.floats(-300, 0), st.floats(-1e-9, 0), st.just(0.0), st.just(1e-9)),
    n=st.integers(1, 10**9),
    share=st.floats(0, 1),
    s=st.floats(0, 20),
    length=st.integers(1, 12),
    penalty=st.sampled_from([0.0, 0.3]),
)
def test_log_odds_to_full_precision(log_prob, n, share, s, length, penalty):
    count = max(1, int(share * n))
    found = log_odds(np.array([log_prob]), np.array([count]), n, s, np.array([length]), penalty)
    # 1 - P(n) loses digits in double precision where a token is nearly the whole corpus.
    assert found[0] == pytest.approx(weight(log_prob, count, n, s, length, penalty), rel=1e-6, abs=1e-5)


def test_log_one_minus_exp_at_both_ends():
    x = np.array([-1e-12, -1e-5, -0.6, -0.7, -5.0, -50.0, -800.0])
    exact = [float((1 - Decimal(v).exp()).ln()) for v in x]
    np.testing.assert_allclose(log_one_minus_exp(x), exact, rtol=1e-12)


def occurrences(document, ngram):
    return [i for i in range(len(document) - len(ngram) + 1) if tuple(document[i : i + len(ngram)]) == ngram]


def slow(documents, keys, settings, unigrams=None):
    """Documents and scores, from the definitions, one loop per sign of the formula."""
    n = sum(map(len, documents))
    bounded = [[EOD, *d] for d in documents]
    lm = settings.scoring == "lm"
    partial = not lm if settings.partial_keys is None else settings.partial_keys
    weights = {}
    for key in keys:
        if not partial and not key.complete:
            continue
        count = sum(len(occurrences(d, key.ngram)) for d in bounded)
        assert count == key.count
        if count == 0 or count > settings.max_count:
            continue
        value = key.log_prob
        if not lm:
            value = weight(
                key.log_prob, count, n, settings.smoothing, len(key.tokens), settings.length_penalty
            )
            if value == 0:
                continue
        weights[key.ngram] = max(value, weights.get(key.ngram, (-math.inf,))[0]), count
    ordered = sorted(weights, key=lambda g: (-weights[g][0], g))

    def intersective(document, usable, with_unigrams):
        used, covered, total, best = [False] * len(document), set(), 0.0, None
        for ngram in usable:
            free = []
            for at in occurrences(document, ngram):
                if not any(used[at : at + len(ngram)]):
                    free.append(at)
                    used[at : at + len(ngram)] = [True] * len(ngram)
            if not occurrences(document, ngram):
                continue
            best = ngram if best is None else best
            if free:
                tokens = set(ngram) - {EOD}
                cover = 1 - settings.beta + settings.beta * len(tokens - covered) / max(len(tokens), 1)
                total += weights[ngram][0] ** settings.alpha * cover
                covered |= tokens
        if with_unigrams and unigrams is not None:
            for token in {t for t, u in zip(document, used, strict=True) if not u} - {EOD}:
                if (token,) not in weights:
                    total += unigrams[token] * (1 - settings.beta if token in covered else 1)
        if best is not None:
            strongest = weights[best][0] ** settings.alpha
            total = (1 - settings.single_key) * total + settings.single_key * strongest
        return total, best

    rare = [g for g in ordered if weights[g][1] <= settings.max_hits]
    one_best = settings.scoring != "intersective"

    def score(document, usable, with_unigrams):
        total, best = intersective(document, usable, with_unigrams)
        return weights[best][0] if one_best else total

    hit = [d for d in range(len(documents)) if any(occurrences(bounded[d], g) for g in rare)]
    first = sorted(hit, key=lambda d: (-round(score(bounded[d], rare, False), 9), d))[: settings.fully_score]
    scores = {d: score(bounded[d], ordered, True) for d in first}
    return scores


def draw_case(seed):
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, 7, rng.integers(1, 25)).tolist() for _ in range(12)]
    documents += [documents[0][:], [6] * 12]
    bounded = [[EOD, *d] for d in documents]
    keys = []
    for _ in range(40):
        document = documents[rng.integers(len(documents))]
        begin, length = int(rng.integers(len(document))), int(rng.integers(1, 6))
        start = (EOD,) if begin == 0 and rng.random() < 0.4 else ()
        tokens = tuple(document[begin : begin + length])
        if rng.random() < 0.1:
            tokens = (*tokens, 9)
        count = sum(len(occurrences(d, start + tokens)) for d in bounded)
        keys.append(Key(tokens, float(-rng.exponential(3)), count, bool(rng.random() < 0.5), start))
    return documents, keys, np.abs(rng.normal(size=41)) * (rng.random(41) < 0.6)


CASES = [
    KeyScoring(),
    KeyScoring(scoring="lm"),
    KeyScoring(scoring="lm", partial_keys=True),
    KeyScoring(scoring="lm+fm"),
    KeyScoring(alpha=1.0),
    KeyScoring(beta=0.0),
    KeyScoring(beta=1.0, smoothing=0.5),
    KeyScoring(max_hits=3, fully_score=5),
    KeyScoring(max_count=20),
    KeyScoring(single_key=0.3, length_penalty=0.2),
    KeyScoring(single_key=1.0),
    KeyScoring(partial_keys=False),
]


@pytest.mark.parametrize("memory", FORMS)
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_scores_are_those_of_the_formulas(memory, case):
    for seed in range(6):
        documents, keys, unigrams = draw_case(seed)
        index = TokenIndex.build(documents, vocab_size=41, eod=EOD, memory=memory)
        for weights in (None, unigrams):
            expected = slow(documents, keys, case, weights)
            found = score_documents(index, keys, case, weights)
            assert {f.doc: f.score for f in found} == pytest.approx(expected, rel=1e-9)
            order = [(-f.score, f.doc) for f in found]
            assert order == sorted(order)
            few = score_documents(index, keys, case, weights, k=3)
            assert [(f.doc, f.score) for f in few] == [(f.doc, f.score) for f in found[:3]]


def many_documents(seed):
    """Documents of which few hold several keys, with a key that is in nearly all of them."""
    rng = np.random.default_rng(seed)
    documents = [rng.integers(0, 30, rng.integers(5, 40)).tolist() for _ in range(300)]
    keys = []
    for _ in range(60):
        document = documents[rng.integers(300)]
        begin, length = int(rng.integers(len(document))), int(rng.integers(1, 4))
        keys.append(Key(tuple(document[begin : begin + length]), float(-rng.exponential(2)), 0, True))
    index = TokenIndex.build(documents, vocab_size=41, eod=EOD)
    keys = [replace(key, count=index.count(key.ngram)) for key in keys]
    return index, keys, np.abs(rng.normal(size=41)) * (rng.random(41) < 0.3)


@pytest.mark.parametrize("first_batch", [1, 7, 32])
@pytest.mark.parametrize(
    "case",
    [
        KeyScoring(max_hits=20, smoothing=0.5),
        KeyScoring(max_hits=20, smoothing=0.5, single_key=0.7),
        KeyScoring(max_hits=20, smoothing=0.5, beta=0.0, alpha=1.0),
        KeyScoring(max_hits=20, fully_score=50, smoothing=0.5),
        KeyScoring(scoring="lm", max_hits=20),
        KeyScoring(scoring="lm+fm", max_hits=20, smoothing=0.5),
    ],
    ids=range(6),
)
def test_the_best_few_are_found_without_scoring_all(monkeypatch, case, first_batch):
    monkeypatch.setattr(ngram_scoring, "_FIRST_BATCH", first_batch)
    read: list[int] = []
    reader = ngram_scoring.read_with_boundaries
    monkeypatch.setattr(
        ngram_scoring,
        "read_with_boundaries",
        lambda index, docs: (read.append(len(docs)), reader(index, docs))[1],
    )
    most = []
    for seed in range(8):
        index, keys, unigrams = many_documents(seed)
        for weights in (None, unigrams):
            whole = score_documents(index, keys, case, weights)
            for k in (1, 5, len(whole), len(whole) + 3):
                read.clear()
                assert score_documents(index, keys, case, weights, k=k) == whole[:k]
                most.append((k, sum(read), len(whole)))
    if case.scoring == "intersective" and first_batch == 1:
        assert any(0 < n < total / 2 for k, n, total in most if k == 1)


@pytest.mark.parametrize("scoring", [{"single_key": 1.0}, {"scoring": "lm+fm"}])
def test_a_document_whose_best_key_is_frequent_is_found(monkeypatch, scoring):
    monkeypatch.setattr(ngram_scoring, "_FIRST_BATCH", 1)
    index = TokenIndex.build([[0, 1, 2], [3, 4, 4, 5], [6] * 20])
    keys = [Key((0,), -0.5, 1, True), Key((3,), -1.5, 1, True), Key((4,), -0.01, 2, True)]
    settings = KeyScoring(max_hits=1, smoothing=0.1, **scoring)
    assert [f.doc for f in score_documents(index, keys, settings, k=1)] == [1]


def test_what_keys_added_sums_to_the_score_without_unigrams():
    documents, keys, unigrams = draw_case(3)
    index = TokenIndex.build(documents, vocab_size=41, eod=EOD)
    for found in score_documents(index, keys, KeyScoring()):
        assert found.score == pytest.approx(sum(gain for _, gain in found.keys))
        assert all(occurrences([EOD, *documents[found.doc]], key.ngram) for key, _ in found.keys)
        assert len({key.ngram for key, _ in found.keys}) == len(found.keys)
    with_unigrams = score_documents(index, keys, KeyScoring(), unigrams)
    assert any(f.score > sum(gain for _, gain in f.keys) + 1e-9 for f in with_unigrams)


def test_the_worked_example_by_hand():
    # "a b" and "b c" overlap in document 0, not in document 1.
    index = TokenIndex.build([[0, 1, 2], [0, 1, 1, 2], [3, 3, 3]])
    keys = [Key((0, 1), -0.5, 2, True), Key((1, 2), -1.0, 2, True)]
    w = [weight(-0.5, 2, 10, 5), weight(-1.0, 2, 10, 5)]
    found = {f.doc: f.score for f in score_documents(index, keys, KeyScoring())}
    assert found == {0: pytest.approx(w[0] ** 2), 1: pytest.approx(w[0] ** 2 + w[1] ** 2 * (0.2 + 0.8 / 2))}


def test_unigram_weights():
    documents = [[0, 0, 1], [2, 0, 3]]
    index = TokenIndex.build(documents)
    log_probs = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15, 0.0 + 1e-9]))
    found = unigram_weights_of(index, log_probs, most=4, barred=(3, 77))
    expected = [weight(math.log(0.1), 3, 6, 5), weight(math.log(0.4), 1, 6, 5), 0.0, 0.0, 0.0, 0.0]
    assert found == pytest.approx(
        expected, rel=1e-9
    )  # 2 is no longer among the best four, 4 not in the corpus


def test_no_useful_key_finds_nothing():
    index = TokenIndex.build([[0, 1], [1]])
    assert score_documents(index, [], KeyScoring()) == []
    assert score_documents(index, [Key((5,), -1.0, 0)], KeyScoring()) == []
    assert score_documents(index, [Key((1,), -30.0, 2)], KeyScoring()) == []
    assert score_documents(index, [Key((1,), -0.01, 2)], KeyScoring(max_hits=1, smoothing=0.1)) == []


def test_settings_out_of_range_are_named():
    for options, message in (
        ({"scoring": "bm25"}, "scoring='bm25'"),
        ({"beta": 1.5}, r"beta must lie in \[0, 1\], got 1.5"),
        ({"single_key": -0.1}, "single_key must lie"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"smoothing": -1.0}, "smoothing at least 0"),
        ({"length_penalty": 1.0}, "length_penalty in"),
        ({"max_hits": 0}, "max_hits must be at least 1"),
    ):
        if options != {"scoring": "bm25"}:
            with pytest.raises(ValueError, match=message):
                KeyScoring(**options)
