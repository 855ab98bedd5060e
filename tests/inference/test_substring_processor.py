"""Constrained `generate`: nothing that is not in the corpus comes out, of any model and any way to decode."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from gradatim.inference import SubstringLogitsProcessor, TokenIndex
from tiny_causal_lm import tiny_gpt2, tiny_llama
from tiny_seq2seq import tiny_bart

EOS = 5
FORMS = ("fast", "compact")


def corpus(seed=0, documents=12, length=14, low=8):
    rng = np.random.default_rng(seed)
    return [rng.integers(low, 34, rng.integers(4, length)).tolist() for _ in range(documents)]


def substrings(documents, length):
    return {tuple(d[i : i + length]) for d in documents for i in range(len(d) - length + 1)}


def inside(documents, tokens):
    return not tokens or tuple(tokens) in substrings(documents, len(tokens))


def cut(row, prompt, eos=EOS):
    row = row[prompt:].tolist()
    return row[: row.index(eos)] if eos in row else row


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


@pytest.mark.parametrize("memory", FORMS)
@pytest.mark.parametrize("start", [(), (50,)])
def test_allowed_tokens_are_those_of_brute_force(memory, start):
    documents = corpus(1, 5, 9, low=30)
    index = TokenIndex.build(documents, vocab_size=35, eod=50, memory=memory)
    prefixes = [p for n in (0, 1, 2, 3) for p in sorted({*substrings(documents, n)})]
    prefixes += [(30, 30, 30), (1,), (33, 2)]
    for prefix in prefixes:
        ids = torch.tensor([[7, 7, *prefix]])
        processor = SubstringLogitsProcessor(index, prompt_length=2, start=start, eos_token_id=EOS)
        out = processor(ids, torch.zeros(1, 40))
        bounded = [[50, *d] if start else d for d in documents]
        allowed = {
            d[i + len(prefix) + len(start)]
            for d in bounded
            for i in range(len(d) - len(prefix) - len(start))
            if tuple(d[i : i + len(prefix) + len(start)]) == (*start, *prefix)
        }
        assert set(torch.isfinite(out[0]).nonzero().flatten().tolist()) == (allowed or {EOS})


def test_every_string_that_can_be_generated_is_in_a_small_corpus_and_every_one_there_can_be():
    documents = [[8, 9, 8, 10], [9, 9], [10, 8, 9, 9, 8]]
    index = TokenIndex.build(documents)
    possible = set()
    processor = SubstringLogitsProcessor(index, prompt_length=0, eos_token_id=EOS)
    for string in product([7, 8, 9, 10, 11], repeat=4):
        for at, token in enumerate(string):
            scores = processor(torch.tensor([string[:at]], dtype=torch.long), torch.zeros(1, 12))
            if scores[0, token] == -torch.inf:
                break
        else:
            possible.add(string)
    assert possible == substrings(documents, 4)


WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "num_return_sequences": 4, "temperature": 2.0},
    "beams": {"num_beams": 4, "num_return_sequences": 4},
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "top p": {"do_sample": True, "top_p": 0.5, "top_k": 7},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_decoder_only_generation_stays_in_the_corpus(llama, way):
    documents = corpus()
    index = TokenIndex.build(documents)
    prompts = torch.tensor([[0, 0, 11, 12], [9, 8, 3, 21], [0, 2, 3, 4]])
    mask = (prompts != 0).long()
    torch.manual_seed(0)
    for options in ({}, {"always_allow_eos": True, "min_new_tokens": 2}, {"stop_at_count": 2}):
        processor = SubstringLogitsProcessor(index, prompt_length=4, eos_token_id=EOS, **options)
        out = llama.generate(
            prompts,
            attention_mask=mask,
            logits_processor=[processor],
            max_new_tokens=9,
            eos_token_id=EOS,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **WAYS[way],
        )
        scores = getattr(out, "sequences_scores", None)
        assert len(out.sequences) >= 3
        for i, row in enumerate(out.sequences):
            assert scores is None or torch.isfinite(scores[i])
            tokens = cut(row, 4)
            assert inside(documents, tokens), tokens
            if options.get("min_new_tokens"):
                assert len(tokens) >= 2 or index.continuations(*index.range(tokens), len(tokens))[0].size == 0
            if options.get("stop_at_count") and len(tokens) >= 2:
                assert index.count(tokens[:-1]) > 2 or len(tokens) == 2 or index.count(tokens[:-2]) > 2


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", ["greedy", "beams", "sampling"])
def test_encoder_decoder_generation_stays_in_the_corpus(way):
    model = tiny_bart()
    documents = corpus(2)
    index = TokenIndex.build(documents, eod=50)
    torch.manual_seed(1)
    for start in ((), (50,)):
        out = model.generate(
            torch.tensor([[11, 12, 13], [9, 8, 7]]),
            logits_processor=[
                SubstringLogitsProcessor(index, prompt_length=1, start=start, eos_token_id=EOS)
            ],
            max_new_tokens=8,
            eos_token_id=EOS,
            pad_token_id=0,
            decoder_start_token_id=1,
            **WAYS[way],
        )
        for row in out:
            tokens = cut(row, 1)
            assert inside(documents, tokens)
            assert not start or any(d[: len(tokens)] == tokens for d in documents)


def test_the_order_of_calls_and_rows_does_not_matter():
    documents = corpus(3)
    index = TokenIndex.build(documents)
    rng = np.random.default_rng(0)
    rows = [[1, *d[: rng.integers(0, 4)]] for d in documents]
    used = SubstringLogitsProcessor(index, prompt_length=1, eos_token_id=EOS)
    for _ in range(30):
        length = int(rng.integers(1, 4))
        batch = [row[:length] for row in rows if len(row) >= length]
        batch = [batch[i] for i in rng.integers(0, len(batch), 6)]
        fresh = SubstringLogitsProcessor(index, prompt_length=1, eos_token_id=EOS)
        ids, scores = torch.tensor(batch), torch.randn(6, 40)
        torch.testing.assert_close(used(ids, scores), fresh(ids, scores))
        alone = torch.cat([fresh(ids[i : i + 1], scores[i : i + 1]) for i in range(6)])
        torch.testing.assert_close(used(ids, scores), alone)


def test_prompts_of_several_lengths_and_beams_of_each():
    index = TokenIndex.build([[8, 9, 10], [9, 11]])
    processor = SubstringLogitsProcessor(index, prompt_length=torch.tensor([1, 2]), eos_token_id=EOS)
    ids = torch.tensor([[1, 8, 9], [1, 9, 11], [1, 8, 9], [1, 8, 8]])  # two beams of two prompts
    allowed = torch.isfinite(processor(ids, torch.zeros(4, 12)))
    assert [row.nonzero().flatten().tolist() for row in allowed] == [[10], [EOS], [10, 11], [9]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_that_remain_are_untouched(dtype):
    index = TokenIndex.build([[1, 2], [1, 3]])
    processor = SubstringLogitsProcessor(index, prompt_length=0)
    scores = torch.randn(1, 6).to(dtype)
    out = processor(torch.tensor([[1]]), scores)
    assert out.dtype == dtype
    assert torch.equal(out[0, 2:4], scores[0, 2:4])
    assert out[0, [0, 1, 4, 5]].isinf().all()


def test_eos_where_options_say():
    index = TokenIndex.build([[1, 2, 3], [1, 2, 4], [2, 5]], vocab_size=8)

    def allowed(row, **options):
        processor = SubstringLogitsProcessor(index, prompt_length=0, eos_token_id=7, **options)
        out = processor(torch.tensor([row], dtype=torch.long).reshape(1, -1), torch.zeros(1, 8))
        return torch.isfinite(out[0]).nonzero().flatten().tolist()

    assert allowed([1]) == [2]
    assert allowed([1], always_allow_eos=True) == [2, 7]
    assert allowed([1], always_allow_eos=True, min_new_tokens=2) == [2]
    assert allowed([1, 2], always_allow_eos=True, min_new_tokens=2) == [3, 4, 7]
    assert allowed([1, 2], stop_at_count=2) == [7]  # "1" occurs twice
    assert allowed([2, 5], stop_at_count=2, min_new_tokens=5) == [7]  # nothing else can follow
    assert allowed([1, 2], stop_at_count=1) == [3, 4]
    assert allowed([1, 2], stop_at_count=2, min_new_tokens=3) == [3, 4]
    assert allowed([2], stop_at_count=10) == [3, 4, 5]


def test_a_forgotten_prefix_is_looked_up_again(monkeypatch):
    from gradatim.inference import substring_processor

    monkeypatch.setattr(substring_processor, "_REMEMBERED", 2)
    documents = corpus(4)
    index = TokenIndex.build(documents)
    processor = SubstringLogitsProcessor(index, prompt_length=0, eos_token_id=EOS)
    ids = torch.tensor([d[:3] for d in documents])
    out = processor(ids, torch.zeros(len(ids), 40))
    assert len(processor._ranges) <= 3
    fresh = SubstringLogitsProcessor(index, prompt_length=0, eos_token_id=EOS)
    assert torch.equal(out, fresh(ids, torch.zeros(len(ids), 40)))


def test_bad_settings_are_refused_with_the_value():
    index = TokenIndex.build([[1, 2], [3]])
    for options, message in (
        ({"prompt_length": -1}, "must be at least 0, got"),
        ({"prompt_length": 0, "stop_at_count": -2}, "-2"),
        ({"prompt_length": 0, "always_allow_eos": True}, "need eos_token_id"),
        ({"prompt_length": 0, "start": (9,)}, r"start=\[9\] occurs in no document"),
    ):
        with pytest.raises(ValueError, match=message):
            SubstringLogitsProcessor(index, **options)
    ids = torch.tensor([[3], [1], [1]])
    for options, rows, width, message in (
        ({"prompt_length": 2}, ids, 5, "prompt_length=2, but the input has 1 tokens"),
        ({"prompt_length": torch.tensor([0, 1])}, ids, 5, "2 prompt lengths do not fit 3 rows"),
        ({"prompt_length": 0}, ids, 5, r"nothing follows \[3\] in the corpus; give eos_token_id"),
        ({"prompt_length": 0, "eos_token_id": 0}, ids, 2, "token id 2, but the model scores 2 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            SubstringLogitsProcessor(index, **options)(rows, torch.zeros(3, width))


def test_gpt2_with_a_prompt_of_its_own_for_each_row():
    documents = corpus(5)
    index = TokenIndex.build(documents)
    model = tiny_gpt2()
    prompts = torch.tensor([[9, 8], [3, 21]])
    processor = SubstringLogitsProcessor(index, prompt_length=torch.tensor([2, 2]), eos_token_id=EOS)
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        logits_processor=[processor],
        num_beams=3,
        do_sample=False,
        max_new_tokens=6,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    assert all(inside(documents, cut(row, 2)) for row in out)
