"""The trials of study 7: learn to learn concepts, and learn the same ones from scratch."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call

from gradatim.bench import Arm, Curve, Outcome, Scale, tuning_seeds
from gradatim.models.meta_sgd import MetaSGD
from gradatim.models.task_forward import TaskForward
from gradatim.probes.curvature import curvature
from gradatim.probes.loss_landscape import landscape_slice, path_shape, random_slices
from gradatim.probes.representation_similarity import representation_similarity
from gradatim.tasks.concept_grammar import ConceptGrammar
from gradatim.tasks.concept_tasks import ConceptTasks
from gradatim.tasks.few_shot import Tasks

TRAINING, VALIDATION, TESTING, INITIAL, TUNING = range(5)
SUPPORT = QUERY = (5, 5)
LONGER = 50
SLICES = (("literals_1", 1, 1), ("literals_2_3", 2, 3), ("literals_4", 4, 10**6))
ADAM_RATES, ADAM_STEPS, SGD_STEPS = (1e-3, 3e-3, 1e-2), (25, 50, 100, 200), 100
CHECKS = 10
OUTER_LR, ALPHA = 3e-3, 0.1


def trial(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """Accuracy on concepts that no training task had, whatever the arm is."""
    settings = arm.settings
    tasks = test_tasks(settings["features"], settings["depth"], seed, scale["test_tasks"])
    if settings["kind"] == "meta":
        return _meta(settings, seed, scale, tasks)
    if settings["kind"] == "nearest":
        found = nearest_neighbour(tasks)
    elif settings["kind"] == "logistic":
        found = logistic_regression(tasks)
    elif settings["kind"] == "sgd":
        found = _scratch(
            tasks,
            seed,
            scale,
            lambda w: torch.optim.SGD(w, lr=1e-3, momentum=0.9),
            scale.get("sgd_steps", SGD_STEPS),
        )
    else:
        lr, steps = tuned_adam(settings["features"], settings["depth"], scale)
        found = _scratch(tasks, seed, scale, lambda w: torch.optim.Adam(w, lr=lr, fused=True), steps)
    return Outcome(_scores(found, tasks), {"tasks": _by_task(found)})


def stream(
    features: int, depth: int, seed: int, split: str | None, *key: int, tasks: int = 16, **settings: Any
) -> ConceptTasks:
    """Concepts of one split; which concepts belong to it depends on the study's seed alone."""
    return ConceptTasks(
        ConceptGrammar(features, depth), tasks=tasks, support=SUPPORT, query=QUERY, split=split,
        split_seed=seed, seed=int(np.random.SeedSequence([seed, *key]).generate_state(1)[0]), **settings,
    )  # fmt: skip


def test_tasks(features: int, depth: int, seed: int, count: int) -> Tasks:
    """The tasks that judge all arms of a seed."""
    return stream(features, depth, seed, "test", TESTING).draw(count, (TESTING, seed))


def network(features: int, shape: Sequence[Any], seed: int) -> nn.Sequential:
    """ReLU network of the given hidden widths; "norm" first puts a BatchNorm after every hidden layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        width, normed = features, "norm" in shape
        for hidden in (h for h in shape if h != "norm"):
            layers.append(nn.Linear(width, int(hidden)))
            if normed:
                layers.append(nn.BatchNorm1d(int(hidden)))
            layers.append(nn.ReLU())
            width = int(hidden)
        return nn.Sequential(*layers, nn.Linear(width, 1))


# -- learning from scratch -------------------------------------------------------------------------------


def nearest_neighbour(tasks: Tasks) -> Tensor:
    """Expected accuracy [T] of the nearest support example, ties broken at random."""
    distance = torch.cdist(tasks.xs_q, tasks.xs_s, p=1.0)
    nearest = (distance <= distance.amin(-1, keepdim=True) + 1e-6).float()
    positive = (nearest * tasks.ys_s[:, None]).sum(-1) / nearest.sum(-1)
    return torch.where(tasks.ys_q > 0.5, positive, 1 - positive).mean(-1)


def logistic_regression(tasks: Tasks) -> Tensor:
    """Accuracy [T] of logistic regression with penalty ½|w|² (scikit-learn's C = 1), by Newton's method.

    The intercept is not penalised. All tasks are solved at once, in double precision.
    """
    x, asked = (F.pad(v.double(), (0, 1), value=1.0) for v in (tasks.xs_s, tasks.xs_q))
    y = tasks.ys_s.double()
    penalty = torch.ones(x.shape[-1], dtype=torch.float64)
    penalty[-1] = 0.0
    w = x.new_zeros(len(x), x.shape[-1])
    for _ in range(15):
        p = torch.einsum("tnf,tf->tn", x, w).sigmoid()
        slope = torch.einsum("tnf,tn->tf", x, p - y) + penalty * w
        hessian = torch.einsum("tnf,tn,tng->tfg", x, p * (1 - p), x) + torch.diag(penalty)
        w = w - torch.linalg.solve(hessian, slope)
    return _accuracy(torch.einsum("tnf,tf->tn", asked, w), tasks)


def _scratch(
    tasks: Tasks, seed: int, scale: Scale, make: Callable[[list[Tensor]], torch.optim.Optimizer], steps: int
) -> Tensor:
    """Accuracy [T] of a fresh network per task, trained on its support alone."""
    return scratch(tasks, scale["net"], seed, make, (steps,))[steps][0]


def scratch(
    tasks: Tasks,
    shape: Sequence[Any],
    seed: int,
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    looks: Sequence[int],
    keep_path: bool = False,
) -> dict[int, tuple[Tensor, list[dict[str, Tensor]]]]:
    """T fresh networks trained side by side: {steps: (accuracies [T], weights at every step if kept)}."""
    features = tasks.xs_s.shape[-1]
    seeds = np.random.SeedSequence([seed, INITIAL]).generate_state(len(tasks))
    made = [dict(network(features, shape, int(s)).named_parameters()) for s in seeds]
    own = {n: torch.stack([m[n].detach() for m in made]).requires_grad_() for n in made[0]}
    template = network(features, shape, 0)
    forward = TaskForward(template, norm_stats="support")
    shared = dict(template.named_buffers())
    # Every network has a loss of its own, so that the optimizer's entries never meet.
    moves = make(list(own.values()))
    found: dict[int, tuple[Tensor, list[dict[str, Tensor]]]] = {}
    path: list[dict[str, Tensor]] = []
    for step in range(max(looks) + 1):
        if keep_path:
            path.append({n: w.detach().clone() for n, w in own.items()})
        if step in looks:
            with torch.no_grad():
                logits = forward(own, shared, tasks.xs_q, tasks.xs_s).squeeze(-1)
            found[step] = (_accuracy(logits, tasks), list(path))
        moves.zero_grad()
        logits = forward(own, shared, tasks.xs_s).squeeze(-1)
        F.binary_cross_entropy_with_logits(logits, tasks.ys_s, reduction="none").mean(1).sum().backward()
        moves.step()
    return found


def tuned_adam(features: int, depth: int, scale: Scale) -> tuple[float, int]:
    """Adam's rate and steps with the highest accuracy on tuning seeds, which judge nothing."""
    looks = tuple(scale.get("adam_steps", ADAM_STEPS))
    return _tuned_adam(features, depth, scale["tuning_tasks"], tuple(scale["net"]), looks)


@functools.lru_cache(maxsize=64)
def _tuned_adam(
    features: int, depth: int, count: int, shape: tuple[Any, ...], looks: tuple[int, ...]
) -> tuple[float, int]:
    (seed,) = tuning_seeds(1)
    tasks = stream(features, depth, seed, "test", TUNING).draw(count, (TUNING, seed))
    best = (-1.0, 0.0, 0)
    for lr in ADAM_RATES:
        make = functools.partial(torch.optim.Adam, lr=lr, fused=True)
        found = scratch(tasks, shape, seed, make, looks)
        best = max(best, *((float(accuracy.mean()), lr, k) for k, (accuracy, _) in found.items()))
    return best[1], best[2]


# -- learning to learn -----------------------------------------------------------------------------------


def untrained(settings: Mapping[str, Any], seed: int, scale: Scale) -> MetaSGD:
    """The meta-learner before any training: random weights, one step size."""
    initial = int(np.random.SeedSequence([seed, INITIAL, 1]).generate_state(1)[0])
    return MetaSGD(
        network(settings["features"], settings.get("net", scale["net"]), initial),
        lr=scale.get("alpha", ALPHA),
        steps=settings["steps"],
        first_order=settings["first_order"],
        learn_lr=settings.get("learn_lr", "element"),
        norm_stats=settings.get("norm_stats", "support"),
    )


def meta_train(
    settings: Mapping[str, Any], seed: int, scale: Scale
) -> tuple[MetaSGD, dict[str, float], dict[str, Curve]]:
    """A meta-learner trained as the arm says, what it cost, and its validation accuracy on the way."""
    features, depth, inner = settings["features"], settings["depth"], settings["steps"]
    steps = int(scale["outer_steps"] * settings.get("updates", 1))
    meta = untrained(settings, seed, scale)
    device = "cuda" if scale.get("device") == "auto" and torch.cuda.is_available() else "cpu"
    meta.to(device)
    split = "train" if settings.get("held_out", True) else None
    pool = scale.get("pool_size")
    train = stream(features, depth, seed, split, TRAINING, tasks=scale["batch"], pool_size=pool)
    valid = stream(features, depth, seed, "valid", VALIDATION).draw(
        scale["validation_tasks"], (VALIDATION, seed)
    )
    valid = valid.to(device)
    seen: list[tuple[int, float]] = []
    started = time.process_time()
    meta.fit(
        (tasks.to(device) for tasks in train),
        steps,
        lr=scale.get("outer_lr", OUTER_LR),
        validation=valid,
        every=max(1, steps // CHECKS),
        callback=lambda step, m: seen.append((step * scale["batch"], float(accuracies(m, valid).mean()))),
    )
    # One gradient per inner step and one of the query; exact meta-gradients add a product (two) per step.
    per_episode = 1 + inner * (1 if settings["first_order"] else 3)
    costs = {
        "cpu_seconds": time.process_time() - started,
        "gradients": float(steps * scale["batch"] * per_episode),
        "rejection_rate": train.rejection_rate,
    }
    for level in (60, 80):
        reached = [episodes for episodes, accuracy in seen if accuracy >= level / 100]
        costs[f"reached_{level}"] = float(bool(reached))
        costs[f"episodes_{level}"] = float(reached[0] if reached else steps * scale["batch"])
    curve = Curve([float(e) for e, _ in seen], [a for _, a in seen], "episodes", "validation accuracy")
    return meta.cpu(), costs, {"validation": curve}


@torch.no_grad()
def accuracies(meta: MetaSGD, tasks: Tasks, steps: int | None = None) -> Tensor:
    """Query accuracy [T] after adaptation."""
    return _accuracy(meta(tasks.xs_s, tasks.ys_s, tasks.xs_q, steps), tasks)


def _meta(settings: Mapping[str, Any], seed: int, scale: Scale, tasks: Tasks) -> Outcome:
    meta, metrics, curves = meta_train(settings, seed, scale)
    found = accuracies(meta, tasks)
    metrics |= _scores(found, tasks)
    metrics["accuracy_untrained"] = float(accuracies(untrained(settings, seed, scale), tasks).mean())
    for steps in sorted({0, 1, 10, LONGER}):
        metrics[f"accuracy_{steps}"] = float(accuracies(meta, tasks, steps).mean())
    low, median, high = meta.rate_summary()
    metrics |= {"alpha_min": low, "alpha_median": median, "alpha_max": high}
    if settings["depth"] == 3:
        deeper = test_tasks(settings["features"], 7, seed, scale["test_tasks"])
        metrics["accuracy_deeper"] = float(accuracies(meta, deeper).mean())
    curves["tasks"] = _by_task(found)
    if settings.get("landscape"):
        short = meta_train({**settings, "steps": 1}, seed, scale)[0]
        gain = found - accuracies(short, tasks)
        more, drawn = landscape(meta, tasks, gain, seed, {**scale, "landscape_depth": settings["depth"]})
        metrics |= more
        curves |= drawn
    return Outcome(metrics, curves)


# -- the shape of the loss -------------------------------------------------------------------------------


def landscape(
    meta: MetaSGD, tasks: Tasks, gain: Tensor, seed: int, scale: Scale
) -> tuple[dict[str, float], dict[str, Curve]]:
    """Curvature of support losses where adaptation starts, meta-learned and at random; slices and paths."""
    count = min(scale["landscape_tasks"], len(tasks))
    some = tasks[:count]
    fresh = network(some.xs_s.shape[-1], scale["net"], int(seed))
    learned = {n: p.detach() for n, p in meta.module.named_parameters()}
    random_ = {n: p.detach() for n, p in fresh.named_parameters()}
    lr, steps = tuned_adam(some.xs_s.shape[-1], scale["landscape_depth"], scale)
    adam = functools.partial(torch.optim.Adam, lr=lr, fused=True)
    scratch_path = scratch(some, scale["net"], seed, adam, (steps,), keep_path=True)[steps][1]
    meta_path = meta.adaptation_path(some.xs_s, some.ys_s)
    rows: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(seed)
    for t in range(count):
        x, y = some.xs_s[t], some.ys_s[t]
        for name, weights, module in (("meta", learned, meta.module), ("random", random_, fresh)):
            model = _of_weights(module, x)
            loss = functools.partial(_bce, y)
            found = curvature(
                loss,
                weights,
                scale["probes"],
                model=model,
                iterations=20,
                tolerance=0.01,
                generator=generator,
            )
            assert found.gauss_newton is not None
            ends = {"meta": meta_path, "random": scratch_path}[name]
            start, end = ({n: w[t] for n, w in state.items()} for state in (ends[0], ends[-1]))
            at = functools.partial(_loss_at, model, loss)
            line = landscape_slice(at, start, end)
            sides = random_slices(at, weights, scale["slices"], points=33, generator=generator)
            for key, value in (
                ("lambda_max", found.lambda_max), ("newton_max", found.gauss_newton.lambda_max),
                ("trace_sq", found.trace_sq), ("trace", found.trace), ("roughness", line.roughness),
                ("side_roughness", float(np.mean([s.roughness for s in sides]))),
                ("minima", float(np.mean([s.minima for s in sides]))),
            ):  # fmt: skip
                rows.setdefault(f"{name}_{key}", []).append(value)
    metrics = {name: float(np.mean(values)) for name, values in rows.items()}
    for name, states in (("meta", meta_path), ("random", scratch_path)):
        shape = path_shape(states, batched=True)
        metrics[f"{name}_path"] = float(shape.length.mean())
        metrics[f"{name}_directness"] = float(shape.directness.mean())
    gains = gain[:count].numpy()
    metrics["gain_correlation"] = _spearman(np.array(rows["meta_lambda_max"]), gains)
    literals = np.array([c.n_literals for c in some.meta], dtype=float)
    metrics["size_correlation"] = _spearman(literals, gains)
    metrics["partial_correlation"] = _partial(np.array(rows["meta_lambda_max"]), gains, literals)
    start, end = ({n: w[0] for n, w in state.items()} for state in (meta_path[0], meta_path[-1]))
    alike = representation_similarity(meta.module, start, end, torch.cat([some.xs_s[0], some.xs_q[0]]))
    curves = {
        "curvature": Curve(rows["meta_lambda_max"], gains.tolist(), "λ max", "gain of K = 10 over K = 1"),
        "cka": Curve(
            [float(k) for k in range(len(alike.layers))],
            [c if np.isfinite(c) else 0.0 for c in alike.cka],
            "layer",
            "CKA before and after adaptation",
        ),
    }
    return metrics, curves


def _of_weights(module: nn.Module, x: Tensor) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda weights: functional_call(module, dict(weights), (x,)).squeeze(-1)


def _loss_at(
    model: Callable[[Mapping[str, Tensor]], Tensor],
    loss: Callable[[Tensor], Tensor],
    weights: Mapping[str, Tensor],
) -> Tensor:
    return loss(model(weights))


def _bce(y: Tensor, logits: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, y)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def _partial(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> float:
    """Spearman correlation of a and b once what the ranks of `given` explain is taken out of both."""
    ranks = [stats.rankdata(v) for v in (a, b, given)]
    if np.ptp(given) == 0:
        return _spearman(a, b)
    basis = np.stack([np.ones(len(given)), ranks[2]], axis=1)
    left = [r - basis @ np.linalg.lstsq(basis, r, rcond=None)[0] for r in ranks[:2]]
    norms = [float(np.linalg.norm(v)) for v in left]
    return float(left[0] @ left[1] / (norms[0] * norms[1])) if min(norms) > 1e-9 else 0.0


# -- scores ----------------------------------------------------------------------------------------------


def _accuracy(logits: Tensor, tasks: Tasks) -> Tensor:
    return ((logits > 0) == (tasks.ys_q > 0.5)).float().mean(1)


def _scores(found: Tensor, tasks: Tasks) -> dict[str, float]:
    """The mean over tasks, its standard error, and means by the size of the concept."""
    literals = torch.tensor([concept.n_literals for concept in tasks.meta])
    scores = {"accuracy": float(found.mean()), "accuracy_se": float(found.std() / len(found) ** 0.5)}
    for name, low, high in SLICES:
        chosen = found[(literals >= low) & (literals <= high)]
        if len(chosen):
            scores[name] = float(chosen.mean())
    return scores


def _by_task(found: Tensor) -> Curve:
    return Curve([float(t) for t in range(len(found))], found.tolist(), "task", "accuracy")
