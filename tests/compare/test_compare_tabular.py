"""Nested cross-validation: no leak between folds, the printed code is what was measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gradatim.bench import Outcome, Results, judge
from gradatim.compare import tabular
from gradatim.compare.comparison import Winner, choose_arms, winner
from gradatim.compare.errors import DataError
from gradatim.compare.saved_network import SavedNetwork, from_pipeline
from gradatim.compare.table_source import load, outer_fold, table_digest
from gradatim.compare.tabular_arms import ARMS, GRIDS, grid

POINTS = {name: grid(name)[0] for name in ARMS}


def scale_of(study):
    return study.profiles["compare"].scale


def test_folds_are_a_partition_and_the_same_for_every_arm(table):
    study = tabular.comparison(table(), "y")
    data = load(scale_of(study))
    tests = [outer_fold(data, seed)[1] for seed in range(5)]
    assert sorted(np.concatenate(tests).tolist()) == list(range(90))
    for seed in range(7):
        train, test = outer_fold(data, seed)
        assert not set(train) & set(test)
    assert outer_fold(data, 0)[1].tolist() != outer_fold(data, 5)[1].tolist()
    assert study.claims[0].overlap == 0.25


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("arm", ["linear", "dummy", "hist-gradient-boosting"])
def test_a_trial_is_a_pure_function_with_sound_metrics(table, kind, arm, monkeypatch):
    monkeypatch.setitem(GRIDS, "hist-gradient-boosting", {"learning_rate": (0.1,), "max_leaf_nodes": (7,)})
    study = tabular.comparison(table(kind=kind), "y")
    one, two = (tabular.trial(ARMS[arm], 1, scale_of(study)) for _ in range(2))
    assert one == two
    assert one.first_non_finite() is None
    assert {name for name, _ in study.headline} <= set(one.metrics)
    first = study.headline[0][0]
    dummy = tabular.trial(ARMS["dummy"], 1, scale_of(study)).metrics[first]
    if arm == "linear":
        better = one.metrics[first] > dummy if kind == "classification" else one.metrics[first] < dummy
        assert better
        assert one.metrics["chosen penalty"] in GRIDS["linear"]["penalty"]


def test_the_search_never_sees_the_test_rows(table):
    """Garbage in the test rows changes neither the settings chosen nor the model."""
    path = table(kind="regression")
    scale = scale_of(tabular.comparison(path, "y"))
    data = load(scale)
    train, test = outer_fold(data, 0)
    before = tabular.search("linear", data, train, 0)
    data.features.iloc[test, 0] = 1e6
    data.target[test] = -1e6
    assert tabular.search("linear", data, train, 0) == before
    load.__globals__["_load"].cache_clear()


# Users see scikit-learn's advice when the printed network stops at its step limit; here it does.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("arm", list(ARMS))
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_printed_code_fits_the_model_that_was_measured(table, kind, arm, ending):
    path = table(kind=kind, name=f"t{ending}")
    scale = scale_of(tabular.comparison(path, "y"))
    settings = {"max_leaf_nodes": 7, "learning_rate": 0.1} if arm.startswith("hist") else POINTS[arm]
    won = Winner(arm, "accuracy", 0.0, settings, 1)
    namespace: dict = {}
    exec(compile(tabular.winner_code(won, scale), "snippet", "exec"), namespace)  # noqa: S102
    ours = tabular.fit_winner(won, scale)
    features = namespace["table"][["width", "height", "colour"]]
    assert ours.predict(features).tolist() == namespace["model"].predict(features).tolist()


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("arm", ["linear", "mlp", "boosted-network"])
def test_saved_network_predicts_as_the_pipeline(table, kind, arm, tmp_path):
    path = table(kind=kind)
    scale = scale_of(tabular.comparison(path, "y"))
    model = tabular.fit_winner(Winner(arm, "", 0.0, POINTS[arm], 1), scale)
    saved = from_pipeline(model, kind)
    saved.save(tmp_path)
    loaded = SavedNetwork.load(tmp_path)
    frame = pd.read_csv(path)
    # A value, and a hole, that the model has never seen in that place.
    frame.loc[7, "colour"] = "mauve"
    frame.loc[8, "height"] = np.nan
    if kind == "classification":
        np.testing.assert_allclose(loaded.predict_proba(frame), model.predict_proba(frame), atol=1e-9)
        assert loaded.predict(frame).tolist() == model.predict(frame).tolist()
    else:
        np.testing.assert_allclose(loaded.predict(frame), model.predict(frame), atol=1e-9)
        with pytest.raises(ValueError, match="no class probabilities"):
            loaded.predict_proba(frame)


def test_rare_categories_survive_saving(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"code": rng.choice([f"c{i:02d}" for i in range(60)], 300), "x": rng.normal(size=300)}
    )
    frame["y"] = np.where(frame["code"] < "c30", "a", "b")
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    scale = scale_of(tabular.comparison(path, "y"))
    model = tabular.fit_winner(Winner("linear", "", 0.0, POINTS["linear"], 1), scale)
    saved = from_pipeline(model, "classification")
    np.testing.assert_allclose(saved.predict_proba(frame), model.predict_proba(frame), atol=1e-9)


def test_trees_and_constants_have_no_safe_form(table):
    scale = scale_of(tabular.comparison(table(), "y"))
    for arm in ("dummy", "hist-gradient-boosting"):
        settings = {} if arm == "dummy" else {"max_leaf_nodes": 7, "learning_rate": 0.1}
        model = tabular.fit_winner(Winner(arm, "", 0.0, settings, 1), scale)
        assert from_pipeline(model, "classification") is None


def test_claims_stand_against_the_first_arm_with_another_plain_arm_as_control(table):
    study = tabular.comparison(table(), "y", ["mlp", "linear", "boosted-network"])
    assert [a.name for a in study.arms] == ["mlp", "linear", "boosted-network", "dummy"]
    claims = {c.id: (c.effect.arm, c.effect.baseline, c.control.effect.baseline) for c in study.claims}
    assert claims == {
        "linear-over-mlp": ("linear", "mlp", "dummy"),
        "boosted-network-over-mlp": ("boosted-network", "mlp", "linear"),
    }
    plainest = tabular.comparison(table(), "y", ["dummy", "linear"])
    assert plainest.claims[0].control.effect.baseline == "dummy"
    single = tabular.comparison(table(), "y", ["mlp"])
    assert [c.id for c in single.claims] == ["linear-over-mlp"]
    with pytest.raises(DataError, match="did you mean mlp"):
        choose_arms(tabular.TASK, ["mpl"])


def test_regression_claims_favour_the_lower_error(table):
    study = tabular.comparison(table(kind="regression"), "y", ["linear", "mlp"])
    good, bad = ({s: Outcome({"RMSE": v + 0.01 * s}) for s in range(8)} for v in (1.0, 2.0))
    (verdict,) = judge(study, Results({"mlp": good, "linear": bad, "dummy": bad}))
    assert verdict.word == "reproduced"
    assert verdict.control.word == "survives"


def test_the_winner_needs_all_its_seeds_and_votes_on_its_settings(table):
    study = tabular.comparison(table(), "y", ["linear", "mlp"])

    def outcome(value, chosen):
        return Outcome({"accuracy": value, "chosen alpha": chosen})

    results = Results(
        {
            "mlp": {0: outcome(0.8, 1.0), 1: outcome(0.8, 0.1), 2: outcome(0.9, 0.1)},
            "linear": {0: outcome(0.99, 1.0)},
        }
    )
    won = winner(study, results)
    assert (won.arm, won.seeds, dict(won.settings)) == ("mlp", 3, {"alpha": 0.1})
    assert winner(study, Results({})) is None


def test_a_changed_file_has_another_digest(table):
    path = table()
    scale = scale_of(tabular.comparison(path, "y"))
    before = table_digest(scale)
    assert table_digest({**scale, "max_rows": 50}) != before
    path.write_text(path.read_text() + "0.1,0.2,red,big\n")
    assert table_digest(scale) != before


def test_a_sample_is_used_and_said(table):
    study = tabular.comparison(table(rows=200), "y", max_rows=150)
    assert "Measured on a seeded sample: 150 of 200 rows." in study.notes
    assert len(load(scale_of(study)).target) == 150
