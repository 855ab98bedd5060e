"""22. Which direction does gradient descent give the key-query weights of attention?

Tarzanagh, Li, Thrampoulidis, Oymak, "Transformers as Support Vector Machines" (2023, arXiv 2308.16898).
A seed is one random problem. A: W and (K, Q) are trained on it and matched against the Frobenius and the
nuclear SVM built from the tokens they selected. B: the same with growing width. C: ranks of the SVMs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradatim.bench import (
    Arm,
    Claim,
    Contrast,
    Control,
    Curve,
    Level,
    Outcome,
    Paper,
    Profile,
    Results,
    Scale,
    Study,
    StudyFigure,
    Table,
    estimate,
)
from gradatim.models.attention_descent import AttentionDescent, train_attention
from gradatim.probes import InfeasibleError, attention_svm, directional_alignment
from gradatim.tasks.attention_tokens import AttentionInstance, random_instance, stack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (2, 3, 4, 5, 7, 10, 15, 20)
SNAPSHOTS = (10, 30, 100, 300, 1000, 2000)
SATURATED = 0.99


def batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """One outcome per problem; training is stacked over the seeds, the SVMs are solved one by one."""
    kind = arm.settings["kind"]
    if kind == "rank":
        return [_rank_outcome(arm.settings, seed) for seed in seeds]
    size = (arm.settings["n"], arm.settings["t"], arm.settings["d"])
    problems = [random_instance(*size, seed) for seed in seeds]
    found = _train(stack(problems), arm.settings, seeds, scale)
    judge = _bias_outcome if kind == "bias" else _width_outcome
    return [judge(problem, found, i) for i, problem in enumerate(problems)]


def _train(
    p: AttentionInstance, settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale
) -> AttentionDescent:
    dtype = torch.float32 if settings.get("float32") else torch.float64
    x, z, y, v = (a.to(dtype) for a in (p.x, p.z, p.y, p.v))
    normalize = settings.get("normalize", True)
    return train_attention(
        x,
        x[:, :, 0] if settings.get("self_attention") else z,
        y,
        v,
        parameterization=settings["parameterization"],
        rate=settings.get("rate", 1.0),
        steps=0 if settings.get("untrained") else scale["steps"],
        normalize=normalize,
        log_domain=normalize and not settings.get("literal", False),
        init=settings.get("init", "uniform"),
        seeds=seeds,
        snapshots=[s for s in SNAPSHOTS if s <= scale["steps"]],
    )


def _directions(
    p: AttentionInstance, z: torch.Tensor, selected: torch.Tensor
) -> dict[str, torch.Tensor] | None:
    """Both SVM solutions for the selected tokens, or None where no weights separate them."""
    try:
        return {norm: _solve(p.x, z, selected, norm) for norm in ("frobenius", "nuclear")}
    except InfeasibleError:
        return None


def _solve(x: torch.Tensor, z: torch.Tensor, selected: torch.Tensor, norm: Any) -> torch.Tensor:
    return attention_svm(x, z, selected, norm=norm).weight


def _optimal(p: AttentionInstance) -> torch.Tensor:
    """argmax_t Y_i v^T x_it."""
    return (p.y.unsqueeze(-1) * (p.x @ p.v)).argmax(dim=-1)


def _bias_outcome(p: AttentionInstance, found: AttentionDescent, i: int) -> Outcome:
    attention = found.attention[i]
    selected = attention.argmax(dim=-1)
    svm = _directions(p, p.z, selected)
    metrics = {
        "global": float(torch.equal(selected, _optimal(p))),
        "saturated": float(bool(attention.amax(dim=-1).min() > SATURATED)),
        "separable": float(svm is not None),
    }
    if svm is None:
        return Outcome(metrics)
    aligned = {
        step: {norm: float(directional_alignment(w[i], s)) for norm, s in svm.items()}
        for step, w in {**found.snapshots, 10**9: found.weight}.items()
    }
    last = aligned.pop(10**9)
    metrics |= {
        "frobenius": last["frobenius"],
        "nuclear": last["nuclear"],
        "frobenius_lead": last["frobenius"] - last["nuclear"],
    }
    steps = list(aligned)
    curves = {
        norm: Curve(steps, [aligned[s][norm] for s in steps], "step", f"alignment with the {norm} SVM")
        for norm in ("frobenius", "nuclear")
    }
    return Outcome(metrics, curves)


def _width_outcome(p: AttentionInstance, found: AttentionDescent, i: int) -> Outcome:
    best = _optimal(p)
    attention = found.attention[i]
    reached = torch.equal(attention.argmax(dim=-1), best)
    metrics = {
        "global": float(reached),
        "saturated": float(bool(attention.amax(dim=-1).min() > SATURATED)),
    }
    try:
        weight = _solve(p.x, p.z, best, "frobenius")
    except InfeasibleError:
        return Outcome({**metrics, "feasible": 0.0})
    metrics["feasible"] = 1.0
    if reached:
        metrics["alignment"] = float(directional_alignment(found.weight[i], weight))
    return Outcome(metrics)


def _rank_outcome(settings: Mapping[str, Any], seed: int) -> Outcome:
    p = random_instance(settings["n"], settings["t"], settings["d"], seed)
    result = attention_svm(p.x, p.z, _optimal(p), norm=settings["norm"], tol=settings.get("tol", 1e-7))
    s = torch.linalg.svdvals(result.weight).numpy()
    share = s / s.sum()
    entropy = float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))
    absolute = settings.get("absolute")
    rank = float((s > absolute).sum()) if absolute else float(result.rank)
    return Outcome({"rank": rank, "entropy_rank": entropy})


def _bias(name: str, label: str, role: Any = "method", **settings: Any) -> Arm:
    base = {"kind": "bias", "n": 6, "t": 8, "d": 10, "parameterization": "w"}
    return Arm(f"bias/{name}", {**base, **settings}, label, role)


def _width(d: int, name: str = "", **settings: Any) -> Arm:
    base = {"kind": "width", "n": 5, "t": 5, "d": d, "parameterization": "w", "init": "zero"}
    label = f"d = {d}{', untrained' if name else ''}"
    return Arm(f"width/d{d}{name}", {**base, **settings}, label, "control" if name else "method")


def _rank(name: str, label: str, role: Any = "method", **settings: Any) -> Arm:
    return Arm(f"rank/{name}", {"kind": "rank", "n": 10, "t": 5, "d": 15, **settings}, label, role)


ARMS = (
    _bias("w", "W"),
    _bias("kq", "K, Q", parameterization="kq"),
    _bias("w-plain", "W, plain steps", "control", normalize=False, rate=10.0),
    _bias("w-float32", "W, literal gradient in float32", "control", literal=True, rate=0.1, float32=True),
    _bias("w-literal", "W, literal gradient in float64", "baseline", literal=True, rate=0.1),
    _bias("w-self", "W, self-attention", self_attention=True),
    *(_width(d) for d in WIDTHS),
    _width(20, "-untrained", untrained=True, init="uniform"),
    _rank("frobenius", "Frobenius", norm="frobenius"),
    _rank("nuclear", "nuclear", norm="nuclear"),
    _rank("nuclear-loose", "nuclear, loose solve", "control", norm="nuclear", tol=1e-3, absolute=1e-7),
)


def _nuclear_lead(results: Results) -> dict[int, float]:
    return {seed: -lead for seed, lead in results.metric("bias/kq", "frobenius_lead").items()}


CLAIMS = (
    Claim(
        "w-frobenius",
        "W trained directly points along the Frobenius SVM of its selected tokens, not the nuclear one",
        Level("bias/w", "frobenius_lead"),
        Control(
            "the normalised step, not the geometry, makes the direction: plain gradient descent shows it too",
            Level("bias/w-plain", "frobenius_lead"),
        ),
        unit="difference of alignments",
        margin=0.01,
        paper=0.13,
        paper_says="read off the notebooks' pictures: about 0.99 with the Frobenius and 0.86 with the nuclear"
        " solution (n=6, T=8, d=10, 100 runs)",
    ),
    Claim(
        "kq-nuclear",
        "K and Q trained separately point along the nuclear-norm SVM, not the Frobenius one",
        _nuclear_lead,
        Control(
            "any trained weights align with the nuclear solution: W trained directly does so as well",
            Contrast("bias/kq", "bias/w", "nuclear"),
        ),
        unit="difference of alignments",
        margin=0.01,
        paper_says="the pictures show the same order with the roles exchanged; no figure is printed",
    ),
    Claim(
        "w-exact",
        "The alignment of W with its SVM exceeds 0.99",
        Level("bias/w", "frobenius", bound=0.99),
        Control(
            "saturation alone gives it: the literal float32 gradient saturates too, then loses the direction",
            Contrast("bias/w", "bias/w-float32", "frobenius"),
        ),
        unit="alignment above 0.99",
        paper_says="mean about 0.99 after 1,000 steps in the notebooks' pictures",
    ),
    Claim(
        "feasible",
        "The SVM of the best tokens is feasible when d >= max(T - 1, n): share at d = 10, n = T = 5",
        Level("width/d10", "feasible", bound=0.9),
        Control(
            "it is feasible in any dimension: the share at d = 2",
            Contrast("width/d10", "width/d2", "feasible"),
        ),
        unit="share above 0.9",
        interval="wilson",
        paper_says="feasible for almost all data in that range (theorem)",
    ),
    Claim(
        "global",
        "With more width gradient descent from zero selects the best token of every sequence more often",
        Contrast("width/d20", "width/d2", "global"),
        Control(
            "a random direction selects the best tokens as often at that width: untrained weights, d = 20",
            Contrast("width/d20", "width/d20-untrained", "global"),
        ),
        unit="share, d = 20 minus d = 2",
        margin=0.1,
        paper_says="global convergence becomes likely with over-parameterisation",
    ),
    Claim(
        "low-rank",
        "The nuclear solution has a lower rank than the Frobenius solution",
        Contrast("rank/nuclear", "rank/frobenius", "rank", better="lower"),
        Control(
            "rank is a matter of the threshold: the entropy rank, which has none, differs too",
            Contrast("rank/nuclear", "rank/frobenius", "entropy_rank", better="lower"),
        ),
        unit="rank (tolerance 1e-4 of the largest)",
        margin=1.0,
        paper_says="lower in the notebook's figure, whose solver noise counts as rank and understates it",
    ),
)


def _draw_alignment(figure: Figure, results: Results) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for axis, arm, title in zip(axes, ("bias/w", "bias/kq"), ("W trained", "K, Q trained"), strict=True):
        for color, norm in (("C0", "frobenius"), ("C1", "nuclear")):
            curves = list(results.curves(arm, norm).values())
            if not curves:
                continue
            y = np.array([c.y for c in curves])
            axis.plot(curves[0].x, y.mean(0), color=color, label=norm)
            axis.fill_between(curves[0].x, *np.quantile(y, (0.1, 0.9), axis=0), color=color, alpha=0.2, lw=0)
        axis.set(xscale="log", title=title, xlabel="step")
    axes[0].set_ylabel("alignment with the SVM")
    axes[0].legend(title="SVM norm", loc="lower right")


def _table_alignment(results: Results) -> Table:
    rows = []
    for arm in ("bias/w", "bias/kq"):
        for norm in ("frobenius", "nuclear"):
            curves = list(results.curves(arm, norm).values())
            if curves:
                means = np.mean([c.y for c in curves], axis=0)
                rows += [[arm, norm, s, float(m)] for s, m in zip(curves[0].x, means, strict=True)]
    return Table(("arm", "SVM", "step", "mean alignment"), rows)


def _draw_width(figure: Figure, results: Results) -> None:
    axis = figure.subplots()
    for color, metric, label in (
        ("C0", "feasible", "SVM feasible"),
        ("C1", "global", "best tokens selected"),
    ):
        shares = [estimate(list(results.metric(f"width/d{d}", metric).values())) for d in WIDTHS]
        known = [(d, e) for d, e in zip(WIDTHS, shares, strict=True) if e.mean is not None]
        axis.plot(
            [d for d, _ in known], [float(e.mean or 0) for _, e in known], "o-", color=color, label=label
        )
    axis.axvline(5, color="0.6", lw=1, ls=":")
    axis.set(xlabel="width d (dotted: max(T - 1, n))", ylabel="share of problems", ylim=(0, 1.05))
    axis.legend(loc="lower right")


def _table_width(results: Results) -> Table:
    names = ("feasible", "global", "saturated", "alignment")
    rows = [
        [d, *(_mean(results.metric(f"width/d{d}", name)) for name in names)]
        for d in WIDTHS
        if f"width/d{d}" in results.outcomes
    ]
    return Table(("d", "SVM feasible", "best tokens", "saturated", "alignment where best"), rows)


def _mean(values: Mapping[int, float]) -> float | str:
    return float(np.mean(list(values.values()))) if values else "none"


QUICK_ARMS = tuple(a.name for a in ARMS if a.name != "bias/w-self")

study = Study(
    number=22,
    slug="attention-svm",
    title="Trained attention points along a support vector machine",
    paper=Paper(
        "Transformers as Support Vector Machines", "Tarzanagh, Li, Thrampoulidis, Oymak", 2023, "2308.16898"
    ),
    rooms=("probes", "models", "optim", "tasks"),
    plain="""One layer of attention learns which token of a sequence to look at. Once it can separate
that token from the others, further training only scales its key-query weights up, and what settles is their
*direction*. The paper shows which one: the solution of a hard-margin support vector machine that separates the
selected token of every sequence from the rest. Train the product W directly, and the SVM minimises the
Frobenius norm; train K and Q, and it minimises the nuclear norm, hence a low rank.

Training uses normalised steps, computed in the log domain: the plain formula underflows as soon as attention
saturates, and what is then normalised is rounding noise.""",
    arms=ARMS,
    claims=CLAIMS,
    profiles={
        "quick": Profile(80, {"steps": 1000}, core_seconds=25, arms=QUICK_ARMS, batch=20),
        "standard": Profile(400, {"steps": 2000}, core_seconds=400, batch=25),
        "paper": Profile(1000, {"steps": 2000}, core_seconds=1200, batch=100),
    },
    headline=(("frobenius", "higher"), ("nuclear", "higher"), ("global", "higher"), ("rank", "lower")),
    batch=batch,
    figures=(
        StudyFigure(
            "alignment",
            "The direction of training",
            "Two panels over training steps: trained W approaches the Frobenius solution and stays away from"
            " the nuclear one; trained K, Q the other way round. Bands are the middle 80% of problems.",
            _draw_alignment,
            _table_alignment,
        ),
        StudyFigure(
            "width",
            "More width, better selection",
            "Shares of random problems over width: the SVM becomes feasible well before training selects the"
            " best token of every sequence.",
            _draw_width,
            _table_width,
        ),
    ),
    snippet="""from gradatim.models import train_attention
from gradatim.probes import attention_svm, directional_alignment
from gradatim.tasks import random_instances

p = random_instances(n=6, t=8, d=10, seeds=[0])           # six sequences of eight tokens
trained = train_attention(p.x, p.z, p.y, p.v, steps=500)
selected = trained.attention[0].argmax(-1)                # the token each sequence settled on
svm = attention_svm(p.x[0], p.z[0], selected, norm="frobenius")
print(float(directional_alignment(trained.weight[0], svm.weight)))
""",
    notes="""The published rank figure counts solver noise: a loose solve with an absolute threshold inflates
the nuclear solution's rank (arm `rank/nuclear-loose`). The literal gradient in float32 loses the direction
once attention saturates (arm `bias/w-float32`); the log-domain gradient keeps it. Problems whose selected
tokens no weights separate are counted by the metric `separable` and have no alignment.""",
)
