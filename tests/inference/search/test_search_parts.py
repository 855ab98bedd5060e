"""Words, postings, ranks, highlights: each against a plain loop or an independent library."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from folders import text
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.inference.search.dense import nearest, unit
from gradatim.inference.search.errors import IndexDamagedError
from gradatim.inference.search.highlight import excerpt, highlights
from gradatim.inference.search.opened import fuse
from gradatim.inference.search.passages import StoredPassage
from gradatim.inference.search.postings import (
    Postings,
    TermStatistics,
    build_postings,
    merge_postings,
)
from gradatim.inference.search.ranking import best_rows, reciprocal_rank_fusion
from gradatim.inference.search.words import LONGEST_TERM, query_words, terms_of, words_of

# Words


@pytest.mark.parametrize(
    ("said", "terms"),
    [
        ("The Matrices, of queries!", ["the", "matrice", "of", "query"]),
        ("least_squares", ["least_square", "least", "square"]),
        ("__init__", ["__init__", "init"]),
        ("LogisticRegression", ["logisticregression", "logistic", "regression"]),
        ("HTMLParser getURL", ["htmlparser", "html", "parser", "geturl", "get", "url"]),
        ("NumPy", ["numpy", "num", "py"]),
        ("bus class analysis gas", ["bus", "class", "analysis", "gas"]),
        ("glasses boxes heroes", ["glasse", "boxe", "heroe"]),
        ("don't", ["don", "t"]),
        ("Größe ＡＢＣ Straße", ["grösse", "abc", "strasse"]),
        ("検索エンジン", ["検索", "索エ", "エン", "ンジ", "ジン"]),
        ("書 Python入門", ["書", "python", "入門"]),
        ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
        ("поиск по-русски", ["поиск", "по", "русски"]),
        ("x" * (LONGEST_TERM + 1) + " y", ["y"]),
        ("", []),
        ("!?… ", []),
    ],
)
def test_terms(said, terms):
    assert words_of(said) == terms


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_terms_stand_where_they_say(said):
    for term, start, end in terms_of(said):
        assert 0 <= start < end <= len(said)
        # The plural rules and case folding only change a word's form, never take another word's letters.
        assert words_of(said[start:end])[:1] == [term] or term in words_of(said[start:end])


def test_questions_lose_stop_words_unless_they_are_all_there_is():
    assert query_words("How do I sort the array, the Array?") == ["sort", "array"]
    assert query_words("to be or not to be") == ["to", "be", "or", "not"]
    assert query_words("???") == []


# BM25


def corpus(n=40, seed=0):
    rng = random.Random(seed)
    return [text(rng, rng.randint(1, 30)).split() for _ in range(n)]


def brute_force(documents, query, k1=1.4, b=0.4):
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        total = 0.0
        for term in query:
            df = sum(term in d for d in documents)
            tf = words.count(term)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            total += idf * tf / (tf + k1 * (1 - b + b * len(words) / mean)) if df else 0.0
        scores.append(total)
    return scores


def test_bm25_is_its_formula():
    documents = corpus()
    postings = build_postings(documents)
    query = ["matrix", "norm", "absent", "sort"]
    scores = postings.scores(query, postings.statistics(query))
    np.testing.assert_allclose(scores, brute_force(documents, query), rtol=1e-12)


def test_bm25_agrees_with_bm25s():
    import bm25s

    documents = corpus(60, seed=1)
    reference = bm25s.BM25(method="lucene", k1=1.4, b=0.4)
    reference.index(documents, show_progress=False)
    postings = build_postings(documents)
    for query in (["matrix"], ["norm", "sort", "wave"], ["gamma", "gamma2"]):
        expected = reference.get_scores([w for w in query if w in reference.vocab_dict])
        scores = postings.scores(query, postings.statistics(query))
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_parts_merge_into_what_the_whole_would_be(seed, parts):
    documents = corpus(20, seed)
    rng = random.Random(seed)
    share = [rng.randrange(parts + 1) for _ in documents]  # the last share is left out
    kept = [i for i, s in enumerate(share) if s < parts]
    place = {i: n for n, i in enumerate(kept)}
    pieces = []
    for p in range(parts):
        rows = [i for i, s in enumerate(share) if s in (p, parts) and (s == p or p == 0)]
        where = np.array([place.get(i, -1) for i in rows], np.int64)
        pieces.append((build_postings(documents[i] for i in rows), where))
    merged = merge_postings(pieces, len(kept))
    whole = build_postings([documents[i] for i in kept])
    assert list(merged.terms) == list(whole.terms)
    for name in ("starts", "passages", "counts", "lengths"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_shards_score_as_one_to_the_last_bit(seed, shards):
    documents = corpus(25, seed)
    query = ["matrix", "norm", "wave"]
    whole = build_postings(documents)
    expected = whole.scores(query, whole.statistics(query))
    parts = [build_postings(documents[s::shards]) for s in range(shards)]
    of_all = TermStatistics(0, 0, {})
    for part in parts:
        of_all = of_all + part.statistics(query)
    for s, part in enumerate(parts):
        np.testing.assert_array_equal(part.scores(query, of_all), expected[s::shards])


def test_postings_that_cannot_be_right():
    def broken(starts=(0, 1), passages=(0,)):
        return Postings(["a"], np.array(starts), np.array(passages), np.array([1]), np.array([3, 3]))

    assert broken().of("a")[0].tolist() == [0]
    for wrong in (
        broken(passages=(2,)),
        broken(passages=(-1,)),
        broken(starts=(0, 9)),
        broken(starts=(1, 0)),
    ):
        with pytest.raises(IndexDamagedError, match="build the index again"):
            wrong.of("a")
    with pytest.raises(ValueError, match="1 places for 2 passages"):
        merge_postings([(broken(), np.array([0]))], 1)


# Ranks


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(1, 12), st.integers(-2, 2))
def test_best_rows(scores, k, above):
    expected = sorted((i for i, s in enumerate(scores) if s > above), key=lambda i: (-scores[i], i))[:k]
    assert best_rows(np.array(scores, np.float64), k, above=float(above)).tolist() == expected
    with_nan = np.array([*scores, math.nan], np.float64)
    assert len(scores) not in best_rows(with_nan, k, above=float(above))


def test_fusion_is_its_formula():
    fused = reciprocal_rank_fusion([["a", "b", "c"], ["c", "a"]])
    assert fused == {"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62}
    assert list(fused) == ["a", "c", "b"]
    p = [StoredPassage("f", i, "", str(i)) for i in range(3)]
    assert [s[1].number for s in fuse([[(9.0, p[0]), (8.0, p[1])], [(0.5, p[1]), (0.4, p[2])]], 2)] == [1, 0]


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_nearest_is_a_sort_of_all_cosines(rows):
    rng = np.random.default_rng(rows)
    vectors = unit(rng.normal(size=(rows, 16)).astype(np.float32))
    vectors[rows // 2] = vectors[0]
    query = unit(rng.normal(size=(1, 16)).astype(np.float32))[0]
    found, cosines = nearest(vectors, query, 5)
    exact = [float(np.einsum("d,d->", v.astype(np.float64), query.astype(np.float64))) for v in vectors]
    np.testing.assert_allclose(cosines, sorted(exact, reverse=True)[:5], atol=1e-6)
    np.testing.assert_allclose([exact[i] for i in found], cosines, atol=1e-6)
    # The same rows among others give the same bits.
    apart, again = nearest(np.concatenate([vectors, vectors / 100]), query, 5)
    if rows >= 300:
        np.testing.assert_array_equal(apart, found)
        np.testing.assert_array_equal(again, cosines)


def test_vectors_that_are_no_numbers_are_never_found():
    vectors = np.full((3, 4), np.nan, np.float32)
    vectors[1] = 0.5
    assert nearest(vectors, np.full(4, 0.5, np.float32), 3)[0].tolist() == [1]


# Highlights


def test_highlights_mark_whole_words_in_any_form():
    said = "Sorting: sorts Sort-keys of numpy.sort, resort"
    marked = [said[a:b] for a, b in highlights(said, query_words("sort"))]
    assert marked == ["sorts", "Sort", "sort"]
    assert highlights(said, []) == []
    # Overlapping pairs of characters become one stretch.
    assert highlights("全文検索する", query_words("検索する")) == [(2, 6)]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab c\n"), max_size=300), st.integers(20, 80))
def test_an_excerpt_is_short_and_shows_what_it_can(said, width):
    spans = highlights(said, ["b"])
    begin, end = excerpt(said, spans, width)
    assert 0 <= begin <= end <= len(said)
    assert end - begin <= max(width, 0) or len(said) <= width
    if len(said) <= width:
        assert (begin, end) == (0, len(said))


def test_the_excerpt_goes_where_the_words_are():
    said = "x " * 300 + "needle " + "y " * 300
    begin, end = excerpt(said, highlights(said, ["needle"]), 100)
    assert "needle" in said[begin:end]
