"""What every learning-rate scheduler of ours promises to PyTorch."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, LRScheduler, SequentialLR
from torch.utils.data import DataLoader  # noqa: F401  (imported first: its warnings are not ours)

from gradatim.optim import LinearDecayLR, RefinedLR, TableLR
from gradatim.optim.shapes import linear

T = 12
TABLE = [0.25, 0.5, 0.75, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1]
NORMS = np.concatenate([np.linspace(4, 1, 4), np.ones(8)])


def warmup_decay(t: int) -> float:
    return (t + 1) / 4 if t < 3 else 1 - 0.9 * (t - 3) / 8


CASES: dict[str, tuple[Callable[..., LRScheduler], Callable[[int], float]]] = {
    "TableLR": (lambda o, **k: TableLR(o, TABLE, **k), lambda t: TABLE[t]),
    "LinearDecayLR": (lambda o, **k: LinearDecayLR(o, T, **k), lambda t: 1 - t / (T - 1)),
    "LinearDecayLR-warmup": (
        lambda o, **k: LinearDecayLR(o, T, warmup_steps=3, end_factor=0.1, **k),
        warmup_decay,
    ),
    "RefinedLR": (
        lambda o, **k: RefinedLR(o, NORMS, tau=0.01, **k),
        lambda t: (lambda e: e[t] / max(e))([NORMS[i] ** -2 * sum(NORMS[i + 1 :] ** -2) for i in range(T)]),
    ),
}
each = pytest.mark.parametrize("name", sorted(CASES))


def make_optimizer(lrs: tuple[float, ...] = (0.5, 2.0), tensor: bool = False) -> Optimizer:
    groups = [
        {"params": [nn.Parameter(torch.ones(2))], "lr": torch.tensor(lr) if tensor else lr} for lr in lrs
    ]
    return torch.optim.SGD(groups, lr=1.0)


def rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def run(optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """The rates that `steps` optimizer steps are made with, in the usual loop."""
    used = []
    for _ in range(steps):
        used.append(rates(optimizer))
        optimizer.step()
        scheduler.step()
    return used


@each
def test_rate_of_step_t_is_base_times_factor(name: str) -> None:
    build, factor = CASES[name]
    optimizer = make_optimizer()
    used = run(optimizer, build(optimizer), T)
    np.testing.assert_allclose(used, [[0.5 * factor(t), 2.0 * factor(t)] for t in range(T)], atol=1e-12)


@each
def test_index_is_clamped(name: str) -> None:
    build, factor = CASES[name]
    optimizer = make_optimizer()
    scheduler = build(optimizer)
    run(optimizer, scheduler, T)
    # The usual loop has called step() T times by now: this is index T, one past the table.
    assert rates(optimizer) == pytest.approx([0.5 * factor(T - 1), 2.0 * factor(T - 1)], abs=1e-12)
    run(optimizer, scheduler, 5)
    assert rates(optimizer) == pytest.approx([0.5 * factor(T - 1), 2.0 * factor(T - 1)], abs=1e-12)


@each
@pytest.mark.parametrize("k", [0, 1, 5, T])
def test_resumes_exactly(name: str, k: int) -> None:
    build, _ = CASES[name]
    optimizer = make_optimizer()
    scheduler = build(optimizer)
    run(optimizer, scheduler, k)
    buffer = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, buffer)
    expected = run(optimizer, scheduler, T)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    fresh = make_optimizer()
    resumed = build(fresh)
    fresh.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["scheduler"])
    assert run(fresh, resumed, T) == expected


@each
def test_last_epoch_continues(name: str) -> None:
    build, factor = CASES[name]
    optimizer = make_optimizer()
    run(optimizer, build(optimizer), 4)
    build(optimizer, last_epoch=3)
    assert rates(optimizer) == pytest.approx([0.5 * factor(4), 2.0 * factor(4)], abs=1e-12)


@each
def test_last_epoch_without_base_rates_is_refused(name: str) -> None:
    with pytest.raises(KeyError, match="initial_lr"):
        CASES[name][0](make_optimizer(), last_epoch=3)


@each
def test_tensor_rates_stay_the_same_object(name: str) -> None:
    build, factor = CASES[name]
    optimizer = make_optimizer(tensor=True)
    before = [group["lr"] for group in optimizer.param_groups]
    scheduler = build(optimizer)
    bases = [float(b) for b in scheduler.base_lrs]
    for t in range(T):
        np.testing.assert_allclose(rates(optimizer), [0.5 * factor(t), 2 * factor(t)], atol=1e-6)
        optimizer.step()
        scheduler.step()
    assert all(a is g["lr"] for a, g in zip(before, optimizer.param_groups, strict=True))
    assert [float(b) for b in scheduler.base_lrs] == bases == [0.5, 2.0]


@each
def test_closed_form_of_the_deprecated_step(name: str) -> None:
    build, factor = CASES[name]
    optimizer = make_optimizer()
    scheduler = build(optimizer)
    optimizer.step()
    with pytest.warns(UserWarning, match="epoch parameter"):
        scheduler.step(7)
    assert rates(optimizer) == pytest.approx([0.5 * factor(7), 2.0 * factor(7)], abs=1e-12)
    assert scheduler.last_epoch == 7


@each
def test_sequential(name: str) -> None:
    build, factor = CASES[name]
    optimizer = make_optimizer()
    warm = ConstantLR(optimizer, factor=0.1, total_iters=100)
    used = run(optimizer, SequentialLR(optimizer, [warm, build(optimizer)], milestones=[3]), 3 + T)
    np.testing.assert_allclose(used[:3], [[0.05, 0.2]] * 3)
    np.testing.assert_allclose(used[3:], [[0.5 * factor(t), 2.0 * factor(t)] for t in range(T)], atol=1e-12)


@each
def test_chained_overrides_earlier_members(name: str) -> None:
    """As documented: a schedule in closed form does not read the rate that others have set."""
    build, factor = CASES[name]
    optimizer = make_optimizer()
    halved = ConstantLR(optimizer, factor=0.5, total_iters=100)
    used = run(optimizer, ChainedScheduler([halved, build(optimizer)]), T)
    np.testing.assert_allclose(used, [[0.5 * factor(t), 2.0 * factor(t)] for t in range(T)], atol=1e-12)


@each
def test_state_of_another_horizon_is_refused(name: str) -> None:
    build, _ = CASES[name]
    state = build(make_optimizer()).state_dict()
    other = {
        "TableLR": lambda o: TableLR(o, TABLE[:-1]),
        "RefinedLR": lambda o: RefinedLR(o, NORMS, total_steps=T + 1),
    }.get(name, lambda o: LinearDecayLR(o, T + 1))
    with pytest.raises(ValueError, match="saved schedule has"):
        other(make_optimizer()).load_state_dict(state)


@each
def test_last_lr_is_a_copy(name: str) -> None:
    optimizer = make_optimizer(tensor=True)
    scheduler = CASES[name][0](optimizer)
    scheduler.get_last_lr()[0].fill_(9.0)
    assert rates(optimizer)[0] != 9.0


@each
def test_training_with_a_step_of_rate_zero_is_fine(name: str) -> None:
    optimizer = make_optimizer()
    scheduler = CASES[name][0](optimizer)
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(2)
    run(optimizer, scheduler, T + 1)
    assert all(bool(torch.isfinite(g["params"][0]).all()) for g in optimizer.param_groups)


def test_linear_decay_is_the_table_of_its_shape() -> None:
    a, b = make_optimizer(), make_optimizer()
    np.testing.assert_allclose(
        run(a, LinearDecayLR(a, 30), 31), run(b, TableLR(b, linear(30)), 31), atol=1e-12
    )
