"""02. Which learning algorithm is in-context learning? Noise picks the ridge, depth picks the algorithm.

Akyürek, Schuurmans, Andreas, Ma, Zhou, "What learning algorithm is in-context learning? Investigations with
linear models" (2022, arXiv 2211.15661). A seed is one trained learner per arm. Every family of reference
algorithms is tuned to the learner before it is called nearer or further: a rate or a penalty that nobody
tuned loses by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from gradatim.bench import (
    Arm,
    Claim,
    Contrast,
    Control,
    Level,
    Paper,
    Profile,
    Results,
    Study,
    StudyFigure,
)
from gradatim.studies.icl_linear_figures import (
    draw_depth,
    draw_pairs,
    draw_probes,
    draw_valleys,
    table_depth,
    table_pairs,
    table_probes,
    table_valleys,
)
from gradatim.studies.icl_linear_trials import batch

# The penalty that a learner follows still falls late in training; what depth does shows sooner.
LONG = 1.4


def _noise(sigma: float, tau: float = 1.0, **more: object) -> Arm:
    shown = f"sigma {sigma:g}" + (f", tau {tau:g}" if tau != 1 else "")
    return Arm(f"noise/{sigma:g}-{tau:g}", {"sigma": sigma, "tau": tau, "share": LONG, **more}, shown)


CLEAN = _noise(0.0, probe=True, linearity=True, also_on=0.5)
NOISY = _noise(0.5)
ONE = Arm("depth/1", {"layers": 1, "tokens": "paired"}, "1 layer")
WIDE = Arm(
    "depth/1-wide",
    {"layers": 1, "tokens": "paired", "wide": True},
    "1 layer, no fewer parameters",
    "control",
)
APART = Arm("depth/1-apart", {"layers": 1, "tokens": "interleaved"}, "1 layer, x and y in tokens apart")
FIXED = Arm("fixed-w", {"fixed_weights": True, "probe": True, "share": 0.3}, "trained with w = 1", "control")
CORE = (CLEAN, NOISY, ONE, WIDE, APART, FIXED)
MORE = (
    _noise(0.25),
    _noise(0.5, 1.5),
    _noise(0.5, 0.75),
    Arm("depth/2", {"layers": 2}, "2 layers"),
    Arm("depth/4", {"layers": 4}, "4 layers"),
    Arm("interleaved", {"tokens": "interleaved", "share": LONG}, "x and y in tokens apart", "control"),
)

# A factor of 1.5 either way, on a scale of doublings.
FACTOR = math.log2(1.5)


def _doublings(
    arm: str, metric: str, baseline_arm: str, baseline: str
) -> Callable[[Results], Mapping[int, float]]:
    """log2 of one metric over another, seed by seed."""

    def effect(results: Results) -> dict[int, float]:
        a, b = results.metric(arm, metric), results.metric(baseline_arm, baseline)
        return {seed: math.log2(a[seed] / b[seed]) for seed in a if seed in b}

    return effect


def _difference(arm: str, more: str, less: str) -> Callable[[Results], Mapping[int, float]]:
    """One metric of an arm minus another of its metrics."""

    def effect(results: Results) -> dict[int, float]:
        a, b = results.metric(arm, more), results.metric(arm, less)
        return {seed: a[seed] - b[seed] for seed in a if seed in b}

    return effect


CLAIMS = (
    Claim(
        "noise-order",
        "The noise of training sets the ridge penalty that the learner follows: it grows from sigma 0 to 0.5",
        Contrast(NOISY.name, CLEAN.name, "log2_lambda"),
        Control(
            "the noise in the prompt sets it, not training: both learners asked on contexts with sigma 0.5",
            _doublings(NOISY.name, "lambda", CLEAN.name, "lambda_on_noisy"),
        ),
        unit="doublings of lambda",
        paper_says="figure 2: the nearest ridge moves from OLS to lambda 4/9 as sigma^2 / tau^2 does",
    ),
    Claim(
        "bayes-penalty",
        "That penalty is the Bayes one, sigma^2 / tau^2, within a factor of 1.5 (sigma 0.5)",
        Level(NOISY.name, "log2_lambda_over_bayes"),
        Control(
            "training is unfinished: from half of the steps to all of them the penalty moves by more than a "
            "factor of 1.5",
            Level(NOISY.name, "lambda_drift"),
            test="equivalent",
            margin=FACTOR,
        ),
        unit="doublings above sigma^2 / tau^2",
        test="equivalent",
        margin=FACTOR,
        paper=0.0,
        paper_says="figure 2: of five penalties the Bayes one is nearest in every column",
    ),
    Claim(
        "bayes-nearest",
        "Of the penalties 0, 1/16, 1/9, 1/4, 4/9 and 1 the Bayes one is the nearest (sigma 0.5)",
        Level(NOISY.name, "bayes_lead"),
        Control(
            "another family fits as well once it is tuned: gradient descent of k steps, Newton, online "
            "descent, neighbours",
            Level(NOISY.name, "ridge_lead"),
        ),
        unit="doublings from the Bayes penalty's MSPD to the runner-up's",
        paper_says="the runner-up is 3 to 13 times further (1.6 to 3.7 doublings)",
    ),
    Claim(
        "least-squares",
        "Without noise the learner is nearer to least squares than to a ridge of 1/16",
        Level(CLEAN.name, "ols_lead"),
        Control(
            "training is unfinished: from half of the steps to all of them the nearest penalty moves by more "
            "than a factor of 1.5",
            Level(CLEAN.name, "lambda_drift"),
            test="equivalent",
            margin=FACTOR,
        ),
        unit="doublings of MSPD, ridge over least squares",
        paper=math.log2(1.10e-4 / 1.25e-5),
        paper_says="figure 2, first column: 1.25e-5 to OLS and 1.10e-4 to ridge 1/16, after 500,000 steps",
    ),
    Claim(
        "agreement",
        "Without noise its predictions differ from least squares by less than 0.01 (MSPD / d)",
        Level(CLEAN.name, "mspd/0", bound=0.01, better="lower"),
        Control(
            "a ridge is nearer still: a run that is not finished shrinks",
            _doublings(CLEAN.name, "tuned/ridge", CLEAN.name, "tuned/OLS"),
        ),
        unit="below 0.01",
        paper=0.01 - 1.25e-5,
        paper_says="figure 1: below 0.01 at almost every context size",
    ),
    Claim(
        "one-layer",
        "One layer on the paper's tokens, x and y apart, is nearer to one step of gradient descent at its "
        "best rate than to any ridge",
        Level(APART.name, "one_step_lead"),
        Control(
            "the tokens do it, not the single layer: with x and y in one token a layer is nearer to ridge",
            Level(ONE.name, "one_step_lead"),
        ),
        unit="doublings of SPD, ridge over one step",
        paper_says="figure 3: a single layer is nearest to one-step gradient descent, at a rate nobody tuned",
    ),
    Claim(
        "depth",
        "More layers bring the learner nearer to least squares than one layer",
        Contrast(CLEAN.name, ONE.name, "mspd/0", better="lower"),
        Control(
            "parameters do it, not depth: one wide layer of as many parameters",
            Contrast(CLEAN.name, WIDE.name, "mspd/0", better="lower"),
        ),
        unit="MSPD / d",
        paper_says="figure 3: one layer, then two to four, then eight and more are three phases",
    ),
    Claim(
        "weights-readable",
        "The least-squares weights can be read from the learner's layers better than from a learner of w = 1",
        Contrast(CLEAN.name, FIXED.name, "probe/w_ols", better="lower"),
        Control(
            "the probe computes them itself: it reads an untrained network as well",
            _doublings(CLEAN.name, "probe/w_ols_untrained", CLEAN.name, "probe/w_ols"),
        ),
        unit="relative probe error",
        paper_says="figures 4 and 5: the control's probes are clearly worse",
    ),
    Claim(
        "linear",
        "The learner's answers become more linear in the question as pairs arrive (from 1 pair to d)",
        Level(CLEAN.name, "r2_rise"),
        Control(
            "any network answers so: the rise exceeds that of an untrained one",
            _difference(CLEAN.name, "r2_rise", "r2_rise_untrained"),
        ),
        unit="rise of R2",
        paper_says="figure 6: R2 of the best linear fit rises towards 1 as n approaches d",
    ),
)

SNIPPET = """
from gradatim.models import InContextConfig, InContextTransformer
from gradatim.probes import GradientDescent, LeastSquares, Ridge, mspd, sweep
from gradatim.tasks import LinearRegressionTask, context_generator

task = LinearRegressionTask(3, 8, sigma=0.5)
config = InContextConfig(d=3, n_positions=8, n_layer=1, n_head=2, n_embd=16, tokens="paired")
learner = InContextTransformer(config, seed=0).eval()

drawn = task.sample(200, generator=context_generator(0, 1))
predicted = learner(drawn.x, drawn.y).predictions.detach()
references = [LeastSquares(), Ridge(0.25), GradientDescent(1, 0.1)]
for reference, answers in zip(references, sweep(references, drawn.x, drawn.y)):
    print(f"{reference.name:24s} {mspd(predicted, answers.to(predicted), task.d):.3f}")
"""

PLAIN = """
A transformer is trained on nothing but short lists of pairs (x, y), each list made by another hidden linear
function, to guess every y from the pairs before it. It ends up with a learning algorithm inside its forward
pass. The paper asks which: it compares the guesses with those of least squares, ridge regression, gradient
descent and nearest neighbours on the same pairs.

The answer depends on what it was trained on and how deep it is. Noise in the training lists makes it shrink
exactly as a Bayesian would (ridge with the ratio of noise to prior variance); without noise it is least
squares; a single layer does about one step of gradient descent. Here each rival is tuned before it is
compared, and the number of steps stands beside every verdict: a run that is not finished shrinks too much.
"""

study = Study(
    slug="icl-linear",
    title="Which learning algorithm is in-context learning?",
    number=2,
    paper=Paper(
        "What learning algorithm is in-context learning? Investigations with linear models",
        "Akyürek, Schuurmans, Andreas, Ma, Zhou",
        2022,
        "2211.15661",
    ),
    plain=PLAIN.strip(),
    rooms=("models", "probes", "tasks"),
    arms=(*CORE, *MORE),
    claims=CLAIMS,
    profiles={
        "quick": Profile(
            seeds=6,
            scale={
                "d": 3, "n": 6, "layers": 3, "heads": 2, "width": 32, "tokens": "paired",
                "batch": 32, "steps": 3200, "lr": 6e-3, "contexts": 2000,
                "probe_pairs": 5, "probe_steps": 600, "probe_width": 64,
            },
            core_seconds=350,
            arms=tuple(arm.name for arm in CORE),
            batch=6,
        ),
        "standard": Profile(
            seeds=4,
            scale={
                "d": 4, "n": 12, "layers": 6, "heads": 4, "width": 48, "tokens": "paired",
                "batch": 32, "steps": 3500, "lr": 3e-3, "contexts": 4000,
                "probe_pairs": 6, "probe_steps": 1000, "probe_width": 128,
            },
            core_seconds=3200,
            batch=2,
        ),
        "paper": Profile(
            seeds=3,
            scale={
                "d": 8, "n": 40, "layers": 16, "heads": 4, "width": 512, "tokens": "interleaved",
                "arch": "akyurek2022", "batch": 64, "steps": 500_000, "lr": 1e-4, "warmup": 0.2,
                "contexts": 4000, "probe_pairs": 12, "probe_steps": 5000, "probe_width": 512,
                "device": "auto", "half": True,
            },
            core_seconds=3e6,
            batch=1,
        ),
    },
    headline=(("excess", "lower"), ("mspd/0", "lower")),
    batch=batch,
    snippet=SNIPPET.strip(),
    figures=(
        StudyFigure(
            "valleys",
            "Nearest ridge by training noise",
            "Distance of each learner to ridge regression over its penalty, one curve per training noise, "
            "with the Bayes penalty marked.",
            draw_valleys,
            table_valleys,
        ),
        StudyFigure(
            "pairs",
            "Distance to every family over the pairs seen",
            "Squared prediction difference between the learners and the tuned member of each family, by the "
            "number of pairs.",
            draw_pairs,
            table_pairs,
        ),
        StudyFigure(
            "depth",
            "Depth",
            "Distance to one step of gradient descent, to the nearest ridge and to least squares, by layers.",
            draw_depth,
            table_depth,
        ),
        StudyFigure(
            "probes",
            "What the layers hold",
            "Probe error by layer for the moment and the least-squares weights, with the controls, and where "
            "the probes look.",
            draw_probes,
            table_probes,
        ),
    ),
    notes="The learner's tokens are *paired* (the y token repeats x) except where an arm says otherwise: "
    "with x and y in tokens apart it must learn to copy first, for which short runs do not suffice. The "
    "penalty nearest to a learner lies above the Bayes one for as long as training goes on, with noise and "
    "without: read it beside the number of steps and its drift since half of them. Gradient descent of k "
    "steps at the best rate is a close relative of ridge, so its distance is the fair one to beat.",
)  # fmt: skip
