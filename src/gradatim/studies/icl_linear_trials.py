"""The trials of study 02: train in-context learners, then find the reference algorithm nearest to each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradatim.bench import Arm, Curve, Outcome, Scale
from gradatim.bench.stacked import StackedTraining, train_stacked
from gradatim.models import InContextConfig, InContextTransformer
from gradatim.probes import (
    Averaging,
    ContextSpectra,
    GradientDescent,
    IterativeNewton,
    KNeighbors,
    LeastSquares,
    OnlineGradientDescent,
    Predictor,
    Ridge,
    Zero,
    fit_position_probes,
    ilwd,
    linearity_r2,
    mspd,
    spd,
    tune,
)
from gradatim.probes.position_probe import context_moment
from gradatim.tasks import ICLBatch, LinearRegressionTask, context_generator

GRID = (0.0, 1 / 16, 1 / 9, 1 / 4, 4 / 9, 1.0)
LAMBDAS = tuple(float(v) for v in np.geomspace(1e-3, 10, 33))
# What one may tune inside each family of rivals, and between which bounds.
DESCENT_STEPS = (2, 3, 4, 6, 8, 12, 16)
NEWTON_STEPS = tuple(range(1, 13))
RIDGES, RATES = (1e-4, 1e3), (1e-3, 1.0)


def batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """One outcome per seed; the seeds of an arm train as one stack."""
    task = _task(arm.settings, scale)
    trained = _train(arm.settings, task, seeds, scale)
    return [_judge(arm.settings, task, trained, i, seed, scale) for i, seed in enumerate(seeds)]


def _task(settings: Mapping[str, Any], scale: Scale) -> LinearRegressionTask:
    noise = {"sigma": settings.get("sigma", 0.0), "tau": settings.get("tau", 1.0)}
    return LinearRegressionTask(scale["d"], scale["n"], **noise)


def model(settings: Mapping[str, Any], scale: Scale, seed: int) -> InContextTransformer:
    """The untrained learner of a seed."""
    heads, width = scale["heads"], scale["width"]
    if settings.get("wide"):  # blocks have 12 width^2 parameters: one block as large as all of them
        width = 2 * heads * math.ceil(width * math.sqrt(scale["layers"]) / (2 * heads))
    config = InContextConfig(
        d=scale["d"],
        n_positions=scale["n"],
        n_layer=settings.get("layers", scale["layers"]),
        n_head=heads,
        n_embd=width,
        arch=scale.get("arch", "preln"),
        tokens=settings.get("tokens", scale["tokens"]),
        initializer_range=None,
    )
    return InContextTransformer(config, seed=seed)


def _train(
    settings: Mapping[str, Any], task: LinearRegressionTask, seeds: Sequence[int], scale: Scale
) -> StackedTraining:
    """Fresh contexts at every step, from (seed, 0, step) alone; a copy is kept at half the steps."""

    def draw(step: int) -> tuple[Tensor, Tensor]:
        drawn = [task.sample(scale["batch"], generator=context_generator(seed, 0, step)) for seed in seeds]
        x = torch.stack([b.x for b in drawn])
        # The control of the probes learns the one function w = (1, ..., 1) and nothing about regression.
        y = x.sum(-1) if settings.get("fixed_weights") else torch.stack([b.y for b in drawn])
        return x, y

    steps = _steps(settings, scale)
    return train_stacked(
        lambda seed: model(settings, scale, seed),
        draw,
        seeds=seeds,
        steps=steps,
        lr=scale["lr"],
        warmup=scale.get("warmup", 0.05),
        snapshots=[max(1, steps // 2)],
        # One engine for any number of seeds: a seed's rounding does not depend on its companions.
        engine="vmap",
        device="cuda" if scale.get("device") == "auto" and torch.cuda.is_available() else None,
        autocast=torch.bfloat16 if scale.get("half") else None,
    )


def _steps(settings: Mapping[str, Any], scale: Scale) -> int:
    return round(scale["steps"] * settings.get("share", 1.0))


def _judge(
    settings: Mapping[str, Any],
    task: LinearRegressionTask,
    trained: StackedTraining,
    i: int,
    seed: int,
    scale: Scale,
) -> Outcome:
    learner = trained.models[i].cpu()
    steps = _steps(settings, scale)
    halfway = trained.snapshots[max(1, steps // 2)][i].cpu()
    untrained = model(settings, scale, seed)
    losses = trained.smoothed(50)[:, i] / task.d
    shown = np.unique(np.geomspace(min(10, len(losses)), len(losses), 60).astype(int)) - 1
    curves = {"loss": Curve((shown + 1).tolist(), losses[shown].tolist(), "step", "training loss / d")}
    metrics = {"steps": float(steps)}
    if settings.get("probe"):
        found, drawn = _probed(
            learner, None if settings.get("fixed_weights") else untrained, task, seed, scale
        )
        metrics |= found
        curves |= drawn
    if settings.get("fixed_weights"):
        return Outcome(metrics, curves)
    found, drawn = _matched(learner, halfway, task, seed, scale)
    metrics |= found
    curves |= drawn
    if settings.get("linearity"):
        found, drawn = _linear(learner, untrained, task, seed, scale)
        metrics |= found
        curves |= drawn
    if "also_on" in settings:
        # The same learner on contexts with another noise than it was trained with.
        noisy = _contexts(replace(task, sigma=settings["also_on"]), seed, 3, scale)
        metrics["lambda_on_noisy"] = _nearest_ridge(noisy, _predict(learner, noisy))
    return Outcome(metrics, curves)


# -- Which algorithm? ----------------------------------------------------------------------------------------


def _matched(
    learner: nn.Module, halfway: nn.Module, task: LinearRegressionTask, seed: int, scale: Scale
) -> tuple[dict[str, float], dict[str, Curve]]:
    """Distances to every reference on judging contexts, each family tuned on others."""
    tuning, judging = _contexts(task, seed, 1, scale), _contexts(task, seed, 2, scale)
    on_tuning, on_judging = _predict(learner, tuning), _predict(learner, judging)
    spectra = ContextSpectra(judging.x, judging.y)
    d = task.d

    def apart(predictor: Predictor) -> float:
        return float(spd(on_judging, spectra.predict(predictor), d)[1:].mean())

    metrics: dict[str, float] = {}
    tuned = _tuned(tuning, on_tuning)
    for family, predictor in tuned.items():
        metrics[f"tuned/{family}"] = apart(predictor)
    # Least squares is a ridge; every other family is a rival of the whole ridge family.
    rivals = [v for k, v in metrics.items() if k not in ("tuned/ridge", "tuned/OLS")]
    metrics["ridge_lead"] = math.log2(min(rivals) / metrics["tuned/ridge"])
    one_step = metrics["tuned/GD, 1 step"]
    metrics["one_step_lead"] = math.log2(metrics["tuned/ridge"] / one_step)
    metrics["one_step_lead_over_zero"] = math.log2(metrics["tuned/zero"] / one_step)

    grid = {a: mspd(on_judging, spectra.predict(Ridge(a)), d) for a in GRID}
    metrics |= {f"mspd/{a:.4g}": value for a, value in grid.items()}
    metrics["ols_lead"] = math.log2(grid[1 / 16] / grid[0.0])
    bayes = task.bayes_alpha
    nearest = min(GRID, key=lambda a: abs(a - bayes))
    metrics["bayes_lead"] = math.log2(min(v for a, v in grid.items() if a != nearest) / grid[nearest])

    metrics["lambda"] = _nearest_ridge(judging, on_judging)
    metrics["lambda_halfway"] = _nearest_ridge(judging, _predict(halfway, judging))
    metrics["log2_lambda"] = math.log2(metrics["lambda"])
    metrics["lambda_drift"] = math.log2(metrics["lambda_halfway"] / metrics["lambda"])
    if bayes > 0:
        metrics["log2_lambda_over_bayes"] = math.log2(metrics["lambda"] / bayes)

    assert judging.w is not None
    target = torch.einsum("bnd,bd->bn", judging.x, judging.w).double()
    optimal = spectra.predict(Ridge(bayes)) if bayes else spectra.predict(LeastSquares())
    error = spd(on_judging, target, d)
    metrics["error"] = float(error[1:].mean())
    metrics["excess"] = metrics["error"] - float(spd(optimal, target, d)[1:].mean())
    metrics["excess_halfway"] = metrics["excess"] + float(
        (spd(_predict(halfway, judging), target, d) - error)[1:].mean()
    )
    n = list(range(1, task.n))
    curves = {
        "error": Curve(n, error[1:].tolist(), "pairs seen", "squared error / d"),
        "valley": Curve(
            LAMBDAS, [mspd(on_judging, spectra.predict(Ridge(a)), d) for a in LAMBDAS], "lambda", "MSPD"
        ),
    }
    for family, predictor in tuned.items():
        gap = spd(on_judging, spectra.predict(predictor), d)[1:]
        curves[f"spd/{family}"] = Curve(n, gap.tolist(), "pairs seen", "SPD / d")
    return metrics, curves


def _tuned(data: ICLBatch, target: Tensor) -> dict[str, Predictor]:
    """The member of each family that is nearest to the learner on these contexts."""

    def best(makers: Sequence[Callable[[float], Predictor]], low: float, high: float) -> Predictor:
        found = []
        for make in makers:
            setting, gap = tune(make, data.x, data.y, target, low, high, points=17, tolerance=1e-2)
            found.append((gap, make(setting)))
        return min(found, key=lambda pair: pair[0])[1]

    def nearest(members: Sequence[Predictor]) -> Predictor:
        spectra = ContextSpectra(data.x, data.y)
        return min(members, key=lambda p: float((spectra.predict(p) - target)[:, 1:].square().mean()))

    # A rate that is too high for some contexts diverges there, and the search goes elsewhere.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return {
            "OLS": LeastSquares(),
            "ridge": best([Ridge], *RIDGES),
            "GD, 1 step": best(
                [partial(GradientDescent, 1), partial(GradientDescent, 1, reduction="mean")], *RATES
            ),
            "GD, k steps": best([partial(GradientDescent, k) for k in DESCENT_STEPS], *RATES),
            "Newton, k steps": nearest([IterativeNewton(k) for k in NEWTON_STEPS]),
            "online GD": best([OnlineGradientDescent], *RATES),
            "k-NN": nearest([KNeighbors(k, w) for k in (1, 3, 5) for w in ("uniform", "distance")]),
            "averaging": Averaging(),
            "zero": Zero(),
        }


def _nearest_ridge(data: ICLBatch, target: Tensor) -> float:
    """The penalty of least MSPD: over 1 to d - 1 pairs, as the paper compares."""
    d = data.x.shape[2]
    return tune(Ridge, data.x[:, :d], data.y[:, :d], target[:, :d], *RIDGES)[0]


def _contexts(task: LinearRegressionTask, seed: int, purpose: int, scale: Scale) -> ICLBatch:
    return task.sample(scale["contexts"], generator=context_generator(seed, purpose, 0, 0))


def _predict(learner: nn.Module, data: ICLBatch) -> Tensor:
    with torch.no_grad():
        return torch.cat([
            learner(x, y).predictions for x, y in zip(data.x.split(500), data.y.split(500), strict=True)
        ]).double()  # fmt: skip


# -- What does it hold? --------------------------------------------------------------------------------------


def _linear(
    learner: nn.Module, untrained: nn.Module, task: Any, seed: int, scale: Scale
) -> tuple[dict[str, float], dict[str, Curve]]:
    """How linear the learner's answers are in the question, and how far its weights are from OLS."""

    def generator() -> torch.Generator:
        return context_generator(seed, 4, 0, 0)

    options = {"contexts": scale["contexts"] // 20}
    r2 = linearity_r2(learner, task, generator=generator(), **options)
    before = linearity_r2(untrained, task, generator=generator(), **options)
    weights = ilwd(learner, LeastSquares(), task, generator=generator(), **options)
    n, d = list(range(1, task.n)), task.d
    return (
        {
            "r2_rise": float(r2[d] - r2[1]),
            "r2_rise_untrained": float(before[d] - before[1]),
            "ilwd": float(weights[1:].median()),
        },
        {
            "r2": Curve(n, r2[1:].tolist(), "pairs seen", "R2 of a linear fit"),
            "ilwd": Curve(n, weights[1:].tolist(), "pairs seen", "ILWD / d"),
        },
    )


def _probed(
    learner: nn.Module, untrained: nn.Module | None, task: LinearRegressionTask, seed: int, scale: Scale
) -> tuple[dict[str, float], dict[str, Curve]]:
    """Probes of every layer for X^T y / n and w_OLS after `probe_pairs` pairs of random-w contexts."""
    count = scale["probe_pairs"]
    data = replace(task, n=count).sample(3 * scale["contexts"], generator=context_generator(seed, 5, 0, 0))
    targets = {"xty": context_moment(data.x, data.y), "w_ols": LeastSquares().weights(data.x, data.y)}
    metrics: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    cases = [(learner, "", True)]
    if untrained is not None:
        cases += [(learner, "_linear", False), (untrained, "_untrained", True)]
        cases += [(untrained, "_linear_untrained", False)]
    for network, suffix, mlp in cases:
        with torch.no_grad():
            states = network.token_states(data.x, data.y)  # type: ignore[operator]
        for name, target in targets.items():
            if suffix and name == "xty":
                continue
            probes = fit_position_probes(
                states, target, hidden=scale["probe_width"], mlp=mlp, steps=scale["probe_steps"], lr=5e-3,
                seed=seed,
            )  # fmt: skip
            error = probes.error
            metrics[f"probe/{name}{suffix}"] = float(error.min())
            layers = list(range(len(error)))
            curves[f"probe/{name}{suffix}"] = Curve(layers, error.tolist(), "layer", "relative error")
            if not suffix:
                tokens = list(range(1, 2 * count + 1))
                share = probes.attention[probes.best_layer].tolist()
                curves[f"attention/{name}"] = Curve(tokens, share, "token", "attention of the probe")
    return metrics, curves
