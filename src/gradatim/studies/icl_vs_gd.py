"""17. Does a pretrained language model learn in context by gradient descent?

Shen, Mishra, Khashabi, "Revisiting the Hypothesis: Do pretrained Transformers Learn In-Context by Gradient
Descent?" (2023, arXiv 2310.08540).
A seed is a set of demonstrations, its orders and test items. Arms `text/...`: a real language model answers
by prompt (`icl`), and after training on the demonstrations without any in the prompt (`sgd`, all weights;
`value-deep`, `value-middle`, the value projection of one layer). `boolean/...`: models trained to learn in
context. Everything is asked in the same orders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
from gradatim.studies.icl_vs_gd_figures import (
    draw_boolean,
    draw_orders,
    draw_paths,
    draw_sensitivity,
    table_boolean,
    table_orders,
    table_paths,
    table_sensitivity,
)
from gradatim.studies.icl_vs_gd_trials import batch, data_version


@dataclass(frozen=True)
class LogRatio:
    """ln(metric of one arm / metric of another), seed by seed; seeds with a 0 drop out."""

    arm: str
    baseline: str
    metric: str

    def __call__(self, results: Results) -> Mapping[int, float]:
        """One number per seed that both arms have."""
        above, below = (results.metric(name, self.metric) for name in (self.arm, self.baseline))
        return {
            seed: math.log(above[seed] / below[seed])
            for seed in above
            if seed in below and above[seed] > 0 and below[seed] > 0
        }


@dataclass(frozen=True)
class Lead:
    """`metric` of one arm minus the largest of `other` over several arms, seed by seed."""

    arm: str
    metric: str
    rivals: tuple[str, ...]
    other: str

    def __call__(self, results: Results) -> Mapping[int, float]:
        """One number per seed that every arm has."""
        mine = results.metric(self.arm, self.metric)
        theirs = [results.metric(name, self.other) for name in self.rivals]
        return {
            seed: v - max(t[seed] for t in theirs)
            for seed, v in mine.items()
            if all(seed in t for t in theirs)
        }


@dataclass(frozen=True)
class Closest:
    """The smallest `metric` over several arms, seed by seed, times `sign`."""

    arms: tuple[str, ...]
    metric: str
    sign: float = 1.0

    def __call__(self, results: Results) -> Mapping[int, float]:
        """One number per seed that every arm has."""
        found = [results.metric(name, self.metric) for name in self.arms]
        return {s: self.sign * min(f[s] for f in found) for s in found[0] if all(s in f for f in found)}


def _icl(name: str, label: str, role: Any = "method", **settings: Any) -> Arm:
    return Arm(f"text/{name}", {"kind": "icl", **settings}, label, role)


def _gd(name: str, label: str, lrs: tuple[float, ...], role: Any = "baseline", **settings: Any) -> Arm:
    return Arm(f"text/{name}", {"kind": "gd", "lrs": list(lrs), **settings}, label, role)


def _boolean(name: str, label: str, positions: str, role: Any = "method") -> Arm:
    return Arm(f"boolean/{name}", {"kind": "boolean", "positions": positions}, label, role)


# Rates were looked for on seeds below 100, as the largest at which every order fits its demonstrations.
SGD, DEEP, MIDDLE = "text/sgd", "text/value-deep", "text/value-middle"
CORE = (
    Arm("text/zero-shot", {"kind": "zero"}, "no demonstrations", "baseline"),
    _icl("icl", "in context"),
    _gd("sgd", "SGD, all weights", (5e-4,)),
    _gd("value-deep", "SGD, values of one deep layer", (0.5,), scope="value:deep", epochs=10),
    _icl("icl-shuffled", "in context, labels shuffled", "control", shuffled=True),
    _icl("icl-untrained", "in context, untrained model", "control", untrained=True, orders=4, items=4),
    Arm("text/weights", {"kind": "weights"}, "attention's weights"),
    Arm("text/weights-untrained", {"kind": "weights", "untrained": True}, "untrained weights", "control"),
    _boolean("learned", "trained in context, learned positions", "learned"),
    _boolean("none", "trained in context, no positions", "none", "control"),
)
FINE = (1e-4, 2e-4, 5e-4, 1e-3)
MORE = (
    _gd("sgd-rates", "SGD, all weights, four rates", FINE),
    _gd("value-middle", "SGD, values of the middle layer", (0.1, 0.3, 1.0), scope="value:middle"),
    _gd("value-deep-rates", "SGD, values of one deep layer, rates", (0.1, 0.3, 1.0), scope="value:deep"),
    _gd("sgd-untied", "SGD, all weights but the embeddings", (5e-4,), scope="all-but-embeddings"),
    _gd("sgd-pairs", "SGD, two demonstrations a step", (5e-4, 1e-3), batch_size=2),
    _gd("gd", "full-batch GD, all weights", (1e-3, 2e-3), optimizer="gd"),
    Arm("text/updates", {"kind": "updates", "lrs": [5e-4]}, "updates: prompt beside training"),
    Arm("text/updates-untrained", {"kind": "updates", "lrs": [5e-4], "untrained": True},
        "the same, untrained model", "control"),
    *(_icl(f"icl-n{n}", f"in context, {n} demonstrations", shots=n) for n in (1, 2, 8)),
    *(_gd(f"sgd-n{n}", f"SGD, {n} demonstrations", (5e-4,), shots=n) for n in (1, 2, 8)),
    *(
        arm
        for task in ("topic", "entailment")
        for arm in (
            Arm(f"{task}/zero-shot", {"kind": "zero", "task": task}, f"{task}: zero-shot", "baseline"),
            Arm(f"{task}/icl", {"kind": "icl", "task": task}, f"{task}: in context"),
            Arm(f"{task}/sgd", {"kind": "gd", "task": task, "lrs": [5e-4]}, f"{task}: SGD", "baseline"),
        )
    ),
)  # fmt: skip

CLAIMS = (
    Claim(
        "learns",
        "Four demonstrations in the prompt make the language model answer better (over its whole vocabulary)",
        Contrast("text/icl", "text/zero-shot", "accuracy"),
        Control(
            "the demonstrations only show which words to answer with: the same with their labels shuffled",
            Contrast("text/icl", "text/icl-shuffled", "accuracy"),
        ),
        unit="accuracy",
        margin=0.1,
        paper_says="presupposed; without it nothing below is decided",
    ),
    Claim(
        "order",
        "In-context answers depend more on the order of the demonstrations than SGD on them does",
        LogRatio("text/icl", SGD, "sen"),
        Control(
            "sensitivity grows with the way the answers have come: the same per probability moved",
            LogRatio("text/icl", SGD, "sen_per_move"),
        ),
        unit="ln(Sen in context / Sen of SGD)",
        margin=math.log(2),
        paper=math.log(4),
        paper_says="three to five times, at every epoch (AGNews, 8 demonstrations, LLaMa-7B), as a digest of"
        " the paper has it",
    ),
    Claim(
        "overlap",
        "In-context learning shares more of its ten likeliest tokens with itself in another order than with"
        " SGD at equal training accuracy",
        Lead("text/icl", "to_self", (SGD,), "to_icl"),
        Control(
            "tokens of no weight: the cosine on the likeliest tokens of either, which weighs by probability",
            Lead("text/icl", "union_self", (SGD,), "union_icl"),
        ),
        unit="token overlap",
        margin=0.2,
        paper_says="agreement with itself in another order exceeds that with every state of descent",
    ),
    Claim(
        "one-layer",
        "Training the values of one deep layer comes no closer",
        Lead("text/icl", "to_self", (DEEP,), "to_icl"),
        Control(
            "the stopping time is free: whatever epoch and rate come closest in hindsight",
            Lead("text/icl", "to_self", (DEEP,), "best_to"),
        ),
        unit="token overlap",
        margin=0.2,
        paper_says="the same as for the whole model, for a middle and a deep layer",
    ),
    Claim(
        "no-state",
        "No recorded state of descent (scope, rate, epoch) has in-context learning's order sensitivity within"
        " a quarter and its overlap within 0.05 at once",
        Closest((SGD, DEEP), "gap"),
        Control(
            "the region is too small to be met: in-context learning in as many other orders",
            Closest(("text/icl",), "self_gap", -1.0),
        ),
        unit="distance from the region",
        paper_says="none, for every rate and epoch tried",
    ),
    Claim(
        "accuracy",
        "In-context learning is more accurate than SGD on the same demonstrations",
        Contrast("text/icl", SGD, "accuracy"),
        Control(
            "knowing the words to answer with: accuracy among these words alone",
            Contrast("text/icl", SGD, "restricted"),
        ),
        unit="accuracy",
        paper_says="512 demonstrations bring descent near in-context learning with 8",
    ),
    Claim(
        "dense",
        "Far fewer query and key weights are near zero (below 0.01) than constructed descent needs",
        Level("text/weights", "near_zero_qk", bound=0.9999, better="lower"),
        Control(
            "a matter of scale: entries below a hundredth of their matrix's standard deviation",
            Level("text/weights", "relative_qk", bound=0.9999, better="lower"),
        ),
        unit="share below 0.9999",
        paper=0.4,
        paper_says="constructions need 99.99%, trained models stay under about 60% at every threshold",
    ),
    Claim(
        "boolean-order",
        "A model trained to learn in context (Boolean conjunctions) depends on the order more than its own"
        " SGD, too",
        Level("boolean/learned", "log_ratio_sen"),
        Control(
            "learned positions make the order visible: the same model without positions",
            Level("boolean/none", "log_ratio_sen"),
        ),
        unit="ln(Sen in context / Sen of SGD)",
        margin=0.2,
        paper_says="not in the paper, which sets such models apart from language models",
    ),
)

QUICK = {
    "model": "smollm2",
    "data": "",
    "shots": 4,
    "items": 8,
    "orders": 6,
    "k": 10,
    "epochs": 8,
    "stop": 0.1,
    "record": [1, 3],
    "boolean": {
        "d": 8, "n": 24, "batch": 32, "steps": 600, "lr": 3e-3, "layers": 2, "heads": 4, "width": 64,
        "shots": 12, "functions": 5, "orders": 6, "epochs": 10, "sgd_lr": 0.01,
    },
}  # fmt: skip
STANDARD = {**QUICK, "items": 24, "orders": 10, "epochs": 20, "stop": 0.05, "record": [1, 2, 4, 8, 16]}

study = Study(
    number=17,
    slug="icl-vs-gd",
    title="Prompting a language model is not training it",
    paper=Paper(
        "Revisiting the Hypothesis: Do pretrained Transformers Learn In-Context by Gradient Descent?",
        "Shen, Mishra, Khashabi",
        2023,
        "2310.08540",
    ),
    rooms=("inference", "probes", "models", "tasks"),
    plain="""Show a language model a few labelled examples in its prompt, and it answers the next one. Train
it on these examples instead, and it answers, too. Constructed and specially trained Transformers do the
first by means of the second: a forward pass is a step of gradient descent. The paper asks whether a model
pretrained on text does so, and finds signs that it does not: prompted answers depend on the *order* of the
examples far more than trained ones do, and put other tokens beside the answer.

Both are measured on one real model, in the same orders, with the same template, on the same items. Descent
runs in all orders at once: the model's copies share its weights and differ by their own low-rank updates.""",
    arms=(*CORE, *MORE),
    claims=CLAIMS,
    profiles={
        "quick": Profile(4, QUICK, core_seconds=330, arms=tuple(a.name for a in CORE), batch=2),
        "standard": Profile(5, STANDARD, core_seconds=3500, batch=3),
        "paper": Profile(
            10,
            {
                **STANDARD,
                "shots": 8,
                "items": 500,
                "epochs": 200,
                "record": list(range(20, 201, 20)),
                "stop": 0.0,
                "device": "auto",
            },
            core_seconds=200_000,
            batch=1,
        ),
    },
    headline=(("sen", "lower"), ("accuracy", "higher"), ("to_icl", "higher"), ("restricted", "higher")),
    batch=batch,
    data=data_version,
    figures=(
        StudyFigure(
            "sensitivity",
            "How much the order matters",
            "Order sensitivity of each arm, one dot per set of demonstrations: in-context learning, descent"
            " on all weights and on one layer, shuffled labels, and an untrained model.",
            draw_sensitivity,
            table_sensitivity,
        ),
        StudyFigure(
            "paths",
            "Can descent stand in for prompting?",
            "Paths of descent over epochs in the plane of order sensitivity, relative to in-context"
            " learning's, and token overlap with it; a shaded box, where a state would stand in for"
            " prompting, that no path enters.",
            draw_paths,
            table_paths,
        ),
        StudyFigure(
            "orders",
            "One question, several orders",
            "For one set of demonstrations, the probability of the first class for each test item in every"
            " order, prompted on the left and trained on the right.",
            draw_orders,
            table_orders,
        ),
        StudyFigure(
            "boolean",
            "Models trained to learn in context",
            "Order sensitivity of prompted and of trained answers of small models trained on Boolean"
            " conjunctions, with learned positions and without any.",
            draw_boolean,
            table_boolean,
        ),
    ),
    snippet="""from gradatim.inference import GradientPredictor, InContextPredictor
from gradatim.models import load_causal_lm
from gradatim.probes import compare
from gradatim.tasks import statements

model, tokenizer = load_causal_lm("smollm2")       # or a folder, or a Hugging Face name
task = statements("sentiment")                     # or read_text_classification("mine.tsv")
shots = task.draw(shots=4, items=6, seed=0)
icl = InContextPredictor(model, tokenizer, task.template, task.words).fit(shots.texts, shots.labels)
sgd = GradientPredictor(model, tokenizer, task.template, task.words, scope="value:22", lr=1.0, epochs=4)
sgd.fit(shots.texts, shots.labels)                 # the weights come back as they were
print(compare(icl, sgd, shots.test_texts, shots.test_labels))
""",
    notes="""- The language model is SmolLM2-135M-Instruct with 4-bit weights unless `--model` names another:
  instruction-tuned and small, not one of the paper's base models. The sentences are our own; name a file of
  yours in GRADATIM_TEXT_DATA.
- The rate decides how much SGD depends on the order: just below the rate at which training becomes unstable,
  some orders no longer fit their demonstrations, and its sensitivity exceeds that of the prompt. Claims are
  judged at a rate at which every order fits.
- The ten likeliest tokens are mostly tokens of hardly any probability. The cosine that weighs tokens by their
  probability (`union_icl` beside `union_self`) sees far less of a difference than the count of tokens.
- A model without positional encoding depends on the order as well: the causal mask alone lets a demonstration
  see those before it. Order sensitivity does not tell learning rules apart; it tells symmetric from
  asymmetric ones.
- An untrained model is sensitive to the order, too, though none of it lies on the words to answer with
  (`sen_on_labels`): summed over the vocabulary, small changes everywhere add up. And the labels of the
  demonstrations hardly matter to this model's prompted answers (`icl-shuffled`).
- Full-batch descent has no order at all, whatever the model: only sequential steps are a fair opponent.""",
)
