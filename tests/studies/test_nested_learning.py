"""The study runs on a small scale, its anchors are exact, its claims can fail, and its snippet works."""

from __future__ import annotations

import json
import math

import pytest
import torch
from matplotlib.figure import Figure

from gradatim.bench import Outcome, Results, judge
from gradatim.studies import nested_learning_optimizers as optimizers
from gradatim.studies.nested_learning import study
from gradatim.studies.nested_learning_classes import IntentStream, data_version
from gradatim.studies.nested_learning_continual import TASKS, Stream, digits, run
from gradatim.studies.nested_learning_toys import identities, orthogonal_run, valley, valley_runs

ARMS = {arm.name: arm for arm in study.arms}
SCALE = {
    "stream": 100,
    "orthogonal_steps": 2,
    "valley_steps": 20,
    "continual": {"epochs": 1, "batch_size": 350, "fisher": 5},
    "optimizer": {"steps": 12},
    "text": {"dim": 8, "layers": 1, "lr": 1e-2, "batch": 2, "length": 12, "steps": 6, "windows": 2},
    "strings": {
        "dim": 8,
        "batch": 4,
        "lr": 1e-2,
        "train": ((8, 4), (12, 2)),
        "judge": (8, 64),
        "bins": ((2, 12), (13, 20)),
        "strings": 8,
    },
}


@pytest.fixture(scope="module")
def found():
    seeds = range(2)
    arms = study.arms_of(study.profiles["quick"])
    return Results({a.name: dict(zip(seeds, study.batch(a, seeds, SCALE), strict=True)) for a in arms})


def test_every_quick_arm_gives_finite_metrics_and_every_figure_draws(found):
    assert all(o.first_non_finite() is None for arm in found.outcomes.values() for o in arm.values())
    for figure in study.figures:
        canvas = Figure()
        figure.draw(canvas, found)
        assert canvas.axes
        assert figure.table(found).rows


def test_identities_are_exact():
    metrics = identities(3, 2000).metrics
    assert metrics["slope_dgd"] == pytest.approx(0.5, abs=1e-12)
    assert metrics["slope_gd"] == pytest.approx(1.0, abs=1e-12)
    assert metrics["argmin_error"] < 1e-12
    assert metrics["doubled_error"] < 1e-12
    # Half of the truth leaves half of each target: a quarter of its square, about 1 for inputs of length 1.
    assert 0.1 < metrics["loss_dgd"] < 0.5


def test_without_momentum_no_step_along_one_direction_hurts_another():
    runs = {rule: orthogonal_run(rule, 0.1, 0, 0.0, 100) for rule in ("gd", "momentum")}
    early = runs["gd"]["own"][0]
    assert runs["gd"]["earlier"][0] == pytest.approx(early, rel=1e-9)
    assert runs["momentum"]["earlier"][0] > 1.01 * runs["momentum"]["own"][0]
    mixed = orthogonal_run("gd", 0.1, 0, 0.3, 100)
    assert abs(mixed["earlier"][0] / mixed["own"][0] - 1) > 0.01


def test_the_valley_has_its_minimum_at_the_origin_and_its_runs_equal_a_loop():
    point = torch.zeros(2, dtype=torch.float64)
    assert valley(point, 10.0) == 0
    runs = valley_runs("momentum", 1.0, [5], 30)
    p = torch.nn.Parameter(
        3 * torch.randn(2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    )
    optimizer = torch.optim.SGD([p], lr=0.03, momentum=0.9)
    for t in range(30):
        value = valley(p, 1.0)
        assert float(value.detach()) == pytest.approx(float(runs[0.03, 0.9][t, 0]), rel=1e-9)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def test_streams_hold_every_digit_once_and_permute_pixels():
    stream = Stream(4)
    assert sorted([*stream.train.tolist(), *stream.test.tolist()]) == list(range(len(digits()[0])))
    x, y = stream.rows(0, stream.test)
    torch.testing.assert_close(x, digits()[0][stream.test])
    permuted, same = stream.rows(2, stream.test)
    assert torch.equal(y, same)
    assert torch.equal(permuted.sort(1).values, x.sort(1).values)
    assert not torch.equal(permuted, x)
    old, _ = stream.replayed(1, 500)
    kept = digits()[0][stream.train[:100]]
    assert all((kept == row).all(1).any() for row in old)


@pytest.mark.parametrize("name", ["digits/cms", "digits/ewc", "digits/independent", "digits/nested"])
def test_an_outcome_does_not_depend_on_its_companions(name):
    together = study.batch(ARMS[name], [0, 1], SCALE)[1].metrics
    alone = study.batch(ARMS[name], [1], SCALE)[0].metrics
    assert together["accuracy"] == pytest.approx(alone["accuracy"], abs=0.02)
    assert together["forgetting"] == pytest.approx(alone["forgetting"], abs=0.03)


def test_one_speed_at_the_matched_rates_is_sgd_with_groups():
    """The stacked, clocked trial against `nn.Module` and `torch.optim.SGD` for one seed."""
    from gradatim.studies.nested_learning_continual import _batch, _start

    settings = ARMS["digits/rate-matched"].settings
    outcome = run(settings, [7], {"epochs": 1, "batch_size": 100, "fisher": 0})[0]
    from gradatim.models import ContinuumMemory

    memory = ContinuumMemory(64, settings["periods"], 64, activation="relu")
    state, head = _start(memory, [7], 64, 10)
    with torch.no_grad():
        for level, values in zip(memory.levels, state.fast, strict=True):
            for n, p in level.named_parameters():
                p.copy_(values[n][0])
    weight = torch.nn.Parameter(head.detach()[0])
    groups = [{"params": m.parameters(), "lr": r} for m, r in zip(memory.levels, settings["lr"], strict=True)]
    sgd = torch.optim.SGD([*groups, {"params": [weight], "lr": settings["lr"][0]}], lr=0.1)
    stream = Stream(7)
    for task in range(TASKS):
        for rows in stream.epoch(task).split(100):
            x, y = _batch([stream], task, rows[None])
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(memory(x[0]) @ weight.mT, y[0]).backward()
            sgd.step()
    right = []
    for task in range(TASKS):
        x, y = _batch([stream], task, stream.test[None])
        with torch.no_grad():
            right.append(((memory(x[0]) @ weight.mT).argmax(1) == y[0]).float().mean().item())
    assert outcome.metrics["accuracy"] == pytest.approx(sum(right) / TASKS, abs=0.01)


def test_the_printed_m3_diverges_at_usual_rates_and_the_matched_one_trains():
    scale = {"steps": 60}
    literal = {**ARMS["m3/literal"].settings, "lr": 3e-3}
    assert optimizers.run(literal, 0, scale).metrics["test_loss"] > math.log(10)
    assert optimizers.run(ARMS["m3/m3"].settings, 0, scale).metrics["test_loss"] < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m3/adamw", "m3/muon", "m3/m3", "m3/no-slow", "m3/literal"])
def test_rates_are_the_best_of_their_grid(name):
    settings = ARMS[name].settings
    found = optimizers.tune(settings, study.profiles["quick"].scale["optimizer"])
    assert min(found, key=found.get) == settings["lr"]


def test_claims_can_fail(found):
    def with_(arm, **metrics):
        return {
            seed: Outcome({**o.metrics, **{k: v + 1e-4 * seed for k, v in metrics.items()}}, o.curves)
            for seed, o in found.outcomes[arm].items()
        }

    verdicts = judge(study, found, "quick")
    assert {v.claim.id for v in verdicts} == {c.id for c in study.claims_of("quick")}
    assert all(v.estimate.n == 2 for v in verdicts)
    turned = {
        "identity": with_("identity", slope_dgd=1.0),
        "digits/cms": with_("digits/cms", accuracy=0.2),
        "digits/one": with_("digits/one", accuracy=0.5),
        "digits/ewc": with_("digits/ewc", accuracy=0.6),
        "m3/m3": with_("m3/m3", test_loss=0.5),
        "m3/adamw": with_("m3/adamw", test_loss=0.1),
        "m3/muon": with_("m3/muon", test_loss=0.1),
        "m3/no-slow": with_("m3/no-slow", test_loss=0.1),
        "orthogonal/delta": with_("orthogonal/delta", log_earlier_pure=0.0),
        "orthogonal/momentum": with_("orthogonal/momentum", log_earlier_pure=-3.0),
        "parity/self-modifying": with_("parity/self-modifying", last64=0.5),
        "parity/delta (0,1)": with_("parity/delta (0,1)", last64=0.9),
        "parity/self-modifying, no DGD": with_("parity/self-modifying, no DGD", last64=0.9),
    }
    words = {v.claim.id: v.word for v in judge(study, Results({**found.outcomes, **turned}), "quick")}
    for claim in (
        "dgd-fixed-point", "cms-accuracy", "cms-ewc", "m3-adamw", "m3-muon", "m3-slow-memory",
        "delta-momentum-orthogonal", "parity", "parity-dgd",
    ):  # fmt: skip
        assert words[claim] == "not reproduced", claim


LONGER = [
    *("digits/independent", "digits/slow", "digits/replay", "m3/sgd", "m3/delta", "m3/deep"),
    *("text/hope", "text/rate-matched", "text/transformer"),
    *("text/no-inner-k", "text/no-inner-v", "text/inner-q"),
    *(a.name for a in study.arms if a.name.endswith("/delta (0,2)") and a.settings["language"] != "parity"),
]


@pytest.mark.parametrize("name", LONGER)
def test_arms_of_the_longer_profiles(name):
    (outcome,) = study.batch(ARMS[name], [0], SCALE)
    assert outcome.first_non_finite() is None


def test_figures_survive_missing_results():
    for figure in study.figures:
        figure.draw(Figure(), Results({}))
        figure.table(Results({}))


def test_profiles_name_arms_that_exist():
    for profile in study.profiles.values():
        assert set(profile.arms or ()) <= set(ARMS)


def test_snippet_runs(capsys):
    exec(compile(study.snippet, "snippet", "exec"), {})  # noqa: S102
    lines = capsys.readouterr().out.splitlines()
    assert any("1/512" in line for line in lines)
    assert float(lines[-1]) < 2.5


def intents_file(folder, classes=6, each=4):
    words = [f"word{c}" for c in range(classes)]
    rows = [[f"{w} number {i}", w] for w in words for i in range(each)]
    file = folder / "intents.json"
    file.write_text(json.dumps({"train": rows, "test": [[f"{w} again", w] for w in words]}), encoding="utf-8")
    return str(file)


def test_intents_come_in_disjoint_steps_and_are_learned(tmp_path):
    path = intents_file(tmp_path)
    stream = IntentStream(7, path, 3, 32)
    seen = [set(stream.rows(t, stream.held(t))[1].tolist()) for t in range(3)]
    assert sorted(c for step in seen for c in step) == list(range(6))
    for task in range(3):
        x, y = stream.rows(task, stream.epoch(task))
        assert set(y.tolist()) == seen[task]
        assert len(y) == 8
        assert x.shape == (8, 32)
    _, old = stream.replayed(2, 50)
    assert set(old.tolist()) <= seen[0] | seen[1]
    scale = {"intents": {"tasks": 3, "features": 32, "epochs": 6, "batch_size": 4, "fisher": 3}, "data": path}
    for name in ("intents/one", "intents/ewc", "intents/replay"):
        (outcome,) = study.batch(ARMS[name], [7], scale)
        # Each step is learned while it lasts; chance among six intents is a sixth.
        assert outcome.metrics["plasticity"] > 0.4
    assert data_version(scale) != data_version({**scale, "data": ""}) == ""


def test_without_a_file_the_arm_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("GRADATIM_INTENTS", raising=False)
    scale = {"intents": {"tasks": 3, "features": 8, "epochs": 1, "batch_size": 4, "fisher": 3}}
    with pytest.raises(FileNotFoundError, match=r"GRADATIM_INTENTS.*data_small\.json"):
        study.batch(ARMS["intents/cms"], [7], scale)
