"""Study 21 on a small scale: what it measures on learners that are known algorithms, and that it can fail."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from torch import nn

from gradatim.bench import Outcome, Results, judge
from gradatim.probes import GradientDescent, IterativeNewton
from gradatim.studies import load
from gradatim.studies.icl_newton import ARMS, CONSTRUCTION, ILL, ISO, LSTM, study
from gradatim.studies.icl_newton_trials import _judge, _task, batch, fit_steps

TINY = {
    "d": 3, "n": 8, "kappa": 10, "batch": 8, "contexts": 60, "rate_factor": 2.0,
    "transformer": {"layers": 2, "width": 16, "heads": 2, "steps": 3, "lr": 1e-3},
    "lstm": {"layers": 1, "width": 16, "steps": 3, "lr": 1e-3},
}  # fmt: skip


class Layers(nn.Module):
    """A learner whose layer l is an algorithm after a constant number of steps per layer."""

    def __init__(self, algorithms):
        super().__init__()
        self.algorithms = algorithms

    def forward(self, x, y, output_hidden_states=False):
        each = [p.predict(x.double(), y.double()) for p in self.algorithms]
        states = tuple(h[..., None] for h in [0.01 * each[0], *each])
        return SimpleNamespace(predictions=each[-1], hidden_states=states)


def judged(algorithms, seed=5, settings=None):
    scale = {**TINY, "d": 4, "n": 14, "contexts": 200}
    settings = settings or ISO.settings
    return _judge(Layers(algorithms), _task(settings, scale), seed, scale, settings)


def test_newton_layers_are_found_and_told_from_gradient_descent_by_their_rate():
    found = judged([IterativeNewton(k) for k in (1, 3, 5, 7, 9, 11, 13)])
    # A read-out may rescale: the first step, which is far too short, looks like the second.
    assert found.curves["newton/steps"].y[2:-1] == [3, 5, 7, 9, 11, 13]
    assert found.metrics["newton_slope"] == pytest.approx(2, rel=0.1)
    assert found.metrics["newton_r2"] > 0.98
    assert found.metrics["sim_newton"] == pytest.approx(1)
    assert found.metrics["misfit_newton"] < 0.02
    assert found.metrics["newton_lead"] > 0.05
    # One fact on two axes: the matched gradient steps are those that match these Newton steps.
    assert found.metrics["identity_gap"] < 0.5
    assert found.metrics["gd_slope_log"] == pytest.approx(1, abs=0.35)
    assert found.metrics["gd_log_gain"] > 0


def test_gradient_descent_layers_are_found():
    found = judged([GradientDescent(k, 0.02) for k in (1, 4, 8, 16, 32, 64, 128)])
    assert found.curves["gd/similarity"].y[-1] == pytest.approx(1, abs=0.01)
    assert found.metrics["sim_gd_tuned"] == pytest.approx(1, abs=0.01)
    assert found.metrics["sim_gd_tuned"] > found.metrics["sim_newton"]
    even = judged([GradientDescent(16 * k, 0.02) for k in (1, 2, 3, 4, 5, 6, 7, 8)])
    assert even.metrics["misfit_gd"] < 0.02
    assert even.metrics["newton_lead"] < 0


def test_steps_per_layer_are_recovered():
    table = np.log(0.5 ** np.arange(20.0))
    rms, steps = fit_steps([1, 2, 3, 4], table[[3, 6, 9, 12]], range(20), table)
    assert rms < 0.05
    assert steps == pytest.approx(3, rel=0.05)
    assert fit_steps([1, 2, 3, 4], np.array([0.0, -0.1, -3.0, -3.1]), range(20), table)[0] > 0.3


@pytest.fixture(scope="module")
def found():
    return Results({arm.name: dict(enumerate(batch(arm, range(2), TINY))) for arm in ARMS})


def test_every_arm_gives_finite_numbers_whoever_shares_its_stack(found):
    for arm in ARMS:
        for outcome in found.outcomes[arm.name].values():
            assert outcome.first_non_finite() is None
    assert found.metric(ILL.name, "weak_share")[0] == pytest.approx(2 / 12)
    alone = batch(ISO, [1], TINY)[0]
    for name, value in found.outcomes[ISO.name][1].metrics.items():
        assert alone.metrics[name] == pytest.approx(value, abs=1e-3)
    assert found.metric(ISO.name, "error")[0] != found.metric(ISO.name, "error")[1]


def test_the_construction_needs_values_of_opposite_sign(found):
    digits, printed = (found.metric(CONSTRUCTION.name, m)[0] for m in ("digits", "digits_printed_signs"))
    assert digits > 12
    assert printed < 0
    assert found.metric(CONSTRUCTION.name, "layers")[0] == 6 + 3


def outcomes(**arms):
    names = {"iso": ISO.name, "ill": ILL.name, "lstm": LSTM.name, "construction": CONSTRUCTION.name}
    rng = np.random.default_rng(0)
    return Results({
        names[key]: {
            seed: Outcome({k: v + 1e-4 * float(rng.normal()) for k, v in metrics.items()})
            for seed in range(1000, 1004)
        }
        for key, metrics in arms.items()
    })  # fmt: skip


PAPER_LIKE = {
    "iso": {"newton_slope": 3.0, "line_gain": 0.2, "gd_log_gain": 0.3, "identity_gap": 3.0,
            "sim_newton": 0.994, "sim_gd": 0.95, "sim_gd_tuned": 0.96, "newton_lead": 0.3,
            "newton_lead_gd++": 0.2, "newton_last": 20.0, "gd_last_log": 9.0, "rise": 0.0, "rise_log": 0.0},
    "ill": {"newton_last": 20.5, "gd_last_log": 12.0},
    "lstm": {"sim_ogd": 0.954, "sim_newton": 0.92, "sim_gd_tuned": 0.916, "rise": 0.1, "rise_log": 1.0},
    "construction": {"digits": 15.0, "digits_printed_signs": -5.0},
}  # fmt: skip


def test_claims_hold_on_results_like_the_papers_and_fail_on_others():
    good = judge(study, outcomes(**PAPER_LIKE))
    assert {v.word for v in good} == {"reproduced"}
    assert {v.control.word for v in good} == {"survives"}
    flipped = {
        "iso": {**{k: -v for k, v in PAPER_LIKE["iso"].items()}, "newton_last": 5.0, "gd_last_log": 9.0,
                "identity_gap": 0.2, "rise": 0.2, "rise_log": 2.0},
        "ill": {"newton_last": 20.0, "gd_last_log": 12.0},
        "lstm": {**PAPER_LIKE["lstm"], "sim_ogd": 0.8},
        "construction": {"digits": 3.0, "digits_printed_signs": 3.0},
    }  # fmt: skip
    bad = judge(study, outcomes(**flipped))
    assert {v.word for v in bad} == {"not reproduced"}
    assert {v.control.word for v in bad} == {"explained away"}


def test_figures_draw_with_and_without_results(found):
    for results in (found, Results({})):
        for figure in study.figures:
            canvas = Figure()
            figure.draw(canvas, results)
            canvas.canvas.draw()
            table = figure.table(results)
            assert bool(table.rows) == bool(results.outcomes)
            assert all(len(row) == len(table.header) for row in table.rows)


def test_the_study_is_found_and_its_snippet_runs(capsys):
    assert load("21") is study
    assert load("icl-newton") is study
    exec(compile(study.snippet, "snippet", "exec"), {})  # noqa: S102
    best = [int(word) for word in re.findall(r"\d+", capsys.readouterr().out)]
    assert len(best) == 10
    assert best == sorted(best)
