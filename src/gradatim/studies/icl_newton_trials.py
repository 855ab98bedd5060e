"""The trials of study 21: train in-context learners, match every layer against the algorithms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradatim.bench import Arm, Curve, Outcome, Scale
from gradatim.bench.stacked import train_stacked
from gradatim.probes import (
    GradientDescent,
    GradientDescentPlusPlus,
    IterativeNewton,
    LeastSquares,
    OnlineGradientDescent,
    best_match,
    fit_gd_plus_plus,
    forgetting,
    matching_trend,
    similarity_of_errors,
    sweep,
    unsaturated,
)
from gradatim.probes.layer_readout import LayerReadout
from gradatim.tasks import LinearRegressionTask, context_generator

NEWTON = tuple(range(1, 24))
GD = tuple(2**j for j in range(13))
GD_PLUS_PLUS = (1, 2, 3, 4, 5, 6, 8)
# The curve of errors needs more points than the heat map: a layer may stand for any number of steps.
GD_DENSE = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
RATES = (0.25, 0.5, 1.0, 2.0)
TUNED = tuple(f"gd x{f:g}" for f in RATES)
PAPER_RATE = 0.01


def batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """One outcome per seed; learners of several seeds are trained as one stack."""
    if arm.settings["kind"] == "construction":
        return [_construction(arm.settings, seed) for seed in seeds]
    task = _task(arm.settings, scale)
    models = _train(arm.settings, task, seeds, scale)
    return [_judge(m, task, seed, scale, arm.settings) for m, seed in zip(models, seeds, strict=True)]


def _task(settings: Mapping[str, Any], scale: Scale) -> LinearRegressionTask:
    return LinearRegressionTask(scale["d"], scale["n"], cov=settings.get("cov"), kappa=float(scale["kappa"]))


def _train(
    settings: Mapping[str, Any], task: LinearRegressionTask, seeds: Sequence[int], scale: Scale
) -> list[nn.Module]:
    """Fresh contexts every step, drawn from (seed, 0, step) alone."""
    from gradatim.models.in_context import InContextConfig, InContextTransformer
    from gradatim.models.in_context_recurrent import InContextLSTM

    recurrent = settings["kind"] == "lstm"
    sizes = scale["lstm"] if recurrent else scale["transformer"]
    config = InContextConfig(
        d=task.d, n_positions=task.n, n_layer=sizes["layers"], n_embd=sizes["width"],
        n_head=sizes.get("heads", 1), tokens=settings.get("tokens", "paired"),
        positions="none" if recurrent else "learned",
    )  # fmt: skip
    make = InContextLSTM if recurrent else InContextTransformer
    device = "cuda" if scale.get("device") == "auto" and torch.cuda.is_available() else "cpu"

    def draw(step: int) -> tuple[Tensor, Tensor]:
        drawn = [task.sample(scale["batch"], generator=context_generator(s, 0, step)) for s in seeds]
        return torch.stack([b.x for b in drawn]), torch.stack([b.y for b in drawn])

    trained = train_stacked(
        lambda seed: make(config, seed=seed), draw,
        seeds=seeds, steps=sizes["steps"], lr=sizes["lr"], device=device,
    )  # fmt: skip
    return [model.cpu() for model in trained.models]


# -- one trained learner -----------------------------------------------------------------------------------


def _judge(
    model: nn.Module, task: LinearRegressionTask, seed: int, scale: Scale, settings: Mapping[str, Any]
) -> Outcome:
    """Every layer beside every algorithm, on contexts that neither training nor read-outs have seen."""
    fitting = task.sample(3 * scale["contexts"], generator=context_generator(seed, 1))
    judged = task.sample(scale["contexts"], generator=context_generator(seed, 2))
    x, y = judged.x.double(), judged.y.double()
    with torch.no_grad():
        readout = LayerReadout().fit(model(fitting.x, fitting.y, output_hidden_states=True), fitting.y)
        found = model(judged.x, judged.y, output_hidden_states=True)
    layers = readout.predict(found)  # [L + 1, batch, n]
    answers = found.predictions.double()

    late = slice(task.d + 1, None)
    errors = _mean_error(layers, y, late) / task.d
    metrics = {
        "error": float(_mean_error(answers[None], y, late)[0]) / task.d,
        "error_early": float(_mean_error(answers[None], y, slice(1, task.d))[0]) / task.d,
        "error_ols": float(_mean_error(LeastSquares().predict(x, y)[None], y, late)[0]) / task.d,
    }
    if settings.get("cov") == "ill":
        metrics["weak_share"] = float(task.spectrum[: task.d - task.d // 2].sum() / task.d)
    depth = list(range(len(layers)))
    curves = {"error": Curve(depth, errors.tolist(), "layer", "error / d, t > d")}

    rivals = _rivals(task, scale)
    paths = {name: sweep(algorithms, x, y) for name, algorithms in rivals.items()}
    matches = {
        name: best_match(torch.cat([layers, answers[None]]), path, y, bootstrap=200, seed=seed)
        for name, path in paths.items()
    }
    metrics |= _similarities(matches, answers, x, y)
    inner = unsaturated(errors.tolist())
    tuned = _tuned_rate(matches, inner)
    metrics |= _trends(matches, tuned, inner, paths, y)
    curves |= _matched_curves(matches, tuned, depth)
    if len(inner) >= 3:
        metrics |= _misfits(errors, inner, task, x, y, scale)
    for name, path, steps in (
        ("newton", paths["newton"], NEWTON),
        ("gd", paths[tuned], GD),
        ("gd++", paths["gd++"], GD_PLUS_PLUS),
    ):
        curve = _mean_error(path, y, late) / task.d
        curves[f"{name}/error"] = Curve(list(steps), curve.tolist(), "steps", "error / d, t > d")
    few = slice(0, min(300, len(x)))
    curves["forgetting"], rise = _forgetting(partial(_as_learner, model), x[few], y[few], task.d)
    metrics |= rise
    curves["forgetting/online GD"], _ = _forgetting(OnlineGradientDescent(), x[few], y[few], task.d)
    return Outcome(metrics, curves)


def _as_learner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = model(x.float(), y.float()).predictions
    return found


def _mean_error(predictions: Tensor, y: Tensor, prefixes: slice) -> Tensor:
    return (predictions - y).square()[..., prefixes].mean(dim=(-2, -1))


@functools.lru_cache(maxsize=8)
def _fitted_gd_plus_plus(task: LinearRegressionTask, steps: int) -> GradientDescentPlusPlus:
    fitted = fit_gd_plus_plus(task, steps, contexts=500, seed=1_000_000)
    # As a layer would hold it: one fixed rate for the sum, whatever the length of the prefix.
    assert isinstance(fitted.lr, float)
    return GradientDescentPlusPlus(fitted.lr / (task.n - 1), fitted.gamma, steps, "sum")


def base_rate(task: LinearRegressionTask) -> float:
    """min(.01, 1 / lambda_max) of the task's typical S, the rate that all others are multiples of."""
    drawn = task.sample(200, generator=context_generator(1_000_000), dtype=torch.float64)
    largest = torch.linalg.eigvalsh(drawn.x.mT @ drawn.x)[:, -1].mean()
    return min(PAPER_RATE, 1 / float(largest))


def _rivals(task: LinearRegressionTask, scale: Scale) -> dict[str, list[Any]]:
    """Step counts of Newton, of gradient descent at several rates, and of GD++ tuned for each count."""
    rates = {name: f * base_rate(task) * scale["rate_factor"] for name, f in zip(TUNED, RATES, strict=True)}
    return {
        "newton": [IterativeNewton(k) for k in NEWTON],
        "gd": [GradientDescent(k, PAPER_RATE) for k in GD],
        **{name: [GradientDescent(k, rate) for k in GD] for name, rate in rates.items()},
        "gd++": [_fitted_gd_plus_plus(task, k) for k in GD_PLUS_PLUS],
    }


def _similarities(matches: Mapping[str, Any], answers: Tensor, x: Tensor, y: Tensor) -> dict[str, float]:
    """Of the model's own answers, the last row of every match."""
    found = {f"sim_{name}": float(m.best[-1]) for name, m in matches.items() if name not in TUNED}
    found["sim_gd_tuned"] = max(float(m.best[-1]) for n, m in matches.items() if n in ("gd", *TUNED))
    for name, algorithm in (("ogd", OnlineGradientDescent()), ("ols", LeastSquares())):
        found[f"sim_{name}"] = float(similarity_of_errors(algorithm.predict(x, y), answers, y).mean())
    return found


def _tuned_rate(matches: Mapping[str, Any], inner: Sequence[int]) -> str:
    """The rate at which gradient descent is most like the layers that still learn."""
    rows = list(inner) or [-1]
    return max(TUNED, key=lambda name: float(matches[name].best[rows].mean()))


def _trends(
    matches: Mapping[str, Any], tuned: str, inner: Sequence[int], paths: Mapping[str, Tensor], y: Tensor
) -> dict[str, float]:
    """Matched steps over the layers that still learn, and whether Newton's and GD's are one fact."""
    last_newton = float(NEWTON[int(matches["newton"].argmax[-1])])
    last_gd = float(GD[int(matches[tuned].argmax[-1])])
    found = {"newton_last": last_newton, "gd_last_log": float(np.log2(last_gd)), "layers": float(len(inner))}
    if len(inner) < 3:
        return found
    rows = list(inner)
    newton = np.array([NEWTON[i] for i in matches["newton"].argmax[rows]])
    gd = np.array([GD[i] for i in matches[tuned].argmax[rows]])
    plus = np.array([GD_PLUS_PLUS[i] for i in matches["gd++"].argmax[rows]])
    a, b, c = (matching_trend(rows, steps) for steps in (newton, gd, plus))
    # What each Newton step count itself is matched by: no model is involved.
    alone = best_match(paths["newton"], paths[tuned], y, bootstrap=2).argmax.numpy()
    expected = np.array([np.log2(GD[alone[NEWTON.index(k)]]) for k in newton])
    return found | {
        "newton_slope": a.slope,
        "newton_r2": a.r2_linear,
        "gd_slope_log": b.slope_log,
        "gd_r2_log": b.r2_log,
        "gd_r2_linear": b.r2_linear,
        "gd_log_gain": b.r2_log - b.r2_linear,
        "line_gain": a.r2_linear - b.r2_log,
        "gd++_slope": c.slope,
        "gd++_r2": c.r2_linear,
        "identity_gap": float(np.abs(np.log2(gd) - expected).mean()),
    }


def _matched_curves(matches: Mapping[str, Any], tuned: str, depth: Sequence[int]) -> dict[str, Curve]:
    found = {}
    for name, match, steps in (
        ("newton", matches["newton"], NEWTON),
        ("gd", matches[tuned], GD),
        ("gd++", matches["gd++"], GD_PLUS_PLUS),
    ):
        x = [*depth, len(depth)]  # the model's own answers stand after the last layer
        for part, columns in (("", match.argmax), ("/low", match.low), ("/high", match.high)):
            counts = [float(steps[int(i)]) for i in columns]
            found[f"{name}/steps{part}"] = Curve(x, counts, "layer", "matched steps")
        found[f"{name}/similarity"] = Curve(x, match.best.tolist(), "layer", "similarity of errors")
        for row in depth:
            found[f"{name}/heat/{row}"] = Curve(
                list(steps), match.matrix[row].tolist(), "steps", "similarity of errors"
            )
    return found


# -- errors by layer against errors by step ------------------------------------------------------------------


def _misfits(
    errors: Tensor, inner: Sequence[int], task: LinearRegressionTask, x: Tensor, y: Tensor, scale: Scale
) -> dict[str, float]:
    """How well a constant number of steps per layer explains the error of the layers that still learn.

    The root mean square difference of log errors, with the steps per layer and an offset fitted to each
    family, and for gradient descent the rate as well.
    """
    late = slice(task.d + 1, None)
    zero = y[:, late].square().mean()
    log_errors = errors[list(inner)].log().numpy()

    def table(algorithms: Sequence[Any]) -> np.ndarray:
        found: np.ndarray = (_mean_error(sweep(algorithms, x, y), y, late) / task.d).log().numpy()
        return found

    start = float((zero / task.d).log())
    newton = np.concatenate([[start], table([IterativeNewton(k) for k in range(24)])])
    plus = np.concatenate([[start], table([_fitted_gd_plus_plus(task, k) for k in GD_PLUS_PLUS])])
    best_gd = min(
        fit_steps(inner, log_errors, GD_DENSE, table([GradientDescent(k, rate) for k in GD_DENSE]))
        for rate in (f * base_rate(task) * scale["rate_factor"] for f in RATES)
    )
    by_newton = fit_steps(inner, log_errors, range(25), newton)
    by_plus = fit_steps(inner, log_errors, (0, *GD_PLUS_PLUS), plus)
    rates = -np.diff(log_errors)
    return {
        "misfit_newton": by_newton[0],
        "misfit_gd": best_gd[0],
        "misfit_gd++": by_plus[0],
        "newton_lead": best_gd[0] - by_newton[0],
        "newton_lead_gd++": by_plus[0] - by_newton[0],
        "newton_per_layer": by_newton[1],
        "gd_per_layer": best_gd[1],
        "acceleration": float(np.diff(rates).mean()),
    }


def fit_steps(
    layers: Sequence[int], log_errors: np.ndarray, steps: Sequence[int], table: np.ndarray
) -> tuple[float, float]:
    """Least rms of log error(layer) - log error(algorithm after a layer + c steps), and its a.

    Between the tabulated steps the log error is interpolated; a runs over a logarithmic grid, c over offsets
    of up to three layers either way.
    """
    x = np.asarray(layers, dtype=float)
    largest = max(steps) / len(x)
    rates, shifts = np.geomspace(0.1, largest, 80), np.linspace(-3, 3, 49)
    best = (np.inf, 0.0)
    for width in (1.1, 1.01):
        grid_a, grid_c = np.meshgrid(rates, shifts, indexing="ij")
        at = np.maximum(grid_a[..., None] * (x - x[0] + 1 + grid_c[..., None]), 0)
        rms = np.sqrt(np.mean((np.interp(at, steps, table) - log_errors) ** 2, axis=-1))
        a, c = np.unravel_index(int(rms.argmin()), rms.shape)
        best = min(best, (float(rms[a, c]), float(rates[a])))
        # Once more around the best, on a finer grid.
        rates = rates[a] * np.geomspace(1 / width, width, 41)
        shifts = shifts[c] + np.linspace(-0.2, 0.2, 41)
    return best


# -- what is remembered ----------------------------------------------------------------------


def _forgetting(learner: Callable[..., Any], x: Tensor, y: Tensor, d: int) -> tuple[Curve, dict[str, float]]:
    """Error on pairs already seen, by how long ago; `rise` is the older half above the newer one."""
    seen = x.shape[1] - 1  # a learner of n positions has room for n - 1 pairs and a question
    error = (forgetting(learner, x, y, seen) / d).tolist()
    half = seen // 2
    newer, older = float(np.mean(error[:half])), float(np.mean(error[-half:]))
    curve = Curve(list(range(seen)), error, "pairs since", "error / d")
    return curve, {"rise": older - newer, "rise_log": float(np.log(older / newer)) if newer > 0 else 0.0}


# -- the construction ----------------------------------------------------------------------


def _construction(settings: Mapping[str, Any], seed: int) -> Outcome:
    """Digits to which ReLU attention agrees with the iteration, with the right and the printed signs."""
    from gradatim.models.constructions import newton

    steps, d, n = settings["steps"], settings["d"], settings["n"]
    drawn = LinearRegressionTask(d, n).sample(20, generator=context_generator(seed), dtype=torch.float64)
    largest = torch.linalg.eigvalsh(drawn.x.mT @ drawn.x).max()
    alpha = float(1 / largest**2)  # a weight: one number for all contexts
    want = IterativeNewton(steps, alpha).predict(drawn.x, drawn.y)
    metrics = {}
    for name in ("digits", "digits_printed_signs"):
        model: Any = newton(d, n, steps, alpha)
        if name != "digits":
            with torch.no_grad():
                for layer in model.layers[1 : 1 + steps]:
                    layer.value.abs_()  # both heads write with the same sign, as the proof prints it
        with torch.no_grad():
            off = (model(drawn.x, drawn.y).predictions - want).abs().max() / want.abs().max()
        metrics[name] = -float(torch.log10(off.clamp(min=1e-17, max=1e17)))
    metrics["layers"] = float(len(newton(d, n, steps, alpha).layers))
    return Outcome(metrics)


def interleaved(arm: Arm) -> Arm:
    """The same arm with the papers' own token layout."""
    settings = {**arm.settings, "tokens": "interleaved"}
    return replace(arm, name=f"{arm.name}-interleaved", settings=settings, label=f"{arm.label}, interleaved")
