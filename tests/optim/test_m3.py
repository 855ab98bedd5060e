"""M3 against Muon and AdamW where it must equal them, and against its printed algorithm."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradatim.optim import M3, matrix_groups, newton_schulz
from gradatim.optim.newton_schulz import CUBIC, newton_schulz_many


def seeded(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(make, shapes, steps=7, dtype=torch.float64):
    params = [nn.Parameter(seeded(*s, seed=i, dtype=dtype)) for i, s in enumerate(shapes)]
    optimizer = make(params)
    for t in range(steps):
        for i, p in enumerate(params):
            p.grad = seeded(*p.shape, seed=100 * t + i, dtype=dtype)
        optimizer.step()
    return [p.detach() for p in params]


def test_without_slow_memory_and_second_moment_it_is_muon():
    shapes = ((6, 6), (4, 4), (6, 6))

    def ours(params):
        return M3(params, lr=0.1, betas=(0.9, 0.999, 0.9), slow_weight=0.0, second_moment=False,
                  match_rms=None, weight_decay=0.1)  # fmt: skip

    def muon(params):
        return torch.optim.Muon(params, lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.1)

    for a, b in zip(*(run(make, shapes, dtype=torch.float32) for make in (ours, muon)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)  # products are in bfloat16


def test_rms_matching_is_muons_own_on_full_rank():
    """Converged Newton-Schulz makes ||O||_F = sqrt(min side): .2 sqrt(max side) is the same factor."""
    wide = newton_schulz(seeded(4, 9), 60, CUBIC)
    matched = 0.2 * 36**0.5 / wide.norm()
    assert float(matched) == pytest.approx(0.2 * 9**0.5, rel=1e-6)


def test_groups_that_are_no_matrices_take_adamw():
    def ours(params):
        return M3([{"params": params, "matrix": False}], lr=0.1, weight_decay=0.2, adam_betas=(0.8, 0.9))

    def adamw(params):
        return torch.optim.AdamW(params, lr=0.1, weight_decay=0.2, betas=(0.8, 0.9))

    shapes = ((5,), (3, 4), (2, 3, 2))
    for a, b in zip(*(run(make, shapes) for make in (ours, adamw)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("accumulate", ["sum", "ema"])
@pytest.mark.parametrize("match", [None, 0.2])
def test_steps_follow_the_algorithm(accumulate, match):
    b1, b2, b3, alpha, f, lr = 0.8, 0.9, 0.7, 0.5, 3, 0.01
    w = nn.Parameter(seeded(3, 5))
    optimizer = M3([w], lr, (b1, b2, b3), alpha, f, 4, accumulate, match, eps=1e-3, ns_dtype=None)
    expected = w.detach().clone()
    m1 = m2 = v = o2 = torch.zeros_like(expected)
    last = []
    for t in range(1, 11):
        g = w.grad = seeded(3, 5, seed=t)
        if t > 1 and (t - 1) % f == 0:
            total = sum(last[-f:])
            m2 = m2 + b3 * total if accumulate == "sum" else b3 * m2 + (1 - b3) * total / f
            o2 = newton_schulz(m2, 4)
        last.append(g.clone())
        if accumulate == "sum":
            m1, v = m1 + b1 * g, v + b2 * g**2
            root = v.sqrt()
        else:
            m1, v = b1 * m1 + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            root = (v / (1 - b2**t)).sqrt()
        update = (newton_schulz(m1, 4) + alpha * o2) / (root + 1e-3)
        if match:
            update = update * match * 15**0.5 / update.norm()
        expected = expected - lr * update
        optimizer.step()
        torch.testing.assert_close(w.detach(), expected, rtol=1e-11, atol=1e-11)


def test_the_slow_direction_waits_a_whole_period():
    w = nn.Parameter(torch.zeros(3, 3))
    optimizer = M3([w], slow_period=4)
    for t in range(5):
        w.grad = seeded(3, 3, seed=t, dtype=torch.float32)
        optimizer.step()
        assert bool(optimizer.state[w]["slow_direction"].any()) == (t == 4)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6))
def test_newton_schulz_finds_the_polar_factor(rows, columns, seed):
    x = seeded(rows, columns, seed=seed)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    if s.min() / s.max() > 1e-3:
        torch.testing.assert_close(newton_schulz(x, 40, CUBIC), u @ v, rtol=1e-8, atol=1e-8)
        values = torch.linalg.svdvals(newton_schulz(x, 12))
        assert 0.6 < values.min() <= values.max() < 1.3


def test_many_shapes_at_once_equal_one_by_one():
    shapes = ((3, 5), (5, 3), (4, 4), (3, 5), (2, 7))
    matrices = [seeded(*s, seed=i) for i, s in enumerate(shapes)]
    for many, x in zip(newton_schulz_many(matrices), matrices, strict=True):
        assert many.shape == x.shape
        torch.testing.assert_close(many, newton_schulz(x), rtol=1e-12, atol=1e-12)
    batched = newton_schulz(torch.stack([matrices[0], matrices[3]]))
    torch.testing.assert_close(batched[1], newton_schulz(matrices[3]), rtol=1e-12, atol=1e-12)
    assert not newton_schulz(torch.zeros(2, 3)).any()


def test_updates_have_the_promised_size_and_literal_ones_do_not():
    def moved(scale, **options):
        w = nn.Parameter(torch.zeros(8, 4, dtype=torch.float64))
        w.grad = scale * seeded(8, 4)
        M3([w], lr=1.0, ns_dtype=None, **options).step()
        return w.detach().square().mean().sqrt().item()

    assert moved(1.0) == pytest.approx(0.2, rel=1e-9)
    assert moved(1e-4) == pytest.approx(0.2, rel=1e-9)
    literal = {"accumulate": "sum", "match_rms": None, "eps": 0.0}
    # A gradient a thousand times smaller moves the printed rule a thousand times as far.
    assert moved(1e-3, **literal) / moved(1.0, **literal) == pytest.approx(1e3, rel=1e-6)


def test_models_are_sorted_into_matrices_and_the_rest():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, 4)
            self.body = nn.Linear(4, 4)
            self.fixed = nn.Linear(4, 4).requires_grad_(False)
            self.lm_head = nn.Linear(4, 7, bias=False)

    net = Net()
    matrices, rest = matrix_groups(net, weight_decay=0.1)
    assert [p is net.body.weight for p in matrices["params"]] == [True]
    assert {id(p) for p in rest["params"]} == {
        id(net.table.weight),
        id(net.body.bias),
        id(net.lm_head.weight),
    }
    assert M3([matrices, rest]).param_groups[1]["weight_decay"] == 0.1
    tied = Net()
    tied.body.weight = tied.table.weight
    assert all(g["matrix"] is False for g in matrix_groups(tied))


def test_convolutions_move_as_matrices():
    kernel = nn.Parameter(seeded(4, 3, 2, 2))
    flat = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad, flat.grad = seeded(4, 3, 2, 2, seed=9), seeded(4, 3, 2, 2, seed=9).flatten(1)
    M3([kernel], ns_dtype=None).step()
    M3([flat], ns_dtype=None).step()
    torch.testing.assert_close(kernel.detach().flatten(1), flat.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slow_period": 0}, "slow_period must be at least 1, got 0"),
        ({"betas": (0.9, 1.0, 0.9)}, r"betas\[1\] must lie in \[0, 1\), got 1.0"),
        ({"match_rms": 0.0}, "match_rms must be above 0"),
        ({"slow_weight": -0.1}, "slow_weight must be at least 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        M3([nn.Parameter(torch.ones(2, 2))], **options)


def test_vectors_among_matrices_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\) has no matrix form.*matrix=False"):
        M3(nn.Linear(3, 3).parameters())


def test_resume_is_bit_exact_between_two_slow_steps():
    def make():
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        for i, p in enumerate(net.parameters()):
            p.data = seeded(*p.shape, seed=i, dtype=torch.float32)
        return net, M3(matrix_groups(net), lr=0.1, slow_period=4)

    x = seeded(16, 4, dtype=torch.float32)

    def train(net, optimizer, steps):
        def closure():
            optimizer.zero_grad()
            loss = (net(x) - 1).square().mean()
            loss.backward()
            return loss

        return [float(optimizer.step(closure).detach()) for _ in range(steps)]

    net, optimizer = make()
    torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    losses = train(net, optimizer, 6)
    assert losses[-1] < losses[0]
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    whole = train(net, optimizer, 7)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, other = make()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert train(again, other, 7) == whole


def test_large_parameters_move_alone_as_they_would_together(monkeypatch):
    shapes = ((3, 5), (2, 2), (5, 3), (4, 4))
    settings = {"slow_period": 2, "weight_decay": 0.1}
    together = run(lambda p: M3(p, **settings), shapes)
    monkeypatch.setattr("gradatim.optim.m3.LARGE", 15)
    for a, b in zip(run(lambda p: M3(p, **settings), shapes), together, strict=True):
        assert torch.equal(a, b)
