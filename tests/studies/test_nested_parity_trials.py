"""Trials of study 04 on formal languages: stacked or alone the same, and what a rule cannot do shows."""

from __future__ import annotations

import pytest
import torch

from gradatim.bench import Arm
from gradatim.studies.nested_parity_trials import ARMS, LSTM, arms_of, parity, parity_batch
from gradatim.tasks import FORMAL_LANGUAGES

TINY = {
    "dim": 8,
    "batch": 4,
    "lr": 1e-2,
    "train": ((8, 3), (12, 2)),
    "judge": (12, 16),
    "bins": ((4, 12), (13, 24)),
    "strings": 10,
}


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_a_stack_is_its_seeds_one_by_one(arm):
    together = parity_batch(arm, [3, 5], TINY)
    for seed, found in zip((3, 5), together, strict=True):
        alone = parity(arm, seed, TINY)
        assert alone.metrics.keys() == found.metrics.keys()
        assert alone.metrics["loss"] == pytest.approx(found.metrics["loss"], abs=1e-4)
        assert found.first_non_finite() is None
        assert len(found.curves["accuracy"].x) == 2
    assert together[0].metrics["loss"] != together[1].metrics["loss"]


@pytest.mark.parametrize("language", [n for n in FORMAL_LANGUAGES if n != "parity"])
def test_every_language_runs(language):
    arm = next(arm for arm in arms_of(language) if arm.settings["rule"] == "delta")
    metrics = parity_batch(arm, [1, 2], TINY)[0].metrics
    assert {"last12", "last16", "exact4-12", "exact13-24"} <= metrics.keys()


def test_a_state_that_flips_learns_parity_and_one_that_adds_does_not():
    scale = {**TINY, "dim": 24, "batch": 16, "train": ((10, 150),), "judge": (8,), "strings": 50}
    found = {
        arm.settings["rule"]: parity_batch(arm, [0, 1], scale)
        for arm in ARMS
        if arm.name in ("parity/delta (0,2)", "parity/linear attention")
    }
    assert all(outcome.metrics["last8"] > 0.85 for outcome in found["delta"])
    assert all(outcome.metrics["last8"] < 0.75 for outcome in found["linear_attention"])


def test_a_lost_memory_is_a_result_not_a_failure():
    arm = next(arm for arm in ARMS if arm.name.endswith("literal v"))
    (outcome,) = parity_batch(arm, [0], {**TINY, "dim": 16, "lr": 0.3, "train": ((48, 25),), "judge": (48,)})
    assert outcome.metrics["diverged"] == 1.0
    assert outcome.metrics["finite_steps"] < 1.0
    assert outcome.metrics.keys() == {"diverged", "finite_steps"}


def test_other_errors_are_not_taken_for_a_lost_memory():
    with pytest.raises(ValueError, match="multiple of num_heads"):
        parity(Arm("x", {"language": "parity", "rule": "delta"}), 0, {**TINY, "dim": 0})


def test_the_written_out_lstm_is_pytorchs():
    ours = LSTM(6)
    theirs = torch.nn.LSTM(6, 6, batch_first=True)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.inputs.weight)
        theirs.weight_hh_l0.copy_(ours.hidden.weight)
        theirs.bias_ih_l0.copy_(ours.inputs.bias)
        theirs.bias_hh_l0.zero_()
    x = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x)[0])
