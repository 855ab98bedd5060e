"""Study 01 runs on a small scale, compares at equal compute, its claims can fail, and its snippet works."""

from __future__ import annotations

import math

import pytest
import torch
from matplotlib.figure import Figure

from gradatim.bench import Curve, Outcome, Results, judge
from gradatim.studies.energy_transformer import TEXT_ABLATIONS, TEXT_ARMS, TEXT_QUICK, study
from gradatim.studies.energy_transformer_figures import TEXT_FIGURES, WIDTHS, arm_of, law, scaling_points
from gradatim.studies.energy_transformer_trials import (
    make_model,
    mean_loss,
    read_and_think,
    training_flops,
    trial,
    updates_of,
)

SCALE = {
    **TEXT_QUICK,
    "context": 16,
    "batch": 4,
    "width": 16,
    "layers": 1,
    "steps": 6,
    "windows": 4,
    "thought_windows": 2,
    "formal_windows": 2,
    "think": (1, 2, 3, 5),
    "candidates": (1, 2),
}
V = 30
TEXT = tuple(arm.name for arm in TEXT_ARMS)


@pytest.fixture(scope="module")
def found() -> Results:
    return Results({arm.name: {s: read_and_think(arm, s, SCALE) for s in (0, 1)} for arm in TEXT_ARMS})


def test_trials_are_finite_and_claims_are_judged(found: Results) -> None:
    assert all(o.first_non_finite() is None for each in found.outcomes.values() for o in each.values())
    for figure in TEXT_FIGURES:
        canvas = Figure()
        figure.draw(canvas, found)
        assert canvas.axes
        assert figure.table(found).rows
    text_claims = ("data-scaling", "equal-compute", "thinking-longer", "verification", "energy-as-doubt")
    verdicts = {v.claim.id: v for v in judge(study, found)}
    for name in text_claims:
        assert verdicts[name].estimate.n == 2, name
        assert verdicts[name].control.estimate.n == 2, name


def test_trials_repeat_and_differ_by_seed(found: Results) -> None:
    again = read_and_think(TEXT_ARMS[3], 1, SCALE)
    assert again.metrics == dict(found.outcomes["text/s2"][1].metrics)
    assert again.metrics["loss"] != found.outcomes["text/s2"][0].metrics["loss"]


def test_gains_are_those_of_the_losses(found: Results) -> None:
    metrics = found.outcomes["text/s2"][0].metrics
    assert metrics["think_dyck"] == pytest.approx(1 - math.exp(metrics["dyck_s3"] - metrics["dyck_s2"]))
    assert metrics["beyond_dyck"] == pytest.approx(1 - math.exp(metrics["dyck_s5"] - metrics["dyck_s3"]))
    assert metrics["verify_dyck"] == pytest.approx(1 - math.exp(metrics["dyck_n2"] - metrics["dyck_n1"]))
    three = [metrics[f"think_{name}"] for name in ("dyck", "arithmetic", "python")]
    assert metrics["think_ood"] == pytest.approx(sum(three) / 3)
    assert metrics["dyck_n1"] == pytest.approx(metrics["dyck_s3"], rel=1e-4)
    assert metrics["oracle_ood"] >= max(metrics["verify_ood"], 0)
    # A landscape per step has no more steps than training took, and so nothing beyond.
    assert "beyond_ood" not in found.outcomes["text/s1"][0].metrics


def test_equal_compute_is_equal_compute() -> None:
    plain, compute, first, _ = TEXT_ARMS
    scale = {**SCALE, "steps": 40}
    budget = updates_of(first, scale, V) * training_flops(first, scale, V)
    spent = updates_of(compute, scale, V) * training_flops(compute, scale, V)
    assert spent == pytest.approx(budget, rel=0.02)
    assert updates_of(plain, scale, V) == updates_of(first, scale, V) == 40
    # Replays add half a batch; all else alike, compute grows by about as much.
    with_replay, without = (training_flops(a, scale, V) for a in (TEXT_ARMS[3], TEXT_ABLATIONS[3]))
    assert with_replay == pytest.approx(1.5 * without, rel=0.02)


def test_models_of_all_arms_have_one_size() -> None:
    counts = [
        sum(p.numel() for p in make_model(arm, SCALE, V, 0).parameters())
        for arm in (*TEXT_ARMS, *TEXT_ABLATIONS)
    ]
    assert max(counts) - min(counts) <= 16 + 2 * 16 + 1
    model = make_model(TEXT_ARMS[0], SCALE, V, 0)
    before = torch.get_rng_state()
    other = make_model(TEXT_ARMS[0], SCALE, V, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_reading_a_loss_leaves_training_alone() -> None:
    model = make_model(TEXT_ARMS[3], SCALE, V, 0).train()
    draws = int(model.draws)
    ids = torch.zeros(2, 8, dtype=torch.int64)
    assert mean_loss(model, ids) == mean_loss(model, ids)
    assert model.training
    assert int(model.draws) == draws


def test_ablations_change_what_they_name() -> None:
    whole = make_model(TEXT_ARMS[3], SCALE, V, 0).config
    changed = [make_model(arm, SCALE, V, 0).config for arm in TEXT_ABLATIONS]
    names = ("step_size_jitter", "num_steps_range", "langevin_noise_std", "replay_capacity")
    for i, name in enumerate(names):
        for k, config in enumerate(changed):
            assert (getattr(config, name) != getattr(whole, name)) == (i == k)
    outcome = trial(TEXT_ABLATIONS[3], 0, {"text": {**SCALE, "steps": 2, "candidates": (1,)}})
    assert outcome.first_non_finite() is None


def _run(exponent: float, level: float, flops: float = 8.0, **metrics: float) -> Outcome:
    x = [1e3, 2e3, 4e3, 8e3]
    y = [level * (t / 8e3) ** -exponent for t in x]
    base = {"parameters": 100.0, "train_gflops": flops, "loss": math.log(level)}
    return Outcome({**base, **metrics}, {"scaling": Curve(x, y)})


def _results(better: bool) -> Results:
    """What a paper's dream, or its opposite, would have measured."""
    sign = 1 if better else -1
    outcomes: dict[str, dict[int, Outcome]] = {}
    for s in range(4):
        wiggle = 1e-3 * s
        for width in WIDTHS:
            size = (width / 48) ** -0.2
            for family, b in (("transformer", 0.3), ("s1", 0.3 + 0.1 * sign + wiggle)):
                level = (9.0 if family == "transformer" else 9.0 - sign) * size ** (b / 0.3)
                run = _run(b, level, 8.0 * (width / 48) ** 2)
                run = Outcome({**run.metrics, "parameters": float(width**2)}, run.curves)
                outcomes.setdefault(arm_of(family, width), {})[s] = run
        outcomes.setdefault("text/transformer-compute", {})[s] = _run(0.3, 9.0 - 2 * sign + wiggle)
        thoughts = {
            "think_ood": sign * 0.1 + wiggle, "beyond_ood": sign * 0.1 + wiggle,
            "verify_ood": sign * 0.1 + wiggle, "average_ood": 0.0,
            "rank_energy": sign * 0.5 + wiggle, "rank_entropy": 0.1,
        }  # fmt: skip
        outcomes.setdefault("text/s2", {})[s] = _run(0.3, 9.0, **thoughts)
    return Results(outcomes)


def test_claims_can_hold_and_can_fail() -> None:
    judged = ("data-scaling", "parameter-scaling", "compute-scaling", "thinking-longer", "verification")
    held, failed = ({v.claim.id: v.word for v in judge(study, _results(b))} for b in (True, False))
    for name in (*judged, "equal-compute", "energy-as-doubt"):
        assert held[name] == "reproduced", name
        assert failed[name] == "not reproduced", name


def test_scaling_points_and_laws() -> None:
    results = _results(True)
    found = law(results, "transformer", "data")
    assert found is not None
    assert found.exponent == pytest.approx(0.3)
    x, y = scaling_points(results, "s1", "compute")[0]
    assert list(x) == sorted(x)
    assert list(y) == sorted(y, reverse=True)
    xs, _ = scaling_points(results, "s1", "parameters")[0]
    assert xs == [float(w**2) for w in WIDTHS]
    assert law(Results({}), "s1", "data") is None


def test_figures_survive_missing_results() -> None:
    for figure in study.figures:
        figure.draw(Figure(), Results({}))
        figure.table(Results({}))


def test_every_claim_finds_its_arms_in_its_profiles() -> None:
    for name, profile in study.profiles.items():
        arms = {arm.name for arm in study.arms_of(profile)}
        assert set(TEXT) <= arms
        if name == "quick":
            assert {c.id for c in study.claims_of("quick")} >= {"data-scaling", "few-steps", "verification"}
            assert "parameter-scaling" not in {c.id for c in study.claims_of("quick")}
        else:
            assert {arm_of(f, w) for f in ("transformer", "s1") for w in WIDTHS} <= arms


def test_the_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(study.snippet, "snippet", "exec"), {})  # noqa: S102
    assert "The import " in capsys.readouterr().out
