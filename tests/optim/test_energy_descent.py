"""Descent on an energy: closed forms, dynamic stopping, truncation, callers without gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradatim.inference import minimize_energy

TARGET = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, 1.0]], dtype=torch.float64)
CURVATURE = torch.tensor([[0.5], [2.0]], dtype=torch.float64)


def quadratic(y: Tensor) -> Tensor:
    return 0.5 * (CURVATURE * (y - TARGET) ** 2).sum(-1)


def test_a_quadratic_follows_its_closed_form() -> None:
    y0 = torch.zeros(2, 3, dtype=torch.float64)
    found = minimize_energy(quadratic, y0, num_steps=7, step_size=0.1)
    for i in range(8):
        y = TARGET + (1 - 0.1 * CURVATURE) ** i * (y0 - TARGET)
        torch.testing.assert_close(found.energies[:, i], quadratic(y), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.y, TARGET + (1 - 0.1 * CURVATURE) ** 7 * (y0 - TARGET))
    assert found.steps_taken.tolist() == [7, 7]
    assert not y0.requires_grad
    assert not found.y.requires_grad
    torch.testing.assert_close(found.decrease, found.energies[:, 0] - found.energies[:, -1])


def test_a_step_size_per_entry_broadcasts() -> None:
    sizes = torch.tensor([[0.1], [0.3]], dtype=torch.float64)
    together = minimize_energy(
        quadratic, torch.zeros(2, 3, dtype=torch.float64), num_steps=3, step_size=sizes
    )
    for i in range(2):
        alone = minimize_energy(
            lambda y, i=i: 0.5 * (CURVATURE[i] * (y - TARGET[i]) ** 2).sum(-1),
            torch.zeros(3, dtype=torch.float64), num_steps=3, step_size=float(sizes[i]),
        )  # fmt: skip
        torch.testing.assert_close(together.y[i], alone.y)
        torch.testing.assert_close(together.energies[i], alone.energies)
        assert alone.steps_taken.shape == ()


def test_items_stop_on_their_own_as_if_alone() -> None:
    y0 = torch.zeros(2, 3, dtype=torch.float64)
    found = minimize_energy(quadratic, y0, num_steps=200, step_size=0.4, tol=1e-6)
    assert found.energies.shape == (2, 201)
    # The stiffer item contracts by 0.2 a step, the other by 0.8: both stop, at different times.
    assert 0 < int(found.steps_taken[1]) < int(found.steps_taken[0]) < 200
    for i in range(2):
        steps = int(found.steps_taken[i])
        plain = minimize_energy(quadratic, y0, num_steps=steps, step_size=0.4)
        torch.testing.assert_close(found.y[i], plain.y[i], rtol=0, atol=0)
        last = plain.energies[i, -2:]
        assert float((last[0] - last[1]).abs()) < 1e-6 <= float((plain.energies[i, -3] - last[0]).abs())
        torch.testing.assert_close(found.energies[i, steps:], last[1].expand(201 - steps), rtol=0, atol=0)


def test_stopping_saves_evaluations() -> None:
    calls = []

    def counted(y: Tensor) -> Tensor:
        calls.append(1)
        return quadratic(y)

    found = minimize_energy(counted, TARGET.clone(), num_steps=50, step_size=0.1, tol=1e-9)
    assert len(calls) == 2
    assert found.steps_taken.tolist() == [1, 1]


def _cubic(weight: Tensor) -> object:
    return lambda y: (weight * y**3 + y**2).sum(-1)


def test_the_graph_gives_the_derivative_of_the_unrolled_steps() -> None:
    y0 = torch.tensor([0.3, -0.2], dtype=torch.float64)

    def end(weight: Tensor, size: Tensor) -> Tensor:
        return minimize_energy(_cubic(weight), y0, num_steps=3, step_size=size, create_graph=True).y

    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    size = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(end, (weight, size))
    # By hand: y <- y - a (3 w y^2 + 2 y).
    y, dw = y0.clone(), torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        dw = dw * (1 - 0.05 * (6 * 0.7 * y + 2)) - 0.05 * 3 * y**2
        y = y - 0.05 * (3 * 0.7 * y**2 + 2 * y)
    (found,) = torch.autograd.grad(end(weight, size).sum(), weight)
    torch.testing.assert_close(found, dw.sum())


def test_truncation_keeps_the_value_and_the_last_step_of_the_derivative() -> None:
    y0 = torch.tensor([0.3, -0.2], dtype=torch.float64)
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    full = minimize_energy(_cubic(weight), y0, num_steps=3, step_size=0.05, create_graph=True)
    cut = minimize_energy(_cubic(weight), y0, num_steps=3, step_size=0.05, create_graph=True, truncate=True)
    torch.testing.assert_close(cut.y, full.y, rtol=0, atol=0)
    before = minimize_energy(_cubic(weight), y0, num_steps=2, step_size=0.05).y
    (found,) = torch.autograd.grad(cut.y.sum(), weight)
    torch.testing.assert_close(found, (-0.05 * 3 * before**2).sum())
    assert float((found - torch.autograd.grad(full.y.sum(), weight)[0]).abs()) > 1e-4


def test_noise_is_the_generators_and_leaves_the_global_state_alone() -> None:
    y0 = torch.zeros(2, 3, dtype=torch.float64)
    before = torch.get_rng_state()
    a, b, c = (
        minimize_energy(
            quadratic, y0, num_steps=2, step_size=0.1, noise_std=0.5,
            generator=torch.Generator().manual_seed(seed),
        ).y
        for seed in (0, 0, 1)
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert float((a - c).abs().max()) > 0.01
    drawn = torch.Generator().manual_seed(0)
    y = y0
    for _ in range(2):
        y = y + 0.5 * torch.randn(2, 3, generator=drawn, dtype=torch.float64)
        y = y - 0.1 * CURVATURE * (y - TARGET)
    torch.testing.assert_close(a, y)


def test_projected_descent_stays_inside_and_ends_at_the_constrained_minimum() -> None:
    seen = []
    found = minimize_energy(
        quadratic, torch.full((2, 3), 9.0, dtype=torch.float64), num_steps=200, step_size=0.3,
        project=lambda y: y.clamp(-1, 1), callback=lambda step, y, e: seen.append((step, y, e)),
    )  # fmt: skip
    torch.testing.assert_close(found.y, TARGET.clamp(-1, 1), rtol=0, atol=1e-12)
    assert [step for step, _, _ in seen] == list(range(201))
    assert max(float(y.abs().max()) for _, y, _ in seen) <= 1
    torch.testing.assert_close(torch.stack([e for _, _, e in seen], -1), found.energies)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients_are_served(mode: type) -> None:
    layer = torch.nn.Linear(3, 3).double()
    for p in layer.parameters():
        torch.nn.init.constant_(p, 0.1)

    def energy(y: Tensor) -> Tensor:
        return layer(y).square().sum(-1)

    expected = minimize_energy(energy, TARGET.clone(), num_steps=3, step_size=0.1)
    with mode():
        y0 = TARGET.clone()
        found = minimize_energy(energy, y0, num_steps=3, step_size=torch.tensor(0.1).double())
    torch.testing.assert_close(found.y, expected.y)
    torch.testing.assert_close(found.energies, expected.energies)
    assert not found.y.requires_grad


def test_narrow_states_are_updated_in_float32() -> None:
    y0 = torch.zeros(4, dtype=torch.float16)
    # The step alone, 1e5, is beyond float16: the state it leads to is not.
    found = minimize_energy(lambda y: (0.01 * (y - 6)).float(), y0, num_steps=1, step_size=1e5)
    assert found.energies.dtype == torch.float32
    torch.testing.assert_close(found.y, torch.full((4,), -1000.0, dtype=torch.float16))


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 6),
    size=st.floats(0.01, 0.9),
    items=st.lists(st.integers(1, 3), min_size=0, max_size=2),
    seed=st.integers(0, 1000),
)
def test_a_stable_step_never_raises_a_convex_energy(
    steps: int, size: float, items: list[int], seed: int
) -> None:
    y0 = torch.randn(*items, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = minimize_energy(lambda y: 0.5 * y.square().sum(-1), y0, num_steps=steps, step_size=size)
    assert found.energies.shape == (*items, steps + 1)
    assert bool((found.energies.diff(dim=-1) < 0).all())
    short = minimize_energy(
        lambda y: 0.5 * y.square().sum(-1), y0, num_steps=steps, step_size=size, final_energy=False
    )
    torch.testing.assert_close(short.energies, found.energies[..., :-1], rtol=0, atol=0)


def test_every_entry_may_be_an_item_of_its_own() -> None:
    found = minimize_energy(lambda y: y, torch.zeros(2, 3).double(), num_steps=2, step_size=0.5)
    torch.testing.assert_close(found.y, torch.full((2, 3), -1.0).double())
    assert found.energies.shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"step_size": torch.tensor([0.1, -0.1, 0.1])}, "step_size must be above 0"),
        ({"step_size": float("nan")}, "step_size must be above 0"),
        ({"noise_std": -1.0}, "noise_std must not be negative"),
        ({"tol": 0.0}, "tol must be above 0"),
        ({"tol": 1.0, "final_energy": False}, "needs final_energy"),
        ({"truncate": True}, "needs create_graph"),
        ({"truncate": True, "create_graph": True, "tol": 1.0}, "either truncate or tol"),
        ({"y0": torch.zeros(2, 3, dtype=torch.int64)}, "floating type"),
        ({"energy_fn": lambda y: y.sum(0)}, "one energy per item"),
        ({"energy_fn": lambda y: y.detach().sum(-1)}, "does not depend on y"),
        ({"energy_fn": lambda y: (y - 1).sqrt().sum(-1)}, "not finite at step 1 of 2"),
    ],
)
def test_bad_input_is_refused(change: dict, says: str) -> None:
    given = {"energy_fn": quadratic, "y0": torch.zeros(2, 3).double(), "num_steps": 2, "step_size": 0.1}
    given |= change
    with pytest.raises(ValueError, match=says):
        minimize_energy(given.pop("energy_fn"), given.pop("y0"), **given)
