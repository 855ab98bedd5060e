"""Study 03 runs on a small scale, its exact learners are exact, its claims can fail, its snippet works."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from gradatim.bench import Arm, Outcome, Results, judge
from gradatim.studies import icl_boolean_prompting
from gradatim.studies.icl_boolean import Beyond, study
from gradatim.studies.icl_boolean_trials import make_model, task_of, test_prompts

test_prompts.__test__ = False
ARMS = {arm.name: arm for arm in study.arms}
SIZES = {
    "conjunction": {"d": 5, "n": 14, "steps": 25},
    "sparse_parity": {"d": 6, "n": 12, "steps": 25, "tokens": "interleaved"},
    "nearest_neighbour": {"d": 6, "n": 12, "start_idx": 4, "steps": 5},
}
SCALE = {
    "width": 16, "layers": 1, "heads": 2, "batch": 16, "lr": 3e-3, "tokens": "paired", "sizes": SIZES,
    "prompts": 60, "networks": 8, "network_lengths": [6, 60],
    "prompting": {"d": 3, "n": 8, "functions": 2}, "language_model": "none",
}  # fmt: skip
QUICK = study.arms_of(study.profiles["quick"])


@pytest.fixture(scope="module")
def found():
    seeds = range(3)
    return Results({a.name: dict(zip(seeds, study.batch(a, seeds, SCALE), strict=True)) for a in QUICK})


def mean(found, arm, metric):
    values = list(found.metric(arm, metric).values())
    return sum(values) / len(values)


def test_exact_learners_and_finite_results(found):
    assert all(o.first_non_finite() is None for arm in found.outcomes.values() for o in arm.values())
    assert mean(found, "conjunction/elimination", "taught") == 1.0
    assert mean(found, "conjunction/elimination", "permuted") == 1.0
    assert mean(found, "sparse_parity/bayes", "taught") == 1.0
    assert mean(found, "sparse_parity/gf2", "taught") < 0.9  # it does not know k
    assert mean(found, "conjunction/inputs-only", "late") > mean(found, "conjunction/null", "late") + 0.05
    assert mean(found, "conjunction/bayes-inputs", "mean") > mean(found, "conjunction/bayes", "mean")
    assert mean(found, "conjunction/elimination", "random") < 0.95
    assert mean(found, "conjunction/bayes", "noisy") > mean(found, "conjunction/elimination", "noisy")
    assert mean(found, "sparse_parity/ffn", "late") > 0.8
    assert mean(found, "sparse_parity/ffn", "taught") < 0.8


def test_all_arms_of_a_seed_answer_the_same_prompts(found):
    assert len({round(found.metric(a.name, "null")[1], 12) for a in QUICK if a.name.startswith("conj")}) == 1
    nulls = found.metric("conjunction/null", "null")
    assert len(set(nulls.values())) > 1
    a = test_prompts(ARMS["conjunction/transformer"].settings, 3, SCALE, "teaching")
    b = test_prompts(ARMS["conjunction/mixed"].settings, 3, SCALE, "random")
    assert torch.equal(a.teach_len, b.teach_len)
    last = torch.arange(14) >= a.teach_len[:, None]
    assert torch.equal(a.y[last], b.y[last])
    assert torch.equal(a.x[last], b.x[last])
    few = test_prompts(ARMS["conjunction/mixed"].settings, 3, {**SCALE, "first": 7}, "random")
    assert torch.equal(few.x, b.x[:7])
    assert not torch.equal(a.x, b.x)


def test_inputs_are_planted_alike_with_and_without_a_prefix():
    settings = ARMS["conjunction/mixed"].settings
    assert task_of(settings, SCALE, teaching=0.5).planted_share == task_of(settings, SCALE).planted_share > 0


def test_figures_and_tables(found):
    for figure in study.figures:
        canvas = Figure()
        figure.draw(canvas, found)
        assert canvas.axes
        assert figure.table(found).rows
        figure.draw(Figure(), Results({}))
        figure.table(Results({}))


def test_claims_can_fail(found):
    def with_metric(arm, **values):
        outcomes = {s: Outcome({**o.metrics, **values}, o.curves) for s, o in found.outcomes[arm].items()}
        return replace(found, outcomes={**found.outcomes, arm: outcomes})

    def word(results, claim):
        return next(v for v in judge(study, results) if v.claim.id == claim).word

    assert word(with_metric("conjunction/transformer", late=0.2), "conjunctions") == "not reproduced"
    assert word(with_metric("sparse_parity/transformer", late=0.99), "parity-fails") == "not reproduced"
    assert word(with_metric("sparse_parity/transformer", late=0.5), "parity-fails") == "reproduced"
    assert word(with_metric("sparse_parity/taught", taught=0.6), "teaching-parity") == "not reproduced"
    same = with_metric("conjunction/mixed", taught=0.0)
    assert word(same, "two-algorithms") == "not reproduced"
    assert word(with_metric("conjunction/transformer", late=0.1), "efficient") == "not reproduced"


def test_beyond_needs_both_effects():
    effect = Beyond(lambda r: {1: 3.0, 2: 1.0}, lambda r: {1: 1.0})
    assert effect(Results({})) == {1: 2.0}


def test_an_outcome_does_not_depend_on_its_companions():
    arm = ARMS["conjunction/mixed"]
    together = study.batch(arm, [0, 1, 2], SCALE)
    (alone,) = study.batch(arm, [1], SCALE)
    assert together[1].metrics["training_loss"] == pytest.approx(alone.metrics["training_loss"], abs=1e-4)
    assert together[0].metrics != together[1].metrics


def test_training_learns():
    scale = {**SCALE, "lr": 5e-3, "sizes": {"conjunction": {"d": 3, "n": 10, "steps": 150}}}
    (outcome,) = study.batch(ARMS["conjunction/transformer"], [0], scale)
    assert outcome.metrics["late"] > outcome.metrics["null"] + 0.15
    assert outcome.curves["loss"].y[-1] < outcome.curves["loss"].y[0] - 0.1


@pytest.mark.parametrize("name", ["transformer", "gru", "retnet"])
def test_nearest_neighbours_with_every_architecture(name):
    (outcome,) = study.batch(ARMS[f"nearest_neighbour/{name}"], [0], SCALE)
    assert 0 <= outcome.metrics["late"] <= 1
    assert ("nearest_head" in outcome.metrics) == (name == "transformer")
    assert outcome.curves["accuracy"].x[0] == 4  # the random labels are not scored
    (exact,) = study.batch(ARMS["nearest_neighbour/1-nn"], [0], SCALE)
    assert exact.metrics["mean"] == 1.0


def test_architectures_have_as_many_weights():
    scale = {**SCALE, "width": 64, "layers": 3}
    models = [make_model(name, {"d": 10, "n": 30}, scale, 0) for name in ("transformer", "gru", "retnet")]
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert max(counts) < 1.25 * min(counts)


def test_the_prompted_language_model(monkeypatch):
    class Characters:
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [ord(c) for c in text]}

    def positive(ids, logits_to_keep):
        logits = torch.zeros(1, len(logits_to_keep), 128)
        logits[..., ord("1")] = 1.0
        return SimpleNamespace(logits=logits)

    model = type("Positive", (), {"device": "cpu", "__call__": staticmethod(positive)})()
    monkeypatch.setattr(icl_boolean_prompting, "_language_model", lambda name: (model, Characters()))
    (outcome,) = study.batch(ARMS["prompted/language-model"], [0], SCALE)
    assert outcome.metrics["readable"] == 1.0
    assert outcome.metrics["late"] == outcome.metrics["free"]
    assert outcome.first_non_finite() is None


def test_every_profile_names_arms_that_exist_and_sizes_for_them():
    for profile in study.profiles.values():
        assert set(profile.arms or ()) <= set(ARMS)
        for arm in study.arms_of(profile):
            if arm.settings["kind"] != "prompted":
                assert arm.settings["task"] in profile.scale["sizes"]
            else:
                assert profile.scale["prompting"]


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="no architecture"):
        study.batch(Arm("x", {"kind": "train", "task": "conjunction", "model": "mlp"}), [0], SCALE)


def test_snippet_runs(capsys):
    exec(compile(study.snippet, "snippet", "exec"), {})  # noqa: S102
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "Bayes (labels and inputs)" in lines[-1]
