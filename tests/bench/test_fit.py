"""The training loop beside a loop written out by hand, resumed at every step, killed, and run by two."""

from __future__ import annotations

import copy
import math
import os
import random
import re
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from gradatim.bench import checkpoint as checkpoints
from gradatim.bench.fit import FitResult, fit

GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(22, 4, generator=GENERATOR)
Y = X.sum(1, keepdim=True) + 0.1 * torch.randn(22, 1, generator=GENERATOR)


def make_model(dropout: float = 0.2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 1))


def make_loader(**options) -> DataLoader:
    options = {"shuffle": True, "generator": torch.Generator().manual_seed(5)} | options
    return DataLoader(TensorDataset(X, Y), 4, **options)


def loss_fn(model: nn.Module, batch) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def train(model: nn.Module | None = None, loader=None, **options) -> tuple[FitResult, nn.Module]:
    model = make_model() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    loader = make_loader() if loader is None else loader
    result = fit(model, optimizer, loader, loss_fn, **({"scheduler": scheduler, "seed": 3} | options))
    return result, model


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


# -- against a loop written out ------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_it_does_what_a_loop_by_hand_does(accumulate, clip):
    result, model = train(make_model(0.0), epochs=2, accumulate=accumulate, clip=clip)

    by_hand = make_model(0.0)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    loader = make_loader()
    losses, rates, norms = [], [], []
    for _ in range(2):
        batches = list(loader)
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            optimizer.zero_grad()
            loss = sum(loss_fn(by_hand, b) for b in window) / len(window)
            loss.backward()
            norms.append(float(nn.utils.clip_grad_norm_(by_hand.parameters(), clip or math.inf)))
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            losses.append(float(loss.detach()))

    assert result.losses == pytest.approx(losses, rel=1e-5)
    assert [s.rate for s in result.history] == pytest.approx(rates)
    assert [s.norm for s in result.history] == ([None] * len(norms) if clip is None else pytest.approx(norms))
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_steps_and_epochs_stop_at_whichever_comes_first():
    assert train(epochs=2)[0].steps == 12
    assert train(epochs=2, steps=5)[0].steps == 5
    assert train(epochs=1, steps=50, accumulate=4)[0].steps == 2
    assert [s.epoch for s in train(steps=8)[0].history] == [0] * 6 + [1] * 2


def test_an_infinite_clip_measures_and_changes_nothing():
    measured, model = train(steps=5, clip=math.inf)
    plain, other = train(steps=5)
    assert measured.losses == plain.losses
    assert same_weights(model, other)
    assert all(s.norm > 0 for s in measured.history)


def test_any_iterable_is_a_loader():
    batches = list(make_loader())
    assert train(loader=batches, epochs=2)[0].steps == 12


def test_the_guide_s_snippet_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "guide" / "training.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"__name__": "guide"}
    exec(compile(code, "training.md", "exec"), names)  # noqa: S102
    assert names["result"].steps == len(names["recorder"].norms()) == 24
    assert (tmp_path / "run" / "step-24").is_dir()


# -- random state --------------------------------------------------------------------------------------


def test_a_seeded_run_leaves_the_random_state_alone_and_repeats():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first = train(steps=7, loader=make_loader(generator=None))[0]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    torch.manual_seed(2)
    assert train(steps=7, loader=make_loader(generator=None))[0] == first
    assert train(steps=7, loader=make_loader(generator=None), seed=4)[0].losses != first.losses


def test_evaluation_does_not_disturb_the_training():
    def evaluate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        random.random()
        return {"noise": torch.randn(()), "loss": loss_fn(model, (X, Y))}

    with_it, model = train(steps=9, evaluate=evaluate, evaluate_every=4)
    without, other = train(steps=9)
    assert with_it.losses == without.losses
    assert same_weights(model, other)
    assert [step for step, _ in with_it.evaluations] == [4, 8, 9]
    model.eval()
    assert with_it.evaluations[-1][1]["loss"] == pytest.approx(float(loss_fn(model, (X, Y)).detach()))


def test_the_model_comes_back_as_it_came():
    model = make_model().eval()
    attributes = set(vars(model))
    train(model, steps=2, precision="bf16")
    assert not model.training
    assert set(vars(model)) == attributes
    assert model(X).dtype == torch.float32
    copy.deepcopy(model)


# -- checkpoints ---------------------------------------------------------------------------------------


class NoisyData(Dataset):
    """Augments with the global random state, in whichever process reads it."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int):
        return X[i] + 0.1 * torch.randn(4) + random.random() + np.random.rand(), Y[i]  # noqa: NPY002


class HardestFirst(Sampler):
    """A stateful sampler whose order depends on the training: it draws where `weights` say."""

    def __init__(self) -> None:
        self.weights = torch.ones(len(X))
        self.generator = torch.Generator().manual_seed(9)
        self.position = 0

    def __len__(self) -> int:
        return 24

    def __iter__(self):
        while self.position < 24:
            self.position += 1
            yield int(torch.multinomial(self.weights, 1, generator=self.generator))
        self.position = 0

    def state_dict(self):
        state = {"weights": self.weights.clone(), "position": self.position}
        return state | {"generator": self.generator.get_state()}

    def load_state_dict(self, state) -> None:
        self.weights, self.position = state["weights"].clone(), state["position"]
        self.generator.set_state(state["generator"])


LOADERS = {
    "shuffled": make_loader,
    "shuffled without a generator": lambda: make_loader(generator=None),
    "in order, last batch dropped": lambda: make_loader(shuffle=False, drop_last=True),
    "random data": lambda: DataLoader(NoisyData(), 4, shuffle=True),
    "a list": lambda: list(make_loader()),
}


@pytest.mark.parametrize("name", LOADERS)
@given(st.integers(1, 17), st.sampled_from([1, 2]))
@settings(max_examples=4, deadline=None)
def test_resuming_anywhere_is_bit_exact(name, tmp_path_factory, stop, accumulate):
    options = {"clip": 0.5, "accumulate": accumulate, "evaluate_every": 6}
    options["evaluate"] = lambda model: {"loss": loss_fn(model, (X, Y))}
    straight, model = train(loader=LOADERS[name](), steps=18, **options)
    folder = tmp_path_factory.mktemp("run")
    interrupt_at(stop, folder, LOADERS[name](), options)
    torch.manual_seed(stop)  # another process would not have our random state
    resumed, other = train(loader=LOADERS[name](), steps=18, checkpoint=folder, **options)
    assert resumed.resumed_from == stop
    assert resumed == straight
    assert same_weights(model, other)


def interrupt_at(stop, folder, loader, options):
    """Stop in the step after a checkpoint, as a crash would."""

    def crash(step):
        if step.step == stop + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(loader=loader, steps=99, checkpoint=folder, checkpoint_every=stop, on_step=crash, **options)


def test_resuming_with_worker_processes_is_bit_exact(tmp_path):
    def loader():
        return DataLoader(NoisyData(), 4, shuffle=True, num_workers=1)

    straight, model = train(loader=loader(), steps=9)
    interrupt_at(4, tmp_path, loader(), {})
    resumed, other = train(loader=loader(), steps=9, checkpoint=tmp_path)
    assert resumed == straight
    assert same_weights(model, other)


@pytest.mark.parametrize("stop", [3, 6, 8])
def test_a_sampler_that_follows_the_training_resumes_at_its_place(tmp_path, stop):
    def run(**options):
        sampler = HardestFirst()

        def harden(step):
            sampler.weights[int(1000 * step.loss) % len(X)] += step.loss
            if step.step == options.get("crash"):
                raise KeyboardInterrupt

        keep = {k: v for k, v in options.items() if k != "crash"}
        loader = DataLoader(TensorDataset(X, Y), 4, sampler=sampler)
        return train(loader=loader, steps=14, on_step=harden, **keep)

    straight, model = run()
    with pytest.raises(KeyboardInterrupt):
        run(crash=stop + 1, checkpoint=tmp_path, checkpoint_every=stop)
    resumed, other = run(checkpoint=tmp_path)
    assert resumed.resumed_from == stop
    assert resumed == straight
    assert same_weights(model, other)


def test_epochs_reach_the_sampler_also_after_resuming(tmp_path):
    class Rotating(Sampler):
        epoch = 0

        def __len__(self) -> int:
            return len(X)

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter(torch.arange(len(X)).roll(self.epoch).tolist())

    def loader():
        return DataLoader(TensorDataset(X, Y), 4, sampler=Rotating())

    seen = []
    fit_loss = lambda model, batch: (seen.append(batch[0]), loss_fn(model, batch))[1]  # noqa: E731
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, optimizer, loader(), fit_loss, epochs=2)
    assert torch.equal(torch.cat(seen), torch.cat([X, X.roll(1, 0)]))
    straight, _ = train(loader=loader(), epochs=3)
    train(loader=loader(), steps=8, checkpoint=tmp_path)
    assert train(loader=loader(), epochs=3, checkpoint=tmp_path)[0] == straight


def test_other_state_goes_along(tmp_path):
    def run(steps, **options):
        model = make_model()
        average = torch.optim.swa_utils.AveragedModel(model)
        train(model, steps=steps, stateful={"average": average},
              on_step=lambda _: average.update_parameters(model), **options)  # fmt: skip
        return average

    straight = run(10)
    run(4, checkpoint=tmp_path)
    resumed = run(10, checkpoint=tmp_path)
    assert int(resumed.n_averaged) == 10
    assert same_weights(straight, resumed)


def test_tied_weights_survive_a_checkpoint(tmp_path):
    def tied():
        model = make_model()
        model.append(nn.Linear(8, 1, bias=False))
        model[4].weight = model[3].weight
        return model

    def tied_loss(model, batch):
        hidden = model[2](model[0](batch[0]))
        return (model[3](hidden) + model[4](hidden) - batch[1]).square().mean()

    def run(steps, **options):
        model = tied()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return fit(model, optimizer, make_loader(), tied_loss, steps=steps, **options)

    straight = run(9)
    run(4, checkpoint=tmp_path)
    assert run(9, checkpoint=tmp_path) == straight


@pytest.mark.parametrize("moment", ["save_state", "torch.save", "flush", "rename", "clean-up"])
def test_a_kill_while_writing_leaves_a_usable_checkpoint(tmp_path, monkeypatch, moment):
    straight, _ = train(steps=9)
    train(steps=3, checkpoint=tmp_path)

    def kill(*_, **__):
        raise KeyboardInterrupt

    target = {
        "save_state": "accelerate.Accelerator.save_state",
        "torch.save": "gradatim.bench.checkpoint.torch.save",
        "flush": "gradatim.bench.checkpoint._flush",
        "rename": "gradatim.bench.checkpoint.os.replace",
        "clean-up": "gradatim.bench.checkpoint.shutil.rmtree",
    }[moment]
    with monkeypatch.context() as patch:
        if moment == "clean-up":
            real = checkpoints.shutil.rmtree
            patch.setattr(target, lambda p, **k: kill() if Path(p).name == "step-3" else real(p, **k))
        else:
            patch.setattr(target, kill)
        with pytest.raises(KeyboardInterrupt):
            train(steps=6, checkpoint=tmp_path)
    resumed, _ = train(steps=9, checkpoint=tmp_path)
    assert resumed == straight
    assert resumed.resumed_from == (6 if moment == "clean-up" else 3)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["step-9"]


def test_sigkill_at_any_moment_is_survived(tmp_path):
    straight, _ = train(steps=40)
    script = "import test_fit, sys; test_fit.train(steps=40, checkpoint=sys.argv[1], checkpoint_every=1)"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parent)
    try:
        while not checkpoints.steps_saved(tmp_path) and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    resumed, _ = train(steps=40, checkpoint=tmp_path)
    assert resumed.resumed_from >= 1
    assert resumed == straight


def test_a_finished_run_is_not_run_again_and_can_be_extended(tmp_path):
    first, _ = train(steps=6, checkpoint=tmp_path)
    again, _ = train(steps=6, checkpoint=tmp_path, on_step=lambda _: pytest.fail("ran a step"))
    assert again == first
    assert train(steps=9, checkpoint=tmp_path)[0] == train(steps=9)[0]
    assert train(steps=4, checkpoint=tmp_path, resume=False)[0].resumed_from == 0
    assert list(checkpoints.steps_saved(tmp_path)) == [4]


def test_checkpoint_files_run_no_code(tmp_path):
    train(steps=3, checkpoint=tmp_path)
    folder = tmp_path / "step-3"
    assert (folder / "model.safetensors").exists()
    for path in folder.rglob("*.pt"):
        torch.load(path, weights_only=True)

    class Odd:
        def state_dict(self):
            return {"self": self}

        def load_state_dict(self, state):
            raise AssertionError

    with pytest.raises(TypeError, match="plain Python values"):
        train(steps=4, checkpoint=tmp_path, stateful={"odd": Odd()}, resume=False)
    assert not checkpoints.steps_saved(tmp_path)


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "steps= or epochs="),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 1, "accumulate": 0}, "accumulate must be at least 1"),
        ({"steps": 1, "clip": -1.0}, "clip must be above 0"),
        ({"steps": 1, "clip": math.nan}, "clip must be above 0"),
        ({"steps": 1, "checkpoint_every": 1}, "needs a folder"),
        ({"steps": 1, "loader": []}, "no batch in epoch 0"),
        ({"steps": 9, "loader": iter(list(make_loader()))}, "no batch in epoch 1"),
        ({"steps": 1, "precision": "fp16"}, "needs a GPU"),
        ({"steps": 1, "trackers": ["comet_ml"]}, "not installed"),
        ({"steps": 1, "trackers": ["typewriter"]}, "typewriter"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)


def test_a_loss_that_is_not_finite_names_its_step(tmp_path):
    batches = [(X[:4], Y[:4])] * 3 + [(X[:4] * math.nan, Y[:4])]
    with pytest.raises(FloatingPointError, match="nan at step 4"):
        train(loader=batches, steps=9, checkpoint=tmp_path, checkpoint_every=1)
    assert list(checkpoints.steps_saved(tmp_path)) == [3]


def test_a_loss_per_example_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match=r"scalar, got the shape \(4, 1\)"):
        fit(model, torch.optim.SGD(model.parameters()), [(X[:4], Y[:4])], lambda m, b: m(b[0]), steps=1)


def test_plateau_schedules_are_pointed_elsewhere():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match="ReduceLROnPlateau"):
        fit(model, optimizer, make_loader(), loss_fn, steps=1,
            scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))  # fmt: skip


# -- trackers, several processes -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's protobuf
def test_tensorboard_gets_the_curve(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result, _ = train(steps=4, trackers=["tensorboard"], log_dir=tmp_path)
    (events,) = {p.parent for p in tmp_path.rglob("events.out.*")}
    log = EventAccumulator(str(events))
    log.Reload()
    assert [e.value for e in log.Scalars("loss")] == pytest.approx(result.losses)
    assert [e.step for e in log.Scalars("rate")] == [1, 2, 3, 4]


SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
import test_fit as t
from gradatim.bench.fit import fit
from torch.utils.data import DataLoader, TensorDataset

def run(steps, **options):
    model = t.make_model(0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    loader = DataLoader(TensorDataset(t.X[:16], t.Y[:16]), 2, shuffle=True,
                        generator=torch.Generator().manual_seed(5))
    options = dict(clip=0.5, accumulate=2, seed=3) | options
    return fit(model, optimizer, loader, t.loss_fn, steps=steps, scheduler=scheduler, **options)

straight = run(7)
run(3, checkpoint={folder!r})
resumed = run(7, checkpoint={folder!r})
if not dist.is_initialized() or dist.get_rank() == 0:
    json.dump(dict(straight=straight.losses, resumed=resumed.losses, at=resumed.resumed_from,
                   rates=[s.rate for s in straight.history], norms=[s.norm for s in straight.history],
                   world=dist.get_world_size() if dist.is_initialized() else 1),
              open({out!r}, "w"))
if dist.is_initialized():
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_do_what_one_does_on_the_doubled_batch(tmp_path, launcher):
    import json

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script, out = tmp_path / "script.py", tmp_path / "out.json"
    values = {"tests": str(Path(__file__).parent), "folder": str(tmp_path / "run"), "out": str(out)}
    script.write_text(textwrap.dedent(SCRIPT).format(**values))
    commands = {
        "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
                     "--master_port", port],
        "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "1",
                       "--num_machines", "1", "--mixed_precision", "no"],
    }  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *commands[launcher], str(script)], env=environment,
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    doubled = 4 if launcher == "torchrun" else 2
    assert found["world"] == (2 if launcher == "torchrun" else 1)

    model = make_model(0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    loader = DataLoader(TensorDataset(X[:16], Y[:16]), doubled, shuffle=True,
                        generator=torch.Generator().manual_seed(5))  # fmt: skip
    alone = fit(model, optimizer, loader, loss_fn, steps=7, scheduler=scheduler, clip=0.5, accumulate=2)
    assert found["straight"] == pytest.approx(alone.losses, rel=1e-5)
    assert found["norms"] == pytest.approx([s.norm for s in alone.history], rel=1e-5)
    assert found["rates"] == [s.rate for s in alone.history]
    assert found["resumed"] == found["straight"]
    assert found["at"] == 3


def test_another_number_of_processes_is_refused(tmp_path):
    train(steps=2, checkpoint=tmp_path)
    (tmp_path / "step-2" / "loop-1.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="written by 2 processes"):
        train(steps=4, checkpoint=tmp_path)
