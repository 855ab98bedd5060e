"""The trials of study 11: train attention on regression contexts, then compare it with gradient descent."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradatim.bench import Arm, Curve, Outcome, Scale, tuning_seeds
from gradatim.bench.stacked import StackedTraining, train_stacked
from gradatim.models.constructions import (
    gradient_descent,
    gradient_descent_pp,
    preconditioned_gradient_descent,
)
from gradatim.models.linear_attention import LinearAttentionRegressor, LSAConfig
from gradatim.models.linear_self_attention import LinearSelfAttention
from gradatim.probes.context_alignment import (
    Learner,
    alignment,
    in_float64,
    ood_curve,
    query_losses,
    split_query,
    token_sensitivity,
)
from gradatim.probes.layer_products import interpolate, learned_rates, repeated_losses
from gradatim.probes.reference_tuning import (
    expected_loss,
    fit_gd_plus_plus,
    fit_gradient_descent,
    optimal_gd_lr,
)
from gradatim.probes.sequential_algorithms import PreconditionedGradientDescent
from gradatim.tasks.contexts import ICLBatch, context_generator
from gradatim.tasks.linear_regression import LinearRegressionTask
from gradatim.tasks.nonlinear_regression import ContextPool, SineTask

D = 10
# Moments of U(-1/2, 1/2): what the paper's code draws, and its figures show.
SECOND, FOURTH = 1 / 12, 1 / 80
TRAINING, EVALUATION, PROBING, MODEL = range(4)
PAPER_GAMMA = {10: 0.179, 25: 0.099, 50: 0.056, 100: 0.029}
OOD_GRIDS: dict[str, tuple[float, ...]] = {
    "x_scale": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    "w_scale": (0.5, 1.0, 2.0, 5.0),
    "family": (0.5, 1.0, 2.0, 4.0),
    "distractors": (0.0, 2.0, 4.0, 6.0, 8.0),
}
DAMPING = 0.75
TIMES = 50
IN_TIME = 0.75  # a plateau left later leaves too little training to judge what it would end with
BURST = 1e6  # a loss that counts as diverged


def batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """One outcome per seed; the models of all seeds are trained as one stack."""
    settings = arm.settings
    if settings["kind"] == "filter":
        return [_filter(settings["n"], seed, scale) for seed in seeds]
    if settings["kind"] == "sine":
        return _sine(settings, seeds, scale)
    found = _train(settings, seeds, scale)
    judge = {"linear": _linear, "plain": _plain, "interleaved": _interleaved, "plateau": _plateau}[
        settings["kind"]
    ]
    return [judge(settings, seed, scale, found, i) for i, seed in enumerate(seeds)]


def regression(n: int, skewed: bool = False) -> LinearRegressionTask:
    """Contexts of n pairs and a query; skewed inputs have variances from 4 down to 1/4 of their mean."""
    if not skewed:
        return LinearRegressionTask(D, n + 1, x="uniform")
    spectrum = 2 ** torch.linspace(2, -2, D, dtype=torch.float64)
    covariance = torch.diag(spectrum / spectrum.mean())
    return LinearRegressionTask(D, n + 1, x="uniform", cov=tuple(tuple(r) for r in covariance.tolist()))


# -- training --------------------------------------------------------------------------------------------


def _train(
    settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale, twin: bool = False
) -> StackedTraining:
    """Models of all seeds after training with the arm's recipe, with ten snapshots on the way."""
    size, steps, lr, clip = scale["recipes"][settings["recipe"]]
    tasks = [_training_task(settings, seed) for seed in seeds]

    def draw(step: int) -> tuple[Tensor, ...]:
        drawn = [
            task.sample(size, generator=context_generator(TRAINING, seed, step))
            for task, seed in zip(tasks, seeds, strict=True)
        ]
        x, y = torch.stack([b.x for b in drawn]), torch.stack([b.y for b in drawn])
        return x[:, :, :-1], y[:, :, :-1], x[:, :, -1:], y[:, :, -1:]

    return train_stacked(
        [_model(settings, seed, twin) for seed in seeds],
        draw,
        _query_loss,
        steps=steps,
        lr=lr,
        clip=clip,
        device="cuda" if scale.get("device") == "auto" and torch.cuda.is_available() else None,
        snapshots=[steps * k // 10 for k in range(1, 10)] if settings["kind"] == "interleaved" else (),
    )


def _query_loss(model: Callable[..., Any], x: Tensor, y: Tensor, query: Tensor, label: Tensor) -> Tensor:
    return cast(Tensor, model(x, y, labels=label, query=query).loss)


def _model(settings: Mapping[str, Any], seed: int, twin: bool = False) -> nn.Module:
    config = LSAConfig(**{"d": D, **settings["model"]})
    model = LinearAttentionRegressor(config, torch.Generator().manual_seed(seed))
    if twin:  # the same features under a layer that is one step of gradient descent and stays so
        step = gradient_descent(config.features, settings["n"], 1.0).layers[0]
        model.layers[0].load_state_dict(step.state_dict())
        model.layers.requires_grad_(False)
    return model


def _training_task(settings: Mapping[str, Any], seed: int) -> Any:
    if settings["kind"] == "sine":
        return SineTask(settings["n"] + 1)
    task = regression(settings["n"], settings.get("skewed", False))
    return ContextPool(cast(Any, task), settings["pool"], seed) if "pool" in settings else task


def _evaluation(task: Any, seed: int, contexts: int) -> ICLBatch:
    drawn: ICLBatch = task.sample(
        contexts, generator=context_generator(EVALUATION, seed), dtype=torch.float64
    )
    return drawn


def _few(drawn: ICLBatch, scale: Scale) -> ICLBatch:
    """The first contexts alone, for what needs a gradient per context or is taken at every snapshot."""
    few: int = scale["alignment_contexts"]
    return ICLBatch(drawn.x[:few], drawn.y[:few])


# -- rivals ----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=32)
def rivals(n: int, layers: int, skewed: bool, contexts: int) -> dict[str, LinearAttentionRegressor]:
    """Gradient descent and its kin, each at its best rates on tuning seeds, as attention layers.

    gd1: one step. pgd: one step with the best matrix. gd, gd_own: `layers` steps with one rate or with a rate
    each; pp, pp_own: the same for GD++ with (lr, gamma).
    """
    task = regression(n, skewed)
    seed = tuning_seeds(1)[0]
    one = fit_gradient_descent(task, 1, seed=seed).lr if skewed else optimal_gd_lr(D, n, SECOND, FOURTH)[0]
    found = {"gd1": gradient_descent(D, n, cast(float, one))}
    if layers == 1:
        best = PreconditionedGradientDescent.fit(task, contexts=5 * contexts, seed=seed)
        found["pgd"] = preconditioned_gradient_descent(torch.tensor(best.matrix, dtype=torch.float64), n)
    options: dict[str, Any] = {"contexts": contexts, "seed": seed}
    gd = fit_gradient_descent(task, max(layers, 2), **options)
    found["gd"] = gradient_descent(D, n, cast(float, gd.lr), max(layers, 2))
    pp = fit_gd_plus_plus(task, max(layers, 2), **options)
    found["pp"] = gradient_descent_pp(D, n, cast(float, pp.lr), cast(float, pp.gamma), max(layers, 2))
    if 1 < layers <= 5:
        gd = fit_gradient_descent(task, layers, shared=False, **options)
        found["gd_own"] = gradient_descent(D, n, cast(Sequence[float], gd.lr))
        pp = fit_gd_plus_plus(task, layers, shared=False, **options)
        found["pp_own"] = gradient_descent_pp(
            D, n, cast(Sequence[float], pp.lr), cast(Sequence[float], pp.gamma)
        )
    return found


def _filter(n: int, seed: int, scale: Scale) -> Outcome:
    """The best (lr, gamma) of two looped GD++ steps, from the eigenvalues of this seed's contexts alone."""
    task = regression(n)
    contexts = scale["fit_contexts"]
    pp = fit_gd_plus_plus(task, 2, contexts=contexts, seed=seed)
    gd = fit_gradient_descent(task, 2, contexts=contexts, seed=seed)
    gamma = float(cast(float, pp.gamma))
    x = task.sample(contexts, generator=context_generator(EVALUATION, seed), dtype=torch.float64).x[:, :-1]
    largest = float(torch.linalg.eigvalsh(x.mT @ x)[:, -1].mean())
    loss = expected_loss(pp, task, contexts, seed)
    printed = PAPER_GAMMA[n]
    return Outcome(
        {
            "lr": float(cast(float, pp.lr)),
            "gamma": gamma,
            "loss": loss,
            "loss_gd": expected_loss(gd, task, contexts, seed),
            "gamma_gap": gamma / printed - 1,
            # Where the map l -> l (1 - gamma l)^2 turns over, set at the typical largest eigenvalue.
            "rule_distance": abs(1 / (3 * largest) / printed - 1),
            "gamma_distance": abs(gamma / printed - 1),
            "one_step_lr": optimal_gd_lr(D, n, SECOND, FOURTH)[0],
            "one_step_loss": optimal_gd_lr(D, n, SECOND, FOURTH)[1],
        }
    )


# -- linear attention ------------------------------------------------------------------------------------


def _linear(settings: Mapping[str, Any], seed: int, scale: Scale, found: StackedTraining, i: int) -> Outcome:
    """Loss, alignment with every rival, learned rates, interpolation, other distributions, repetition."""
    model = cast(LinearAttentionRegressor, in_float64(found.models[i].cpu()))
    n, layers, skewed = settings["n"], model.config.num_layers, settings.get("skewed", False)
    rival = rivals(n, layers, skewed, scale["fit_contexts"])
    task = regression(n, skewed)
    drawn = _evaluation(task, seed, scale["contexts"])
    metrics = _losses(model, rival, drawn) | _alignments(model, rival, _few(drawn, scale))
    metrics |= left_plateau(found, i, metrics)
    curves = {"training": _training_curve(found, i)}
    if model.config.tied and model.config.num_heads == 1:
        twin = rival["gd1"] if layers == 1 else rival["pp"]
        rates = learned_rates(model, n)
        tuned = learned_rates(twin, n)
        metrics |= {"lr": rates.lr, "gamma": rates.gamma, "lr_gap": rates.lr / tuned.lr - 1}
        metrics |= {"off_diagonal": rates.off_diagonal, "spread": rates.spread}
        if layers > 1:
            metrics["gamma_gap"] = rates.gamma / tuned.gamma - 1
        more, curves["between"] = _between(model, twin, drawn, metrics["loss"], tuned.lr, tuned.gamma, n)
        metrics |= more
    if settings.get("shifts"):
        more_metrics, more_curves = _shifts(model, rival, task, seed, scale)
        metrics |= more_metrics
        curves |= more_curves
    if settings.get("repeat"):
        more_metrics, more_curves = _repetition(model, rival["gd1"], drawn)
        metrics |= more_metrics
        curves |= more_curves
    return Outcome(metrics, curves)


def _losses(
    model: Learner, rival: Mapping[str, LinearAttentionRegressor], drawn: ICLBatch
) -> dict[str, float]:
    ours = float(query_losses(model, drawn).mean())
    losses = {f"loss_{name}": float(query_losses(r, drawn).mean()) for name, r in rival.items()}
    metrics = {"loss": ours, **losses, "untrained": float(0.5 * drawn.y[:, -1].square().mean())}
    metrics |= {f"excess_{name}": ours / losses[f"loss_{name}"] - 1 for name in rival}
    return metrics


def left_plateau(found: StackedTraining, i: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """When training left its plateau, as a share of its steps, and whether in time to end.

    Left is where the smoothed training loss first lies halfway between that of no prediction and that of one
    step of gradient descent; in time is within the first three quarters. Neither looks at what claims are
    about: how the model that training ends with compares with one algorithm or another.
    """
    window = 50
    smooth = found.smoothed(window)[:, i]
    smooth[: window - 1] = math.inf  # means of too few batches
    halfway = (metrics["untrained"] + metrics["loss_gd1"]) / 2
    below = (smooth < halfway).nonzero()[0]
    left_at = (int(below[0]) if len(below) else len(smooth)) / len(smooth)
    return {"left_at": left_at, "left_plateau": float(left_at <= IN_TIME)}


def _alignments(
    model: Learner, rival: Mapping[str, LinearAttentionRegressor], drawn: ICLBatch
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, r in rival.items():
        found = alignment(model, r, drawn)
        metrics |= {
            f"cos_{name}": found.cos,
            f"model_diff_{name}": found.model_diff,
            f"pred_diff_{name}": found.pred_diff,
        }
    return metrics


def _between(
    model: LinearAttentionRegressor,
    twin: LinearAttentionRegressor,
    drawn: ICLBatch,
    loss: float,
    lr: float,
    gamma: float,
    n: int,
) -> tuple[dict[str, float], Curve]:
    """Losses of models between the trained layer and the construction, and halfway to a wrong one."""
    grid = [k / 10 for k in range(11)]
    losses = [float(query_losses(interpolate(model, twin, t), drawn).mean()) for t in grid]
    wrong = gradient_descent_pp(D, n, 2 * lr, gamma, model.config.num_layers)
    astray = float(query_losses(interpolate(model, wrong), drawn).mean())
    metrics = {"halfway_excess": losses[5] / loss - 1, "astray_excess": astray / loss - 1}
    return metrics, Curve(grid, losses, "share of the construction", "loss")


def _shifts(
    model: Learner,
    rival: Mapping[str, LinearAttentionRegressor],
    task: LinearRegressionTask,
    seed: int,
    scale: Scale,
) -> tuple[dict[str, float], dict[str, Curve]]:
    """Losses as inputs, weights, family and labels shift; how far apart on a logarithmic scale."""
    curves, gaps = {}, {}
    for kind, grid in OOD_GRIDS.items():
        losses = {}
        for name, learner in (("model", model), ("gd1", rival["gd1"]), ("pp", rival["pp"])):
            found = ood_curve(
                learner, cast(Any, task), kind, grid, contexts=scale["shift_contexts"], seed=seed
            )
            losses[name] = found.median
            curves[f"{kind}/{name}"] = Curve(grid, found.mean, kind, "mean loss")
            curves[f"{kind}/{name}/median"] = Curve(grid, found.median, kind, "median loss")
        for name in ("model", "pp"):
            pairs = zip(losses[name], losses["gd1"], strict=True)
            gaps[f"{kind}/{name}"] = sum(abs(math.log(a / b)) for a, b in pairs) / len(grid)
    metrics = {
        f"shift_gap_{name}": sum(gaps[f"{kind}/{name}"] for kind in OOD_GRIDS) / len(OOD_GRIDS)
        for name in ("model", "pp")
    }
    return metrics, curves


def _repetition(
    model: LinearAttentionRegressor, step: LinearAttentionRegressor, drawn: ICLBatch
) -> tuple[dict[str, float], dict[str, Curve]]:
    """The layer applied again and again to the y-entries, with and without damping, beside GD."""
    few = ICLBatch(drawn.x[:2000], drawn.y[:2000])
    times = list(range(TIMES + 1))
    curves, end = {}, {}
    for name, learner in (("model", model), ("gd1", step)):
        for label, damping in (("damped", DAMPING), ("plain", 1.0)):
            each = repeated_losses(learner, few, TIMES, damping, y_only=True).mean(1)
            losses = torch.nan_to_num(each, nan=BURST, posinf=BURST).clamp(max=BURST).tolist()
            curves[f"{label}/{name}"] = Curve(times, losses, "applications", "loss")
            end[label, name] = losses[-1] / losses[1]
    metrics = {
        "damped_fall": -math.log10(end["damped", "model"]),
        "damped_fall_gd": -math.log10(end["damped", "gd1"]),
        "plain_fall": -math.log10(end["plain", "model"]),
    }
    return metrics, curves


# -- other layers ----------------------------------------------------------------------------------------


def _plain(settings: Mapping[str, Any], seed: int, scale: Scale, found: StackedTraining, i: int) -> Outcome:
    """Loss and alignment of layers that are not linear in the query: the sensitivity is a local gradient."""
    model = cast(LinearAttentionRegressor, in_float64(found.models[i].cpu()))
    rival = rivals(settings["n"], model.config.num_layers, False, scale["fit_contexts"])
    drawn = _evaluation(regression(settings["n"]), seed, scale["contexts"])
    metrics = _losses(model, rival, drawn) | _alignments(model, rival, _few(drawn, scale))
    metrics |= left_plateau(found, i, metrics)
    return Outcome(metrics, {"training": _training_curve(found, i)})


def _plateau(settings: Mapping[str, Any], seed: int, scale: Scale, found: StackedTraining, i: int) -> Outcome:
    """The share of training before the smoothed loss falls below 0.8 of where it started."""
    smooth = found.smoothed(50)[:, i]
    below = (smooth < 0.8 * SECOND * D / 2).nonzero()[0]
    waited = (int(below[0]) if len(below) else len(smooth)) / len(smooth)
    final = float(smooth[-1])
    return Outcome({"waited": waited, "loss": final}, {"training": _training_curve(found, i)})


def _interleaved(
    settings: Mapping[str, Any], seed: int, scale: Scale, found: StackedTraining, i: int
) -> Outcome:
    """Loss beside one and two steps; how strongly layer 1 reads the next token, over training."""
    n = settings["n"]
    rival = rivals(n, 2, False, scale["fit_contexts"])
    drawn = _evaluation(regression(n), seed, scale["contexts"])
    steps, ratios, losses = [], [], []
    for step, models in [*found.snapshots.items(), (len(found.losses), found.models)]:
        model = cast(LinearAttentionRegressor, in_float64(models[i].cpu()))
        steps.append(step)
        ratios.append(_copying(model, drawn, seed))
        losses.append(float(query_losses(model, _few(drawn, scale)).mean()))
    metrics = _losses(model, rival, drawn) | _alignments(model, rival, _few(drawn, scale))
    metrics |= left_plateau(found, i, metrics)
    metrics |= {"copying": ratios[-1], "copying_log": math.log10(ratios[-1])}
    curves = {
        "training": _training_curve(found, i),
        "copying": Curve(steps, ratios, "step", "sensitivity to the next token / to others"),
        "loss": Curve(steps, losses, "step", "loss"),
    }
    return Outcome(metrics, curves)


def _copying(model: LinearAttentionRegressor, drawn: ICLBatch, seed: int) -> float:
    """Sensitivity of layer 1's x-tokens to the next token, over that to the others (without their own)."""
    x, y, query, _ = (part[:64] for part in split_query(drawn))
    first = cast(LinearSelfAttention, model.layers[0])
    found = token_sensitivity(
        first, model.embed(x, y, query), probes=2, generator=context_generator(PROBING, seed)
    )
    inputs = torch.arange(0, 2 * x.shape[1], 2)
    following = found[inputs, inputs + 1]
    others = found[inputs].sum(1) - found[inputs, inputs] - following
    return float((following / (others / (found.shape[1] - 2))).mean())


def _sine(settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """A network with one trained attention layer beside the same network with a step of gradient descent."""
    trained, twins = (_train(settings, seeds, scale, twin) for twin in (False, True))
    outcomes = []
    for i, seed in enumerate(seeds):
        ours, twin = (in_float64(f.models[i].cpu()) for f in (trained, twins))
        drawn = _evaluation(SineTask(settings["n"] + 1), seed, scale["contexts"])
        loss, loss_twin = (float(query_losses(m, drawn).mean()) for m in (ours, twin))
        found = alignment(ours, twin, drawn)
        metrics = {
            "loss": loss,
            "loss_twin": loss_twin,
            "untrained": float(0.5 * drawn.y[:, -1].square().mean()),
            "cos_twin": found.cos,
            "pred_diff_twin": found.pred_diff,
            # In units of what there is to learn, since both losses are close to 0.
            "twin_gap": (loss - loss_twin) / float(0.5 * drawn.y[:, -1].square().mean()),
        }
        curves = {"training": _training_curve(trained, i), "training/twin": _training_curve(twins, i)}
        outcomes.append(Outcome(metrics, curves))
    return outcomes


def _training_curve(found: StackedTraining, i: int) -> Curve:
    smooth = found.smoothed(50)[:, i]
    shown = sorted({min(len(smooth) - 1, round(len(smooth) * k / 60)) for k in range(61)})
    return Curve([float(s + 1) for s in shown], [float(smooth[s]) for s in shown], "step", "training loss")
