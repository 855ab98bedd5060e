"""The front door: known algorithms are named, ambiguous ones are called ambiguous, strangers are refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from gradatim.models.constructions import gradient_descent, gradient_descent_pp, newton
from gradatim.models.linear_attention import LinearAttentionRegressor, LSAConfig
from gradatim.probes import (
    Averaging,
    ConjugateGradient,
    GradientDescent,
    GradientDescentPlusPlus,
    GradientFlow,
    IterativeNewton,
    KNeighbors,
    LeastSquares,
    OnlineGradientDescent,
    PreconditionedGradientDescent,
    Ridge,
    Zero,
    identify,
)
from gradatim.probes.boolean_bayes import TernaryBayes
from gradatim.probes.boolean_references import Elimination, GF2Elimination, NearestNeighbours
from gradatim.tasks import BooleanTask, LinearRegressionTask, context_generator

TASK = LinearRegressionTask(4, 12)
EXACT = {"contexts": 200, "tuning_contexts": 150, "dtype": torch.float64, "bootstrap": 200}


@pytest.mark.parametrize(
    "algorithm",
    [
        Zero(),
        LeastSquares(),
        Ridge(0.3),
        Averaging(),
        GradientDescent(1, 0.05),
        GradientDescent(1, 0.7, reduction="mean"),
        GradientDescent(3, 0.03),
        GradientDescent(16, 0.2, reduction="mean"),
        GradientFlow(0.2),
        IterativeNewton(2),
        IterativeNewton(5),
        ConjugateGradient(2),
        OnlineGradientDescent("nlms"),
        OnlineGradientDescent(0.05),
        GradientDescentPlusPlus(0.6, 0.015, steps=2),
        KNeighbors(3, "uniform"),
    ],
    ids=lambda a: a.name,
)
@pytest.mark.filterwarnings("ignore:.*diverges on")
def test_an_algorithm_is_named(algorithm):
    found = identify(algorithm, TASK, **EXACT)
    assert found.fits
    assert found.matches[0].similarity > 1 - 1e-6
    assert found.best.difference < 1e-8
    names = [m.name for m in found.equals]
    assert algorithm.name in names or found.best.difference == pytest.approx(0.0, abs=1e-8)
    assert str(found).startswith(found.best.name)
    # Nothing that is not the same function may be as near.
    assert all(m.difference < 1e-6 for m in found.equals)


def test_constructions_identify_as_the_step_they_are():
    d, n = 4, 10
    task = LinearRegressionTask(d, n + 1, x="uniform")
    found = identify(gradient_descent(d, n, lr=5.0), task, positions=[-1], **EXACT)
    assert found.best.family == "GD, one step"
    assert found.best.numbers[0] == pytest.approx(5.0, rel=1e-6)
    assert found.best.similarity == pytest.approx(1.0, abs=1e-12)
    assert found.best.number_interval == pytest.approx((5.0, 5.0), rel=1e-4)

    found = identify(gradient_descent_pp(d, n, lr=9.0, gamma=0.15, steps=2), task, positions=[-1], **EXACT)
    assert found.best.family == "GD++"
    assert found.best.numbers == pytest.approx((9.0, 0.15), rel=1e-3)
    assert found.best.similarity == pytest.approx(1.0, abs=1e-8)


def test_a_trained_linear_attention_layer_is_one_step_of_gradient_descent():
    """Sheet 11's anchors: eta* = 6.0606 and a loss of .20623 for d = N = 10, inputs U(-1/2, 1/2)."""
    task = LinearRegressionTask(10, 11, x="uniform")
    model = LinearAttentionRegressor(LSAConfig(d=10), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.98))
    steps = 600
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * max(0.02, 1 - step / steps)
        batch = task.sample(512, generator=context_generator(0, step))
        answer = model(batch.x[:, :-1], batch.y[:, :-1], query=batch.x[:, -1:]).predictions[:, 0]
        optimizer.zero_grad()
        (answer - batch.y[:, -1]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
    found = identify(model, task, positions=[-1], contexts=4000, layers=False)
    assert str(found).startswith("GD(1 step, ")
    assert found.best.numbers[0] == pytest.approx(6.0606, rel=0.03)
    low, high = (half / 2 for half in found.error_interval)
    assert low < 0.20623 < high
    assert found.error / 2 == pytest.approx(0.20623, rel=0.05)


def test_the_newton_construction_identifies_as_newton():
    # Its alpha is one number in the weights, for all contexts.
    task = LinearRegressionTask(3, 10)
    found = identify(newton(3, 9, steps=4, alpha=1e-3), task, positions=[-1], **{**EXACT, "contexts": 60})
    assert str(found).startswith("Newton(4, 0.001)")
    assert found.best.similarity == pytest.approx(1.0, abs=1e-9)


def test_noise_points_to_the_bayes_ridge():
    task = LinearRegressionTask(4, 12, sigma=0.5)

    def learner(x, y):
        # Ridge with a small error of its own, as training leaves it.
        blur = torch.sin(37 * x.sum(-1)) * 0.03
        return Ridge(0.25).predict(x, y) + blur.to(y)

    found = identify(learner, task, contexts=400, tuning_contexts=200)
    assert found.best.name == "Bayes(0.5, 1)"
    ridge = next(m for m in found.matches if m.family == "ridge")
    assert ridge.equal
    low, high = ridge.number_interval
    assert 0.24 < low <= high < 0.26


def test_newton_is_not_claimed_where_gradient_descent_does_as_well():
    rate = 0.02
    task = LinearRegressionTask(4, 20)

    def between(x, y):
        return (IterativeNewton(4).predict(x, y) + GradientDescent(8, rate).predict(x, y)) / 2

    found = identify(between, task, references=_two(rate), contexts=300, tuning_contexts=10)
    assert [m.name for m in found.equals] == ["GD(8 steps, 0.02)", "Newton(4)"]
    assert str(found).startswith("GD(8 steps, 0.02) (as well as Newton(4))")
    clear = identify(IterativeNewton(4), task, references=_two(rate), contexts=300, tuning_contexts=10)
    assert str(clear).startswith("Newton(4): ")


def _two(rate):
    from gradatim.probes.reference_families import Family

    return [
        Family("Newton", lambda: IterativeNewton(4), plain=9),
        Family("GD", lambda: GradientDescent(8, rate), plain=5),
    ]


@pytest.mark.parametrize(
    "learner",
    [
        lambda x, y: torch.tanh(3 * x[..., 0]),
        lambda x, y: torch.randn(y.shape, generator=torch.Generator().manual_seed(x.shape[0])),
    ],
    ids=["no-context", "noise"],
)
def test_a_stranger_fits_nothing(learner):
    found = identify(learner, TASK, contexts=200, tuning_contexts=200, batch_size=10_000)
    assert not found.fits
    assert found.best is None
    assert str(found).startswith("no reference fits")


def test_preconditioner_is_found_where_inputs_are_not_isotropic():
    task = LinearRegressionTask(3, 12, cov=[[4.0, 0, 0], [0, 1.0, 0], [0, 0, 0.25]])
    matrix = torch.diag(torch.tensor([0.2, 0.9, 2.0], dtype=torch.float64))
    found = identify(PreconditionedGradientDescent(matrix), task, **EXACT)
    assert found.best.family == "preconditioned GD"
    assert found.best.similarity > 1 - 1e-9


def test_tuning_never_sees_the_judging_contexts():
    seen = []

    class Watched(LinearRegressionTask):
        def sample(self, batch, **options):
            drawn = super().sample(batch, **options)
            seen.append(drawn.x)
            return drawn

    identify(Ridge(0.1), Watched(3, 6), contexts=50, tuning_contexts=40)
    rows = torch.cat(seen).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 90


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (lambda x, y: y, "change with the label"),
        (lambda x, y: y.cumsum(1) * 0 + y.sum(1, keepdim=True), "change with the label"),
        (lambda x, y: y[:, 1:], "one number per pair"),
        (lambda x, y: y * torch.nan, "not finite"),
    ],
)
def test_learners_that_answer_wrongly_are_refused(learner, message):
    with pytest.raises(ValueError, match=message):
        identify(learner, TASK, contexts=20, tuning_contexts=5)


@pytest.mark.parametrize("positions", [[12], [-13], []])
def test_positions_outside_the_context_are_refused(positions):
    with pytest.raises(ValueError, match="positions must lie"):
        identify(Ridge(1.0), TASK, positions=positions, contexts=20, tuning_contexts=5)


def test_position_zero_alone_is_the_zero_predictor():
    found = identify(Ridge(1.0), TASK, positions=[0], contexts=30, tuning_contexts=5)
    assert str(found).startswith("zero")


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("conjunction", Elimination("conjunction")),
        ("conjunction", TernaryBayes("conjunction", inputs=True)),
        ("parity", GF2Elimination()),
        ("majority", NearestNeighbours(1)),
    ],
)
def test_boolean_learners_are_named(name, algorithm):
    found = identify(algorithm.predict, BooleanTask(6, name, n=16), contexts=200, tuning_contexts=5)
    assert found.best is not None
    assert algorithm.name in [m.name for m in found.equals]
    assert found.best.similarity == 1.0


def gpt2(d, n, width=32, layers=3):
    """A Hugging Face GPT-2 that the library knows nothing of, wrapped in ten lines."""
    from transformers import GPT2Config, GPT2Model

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            config = GPT2Config(n_positions=2 * n, n_embd=width, n_layer=layers, n_head=2, vocab_size=1)
            self.body, self.into, self.out = GPT2Model(config), nn.Linear(d, width), nn.Linear(width, 1)

        def forward(self, x, y, output_hidden_states=False):
            tokens = torch.stack([x, nn.functional.pad(y[..., None], (0, d - 1))], dim=2).flatten(1, 2)
            h = self.body(inputs_embeds=self.into(tokens), output_hidden_states=True)
            predictions = self.out(h.last_hidden_state[:, ::2])[..., 0]
            return Answer(predictions, tuple(s[:, ::2] for s in h.hidden_states))

    torch.manual_seed(0)
    return Wrapped()


class Answer:
    def __init__(self, predictions, hidden_states):
        self.predictions, self.hidden_states = predictions, hidden_states


def test_a_model_that_we_did_not_build():
    torch.manual_seed(0)
    model = gpt2(3, 6)
    model.train()
    found = identify(model, LinearRegressionTask(3, 6), contexts=100, tuning_contexts=100, bootstrap=100)
    assert model.training
    assert len(found.layers) == 4
    assert not found.fits
    text = str(found)
    assert "Newton steps" in text
    document = json.loads(json.dumps(found.to_json()))
    assert document["best"] is None
    assert len(document["layers"]) == 4


def test_identification_draws_itself():
    from matplotlib.figure import Figure

    found = identify(gpt2(3, 6), LinearRegressionTask(3, 6), contexts=60, tuning_contexts=60, bootstrap=50)
    figure = Figure()
    found.plot(figure)
    assert len(figure.axes) == 2
    shown = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert set(shown) <= {m.name for m in found.matches}
