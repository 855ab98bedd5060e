"""Boolean prompts to a language model: one pass gives what one prompt per example gives."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gradatim.inference import prompted_answers
from gradatim.inference.boolean_prompting import INSTRUCTION, tokenized
from gradatim.probes import Elimination
from gradatim.tasks import BooleanTask


class Characters:
    """A tokenizer of single characters."""

    bos_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [ord(c) for c in text]}


def text_of(x, y, last):
    """The prompt that asks about point `last`, written down as the paper has it."""
    blocks = [f"{INSTRUCTION}\n\n"]
    for t in range(last + 1):
        blocks.append(f"Input: {' '.join('1' if v > 0 else '0' for v in x[t])}\nLabel:")
        if t < last:
            blocks.append(f" {'1' if y[t] > 0 else '0'}\n\n")
    return "".join(blocks)


@pytest.fixture(scope="module")
def prompt():
    return BooleanTask(3, "conjunction", 6).sample(3, generator=torch.Generator().manual_seed(0))


def test_one_pass_gives_what_one_prompt_per_example_gives(prompt):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=400, vocab_size=128, bos_token_id=0)
    ).eval()
    found = prompted_answers(model, Characters(), prompt.x, prompt.y)
    for b in range(3):
        for t in range(6):
            # The space before the label belongs to the question: both labels begin with it.
            ids = [0, *map(ord, text_of(prompt.x[b], prompt.y[b], t) + " ")]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            assert found.restricted[b, t] == (1 if logits[ord("1")] > logits[ord("0")] else -1)
            best = int(logits.argmax())
            assert found.free[b, t] == {ord("1"): 1, ord("0"): -1}.get(best, 0)


class Learner:
    """A language model that reads the text, eliminates literals and answers; mute after two examples."""

    device = torch.device("cpu")

    def __call__(self, ids, logits_to_keep):
        text = "".join(map(chr, ids[0, 1:].tolist()))
        logits = torch.zeros(1, len(logits_to_keep), 128)
        for row, place in enumerate(logits_to_keep.tolist()):
            blocks = text[:place].split("Input: ")[1:]
            x = torch.tensor([[2.0 * int(v) - 1 for v in b.split("\n")[0].split()] for b in blocks])
            labels = [b.split("Label: ")[1][:1] for b in blocks[:-1]]
            y = torch.tensor([2.0 * int(v) - 1 for v in labels] + [1.0])
            answer = Elimination()(x[None], y[None])[0, -1]
            logits[0, row, ord("1" if answer > 0 else "0")] = 1.0
            if len(blocks) > 2:
                logits[0, row, ord("?")] = 2.0
        return SimpleNamespace(logits=logits)


def test_a_model_that_knows_the_rule_answers_by_it(prompt):
    found = prompted_answers(Learner(), Characters(), prompt.x, prompt.y)
    assert torch.equal(found.restricted, Elimination()(prompt.x, prompt.y))
    assert (found.free[:, :2] != 0).all()
    assert (found.free[:, 2:] == 0).all()
    assert found.readable == pytest.approx(1 / 3)


def test_what_both_labels_begin_with_belongs_to_the_question(prompt):
    ids, asked, labels = tokenized(Characters(), prompt.x[0], prompt.y[0])
    assert labels == (ord("0"), ord("1"))
    for place, y in zip(asked, prompt.y[0].tolist(), strict=True):
        assert "".join(map(chr, ids[place - 6 : place + 2])) == f"Label: {1 if y > 0 else 0}"


def test_labels_of_whole_tokens_and_labels_that_are_one_token(prompt):
    class Words:
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [{" 0": 5, " 1": 6}.get(text, 7)]}

    ids, asked, labels = tokenized(Words(), prompt.x[0], prompt.y[0])
    assert labels == (5, 6)
    assert [ids[a + 1] for a in asked] == [6 if v > 0 else 5 for v in prompt.y[0].tolist()]

    class Blind:
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [1]}

    with pytest.raises(ValueError, match="apart"):
        tokenized(Blind(), prompt.x[0], prompt.y[0])
