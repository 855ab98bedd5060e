"""Stacked training: every model gets what it would have got alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradatim.bench.stacked import train_stacked, warmup_cosine


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 1)).double()


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x).squeeze(-1) - y).square().mean()


class Data:
    """Row s of step t depends on (s's key, t) alone."""

    def __init__(self, keys: list[int]) -> None:
        self.keys = keys

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        xs, ys = [], []
        for key in self.keys:
            g = torch.Generator().manual_seed(1000 * key + step)
            x = torch.randn(5, 3, generator=g, dtype=torch.float64)
            xs.append(x)
            ys.append((key + 1) * x.sum(-1).sin())
        return torch.stack(xs), torch.stack(ys)


def alone(key: int, lr: float, steps: int, clip: float | None) -> tuple[nn.Module, list[float]]:
    """The textbook loop, with nothing of ours but the factor of the rate."""
    model, data, losses = net(key), Data([key]), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        x, y = (t[0] for t in data(step))
        loss = squared(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step, steps, 0.2)
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def same(a: nn.Module, b: nn.Module, tolerance: float = 1e-12) -> None:
    for (name, p), (_, q) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_each_model_equals_training_alone(engine: str, clip: float | None) -> None:
    keys, rates = [0, 3, 7], [1e-2, 3e-2, 1e-3]
    found = train_stacked(
        net, Data(keys), squared, steps=30, lr=rates, seeds=keys, warmup=0.2, clip=clip, engine=engine
    )
    assert found.engine == engine
    for s, (key, rate) in enumerate(zip(keys, rates, strict=True)):
        model, losses = alone(key, rate, 30, clip)
        same(found.models[s], model)
        np.testing.assert_allclose(found.losses[:, s], losses, rtol=1e-12)


def test_company_does_not_matter() -> None:
    together = train_stacked(net, Data([2, 9]), squared, steps=12, lr=1e-2, seeds=[2, 9])
    other = train_stacked(net, Data([5, 2, 1]), squared, steps=12, lr=[1.0, 1e-2, 0.1], seeds=[5, 2, 1])
    same(together.models[0], other.models[1], 1e-13)


def test_given_modules_stay_as_they_are() -> None:
    models = [net(0), net(1)]
    before = [p.detach().clone() for m in models for p in m.parameters()]
    trained = train_stacked(models, Data([0, 1]), squared, steps=3, lr=0.1)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (p for m in models for p in m.parameters()), strict=True)
    )
    assert not torch.equal(before[0], next(trained.models[0].parameters()))
    assert not any(m.training for m in trained.models)


class Partly(nn.Module):
    """A frozen layer and a buffer that differ from model to model, and a buffer that does not."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(3, 4).double().requires_grad_(False)
        self.first.weight.copy_(torch.randn(4, 3, generator=g))
        self.first.bias.zero_()
        self.last = nn.Linear(4, 1).double()
        with torch.no_grad():
            self.last.weight.copy_(torch.randn(1, 4, generator=g))
            self.last.bias.zero_()
        self.register_buffer("shift", torch.full((4,), float(seed), dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x) + self.shift) * self.scale)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_frozen_parts_and_buffers_are_each_models_own(engine: str) -> None:
    found = train_stacked(Partly, Data([1, 2]), squared, steps=5, lr=0.1, seeds=[1, 2], engine=engine)
    for s, seed in enumerate((1, 2)):
        single = train_stacked([Partly(seed)], Data([seed]), squared, steps=5, lr=0.1, engine="loop")
        same(found.models[s], single.models[0])
        assert torch.equal(found.models[s].first.weight, Partly(seed).first.weight)
        assert found.models[s].shift[0] == seed
        assert not torch.equal(found.models[s].last.weight, Partly(seed).last.weight)


class Branching(nn.Linear):
    """Control flow that depends on the data: vmap refuses it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


def test_a_module_that_cannot_be_vectorised_is_run_one_by_one() -> None:
    models = [Branching(3, 1).double(), Branching(3, 1).double()]
    assert train_stacked(models, Data([0, 1]), squared, steps=2, lr=0.1).engine == "loop"
    with pytest.raises(RuntimeError, match="vmap"):
        train_stacked(models, Data([0, 1]), squared, steps=2, lr=0.1, engine="vmap")


def test_resumed_run_equals_uninterrupted_run(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    options = {"steps": 20, "lr": [0.01, 0.02], "seeds": [0, 1]}
    whole = train_stacked(net, Data([0, 1]), squared, **options)

    class Interrupted(Data):
        def __call__(self, step: int) -> tuple[Tensor, Tensor]:
            if step == 13:
                raise KeyboardInterrupt
            return super().__call__(step)

    with pytest.raises(KeyboardInterrupt):
        train_stacked(net, Interrupted([0, 1]), squared, **options, checkpoint=path, checkpoint_every=5)
    asked: list[int] = []

    class Watched(Data):
        def __call__(self, step: int) -> tuple[Tensor, Tensor]:
            asked.append(step)
            return super().__call__(step)

    resumed = train_stacked(net, Watched([0, 1]), squared, **options, checkpoint=path, checkpoint_every=5)
    assert min(asked) == 10
    for a, b in zip(whole.models, resumed.models, strict=True):
        same(a, b, 0.0)
    np.testing.assert_array_equal(whole.losses, resumed.losses)
    with pytest.raises(ValueError, match="another run"):
        train_stacked(net, Data([0, 1]), squared, **{**options, "lr": 0.5}, checkpoint=path)


def test_snapshots_are_the_models_after_that_many_steps() -> None:
    found = train_stacked(
        net, Data([0]), squared, steps=6, lr=0.1, seeds=[0], snapshots=[2, 6], schedule=lambda step: 1.0
    )
    short = train_stacked(net, Data([0]), squared, steps=2, lr=0.1, seeds=[0], schedule=lambda step: 1.0)
    same(found.snapshots[2][0], short.models[0], 0.0)
    same(found.snapshots[6][0], found.models[0], 0.0)
    assert list(found.snapshots) == [2, 6]


def test_smoothed_losses_are_means_over_the_window() -> None:
    found = train_stacked(net, Data([0, 1]), squared, steps=7, lr=0.1, seeds=[0, 1])
    expected = [found.losses[max(0, t - 2) : t + 1].mean(0) for t in range(7)]
    np.testing.assert_allclose(found.smoothed(3), expected, rtol=1e-12)


def test_rate_rises_then_falls_to_nothing() -> None:
    factors = [warmup_cosine(t, 10, 0.2) for t in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert math.isclose(factors[6], 0.5)
    assert factors[10] == pytest.approx(0, abs=1e-15)
    assert warmup_cosine(0, 10, 0.0) == 1.0


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        train_stacked([], Data([]), squared, steps=1, lr=0.1)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        train_stacked([net(0)], Data([0]), squared, steps=0, lr=0.1)
    with pytest.raises(ValueError, match="each of the 1 models, got 2"):
        train_stacked([net(0)], Data([0]), squared, steps=1, lr=[0.1, 0.2])
    with pytest.raises(ValueError, match="leading axis of 2 models"):
        train_stacked([net(0), net(1)], Data([0]), squared, steps=1, lr=0.1)
    with pytest.raises(ValueError, match="not of model 0's architecture"):
        train_stacked([net(0), nn.Linear(3, 1)], Data([0, 1]), squared, steps=1, lr=0.1)
    with pytest.raises(ValueError, match="share one type"):
        train_stacked([nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 1).double())], Data([0]), squared, steps=1,
                      lr=0.1)  # fmt: skip
    with pytest.raises(ValueError, match="engine must be"):
        train_stacked([net(0)], Data([0]), squared, steps=1, lr=0.1, engine="jit")
    with pytest.raises(FloatingPointError, match=r"model\(s\) \[1\]"):
        train_stacked(
            [net(0), net(1)],
            Data([0, 1]),
            lambda m, x, y: squared(m, x, y) / (y.max() < 1.5),
            steps=1,
            lr=0.1,
        )
