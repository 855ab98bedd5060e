"""The training loop against a plain PyTorch loop, and bit for bit against itself when interrupted."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradatim.bench import fit as fit_module
from gradatim.bench.fit import NonFiniteLossError, fit
from gradatim.optim import LinearDecayLR

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(96, 5, generator=GENERATOR)
Y = torch.randn(96, 1, generator=GENERATOR)


def make(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.02)


def loader(batch=8, shuffle=False):
    return DataLoader(TensorDataset(X, Y), batch_size=batch, shuffle=shuffle)


def squared(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_equals_a_plain_loop():
    model, optimizer = make()
    scheduler = LinearDecayLR(optimizer, total_steps=24)
    result = fit(model, optimizer, loader(), squared, scheduler=scheduler, epochs=2, clip=0.5)
    plain, optimizer = make()
    scheduler = LinearDecayLR(optimizer, total_steps=24)
    losses = []
    for _ in range(2):
        for batch in loader():
            loss = squared(plain, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            losses.append(loss.item())
    assert torch.equal(weights(model), weights(plain))
    assert result.losses == losses
    assert result.steps == 24


def test_accumulation_equals_the_larger_batch():
    small, optimizer = make()
    a = fit(small, optimizer, loader(8), squared, steps=10, accumulate=4)
    large, optimizer = make()
    b = fit(large, optimizer, loader(32), squared, steps=10)
    torch.testing.assert_close(weights(small), weights(large), atol=1e-6, rtol=0)
    assert a.losses == pytest.approx(b.losses, abs=1e-6)


@pytest.mark.parametrize("stop", [3, 7, 12, 17])
def test_resume_is_bit_exact_in_the_middle_of_an_epoch(tmp_path, stop):
    def run(model, optimizer, steps, folder):
        scheduler = LinearDecayLR(optimizer, total_steps=20)
        every = {"evaluate": lambda m: {"norm": float(weights(m).norm())}, "evaluate_every": 5}
        return fit(
            model, optimizer, loader(shuffle=True), squared, scheduler=scheduler, steps=steps,
            checkpoint=folder, checkpoint_every=100, **every,
        )  # fmt: skip

    model, optimizer = make(dropout=0.3)
    torch.manual_seed(11)
    whole = run(model, optimizer, 20, tmp_path / "whole")
    first, optimizer = make(dropout=0.3)
    torch.manual_seed(11)
    run(first, optimizer, stop, tmp_path / "parts")
    second, optimizer = make(dropout=0.3, seed=99)
    torch.manual_seed(12345)
    parts = run(second, optimizer, 20, tmp_path / "parts")
    assert torch.equal(weights(model), weights(second))
    assert parts.losses == whole.losses
    assert [e for e in parts.evaluations if e[0] % 5 == 0] == whole.evaluations


class Stateful(torch.utils.data.Sampler):
    """A sampler that remembers where it is, as our curricula do."""

    def __init__(self):
        self.at = 0

    def __len__(self):
        return 96

    def __iter__(self):
        while self.at < 96:
            self.at += 1
            yield (self.at * 7) % 96
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def test_a_stateful_sampler_goes_on_where_it_stood(tmp_path):
    def run(steps, folder):
        model, optimizer = make()
        data = DataLoader(TensorDataset(X, Y), batch_size=8, sampler=Stateful())
        result = fit(model, optimizer, data, squared, steps=steps, checkpoint=folder)
        return weights(model), result.losses

    whole = run(20, tmp_path / "whole")
    run(7, tmp_path / "parts")
    parts = run(20, tmp_path / "parts")
    assert torch.equal(whole[0], parts[0])
    assert whole[1] == parts[1]


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    model, optimizer = make()
    fit(model, optimizer, loader(), squared, steps=4, checkpoint=tmp_path)
    expected = weights(model).clone()

    def broken(accelerator, folder):
        (folder / "writing").mkdir()
        (folder / "writing" / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        fit(model, optimizer, loader(), squared, steps=6, checkpoint=tmp_path)
    monkeypatch.undo()
    again, optimizer = make(seed=5)
    fit(again, optimizer, loader(), squared, steps=4, checkpoint=tmp_path)
    assert torch.equal(weights(again), expected)
    (tmp_path / "last").rename(tmp_path / "before")
    once_more, optimizer = make(seed=6)
    fit(once_more, optimizer, loader(), squared, steps=4, checkpoint=tmp_path)
    assert torch.equal(weights(once_more), expected)


def test_observers_see_every_step():
    seen = []
    model, optimizer = make()
    scheduler = LinearDecayLR(optimizer, total_steps=6)
    result = fit(
        model, optimizer, loader(), squared, scheduler=scheduler, steps=6, clip=1e9, on_step=seen.append
    )
    assert [s.step for s in seen] == [1, 2, 3, 4, 5, 6]
    assert [s.loss.item() for s in seen] == result.losses
    assert seen[0].lr == pytest.approx(0.02)
    assert seen[0].lr > seen[-1].lr
    assert all(s.grad_norm > 0 for s in seen)


def test_bf16_trains_close_to_float32():
    model, optimizer = make()
    full = fit(model, optimizer, loader(), squared, epochs=3)
    model, optimizer = make()
    half = fit(model, optimizer, loader(), squared, epochs=3, precision="bf16")
    assert half.losses != full.losses
    assert half.losses[-1] == pytest.approx(full.losses[-1], rel=0.1)


def test_bad_requests_and_bad_losses_are_named():
    model, optimizer = make()
    for options, match in [
        ({}, "give steps or epochs"),
        ({"steps": 1, "epochs": 1}, "give steps or epochs"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 1, "accumulate": 0}, "accumulate must be at least 1"),
        ({"steps": 1, "checkpoint_every": 2}, "needs checkpoint="),
    ]:
        with pytest.raises(ValueError, match=match):
            fit(model, optimizer, loader(), squared, **options)
    empty = DataLoader(TensorDataset(X[:3], Y[:3]), batch_size=8, drop_last=True)
    with pytest.raises(ValueError, match="empty"):
        fit(model, optimizer, empty, squared, steps=1)
    calls = iter(range(100))

    def spoiled(m, batch):
        return squared(m, batch) * (float("nan") if next(calls) == 4 else 1.0)

    with pytest.raises(NonFiniteLossError, match="at step 5"):
        fit(model, optimizer, loader(), spoiled, steps=8)


SCRIPT = """
import json, sys
sys.path.insert(0, {here!r})
from test_fit import fit, loader, make, squared, weights
from gradatim.optim import LinearDecayLR
model, optimizer = make()
schedule = LinearDecayLR(optimizer, total_steps=12)
result = fit(model, optimizer, loader(8), squared, scheduler=schedule, epochs=2)
import torch.distributed as dist
if not dist.is_initialized() or dist.get_rank() == 0:
    open(sys.argv[1], "w").write(json.dumps([result.losses, weights(model).tolist(), schedule.get_last_lr()]))
if dist.is_initialized():
    dist.barrier(); dist.destroy_process_group()
"""


def test_two_processes_give_the_curve_of_one_on_the_doubled_batch(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
        "--master_port", str(port), str(script), str(tmp_path / "two.json"),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    losses, final, rate = json.loads((tmp_path / "two.json").read_text())
    model, optimizer = make()
    schedule = LinearDecayLR(optimizer, total_steps=12)
    one = fit(model, optimizer, loader(16), squared, scheduler=schedule, epochs=2)
    assert losses == pytest.approx(one.losses, abs=1e-6)
    torch.testing.assert_close(torch.tensor(final), weights(model), atol=1e-5, rtol=0)
    assert rate == schedule.get_last_lr()
