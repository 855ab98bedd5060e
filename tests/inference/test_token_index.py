"""The token index against brute force, numpy's own sorting, and itself in its other form."""

from __future__ import annotations

from collections import Counter
from itertools import chain, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.inference import TokenIndex
from gradatim.inference.document_bounds import DocumentBounds
from gradatim.inference.suffix_sort import prefix_doubling, suffix_array

EOD = 9
FORMS = ("fast", "compact")


def brute(documents, ngram):
    """Occurrences (document, place) and next tokens of an n-gram, by looking everywhere."""
    places, following = [], Counter()
    for number, document in enumerate(documents):
        bounded = [EOD, *document, EOD]
        for at in range(len(bounded) - len(ngram) + 1):
            if tuple(bounded[at : at + len(ngram)]) == tuple(ngram):
                places.append((number, at - 1))
                after = bounded[at + len(ngram)] if at + len(ngram) < len(bounded) else EOD
                if after != EOD:
                    following[after] += 1
    return places, following


def agrees(index, documents, ngram):
    places, following = brute(documents, ngram)
    found = index.follow(ngram)
    assert dict(zip(found.next_tokens.tolist(), found.next_counts.tolist(), strict=True)) == following
    assert found.next_tokens.tolist() == sorted(following)
    assert index.range(ngram) == (found.lo, found.hi)
    if len(ngram) and tuple(ngram) != (EOD,):  # the text has one boundary more than documents
        assert found.count == index.count(ngram) == len(places)
        docs, offsets = index.occurrences(found.lo, found.hi, len(ngram))
        assert sorted(zip(docs.tolist(), offsets.tolist(), strict=True)) == places
        assert index.documents(found.lo, found.hi, len(ngram)).tolist() == sorted({d for d, _ in places})


documents_of = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=5).filter(any)


@settings(max_examples=30, deadline=None)
@given(documents=documents_of, data=st.data())
@pytest.mark.parametrize("memory", FORMS)
def test_every_look_up_is_what_brute_force_finds(memory, documents, data):
    index = TokenIndex.build(documents, vocab_size=8, eod=EOD, memory=memory)
    assert index.n_tokens == sum(map(len, documents))
    assert index.n_documents == len(documents)
    assert [index.tokens(d).tolist() for d in range(len(documents))] == documents
    for ngram in product(range(5), repeat=data.draw(st.integers(0, 2))):
        agrees(index, documents, ngram)
    source = data.draw(st.sampled_from([d for d in documents if d]))
    begin = data.draw(st.integers(0, len(source) - 1))
    agrees(index, documents, source[begin : begin + data.draw(st.integers(1, 12))])
    agrees(index, documents, (EOD, *source[:2]))
    agrees(index, documents, (7,))


@pytest.mark.parametrize("memory", FORMS)
def test_look_ups_in_a_corpus_with_many_tokens_and_long_runs(memory):
    rng = np.random.default_rng(0)
    ids = rng.choice(100_000, 900, replace=False)
    documents = [ids[rng.zipf(1.3, 60) % 900].tolist() for _ in range(40)] + [[int(ids[0])] * 700]
    index = TokenIndex.build(documents, eod=200_000, memory=memory)
    assert [index.tokens(d).tolist() for d in range(41)] == documents
    for document in documents[::4]:
        for length in (1, 2, 3, 7):
            ngram = document[5 : 5 + length]
            count = sum(d[i : i + length] == ngram for d in documents for i in range(len(d) - length + 1))
            assert index.count(ngram) == count
            found = index.follow(ngram)
            after = Counter(
                d[i + length] for d in documents for i in range(len(d) - length) if d[i : i + length] == ngram
            )
            assert dict(zip(found.next_tokens.tolist(), found.next_counts.tolist(), strict=True)) == after


@settings(max_examples=50, deadline=None)
@given(text=st.lists(st.integers(0, 300), min_size=1, max_size=60), wide=st.booleans())
def test_suffixes_are_in_order(text, wide):
    array = np.array(text, dtype=np.uint32 if wide else np.uint16)
    expected = sorted(range(len(text)), key=lambda i: text[i:])
    assert suffix_array(array).tolist() == expected
    assert prefix_doubling(array).tolist() == expected


def test_both_ways_to_sort_agree_on_ids_above_one_byte():
    text = np.random.default_rng(1).integers(0, 70_000, 5_000).astype(np.uint32)
    text[1000:1400] = text[3000:3400]
    np.testing.assert_array_equal(suffix_array(text), prefix_doubling(text))


def test_without_the_library_the_index_is_the_same(monkeypatch):
    from gradatim.inference import suffix_sort

    documents = [[1, 2, 1, 2, 1], [2, 1, 1], [0]]
    before = TokenIndex.build(documents)
    monkeypatch.setattr(suffix_sort, "find_spec", lambda name: None)
    after = TokenIndex.build(documents)
    for name, array in before._arrays().items():
        np.testing.assert_array_equal(array, after._arrays()[name])


@pytest.mark.parametrize("memory", FORMS)
def test_calls_on_many_n_grams_are_the_single_ones(memory):
    rng = np.random.default_rng(2)
    documents = [rng.integers(0, 6, 40).tolist() for _ in range(8)]
    index = TokenIndex.build(documents, vocab_size=7, eod=EOD, memory=memory)
    ngrams = [(1,), (2, 3), (EOD,), (0, 1, 2), (6,), ()]
    ranges = np.array([[index.range(n)] for n in ngrams])
    depth = np.array([len(n) for n in ngrams])
    tokens = np.array([[0, 1, 2, 3, 4, 5, 6, 7, -5, EOD, 10**12]] * len(ngrams))
    counts = index.probe(ranges, depth, tokens)
    moved = index.advance(ranges, depth, tokens[:, 3].copy())
    offsets, following, numbers = index.next_tokens(ranges, depth)
    for i, ngram in enumerate(ngrams):
        single = [index.count((*ngram, t)) if t != EOD else 0 for t in tokens[i].tolist()]
        assert counts[i].tolist() == single
        lo, hi = index.range((*ngram, 3))
        assert moved[i, 0, 1] - moved[i, 0, 0] == hi - lo
        found = index.follow(ngram)
        assert following[offsets[i] : offsets[i + 1]].tolist() == found.next_tokens.tolist()
        assert numbers[offsets[i] : offsets[i + 1]].tolist() == found.next_counts.tolist()
    lo, hi = index.extend(*index.range((2,)), 1, [0, 1, 2])
    assert (hi - lo).tolist() == [index.count((2, t)) for t in range(3)]


@pytest.mark.parametrize("memory", FORMS)
def test_limit_takes_the_first_rows_and_nothing_else(memory):
    index = TokenIndex.build([[1, 2], [1, 3], [1, 2, 1, 2]], memory=memory)
    lo, hi = index.range((1,))
    every = index.locate(lo, hi, 1)
    assert sorted(every.tolist()) == [1, 4, 7, 9]
    assert index.locate(lo, hi, 1, limit=2).tolist() == every[:2].tolist()
    assert index.locate(lo, hi, 1, limit=0).tolist() == []


@pytest.mark.parametrize("memory", FORMS)
def test_appended_and_merged_are_built_at_once(memory):
    rng = np.random.default_rng(3)
    parts = [[rng.integers(0, size, 30).tolist() for _ in range(4)] for size in (5, 60, 12)]
    names = [[f"{i}-{j}" for j in range(4)] for i in range(3)]
    indexes = [
        TokenIndex.build(p, labels=n, vocab_size=100, eod=EOD + 90, memory=memory)
        for p, n in zip(parts, names, strict=True)
    ]
    whole = TokenIndex.build(
        list(chain(*parts)), labels=list(chain(*names)), vocab_size=100, eod=EOD + 90, memory=memory
    )
    merged = TokenIndex.merge(indexes)
    appended = indexes[0].append(parts[1], labels=names[1]).append(parts[2], labels=names[2])
    for other in (merged, appended):
        assert list(other.labels) == list(chain(*names))
        assert other._arrays().keys() == whole._arrays().keys()
        for name, array in whole._arrays().items():
            np.testing.assert_array_equal(array, other._arrays()[name])
        assert (other.vocab_size, other.eod, other.memory) == (100, EOD + 90, memory)
    assert indexes[0].append([[98, 150]], labels=["new"]).vocab_size == 151


def test_texts_through_any_tokenizer():
    from tiny_causal_lm import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    texts = ["good music  is good", "poor\nfilm"]
    for each in (tokenizer, tokenizer.backend_tokenizer):
        index = TokenIndex.from_texts(texts, each, labels=["a", "b"])
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        assert [index.tokens(d).tolist() for d in range(2)] == ids
        assert index.vocab_size == len(tokenizer)
        assert list(index.labels) == ["a", "b"]
    plain = TokenIndex.from_texts(["ab", "\ud800 b"], lambda text: list(text.encode()))
    assert bytes(plain.tokens(0).tolist()) == b" ab"
    assert bytes(plain.tokens(1).tolist()) == b" ? b"
    with pytest.raises(TypeError, match="int is no tokenizer"):
        TokenIndex.from_texts(["a"], 3)


def test_what_cannot_be_indexed_is_refused_with_the_reason():
    for arguments, message in (
        (([],), "0 documents without a single token"),
        (([[], []],), "2 documents without a single token"),
        (([[1, 2], [3, -1]],), "token id -1 in document 1 is negative"),
        (([[1], [5]], {"vocab_size": 5}), "token id 5 in document 1 is not below vocab_size = 5"),
        (([[1], [], [2, 7]], {"eod": 7}), "token id 7 in document 2 is eod"),
        (([np.array([1.5])],), "document 0 is no list of token ids"),
        (([[1]], {"labels": ["a", "b"]}), "2 labels for 1 documents"),
        (([[1 << 30]],), "holds ids below 16777216"),
        (([[1]], {"eod": -3}), "eod must be a token id"),
    ):
        documents, options = (*arguments, {})[:2]
        with pytest.raises(ValueError, match=message):
            TokenIndex.build(documents, **options)
    with pytest.raises(TypeError):
        TokenIndex.build([[1]], labels=[3])
    index = TokenIndex.build([[1, 2]])
    with pytest.raises(IndexError, match="document 1, but the index has 1"):
        index.tokens(1)
    with pytest.raises(ValueError, match="labels are needed for all documents or for none"):
        index.append([[1]], labels=["a"])
    with pytest.raises(ValueError, match="no documents to append"):
        index.append([])
    with pytest.raises(ValueError, match="differ in eod"):
        TokenIndex.merge([index, TokenIndex.build([[1]], eod=5)])


def test_the_compact_form_is_less_than_half_of_the_fast_one():
    rng = np.random.default_rng(4)
    words = [rng.integers(0, 3_000, rng.integers(2, 9)).tolist() for _ in range(2_000)]  # recurring phrases
    documents = [list(chain(*(words[i] for i in rng.zipf(1.2, 25) % 2_000))) for _ in range(400)]
    fast, compact = (TokenIndex.build(documents, memory=memory) for memory in FORMS)
    assert fast.nbytes / fast.n_tokens < 9
    assert compact.nbytes < 0.4 * fast.nbytes
    assert fast.memory == "fast"
    assert compact.memory == "compact"


@pytest.mark.parametrize("longest", [1, 2, 9, 300])
def test_documents_of_places_are_those_of_a_bisection(longest):
    rng = np.random.default_rng(longest)
    for documents in (1, 2, 3, 7, 64, 500):
        starts = np.concatenate([[0], np.cumsum(rng.integers(0, longest, documents) + 1)])
        bounds = DocumentBounds(starts)
        places = rng.permutation(starts[-1] + 1)
        expected = np.searchsorted(starts, places, side="right") - 1
        np.testing.assert_array_equal(bounds.holders(places), expected)
        blocks, shift = bounds._blocks  # compiled look-ups read one block further than the last place's
        assert len(blocks) >= (int(starts[-1]) >> shift) + 2
        assert len(blocks) <= 2 * documents + 4
