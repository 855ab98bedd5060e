"""Study reports for the report's tests: realistic, hostile and degenerate ones, judged by the real judge."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from gradatim.bench import (
    Arm,
    Claim,
    Contrast,
    Control,
    Curve,
    FailedTrial,
    Level,
    Outcome,
    Paper,
    Profile,
    Results,
    Study,
    StudyFigure,
    StudyReport,
    Table,
    judge,
)

ENVIRONMENT = {
    "versions": {"gradatim": "0.1.0", "torch": "2.9.0+cpu", "numpy": "2.4.0"},
    "python": "3.12.3",
    "system": "Linux x86_64",
    "processor": "a processor",
    "cores": 8,
    "commit": "0123456789ab",
}
HOSTILE = "<script>alert('x')</script>\"&{{ 7*7 }}${x^}</svg><!--"


def never(arm: Arm, seed: int, scale: Mapping[str, object]) -> Outcome:
    raise AssertionError("the report runs nothing")


def report_of(study: Study, results: Results, **keywords: object) -> StudyReport:
    return StudyReport(
        study,
        "quick",
        results,
        judge(study, results),
        measured="2026-03-01T10:20:30+00:00",
        environment=ENVIRONMENT,
        scale={"steps": 1500, "width": 64},
        seconds=73.2,
        command=f"gradatim run {study.slug} --profile quick",
        **keywords,
    )


def results_of(
    arms: Sequence[Arm],
    draw: Callable[[Arm, int], Mapping[str, float]],
    seeds: int,
    curves: Callable[[Arm, int], Mapping[str, Curve]] = lambda a, s: {},
) -> Results:
    return Results({a.name: {s: Outcome(draw(a, s), curves(a, s)) for s in range(seeds)} for a in arms})


def _noise(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def schedules() -> StudyReport:
    """Two tasks, curves, a figure of its own, a failed trial, missing trials."""
    tasks = ("logistic", "transformer")
    base = {
        "linear": 0.512,
        "cosine": 0.516,
        "flat": 0.561,
        "1/sqrt": 0.547,
        "refined": 0.506,
        "random-norms": 0.513,
    }
    roles = {"linear": "method", "refined": "method", "random-norms": "control"}
    labels = {"1/sqrt": "1/√t", "random-norms": "refined from shuffled norms"}
    arms = tuple(
        Arm(f"{t}/{n.replace('/', '-')}", {}, labels.get(n, n), roles.get(n, "baseline"))  # type: ignore[arg-type]
        for t in tasks
        for n in base
    )
    mean = {
        f"{t}/{n.replace('/', '-')}": v * (1 if t == "logistic" else 3.1)
        for t in tasks
        for n, v in base.items()
    }

    def draw(arm: Arm, seed: int) -> dict[str, float]:
        shared = 0.01 * _noise(arm.name.split("/")[0], seed).normal()
        return {
            "final loss": mean[arm.name] + shared + 0.004 * _noise(arm.name, seed).normal(),
            "steps": 1500.0,
        }

    def curve(arm: Arm, seed: int) -> dict[str, Curve]:
        x = np.arange(0, 1500, 10)
        t = x / 1500
        y = mean[arm.name] + 1.2 * np.exp(-5 * t) + 0.02 * _noise(arm.name, seed, 1).normal(size=len(x))
        return {"loss": Curve(x.tolist(), y.tolist(), "step", "test loss")}

    results = results_of(arms, draw, 12, curve)
    control = "Any warm-up with a fall at the end, not this run's own norms"
    claims = tuple(
        claim
        for t in tasks
        for claim in (
            Claim(
                f"{t}-cos",
                f"Linear decay ends at least as low as cosine ({t})",
                Contrast(f"{t}/linear", f"{t}/cosine", "final loss", "lower"),
                Control(
                    "Cosine with its rate tuned as finely",
                    Contrast(f"{t}/linear", f"{t}/random-norms", "final loss", "lower"),
                ),
                unit="nats",
                paper=0.002,
                paper_says="linear below cosine on most of ten problems",
            ),
            Claim(
                f"{t}-ref",
                f"A refined schedule ends lower than linear decay ({t})",
                Contrast(f"{t}/refined", f"{t}/linear", "final loss", "lower"),
                Control(control, Contrast(f"{t}/refined", f"{t}/random-norms", "final loss", "lower")),
                unit="nats",
                paper_says="a further gain on average",
            ),
            Claim(
                f"{t}-flat",
                f"Linear decay beats a flat rate ({t})",
                Contrast(f"{t}/linear", f"{t}/flat", "final loss", "lower"),
                Control(
                    "The flat rate, averaged over its iterates",
                    Contrast(f"{t}/linear", f"{t}/1-sqrt", "final loss", "lower"),
                ),
                unit="nats",
                paper=0.04,
            ),
        )
    )

    def draw_figure(figure: Figure, results: Results) -> None:
        left, right = figure.subplots(1, 2)
        t = np.linspace(0, 1, 200)
        left.plot(t, 1 + np.exp(-6 * t), color="C0", label="gradient norm")
        left.set_xlabel("fraction of the run")
        left.legend()
        right.plot(t, 1 - t, color="C7", ls="--", label="linear")
        right.plot(t, np.minimum(1, 8 * t) * (1 - t) ** 1.2, color="C1", label="refined")
        right.set_title(r"$\eta_t$ from $\|g_t\|^{-2}$")
        right.legend()

    figure = StudyFigure(
        "refined",
        "The refined schedule beside its gradient norms",
        "Left, norms fall along the run; right, the refined one warms up, then falls.",
        draw_figure,
        lambda r: Table(("fraction", "linear", "refined"), [(f / 4, 1 - f / 4, 0.5) for f in range(5)]),
    )
    study = Study(
        "schedule-refinement",
        "Learning-rate schedules by refinement",
        "The gradient norms of one run say how large each step of the *next* run should be.\n\n"
        "Where the norms are flat this is **linear decay**; where they rise at first it warms up: "
        "`w_t ∝ ‖g_t‖⁻²`.",
        ("optim",),
        arms,
        claims,
        {"quick": Profile(12)},
        (("final loss", "lower"),),
        20,
        Paper(
            "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement",
            "Defazio, Cutkosky, Mehta, Mishchenko",
            2023,
            "2310.07831",
        ),
        trial=never,
        figures=(figure,),
        notes="Refinement helps least where the loss interpolates.",
        snippet="from gradatim.optim import refine_schedule\n\n# norms of an earlier run\n"
        'schedule = refine_schedule([3.0, 2.0, 1.0, 1.0], power=2)\nprint(f"first step {schedule[0]:.3f}")\n',
    )
    return report_of(
        study,
        Results(results.outcomes, {"transformer/refined": 1}),
        missing=3,
        failed=[
            FailedTrial(
                "transformer/refined",
                12,
                "returned NaN for 'final loss'",
                'Traceback (most recent call last):\n  File "fit.py", line 88\nFloatingPointError',
            )
        ],
    )


def attention() -> StudyReport:
    """Very large effects, an equivalence claim, an exact result, a Wilson share."""
    arms = (
        Arm("W", label="W trained"),
        Arm("KQ", label="K and Q trained"),
        Arm("gd", label="plain descent", role="control"),
    )

    def draw(arm: Arm, seed: int) -> dict[str, float]:
        g = _noise(arm.name, seed)
        frobenius = {"W": 0.9948, "KQ": 0.855, "gd": 0.93}[arm.name]
        nuclear = {"W": 0.862, "KQ": 0.9971, "gd": 0.87}[arm.name]
        return {
            "corr. Frobenius": frobenius + 0.004 * g.normal(),
            "corr. nuclear": nuclear + 0.001 * g.normal(),
            "feasible": 1.0,
            "agreement": 1e-9 * abs(g.normal()),
            "rank": 5.0 if arm.name == "W" else 3.0,
            "global": float(g.random() < 0.8),
        }

    chance = Control("Any direction that separates the tokens", Contrast("W", "gd", "corr. Frobenius"))
    claims = (
        Claim(
            "w",
            "Training W goes to the Frobenius direction rather than the nuclear one",
            Contrast("W", "KQ", "corr. Frobenius"),
            chance,
            paper=0.13,
            unit="correlation",
            paper_says="mean correlation about 0.99 against 0.86 at 1000 iterations",
        ),
        Claim(
            "kq",
            "Training K and Q goes to the nuclear direction",
            Contrast("KQ", "W", "corr. nuclear"),
            Control("Rank alone", Contrast("KQ", "gd", "corr. nuclear")),
            unit="correlation",
            paper=0.12,
        ),
        Claim(
            "feasible",
            "The SVM is feasible for every instance once d ≥ max(T−1, n)",
            Level("W", "feasible", 0.5),
            Control("Chance", Level("W", "feasible", 0.5)),
            unit="share",
        ),
        Claim(
            "rank",
            "The nuclear solution has the lower rank",
            Contrast("KQ", "W", "rank", "lower"),
            Control("Tolerance of the solver", Contrast("KQ", "gd", "rank", "lower")),
            unit="rank",
            paper=2.8,
        ),
        Claim(
            "fast",
            "The fast route agrees with the exact solver",
            Level("W", "agreement"),
            Control("Loose tolerances", Level("KQ", "agreement"), "equivalent", 1e-6),
            test="equivalent",
            margin=1e-6,
            unit="correlation",
        ),
        Claim(
            "share",
            "Most instances select the globally optimal token",
            Level("W", "global", 0.5),
            Control("Selection by chance", Level("gd", "global", 0.5)),
            interval="wilson",
            unit="share",
            paper=0.3,
        ),
    )
    study = Study(
        "attention-svm",
        "Attention as a hard-margin SVM",
        "One attention layer chooses tokens as an SVM would.",
        ("probes", "models"),
        arms,
        claims,
        {"quick": Profile(40)},
        (("corr. Frobenius", "higher"), ("corr. nuclear", "higher")),
        22,
        Paper(
            "Transformers as Support Vector Machines",
            "Tarzanagh, Li, Thrampoulidis, Oymak",
            2023,
            "2308.16898",
        ),
        trial=never,
        snippet="from gradatim.probes import attention_svm",
    )
    return report_of(study, results_of(arms, draw, 40))


def boosted() -> StudyReport:
    """Small effects, not reproduced and inconclusive claims, one that a control explains away."""
    arms = tuple(
        Arm(f"{task}/{name}", {}, "", role)  # type: ignore[arg-type]
        for task in ("breast cancer", "digits", "diabetes", "wine")
        for name, role in (
            ("boosted", "method"),
            ("mlp-adam", "baseline"),
            ("mlp-lbfgs", "baseline"),
            ("hist-gradient-boosting", "baseline"),
            ("random-dropped", "control"),
        )
    )

    def draw(arm: Arm, seed: int) -> dict[str, float]:
        task, name = arm.name.split("/")
        base = {"breast cancer": 0.972, "digits": 0.955, "diabetes": 0.44, "wine": 0.981}[task]
        gain = {"boosted": 0.0, "mlp-adam": 0.004, "mlp-lbfgs": -0.006, "random-dropped": 0.001}.get(
            name, -0.01
        )
        noise = 0.012 * _noise(task, seed).normal() + 0.006 * _noise(arm.name, seed).normal()
        return {"accuracy": min(1.0, base + gain + noise)}

    claims = tuple(
        Claim(
            f"c{i}",
            f"Boosting matches the network trained at once: {task}",
            Contrast(f"{task}/boosted", f"{task}/mlp-adam", "accuracy"),
            Control(
                "Units dropped at random cost as little",
                Contrast(f"{task}/boosted", f"{task}/random-dropped", "accuracy"),
            ),
            test="equivalent" if i % 2 else "positive",
            margin=0.01 if i % 2 else 0.0,
            unit="accuracy",
            paper_says="competitive with networks trained by Adam, L-BFGS and SGD",
            overlap=1 / 9,
        )
        for i, task in enumerate(("breast cancer", "digits", "diabetes", "wine"))
    )
    study = Study(
        "boosted-network",
        "A network trained block by block, as gradient boosting",
        "Hidden units are added a block at a time, each fitted to what the others left over.",
        ("models",),
        arms,
        claims,
        {"quick": Profile(10)},
        (("accuracy", "higher"),),
        9,
        Paper(
            "Sequential Training of Neural Networks with Gradient Boosting",
            "Emami & Martínez-Muñoz",
            2019,
            "1909.12098",
        ),
        trial=never,
        snippet="from gradatim.models import BoostedMLPClassifier",
    )
    return report_of(study, results_of(arms, draw, 10))


def comparison() -> StudyReport:
    """A comparison on a user's own data: no paper, no number, no claims of a paper."""
    arms = (Arm("infonce", role="baseline"), Arm("lse-pair"), Arm("joint-lh"))
    mean = {"infonce": 0.5, "lse-pair": 0.53, "joint-lh": 0.52}

    def draw(arm: Arm, seed: int) -> dict[str, float]:
        return {"MRR@10": mean[arm.name] + 0.01 * _noise(arm.name, seed).normal()}

    claims = tuple(
        Claim(
            a,
            f"{a} beats infonce",
            Contrast(a, "infonce", "MRR@10"),
            Control("More positives per query", Contrast(a, "joint-lh", "MRR@10")),
        )
        for a in ("lse-pair", "joint-lh")
    )
    study = Study(
        "compare-retrieval",
        "Retrieval on my-data",
        "Arms on your own data.",
        ("losses",),
        arms,
        claims,
        {"quick": Profile(5)},
        (("MRR@10", "higher"),),
        trial=never,
    )
    return report_of(study, results_of(arms, draw, 5))


def hostile(text: str = HOSTILE) -> StudyReport:
    """Every text that a study can bring is `text`."""
    arms = (Arm(f"{text}/a", {}, text), Arm(f"{text}/b", {}, text + "b", "control"))

    def draw(a: Arm, s: int) -> dict[str, float]:
        return {text: float(s) + (a.name[-1] == "a")}

    def curves(a: Arm, s: int) -> dict[str, Curve]:
        return {text: Curve([0, 1, 2], [s, 1.0, 2.0], text, text)}

    def broken(figure: Figure, results: Results) -> None:
        raise RuntimeError(text)

    def fine(figure: Figure, results: Results) -> None:
        figure.subplots().text(0, 0, text, parse_math=False)

    effect = Contrast(arms[0].name, arms[1].name, text)
    claim = Claim("c", text, effect, Control(text, effect), unit=text, paper=1.0, paper_says=text)
    study = Study(
        text,
        text,
        text,
        (text,),
        arms,
        (claim,),
        {"quick": Profile(3)},
        ((text, "higher"),),
        None,
        Paper(text, text, 2020, text),
        trial=never,
        snippet=text,
        notes=text,
        figures=(
            StudyFigure(text, text, text, broken, lambda r: Table((), ())),
            StudyFigure(text, text, text, fine, lambda r: Table((text,), [(text,)])),
        ),
    )
    return report_of(study, results_of(arms, draw, 3, curves), failed=[FailedTrial(text, 4, text, text)])


def empty(failed: bool = False, seeds: int = 0) -> StudyReport:
    """No trials at all, or all failed, or a single seed."""
    arms = (Arm("a"), Arm("b", role="baseline"))
    effect = Contrast("a", "b", "x")
    claim = Claim("c", "a beats b", effect, Control("nothing", effect), paper=0.5, unit="x")
    study = Study(
        "empty",
        "Nothing yet",
        "",
        ("optim",),
        arms,
        (claim,),
        {"quick": Profile(2)},
        (("x", "higher"),),
        3,
        trial=never,
    )
    results = results_of(arms, lambda a, s: {"x": float(a.name == "a")}, seeds)
    if failed:
        results = Results({}, {"a": 2, "b": 2})
    failures = [FailedTrial(a, s, "ValueError: no", "") for a in "ab" for s in (0, 1)] if failed else []
    return report_of(study, results, failed=failures, missing=0 if failed else 4)


def house() -> list[StudyReport]:
    """What a first run looks like."""
    return [schedules(), boosted(), attention(), comparison()]
