"""The continuum memory against plain chains, gradient accumulation, causality and frozen networks."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradatim.models import ContinuumMemory, LevelClocks, LevelWriter, wrap_mlps
from gradatim.models.continuum_memory import MemoryMLP
from gradatim.models.level_clocks import ContinuumState
from gradatim.optim import MultiFrequency


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def memory(periods=(1, 2, 4), dtype=torch.float64, **options):
    return ContinuumMemory(4, periods, 6, generator=seeded(), **options).to(dtype)


def batch(t, *shape, dtype=torch.float64):
    return torch.randn(*(shape or (5, 4)), generator=seeded(100 + t), dtype=dtype)


def error(y, t):
    return (y - batch(1000 + t, *y.shape, dtype=y.dtype)).square().sum()


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_all_periods_one_is_the_plain_chain_under_sgd_bit_for_bit():
    ours = memory((1, 1, 1), dtype=torch.float32, lr=0.01)
    chain = nn.Sequential(*copy.deepcopy(list(ours.levels)))
    sgd = torch.optim.SGD(chain.parameters(), lr=0.01)
    for t in range(5):
        x = batch(t, dtype=torch.float32)
        assert torch.equal(ours(x), chain(x))
        ours.update(error(ours(x), t))
        sgd.zero_grad()
        error(chain(x), t).backward()
        sgd.step()
    assert torch.equal(flat(ours), flat(chain))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("deferred", [False, True])
def test_a_chunk_is_gradient_accumulation(reduction, deferred):
    ours = memory((1, 4, 2), lr=(0.0, 0.01, 0.02), reduction=reduction, deferred=deferred)
    start = copy.deepcopy(ours)
    for t in range(3):
        ours.update(error(ours(batch(t)), t))
    assert torch.equal(flat(ours.levels[1]), flat(start.levels[1]))
    ours.update(error(ours(batch(3)), 3))
    twin = copy.deepcopy(start)
    moved = {1: 0.01 / (4 if reduction == "mean" else 1), 2: 0.02 / (2 if reduction == "mean" else 1)}
    sums = dict.fromkeys(moved, 0)
    for t in range(4):
        gradients = torch.autograd.grad(error(twin(batch(t)), t), [*twin.parameters()])
        parts = [torch.cat([g.flatten() for g in gradients[i : i + 2]]) for i in (0, 2, 4)]
        for i in moved:
            sums[i] = sums[i] + parts[i]
        if t == 1:  # the third level is written after two steps, and computes on from there
            done = 0
            for p in twin.levels[2].parameters():
                p.data -= moved[2] * sums[2][done : done + p.numel()].view_as(p)
                done += p.numel()
            sums[2] = 0
    torch.testing.assert_close(
        flat(ours.levels[1]), flat(start.levels[1]) - moved[1] * sums[1], rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        flat(ours.levels[2]), flat(twin.levels[2]) - moved[2] * sums[2], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kind", ["sequential", "nested", "independent"])
def test_states_places_and_optimizers_agree(kind):
    place = memory(kind=kind, lr=0.01)
    functional, outer = copy.deepcopy(place), copy.deepcopy(place)
    state = functional.init_state()
    optimizer = MultiFrequency(lambda g: torch.optim.SGD(g, lr=0.0), outer.groups()[:3])
    for t in range(7):
        x = batch(t)
        torch.testing.assert_close(place(x), functional(x, state), rtol=1e-12, atol=1e-12)
        place.update(error(place(x), t))
        state = functional.update(error(functional(x, state), t), state)
        optimizer.zero_grad()
        error(outer(x), t).backward()
        optimizer.step()
    if kind != "nested":
        torch.testing.assert_close(flat(place), flat(outer), rtol=1e-12, atol=1e-12)
    else:
        assert not torch.equal(flat(place), flat(outer))
    place.finish("flush")
    values = torch.cat([v.detach().flatten() for level in state.fast for v in level.values()])
    assert not torch.equal(flat(place.levels), values)  # two steps were pending


def test_nested_levels_return_to_a_start_that_learns():
    ours = memory((1, 2), kind="nested", lr=0.1, meta_rate=0.25)
    begin = flat(ours.levels[0])
    ours.update(error(ours(batch(0)), 0))
    gradient = torch.autograd.grad(error(ours(batch(1)), 1), [*ours.levels[0].parameters()])
    learned = flat(ours.levels[0]) - 0.1 * torch.cat([g.flatten() for g in gradient])
    ours.update(error(ours(batch(1)), 1))
    torch.testing.assert_close(flat(ours.levels[0]), begin + 0.25 * (learned - begin), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_limits_of_the_nested_kind(rate):
    nested = memory((1, 2, 4), kind="nested", lr=0.01, meta_rate=rate)
    plain = memory((1, 2, 4), lr=0.01)
    begin = flat(nested.levels[0])
    for t in range(4):
        for m in (nested, plain):
            m.update(error(m(batch(t)), t))
    if rate:
        torch.testing.assert_close(flat(nested), flat(plain), rtol=1e-14, atol=1e-14)
    else:
        assert torch.equal(flat(nested.levels[0]), begin)
        assert not torch.equal(flat(nested.levels[2]), flat(plain.levels[2]))


def square(y, where, t=7):
    target = batch(t, 3, 12, 4)[:, where]
    return (y - target).square().sum()


@pytest.mark.parametrize("kind", ["sequential", "nested", "independent"])
def test_streams_are_causal_and_samples_independent(kind):
    ours = memory((2, 4), kind=kind, lr=0.02)
    x = batch(0, 3, 12, 4)
    y, _ = ours.stream(x, square)
    changed = x.clone()
    changed[:, 7:] += 1
    again, _ = ours.stream(changed, square)
    torch.testing.assert_close(again[:, :7], y[:, :7], rtol=0, atol=1e-14)
    assert not torch.allclose(again[:, 8:], y[:, 8:])
    alone, _ = ours.stream(x[1:2], lambda y, where: (y - batch(7, 3, 12, 4)[1:2, where]).square().sum())
    torch.testing.assert_close(alone, y[1:2], rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 11), st.booleans())
def test_a_stream_may_be_cut_anywhere(cut, save):
    ours = memory((2, 4), lr=0.02)
    x = batch(0, 3, 12, 4)
    y, end = ours.stream(x, square)
    first, state = ours.stream(x[:, :cut], square, partial="carry")
    if save:
        state = ContinuumState.from_state_dict(state.state_dict())
        state = state.detach()
    second, last = ours.stream(
        x[:, cut:], lambda y, w: square(y, slice(w.start + cut, w.stop + cut)), state, partial="carry"
    )
    torch.testing.assert_close(torch.cat([first, second], 1), y, rtol=1e-12, atol=1e-12)
    assert last.clock == end.clock == 12
    for a, b in zip(last.fast, end.fast, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("writes", ["stopgrad", "through"])
def test_outer_gradients_reach_initial_states(writes):
    ours = memory((1, 2), lr=0.05, writes=writes)
    x = batch(0, 1, 5, 4)

    def outer():
        y, _ = ours.stream(x, lambda y, w: (y - x[:, w].roll(1, -1)).square().sum(), partial="carry")
        return (y - batch(3, 1, 5, 4)).square().sum()

    gradients = torch.autograd.grad(outer(), [*ours.parameters()])
    for level, p, gradient in zip((0, 0, 1, 1), ours.parameters(), gradients, strict=True):
        index, h = (0, 1), 1e-6
        with torch.no_grad():
            p[index] += h
        up = float(outer().detach())
        with torch.no_grad():
            p[index] -= 2 * h
        down = float(outer().detach())
        with torch.no_grad():
            p[index] += h
        numerical = (up - down) / (2 * h)
        exact = gradient[index].item() == pytest.approx(numerical, rel=1e-5)
        assert gradient[index] != 0
        assert exact == (writes == "through"), level


def test_truncation_keeps_values_and_the_way_to_the_initial_state():
    ours = memory((1, 2), lr=0.05, writes="through")
    x = batch(0, 2, 4, 4)
    _, state = ours.stream(x, lambda y, w: y.square().sum())
    cut = ours.truncate(state)
    for a, b in zip(state.fast, cut.fast, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-15, atol=0)
    loss = ours(x, cut).square().sum()
    per_sample = torch.autograd.grad(loss, list(cut.fast[0].values()), retain_graph=True)
    reached = torch.autograd.grad(loss, list(ours.levels[0].parameters()))
    for a, b in zip(per_sample, reached, strict=True):
        torch.testing.assert_close(a.sum(0), b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("deferred", [False, True])
def test_clock_and_sums_survive_a_save_in_place(deferred):
    def fresh():
        return memory((1, 2, 4), kind="nested", lr=0.02, deferred=deferred)

    whole = fresh()
    for t in range(9):
        whole.update(error(whole(batch(t)), t))
    first = fresh()
    for t in range(3):
        first.update(error(first(batch(t)), t))
    second = fresh()
    saved = first.writer.state_dict()
    second.load_state_dict(first.state_dict())
    second.writer.load_state_dict(saved)
    for t in range(3, 9):
        second.update(error(second(batch(t)), t))
    torch.testing.assert_close(flat(second), flat(whole), rtol=1e-12, atol=1e-12)
    assert second.writer.clock == 9


def test_reset_freeze_and_partial_chunks():
    ours = memory((1, 4), lr=0.02)
    begin = flat(ours)
    ours.freeze()
    ours.update(error(ours(batch(0)), 0))
    assert torch.equal(flat(ours), begin)
    ours.freeze(False)
    slow = flat(ours.levels[1])
    ours.update(error(ours(batch(0)), 0))
    ours.finish("drop")
    assert torch.equal(flat(ours.levels[1]), slow)
    ours.update(error(ours(batch(0)), 0))
    ours.finish("flush")
    assert not torch.equal(flat(ours.levels[1]), slow)
    moved = flat(ours.levels[0])
    ours.reset(1)
    assert torch.equal(flat(ours.levels[1]), slow)
    assert torch.equal(flat(ours.levels[0]), moved)
    ours.reset()
    assert torch.equal(flat(ours), begin)


def test_rate_matched_groups_move_as_far_on_a_constant_gradient():
    for reduction in ("sum", "mean"):
        cms, matched = (memory((1, 2, 4), lr=0.1, reduction=reduction) for _ in range(2))
        optimizers = [
            MultiFrequency(lambda g: torch.optim.SGD(g, lr=0.0), m.groups(rate_matched=m is matched))
            for m in (cms, matched)
        ]
        for _ in range(8):
            for m, optimizer in zip((cms, matched), optimizers, strict=True):
                for p in m.parameters():
                    p.grad = torch.ones_like(p)
                optimizer.step()
        torch.testing.assert_close(flat(cms), flat(matched), rtol=1e-12, atol=1e-12)
        assert [g["period"] for g in matched.groups(rate_matched=True)] == [1, 1, 1]


def test_blocks_of_a_trained_network_stay_as_they_are_without_a_rate():
    blocks = [nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 4)).double() for _ in range(2)]
    ours = ContinuumMemory.from_mlp_blocks(blocks, lr=0.0)
    x = batch(0)
    for t in range(9):
        ours.update(error(ours(batch(t)), t))
    torch.testing.assert_close(ours(x), blocks[1](blocks[0](x)), rtol=0, atol=0)
    assert ours.clocks.periods == (1, 8)
    assert ours.levels[0] is not blocks[0]


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
                num_attention_heads=2, max_position_embeddings=32,
            )
        )  # fmt: skip


@pytest.mark.parametrize("placement", ["layers", "stacked"])
@pytest.mark.parametrize("deferred", [False, True])
def test_a_pretrained_models_mlps_become_levels(placement, deferred):
    model, reference = llama(), llama()
    writer = wrap_mlps(model, (1, 2), placement=placement, lr=0.1, deferred=deferred)
    ids = torch.randint(17, (2, 8), generator=seeded())
    assert torch.equal(model(ids).logits, reference(ids).logits)
    before = model(ids, labels=ids).loss.item()
    slow = [p.detach().clone() for p in writer.parameters()[1].values()]
    attention = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    for t in range(8):
        writer.update(model(ids, labels=ids).loss)
        if t == 0:
            after = writer.parameters()[1].values()
            assert all(torch.equal(a, b) for a, b in zip(slow, after, strict=True))
    after = writer.parameters()[1].values()
    assert not all(torch.equal(a, b) for a, b in zip(slow, after, strict=True))
    assert model(ids, labels=ids).loss.item() < before
    assert torch.equal(attention, model.model.layers[0].self_attn.q_proj.weight)
    assert all(p.grad is None for p in model.parameters())
    writer.reset()
    assert torch.equal(model(ids).logits, reference(ids).logits)


def test_named_mlps_and_other_architectures():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=17, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    model.eval()
    ids = torch.randint(17, (2, 8), generator=seeded())
    logits = model(ids).logits
    writer = wrap_mlps(model, (1, 2), placement="stacked", mlps=["transformer.h.1.mlp"])
    torch.testing.assert_close(model(ids).logits, logits)
    assert [len(level) for level in writer.parameters()] == [4, 2]
    with pytest.raises(ValueError, match=r"no module 'transformer\.h\.9\.mlp'"):
        wrap_mlps(model, mlps=["transformer.h.9.mlp"])
    with pytest.raises(ValueError, match="3 levels need as many MLPs, the network has 2"):
        wrap_mlps(model, (1, 2, 4))
    with pytest.raises(ValueError, match="no MLP found"):
        wrap_mlps(nn.Linear(2, 2))


def test_bfloat16_and_shapes():
    ours = ContinuumMemory(4, (1, 2), 6, generator=seeded()).bfloat16()
    y = ours(torch.ones(2, 3, 4, dtype=torch.bfloat16))
    ours.update(y.float().square().sum())
    assert y.shape == (2, 3, 4)
    assert ours(torch.ones(4, dtype=torch.bfloat16)).isfinite().all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ContinuumMemory(4, (0, 2))
    with pytest.raises(ValueError, match="2 does not divide 3"):
        ContinuumMemory(4, (1, 2, 3), kind="nested")
    with pytest.raises(ValueError, match="activation must be one of"):
        ContinuumMemory(4, activation="elu")
    ours = memory((1, 8), lr=0.01)
    x = batch(0, 2, 4, 4)
    with pytest.raises(ValueError, match="8 steps does not end within 4 positions"):
        ours.stream(x, lambda y, w: y.square().sum())
    with pytest.raises(ValueError, match="the state belongs to 3 samples"):
        ours(x, ours.init_state(3))
    with pytest.raises(ValueError, match="run over the end of a chunk of level 0"):
        ours.update(error(ours(batch(0)), 0), steps=2)
    with pytest.raises(ValueError, match="2 levels need as many periods"):
        LevelWriter([MemoryMLP(2, 2), MemoryMLP(2, 2)], LevelClocks.of((1,), 0.1))
    with pytest.raises(ValueError, match="cannot be deferred"):
        ContinuumMemory.from_mlp_blocks([nn.Linear(4, 4), nn.LayerNorm(4)], deferred=True)
    with pytest.raises(RuntimeError, match="level 0 at step 1: the written memory"):
        ours.update(error(ours(batch(0) * float("nan")), 0))
