"""The LSTM as a causal language model: its interface, its padding, and the recurrence by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from gradatim.models import LSTMConfig, LSTMForCausalLM

CONFIG = {"vocab_size": 11, "hidden_size": 6, "num_hidden_layers": 2}


def model(seed=0, **changes):
    made = LSTMForCausalLM(LSTMConfig(**{**CONFIG, **changes}), seed=seed).double().eval()
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return made


def ids(rows=2, length=9, seed=1):
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_equals_the_recurrence_written_out():
    lm, x = model(), ids()
    out = lm(x).logits
    for row in range(2):
        h = [torch.zeros(6, dtype=torch.float64) for _ in range(2)]
        c = [torch.zeros(6, dtype=torch.float64) for _ in range(2)]
        for t in range(9):
            below = lm.embed_tokens.weight[x[row, t]]
            for n in range(2):
                gates = sum(
                    getattr(lm.layers, f"weight_{kind}_l{n}") @ v + getattr(lm.layers, f"bias_{kind}_l{n}")
                    for kind, v in (("ih", below), ("hh", h[n]))
                )
                i, f, g, o = gates.chunk(4)
                c[n] = f.sigmoid() * c[n] + i.sigmoid() * g.tanh()
                h[n] = below = o.sigmoid() * c[n].tanh()
            torch.testing.assert_close(out[row, t], lm.lm_head.weight @ below)


def test_labels_are_shifted_and_may_be_left_out():
    lm, x = model(), ids()
    labels = x.clone()
    labels[0, 4:] = -100
    out = lm(x, labels=labels)
    rows = [(0, t) for t in range(3)] + [(1, t) for t in range(8)]
    expected = sum(F.cross_entropy(out.logits[r, t], x[r, t + 1]) for r, t in rows) / len(rows)
    assert float(out.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    out.loss.backward()
    assert all(p.grad is not None for p in lm.parameters())
    with pytest.raises(ValueError, match="labels must have the shape"):
        lm(x, labels=x[:, 1:])
    with pytest.raises(ValueError, match="logits_to_keep be 0"):
        lm(x, labels=x, logits_to_keep=1)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side):
    lm, x = model(), ids()
    mask = torch.ones_like(x)
    real = slice(3, None) if side == "left" else slice(None, 6)
    mask[0] = 0
    mask[0, real] = 1
    padded = lm(x, attention_mask=mask).logits
    torch.testing.assert_close(padded[0, real], lm(x[:1, real]).logits[0])
    torch.testing.assert_close(padded[1], lm(x[1:]).logits[0])


def test_generation_is_greedy_repeated_reading():
    lm, x = model(), ids()
    mask = torch.ones_like(x)
    mask[0, :2] = 0
    out = lm.generate(x, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    for row, start in ((0, 2), (1, 0)):
        text = x[row : row + 1, start:]
        for _ in range(5):
            with torch.no_grad():
                text = torch.cat([text, lm(text).logits[:, -1].argmax(-1, keepdim=True)], 1)
        assert torch.equal(out[row, -5:], text[0, -5:])


def test_saves_loads_and_starts_from_its_seed(tmp_path):
    lm, x = model().float(), ids()
    lm.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    kept = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(kept, LSTMForCausalLM)
    assert torch.equal(kept(x).logits, lm(x).logits)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = (LSTMForCausalLM(LSTMConfig(**CONFIG), seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.lm_head.weight, b.lm_head.weight)
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)
    assert float(a.lm_head.weight.detach().std()) == pytest.approx(0.02, rel=0.5)


def test_tied_weights_and_sizes():
    tied = LSTMForCausalLM(LSTMConfig(**CONFIG, tie_word_embeddings=True))
    assert tied.lm_head.weight is tied.embed_tokens.weight
    with pytest.raises(ValueError, match="hidden_size must be at least 1"):
        LSTMConfig(hidden_size=0)
