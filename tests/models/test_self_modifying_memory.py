"""Five memories that write to themselves: token by token, with one shared matrix, and over blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad
from torch.nn import functional as F

from gradatim.models.memory_scan import MatrixState
from gradatim.models.self_modifying_linear import stacked_steps
from gradatim.models.self_modifying_memory import SelfModifyingMemory
from gradatim.models.self_reference import (
    SelfRule,
    Written,
    output_layer,
    self_written,
    settle,
    unit,
    written,
)

WIDE = torch.float64


def memory(seed=0, dim=12, num_heads=2, dtype=WIDE, **rest):
    found = SelfModifyingMemory(dim, num_heads, **rest)
    found.reset_parameters(torch.Generator().manual_seed(seed))
    if found.conv is not None:
        with torch.no_grad():
            found.conv.add_(0.3 * draw(*found.conv.shape, seed=seed + 50).to(found.conv.dtype))
    return found.to(dtype)


def draw(*shape, seed=1, dtype=WIDE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE).to(dtype)


def results(model, x, method=None):
    """Output, end state, and gradients of a weighted sum with respect to everything."""
    model.method = method or model.method
    x = x.clone().requires_grad_()
    y, state = model(x)
    loss = (y * draw(*y.shape, seed=9, dtype=y.dtype)).sum()
    given = [p for _, p in sorted(model.named_parameters())]
    return [y, *(lane.matrix.value for lane in state.lanes), *torch.autograd.grad(loss, [x, *given])]


def assert_same(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * max(1.0, float(other.detach().abs().max()))


# -- the definition --------------------------------------------------------------------------------------


def square_error(matrix, key, target):
    return 0.5 * (matrix @ key - target).square().sum()


def still(rule):
    """The memories that are never written."""
    moves = {"k": rule.inner_keys, "v": rule.inner_values, "eta": rule.inner_rates, "alpha": rule.inner_rates}
    return [name for name, moving in moves.items() if not moving]


INNER = [
    {"inner_keys": False},
    {"inner_values": False},
    {"inner_rates": False},
    {"inner_queries": True},
    {"inner_keys": False, "inner_values": False, "inner_rates": False},
    {"inner_keys": False, "inner_queries": True, "momentum": 0.5},
]


def literal(model, x, chunks, rule):
    """One sample and one head of the linear memory, with the gradients taken by autograd from the loss
    itself.

    Every memory is a matrix of its own; nothing is shared, nothing is unrolled.
    """
    d = model.head_dim
    big, small = chunks  # of the memory that is read, of the others
    outputs = torch.zeros(1, x.shape[1], d, dtype=x.dtype)
    taps = model.conv.shape[1]
    padded = F.pad(x[0], (0, 0, taps - 1, 0))
    own_queries = model.rule.inner_queries
    names = ("k", "v", "eta", "alpha", *(["q"] if own_queries else []), "mem")
    sizes = [d, d, 1, 1, *([d] if own_queries else []), d]
    start = dict(zip(names, model.initial["matrices"][0].split(sizes), strict=True))
    velocity = {name: torch.zeros_like(m) for name, m in start.items()}
    now, anchor = dict(start), dict(start)
    for t in range(x.shape[1]):
        for name in names:
            if t % (big if name == "mem" else small) == 0:
                anchor[name] = start[name] if name in still(model.rule) else now[name]
        mixed = sum(padded[t + j] * model.conv[:, j] for j in range(taps))
        q = (anchor["q"] if own_queries else model.query.weight) @ mixed
        q = q / q.norm()
        k, v = anchor["k"] @ mixed, anchor["v"] @ mixed
        k = k / k.norm()
        v = v / v.norm() if rule.normalize_value else v
        eta = torch.sigmoid(anchor["eta"] @ mixed + model.rate_bias[0, 0])
        alpha = (
            torch.sigmoid(anchor["alpha"] @ mixed + model.rate_bias[0, 1]) if rule.decay else torch.ones(1)
        )
        outputs[0, t] = now["mem"] @ q
        for name in names:
            target = (anchor[name] @ v).detach()
            slope = grad(square_error)(anchor[name].detach(), k.detach(), target)
            velocity[name] = rule.momentum * velocity[name] - eta * slope
            forget = alpha * torch.eye(d, dtype=x.dtype)
            if rule.delta_gradient:
                forget = forget - eta * torch.outer(k, k)
            now[name] = now[name] @ forget + velocity[name]
    y = outputs / (outputs.square().mean(-1, keepdim=True) + 1e-6).sqrt() * model.norm
    return y @ model.out.weight.T


@pytest.mark.parametrize("chunks", [(1, 1), (4, 4), (8, 4), (4, 8), (8, 1), (1, 8)])
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"delta_gradient": False},
        {"decay": False},
        {"momentum": 0.5},
        {"momentum": 0.5, "delta_gradient": False},
        {"normalize_value": False},
        *INNER,
    ],
)
def test_every_form_is_the_definition(chunks, switches):
    model = memory(dim=5, num_heads=1, chunk_size=chunks, **switches)
    x = draw(1, 19, 5)
    expected = literal(model, x, chunks, model.rule)
    for method in ("chunked", "steps"):
        model.method = method
        torch.testing.assert_close(model(x)[0], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("switches", [{}, {"delta_gradient": False}, {"momentum": 0.5}, {"decay": False}])
def test_five_matrices_share_one(switches):
    model = memory(chunk_size=(1, 1), conv_size=0, **switches)
    x = draw(3, 20, 12)
    heads = x.unflatten(-1, (2, 6)).transpose(1, 2)
    queries = unit(model.query(x).unflatten(-1, (2, 6)).transpose(1, 2))
    initial = model.initial["matrices"]
    o, last = stacked_steps(heads, queries, initial, model.rate_bias, model.rule)
    y, state = model(x)
    torch.testing.assert_close(initial @ state.lanes[0].matrix.value, last, rtol=1e-9, atol=1e-9)
    o = o * (o.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    torch.testing.assert_close(y, model.out(o.transpose(1, 2).flatten(2)), rtol=1e-9, atol=1e-9)


def mlp_literal(model, x, chunks):
    """One sample, one head of the MLP memory; every gradient by autograd, every matrix formed."""
    initial = {name: p[0] for name, p in model.initial.items()}

    def at(weights, z, residual=True):
        out = weights[1] @ F.gelu(weights[0] @ z)
        return z + out if residual else out

    boxes = {
        "k": (initial["key_value_in"][0], initial["key_value_out"][0]),
        "v": (initial["key_value_in"][1], initial["key_value_out"][1]),
        "eta": (initial["rates_in"][0], initial["rates_out"][0]),
        "alpha": (initial["rates_in"][1], initial["rates_out"][1]),
        "mem": (initial["read_in"], initial["read_out"]),
    }
    if model.rule.inner_queries:
        boxes["q"] = (initial["query_in"], initial["query_out"])
    now, anchor, outputs = dict(boxes), dict(boxes), []
    big, small = chunks  # of the memory that is read, of the others
    for t in range(x.shape[1]):
        for name, weights in now.items():
            if t % (big if name == "mem" else small) == 0 and name not in still(model.rule):
                anchor[name] = weights
        z = x[0, t]
        k, v = at(anchor["k"], z), at(anchor["v"], z)
        k, v = k / k.norm(), v / v.norm()
        eta = torch.sigmoid(at(anchor["eta"], z, False) + model.rate_bias[0, 0])
        alpha = torch.sigmoid(at(anchor["alpha"], z, False) + model.rate_bias[0, 1])
        q = at(anchor["q"], z) if model.rule.inner_queries else model.query.weight @ z
        outputs.append(at(now["mem"], q / q.norm()))
        for name, old in anchor.items():
            residual = name not in ("eta", "alpha")
            goal = at(old, v, residual)
            slopes = grad(lambda w, g=goal, r=residual, key=k: 0.5 * (at(w, key, r) - g).square().sum())(old)
            inputs = (k, F.gelu(old[0] @ k))
            new = []
            for w, slope, seen in zip(now[name], slopes, inputs, strict=True):
                rate = eta / (1 + eta * seen.square().sum())
                new.append(alpha * w - rate * torch.outer(w @ seen, seen) - rate * slope)
            now[name] = tuple(new)
    o = torch.stack(outputs)[None]
    return (o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()) @ model.out.weight.T


@pytest.mark.parametrize("chunks", [(1, 1), (4, 4), (8, 4), (2, 4)])
@pytest.mark.parametrize("switches", [{}, *INNER[:5]])
def test_the_dual_form_is_the_mlp_definition(chunks, switches):
    model = memory(dim=5, num_heads=1, memory="mlp", chunk_size=chunks, conv_size=0, hidden=7, **switches)
    x = draw(1, 11, 5)
    expected = mlp_literal(model, x, chunks)
    for method in ("chunked", "steps"):
        model.method = method
        torch.testing.assert_close(model(x)[0], expected, rtol=1e-8, atol=1e-8)


# -- blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", [{}, {"delta_gradient": False}, {"momentum": 0.3}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_blocks_equal_steps_in_values_and_gradients(dtype, tolerance, switches):
    model = memory(dim=32, num_heads=2, dtype=dtype, **switches)
    x = draw(2, 70, 32, dtype=dtype)
    assert_same(results(model, x, "chunked"), results(model, x, "steps"), tolerance)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("chunks", [(8, 8), (16, 4), (4, 16)])
# Gradients at the chunk's start are not corrected inside it: rounding grows, in either form.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_chunks_equal_steps_in_values_and_gradients(kind, chunks, dtype, tolerance):
    model = memory(dim=16, num_heads=2, memory=kind, chunk_size=chunks, dtype=dtype)
    x = draw(2, 37, 16, dtype=dtype)
    assert_same(results(model, x, "chunked"), results(model, x, "steps"), tolerance)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("chunks", [(1, 1), (8, 4)])
@pytest.mark.parametrize("switches", INNER)
def test_switched_off_parts_in_values_and_gradients(kind, chunks, switches):
    model = memory(memory=kind, chunk_size=chunks, **switches)
    x = draw(2, 19, 12)
    assert_same(results(model, x, "chunked"), results(model, x, "steps"), 1e-10)


def test_a_memory_that_is_not_written_is_a_projection():
    """Keys of a still M_k do not depend on what came before: their initial matrix could be anyone's."""
    model = memory(dim=6, num_heads=1, conv_size=0, inner_keys=False, inner_values=False, inner_rates=False)
    x = draw(2, 9, 6)
    k, v, eta, alpha, _ = model.initial["matrices"][0].split([6, 6, 1, 1, 6])
    rate, kept = (torch.sigmoid(x @ m[0] + b) for m, b in zip((eta, alpha), model.rate_bias[0], strict=True))
    keys, values = unit(x @ k.T), unit(x @ v.T)
    phi = torch.eye(6, dtype=WIDE).expand(2, 6, 6)
    for t in range(9):
        a = kept[:, t, None, None] * torch.eye(6, dtype=WIDE)
        left = 2 * keys[:, t] - values[:, t]
        phi = phi @ (a - rate[:, t, None, None] * left[:, :, None] * keys[:, t, None, :])
    torch.testing.assert_close(model(x)[1].lanes[0].matrix.value[:, 0], phi)


@given(st.integers(1, 24), st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_sweeps_end_within_the_block(size, seed):
    d, rule = 4, SelfRule()
    x, initial = draw(1, 1, size, d, seed=seed), draw(1, 2 * d + 2, d, seed=seed + 1)
    layer = output_layer(x, initial, torch.tensor([[0.0, 4.0]], dtype=WIDE), rule)
    state = MatrixState(torch.eye(d, dtype=WIDE).expand(1, 1, d, d))
    z = self_written(state, x, *layer, rule, sweeps=True)
    state_t = state.value
    for t in range(size):
        one = written(
            x[:, :, t : t + 1] @ state_t.transpose(-2, -1), layer[0], layer[1][:, :, t : t + 1], rule, None
        )
        torch.testing.assert_close(z.keys[:, :, t : t + 1], one.keys, rtol=1e-8, atol=1e-8)
        k, v = one.keys, one.values
        a = one.log_decay.exp()[..., None] * torch.eye(d, dtype=WIDE)
        state_t = state_t @ (a - one.eta[..., None] * (2 * k - v).transpose(-2, -1) @ k)


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("unit_values", [True, False])
@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_sweeps_and_the_loop_without_a_graph_agree(delta, unit_values, decay, masked):
    batch, heads, size, d = 3, 2, 11, 5
    rule = SelfRule(decay, unit_values, delta)
    given = [
        torch.eye(d, dtype=WIDE) + 0.1 * draw(batch, heads, d, d),
        draw(batch, heads, size, d, seed=2),
        0.4 * draw(heads, 2 * d + 2, d, seed=3),
        torch.tensor([[0.0, 4.0]] * heads, dtype=WIDE),
    ]
    mask = (torch.arange(size) < torch.tensor([11, 4, 8])[:, None])[:, None] if masked else None
    found = []
    for sweeps in (True, False):
        value, x, initial, bias = (t.clone().requires_grad_() for t in given)
        layer = output_layer(x, initial, bias, rule)
        z = self_written(MatrixState(value), x, *layer, rule, mask, sweeps=sweeps)
        loss = sum((part * draw(*part.shape, seed=4 + i)).sum() for i, part in enumerate(z))
        found.append([*z, *torch.autograd.grad(loss, [value, x, initial, bias])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_loop_refuses_what_it_does_not_know():
    state, rule = MatrixState(torch.eye(3).expand(1, 1, 3, 3)), SelfRule(momentum=0.5)
    x = torch.ones(1, 1, 4, 3)
    layer = output_layer(x, torch.ones(1, 8, 3), torch.ones(1, 2), rule)
    with pytest.raises(ValueError, match="no momentum"):
        self_written(state, x, *layer, rule, sweeps=False)


def test_the_first_tokens_are_exact_after_as_many_sweeps():
    calls = []

    def sweep(z):  # token t needs token t - 1: the slowest chain there is
        calls.append(1)
        moved = torch.cat([torch.ones(1, 1, 1), z.keys[:, :-1] + 1], dim=1)
        return type(z)(moved, z.values, z.eta, z.log_decay)

    zero = torch.zeros(1, 6, 1)
    z, n = settle(sweep, Written(zero, zero, zero[..., 0], zero[..., 0]), 6)
    assert z.keys.flatten().tolist() == [1, 2, 3, 4, 5, 6]
    assert n == len(calls) == 6


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_outer_gradients_are_those_of_finite_differences(kind):
    model = memory(dim=4, num_heads=1, memory=kind, conv_size=2, hidden=3)
    names = [n for n, _ in model.named_parameters()]

    def run(*values):
        return functional_call(model, dict(zip(names, values[1:], strict=True)), (values[0],))[0]

    given = [draw(1, 3, 4), *(p.detach() for p in model.parameters())]
    # The fast mode compares random projections of the Jacobian.
    assert torch.autograd.gradcheck(run, [t.clone().requires_grad_() for t in given], fast_mode=True)


# -- state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("chunks", [(1, 1), (8, 4)])
@pytest.mark.parametrize("cut", [1, 4, 8, 13])
def test_a_split_sequence_is_the_whole_sequence(kind, chunks, cut):
    model = memory(memory=kind, chunk_size=chunks, momentum=0.3)
    x = draw(2, 21, 12)
    whole, end = model(x)
    first, state = model(x[:, :cut])
    second, last = model(x[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    for one, other in zip(last.tensors(), end.tensors(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("chunks", [(1, 1), (8, 4)])
@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_absent_tokens_leave_a_sample_as_it_is(kind, chunks, momentum):
    model = memory(memory=kind, chunk_size=chunks, momentum=momentum)
    x, lengths = draw(3, 13, 12), (5, 13, 8)
    mask = torch.arange(13) < torch.tensor(lengths)[:, None]
    y, state = model(torch.where(mask[..., None], x, 50.0), mask=mask)
    more, _ = model(draw(3, 6, 12, seed=4), state)  # samples now stand at different places of their chunks
    for b, length in enumerate(lengths):
        alone, last = model(x[b : b + 1, :length])
        torch.testing.assert_close(y[b : b + 1, :length], alone)
        for one, other in zip(state.lanes, last.lanes, strict=True):
            torch.testing.assert_close(one.matrix.value[b], other.matrix.value[0])
        torch.testing.assert_close(state.conv[b], last.conv[0])
        assert state.tokens[b] == length
        torch.testing.assert_close(more[b : b + 1], model(draw(3, 6, 12, seed=4)[b : b + 1], last)[0])


def test_a_sample_is_independent_of_its_batch():
    model = memory()
    x = draw(4, 15, 12)
    y, state = model(x)
    order = torch.tensor([2, 0])
    again, other = model(x[order])
    torch.testing.assert_close(again, y[order])
    for one, two in zip(other.tensors(), state.select(order).tensors(), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_frozen_memory_keeps_its_state(kind):
    model = memory(memory=kind, conv_size=0)
    _, state = model(draw(2, 9, 12))
    model.freeze()
    y, after = model(draw(2, 9, 12, seed=5), state)
    for one, other in zip(after.lanes, state.lanes, strict=True):
        assert torch.equal(one.matrix.value, other.matrix.value)
    turned = draw(2, 9, 12, seed=5).flip(1)
    torch.testing.assert_close(model(turned, state)[0], y.flip(1))  # order no longer matters
    model.freeze(False)
    assert not torch.equal(model(draw(2, 9, 12), state)[1].lanes[0].matrix.value, state.lanes[0].matrix.value)


def test_reading_after_the_write_is_reading_before_the_next_token():
    before, after = memory(conv_size=0), memory(conv_size=0, read="after")
    after.load_state_dict(before.state_dict())
    x = draw(1, 9, 12)
    _, state = before(x)
    late = after(x)[0][:, -1:]
    before.freeze()  # the same query once more, against the memory as token 9 left it
    torch.testing.assert_close(before(x[:, -1:], state)[0], late)


def test_half_precision_keeps_the_state_in_float32():
    model = memory(dtype=torch.bfloat16)
    y, state = model(draw(2, 9, 12, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert state.lanes[0].matrix.value.dtype == torch.float32
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


# -- stability -------------------------------------------------------------------------------------------


def test_literal_values_feed_back_and_unit_values_do_not():
    """Values larger than keys double what is stored at every write: the literal rule is lost within a
    page.
    """
    x = draw(1, 400, 12, dtype=torch.float32)
    stable, literal_rule = memory(dtype=torch.float32), memory(dtype=torch.float32, normalize_value=False)
    for model in (stable, literal_rule):
        with torch.no_grad():
            model.initial["matrices"][:, 6:12].mul_(8.0)  # M_v
    _, state = stable(x)
    assert state.lanes[0].matrix.value.abs().max() < 1e3
    with pytest.raises(RuntimeError, match=r"not finite at token \d+"):
        literal_rule(x)


def test_the_token_that_was_lost_is_named():
    x = draw(2, 12, 12)
    x[1, 7] = torch.inf
    for method in ("chunked", "steps"):
        with pytest.raises(RuntimeError, match="sample 1 is not finite at token 7;"):
            memory(conv_size=0, method=method)(x)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dim": 10, "num_heads": 3}, "multiple of num_heads"),
        ({"chunk_size": (0, 1)}, "chunk_size"),
        ({"chunk_size": (6, 4)}, "multiple of the other"),
        ({"memory": "conv"}, "memory must be one of"),
        ({"read": "never"}, "read must be one of"),
        ({"method": "magic"}, "method must be one of"),
        ({"momentum": 1.0}, "momentum"),
        ({"conv_size": -1}, "conv_size"),
    ],
)
def test_bad_settings_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        memory(**change)


def test_bad_input_is_refused():
    model = memory()
    with pytest.raises(ValueError, match="holds 3 samples, the input 2"):
        model(draw(2, 4, 12), model.initial_state(3))
    with pytest.raises(ValueError, match="must be 12 wide"):
        model(draw(2, 4, 11))
