"""The study runs on a small scale, its baselines are right, its claims can fail, and its snippet works."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from torch import nn

from gradatim.bench import Outcome, Results, judge
from gradatim.studies.concept_meta import study
from gradatim.studies.concept_meta_figures import paired_margin
from gradatim.studies.concept_meta_trials import (
    _partial,
    logistic_regression,
    meta_train,
    nearest_neighbour,
    network,
    scratch,
    stream,
    tuned_adam,
)
from gradatim.studies.concept_meta_trials import (
    test_tasks as judged_tasks,
)
from gradatim.tasks import Tasks

torch.set_num_threads(1)
ARMS = {arm.name: arm for arm in study.arms}
SCALE = {
    "outer_steps": 2, "batch": 2, "test_tasks": 25, "tuning_tasks": 3, "validation_tasks": 4, "net": [6, 6],
    "outer_lr": 3e-3, "alpha": 0.3, "landscape_tasks": 3, "probes": 2, "slices": 1,
    "adam_steps": [2, 4], "sgd_steps": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    arms = study.arms_of(study.profiles["quick"])
    return Results({a.name: {seed: study.trial(a, seed, SCALE) for seed in range(2)} for a in arms})


def test_logistic_regression_is_scikit_learns():
    tasks = judged_tasks(8, 3, 0, 12)
    wanted = []
    for t in range(12):
        model = LogisticRegression(tol=1e-8, max_iter=1000).fit(tasks.xs_s[t].numpy(), tasks.ys_s[t].numpy())
        wanted.append(model.score(tasks.xs_q[t].numpy(), tasks.ys_q[t].numpy()))
    assert logistic_regression(tasks).tolist() == pytest.approx(wanted)


def test_nearest_neighbour_breaks_ties_evenly():
    xs_s = torch.tensor([[[1.0, 1, 1], [1, 1, -1], [-1, -1, -1]]])
    ys_s = torch.tensor([[1.0, 0, 0]])
    xs_q = torch.tensor([[[1.0, 1, 1], [1, -1, 1], [-1, 1, 1], [1, -1, -1]]])
    # Nearest of the second and third: the first example alone. Of the last: the second and the third, both 0.
    tasks = Tasks(xs_s, ys_s, xs_q, torch.tensor([[1.0, 1, 0, 0]]))
    assert nearest_neighbour(tasks).tolist() == [0.75]
    halved = Tasks(xs_s, ys_s, torch.tensor([[[1.0, -1, -1]]]), torch.tensor([[1.0]]))
    assert nearest_neighbour(halved).tolist() == [0.0]
    tied = Tasks(xs_s, torch.tensor([[1.0, 0, 1]]), torch.tensor([[[1.0, -1, -1]]]), torch.tensor([[1.0]]))
    assert nearest_neighbour(tied).tolist() == [0.5]


def test_networks_side_by_side_are_networks_alone():
    """Adam on a stack of networks treats each as if it were alone."""
    tasks = judged_tasks(8, 3, 1, 3)
    accuracy, path = scratch(tasks, [6, 6], 4, lambda w: torch.optim.Adam(w, lr=1e-2), (12,), keep_path=True)[
        12
    ]
    seeds = np.random.SeedSequence([4, 3]).generate_state(3)
    for t in range(3):
        net = network(8, [6, 6], int(seeds[t]))
        moves = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(12):
            moves.zero_grad()
            F.binary_cross_entropy_with_logits(net(tasks.xs_s[t]).squeeze(-1), tasks.ys_s[t]).backward()
            moves.step()
        for name, weight in net.named_parameters():
            assert torch.allclose(path[-1][name][t], weight, atol=1e-5)
        right = (net(tasks.xs_q[t]).squeeze(-1) > 0) == tasks.ys_q[t].bool()
        assert float(accuracy[t]) == pytest.approx(float(right.float().mean()))
    assert len(path) == 13


def test_tuning_sees_no_judging_seed_and_picks_from_its_grid():
    rate, steps = tuned_adam(8, 3, {"tuning_tasks": 4, "net": [6], "adam_steps": [3, 6]})
    assert rate in (1e-3, 3e-3, 1e-2)
    assert steps in (3, 6)


def test_training_and_test_concepts_are_disjoint():
    train = {c.canonical_hash() for c in stream(8, 3, 5, "train", 0, tasks=300).batch(0).meta}
    test = {c.canonical_hash() for depth in (3, 7) for c in judged_tasks(8, depth, 5, 200).meta}
    assert not train & test
    other = {c.canonical_hash() for c in judged_tasks(8, 3, 6, 200).meta}
    assert other & train  # another seed divides the concepts in another way


def test_the_codes_network():
    net = network(8, ARMS["F8D3/code-net-batch"].settings["net"], 0)
    assert sum(p.numel() for p in net.parameters()) == 138_945
    assert sum(isinstance(m, nn.BatchNorm1d) for m in net) == 8
    small = {**ARMS["F8D3/code-net-support"].settings, "net": [12, 6, "norm"]}
    meta, costs, _ = meta_train(small, 0, SCALE)
    assert meta.norm_stats == "support"
    assert costs["gradients"] == 2 * 2 * 11


def test_every_arm_reports_and_figures_draw(found):
    assert all(o.first_non_finite() is None for arm in found.outcomes.values() for o in arm.values())
    ten = found.outcomes["F8D3/first-k10"][0].metrics
    assert {"meta_lambda_max", "random_newton_max", "gain_correlation", "accuracy_deeper"} <= set(ten)
    # Ten times the updates at K = 1: (1 + 1) gradients against (1 + 10).
    tenfold = found.outcomes["F8D3/first-k1-tenfold"][0].metrics
    assert tenfold["gradients"] / ten["gradients"] == pytest.approx(20 / 11)
    verdicts = judge(study, found)
    assert all(v.estimate.n == 2 for v in verdicts)
    assert all(v.control.estimate.n == 2 for v in verdicts)
    for figure in study.figures:
        canvas = Figure()
        figure.draw(canvas, found)
        assert canvas.axes
        table = figure.table(found)
        assert table.rows
        assert all(len(row) == len(table.header) for row in table.rows)


def test_a_trial_is_a_function_of_its_seed(found):
    arm = ARMS["F8D3/second-k1"]
    again = study.trial(arm, 1, SCALE).metrics
    kept = found.outcomes[arm.name][1].metrics
    assert {k: v for k, v in again.items() if k != "cpu_seconds"} == {
        k: v for k, v in kept.items() if k != "cpu_seconds"
    }


@pytest.mark.parametrize("name", ["F16D5/second-k1", "F8D3/second-k10", "F32D3/maml-k1"])
def test_arms_of_the_longer_profiles(name):
    outcome = study.trial(ARMS[name], 0, SCALE)
    assert outcome.first_non_finite() is None


def altered(results, arm, **metrics):
    """The same results with other values of an arm, a little apart between seeds."""
    changed = {
        seed: Outcome({**o.metrics, **{k: v + 1e-5 * seed for k, v in metrics.items()}}, o.curves)
        for seed, o in results.outcomes[arm].items()
    }
    return Results({**results.outcomes, arm: changed})


def test_claims_can_fail_and_controls_can_explain(found):
    good = altered(found, "F8D3/first-k10", accuracy=0.9, random_path=5.0, meta_path=1.0)
    good = altered(good, "F8D3/sgd", accuracy=0.6)
    good = altered(good, "F8D3/adam", accuracy=0.93)
    verdicts = {v.claim.id: v for v in judge(study, good)}
    assert verdicts["beats-scratch"].word == "reproduced"
    assert verdicts["beats-scratch"].control.word == "explained away"
    bad = altered(good, "F8D3/sgd", accuracy=0.95)
    bad = altered(bad, "F8D3/first-k10", accuracy=0.7, random_path=1.0, meta_path=3.0)
    for f, deep in itertools.product((8, 32), (3, 7)):
        bad = altered(bad, f"F{f}D{deep}/first-k10", accuracy=0.8 - 0.1 * (deep == 7))
    bad = altered(altered(bad, "F8D3/second-k1", accuracy=0.5), "F8D3/first-k1", accuracy=0.6)
    bad = altered(altered(bad, "F32D3/second-k1", accuracy=0.5), "F32D3/first-k1", accuracy=0.6)
    words = {v.claim.id: v.word for v in judge(study, bad)}
    for claim in ("beats-scratch", "depth-is-cheap", "features-are-dear", "second-order", "shorter-paths"):
        assert words[claim] == "not reproduced", claim


def test_the_partial_correlation_takes_out_what_is_given():
    rng = np.random.default_rng(0)
    size = rng.normal(size=400)
    a, b = size + 0.1 * rng.normal(size=400), size + 0.1 * rng.normal(size=400)
    assert abs(_partial(a, b, size)) < 0.15
    assert _partial(a, a + 0.1 * rng.normal(size=400), rng.normal(size=400)) > 0.9
    assert _partial(a, a, np.ones(400)) == pytest.approx(1.0)


def test_paired_margins_pair_tasks(found):
    assert paired_margin(found, "F8D3/sgd", "F8D3/sgd") == "-"
    assert paired_margin(found, "F8D3/sgd", "F8D3/none") == "none"
    text = paired_margin(found, "F8D3/nearest", "F8D3/logistic", resamples=200)
    gap = np.mean(
        [
            found.outcomes["F8D3/nearest"][s].metrics["accuracy"]
            - found.outcomes["F8D3/logistic"][s].metrics["accuracy"]
            for s in range(2)
        ]
    )
    assert float(text.split()[0]) == pytest.approx(gap, abs=1e-3)
    low, high = (float(part.strip("[],")) for part in text.split()[1:])
    assert low <= float(text.split()[0]) <= high


def test_figures_survive_missing_results():
    for figure in study.figures:
        figure.draw(Figure(), Results({}))
        figure.table(Results({}))


def test_every_profile_names_arms_there_are():
    for profile in study.profiles.values():
        assert set(profile.arms or ()) <= set(ARMS)


def test_snippet_runs(capsys):
    state = torch.random.get_rng_state()
    exec(compile(study.snippet, "snippet", "exec"), {})  # noqa: S102
    torch.random.set_rng_state(state)
    assert float(capsys.readouterr().out.splitlines()[-1]) > 0.75
