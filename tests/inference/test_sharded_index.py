"""Shards by documents give what one index gives: counts, continuations, beams, ranking."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradatim.inference import (
    IndexFormatError,
    Key,
    KeyScoring,
    SEALRetriever,
    ShardedTokenIndex,
    SubstringLogitsProcessor,
    TokenIndex,
    score_documents,
    substring_beam_search,
)
from gradatim.inference.index_text import token_ids
from gradatim.inference.substring_index import counts, ranges_of_many
from tiny_causal_lm import tiny_llama, tiny_tokenizer

EOD = 50


def corpus(seed=0, documents=23):
    rng = np.random.default_rng(seed)
    return [rng.integers(8, 34, rng.integers(1, 18)).tolist() for _ in range(documents)]


def same_answers(one, many):
    documents = [one.tokens(d).tolist() for d in range(one.n_documents)]
    assert (many.n_tokens, many.n_documents, many.eod) == (one.n_tokens, one.n_documents, one.eod)
    assert [many.tokens(d).tolist() for d in range(one.n_documents)] == documents
    some = np.array([20, 3, 3, 11])
    for a, b in zip(one.tokens_of(some), many.tokens_of(some), strict=True):
        np.testing.assert_array_equal(a, b)
    ngrams = [(), (8,), (EOD,), (9, 10), *[tuple(d[:3]) for d in documents[:9]], (EOD, documents[4][0]), (1,)]
    whole, parts = ranges_of_many(one, ngrams), ranges_of_many(many, ngrams)
    inside = [i for i, n in enumerate(ngrams) if n and n != (EOD,)]  # every shard has a last boundary
    np.testing.assert_array_equal(counts(whole)[inside], counts(parts)[inside])
    depth = np.array([len(n) for n in ngrams])
    for a, b in zip(one.next_tokens(whole, depth), many.next_tokens(parts, depth), strict=True):
        np.testing.assert_array_equal(a, b)
    tokens = np.tile(np.arange(7, 36), (len(ngrams), 1))
    np.testing.assert_array_equal(one.probe(whole, depth, tokens), many.probe(parts, depth, tokens))
    found = [sorted(zip(*map(np.ndarray.tolist, i.places(r, depth)), strict=True))
             for i, r in ((one, whole), (many, parts))]  # fmt: skip
    assert found[0] == found[1]
    assert many.count((9,)) == one.count((9,))
    assert many.count(()) == one.n_tokens


def same_ranking(one, many):
    rng = np.random.default_rng(1)
    keys = []
    for _ in range(60):
        document = one.tokens(int(rng.integers(one.n_documents))).tolist()
        begin = int(rng.integers(len(document)))
        tokens = tuple(document[begin : begin + int(rng.integers(1, 4))])
        keys.append(Key(tokens, float(-rng.exponential(2)), one.count(tokens), True))
    for scoring in (KeyScoring(smoothing=0.5), KeyScoring(scoring="lm"), KeyScoring(max_hits=3)):
        a, b = (score_documents(index, keys, scoring) for index in (one, many))
        assert a == b
        assert a


@pytest.mark.parametrize(
    ("memory", "engine", "shards"),
    [("fast", "local", 1), ("fast", "local", 4), ("compact", "local", 4), ("fast", "joblib", 3)],
)
def test_shards_answer_as_one_index(tmp_path, memory, engine, shards):
    documents = corpus()
    labels = [f"d{i}" for i in range(23)]
    one = TokenIndex.build(documents, labels=labels, vocab_size=40, eod=EOD, memory=memory)
    many = ShardedTokenIndex.build(
        documents,
        tmp_path,
        shards=shards,
        labels=labels,
        vocab_size=40,
        eod=EOD,
        memory=memory,
        engine=engine,
    )
    many = ShardedTokenIndex.load(tmp_path, engine=engine)
    assert many.n_shards == shards
    assert list(many.labels) == labels
    same_answers(one, many)
    same_ranking(one, many)
    many.close()


def test_decoding_over_shards_is_decoding_over_one_index(tmp_path):
    documents = corpus(3)
    one = TokenIndex.build(documents, vocab_size=35, eod=EOD)
    many = ShardedTokenIndex.build(documents, tmp_path, shards=5, vocab_size=35, eod=EOD)
    model, prompts = tiny_llama(), torch.tensor([[3, 4, 5], [9, 8, 7]])
    for start in ((), (EOD,)):
        a, b = (
            substring_beam_search(model, index, prompts, num_beams=4, max_new_tokens=5, start=start)
            for index in (one, many)
        )
        assert a == b
    ids, scores = torch.tensor([[3, d[0]] for d in documents]), torch.randn(23, 40)
    first, second = (
        SubstringLogitsProcessor(index, prompt_length=1, eos_token_id=5)(ids, scores) for index in (one, many)
    )
    assert torch.equal(first, second)


def test_the_retriever_takes_shards(tmp_path):
    tokenizer, model = tiny_tokenizer(), tiny_llama()
    texts = [
        "good music and a very good song",
        "poor film it was dull",
        "the book is great",
        "good morning all",
    ]
    ids = [token_ids(text, tokenizer) for text in texts]
    settings = {"ngram_length": 3, "num_beams": 4, "smoothing": 0.1}
    one = SEALRetriever.from_index(TokenIndex.build(ids, vocab_size=35), model, tokenizer, **settings)
    sharded = ShardedTokenIndex.build(ids, tmp_path, shards=2, vocab_size=35)
    many = SEALRetriever.from_index(sharded, model, tokenizer, **settings)
    assert one.search(["good film", "great"]) == many.search(["good film", "great"])
    with pytest.raises(TypeError, match="ShardedTokenIndex has files of its own"):
        many.save(tmp_path / "x")


def test_appending_adds_a_shard_and_leaves_the_others(tmp_path):
    documents = corpus(5)
    many = ShardedTokenIndex.build(documents[:20], tmp_path, shards=3, vocab_size=40, eod=EOD)
    before = [path.read_bytes() for path in many.paths]
    more = many.append(documents[20:])
    assert [path.read_bytes() for path in more.paths[:3]] == before
    same_answers(TokenIndex.build(documents, vocab_size=40, eod=EOD), more)
    assert ShardedTokenIndex.load(tmp_path).n_documents == 23
    with pytest.raises(ValueError, match="labels are needed for all documents or for none"):
        many.append([[8]], labels=["x"])


def test_what_cannot_be_sharded_or_opened(tmp_path):
    for options, message in (
        ({"shards": 3}, "3 shards for 2 documents"),
        ({"shards": 0}, "0 shards"),
        ({"shards": 1, "labels": ["a"]}, "1 labels for 2 documents"),
    ):
        with pytest.raises(ValueError, match=message):
            ShardedTokenIndex.build([[1], [2]], tmp_path, **options)
    with pytest.raises(FileNotFoundError):
        ShardedTokenIndex.load(tmp_path)
    for content in (
        "{",
        '{"format": 1, "shards": ["../x"]}',
        '{"format": 1, "shards": []}',
        '{"format": 2}',
        "3",
    ):
        (tmp_path / "shards.json").write_text(content)
        with pytest.raises(IndexFormatError, match=r"shards\.json is damaged"):
            ShardedTokenIndex.load(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_builds_and_answers_as_one_index(tmp_path):
    ray = pytest.importorskip("ray")
    documents = corpus(7)
    one = TokenIndex.build(documents, vocab_size=40, eod=EOD)
    try:
        many = ShardedTokenIndex.build(documents, tmp_path, shards=3, vocab_size=40, eod=EOD, engine="ray")
        same_answers(one, many)
        same_ranking(one, many)
        many.close()
    finally:
        ray.shutdown()
