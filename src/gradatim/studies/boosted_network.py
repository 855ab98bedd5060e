"""09. Can a network's hidden units be trained in stages by boosting, and be switched off afterwards?

Emami and Martinez-Munoz, "Sequential Training of Neural Networks with Gradient Boosting" (2019, arXiv
1909.12098). A seed is one split: fresh rows of a generator, or a random division of a bundled data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from gradatim.bench import (
    Arm,
    Claim,
    Contrast,
    Control,
    Level,
    Outcome,
    Paper,
    Profile,
    Scale,
    Study,
    StudyFigure,
)
from gradatim.studies.boosted_digits import digits_trial
from gradatim.studies.boosted_figures import (
    MLPS,
    AboveLinear,
    KeptAccuracy,
    LosesLessThanDense,
    NotFarBelow,
    NotFarBelowBestMLP,
    RankAdvantage,
    draw_ranks,
    draw_switching,
    ranks_table,
    switching_table,
)
from gradatim.studies.boosted_trials import tabular_batch

QUICK_TASKS = ("waveform", "twonorm", "breast_cancer", "friedman1")
TASKS = (*QUICK_TASKS, "ringnorm", "moons", "digits", "diabetes")
MODELS = ("gbnn", *MLPS, "hist-gb", "linear")
# n_test / n_train of the random splits of a bundled set; generators draw afresh and need no correction.
OVERLAP = 1.0 / 3.0


def batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> Iterator[Outcome]:
    """One outcome per split."""
    if arm.settings["task"] == "digits-cnn":
        return (digits_trial(arm, seed, scale) for seed in seeds)
    return tabular_batch(arm, seeds, scale)


def _arms() -> Iterator[Arm]:
    for task in TASKS:
        for kind in MODELS:
            role = "method" if kind == "gbnn" else "control" if kind == "linear" else "baseline"
            yield Arm(f"{task}/{kind}", {"task": task, "kind": kind}, role=role)  # type: ignore[arg-type]
    for task in ("waveform", "ringnorm"):
        for solver in ("adam", "lbfgs"):
            settings = {"task": task, "kind": "dense", "solver": solver}
            yield Arm(f"{task}/dense-{solver}", settings, role="control")
        small = {"task": task, "kind": "gbnn", "override": {"learning_rate": 0.025}}
        yield Arm(f"{task}/gbnn-small-step", small, role="control")
    for kind in ("boosted-head", "dense-head", "linear-head"):
        role = {"boosted-head": "method", "dense-head": "baseline", "linear-head": "control"}[kind]
        yield Arm(f"digits-cnn/{kind}", {"task": "digits-cnn", "kind": kind}, role=role)  # type: ignore[arg-type]


ARMS = tuple(_arms())
SWITCHING = tuple(
    f"{task}/{kind}"
    for task in ("waveform", "ringnorm")
    for kind in ("gbnn", "dense-adam", "dense-lbfgs", "gbnn-small-step")
)
PICTURES = tuple(arm.name for arm in ARMS if arm.settings["task"] == "digits-cnn")
QUICK_ARMS = tuple(
    arm.name
    for arm in ARMS
    if (arm.settings["task"] in QUICK_TASKS and arm.settings["kind"] in MODELS)
    or arm.name in SWITCHING
    or arm.name in PICTURES
)

PICTURE_SCALE = {
    "cnn_train": 1200,
    "cnn_epochs": 4,
    "head_units": 40,
    "head_step": 2,
    "head_rate": 0.3,
    "head_epochs": 50,
}

COMPETITIVE = "The abstract finds the boosted network competitive with the same network trained by Adam, "
COMPETITIVE += "L-BFGS or SGD. Its result tables could not be obtained."
SWITCH_OFF = "The abstract says that units trained last can be switched off without significant loss."


def _competitive(task: str, allowance: float, unit: str) -> Claim:
    lost = f"{allowance:.2f} accuracy" if task != "friedman1" else f"{allowance:.0%} RMSE"
    return Claim(
        f"competitive-{task.replace('_', '-')}",
        f"On {task} the boosted network loses less than {lost} against the best of three MLPs",
        NotFarBelowBestMLP(task, allowance),
        Control("The task is easy: a linear model does as well.", AboveLinear(task)),
        unit=unit,
        paper_says=COMPETITIVE,
        overlap=OVERLAP if task == "breast_cancer" else 0.0,
    )


def _switch(task: str, percent: int, control: Control) -> Claim:
    return Claim(
        f"switch-off-{task}-{percent}",
        f"On {task} the first {percent}% of the units lose less than 0.02 accuracy against all",
        KeptAccuracy(f"{task}/gbnn", percent, 0.02),
        control,
        unit="accuracy above -0.02",
        paper_says=SWITCH_OFF,
    )


def _dense_control(task: str, percent: int) -> Control:
    return Control(
        "A dense net of the same units, switched off at random (with or without rescaling) or by output "
        "weight, whichever is kindest to it, loses as little.",
        LosesLessThanDense(task, percent),
    )


CLAIMS = (
    *(_competitive(t, 0.02, "accuracy above -0.02") for t in QUICK_TASKS if t != "friedman1"),
    _competitive("friedman1", 0.05, "relative RMSE above -5%"),
    Claim(
        "mean-rank",
        "Over the data sets the boosted network ranks better than the three MLPs on average",
        RankAdvantage(TASKS, MLPS),
        Control(
            "Boosting explains it, not the network: boosted trees rank as well.",
            RankAdvantage(TASKS, ("hist-gb",)),
        ),
        unit="ranks",
        paper_says=COMPETITIVE + " Its first version (2019) claimed better than a standard network.",
        overlap=OVERLAP,
    ),
    _switch("waveform", 50, _dense_control("waveform", 50)),
    _switch(
        "waveform",
        25,
        Control(
            "The step size explains it: at a quarter of it the same units switched off cost more than 0.02.",
            KeptAccuracy("waveform/gbnn-small-step", 25, 0.02),
        ),
    ),
    _switch("ringnorm", 50, _dense_control("ringnorm", 50)),
    Claim(
        "one-network",
        "The blocks assembled into one ordinary MLP give the same probabilities to 1e-10",
        Level("waveform/gbnn", "assembly_gap", 1e-10, "lower"),
        Control(
            "The comparison could not tell: an assembly with the whole bias kept passes, too.",
            Level("waveform/gbnn", "whole_bias_gap", 1e-6),
        ),
        unit="probability below 1e-10",
        paper_says="An exact identity, asserted to rounding in the authors' notebook.",
    ),
    Claim(
        "deep-features",
        "On a convolutional net's features the boosted head loses less than 0.02 accuracy to a dense head",
        NotFarBelow("digits-cnn/boosted-head", "digits-cnn/dense-head", 0.02),
        Control(
            "The features explain it: a linear head on them does as well.",
            Contrast("digits-cnn/boosted-head", "digits-cnn/linear-head", "accuracy"),
        ),
        unit="accuracy above -0.02",
        paper_says="The abstract uses boosted blocks as the final layers of convolutional networks.",
        overlap=450 / PICTURE_SCALE["cnn_train"],
    ),
)

QUICK = {"grid": "quick", "n_train": 300, "n_test": 1200, "n_units": 200, "n_tune": 1, "inner_folds": 1}
STANDARD = {**QUICK, "grid": "standard", "n_tune": 4, "inner_folds": 5}
PAPER = {**STANDARD, "grid": "paper", "n_tune": 10, "inner_folds": 10, "outer_folds": 10}

PLAIN = """
The method trains a network with one hidden layer a few units at a time. The first block of units learns
what is left after predicting a constant; the next learns what is left after that; and so on, each step
shrunk and scaled by a Newton step. All blocks together are again one ordinary network.

Because early blocks have learned the coarse shape and late ones correct it, the last units can be switched
off: one fitted model serves several speed budgets. The study asks whether this beats training all units at
once, and whether a dense net of the same size could not be cut down just as well.
"""

SNIPPET = """
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale
from gradatim.models import BoostedMLPClassifier

X, y = load_breast_cancer(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(scale(X), y, random_state=0)

model = BoostedMLPClassifier(n_units=100, random_state=0).fit(X_train, y_train)
print(model.score(X_test, y_test))

small = model.truncate(25)             # a quarter of the units, a quarter of the work
print(small.score(X_test, y_test))

network = model.to_torch()             # nn.Sequential(Linear, Sigmoid, Linear)
mlp = model.to_mlp()                   # a fitted scikit-learn MLPClassifier
"""

NOTES = """
- Truncating to the first m units gives exactly the network that boosting with m units would have given:
  switching off is stopping early, chosen after training.
- What switching off costs depends on the step size and on how early the task saturates, not on boosting
  alone; on ringnorm the late units are needed.
- With several outputs scikit-learn's MLPRegressor averages its loss over outputs but not its gradient, so
  blocks are compared with it at one output.
- Settings are chosen on tuning draws (generators) or inside the training rows (bundled sets). The best MLP
  of a comparison is chosen by its test mean, which favours the MLPs.
"""

study = Study(
    slug="boosted-network",
    title="Training a network's units in stages by gradient boosting",
    number=9,
    paper=Paper(
        "Sequential Training of Neural Networks with Gradient Boosting",
        "Emami, Martínez-Muñoz",
        2019,
        "1909.12098",
    ),
    plain=PLAIN,
    rooms=("models", "tasks"),
    arms=ARMS,
    claims=CLAIMS,
    profiles={
        "quick": Profile(5, {**QUICK, **PICTURE_SCALE}, 75.0, QUICK_ARMS, batch=5),
        "standard": Profile(10, {**STANDARD, **PICTURE_SCALE}, 3400.0, batch=10),
        "paper": Profile(100, {**PAPER, **PICTURE_SCALE}, 2e6, batch=10),
    },
    headline=(("accuracy", "higher"), ("rmse", "lower")),
    batch=batch,
    snippet=SNIPPET,
    figures=(
        StudyFigure(
            "switching-off",
            "Accuracy with the first units only",
            "Two panels, waveform and ringnorm: test accuracy over active units. The boosted network's line "
            "rises early and flattens; the dense nets' lines fall steeply when units are switched off.",
            draw_switching,
            switching_table,
        ),
        StudyFigure(
            "mean-ranks",
            "Mean rank over data sets",
            "Mean rank of each model over the data sets, best on top, with the critical difference as a bar.",
            partial(draw_ranks, tasks=TASKS),
            partial(ranks_table, tasks=TASKS),
        ),
    ),
    notes=NOTES,
)
