"""The trials of study 22: train a stack of random problems, then solve the SVMs of what each selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradatim.bench import Arm, Curve, Outcome, Scale
from gradatim.models.attention_descent import AttentionDescent, ReLUHead, train_attention
from gradatim.probes import (
    InfeasibleError,
    attention_svm,
    directional_alignment,
    locally_optimal,
    selected_tokens,
    selection_quality,
    svm_equivalence,
    token_scores,
)
from gradatim.tasks.attention_tokens import (
    AttentionInstance,
    planar_instance,
    random_instance,
    relu_instance,
    stack,
)

SNAPSHOTS = (1, 3, 10, 30, 100, 300, 1000, 2000)
NORMS = ("frobenius", "nuclear")
MACHINE_EPSILON = float(np.finfo(np.float64).eps)


def batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """One outcome per seed; training is stacked over the seeds, the SVMs are solved one by one."""
    kinds = {"bias": _bias, "width": _width, "rank": _rank, "ties": _ties, "plane": _plane}
    return kinds[arm.settings["kind"]](arm.settings, seeds, scale)


def _train(
    p: AttentionInstance,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    scale: Scale,
    steps: int,
    **options: Any,
) -> AttentionDescent:
    """Train on the profile's device; what comes back is on the CPU, where the SVMs are solved."""
    dtype = torch.float32 if settings.get("float32") else torch.float64
    fast = scale.get("device") == "auto" and torch.cuda.is_available()
    device = torch.device("cuda" if fast else "cpu")
    x, z, y, v = (a.to(device, dtype) for a in (p.x, p.z, p.y, p.v))
    found = train_attention(
        x, z, y, ReLUHead(v) if v.dim() == 3 else v,
        seeds=seeds, steps=steps,
        parameterization=settings.get("parameterization", "w"), head_dim=settings.get("head_dim"),
        rate=settings["rate"], ridge=settings.get("ridge", 0.0), init=settings.get("init", "uniform"),
        normalize=settings.get("normalize", True), log_domain=settings.get("log_domain", True),
        **options,
    )  # fmt: skip
    snapshots = {step: w.cpu() for step, w in found.snapshots.items()}
    return AttentionDescent(found.weight.cpu(), found.attention.cpu(), snapshots)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(directional_alignment(a, b))


def _scores(p: AttentionInstance) -> Tensor:
    return token_scores(p.x, p.v, p.y)


# -- A: which norm? ----------------------------------------------------------------------------------


def _bias(settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    problems = [random_instance(settings["n"], settings["t"], settings["d"], seed) for seed in seeds]
    if settings.get("self_attention"):
        problems = [replace(p, z=p.x[:, 0].clone()) for p in problems]
    steps = scale["steps"]
    kept = [s for s in SNAPSHOTS if s <= steps]
    found = _train(stack(problems), settings, seeds, scale, steps, snapshots=kept)
    return [_bias_outcome(p, found, i, settings) for i, p in enumerate(problems)]


def _bias_outcome(
    p: AttentionInstance, found: AttentionDescent, i: int, settings: Mapping[str, Any]
) -> Outcome:
    attention, weight = found.attention[i].double(), found.weight[i].double()
    selected = selected_tokens(attention)
    scores = _scores(p)
    best = scores.argmax(dim=-1)
    metrics = {
        "global": float(torch.equal(selected, best)),
        "saturated": float(selection_quality(attention).converged),
    }
    try:
        own = {norm: attention_svm(p.x, p.z, selected, norm=norm) for norm in NORMS}
    except InfeasibleError:
        return Outcome({**metrics, "separable": 0.0})
    matched, crossed = NORMS if settings["parameterization"] == "w" else NORMS[::-1]
    at = {s: {norm: _cosine(w[i], own[norm].weight) for norm in NORMS} for s, w in found.snapshots.items()}
    last = {norm: _cosine(weight, own[norm].weight) for norm in NORMS}
    metrics |= {
        "separable": 1.0,
        "frobenius": last["frobenius"],
        "nuclear": last["nuclear"],
        "lead": last[matched] - last[crossed],
        "locally_optimal": float(locally_optimal(scores, selected, own[matched].support).all()),
    }
    if not metrics["global"]:
        # The direction of another selection: the best tokens, and one that differs in a single sequence.
        for name, other in (("best", best), ("neighbour", _neighbour(selected, own[matched].dual))):
            try:
                svm = attention_svm(p.x, p.z, other, norm=matched)
            except InfeasibleError:
                continue
            metrics[f"lead_over_{name}"] = last[matched] - _cosine(weight, svm.weight)
    curves = {
        norm: Curve(list(at), [a[norm] for a in at.values()], "step", f"alignment, {norm}") for norm in NORMS
    }
    return Outcome(metrics, curves)


def _neighbour(selected: Tensor, dual: Tensor) -> Tensor:
    """`selected` with one sequence moved to the token that stands most in its way."""
    i, t = divmod(int(dual.argmax()), dual.shape[1])
    other = selected.clone()
    other[i] = t
    return other


# -- B: does width help? -------------------------------------------------------------------------------


def _width(settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    problems = [random_instance(settings["n"], settings["t"], settings["d"], seed) for seed in seeds]
    found = _train(stack(problems), settings, seeds, scale, settings.get("steps", scale["steps"]))
    outcomes = []
    for i, p in enumerate(problems):
        best = _scores(p).argmax(dim=-1)
        metrics = {
            "global": float(torch.equal(selected_tokens(found.attention[i]), best)),
            "saturated": float(selection_quality(found.attention[i]).converged),
        }
        try:
            svm = attention_svm(p.x, p.z, best)
            metrics["feasible"] = 1.0
            if metrics["global"]:
                metrics["alignment"] = _cosine(found.weight[i], svm.weight)
        except InfeasibleError:
            metrics["feasible"] = 0.0
        outcomes.append(Outcome(metrics))
    return outcomes


# -- C: ranks ------------------------------------------------------------------------------------------


def _rank(settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    del scale
    outcomes = []
    for seed in seeds:
        p = random_instance(settings["n"], settings["t"], settings["d"], seed)
        try:
            svm = attention_svm(
                p.x, p.z, _scores(p).argmax(dim=-1), norm=settings["norm"], tol=settings.get("tol", 1e-9)
            )
        except InfeasibleError:
            outcomes.append(Outcome({"feasible": 0.0}))
            continue
        s = torch.linalg.svdvals(svm.weight)
        share = s[s > 0] / s.sum()
        metrics = {
            "feasible": 1.0,
            "rank": float(svm.rank),
            "entropy_rank": float(torch.exp(-(share * share.log()).sum())),
            "gap": svm.gap,
        }
        if "absolute" in settings:
            metrics["rank"] = float((s > settings["absolute"]).sum())
        shares = (s / s[0]).tolist()
        curve = Curve(list(range(1, len(shares) + 1)), shares, "index", "singular value / largest")
        outcomes.append(Outcome(metrics, {"spectrum": curve}))
    return outcomes


# -- D: several tokens kept ----------------------------------------------------------------------------


def _ties(settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """Each seed draws `scale["tries"]` problems and averages over those that have decided."""
    tries = scale["tries"]
    numbers = [seed * tries + j for seed in seeds for j in range(tries)]
    # A draw whose labels are all positive is skipped, as the paper's code does.
    problems = {s: relu_instance(settings["n"], settings["t"], settings["d"], s) for s in numbers}
    problems = {s: p for s, p in problems.items() if not bool((p.y > 0).all())}
    rows: dict[int, dict[str, float]] = {}
    if problems:
        stacked = stack(list(problems.values()))
        found = _train(stacked, settings, list(problems), scale, settings["steps"])
        for i, (number, p) in enumerate(problems.items()):
            errors = _tie_errors(p, found.attention[i], found.weight[i])
            if errors is not None:
                rows[number] = errors
    outcomes = []
    for seed in seeds:
        mine = range(seed * tries, (seed + 1) * tries)
        accepted = [rows[s] for s in mine if s in rows]
        drawn = sum(s in problems for s in mine)
        metrics = {"drawn": float(drawn), "accepted": float(len(accepted))}
        if accepted:
            metrics |= {name: float(np.mean([r[name] for r in accepted])) for name in accepted[0]}
        outcomes.append(Outcome(metrics))
    return outcomes


def _tie_errors(p: AttentionInstance, attention: Tensor, weight: Tensor) -> dict[str, float] | None:
    """Alignment of each prediction with the trained W, or None where the problem is not accepted."""
    try:
        split = svm_equivalence(p.x, p.z, attention, weight)
        single = attention_svm(p.x, p.z, selected_tokens(attention))
    except InfeasibleError:
        return None
    if split.ambiguous or not bool(split.direction.any()):
        return None
    general, svm_part, one_token = (
        _cosine(weight, w) for w in (split.predicted, split.direction, single.weight)
    )
    return {
        "general": general,
        "svm_part": svm_part,
        "one_token": one_token,
        "gain_over_one_token": general - one_token,
        "gain_over_svm_part": general - svm_part,
        "kept": float((attention >= 1e-3).sum(dim=-1).double().mean()),
    }


# -- the path in the plane -------------------------------------------------------------------------------


def _plane(settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """W z_i / ||W|| along training for two sequences in the plane, and where the SVM says it ends."""
    problems = [planar_instance(settings["t"], seed) for seed in seeds]
    steps = list(range(1, min(scale["steps"], 400) + 1))
    found = _train(stack(problems), settings, seeds, scale, steps[-1], snapshots=steps)
    outcomes = []
    for i, p in enumerate(problems):
        selected = selected_tokens(found.attention[i])
        path = torch.stack([w[i] / w[i].norm() for w in found.snapshots.values()])  # [steps, 2, 2]
        curves = {}
        for k in range(len(p.z)):
            directions = path @ p.z[k]
            curves[f"path-{k}"] = _xy(directions)
            curves[f"tokens-{k}"] = _xy(p.x[k])
            curves[f"selected-{k}"] = _xy(p.x[k, selected[k]][None])
        metrics = {"saturated": float(selection_quality(found.attention[i]).converged)}
        try:
            svm = attention_svm(p.x, p.z, selected)
        except InfeasibleError:
            outcomes.append(Outcome({**metrics, "separable": 0.0}, curves))
            continue
        unit = svm.weight / svm.weight.norm()
        curves |= {f"svm-{k}": _xy((unit @ p.z[k])[None]) for k in range(len(p.z))}
        metrics |= {"separable": 1.0, "alignment": _cosine(found.weight[i], svm.weight)}
        outcomes.append(Outcome(metrics, curves))
    return outcomes


def _xy(points: Tensor) -> Curve:
    return Curve(points[:, 0].tolist(), points[:, 1].tolist(), "first coordinate", "second coordinate")
