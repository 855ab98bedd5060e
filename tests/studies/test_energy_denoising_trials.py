"""Denoising trials: equal compute, honest metrics, pure functions; figures that survive missing results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from gradatim.bench import Results
from gradatim.studies import energy_denoising_trials as trials
from gradatim.studies.energy_denoising_figures import DENOISING_FIGURES, draw_passes, table_passes
from gradatim.tasks import NoiseSchedule, digit_images, psnr

TINY = {
    **trials.QUICK,
    "width": 16,
    "layers": 1,
    "batch": 16,
    "energy_steps": 30,
    "n_valid": 12,
    "n_test": 24,
    "passes": (1, 2, 3, 6),
}
ENERGY, DIFFUSION, FORWARD, RECURRENT = trials.DENOISING_ARMS


@pytest.fixture(scope="module")
def results():
    return Results({arm.name: {0: trials.denoise(arm, 0, TINY)} for arm in trials.DENOISING_ARMS})


def test_every_arm_gets_the_same_compute_and_size(results):
    spent = [results.metric(arm.name, "train_gflops")[0] for arm in trials.DENOISING_ARMS]
    assert max(spent) < 1.02 * min(spent)
    models = [trials.make_denoiser(arm, trials.QUICK, 0) for arm in trials.DENOISING_ARMS]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert max(sizes) < 1.05 * min(sizes)
    updates = {arm.name: results.metric(arm.name, "updates")[0] for arm in trials.DENOISING_ARMS}
    assert updates[ENERGY.name] == 30
    # The gradient of a gradient: 9 units of a forward pass on average, against 3.
    assert 2.5 < updates[FORWARD.name] / 30 < 3.5
    assert updates[RECURRENT.name] < 0.5 * updates[FORWARD.name]
    passes = [results.metric(arm.name, "pass_mflops")[0] for arm in (ENERGY, FORWARD)]
    assert 1.8 < passes[0] / passes[1] < 2.2


def test_metrics_are_those_of_the_images(results):
    test = digit_images(0, valid=12, test=24).test
    generator = torch.Generator().manual_seed(0)
    schedule = NoiseSchedule()
    torch.randn(3, 12, 1, 8, 8, generator=generator)  # the validation images' noise comes first
    for t in (99, 199, 299):
        noisy = schedule.add_noise(test, torch.randn(test.shape, generator=generator), t)
        for arm in trials.DENOISING_ARMS:
            outcome = results.outcomes[arm.name][0]
            assert outcome.metrics[f"noisy_t{t}"] == pytest.approx(psnr(noisy, test))
            line = outcome.curves[f"psnr t={t}"]
            wanted = (100, 200, 300) if arm is DIFFUSION else TINY["passes"]
            assert tuple(line.x) == wanted
            best = int(outcome.metrics[f"best_passes_t{t}"])
            assert outcome.metrics[f"best_psnr_t{t}"] == outcome.metrics[f"psnr_t{t}_p{best}"]
            assert outcome.first_non_finite() is None
            np.testing.assert_allclose(outcome.curves[f"figure/picture t={t} p0"].y, noisy[0].flatten())


def test_the_energy_falls_along_its_own_descent(results):
    metrics, curves = (getattr(results.outcomes[ENERGY.name][0], part) for part in ("metrics", "curves"))
    for t in (99, 199, 299):
        line = curves[f"energy t={t}"].y
        assert line[0] > line[1] > 0
        assert line[-1] == 0
        best = int(metrics[f"best_passes_t{t}"])
        assert metrics[f"thinking_gain_t{t}"] == pytest.approx(
            metrics[f"psnr_t{t}_p{best}"] - metrics[f"psnr_t{t}_p3"]
        )
        assert metrics[f"past_minimum_t{t}"] == pytest.approx(
            metrics[f"psnr_t{t}_p{best}"] - metrics[f"psnr_t{t}_p6"]
        )
        assert -1 <= metrics[f"energy_rank_t{t}"] <= 1
    assert not any(k.startswith("energy_") for k in results.outcomes[FORWARD.name][0].metrics)


def test_training_helps_and_depends_on_arm_seed_and_scale_alone(results):
    torch.manual_seed(123)
    again = trials.denoise(RECURRENT, 0, TINY)
    assert again == results.outcomes[RECURRENT.name][0]
    assert trials.denoise(RECURRENT, 1, TINY).metrics["psnr_t99_p3"] != again.metrics["psnr_t99_p3"]
    little = trials.denoise(RECURRENT, 0, {**TINY, "energy_steps": 1})
    assert again.metrics["best_psnr_t99"] > little.metrics["best_psnr_t99"] + 0.05


def test_the_number_of_passes_is_chosen_without_the_test_images(monkeypatch):
    # A denoiser that is right after 2 passes on validation images, after 6 on test images.
    def states(model, x, passes):
        clean = torch.cat([parts.valid, parts.test])
        right = {2: slice(0, 12), 6: slice(12, None)}
        found = {}
        for k in passes:
            found[k] = x.clone()
            found[k][right.get(k, slice(0, 0))] = clean[right.get(k, slice(0, 0))] + 0.01
        return found, None

    parts = digit_images(0, valid=12, test=24)
    monkeypatch.setattr(trials, "_states", states)
    outcome = trials.denoise(FORWARD, 0, {**TINY, "energy_steps": 1})
    assert outcome.metrics["best_passes_t199"] == 2
    assert outcome.metrics["best_psnr_t199"] == pytest.approx(outcome.metrics["noisy_t199"])
    assert outcome.metrics["psnr_t199_p6"] > 30


@pytest.mark.parametrize("arm", trials.ABLATIONS, ids=lambda arm: arm.name)
def test_every_ablation_runs(arm):
    outcome = trials.denoise(arm, 0, {**TINY, "energy_steps": 2, "passes": (1, 2, 3)})
    assert outcome.first_non_finite() is None
    model, plain = (trials.make_denoiser(a, TINY, 0) for a in (arm, ENERGY))
    assert (model.recipe, model.condition_on_input) != (plain.recipe, plain.condition_on_input)


def test_figures_draw_what_there_is(results):
    for drawn in (results, Results({}), Results({FORWARD.name: results.outcomes[FORWARD.name]})):
        for figure in DENOISING_FIGURES:
            figure.draw(Figure(), drawn)
            table = figure.table(drawn)
            assert all(len(row) == len(table.header) for row in table.rows)
    shown = Figure()
    draw_passes(shown, results)
    lines = {line.get_label(): line.get_ydata() for line in shown.axes[0].lines}
    np.testing.assert_allclose(lines[ENERGY.label], results.outcomes[ENERGY.name][0].curves["psnr t=99"].y)
    assert len(table_passes(results).rows) == 3 * (3 * 4 + 3)
