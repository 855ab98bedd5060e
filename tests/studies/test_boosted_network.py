"""Study 09: its effects on made-up results, its honesty about test rows, and a small run."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import friedmanchisquare

from gradatim.bench import Arm, Outcome, Results, judge, tuning_seeds
from gradatim.studies import boosted_trials as trials
from gradatim.studies.boosted_figures import (
    RANKED,
    KeptAccuracy,
    LosesLessThanDense,
    NotFarBelowBestMLP,
    RankAdvantage,
    ranking,
)
from gradatim.studies.boosted_network import ARMS, QUICK, study

torch.set_num_threads(1)
SMALL = {**QUICK, "n_train": 80, "n_test": 200, "n_units": 12}


def _results(table, metric="accuracy"):
    return Results({
        arm: {seed: Outcome({metric: v} if not isinstance(v, dict) else v) for seed, v in enumerate(values)}
        for arm, values in table.items()
    })  # fmt: skip


def test_the_best_perceptron_is_the_one_with_the_best_mean():
    r = _results({
        "waveform/gbnn": [0.80, 0.82], "waveform/mlp-adam": [0.90, 0.70],
        "waveform/mlp-lbfgs": [0.81, 0.83], "waveform/mlp-sgd": [0.5, 0.5],
    })  # fmt: skip
    effect = NotFarBelowBestMLP("waveform", 0.02)(r)
    assert effect == pytest.approx({0: 0.01, 1: 0.01})
    rmse = {"gbnn": [2.2], "mlp-adam": [2.0], "mlp-lbfgs": [3.0], "mlp-sgd": [9.0]}
    r = _results({f"friedman1/{arm}": values for arm, values in rmse.items()}, "rmse")
    assert NotFarBelowBestMLP("friedman1", 0.05)(r) == pytest.approx({0: -0.1 + 0.05})
    assert NotFarBelowBestMLP("twonorm", 0.05)(r) == {}


def test_ranks_by_hand():
    scores = {"gbnn": 0.9, "mlp-adam": 0.8, "mlp-lbfgs": 0.8, "mlp-sgd": 0.95, "hist-gb": 0.1}
    table = {f"waveform/{a}": [v, v] for a, v in scores.items()}
    effect = RankAdvantage(("waveform", "moons"), ("mlp-adam", "mlp-lbfgs", "mlp-sgd"))(_results(table))
    assert effect == pytest.approx({0: (3.5 + 3.5 + 1) / 3 - 2, 1: (3.5 + 3.5 + 1) / 3 - 2})
    rng = np.random.default_rng(0)
    tasks = ("waveform", "twonorm", "moons", "digits")
    values = rng.random((4, len(RANKED)))
    table = {f"{t}/{a}": [values[i, j]] for i, t in enumerate(tasks) for j, a in enumerate(RANKED)}
    found = ranking(_results(table), tasks)
    by_hand = [[1 + sum(w > v for w in row) for v in row] for row in values]
    np.testing.assert_allclose(found.mean_ranks, np.mean(by_hand, axis=0))
    assert found.friedman_p == pytest.approx(friedmanchisquare(*values.T).pvalue)
    # Demsar's table gives q = 2.728 for five classifiers.
    assert found.critical_difference == pytest.approx(2.728 * (5 * 6 / 24) ** 0.5, rel=1e-3)


def test_switching_off_is_compared_with_the_kindest_dense_net():
    ours = [{"score_50pct_units": 0.80, "score_100pct_units": 0.83}]
    dense = {"accuracy": 0.9} | {f"score_50pct_units_{r}": v for r, v in
                                 (("random", 0.5), ("rescaled", 0.6), ("weight", 0.88))}  # fmt: skip
    r = _results({"waveform/gbnn": ours, "waveform/dense-adam": [dense]})
    assert KeptAccuracy("waveform/gbnn", 50, 0.02)(r) == pytest.approx({0: -0.01})
    assert LosesLessThanDense("waveform", 50)(r) == pytest.approx({0: 0.02 - 0.03})


def test_dropping_dense_units_by_hand():
    outcome = next(iter(trials.tabular_batch(
        Arm("waveform/dense-lbfgs", {"task": "waveform", "kind": "dense", "solver": "lbfgs"}), [3], SMALL
    )))  # fmt: skip
    X, y, X_test, y_test = trials.split_of("waveform", 3, SMALL)
    net = trials._fitted(trials.make_model("mlp-lbfgs", False, {"width": 12}, 3), X, y, False).boosted
    kept = sorted(range(12), key=lambda u: -float(np.linalg.norm(net.coefs_[1][u])))[:6]
    hidden = 1 / (1 + np.exp(-(X_test @ net.coefs_[0][:, kept] + net.intercepts_[0][kept])))
    scores = hidden @ net.coefs_[1][kept] + net.intercepts_[1]
    assert outcome.metrics["score_50pct_units_weight"] == pytest.approx(np.mean(scores.argmax(1) == y_test))
    for rule in trials.DROP_RULES:
        assert outcome.metrics[f"score_100pct_units_{rule}"] == outcome.metrics["accuracy"]


@pytest.mark.parametrize("name", ["waveform/gbnn", "friedman1/gbnn", "twonorm/mlp-lbfgs", "twonorm/hist-gb"])
def test_a_trial_depends_on_arm_seed_and_scale_alone(name):
    arm = next(a for a in ARMS if a.name == name)
    together = list(study.batch(arm, [0, 1], SMALL))
    alone = list(study.batch(arm, [1], SMALL))
    assert together[1].metrics == alone[0].metrics
    assert together[0].metrics != alone[0].metrics
    assert all(o.first_non_finite() is None for o in together)


def test_switched_off_scores_follow_the_training_order():
    arm = next(a for a in ARMS if a.name == "friedman1/gbnn")
    metrics = next(iter(study.batch(arm, [0], SMALL))).metrics
    assert metrics["score_100pct_units"] == pytest.approx(-metrics["rmse"], rel=1e-9)
    assert metrics["score_10pct_units"] < metrics["score_50pct_units"]
    assert metrics["assembly_gap"] < 1e-10 < metrics["whole_bias_gap"]


def test_settings_are_chosen_without_the_test_rows(monkeypatch):
    asked = []
    honest = trials.split_of
    monkeypatch.setattr(trials, "split_of", lambda t, s, c: asked.append(s) or honest(t, s, c))
    trials._chosen_on_draws.cache_clear()
    arm = next(a for a in ARMS if a.name == "moons/gbnn")
    X, y, *_ = honest("moons", 0, SMALL)
    trials.choose(arm, 0, SMALL, (X, y))
    assert asked == list(tuning_seeds(SMALL["n_tune"]))
    # Bundled sets: only rows handed in, which are the training rows.
    asked.clear()
    arm = next(a for a in ARMS if a.name == "breast_cancer/mlp-lbfgs")
    X, y, *_ = honest("breast_cancer", 0, SMALL)
    trials.choose(arm, 0, SMALL | {"inner_folds": 3}, (X, y))
    assert asked == []


def test_outer_folds_part_the_rows_of_a_bundled_set():
    rows = [trials.split_of("breast_cancer", s, SMALL | {"outer_folds": 10}) for s in range(10)]
    assert sum(len(r[2]) for r in rows) == 569
    again = trials.split_of("breast_cancer", 10, SMALL | {"outer_folds": 10})
    assert not np.array_equal(again[3], rows[0][3])
    for X, y, X_test, y_test in rows[:2]:
        assert len(X) + len(X_test) == len(y) + len(y_test) == 569
        np.testing.assert_allclose(X.mean(0), 0.0, atol=1e-9)


def test_grids_are_the_sheet_s():
    sizes = {
        g: len(trials.candidates_of("gbnn", QUICK | {"grid": g})) for g in ("quick", "standard", "paper")
    }
    assert sizes == {"quick": 2, "standard": 9, "paper": 80}
    assert len(trials.candidates_of("mlp-adam", QUICK | {"grid": "paper"})) == 21
    odd = trials.make_model("gbnn", False, {"n_units": 200, "units_per_step": 3}, 0)
    assert odd.n_units == 198


def test_pictures_and_the_whole_study_run_small_and_are_judged():
    scale = study.profiles["quick"].scale | {
        "n_train": 60, "n_test": 60, "n_units": 6, "cnn_train": 200, "cnn_epochs": 1, "head_units": 4,
        "head_epochs": 1,
    }  # fmt: skip
    arms = study.arms_of(study.profiles["quick"])
    slow = ("mlp-adam", "mlp-sgd", "dense-adam")
    few = [
        a for a in arms
        if a.settings["task"] in ("waveform", "ringnorm", "digits-cnn") and not a.name.endswith(slow)
    ]  # fmt: skip
    outcomes = {a.name: dict(zip((0, 1), study.batch(a, (0, 1), scale), strict=True)) for a in few}
    results = Results(outcomes)
    assert outcomes["digits-cnn/boosted-head"][0].metrics["assembly_gap"] < 1e-5
    words = {v.claim.id: v for v in judge(study, results)}
    assert words["one-network"].word == "reproduced"
    assert words["one-network"].control.word == "survives"
    assert words["deep-features"].estimate.n == 2
    assert words["competitive-twonorm"].estimate.n == 0
    for figure in study.figures:
        canvas = Figure()
        figure.draw(canvas, results)
        assert len(canvas.axes) >= 1
        table = figure.table(results)
        assert all(len(row) == len(table.header) for row in table.rows)
    for figure in study.figures:
        figure.draw(Figure(), Results({}))
        assert figure.table(Results({})).rows == []


def test_arms_of_every_claim_run_in_the_quick_profile():
    quick = {a.name for a in study.arms_of(study.profiles["quick"])}
    metrics = {"accuracy": 0.5, "rmse": 1.0, "assembly_gap": 0.0, "whole_bias_gap": 1.0}
    for rule in ("", "_random", "_weight", "_rescaled"):
        metrics |= {f"score_{percent}pct_units{rule}": 0.5 for percent in (25, 50, 100)}
    made_up = Results({arm: {0: Outcome(metrics)} for arm in quick})
    for claim in study.claims:
        assert claim.effect(made_up), claim.id
        assert claim.control.effect(made_up), claim.id


def test_the_snippet_runs_as_it_stands(capsys):
    scope = {}
    exec(study.snippet, scope)  # noqa: S102
    accuracies = [float(line) for line in capsys.readouterr().out.split()]
    assert min(accuracies) > 0.93
    assert scope["mlp"].score(scope["X_test"], scope["y_test"]) == accuracies[0]
