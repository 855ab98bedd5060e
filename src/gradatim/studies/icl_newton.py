"""21. Do the layers of an in-context learner follow Newton's method?

Fu, Chen, Jia, Sharan, "Transformers Learn Higher-Order Optimization Methods for In-Context Learning: A Study
with Linear Models" (2023, arXiv 2310.17086). A seed is one trained learner. Its layers are read by one linear
map each and matched, by similarity of errors, against step counts of Newton-Schulz, of gradient descent at
several rates and of GD++ tuned for its number of steps.
"""

from __future__ import annotations

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
from gradatim.studies.icl_newton_figures import (
    draw_errors,
    draw_forgetting,
    draw_heat,
    draw_steps,
    table_errors,
    table_forgetting,
    table_heat,
    table_steps,
)
from gradatim.studies.icl_newton_trials import batch, interleaved

ISO = Arm("transformer", {"kind": "transformer"}, "transformer")
ILL = Arm("transformer-ill", {"kind": "transformer", "cov": "ill"}, "transformer, ill-conditioned inputs")
LSTM = Arm("lstm", {"kind": "lstm"}, "LSTM", "baseline")
CONSTRUCTION = Arm(
    "construction",
    {"kind": "construction", "steps": 6, "d": 4, "n": 10},
    "Newton by ReLU attention",
    "control",
)
ARMS = (ISO, ILL, LSTM, CONSTRUCTION)


def _difference(arm: str, more: str, less: str) -> Callable[[Results], Mapping[int, float]]:
    """One metric of an arm above another of its metrics."""

    def effect(results: Results) -> dict[int, float]:
        a, b = results.metric(arm, more), results.metric(arm, less)
        return {seed: a[seed] - b[seed] for seed in a if seed in b}

    return effect


# In the algorithms themselves gradient steps double with every second Newton step (see the page's table).
DOUBLINGS_PER_NEWTON_STEP = 0.5


def _descent_left_behind(results: Results) -> dict[int, float]:
    """Doublings of gradient steps that ill-conditioning costs beyond those its Newton steps stand for."""
    shift = {}
    for seed, log_gd in results.metric(ILL.name, "gd_last_log").items():
        plain = results.metric(ISO.name, "gd_last_log").get(seed)
        newton = Contrast(ILL.name, ISO.name, "newton_last")(results).get(seed)
        if plain is not None and newton is not None:
            shift[seed] = log_gd - plain - DOUBLINGS_PER_NEWTON_STEP * newton
    return shift


CLAIMS = (
    Claim(
        "newton-linear",
        "Best-matching Newton steps grow from layer to layer",
        Level(ISO.name, "newton_slope"),
        Control(
            "gradient descent draws the same line on a logarithmic axis: R^2 of Newton steps over layers, "
            "above that of the logarithm of gradient steps",
            Level(ISO.name, "line_gain"),
            margin=0.02,
        ),
        unit="Newton steps per layer",
        margin=0.5,
        paper=3.0,
        paper_says="about 3 Newton steps per middle layer, 12 layers, d = 20 (figure 3)",
    ),
    Claim(
        "descent-exponential",
        "Best-matching gradient steps grow exponentially: their logarithm fits a line better than they do",
        Level(ISO.name, "gd_log_gain"),
        Control(
            "the first claim on another axis: how far a layer's gradient steps are from those that match its "
            "Newton steps in the algorithms themselves, in doublings",
            Level(ISO.name, "identity_gap"),
            margin=1.0,
        ),
        unit="difference of R^2",
        margin=0.02,
        paper_says="steps in powers of two, linear in the layer (figure 3); shown beside Newton's as "
        "a second finding",
    ),
    Claim(
        "closer-to-newton",
        "The learner's errors are more like Newton's than like gradient descent's (rate .01, powers of two)",
        _difference(ISO.name, "sim_newton", "sim_gd"),
        Control(
            "a step size that suits the task: the best of five rates",
            _difference(ISO.name, "sim_newton", "sim_gd_tuned"),
            margin=0.002,
        ),
        unit="similarity of errors",
        margin=0.002,
        paper=0.006,
        paper_says=".994 against .988 at the last layer (figure 3)",
    ),
    Claim(
        "newton-rate",
        "A constant number of Newton steps per layer explains the error by layer better than a constant "
        "number of gradient steps at the best rate",
        Level(ISO.name, "newton_lead"),
        Control(
            "GD++, the other method of exponential degree, explains it as well",
            Level(ISO.name, "newton_lead_gd++"),
            margin=0.02,
        ),
        unit="rms of the log error",
        margin=0.02,
        paper_says="layers 3-8 converge superlinearly, like Newton, unlike gradient descent (figures 2, 7)",
    ),
    Claim(
        "ill-conditioned",
        "Ill-conditioned inputs cost the learner no more than three Newton steps",
        Contrast(ILL.name, ISO.name, "newton_last"),
        Control(
            "they cost gradient descent no more either: doublings of its steps beyond what the Newton steps "
            "stand for",
            _descent_left_behind,
            margin=0.5,
        ),
        unit="Newton steps at the output",
        test="equivalent",
        margin=3.0,
        paper=0.0,
        paper_says="20-21 steps as for isotropic inputs, while gradient descent needs 2,000-3,000 (figure 4, "
        "condition number 100)",
    ),
    Claim(
        "lstm-online",
        "An LSTM's errors are more like one pass of online gradient descent than like Newton's",
        _difference(LSTM.name, "sim_ogd", "sim_newton"),
        Control(
            "any poor first-order method would do: batch gradient descent at its best rate and step count",
            _difference(LSTM.name, "sim_ogd", "sim_gd_tuned"),
            margin=0.005,
        ),
        unit="similarity of errors",
        margin=0.005,
        paper=0.034,
        paper_says=".954 against .920 (table 1; the first version of the paper had the opposite order)",
    ),
    Claim(
        "lstm-forgets",
        "The LSTM's error on pairs it has seen grows with the pairs since, the transformer's less so",
        Contrast(LSTM.name, ISO.name, "rise"),
        Control(
            "the LSTM is merely worse at every gap: the growth as a ratio, LSTM above transformer",
            Contrast(LSTM.name, ISO.name, "rise_log"),
            margin=0.05,
        ),
        unit="error / d, older half minus newer half",
        margin=0.005,
        paper_says="the curve rises for LSTM and online descent and is flat for the transformer (figure 5)",
    ),
    Claim(
        "construction",
        "Six Newton steps fit in nine layers of ReLU attention, to ten digits",
        Level(CONSTRUCTION.name, "digits", bound=10.0),
        Control(
            "the printed proof suffices as it stands, with values of one sign in both heads",
            _difference(CONSTRUCTION.name, "digits", "digits_printed_signs"),
            margin=1.0,
        ),
        unit="digits above 10",
        margin=0.1,
        paper_says="k + 8 layers for k steps (theorem 5.1)",
    ),
)

QUICK = {
    "d": 4, "n": 12, "kappa": 10, "batch": 64, "contexts": 1000, "rate_factor": 2.0,
    "transformer": {"layers": 8, "width": 32, "heads": 4, "steps": 700, "lr": 4e-3},
    "lstm": {"layers": 2, "width": 64, "steps": 1200, "lr": 6e-3},
}  # fmt: skip
STANDARD = {
    "d": 6, "n": 18, "kappa": 100, "batch": 64, "contexts": 1000, "rate_factor": 1.0,
    "transformer": {"layers": 8, "width": 48, "heads": 4, "steps": 2500, "lr": 2e-3},
    "lstm": {"layers": 2, "width": 96, "steps": 3000, "lr": 4e-3},
}  # fmt: skip
PAPER = {
    "d": 20, "n": 41, "kappa": 100, "batch": 64, "contexts": 1000, "rate_factor": 1.0, "device": "auto",
    "transformer": {"layers": 12, "width": 256, "heads": 8, "steps": 500_000, "lr": 1e-4},
    "lstm": {"layers": 10, "width": 256, "steps": 500_000, "lr": 1e-4},
}  # fmt: skip

study = Study(
    number=21,
    slug="icl-newton",
    title="Layers of an in-context learner beside Newton's method and its rivals",
    paper=Paper(
        "Transformers Learn Higher-Order Optimization Methods for In-Context Learning: A Study with Linear "
        "Models",
        "Fu, Chen, Jia, Sharan",
        2023,
        "2310.17086",
    ),
    rooms=("probes", "models", "tasks"),
    plain="""A transformer that has learned to solve linear regression in context improves its answer from
layer to layer. The paper matches each layer with the number of steps of an iterative algorithm whose errors
are most like it. Newton's steps grow by a constant from layer to layer; gradient descent's double. It
concludes that the transformer learned a second-order method.

Both statements are one: in the algorithms themselves, a gradient descent of twice as many steps makes the
errors of two further Newton steps, so whatever is linear on one axis is exponential on the other. What could
tell them apart is the error by layer, and ill-conditioned inputs. The study measures both, and lets rivals
with tuned rates, GD++ among them, compete.""",
    arms=(*ARMS, interleaved(ISO), interleaved(ILL)),
    claims=CLAIMS,
    profiles={
        "quick": Profile(4, QUICK, core_seconds=300, arms=tuple(a.name for a in ARMS), batch=2),
        "standard": Profile(5, STANDARD, core_seconds=2400, arms=tuple(a.name for a in ARMS), batch=5),
        "paper": Profile(5, PAPER, core_seconds=500_000, batch=5),
    },
    headline=(
        ("error", "lower"),
        ("sim_newton", "higher"),
        ("sim_gd_tuned", "higher"),
        ("sim_ogd", "higher"),
    ),
    batch=batch,
    figures=(
        StudyFigure(
            "steps",
            "Matched steps per layer",
            "Two panels over layers: matched Newton steps rise on a linear axis, matched gradient steps on a "
            "logarithmic one; bands are 95% bootstrap intervals. The two curves have the same shape.",
            draw_steps,
            table_steps,
        ),
        StudyFigure(
            "errors",
            "Error by layer and by step",
            "Error on a logarithmic axis: over layers of the learner on the left, over steps of Newton and "
            "GD++ in the middle, over steps of gradient descent on a logarithmic axis on the right.",
            draw_errors,
            table_errors,
        ),
        StudyFigure(
            "heat",
            "Similarity of errors, layer by step",
            "Two heat maps of similarity, layers by Newton steps and layers by gradient steps: a bright "
            "ridge runs diagonally through both.",
            draw_heat,
            table_heat,
        ),
        StudyFigure(
            "forgetting",
            "What is remembered",
            "Error on pairs already seen over the number of pairs since: the transformer's is low and nearly "
            "flat, the LSTM's higher and rising, online gradient descent's starts at zero and rises.",
            draw_forgetting,
            table_forgetting,
        ),
    ),
    snippet="""import torch
from gradatim.probes import GradientDescent, IterativeNewton, best_match
from gradatim.tasks import LinearRegressionTask

b = LinearRegressionTask(d=8, n=25).sample(200, generator=torch.Generator().manual_seed(0))
newton = IterativeNewton(1).path(b.x, b.y, 10)                       # predictions after 1 .. 10 steps
descent = GradientDescent(1, lr=0.01).path(b.x, b.y, [2**j for j in range(11)])
print(best_match(newton, descent, b.y).argmax)    # log2 of the gradient steps most like each Newton step
""",
    notes="""- The layers of the quick learners are not close to any of the algorithms: their errors resemble
  the best step count of each family about equally, and which family leads changes with the seed.
- The embedding's read-out resembles one tiny gradient step almost perfectly: both predict about 0. The level
  of a similarity says little; only its change along the layers does.
- GD++ with rates tuned for each number of steps reaches the same errors in fewer steps than Newton, being of
  higher degree still: `gd++/error` beside `newton/error`.
- At quick scale the condition number is 10: at 100 the weak half of the inputs carries one percent of the
  labels' variance, which is less than the error that so short a training leaves (`weak_share` against
  `error`), so that nothing about them could be seen.""",
)
