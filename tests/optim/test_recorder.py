import json

import numpy as np
import pytest
import torch
from torch import nn

from gradatim.optim import GradNormRecorder, read_trace


def model_with_frozen_part(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    model[0].bias.requires_grad_(False)
    return model


def brute_force(parameters, p: int) -> float:
    total = 0.0
    for parameter in parameters:
        if parameter.grad is not None:
            for value in parameter.grad.flatten().tolist():
                total += abs(value) ** p
    return total ** (1 / p)


def backward(model: nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(4, 5, generator=generator)
    model.zero_grad()
    (scale * model(x).square().mean()).backward()


@pytest.mark.parametrize("p", [1, 2])
def test_equals_a_loop_over_all_gradients(p: int) -> None:
    model = model_with_frozen_part()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    expected = []
    with GradNormRecorder(optimizer, norm=p) as recorder:
        for step in range(5):
            backward(model, step)
            expected.append(brute_force(model.parameters(), p))
            optimizer.step()
    np.testing.assert_allclose(recorder.norms().numpy(), expected, rtol=1e-5)
    assert recorder.steps().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_do_not_overflow(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.zeros(50_000, dtype=dtype))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    for p in (1, 2):
        with GradNormRecorder(optimizer, norm=p) as recorder:
            parameter.grad = torch.full_like(parameter, 4.0)
            optimizer.step()
        assert recorder.norms().item() == pytest.approx(4.0 * 50_000 ** (1 / p), rel=1e-5)


def test_mixed_precisions_add_up() -> None:
    parameters = [
        nn.Parameter(torch.zeros(3, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.float64)
    ]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with GradNormRecorder(optimizer, norm=1) as recorder:
        optimizer.step()
    assert recorder.norms().tolist() == [9.0]


def test_no_gradients_is_norm_zero() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with GradNormRecorder(optimizer) as recorder:
        optimizer.step()
    assert recorder.norms().tolist() == [0.0]


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(10, 3, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1, 2])).sum().backward()
    with GradNormRecorder(optimizer), pytest.raises(TypeError, match="sparse=False"):
        optimizer.step()


def test_every_and_max_steps() -> None:
    model = model_with_frozen_part()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    every = GradNormRecorder(optimizer, every=3)
    first = GradNormRecorder(optimizer, max_steps=4)
    both = GradNormRecorder(optimizer, every=3, max_steps=4)
    whole = GradNormRecorder(optimizer)
    for step in range(10):
        backward(model, step)
        optimizer.step()
    norms = whole.norms()
    assert every.steps().tolist() == [0, 3, 6, 9]
    assert every.norms().tolist() == norms[[0, 3, 6, 9]].tolist()
    assert first.norms().tolist() == norms[:4].tolist()
    assert both.steps().tolist() == [0, 3]


def test_grows_beyond_its_first_buffer() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    with GradNormRecorder(optimizer) as recorder:
        for step in range(2500):
            parameter.grad = torch.tensor([float(step)])
            optimizer.step()
    assert recorder.norms().tolist() == [float(s) for s in range(2500)]


def test_close_removes_the_hook_and_keeps_the_record() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    recorder = GradNormRecorder(optimizer, norm=1)
    optimizer.step()
    recorder.close()
    optimizer.step()
    assert recorder.norms().tolist() == [2.0]


def test_recording_changes_nothing() -> None:
    ends = []
    for record in (False, True):
        model = model_with_frozen_part()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        recorder = GradNormRecorder(optimizer) if record else None
        for step in range(4):
            backward(model, step)
            optimizer.step()
        if recorder is not None:
            recorder.close()
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*ends)


class TestClipping:
    def run(self, clipped: bool, reuse: bool = False) -> tuple[list[float], list[float]]:
        model = model_with_frozen_part()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = []
        with GradNormRecorder(optimizer, norm=2, clipped=clipped) as recorder:
            for step in range(3):
                backward(model, step, scale=50.0)
                before.append(brute_force(model.parameters(), 2))
                if not clipped and not reuse:
                    recorder.observe()
                total = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                if reuse:
                    recorder.observe(total)
                optimizer.step()
        return recorder.norms().tolist(), before

    def test_default_sees_what_the_optimizer_sees(self) -> None:
        norms, before = self.run(clipped=True)
        assert min(before) > 1.5
        np.testing.assert_allclose(norms, 1.0, rtol=1e-4)

    @pytest.mark.parametrize("reuse", [False, True])
    def test_observed_before_clipping(self, reuse: bool) -> None:
        norms, before = self.run(clipped=False, reuse=reuse)
        np.testing.assert_allclose(norms, before, rtol=1e-5)

    def test_forgotten_observe_is_an_error(self) -> None:
        model = model_with_frozen_part()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        backward(model, 0)
        with GradNormRecorder(optimizer, clipped=False) as recorder:
            recorder.observe()
            optimizer.step()
            with pytest.raises(RuntimeError, match="before every optimizer"):
                optimizer.step()

    def test_observe_without_need_is_an_error(self) -> None:
        recorder = GradNormRecorder(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1))
        with pytest.raises(RuntimeError, match="clipped=False"):
            recorder.observe()


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler(fused: bool) -> None:
    """Norms come unscaled, and a step that overflows records nothing."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    with GradNormRecorder(optimizer, norm=1) as recorder:
        for factor in (1.0, float("inf"), 2.0):
            optimizer.zero_grad()
            scaler.scale((factor * parameter).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert recorder.norms().tolist() == [3.0, 6.0]
    assert bool(torch.isfinite(parameter).all())


class TestState:
    def test_resumed_record_equals_the_whole(self, tmp_path) -> None:
        def steps(recorder, optimizer, parameter, span) -> None:
            for step in span:
                parameter.grad = torch.tensor([float(step)])
                optimizer.step()

        parameter = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=0.0)
        first = GradNormRecorder(optimizer, every=2)
        steps(first, optimizer, parameter, range(5))
        first.close()
        torch.save(first.state_dict(), tmp_path / "r.pt")
        second = GradNormRecorder(optimizer, every=2)
        second.load_state_dict(torch.load(tmp_path / "r.pt", weights_only=True))
        steps(second, optimizer, parameter, range(5, 10))
        assert second.norms().tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
        assert second.steps().tolist() == [0, 2, 4, 6, 8]

    @pytest.mark.parametrize("other", [{"norm": 1}, {"every": 2}, {"clipped": False}])
    def test_other_kinds_of_record_do_not_join(self, other) -> None:
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
        saved = GradNormRecorder(optimizer, **other).state_dict()
        with pytest.raises(ValueError, match=next(iter(other))):
            GradNormRecorder(optimizer).load_state_dict(saved)

    def test_an_empty_record_round_trips(self) -> None:
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
        recorder = GradNormRecorder(optimizer)
        recorder.load_state_dict(GradNormRecorder(optimizer).state_dict())
        assert recorder.norms().numel() == 0
        with pytest.raises(ValueError, match="at least one norm"):
            recorder.trace()


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_saved_record_is_read_back(tmp_path, suffix: str) -> None:
    model = model_with_frozen_part()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with GradNormRecorder(optimizer, norm=1, every=2) as recorder:
        for step in range(6):
            backward(model, step)
            optimizer.step()
    path = tmp_path / f"norms.{suffix}"
    recorder.save(path, batch_size=4, clip=1.0)
    back = read_trace(path)
    np.testing.assert_array_equal(back.norms, recorder.norms().double().numpy())
    assert back.steps.tolist() == [0, 2, 4]
    assert back.norm_type == 1
    if suffix == "json":
        assert (back.optimizer, back.batch_size, back.clip) == ("AdamW", 4, 1.0)
        assert json.loads(path.read_text())["format"].startswith("gradatim")
    with pytest.raises(ValueError, match=r"\.json or \.csv"):
        recorder.save(tmp_path / "norms.pkl")


@pytest.mark.parametrize("settings", [{"every": 0}, {"max_steps": 0}])
def test_bad_settings_are_refused(settings) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        GradNormRecorder(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), **settings)
