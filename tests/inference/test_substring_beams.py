"""Beam search over corpus substrings against a plain one that runs the model on every string anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradatim.inference import TokenIndex, substring_beam_search
from gradatim.inference.substring_candidates import best_allowed
from tiny_causal_lm import tiny_gpt2, tiny_llama
from tiny_seq2seq import tiny_bart

EOS, EOD = 5, 50
FORMS = ("fast", "compact")


def corpus(seed=0, documents=14, low=8):
    rng = np.random.default_rng(seed)
    return [rng.integers(low, 34, rng.integers(3, 14)).tolist() for _ in range(documents)]


def occurrences(documents, ngram):
    n = len(ngram)
    bounded = [[EOD, *d] for d in documents]
    return sum(tuple(d[i : i + n]) == tuple(ngram) for d in bounded for i in range(len(d) - n + 1))


def next_log_probs(model, prompt, tokens):
    """The model on one string, without padding, batch or cache."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            decoder = torch.tensor([[model.config.decoder_start_token_id, *tokens]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits
        else:
            logits = model(torch.tensor([[*prompt, *tokens]])).logits
    return logits[0, -1].log_softmax(-1).tolist()


def plain_search(model, documents, prompt, *, beams, length, start=(), finish=(), eos=False, least=0, stop=0):
    """Keys by the definition: the 2B best expansions of every step; complete ones are marked."""
    keys, complete, alive = {}, set(), [((), 0.0)]
    for step in range(1, length + 1):
        options = []
        for tokens, score in alive:
            values = next_log_probs(model, prompt, tokens)
            allowed = [t for t in range(len(values)) if occurrences(documents, (*start, *tokens, t))]
            specific = stop and len(tokens) > max(1, least - 1)
            if not allowed or (specific and occurrences(documents, (*start, *tokens[:-1])) <= stop):
                complete.add(tokens)
                continue
            options += [(score + values[t], tokens, t) for t in allowed]
            if eos and len(tokens) >= max(1, least):
                options.append((score + values[EOS], tokens, -1))
        best = sorted(options, key=lambda o: (-o[0], o[1], o[2]))[: 2 * beams]
        survivors = []
        for score, tokens, token in best:
            if token < 0:
                continue
            ngram = (*tokens, token)
            keys[ngram] = score
            if token in finish or step == length:
                complete.add(ngram)
            survivors.append((ngram, score))
        alive = [(n, s) for n, s in survivors[:beams] if n not in complete]
    return keys, complete & set(keys)


def agrees(found, expected, complete, documents, start=()):
    assert {key.tokens: pytest.approx(key.log_prob, abs=1e-5) for key in found} == expected
    assert {key.tokens for key in found if key.complete} == complete
    for key in found:
        assert key.start == tuple(start)
        assert key.count == occurrences(documents, key.ngram) > 0
    assert [key.log_prob for key in found] == sorted((key.log_prob for key in found), reverse=True)


MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "bart": tiny_bart}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("memory", FORMS)
@pytest.mark.parametrize("options", [{}, {"start": (EOD,)}, {"finish": (9, 14, 20, 33)}])
def test_keys_and_scores_are_those_of_the_definition(name, memory, options):
    model, documents = MODELS[name](), corpus(1)
    index = TokenIndex.build(documents, vocab_size=35, eod=EOD, memory=memory)
    prompts = [[11, 12], [9, 8, 3, 21], [4]]
    width = max(map(len, prompts))
    # One padded on the left, one on the right.
    left = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    right = torch.tensor([p + [0] * (width - len(p)) for p in prompts])
    renamed = {"finish_with" if k == "finish" else k: v for k, v in options.items()}
    for ids in (left, right):
        found = substring_beam_search(
            model, index, ids, (ids != 0).long(), num_beams=3, max_new_tokens=4, **renamed
        )
        for prompt, keys in zip(prompts, found, strict=True):
            expected = plain_search(model, documents, prompt, beams=3, length=4, **options)
            agrees(keys, *expected, documents, options.get("start", ()))


@pytest.mark.parametrize(
    "options",
    [{"always_allow_eos": True}, {"always_allow_eos": True, "min_new_tokens": 3}, {"stop_at_count": 2}],
)
def test_ends_of_sequences(options):
    model, documents = tiny_llama(seed=2), corpus(2, low=25)
    index = TokenIndex.build(documents, eod=EOD)
    (found,) = substring_beam_search(
        model, index, torch.tensor([[9, 8, 3]]), num_beams=4, max_new_tokens=5, eos_token_id=EOS, **options
    )
    expected = plain_search(
        model, documents, [9, 8, 3], beams=4, length=5, eos="always_allow_eos" in options,
        least=options.get("min_new_tokens", 0), stop=options.get("stop_at_count", 0),
    )  # fmt: skip
    agrees(found, *expected, documents)


def test_beams_of_one_wide_range_are_found_by_probing_too(monkeypatch):
    from gradatim.inference import substring_candidates

    rng = np.random.default_rng(3)
    documents = [rng.integers(8, 34, 40).tolist() for _ in range(40)]
    index = TokenIndex.build(documents, vocab_size=35)
    scores = torch.tensor(rng.normal(size=(6, 500))).log_softmax(-1)
    scores[:, ::3] = scores[:, ::3].round(decimals=0)  # ties, also where the probing stops
    ranges = np.array([[index.range(p)] for p in [(), (8,), (9,), (8, 9), (33, 8), (1,)]])
    depth = np.array([0, 1, 1, 2, 2, 1])
    results = []
    for narrow, probed in ((10**9, 64), (0, 1), (0, 7), (30, 2)):
        monkeypatch.setattr(substring_candidates, "_NARROW", narrow)
        monkeypatch.setattr(substring_candidates, "_LEAST_PROBED", probed)
        results.append(best_allowed(index, scores, ranges, depth, 5))
    for tokens, values in results[1:]:
        np.testing.assert_array_equal(tokens, results[0][0])
        np.testing.assert_array_equal(values, results[0][1])
    for row, prefix in enumerate([(), (8,), (9,), (8, 9), (33, 8), (1,)]):
        allowed = index.follow(prefix).next_tokens.tolist()
        best = sorted(allowed, key=lambda t: (-float(scores[row, t]), t))[:5]
        assert results[0][0][row].tolist() == best + [-1] * (5 - len(best))


def test_a_thousand_random_prompts_emit_only_substrings():
    model = tiny_llama(seed=5, dtype=torch.float32, layers=1)
    documents = corpus(6, documents=30)
    everything = {tuple(d[i:j]) for d in documents for i in range(len(d)) for j in range(i + 1, len(d) + 1)}
    index = TokenIndex.build(documents)
    generator = torch.Generator().manual_seed(0)
    emitted = set()
    for _ in range(10):
        prompts = torch.randint(2, 35, (100, 6), generator=generator)
        found = substring_beam_search(model, index, prompts, num_beams=5, max_new_tokens=7)
        assert len(found) == 100
        for keys in found:
            assert keys
            emitted |= {key.tokens for key in keys}
    assert len(emitted) > 500
    assert emitted <= everything


def test_a_beam_as_wide_as_the_corpus_finds_all_of_it_and_nothing_else():
    documents = [[8, 9, 8, 10], [9, 9], [10, 8, 9, 9, 8]]
    index = TokenIndex.build(documents)
    everything = {tuple(d[i:j]) for d in documents for i in range(len(d)) for j in range(i + 1, len(d) + 1)}
    (found,) = substring_beam_search(
        tiny_llama(), index, torch.tensor([[3, 4]]), num_beams=40, max_new_tokens=6
    )
    assert {key.tokens for key in found} == everything


def test_sampling_draws_in_proportion_and_keeps_the_scores_of_the_model():
    model, documents = tiny_llama(seed=1), [[8], [9], [10], [11]]
    index = TokenIndex.build(documents)
    values = next_log_probs(model, [3, 4], ())
    generator = torch.Generator().manual_seed(0)
    prompts = torch.tensor([[3, 4]] * 400)
    for temperature in (1.0, 2.0):
        found = substring_beam_search(
            model, index, prompts, num_beams=1, max_new_tokens=1, do_sample=True, temperature=temperature,
            generator=generator,
        )  # fmt: skip
        drawn = np.zeros(12)
        for keys in found:
            assert len(keys) == 2  # 2B expansions without replacement
            for key in keys:
                assert key.log_prob == pytest.approx(values[key.tokens[0]], abs=1e-6)
                drawn[key.tokens[0]] += 1
        p = np.array([math.exp(values[t] / temperature) for t in (8, 9, 10, 11)])
        p /= p.sum()
        # In two draws without replacement token i comes up with p_i + sum_j p_j p_i / (1 - p_j).
        expected = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
        np.testing.assert_allclose(drawn[8:] / 400, expected, atol=0.08)
    again = [
        substring_beam_search(
            model, index, prompts[:3], num_beams=2, max_new_tokens=1, do_sample=True, top_k=2,
            generator=torch.Generator().manual_seed(7),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert again[0] == again[1]
    best = sorted((8, 9, 10, 11), key=lambda t: -values[t])[:2]
    assert {key.tokens[0] for keys in again[0] for key in keys} == set(best)


def test_groups_avoid_what_earlier_groups_chose():
    model, documents = tiny_llama(seed=1), corpus(8)
    index = TokenIndex.build(documents)
    prompt = torch.tensor([[3, 4, 9]])
    one = substring_beam_search(model, index, prompt, num_beams=4, max_new_tokens=1, num_beam_groups=2)[0]
    far = substring_beam_search(
        model, index, prompt, num_beams=4, max_new_tokens=1, num_beam_groups=2, diversity_penalty=100.0
    )[0]
    values = next_log_probs(model, [3, 4, 9], ())
    used = {t for d in documents for t in d}
    best = sorted(used, key=lambda t: -values[t])
    assert {key.tokens[0] for key in one} == set(best[:4])  # both groups record the same four
    # The second group pays for the two that the first one kept, not for the two it only recorded.
    assert {key.tokens[0] for key in far} == set(best[:6])
    plain = substring_beam_search(model, index, prompt, num_beams=2, max_new_tokens=3)[0]
    grouped = substring_beam_search(model, index, prompt, num_beams=4, max_new_tokens=3, num_beam_groups=2)[0]
    assert [key.tokens for key in plain] == [key.tokens for key in grouped]
    assert [key.log_prob for key in plain] == pytest.approx([key.log_prob for key in grouped])


def test_top_k_limits_each_beam():
    model, documents = tiny_llama(seed=3), corpus(9)
    index = TokenIndex.build(documents)
    (found,) = substring_beam_search(
        model, index, torch.tensor([[3, 4]]), num_beams=6, max_new_tokens=3, top_k=1
    )
    assert len(found) <= 3
    assert all(
        len(key.tokens) == place for place, key in enumerate(sorted(found, key=lambda k: len(k.tokens)), 1)
    )


def test_without_history_only_complete_keys_and_at_most_b():
    model, documents = tiny_llama(seed=3), corpus(10)
    index = TokenIndex.build(documents)
    prompt = torch.tensor([[3, 4]])
    whole = substring_beam_search(model, index, prompt, num_beams=4, max_new_tokens=5)[0]
    few = substring_beam_search(model, index, prompt, num_beams=4, max_new_tokens=5, return_history=False)[0]
    assert few == [key for key in whole if key.complete][:4]
    assert few
    normed = substring_beam_search(model, index, prompt, num_beams=4, max_new_tokens=5, length_penalty=1.0)[0]
    assert {key.tokens for key in normed} == {key.tokens for key in whole}
    rates = [key.log_prob / len(key.tokens) for key in normed]
    assert rates == sorted(rates, reverse=True)


def test_models_without_a_cache_and_in_bfloat16():
    documents = corpus(11)
    index = TokenIndex.build(documents)
    prompt = torch.tensor([[3, 4, 9], [0, 7, 8]])
    mask = (prompt != 0).long()
    model = tiny_llama(seed=3)
    cached = substring_beam_search(model, index, prompt, mask, num_beams=3, max_new_tokens=4)
    forward = model.forward

    def cacheless(input_ids, attention_mask, position_ids, logits_to_keep):
        return forward(
            input_ids, attention_mask, position_ids, use_cache=False, logits_to_keep=logits_to_keep
        )

    model.forward = cacheless
    plain = substring_beam_search(model, index, prompt, mask, num_beams=3, max_new_tokens=4)
    for a, b in zip(cached, plain, strict=True):
        assert {k.tokens: pytest.approx(k.log_prob, abs=1e-9) for k in a} == {k.tokens: k.log_prob for k in b}
    half = substring_beam_search(
        tiny_llama(seed=3, dtype=torch.bfloat16), index, prompt, mask, num_beams=3, max_new_tokens=4
    )
    assert all(index.count(key.tokens) == key.count > 0 for keys in half for key in keys)


def test_settings_that_make_no_sense_are_named():
    model = tiny_llama(layers=1)
    index = TokenIndex.build([[8, 9], [10]])
    prompt = torch.tensor([[3, 4]])
    for options, message in (
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beams=4 is no multiple of 3 groups"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"always_allow_eos": True}, "need eos_token_id"),
        ({"do_sample": True}, "sampling needs generator"),
        ({"start": (11,)}, r"start=\[11\] occurs in no document"),
        ({"max_new_tokens": 200}, "202 tokens, but the model's context holds 128"),
    ):
        with pytest.raises(ValueError, match=message):
            substring_beam_search(model, index, prompt, **options)
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        substring_beam_search(model, index, prompt, torch.tensor([[0, 0]]))
    wide = TokenIndex.build([[8, 40]])
    with pytest.raises(ValueError, match="token id 40, but the model scores 35"):
        substring_beam_search(model, wide, prompt)
