"""The curriculum's weights against the formula, and inside trainers that know nothing of it."""

from __future__ import annotations

import math
import warnings
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from gradatim.curricula import CurriculumCallback, LinearCurriculum

EASY = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)


def by_formula(d, i, m, anti=False, smooth=1e-8):
    """W_i(s) in Python floats."""
    if m > 0 and i >= m:
        return 1.0
    d = (1 - d if anti else d) + smooth
    return d + (i / m if m > 0 else 0.0) * (1 - d)


@pytest.mark.parametrize("anti", [False, True])
@pytest.mark.parametrize("end", [-1, 0, 1, 4])
@pytest.mark.parametrize("samples", [0, 511, 512, 1500, 2047, 2048, 5000])
def test_weights_equal_the_formula_in_blocks_of_512_samples(end, samples, anti):
    found = LinearCurriculum(end, anti=anti).weight(EASY, samples)
    i = samples // 512
    expected = [by_formula(d, i, end, anti) for d in EASY.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_units_count_what_they_say():
    assert LinearCurriculum(4, "step").progress(3) == 0.75
    assert LinearCurriculum(4, "epoch").progress(1.999) == 0.25
    assert LinearCurriculum(4, "epoch").progress(1.9999999999) == 0.5  # a trainer's sum of fractions
    assert LinearCurriculum(4, iteration_size=10).progress(39) == 0.75
    counts = {"samples": 100, "steps": 7, "epochs": 1.5}
    for unit, expected in (("iteration", 100), ("step", 7), ("epoch", 1.5)):
        assert LinearCurriculum(2, unit).position(**counts) == expected


def test_fading_is_linear_and_then_the_weights_are_exactly_one():
    curriculum = LinearCurriculum(10, "step")
    rows = torch.stack([curriculum.weight(EASY, i) for i in range(13)])
    torch.testing.assert_close(rows[1:11] - rows[:10], (rows[1] - rows[0]).expand(10, 4))
    assert (rows[10:] == 1).all()
    assert (rows[9, :3] < 1).all()


@given(
    d=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    end=st.integers(1, 30),
    i=st.integers(0, 40),
    anti=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_weights_stay_between_difficulty_and_one_and_keep_the_order(d, end, i, anti):
    easy = torch.tensor(d, dtype=torch.float64)
    weight = LinearCurriculum(end, "step", anti=anti, smooth=0.0).weight(easy, i)
    least = 1 - easy if anti else easy
    assert ((weight >= least - 1e-12) & (weight <= 1 + 1e-12)).all()
    order = least.argsort()
    assert (weight[order].diff() >= -1e-12).all()


def test_normalized_weights_have_mean_one_and_keep_their_ratios():
    plain = LinearCurriculum(10, "step").weight(EASY, 3)
    normal = LinearCurriculum(10, "step", normalize=True).weight(EASY, 3)
    assert normal.mean().item() == pytest.approx(1, abs=1e-15)
    torch.testing.assert_close(normal / normal[3], plain / plain[3])
    nothing = LinearCurriculum(0, smooth=0.0, normalize=True).weight(torch.zeros(3), 0)
    assert torch.equal(nothing, torch.zeros(3))


def test_dtypes_shapes_and_gradient():
    curriculum = LinearCurriculum(10, "step")
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.int64, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert curriculum.weight(torch.ones(2, 3).to(dtype), 0).dtype == expected
    assert curriculum.weight(torch.ones(2, 3), 0).shape == (2, 3)
    assert curriculum.weight(torch.ones(()), 0).shape == ()
    assert not curriculum.weight(torch.rand(3, requires_grad=True), 0).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 2.0}, "end=2.0 is no whole number"),
        ({"end": True}, "end=True is no whole number"),
        ({"end": 2, "unit": "batch"}, "unit='batch' is unknown; choose iteration, epoch, step"),
        ({"end": 2, "iteration_size": 0}, "iteration_size=0 must be at least 1"),
        ({"end": 2, "iteration_size": 1.5}, "iteration_size=1.5 is no whole number"),
        ({"end": 2, "smooth": -1.0}, "smooth=-1.0"),
        ({"end": 2, "smooth": math.nan}, "smooth=nan"),
    ],
)
def test_bad_options_are_refused(options, message):
    # Past the test run's own type checks, which users do not have.
    curriculum = object.__new__(LinearCurriculum)
    for field in fields(LinearCurriculum):
        object.__setattr__(curriculum, field.name, options.get(field.name, field.default))
    with pytest.raises(ValueError, match=message):
        curriculum.__post_init__()


@pytest.mark.parametrize("value", [-0.001, 1.001, math.nan, math.inf])
def test_a_difficulty_outside_the_range_is_named(value):
    with pytest.raises(ValueError, match=r"of row 2 lies outside \[0, 1\]"):
        LinearCurriculum(3).weight(torch.tensor([0.0, 1.0, value, 0.5]), 0)
    with pytest.raises(ValueError, match=r"of row \[1, 0\] lies outside"):
        LinearCurriculum(3).weight(torch.tensor([[0.0, 1.0], [value, 0.5]]), 0)
    with pytest.raises(ValueError, match="position=-1 is negative"):
        LinearCurriculum(3).weight(torch.ones(1), -1)


# With a plain Hugging Face Trainer and a loss that is not ours -----------------------------------------


class WeightedRegression(nn.Module):
    """Squared errors weighted by the curriculum, all in the model's own forward pass."""

    weighting = "sample"

    def __init__(self, curriculum):
        super().__init__()
        self.curriculum, self.position, self.step = curriculum, 0.0, None
        self.weight = nn.Parameter(torch.zeros(2))
        self.seen: list[tuple[int, float]] = []

    def forward(self, x, y, difficulty):
        error = (x @ self.weight - y).square()
        self.seen.append((self.step, self.position))
        return {"loss": (error * self.curriculum.weight(difficulty, self.position)).mean()}


def rows(n=24):
    g = torch.Generator().manual_seed(0)
    x, d = torch.randn(n, 2, generator=g), torch.rand(n, generator=g)
    return [
        {"x": a, "y": b, "difficulty": c} for a, b, c in zip(x, x @ torch.tensor([1.0, -2.0]), d, strict=True)
    ]


def train(folder, model, steps, resume=None, save=0, accumulation=1, **options):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=0.1,
        gradient_accumulation_steps=accumulation,
        save_strategy="steps" if save else "no", save_steps=save or 500,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no", remove_unused_columns=False,
        dataloader_pin_memory=False, seed=3, **options,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows(), callbacks=[CurriculumCallback(model)]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return model


@pytest.mark.parametrize(
    ("unit", "positions"),
    [("iteration", [0, 4, 8, 12, 16, 20, 24, 28]), ("step", list(range(8))), ("epoch", None)],
)
def test_a_trainer_tells_the_position(tmp_path, unit, positions):
    model = train(tmp_path, WeightedRegression(LinearCurriculum(3, unit, iteration_size=8)), 8)
    assert [step for step, _ in model.seen] == list(range(8))
    seen = [position for _, position in model.seen]
    if positions is None:  # six steps make an epoch
        assert [math.floor(p + 1e-6) for p in seen] == [0] * 6 + [1] * 2
    else:
        assert seen == positions


def test_accumulated_batches_share_a_position(tmp_path):
    model = train(tmp_path, WeightedRegression(LinearCurriculum(3, iteration_size=8)), 3, accumulation=2)
    assert model.seen == [(0, 0), (0, 0), (1, 8), (1, 8), (2, 16), (2, 16)]


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path):
    def fresh():
        return WeightedRegression(LinearCurriculum(7, "step"))

    whole = train(tmp_path / "a", fresh(), 8)
    train(tmp_path / "b", fresh(), 8, save=5)
    resumed = train(tmp_path / "b", fresh(), 8, resume=str(tmp_path / "b" / "checkpoint-5"))
    assert resumed.seen == whole.seen[5:]
    assert torch.equal(resumed.weight, whole.weight)


def test_batch_weighting_with_accumulation_warns(tmp_path):
    model = WeightedRegression(LinearCurriculum(3, "step"))
    model.weighting = "batch"
    with pytest.warns(UserWarning, match="gradient_accumulation_steps=2"):
        train(tmp_path, model, 1, accumulation=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path, model, 1)


def test_a_loss_without_a_curriculum_is_told_the_step_alone(tmp_path):
    class Plain(WeightedRegression):
        def forward(self, x, y, difficulty):
            self.seen.append((self.step, self.position))
            return {"loss": (x @ self.weight - y).square().mean()}

    assert train(tmp_path, Plain(None), 2).seen == [(0, 0.0), (1, 0.0)]
