"""Deep momentum: its inner gradient against autograd, its limits, its memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradatim.optim import DeepMomentumSGD
from gradatim.optim.deep_momentum import first_weights, memory_gradient, row_directions


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("objective", ["regression", "dot"])
def test_inner_gradients_equal_autograd(objective):
    a, b, u = seeded(5, 3).requires_grad_(), seeded(3, 5, seed=1).requires_grad_(), seeded(4, 3, seed=2)
    target = row_directions(u)
    answer = u + torch.tanh(u @ a.mT) @ b.mT
    if objective == "dot":
        loss = -(answer * target).sum(1).mean()
    else:
        loss = 0.5 * (answer - target).square().sum(1).mean()
    expected = torch.autograd.grad(loss, (a, b))
    found = memory_gradient(a.detach(), b.detach(), u, target, objective)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_steps_follow_the_formula(normalize):
    w = nn.Parameter(seeded(4, 3, seed=5))
    optimizer = DeepMomentumSGD([w], lr=0.1, hidden=5, memory_lr=0.2, momentum=0.7, normalize_key=normalize)
    start = a = first_weights(3, 5, 0).double()
    b, expected = torch.zeros(3, 5, dtype=torch.float64), w.detach().clone()
    for t in range(4):
        g = w.grad = seeded(4, 3, seed=10 + t)
        u = 2 * g / g.norm() if normalize else g
        to_a, to_b = memory_gradient(a, b, u, row_directions(u), "regression")
        a, b = start + 0.7 * (a - start) - 0.2 * to_a, 0.7 * b - 0.2 * to_b
        expected = expected - 0.1 * (u + torch.tanh(u @ a.mT) @ b.mT)
        optimizer.step()
        torch.testing.assert_close(w.detach(), expected, rtol=1e-6, atol=1e-6)


def test_without_learning_it_is_gradient_descent():
    shapes = ((4, 3), (5,), (2, 3, 2, 2))
    ours, theirs = ([nn.Parameter(seeded(*s)) for s in shapes] for _ in range(2))
    first = DeepMomentumSGD(ours, lr=0.1, memory_lr=0.0, normalize_key=False)
    second = torch.optim.SGD(theirs, lr=0.1)
    for t in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad, q.grad = (seeded(*p.shape, seed=t) for _ in range(2))
        first.step()
        second.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_the_memory_learns_its_target_and_forgets_it():
    u = seeded(6, 3) * torch.tensor([3.0, 1, 1, 0.3, 0.1, 0.05]).double()[:, None]
    w = nn.Parameter(torch.zeros(6, 3, dtype=torch.float64))
    optimizer = DeepMomentumSGD([w], lr=1.0, memory_lr=0.05, momentum=1.0, normalize_key=False)

    def step():
        before = w.detach().clone()
        w.grad = u.clone()
        optimizer.step()
        return before - w.detach()

    error = [(step() - row_directions(u)).norm().item() for _ in range(1000)]
    assert error[-1] < 0.35 * error[0]
    optimizer.param_groups[0].update(momentum=0.0, memory_lr=0.0)
    torch.testing.assert_close(step(), u)


@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_normalised_keys_make_steps_of_the_gradients_direction_alone(size):
    def moved(factor):
        w = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
        optimizer = DeepMomentumSGD([w], lr=0.1)
        for t in range(3):
            w.grad = factor * seeded(4, 3, seed=t)
            optimizer.step()
        return w.detach()

    torch.testing.assert_close(moved(size), moved(1.0), rtol=1e-9, atol=1e-12)


def test_orthogonal_output_has_singular_values_near_one():
    w = nn.Parameter(torch.zeros(6, 3, dtype=torch.float64))
    optimizer = DeepMomentumSGD([w], lr=1.0, output="orthogonal")
    w.grad = seeded(6, 3)
    optimizer.step()
    values = torch.linalg.svdvals(w.detach())
    assert 0.6 < values.min() <= values.max() < 1.3


def test_a_zero_gradient_moves_nothing():
    w = nn.Parameter(torch.ones(2, 3))
    w.grad = torch.zeros(2, 3)
    DeepMomentumSGD([w], lr=1.0).step()
    assert torch.equal(w.detach(), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"momentum": 1.1}, r"momentum must lie in \[0, 1\), got 1.1"),
        ({"memory_lr": -1.0}, "memory_lr must be at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DeepMomentumSGD([nn.Parameter(torch.ones(1))], **{"lr": 0.1, **options})
