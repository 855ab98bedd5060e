"""The delta rule over blocks is the token loop; what each rule can store is what its formula says."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gradatim.models.delta_rule import DeltaRule
from gradatim.models.memory_scan import MatrixState, block_kernel, last_state, read, solve_writes, step
from gradatim.models.self_reference import unit

WIDE = torch.float64


def layer(seed=0, **settings):
    found = DeltaRule(**{"dim": 12, "num_heads": 3, **settings})
    found.reset_parameters(torch.Generator().manual_seed(seed))
    return found.to(WIDE)


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


def by_hand(model, x):
    """The layer, one sample, one token and one head at a time, straight from its docstring."""
    d, heads = model.head_dim, model.num_heads
    outputs = torch.zeros_like(x)
    for b in range(len(x)):
        states = [torch.zeros(d, d, dtype=x.dtype) for _ in range(heads)]
        for t in range(x.shape[1]):
            mixed = torch.zeros(model.dim, dtype=x.dtype)
            if model.conv is None:
                mixed = x[b, t]
            else:
                for j in range(model.conv.shape[1]):
                    s = t - model.conv.shape[1] + 1 + j
                    if s >= 0:
                        mixed = mixed + model.conv[:, j] * x[b, s]
            q, k, v = (model.qkv.weight @ mixed).view(3, heads, d)
            beta, alpha = (model.rates.weight @ mixed + model.rates.bias).view(2, heads)
            row = []
            for h in range(heads):
                key, query = k[h] / k[h].norm(), q[h] / q[h].norm()
                a = torch.sigmoid(alpha[h]) if model.decay else 1.0
                rate = model.beta_max * torch.sigmoid(beta[h])
                if model.delta:
                    forget = a * torch.eye(d, dtype=x.dtype) - rate * torch.outer(key, key)
                    states[h] = states[h] @ forget + rate * torch.outer(v[h], key)
                else:
                    states[h] = a * states[h] + torch.outer(v[h], key)
                y = states[h] @ query
                row.append(y / (y.square().mean() + 1e-6).sqrt() * model.norm)
            outputs[b, t] = model.out.weight @ torch.cat(row)
    return outputs


@pytest.mark.parametrize("kind", ["delta", "linear_attention"])
@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("conv_size", [0, 3])
def test_blocks_are_the_formula(kind, decay, conv_size):
    model = layer(kind=kind, decay=decay, conv_size=conv_size, beta_max=2.0, chunk=4)
    if model.conv is not None:
        with torch.no_grad():
            model.conv.copy_(draw(*model.conv.shape, seed=7))
    x = draw(2, 10, 12)
    torch.testing.assert_close(model(x)[0], by_hand(model, x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_numbers_do_not_depend_on_the_block(chunk):
    x, weights = draw(2, 21, 12), draw(2, 21, 12, seed=3)
    found = []
    for size in (5, chunk):
        model = layer(chunk=size, decay=True, beta_max=2.0)
        y, state = model(x)
        gradients = torch.autograd.grad((y * weights).sum(), list(model.parameters()))
        found.append([y, state.lanes[0].matrix.value, *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_the_algebra_of_a_block_is_its_recurrence(momentum):
    kinds = 2 if momentum else 1
    keys, left = unit(draw(2, 9, 5)), draw(2, 9, kinds, 5, seed=2)
    right, queries = draw(2, 9, kinds, 4, seed=3), draw(2, 9, 5, seed=4)
    eta, log_decay = torch.sigmoid(draw(2, 9, seed=5)), F.logsigmoid(draw(2, 9, seed=6))
    start = MatrixState(draw(2, 4, 5, seed=8), draw(2, 4, 5, seed=9) if momentum else None)
    kernel = block_kernel(log_decay, momentum, two=kinds == 2)
    writes = solve_writes(start, kernel, keys, left, right, eta)
    before, after = (read(start, kernel, keys, writes, queries, after=late) for late in (False, True))
    state = start
    for t in range(9):
        torch.testing.assert_close(before[:, t], (state.value @ queries[:, t, :, None])[..., 0])
        state = step(state, log_decay[:, t].exp(), keys[:, t], left[:, t], right[:, t], eta[:, t], momentum)
        torch.testing.assert_close(after[:, t], (state.value @ queries[:, t, :, None])[..., 0])
    end = last_state(start, kernel, keys, writes)
    torch.testing.assert_close(end.value, state.value)
    if momentum:
        torch.testing.assert_close(end.velocity, state.velocity)


def test_gradients_of_the_algebra_are_those_of_finite_differences():
    def run(value, keys, right, eta, log_decay):
        kernel = block_kernel(log_decay)
        state = MatrixState(value)
        writes = solve_writes(state, kernel, keys, keys.unsqueeze(-2), right, eta)
        return read(state, kernel, keys, writes, keys), last_state(state, kernel, keys, writes).value

    given = (draw(1, 3, 3), draw(1, 4, 3), draw(1, 4, 1, 3), draw(1, 4).sigmoid(), F.logsigmoid(draw(1, 4)))
    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in given])


def test_strong_decay_overflows_nowhere():
    model = DeltaRule(8, decay=True, chunk=64).float()
    with torch.no_grad():
        model.rates.bias[1] = -80.0  # a = e^-80 per token, e^-5120 over the block
    x = torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, _ = model(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(y).all()
    assert torch.isfinite(gradient).all()


def test_a_rate_of_one_stores_and_a_rate_of_two_reflects():
    key, value, start = unit(draw(1, 4)), draw(1, 3, seed=2), draw(1, 3, 4, seed=3)
    one = step(MatrixState(start), torch.ones(1), key, key[:, None], -value[:, None], torch.ones(1))
    torch.testing.assert_close((one.value @ key[..., None])[..., 0], value)
    two = step(MatrixState(start), torch.ones(1), key, key[:, None], None, torch.full((1,), 2.0))
    torch.testing.assert_close(two.value @ key[..., None], -start @ key[..., None])


def test_a_split_sequence_and_absent_tokens_change_nothing():
    model = layer(decay=True, chunk=4)
    x = draw(3, 11, 12)
    whole, end = model(x)
    first, state = model(x[:, :6])
    second, split_end = model(x[:, 6:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(split_end.lanes[0].matrix.value, end.lanes[0].matrix.value)
    mask = torch.arange(11) < torch.tensor([4, 11, 7])[:, None]
    noisy = torch.where(mask[..., None], x, 1e3)
    y, state = model(noisy, mask=mask)
    for b, length in enumerate((4, 11, 7)):
        alone, last = model(x[b : b + 1, :length])
        torch.testing.assert_close(y[b : b + 1, :length], alone)
        torch.testing.assert_close(state.lanes[0].matrix.value[b], last.lanes[0].matrix.value[0])
        torch.testing.assert_close(state.conv[b], last.conv[0])
        assert state.tokens[b] == length


def test_half_precision_keeps_the_state_in_float32():
    model = layer().to(torch.bfloat16)
    y, state = model(draw(2, 9, 12).to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert state.lanes[0].matrix.value.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dim": 10, "num_heads": 3}, "multiple of num_heads"),
        ({"beta_max": 2.5}, "beta_max"),
        ({"kind": "hebb"}, "kind must be"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        layer(**settings)


def test_a_state_of_another_batch_is_refused():
    model = layer()
    with pytest.raises(ValueError, match="holds 3 samples, the input 2"):
        model(draw(2, 4, 12), model.initial_state(3))
