"""The retriever from texts to hits, with models that know nothing: what is tested is the machinery."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gradatim.inference import IndexFormatError, SEALRetriever, TokenIndex
from gradatim.inference.index_text import token_ids
from gradatim.inference.ngram_scoring import score_documents, unigram_weights_of
from gradatim.inference.query_keys import ngram_log_probs, query_ngrams
from tiny_causal_lm import WORDS, tiny_llama, tiny_tokenizer
from tiny_seq2seq import tiny_bart

TEXTS = [
    "good music and a very good song",
    "poor film it was dull",
    "the book is great and the trip was fine",
    "Topic music Review song",
    "good morning all of you",
]
TITLES = ["music song", "film", "book trip", "music", "morning"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module", params=["llama", "bart"])
def model(request):
    return tiny_llama() if request.param == "llama" else tiny_bart()


def retriever(model, tokenizer, **options):
    small = {"num_beams": 4, "ngram_length": 4, "prompt": "{query} :", "smoothing": 0.1}
    return SEALRetriever(model, tokenizer, **{**small, **options})


def log_probs_after(model, prompt, tokens):
    """log P of tokens after a prompt, a forward pass each."""
    total = 0.0
    for i, token in enumerate(tokens):
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                begin = torch.tensor([[model.config.decoder_start_token_id, *tokens[:i]]])
                logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=begin).logits
            else:
                logits = model(torch.tensor([[*prompt, *tokens[:i]]])).logits
        total += float(logits[0, -1].log_softmax(-1)[token])
    return total


@pytest.mark.parametrize("memory", ["fast", "compact"])
def test_keys_are_in_the_corpus_and_carry_the_scores_of_the_model(model, tokenizer, memory):
    made = retriever(model, tokenizer, memory=memory).fit(TEXTS, TITLES)
    delimiter = made._delimiter()
    queries = ["good music", "poor dull book was"]
    for query, (keys, first) in zip(queries, made.keys_of(queries), strict=True):
        prompt = tokenizer(f"{query} :")["input_ids"]
        assert first == pytest.approx(
            [log_probs_after(model, prompt, [t]) for t in range(len(WORDS) + 2)], abs=1e-9
        )
        for key in keys:
            assert key.count == made.index_.count(key.ngram) > 0
            assert key.log_prob == pytest.approx(log_probs_after(model, prompt, list(key.tokens)), abs=1e-5)
        words = [n for n in query_ngrams(query, tokenizer) if made.index_.count(n)]
        assert {k.tokens for k in keys} >= set(words)
        titles = [key for key in keys if key.start]
        assert titles
        assert all(key.tokens[-len(delimiter) :] == tuple(delimiter) for key in titles)
        assert {tokenizer.decode(key.tokens[: -len(delimiter)]) for key in titles} <= set(TITLES)


def test_hits_are_the_scores_of_the_keys(model, tokenizer):
    made = retriever(model, tokenizer, unigrams=20, batch_size=2).fit(TEXTS, ids=["a", "b", "c", "d", "e"])
    queries = ["good music", "film", "all of you"]
    found = made.search(queries, k=3)
    for query, hits in zip(queries, found, strict=True):
        ((keys, first),) = made.keys_of([query])
        weights = unigram_weights_of(made.index_, first, 20, 0.1, tokenizer.all_special_ids)
        expected = score_documents(made.index_, keys, made.key_scoring(), weights, 3)
        assert [(hit.doc_id, pytest.approx(hit.score, rel=1e-6)) for hit in hits] == [
            ("abcde"[e.doc], e.score) for e in expected
        ]
        for hit in hits:
            text = TEXTS["abcde".index(hit.doc_id)]
            assert hit.keys
            assert all(words in text and count >= 1 and gain >= 0 for words, count, gain in hit.keys)


def test_tokens_that_are_no_keys_add_their_weight_without_exponent(model, tokenizer):
    few = {"num_beams": 1, "ngram_length": 1, "query_ngrams": False, "unigrams": 20}
    counted = 0
    for smoothing in (0.1, 2.0):
        made = retriever(model, tokenizer, **few, smoothing=smoothing).fit(TEXTS)
        for query in ("good music", "film", "all of you"):
            ((keys, first),) = made.keys_of([query])
            weights = unigram_weights_of(made.index_, first, 20, smoothing, tokenizer.all_special_ids)
            with_tokens, without = (
                {e.doc: e.score for e in score_documents(made.index_, keys, made.key_scoring(), w)}
                for w in (weights, None)
            )
            found = {e.doc: e.score for e in made.search_documents([query], None)[0]}
            assert found == pytest.approx(with_tokens, rel=1e-6)
            counted += sum(with_tokens[doc] > without[doc] + 1e-3 for doc in without)
    assert counted


def test_parts_can_be_left_out(tokenizer):
    model = tiny_llama()
    counts = {}
    for name, options in {
        "all": {},
        "no titles": {"titles": False},
        "no words": {"query_ngrams": False},
        "no rescoring": {"rescore": False},
        "no unigrams": {"unigrams": 0},
    }.items():
        made = retriever(model, tokenizer, **options).fit(TEXTS, TITLES)
        ((keys, _),) = made.keys_of(["good music"])
        counts[name] = len(keys)
        assert any(key.start for key in keys) == (name != "no titles")
    assert counts["no words"] == counts["no rescoring"]
    assert all(counts[name] < counts["all"] for name in counts if name != "all")
    for scoring in ("lm", "lm+fm", "intersective"):
        hits = retriever(model, tokenizer, scoring=scoring).fit(TEXTS).search(["good music"])[0]
        assert hits
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_query_n_grams_with_every_choice_of_capitals():
    seen = []

    def tokenizer(text):
        seen.append(text)
        return list(text.encode())

    found = query_ngrams("the Best  song", tokenizer, longest=2)
    words = {bytes(n).decode().strip() for n in found}
    assert words == {
        *("the", "The", "best", "Best", "song", "Song"),
        *(f"{a} {b}" for a in ("the", "The") for b in ("best", "Best")),
        *(f"{a} {b}" for a in ("best", "Best") for b in ("song", "Song")),
    }
    assert all(text.startswith(" ") for text in seen)
    assert query_ngrams("  ", tokenizer) == []


def test_teacher_forcing_of_n_grams_of_several_lengths(model, tokenizer):
    prompts = torch.tensor([[0, 0, 7, 8], [3, 4, 5, 6]])
    ngrams = [[(9,), (9, 10, 11), (12, 9)], [], [(4, 4)]][:2]
    ngrams[1] = [(4, 4), (30,)]
    found = ngram_log_probs(model, prompts, (prompts != 0).long(), ngrams)
    for prompt, of_query, scores in zip([[7, 8], [3, 4, 5, 6]], ngrams, found, strict=True):
        expected = [log_probs_after(model, prompt, list(n)) for n in of_query]
        assert scores == pytest.approx(expected, abs=1e-5)
    assert ngram_log_probs(model, prompts, None, [[], []]) == [[], []]


@pytest.mark.parametrize("copying", [0.3, 1.0])
def test_a_generator_that_copies_its_query(model, tokenizer, copying):
    query = "the trip was great"
    plain = retriever(model, tokenizer).fit(TEXTS)
    mixed = retriever(model, tokenizer, copying=copying).fit(TEXTS)
    own = {n for n in query_ngrams(query, tokenizer) if plain.index_.count(n)}
    assert tuple(token_ids("the trip was", tokenizer)) in own
    prompt = tokenizer(f"{query} :")["input_ids"]
    ((keys, _),) = mixed.keys_of([query])
    best = {n: max(k.log_prob for k in keys if k.tokens == n) for n in own}
    for ngram, found in best.items():
        p = math.exp(log_probs_after(model, prompt, ngram))
        assert found == pytest.approx(math.log((1 - copying) * p + copying / 4), abs=1e-5)
    if copying == 1:  # only the words of the query count: its passage is found
        assert mixed.search([query], 1)[0][0].doc_id == "2"
    without = retriever(model, tokenizer, copying=copying, rescore=False).fit(TEXTS)
    ((keys, _),) = without.keys_of([query])
    assert {k.tokens for k in keys} >= own
    with pytest.raises(ValueError, match=r"from 0 to 1, got 2\.0"):
        retriever(model, tokenizer, copying=2.0).fit(TEXTS).search([query])


def test_a_ready_index_needs_no_fit_and_a_folder_brings_it_back(tmp_path, tokenizer):
    model = tiny_llama()
    fitted = retriever(model, tokenizer, alpha=1.5).fit(TEXTS, TITLES, ids=list("abcde"))
    expected = fitted.search(["good music", "film"])
    fitted.save(tmp_path / "seal")
    opened = SEALRetriever.load(tmp_path / "seal", model, tokenizer)
    assert opened.search(["good music", "film"]) == expected
    assert opened.alpha == 1.5
    assert SEALRetriever.load(tmp_path / "seal", model, tokenizer, alpha=3.0).alpha == 3.0
    index = TokenIndex.load(tmp_path / "seal" / "tokens.index")
    made = SEALRetriever.from_index(
        index,
        model,
        tokenizer,
        titled=True,
        num_beams=4,
        ngram_length=4,
        prompt="{query} :",
        alpha=1.5,
        smoothing=0.1,
    )
    assert made.search(["good music", "film"]) == expected
    plain = TokenIndex.build([token_ids(t, tokenizer) for t in TEXTS])
    numbered = SEALRetriever.from_index(plain, model, tokenizer, ngram_length=4, smoothing=0.0)
    names = {hit.doc_id for hit in numbered.search(["film"])[0]}
    assert names
    assert names <= set("01234")
    with_more = index.append([token_ids("good film", tokenizer)], labels=["new"])
    assert SEALRetriever.from_index(with_more, model, tokenizer, ngram_length=3, smoothing=0.0).search(
        ["good film"]
    )[0]
    for content in ("{", "[]", '{"format": 9}', '{"format": 1, "titled": 1, "settings": {"model": 1}}'):
        (tmp_path / "seal" / "seal.json").write_text(content)
        with pytest.raises(IndexFormatError, match=r"seal\.json is damaged"):
            SEALRetriever.load(tmp_path / "seal", model, tokenizer)


def test_any_query_has_an_answer(tokenizer):
    model = tiny_llama()
    made = retriever(model, tokenizer).fit(TEXTS)
    odd = ["", "   ", "\x00\n", "\ud800", "好音楽 🎵", "good " * 500, "a{query}b", "%s %d", "e\u0301" * 40]
    for query, hits in zip(odd, made.search(odd), strict=True):
        assert all(math.isfinite(hit.score) for hit in hits), query
    alone = [made.search([query])[0] for query in odd]
    together = made.search(odd)
    assert [[h.doc_id for h in hits] for hits in alone] == [[h.doc_id for h in hits] for hits in together]


def test_estimator_contract_and_bad_input(tokenizer):
    model = tiny_llama()
    made = retriever(model, tokenizer)
    with pytest.raises(NotFittedError, match="from_index"):
        made.search(["x"])
    assert clone(made).get_params()["num_beams"] == 4
    assert made.set_params(alpha=1.0).alpha == 1.0
    made.fit(TEXTS)
    model.train()
    made.search(["film"])
    assert model.training
    model.eval()
    with pytest.raises(TypeError, match="list of strings"):
        made.search("film")
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        made.search(["film"], k=0)
    for arguments, message in (
        (([], None), "0 documents without a single token"),
        ((TEXTS, ["a"]), "1 titles for 5 documents"),
        ((TEXTS, None, ["a"]), "1 ids for 5 documents"),
        ((["good"],), "ngram_length=4, but the longest document has 1 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            retriever(model, tokenizer).fit(*arguments)
    with pytest.raises(ValueError, match="no place for the"):
        retriever(model, tokenizer, prompt="x").fit(TEXTS).search(["film"])
    with pytest.raises(ValueError, match=r"beta must lie in"):
        retriever(model, tokenizer, beta=2.0).fit(TEXTS).search(["film"])
    assert np.isfinite(retriever(model, tokenizer).fit(TEXTS).search(["film"], k=1)[0][0].score)
