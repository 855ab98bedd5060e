"""Schedules on a table: fair rates, last iterates, runnable code."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from gradatim.bench import Results
from gradatim.compare import schedule
from gradatim.compare.comparison import Winner
from gradatim.compare.schedule_code import winner_code
from gradatim.optim import refine_schedule


def scale_of(study):
    return study.profiles["compare"].scale


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_every_arm_learns_and_repeats_itself(table, kind):
    study = schedule.comparison(table(kind=kind), "y", epochs=5)
    metric = study.headline[0][0]
    scale = scale_of(study)
    plain = schedule.trial(schedule.ARMS["constant"], 0, scale).metrics[metric]
    outcomes = {}
    for arm in study.arms[:-1]:
        outcome = schedule.trial(arm, 0, scale)
        assert outcome.metrics[metric] < plain, arm.name
        assert outcome.metrics["chosen rate"] in schedule.RATES["adamw"]
        outcomes[arm.name] = {0: outcome}
    again = schedule.trial(schedule.ARMS["refined"], 0, scale)
    assert again == outcomes["refined"][0]
    figure = Figure()
    schedule.SCHEDULES.draw(figure, Results(outcomes))
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert set(drawn) == {a.label for a in study.arms[:-1]}
    assert len(schedule.SCHEDULES.table(Results(outcomes)).rows) == 5
    np.testing.assert_allclose(drawn["linear decay"], np.linspace(1, 0, 200)[
        np.unique(np.linspace(0, 199, 100).round().astype(int))
    ])  # fmt: skip


def test_refined_is_the_refinement_of_the_norms():
    norms = np.concatenate([np.linspace(9, 1, 20), np.ones(180)])
    factors, fell_back = schedule.refined_factors(norms, "adamw")
    np.testing.assert_array_equal(factors, refine_schedule(norms, power=1.0).factors)
    assert not fell_back
    np.testing.assert_array_equal(
        schedule.refined_factors(norms, "sgd")[0], refine_schedule(norms, power=2.0).factors
    )
    vanishing = np.geomspace(1, 1e-9, 200)
    factors, fell_back = schedule.refined_factors(vanishing, "sgd")
    assert fell_back
    np.testing.assert_allclose(factors, np.linspace(1, 0, 200))


def test_the_rate_is_chosen_without_the_test_rows(table, monkeypatch):
    study = schedule.comparison(table(), "y", epochs=1)
    scale = scale_of(study)
    seen = []
    original = schedule._tune

    def spy(tuning, judging, *rest):
        seen.append((tuning, judging))
        return original(tuning, judging, *rest)

    monkeypatch.setattr(schedule, "_tune", spy)
    schedule.trial(schedule.ARMS["linear"], 0, scale)
    ((tuning, judging),) = seen
    # 72 training rows: 14 held out, 58 to tune on; the 18 test rows are in neither.
    assert (len(tuning.targets), len(judging.targets)) == (58, 14)


# A table this small may be fitted exactly; the refined arm then says that it falls back to linear decay.
@pytest.mark.filterwarnings("ignore::gradatim.optim.DegenerateScheduleWarning")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("arm", ["linear", "cosine", "inverse-sqrt", "refined", "flat"])
def test_printed_code_runs(table, optimizer, kind, arm):
    study = schedule.comparison(table(kind=kind), "y", optimizer=optimizer, epochs=1)
    rate = 0.1 if optimizer == "sgd" else 0.01
    code = winner_code(Winner(arm, "", 0.0, {"rate": rate}, 1), scale_of(study))
    namespace: dict = {}
    with torch.random.fork_rng():
        exec(compile(code, "snippet", "exec"), namespace)  # noqa: S102
    X, y = namespace["X"], namespace["y"]
    with torch.no_grad():
        out = namespace["model"](X)
    if kind == "classification":
        assert (out.argmax(1) == y).double().mean() > 0.8
    else:
        assert ((out.squeeze(1) - y) ** 2).mean() < 0.5
    # The user's own path is as long as it is; everything else keeps to the width of a page.
    path = scale_of(study)["data"]
    assert max(len(line.replace(path, "table.csv")) for line in code.splitlines()) < 110


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_saved_winner_predicts(table, kind, tmp_path):
    path = table(kind=kind)
    study = schedule.comparison(path, "y", epochs=5)
    saved = schedule.fit_winner(Winner("refined", "", 0.0, {"rate": 0.01}, 1), scale_of(study))
    saved.save(tmp_path)
    loaded = type(saved).load(tmp_path)
    frame = pd.read_csv(path)
    if kind == "classification":
        assert (loaded.predict(frame) == frame["y"]).mean() > 0.85
    else:
        assert np.std(loaded.predict(frame) - frame["y"]) < 0.5 * np.std(frame["y"])
    assert schedule.fit_winner(Winner("constant", "", 0.0, {}, 1), scale_of(study)) is None


def test_arms_answer_to_the_other_spelling(table):
    study = schedule.comparison(table(), "y", ["linear", "1/sqrt"])
    assert [a.name for a in study.arms] == ["linear", "inverse-sqrt", "flat", "constant"]
    assert study.claims[0].control.effect.baseline == "flat"
