"""The decoder against the formula in loops, against Hugging Face's GPT-2, and against itself in pieces."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gradatim.models.decoder import (
    Decoder,
    KeyValueCache,
    attend,
    rotary_angles,
    rotate,
    sinusoids,
)


def small(**settings: object) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Decoder(12, 2, 3, **{"max_positions": 20, "initializer_range": 0.3, **settings}).double()
        with torch.no_grad():  # norms and biases that are not neutral
            for p in made.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return made


def inputs(time: int = 7) -> Tensor:
    return torch.randn(2, time, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layer_norm(h: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centred / scale * norm.weight + norm.bias


def attention_by_hand(layer: nn.Module, h: Tensor) -> Tensor:
    """One query, one head at a time."""
    inner, size = layer.heads * layer.head_size, layer.head_size
    q, k, v = (h @ layer.qkv.weight[i * inner : (i + 1) * inner].T
               + layer.qkv.bias[i * inner : (i + 1) * inner] for i in range(3))  # fmt: skip
    mixed = torch.zeros(*h.shape[:2], inner, dtype=h.dtype)
    for b in range(h.shape[0]):
        for t in range(h.shape[1]):
            for m in range(layer.heads):
                part = slice(m * size, (m + 1) * size)
                scores = torch.stack([q[b, t, part] @ k[b, s, part] / math.sqrt(size) for s in range(t + 1)])
                share = scores.exp() / scores.exp().sum()
                mixed[b, t, part] = sum(share[s] * v[b, s, part] for s in range(t + 1))
    return mixed @ layer.out.weight.T + layer.out.bias


def by_hand(model: Decoder, h: Tensor) -> Tensor:
    h = h + model.position_table.weight[: h.shape[1]]
    for block in model.blocks:
        for norm, branch in (
            (block.attention_norm, lambda z, b=block: attention_by_hand(b.attention, z)),
            (block.mlp_norm, lambda z, b=block: b.mlp(z)),
        ):
            if block.norm == "pre":
                h = h + branch(layer_norm(h, norm))
            elif block.norm == "replace":
                h = layer_norm(h, norm)
                h = h + branch(h)
            else:
                h = h + layer_norm(branch(h), norm)
    return layer_norm(h, model.final_norm) if block.norm == "pre" else h


@pytest.mark.parametrize("norm", ["pre", "replace", "branch"])
@pytest.mark.parametrize("head_size", [None, 2])
def test_equals_the_formula(norm: str, head_size: int | None) -> None:
    model = small(norm=norm, head_size=head_size)
    torch.testing.assert_close(model(inputs())[0], by_hand(model, inputs()), rtol=1e-10, atol=1e-10)


def test_equals_hugging_face_gpt2() -> None:
    from transformers import GPT2Config, GPT2Model

    model = small()
    other = GPT2Model(
        GPT2Config(n_positions=20, n_embd=12, n_layer=2, n_head=3, vocab_size=1, resid_pdrop=0.0,
                   embd_pdrop=0.0, attn_pdrop=0.0)
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        other.wpe.weight.copy_(model.position_table.weight)
        other.ln_f.load_state_dict(model.final_norm.state_dict())
        for ours, theirs in zip(model.blocks, other.h, strict=True):
            theirs.ln_1.load_state_dict(ours.attention_norm.state_dict())
            theirs.ln_2.load_state_dict(ours.mlp_norm.state_dict())
            for a, b in ((ours.attention.qkv, theirs.attn.c_attn), (ours.attention.out, theirs.attn.c_proj),
                         (ours.mlp.up, theirs.mlp.c_fc), (ours.mlp.down, theirs.mlp.c_proj)):  # fmt: skip
                b.weight.copy_(a.weight.T)
                b.bias.copy_(a.bias)
    found, states = model(inputs(), output_hidden_states=True)
    theirs = other(inputs_embeds=inputs(), output_hidden_states=True)
    torch.testing.assert_close(found, theirs.last_hidden_state, rtol=1e-10, atol=1e-10)
    # Hugging Face's first state has the positions in it, ours is the embedding before every layer: the same.
    for a, b in zip(states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "none"])
def test_pieces_with_a_cache_equal_the_whole(positions: str) -> None:
    model = small(positions=positions)
    h = inputs(9)
    whole = model(h)[0]
    cache = KeyValueCache()
    parts = [model(part, cache=cache)[0] for part in h.split([4, 1, 3, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-10, atol=1e-10)
    assert cache.get_seq_length() == 9


def test_transformers_cache_serves_as_well() -> None:
    from transformers import DynamicCache

    model, h, cache = small(), inputs(6), DynamicCache()
    parts = [model(part, cache=cache)[0] for part in h.split([4, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(h)[0], rtol=1e-10, atol=1e-10)


def test_peeking_stores_nothing() -> None:
    model, h, cache = small(), inputs(6), KeyValueCache()
    model(h[:, :4], cache=cache)
    once = model(h[:, 4:], cache=cache.peek())[0]
    assert cache.get_seq_length() == 4
    torch.testing.assert_close(model(h[:, 4:], cache=cache)[0], once)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("layers", [0, 2])
def test_reading_some_positions_equals_reading_all(positions: str, layers: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Decoder(12, layers, 3, max_positions=20, positions=positions).double()
    h, read = inputs(), slice(0, None, 2)
    whole, states = model(h, output_hidden_states=True)
    some, few = model(h, read=read, output_hidden_states=True)
    torch.testing.assert_close(some, whole[:, ::2], rtol=1e-12, atol=1e-12)
    assert len(few) == len(states) == layers + 1
    for a, b in zip(few, states, strict=True):
        torch.testing.assert_close(a, b[:, ::2], rtol=1e-12, atol=1e-12)


def test_mapping_over_models_equals_running_them() -> None:
    q, k, v = (torch.randn(3, 2, 4, 5, 6, dtype=torch.float64) for _ in range(3))
    mapped = torch.func.vmap(attend)(q, k, v)
    torch.testing.assert_close(mapped, attend(q, k, v), rtol=1e-10, atol=1e-12)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[::2]
    mapped = torch.func.vmap(lambda *a: attend(*a, mask))(q[..., ::2, :], k, v)
    torch.testing.assert_close(mapped, attend(q, k, v)[..., ::2, :], rtol=1e-10, atol=1e-12)


def test_checkpointing_changes_no_gradient() -> None:
    model = small().train()
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model(inputs())[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_rotation_is_complex_multiplication() -> None:
    x, t = torch.randn(5, 6, dtype=torch.float64), torch.arange(5)
    turned = rotate(x, *rotary_angles(t, 6))
    for position in range(5):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            z = complex(x[position, i], x[position, i + 3]) * complex(math.cos(angle), math.sin(angle))
            assert turned[position, i].item() == pytest.approx(z.real, abs=1e-6)
            assert turned[position, i + 3].item() == pytest.approx(z.imag, abs=1e-6)


def test_sinusoids_are_those_of_the_formula() -> None:
    found = sinusoids(torch.arange(4), 5)
    for t in range(4):
        for i in range(5):
            angle = t / 10_000 ** (2 * (i // 2) / 5)
            assert found[t, i].item() == pytest.approx((math.cos if i % 2 else math.sin)(angle), abs=1e-6)


def test_initial_weights_have_the_stated_spread() -> None:
    model = Decoder(64, 4, 4, max_positions=50)
    model.reset_parameters(torch.Generator().manual_seed(0))
    assert model.blocks[0].mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[0].mlp.down.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.05)
    again = Decoder(64, 4, 4, max_positions=50)
    again.reset_parameters(torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="width 12 cannot be divided among 5"):
        Decoder(12, 1, 5, max_positions=4)
    with pytest.raises(ValueError, match="even size, got 3"):
        Decoder(12, 1, 4, max_positions=4, positions="rotary")
    with pytest.raises(ValueError, match="heads must be at least 1"):
        Decoder(12, 1, 0, max_positions=4)
    with pytest.raises(ValueError, match="layers must not be negative"):
        Decoder(12, -1, 1, max_positions=4)
    with pytest.raises(ValueError, match="7 positions, but the learned table has 4"):
        Decoder(12, 1, 1, max_positions=4).double()(inputs())
