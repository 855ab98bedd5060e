"""A cached, batched answer is the answer to the whole prompt, one at a time; misuse is one clear line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradatim.inference.in_context_text import InContextPredictor, ZeroShotPredictor, log_average, orders
from gradatim.inference.next_token import common_length, encode, next_token_logits, pad_left
from tiny_causal_lm import WORDS, tiny_gpt2, tiny_llama, tiny_tokenizer

PATTERN = "Review : {text}\nSentiment :{label}"
LABELS = {"1": " positive", "0": " negative"}
DEMOS = ["the film was great", "a dull book", "we all good", "very poor meal"]
ANSWERS = ["1", "0", "1", "0"]
TESTS = ["the meal was fine", "music", "it is a very very bad trip and so poor", "we all you", "a book"]


@pytest.fixture(params=[tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def parts(request):
    return request.param(), tiny_tokenizer(), PATTERN, LABELS


def one_by_one(model, tokenizer, examples, texts):
    """The straightforward way: the whole prompt, alone, without a cache."""
    shown = [f"Review : {t}\nSentiment :{LABELS[y]}" for t, y in examples]
    rows = []
    for text in texts:
        prompt = "\n\n".join([*shown, f"Review : {text}\nSentiment :"])
        with torch.no_grad():
            logits = model(tokenizer(prompt, return_tensors="pt").input_ids).logits[0, -1]
        rows.append(logits.softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_in_context_answers_are_those_of_whole_prompts(parts, order, batch_size):
    icl = InContextPredictor(*parts, batch_size=batch_size).fit(DEMOS, ANSWERS, order)
    examples = [(DEMOS[i], ANSWERS[i]) for i in (order or range(4))]
    expected = one_by_one(parts[0], parts[1], examples, TESTS)
    torch.testing.assert_close(icl.next_token_proba(TESTS), expected, rtol=1e-10, atol=1e-12)
    zero = ZeroShotPredictor(*parts, batch_size=batch_size)
    torch.testing.assert_close(
        zero.next_token_proba(TESTS), one_by_one(parts[0], parts[1], [], TESTS), rtol=1e-10, atol=1e-12
    )


def test_the_prefix_is_encoded_once_and_only_questions_after(parts):
    seen = []
    handle = parts[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].shape), with_kwargs=True
    )
    icl = InContextPredictor(*parts).fit(DEMOS, ANSWERS)
    icl.next_token_proba(TESTS)
    icl.next_token_proba(TESTS[:1])
    handle.remove()
    whole = [len(encode(parts[1], icl.template.prompt(icl._examples, t))) for t in TESTS]
    shared = seen[0][1]
    assert seen[0][0] == 1
    assert seen[1] == (5, max(whole) - shared)
    assert seen[2] == (1, whole[0] - shared)
    assert shared > 20


def test_a_prefix_that_agrees_only_in_part_is_cut(parts):
    model = parts[0]
    icl = InContextPredictor(*parts).fit(DEMOS, ANSWERS)
    prompts = [[*icl._prefix.ids[:10], 5, 6], [*icl._prefix.ids[:12], 7], [9]]
    found = next_token_logits(model, prompts, prefix=icl._prefix)
    again = next_token_logits(model, prompts[:2], prefix=icl._prefix)
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1]
        torch.testing.assert_close(found[i], expected, rtol=1e-10, atol=1e-10)
        if i < 2:
            torch.testing.assert_close(again[i], expected, rtol=1e-10, atol=1e-10)


def test_classes_and_probabilities(parts):
    icl = InContextPredictor(*parts).fit(DEMOS, ANSWERS)
    whole = icl.next_token_proba(TESTS)
    p = icl.predict_proba(TESTS)
    ids = [WORDS.index(w) + 2 for w in ("positive", "negative")]
    torch.testing.assert_close(p, whole[:, ids] / whole[:, ids].sum(-1, keepdim=True))
    truth = np.where((p[:, 0] > p[:, 1]).numpy(), "1", "0")
    assert (icl.predict(TESTS) == truth).all()
    assert icl.score(TESTS, truth) == 1.0
    assert icl.score(TESTS, ["1"] * 5) == (truth == "1").mean()
    assert (
        InContextPredictor(tiny_llama(dtype=torch.float32), *parts[1:])
        .fit(DEMOS, ANSWERS)
        .next_token_proba(TESTS)
        .dtype
        == torch.float32
    )


def test_dropout_is_off_and_the_mode_comes_back():
    model = tiny_gpt2()
    model.train()
    icl = InContextPredictor(model, tiny_tokenizer(), PATTERN, LABELS).fit(DEMOS, ANSWERS)
    assert torch.equal(icl.next_token_proba(TESTS), icl.next_token_proba(TESTS))
    assert model.training


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"1": " positive"}, "needs two labels"),
        ({"1": " good film", "0": " bad"}, "is 2 tokens, not one"),
        ({"1": "", "0": " bad"}, "is 0 tokens"),
        ({"1": " good", "0": " good"}, "begin with the same token"),
    ],
)
def test_labels_must_be_told_apart_by_one_token(labels, says):
    with pytest.raises(ValueError, match=says):
        ZeroShotPredictor(tiny_llama(), tiny_tokenizer(), PATTERN, labels)


def test_first_token_mode_must_be_asked_for():
    zero = ZeroShotPredictor(
        tiny_llama(), tiny_tokenizer(), PATTERN, {"1": " good film", "0": " bad"}, first_token=True
    )
    assert zero.label_ids == {"1": WORDS.index("good") + 2, "0": WORDS.index("bad") + 2}


def test_other_misuse(parts):
    icl = InContextPredictor(*parts)
    with pytest.raises(RuntimeError, match="not fitted"):
        icl.next_token_proba(TESTS)
    for args, says in (
        (([], []), "at least one demonstration"),
        ((DEMOS, ANSWERS[:3]), "4 texts but 3 labels"),
        ((DEMOS, ["1", "0", "1", "2"]), "no word for label '2'"),
        ((DEMOS, ANSWERS, [0, 1, 2, 2]), "not a permutation"),
        ((DEMOS, ANSWERS, [0, 1, 2]), "not a permutation"),
        ((["good " * 200], ["1"]), "the model's context holds 128"),
    ):
        with pytest.raises(ValueError, match=says):
            icl.fit(*args)
    with pytest.raises(ValueError, match="no prompts"):
        icl.fit(DEMOS, ANSWERS).next_token_proba([])
    with pytest.raises(ValueError, match="context holds 128"):
        icl.next_token_proba(["good " * 128])


def test_orders_are_distinct_permutations():
    assert sorted(orders(3, 10)) == sorted(orders(3, 10, seed=5))
    assert len(orders(3, 10)) == 6
    found = orders(8, 10, seed=1)
    assert len({tuple(o) for o in found}) == 10
    assert all(sorted(o) == list(range(8)) for o in found)
    assert found == orders(8, 10, seed=1) != orders(8, 10, seed=2)
    for bad in ((1, 3), (4, 1)):
        with pytest.raises(ValueError, match="two orders"):
            orders(*bad)


def test_log_average_is_the_geometric_mean():
    p = torch.tensor([[[0.5, 0.5]], [[0.9, 0.1]]], dtype=torch.float64)
    mean = (p[0] * p[1]).sqrt()
    torch.testing.assert_close(log_average(p.log()).exp(), mean / mean.sum(-1, keepdim=True))


def test_common_beginnings():
    assert common_length([[1, 2, 3], (1, 2, 4)]) == 2
    assert common_length([[1, 2], [1, 2, 4]]) == 2
    assert common_length([[2], [1]]) == 0
    ids, mask = pad_left([[5], [6, 7]])
    assert ids.tolist() == [[0, 5], [6, 7]]
    assert mask.tolist() == [[0, 1], [1, 1]]
