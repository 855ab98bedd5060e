"""Study 02 on a small scale: what it says of learners that are known algorithms, and that it can fail."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from gradatim.bench import Outcome, Results, judge
from gradatim.probes import GradientDescent, LeastSquares, Ridge
from gradatim.studies import load
from gradatim.studies.icl_linear import CLEAN, CORE, FIXED, NOISY, ONE, WIDE, study
from gradatim.studies.icl_linear_trials import GRID, _linear, _matched, _task, batch, model

TINY = {
    "d": 3, "n": 6, "layers": 2, "heads": 2, "width": 8, "tokens": "paired",
    "batch": 8, "steps": 4, "lr": 1e-3, "contexts": 80,
    "probe_pairs": 4, "probe_steps": 3, "probe_width": 4,
}  # fmt: skip


class Known(nn.Module):
    """A learner that is an algorithm."""

    def __init__(self, algorithm):
        super().__init__()
        self.algorithm = algorithm

    def forward(self, x, y):
        return SimpleNamespace(predictions=self.algorithm.predict(x, y))


def matched(algorithm, settings, halfway=None):
    scale = {**TINY, "contexts": 600}
    task = _task(settings, scale)
    return _matched(Known(algorithm), Known(halfway or algorithm), task, 5, scale)


def test_a_ridge_is_found_with_its_penalty():
    found, curves = matched(Ridge(0.25), NOISY.settings, halfway=Ridge(0.5))
    assert found["lambda"] == pytest.approx(0.25, rel=0.01)
    assert found["lambda_halfway"] == pytest.approx(0.5, rel=0.01)
    assert found["lambda_drift"] == pytest.approx(1.0, abs=0.03)
    assert found["log2_lambda_over_bayes"] == pytest.approx(0.0, abs=0.03)
    assert found["bayes_lead"] > 5
    assert found["ridge_lead"] > 3
    assert found["excess"] == pytest.approx(0.0, abs=1e-9)
    assert found["tuned/ridge"] < 1e-4
    valley = curves["valley"]
    assert valley.x[int(np.argmin(valley.y))] == pytest.approx(0.25, rel=0.35)


def test_another_ridge_than_the_bayes_one_is_not_taken_for_it():
    found, _ = matched(Ridge(1.0), NOISY.settings)
    assert found["log2_lambda_over_bayes"] == pytest.approx(2.0, abs=0.05)
    assert found["bayes_lead"] < 0


def test_least_squares_and_one_step_are_told_apart():
    squares, _ = matched(LeastSquares(), CLEAN.settings)
    assert squares["mspd/0"] == pytest.approx(0.0, abs=1e-10)
    assert squares["ols_lead"] > 10
    assert squares["one_step_lead"] < -3
    step, _ = matched(GradientDescent(1, 0.11), CLEAN.settings)
    assert step["tuned/GD, 1 step"] < 1e-4
    assert step["one_step_lead"] > 3
    assert step["one_step_lead_over_zero"] > 3
    assert step["ols_lead"] < 0


def test_linear_learners_are_linear():
    scale = {**TINY, "contexts": 600}
    task = _task(CLEAN.settings, scale)
    untrained = model(CLEAN.settings, scale, 0)
    metrics, curves = _linear(Known(Ridge(0.1)), untrained, task, 0, scale)
    assert curves["r2"].y == pytest.approx([1.0] * 5)
    assert metrics["r2_rise"] == pytest.approx(0.0, abs=1e-6)


def test_the_wide_layer_has_no_fewer_parameters():
    def blocks(settings):
        return sum(
            p.numel() for p in model(settings, study.profiles["quick"].scale, 0).backbone.blocks.parameters()
        )

    assert blocks(WIDE.settings) >= blocks(CLEAN.settings) > 2 * blocks(ONE.settings)


@pytest.fixture(scope="module")
def found():
    return Results({arm.name: dict(enumerate(batch(arm, range(2), TINY))) for arm in CORE})


def test_trials_are_finite_and_depend_on_their_seed_alone(found):
    for arm in CORE:
        assert all(o.first_non_finite() is None for o in found.outcomes[arm.name].values())
    alone = batch(CLEAN, [1], TINY)[0]
    together = found.outcomes[CLEAN.name][1]
    assert alone.metrics == pytest.approx(together.metrics, rel=1e-3, abs=1e-4)
    assert alone.metrics["error"] != found.outcomes[CLEAN.name][0].metrics["error"]
    assert found.metric(FIXED.name, "steps")[0] == round(0.3 * TINY["steps"])


def test_every_claim_can_be_judged(found):
    for claim in study.claims:
        assert set(claim.effect(found)) == {0, 1}, claim.id
        assert set(claim.control.effect(found)) == {0, 1}, claim.id
    assert len(judge(study, found)) == len(study.claims)


def outcomes(arm_metrics):
    return Results({
        arm: {seed: Outcome({k: v + 0.01 * seed for k, v in metrics.items()}) for seed in range(4)}
        for arm, metrics in arm_metrics.items()
    })  # fmt: skip


@pytest.mark.parametrize(("ratio", "expected"), [(0.1, "reproduced"), (2.0, "not reproduced")])
def test_the_bayes_penalty_may_be_missed(ratio, expected):
    results = outcomes({NOISY.name: {"log2_lambda_over_bayes": ratio, "lambda_drift": 0.1}})
    verdict = next(v for v in judge(study, results) if v.claim.id == "bayes-penalty")
    assert verdict.word == expected


def test_effects_have_the_right_sign():
    results = outcomes({
        NOISY.name: {"log2_lambda": -2.0, "lambda": 0.25},
        CLEAN.name: {"log2_lambda": -5.0, "lambda_on_noisy": 0.125, "mspd/0": 0.02,
                     "tuned/ridge": 0.1, "tuned/OLS": 0.2, "probe/w_ols": 0.2, "probe/w_ols_untrained": 0.4},
        ONE.name: {"mspd/0": 0.1}, WIDE.name: {"mspd/0": 0.05}, FIXED.name: {"probe/w_ols": 0.5},
    })  # fmt: skip
    claims = {claim.id: claim for claim in study.claims}
    assert claims["noise-order"].effect(results)[0] == pytest.approx(3.0)
    assert claims["noise-order"].control.effect(results)[0] == pytest.approx(1.0)
    assert claims["agreement"].effect(results)[0] == pytest.approx(-0.01)
    assert claims["agreement"].control.effect(results)[0] == pytest.approx(-1.0)
    assert claims["depth"].effect(results)[0] == pytest.approx(0.08)
    assert claims["depth"].control.effect(results)[0] == pytest.approx(0.03)
    assert claims["weights-readable"].effect(results)[0] == pytest.approx(0.3)
    assert claims["weights-readable"].control.effect(results)[0] == pytest.approx(1.0)


def test_noise_levels_are_those_of_the_grid():
    for arm in study.arms:
        if arm.name.startswith("noise/"):
            ratio = (arm.settings["sigma"] / arm.settings["tau"]) ** 2
            assert min(abs(ratio - a) for a in GRID) < 1e-12


def test_figures_draw_with_and_without_results(found):
    for figure in study.figures:
        for results in (found, Results({})):
            drawn = Figure()
            figure.draw(drawn, results)
            table = figure.table(results)
            assert all(len(row) == len(table.header) for row in table.rows)
        assert figure.table(found).rows


def test_snippet_runs(capsys):
    exec(compile(study.snippet, "snippet", "exec"), {})  # noqa: S102
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["OLS", "ridge(0.25)", "GD(1"]
    assert all(math.isfinite(float(re.findall(r"[\d.]+$", line)[0])) for line in printed)


def test_is_found_by_number_and_slug():
    assert load("2") is load("icl-linear") is study
    assert study.first_seed == 1000
    assert set(study.profiles) == {"quick", "standard", "paper"}


def test_paper_profile_is_the_papers_network():
    scale = study.profiles["paper"].scale
    with torch.device("meta"):
        made = model(CLEAN.settings, {**scale, "layers": 1}, 0)
    assert made.config.arch == "akyurek2022"
    assert made.config.tokens == "interleaved"
    assert made.config.n_embd == 512
