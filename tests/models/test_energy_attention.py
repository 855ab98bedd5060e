"""The two streams of the energy transformer: equal to one dense masked attention, and without leakage."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradatim.models.energy_body import EnergyBody
from gradatim.models.energy_config import STEP_EMBEDDINGS, EnergyTransformerConfig
from gradatim.models.energy_transformer import EnergyTransformerForCausalLM

V, D, T, H = 11, 16, 6, 2


def make(step_embedding: str = "none", layers: int = 2, **changes: object) -> EnergyTransformerForCausalLM:
    config = EnergyTransformerConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=layers, num_attention_heads=H,
        max_position_embeddings=16, step_size=5.0, step_embedding=step_embedding, **changes,
    )  # fmt: skip
    model = EnergyTransformerForCausalLM(config, seed=0).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms, gates and what starts at zero take part in what is compared.
            if "norm" in name or "modulation" in name or "energy_head" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def drawn(batch: int = 2, candidates: int = 3, time: int = T) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(0, V, (batch, time), generator=g)
    return ids, torch.randn(batch, candidates, time, D, generator=g, dtype=torch.float64)


def energies(body: EnergyBody, ids: Tensor, e: Tensor, step: int = 1) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    visible = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
    known = body.context(body.embed_tokens(ids), positions, visible, step=step)
    return body.energies(e, known, positions, visible, step=step)


def dense(body: EnergyBody, ids: Tensor, e: Tensor, step: int = 1) -> Tensor:
    """Energies of one candidate [batch, time, D] from one sequence of context and predictions, 2T x 2T."""
    kind, time = body.config.step_embedding, ids.shape[1]
    h = torch.cat([body.embed_tokens(ids), e], dim=1)
    prefix = kind == "prefix"
    if kind == "prediction":
        h = torch.cat([h[:, :time], h[:, time:] + body.embed_steps.weight[step]], dim=1)
    positions = torch.cat([torch.arange(time), torch.arange(1, time + 1)]) + prefix
    allowed = torch.zeros(2 * time, 2 * time, dtype=torch.bool)
    for r in range(time):
        allowed[r, : r + 1] = True
        allowed[time + r, : r + 1] = True
        allowed[time + r, time + r] = True
    if prefix:
        h = torch.cat([body.embed_steps.weight[step].expand(len(h), 1, -1), h], dim=1)
        positions = torch.cat([torch.tensor([0]), positions])
        allowed = F.pad(allowed, (1, 0, 1, 0), value=True)
        allowed[0, 1:] = False
    angles = positions[:, None] * body.config.rope_theta ** (-torch.arange(0, D // H, 2).double() / (D // H))
    turn = torch.polar(torch.ones_like(angles), angles)  # complex rotations

    def turned(x: Tensor) -> Tensor:
        half = D // H // 2
        z = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat([z.real, z.imag], dim=-1)

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + body.config.rms_norm_eps).sqrt() * weight

    c = F.silu(body.embed_steps.weight[step]) if kind.startswith("adaln") else None
    for layer in body.layers:
        zero = torch.zeros(D, dtype=h.dtype)
        parts = [zero, zero, zero, zero, zero, zero]
        gate = 1.0
        if c is not None:
            parts = list((layer.modulation.weight @ c + layer.modulation.bias).chunk(6))
            gate = 0.0 if kind == "adaln_zero" else 1.0
        x = rms(h, layer.input_layernorm.weight) * (1 + parts[1]) + parts[0]
        a = layer.self_attn
        q, k, v = (
            (x @ p.weight.T).unflatten(-1, (H, -1)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj)
        )
        scores = turned(q) @ turned(k).transpose(-1, -2) / math.sqrt(D // H)
        mixed = scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v
        free = gate + parts[2] if c is not None else 1.0
        h = h + (mixed.transpose(1, 2).flatten(2) @ a.o_proj.weight.T) * free
        x = rms(h, layer.post_attention_layernorm.weight) * (1 + parts[4]) + parts[3]
        m = layer.mlp
        added = (F.silu(x @ m.gate_proj.weight.T) * (x @ m.up_proj.weight.T)) @ m.down_proj.weight.T
        h = h + added * (gate + parts[5] if c is not None else 1.0)
    h = rms(h, body.norm.weight)
    if c is not None:
        shift, scale = (body.final_modulation.weight @ c + body.final_modulation.bias).chunk(2)
        h = h * (1 + scale) + shift
    return (h @ body.energy_head.weight[0])[:, -time:]


@pytest.mark.parametrize("kind", STEP_EMBEDDINGS)
def test_two_streams_equal_one_dense_masked_attention(kind: str) -> None:
    body = make(kind).body
    ids, e = drawn()
    found = energies(body, ids, e)
    for candidate in range(e.shape[1]):
        torch.testing.assert_close(
            found[:, candidate], dense(body, ids, e[:, candidate]), rtol=1e-10, atol=1e-10
        )
    # Without a step embedding there is one landscape, with one there are several.
    other = energies(body, ids, e, step=0)
    assert torch.equal(found, other) == (kind == "none")


@pytest.mark.parametrize("kind", ["none", "prefix", "adaln"])
def test_every_position_equals_a_run_on_its_prefix(kind: str) -> None:
    body = make(kind).body
    ids, e = drawn()
    found = energies(body, ids, e)
    for r in range(T):
        alone = energies(body, ids[:, : r + 1], e[:, :, : r + 1])
        torch.testing.assert_close(found[..., r], alone[..., r], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["none", "prefix"])
def test_no_energy_depends_on_later_tokens_or_other_predictions(kind: str) -> None:
    body = make(kind).body
    ids, e = drawn(candidates=2)
    positions = torch.arange(T).expand(2, -1)
    visible = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
    c = body.embed_tokens(ids).detach().requires_grad_()
    e.requires_grad_()
    known = body.context(c, positions, visible, step=0)
    found = body.energies(e, known, positions, visible, step=0)
    for r in range(T):
        to_c, to_e = torch.autograd.grad(found[0, 0, r], (c, e), retain_graph=True)
        assert bool((to_c[0, r + 1 :] == 0).all()), "a later token"
        assert bool((to_c[1] == 0).all()), "another sequence"
        assert bool((to_c[0, : r + 1].abs().amax(-1) > 0).all())
        outside = to_e.clone()
        outside[0, 0, r] = 0
        assert bool((outside == 0).all()), "another prediction or candidate"
        assert float(to_e[0, 0, r].abs().max()) > 0


def test_changing_a_later_token_or_another_prediction_changes_nothing_at_all() -> None:
    body = make("none").body
    ids, e = drawn(candidates=1)
    found = energies(body, ids, e)
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % V
    assert torch.equal(energies(body, changed, e)[..., :4], found[..., :4])
    assert bool((energies(body, changed, e)[..., 4:] != found[..., 4:]).all())
    moved = e.clone()
    moved[:, :, 2] += 1
    after = energies(body, ids, moved)
    assert torch.equal(after[..., [0, 1, 3, 4, 5]], found[..., [0, 1, 3, 4, 5]])
    assert bool((after[..., 2] != found[..., 2]).all())


def test_one_token_one_prediction() -> None:
    body = make("none").body
    ids, e = drawn(batch=1, candidates=1, time=1)
    torch.testing.assert_close(energies(body, ids, e)[:, 0], dense(body, ids, e[:, 0]))


def test_adaln_zero_starts_without_energy_and_still_learns() -> None:
    config = EnergyTransformerConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=H, max_position_embeddings=16,
        step_size=5.0, step_embedding="adaln_zero",
    )  # fmt: skip
    model = EnergyTransformerForCausalLM(config, seed=0)
    ids, _ = drawn()
    out = model.eval()(ids)
    assert float(out.energies.detach().abs().max()) == 0
    model.train()(ids, labels=ids).loss.backward()
    assert float(model.body.energy_head.weight.grad.abs().max()) > 0
