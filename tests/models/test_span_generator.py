"""The generator learns what its pairs say; its loss is the model's own; seeds decide everything."""

from __future__ import annotations

import pytest
import torch

from gradatim.models import byte_pair_tokenizer, train_span_generator
from gradatim.models.span_generator import target_loss
from gradatim.tasks.span_pairs import PairCollator, SpanPairs
from tiny_causal_lm import tiny_llama

TEXTS = {
    "fruit": "apples grow on trees in the garden behind the old house near our river bank",
    "stars": "telescopes gather light from distant galaxies far beyond what any eye can see",
}
ASKED = [("what grows outside", "fruit"), ("how to look at the sky", "stars")]


def pairs(**more):
    return SpanPairs(ASKED, TEXTS, n=3, length=5, **more)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_pair_tokenizer(TEXTS.values(), 400)


def test_the_tokenizer_knows_any_text(tokenizer):
    for text in (*TEXTS.values(), "Ünïcode 🙂 字", "a\tb\n c"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    with pytest.raises(ValueError, match="at least 258"):
        byte_pair_tokenizer(TEXTS.values(), 100)


def test_the_loss_is_the_models_own(tokenizer):
    made = [pair for i in range(6) for pair in [pairs()[i]]]
    batch = PairCollator(tokenizer, max_source=40, max_target=12)(made)
    gpt = train_span_generator(pairs(), tokenizer, steps=1, batch_size=4, width=16, heads=2)
    for model in (gpt, tiny_llama().eval()):
        small = {k: torch.where(v < 0, v, v % model.config.vocab_size) for k, v in batch.items()}
        theirs = model(**small).loss
        assert target_loss(model, small).item() == pytest.approx(theirs.item(), rel=1e-5)
        (ours,) = torch.autograd.grad(target_loss(model, small), model.get_input_embeddings().weight)
        (own,) = torch.autograd.grad(theirs, model.get_input_embeddings().weight)
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-7)


def test_it_learns_what_to_write_for_a_question(tokenizer):
    heard = []
    model = train_span_generator(
        pairs(unsupervised=False), tokenizer, steps=200, batch_size=6, width=32, heads=2, lr=1e-2,
        max_source=48, on_step=heard.append,
    )  # fmt: skip
    assert heard == list(range(1, 201))
    losses = {}
    for asked, about in ASKED:
        for name, text in TEXTS.items():
            source = tokenizer(f"{asked} || body || +")["input_ids"]
            target = tokenizer(" " + " ".join(text.split()[1:6]))["input_ids"]
            batch = {
                "input_ids": torch.tensor([source + target]),
                "attention_mask": torch.ones(1, len(source) + len(target), dtype=torch.long),
                "labels": torch.tensor([[-100] * len(source) + target]),
            }
            losses[name == about, asked] = target_loss(model, batch).item()
    for asked, _ in ASKED:
        assert losses[True, asked] < losses[False, asked] - 1


def test_seeds_decide_and_the_global_state_stays(tokenizer):
    def weights(seed):
        model = train_span_generator(pairs(), tokenizer, steps=3, batch_size=4, width=16, heads=2, seed=seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = weights(0)
    torch.testing.assert_close(torch.rand(3), expected)
    torch.rand(7)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_refuses(tokenizer):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        train_span_generator(pairs(), tokenizer, steps=0)
    with pytest.raises(ValueError, match="do not fit a context of 64"):
        train_span_generator(pairs(), tokenizer, steps=1, context=64)
