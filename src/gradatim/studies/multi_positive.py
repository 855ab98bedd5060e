"""Paper 10: several positive passages per query, and six ways to use them.

Wang, Tang, Zhang, Guo and Bi, "Training Dense Retrievers with Multiple Positive Passages", 2026,
arXiv 2602.12727.

Real encoder, real text: MiniLM embeddings of the docstrings of numpy, scipy and scikit-learn, one linear
head trained per arm. Every objective is judged at its own best temperature, chosen on queries that are
never tested on. The standard profile adds the last two layers of the encoder, through the library's
trainer; the paper profile fine-tunes all of it on a folder in BEIR layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

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
)
from gradatim.models.text_encoder import EncoderUnavailableError, check_text_encoder, encoder_digest
from gradatim.studies.multi_positive_figures import FIGURES
from gradatim.studies.multi_positive_head import (
    REGIMES,
    Recipe,
    bench,
    evaluate,
    freeze,
    pull_by_rank,
    train_head,
    tuned,
)
from gradatim.tasks.retrieval import RetrievalScores

RECALL = "recall@10"
SEVERAL = ("joint-lh", "sum-marg-lh", "lse-pair", "rand1-lh", "expected-rand1-lh")


def run_batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> Iterator[Outcome]:
    """One arm: choose its temperature once, then train and test it for every seed."""
    check_text_encoder(scale["model"])
    if arm.settings["where"] == "trainer":
        yield from (trainer_outcome(arm, seed, scale) for seed in seeds)
        return
    if arm.settings["where"] == "untrained":
        yield from (untrained_outcome(scale) for _ in seeds)
        return
    b = bench(scale["model"])
    recipe = recipe_of(arm)
    best, dev_recalls = tuned(recipe, freeze(scale))
    for seed in seeds:
        found = evaluate(b, train_head(b, recipe, best, seed, scale), b.test)
        metrics = {**found.means(), "scale": best}
        dev = Curve(list(scale["scales"]), list(dev_recalls), "scale", "recall@10 on dev queries")
        curves = {"scale": dev, "queries": by_query(found)}
        if recipe.known == "all":
            shares, false_share = pull_by_rank(b, recipe, best, seed, scale)
            curves["pull"] = Curve(
                list(range(1, len(shares) + 1)), shares.tolist(), "rank of the positive", "share of the pull"
            )
            metrics["pull_weakest"] = float(shares[-1])
            if REGIMES[recipe.regime].rho:
                metrics["pull_false"] = false_share
        yield Outcome(metrics, curves)


def by_query(found: RetrievalScores) -> Curve:
    """Recall of every test query, for intervals over queries."""
    recalls = found.per_query[RECALL].round(4).tolist()
    return Curve(list(range(len(recalls))), recalls, "test query", RECALL)


def recipe_of(arm: Arm) -> Recipe:
    """The objective, annotator and knowledge that an arm's settings name."""
    return Recipe(str(arm.settings["objective"]), str(arm.settings["regime"]), arm.settings["known"])


def untrained_outcome(scale: Scale) -> Outcome:
    """The encoder as it comes; no seed changes it."""
    import torch

    b = bench(scale["model"])
    found = evaluate(b, torch.eye(b.passages.shape[1]), b.test)
    return Outcome(found.means(), {"queries": by_query(found)})


def trainer_outcome(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """The encoder itself trained with an objective, at the temperature that the head found best."""
    from gradatim.studies import multi_positive_trainer as real

    objective = str(arm.settings["objective"])
    if scale["trainer"]["similarity"] == "dot":
        return Outcome(
            real.train_encoder(real.beir_material(real.data_folder(scale)), objective, scale, seed, 1.0)
        )
    known: Any = "gold" if objective == "infonce" else "all"
    best, _ = tuned(Recipe(objective, "clean", known), freeze(scale))
    material = real.docstring_material(scale["model"], seed)
    return Outcome(real.train_encoder(material, objective, scale, seed, best))


def data_version(scale: Scale) -> str:
    """The corpus is a function of three packages' versions; the vectors also of the encoder's weights."""
    packages = [f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn")]
    try:
        encoder = encoder_digest(str(scale["model"]))[:16]
    except EncoderUnavailableError:
        encoder = "absent"  # listing studies must not fail; the trials say what to install
    return "; ".join([*packages, encoder])


# --- Arms --------------------------------------------------------------------------------------------------


def _head(regime: str, objective: str, known: str = "all", role: Any = "method") -> Arm:
    name = objective + ("-masked" if known == "gold, rest masked" else "")
    settings = {"where": "head", "regime": regime, "objective": objective, "known": known}
    return Arm(f"{regime}/{name}", settings, role=role)


def _role(objective: str) -> Any:
    return {"rand1-lh": "baseline", "expected-rand1-lh": "control"}.get(objective, "method")


HEAD_ARMS = (
    Arm("clean/untrained", {"where": "untrained"}, role="baseline"),
    _head("clean", "infonce", "gold", "baseline"),
    *(
        _head(regime, "infonce", "gold, rest masked", "control")
        for regime in REGIMES
        if regime in ("clean", "mixed")
    ),
    *(_head(regime, objective, role=_role(objective)) for regime in REGIMES for objective in SEVERAL),
)
TRAINER_ARMS = tuple(
    Arm(
        f"encoder/{objective}",
        {"where": "trainer", "objective": objective},
        role="baseline" if objective == "infonce" else _role(objective),
    )
    for objective in ("infonce", *SEVERAL)
)


# --- Claims ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OverBest:
    """By how much an arm is above the best (by mean) of the others, seed by seed."""

    arm: str
    others: tuple[str, ...]
    metric: str = "recall@10"

    def __call__(self, results: Results) -> Mapping[int, float]:
        means = {}
        for other in self.others:
            values = results.metric(other, self.metric)
            if values:
                means[other] = sum(values.values()) / len(values)
        if len(means) < len(self.others):
            return {}
        return Contrast(self.arm, max(means, key=lambda name: means[name]), self.metric)(results)


@dataclass(frozen=True)
class MoreLost:
    """How much more recall an objective loses than another between two regimes, seed by seed."""

    objective: str
    other: str
    before: str = "clean"
    after: str = "heavy"

    def __call__(self, results: Results) -> Mapping[int, float]:
        lost = Contrast(f"{self.before}/{self.objective}", f"{self.after}/{self.objective}", "recall@10")(
            results
        )
        theirs = Contrast(f"{self.before}/{self.other}", f"{self.after}/{self.other}", "recall@10")(results)
        return {seed: lost[seed] - theirs[seed] for seed in lost if seed in theirs}


UNIT = "recall@10 (gold and links)"
EXACT = (
    "averaging does it, not the pairwise form: the exact expectation of Rand1LH (expected-rand1-lh) uses the "
    "same positives without singling one out"
)


def _rivals(regime: str) -> tuple[str, ...]:
    return tuple(f"{regime}/{name}" for name in ("joint-lh", "sum-marg-lh", "rand1-lh"))


CLAIMS = (
    Claim(
        id="several-beat-one",
        statement="LSEPair with several clean positives beats single-positive training",
        effect=Contrast("clean/lse-pair", "clean/infonce", RECALL),
        control=Control(
            "related passages only have to stop being negatives: single-positive training with them masked",
            Contrast("clean/lse-pair", "clean/infonce-masked", RECALL),
        ),
        unit=UNIT,
        paper_says="training on LLM-annotated positives improves retrieval over one positive per query",
    ),
    Claim(
        id="rand1-reliable",
        statement="Rand1LH beats single-positive training when half the labels are human, half simulated LLM",
        effect=Contrast("mixed/rand1-lh", "clean/infonce", RECALL),
        control=Control(
            "related passages only have to stop being negatives: single-positive training with them masked",
            Contrast("mixed/rand1-lh", "mixed/infonce-masked", RECALL),
        ),
        unit=UNIT,
        paper_says="Rand1LH is a reliable baseline",
    ),
    *(
        Claim(
            id=f"lse-pair-best-{regime}",
            statement=f"LSEPair beats JointLH, SumMargLH and Rand1LH ({label})",
            effect=OverBest(f"{regime}/lse-pair", _rivals(regime)),
            control=Control(EXACT, Contrast(f"{regime}/lse-pair", f"{regime}/expected-rand1-lh", RECALL)),
            unit=UNIT,
            paper_says="LSEPair is consistently the best in both regimes",
        )
        for regime, label in (("clean", "homogeneous labels, none false"), ("mixed", "heterogeneous labels"))
    ),
    Claim(
        id="lse-pair-robust",
        statement="LSEPair stays above JointLH and SumMargLH under heavy label noise (rho = 0.5)",
        effect=OverBest("heavy/lse-pair", ("heavy/joint-lh", "heavy/sum-marg-lh")),
        control=Control(EXACT, Contrast("heavy/lse-pair", "heavy/expected-rand1-lh", RECALL)),
        unit=UNIT,
        paper_says="LSEPair is the most robust; JointLH and SumMargLH depend highly on positive quality",
    ),
    Claim(
        id="joint-sensitive",
        statement="JointLH loses more to false positives than LSEPair does",
        effect=MoreLost("joint-lh", "lse-pair"),
        control=Control(
            "every objective loses that much: against what expected-rand1-lh loses",
            MoreLost("joint-lh", "expected-rand1-lh"),
        ),
        unit="recall@10 lost from clean to heavy",
        paper_says="JointLH and SumMargLH are highly sensitive to positive quality",
    ),
    Claim(
        id="sum-marg-weak",
        statement="SumMargLH is below Rand1LH (clean labels)",
        effect=Contrast("clean/rand1-lh", "clean/sum-marg-lh", RECALL),
        control=Control(
            "it is merely single-positive training: against gold alone, with the related passages masked",
            Contrast("clean/infonce-masked", "clean/sum-marg-lh", RECALL),
        ),
        unit=UNIT,
        paper_says="SumMargLH depends on positive quality; an earlier study by the same group had it "
        "above Rand1LH on MS MARCO",
    ),
    Claim(
        id="expectation-beats-draw",
        statement="the exact expectation of Rand1LH beats Rand1LH (clean labels)",
        effect=Contrast("clean/expected-rand1-lh", "clean/rand1-lh", RECALL),
        control=Control(
            "any objective that uses all positives would: against JointLH, divided by m",
            Contrast("clean/expected-rand1-lh", "clean/joint-lh", RECALL),
        ),
        unit=UNIT,
        paper_says="not in the paper: Rand1LH is a one-sample estimate of it",
    ),
    Claim(
        id="lse-pair-pulls-worst",
        statement="LSEPair puts most of its pull on the positive with the lowest score",
        effect=Level("clean/lse-pair", "pull_weakest", bound=0.5),
        control=Control(
            "every logistic loss pulls far positives harder: against expected-rand1-lh",
            Contrast("clean/lse-pair", "clean/expected-rand1-lh", "pull_weakest"),
        ),
        unit="share of the pull above one half",
        paper_says="gradient analysis: the pairwise form concentrates on hard positives",
    ),
)

_SCALE: dict[str, Any] = {
    "model": "minilm",
    "epochs": 6,
    "batch": 32,
    "passages": 8,
    "max_positives": 4,
    "lr": 1e-3,
    "scales": [5.0, 10.0, 20.0],
    "tuning_seeds": 1,
}
_PARTIAL: dict[str, Any] = {
    "similarity": "cos",
    "trainable_layers": 2,
    "tokens": 48,
    "batch": 16,
    "passages": 4,
    "max_positives": 3,
    "select": "random",
    "lr": 5e-5,
    "warmup": 0.1,
    "steps": 40,
    "epochs": 1,
}
# The example of the authors' repository: 2 GPUs x 64 queries, 8 passages, raw dot product, no temperature.
_FULL = {
    **_PARTIAL,
    "similarity": "dot",
    "trainable_layers": 0,
    "tokens": 128,
    "batch": 128,
    "passages": 8,
    "max_positives": 4,
    "select": "first",
    "lr": 3e-5,
    "steps": 0,
    "epochs": 3,
}

SNIPPET = """
import torch
from gradatim.losses import multi_positive_loss

# Two queries, five candidates; the first query has two positives.
similarity = torch.tensor([[0.8, 0.5, 0.6, 0.1, 0.0], [0.2, 0.1, 0.7, 0.6, 0.3]], requires_grad=True)
positive = torch.tensor([[True, True, False, False, False], [False, False, True, False, False]])

loss = multi_positive_loss(10 * similarity, positive, objective="expected-rand1-lh")
loss.backward()

# With sentence-transformers: columns query, doc_1 ... doc_n and a label list of 1, 0 or -1 per passage.
#   from gradatim.losses import MultiPositiveRankingLoss
#   loss = MultiPositiveRankingLoss(model, objective="lse-pair", scale=10.0)
#   SentenceTransformerTrainer(model=model, train_dataset=dataset, loss=loss).train()
"""

PLAIN = """
A search model learns from a question, a passage that answers it (a *positive*) and passages that do not.
Often several passages answer, and a language model can mark them cheaply, with mistakes. The objectives
differ in what they ask of the positives together: **JointLH** wants equal probability for each,
**SumMargLH** is content if any one wins, **LSEPair** lifts the worst one, **Rand1LH** draws one per epoch;
**ExpRand1** is the exact average of that draw.

Here a linear map on top of a real sentence encoder learns to find the documentation of numpy, scipy and
scikit-learn objects: the summary line is the question, the rest of the docstring and the objects named
under "See Also" are the positives. Labels are clean, noisy (false positives from the hard negatives), or a
mixture of human and simulated annotators.
"""

NOTES = """
The temperature decides as much as the objective: see the curves over the scale, and compare objectives only
at their own best. LSEPair lifts the worst positive, and under label noise the worst positive is often a
false one: see the share of its pull that false positives get. Related passages that nobody linked
count as irrelevant, and links are the documentation authors' choice: these are not MS MARCO results. The
encoder was trained on over a billion pairs that include public retrieval sets (code documentation among
them), which helps every arm alike. The verdicts' intervals are over seeds (labels, rows, order) for one
set of test queries; the last figure gives the intervals over queries, which are wider. Single-positive
training does not see the annotator's extra labels, so its arm is the same in all regimes and is run once.
"""

study = Study(
    number=10,
    slug="multi-positive",
    title="Training dense retrievers with multiple positive passages",
    paper=Paper(
        "Training Dense Retrievers with Multiple Positive Passages",
        "Wang, Tang, Zhang, Guo, Bi",
        2026,
        "2602.12727",
    ),
    plain=PLAIN,
    snippet=SNIPPET,
    notes=NOTES,
    rooms=("losses", "tasks", "models"),
    arms=(*HEAD_ARMS, *TRAINER_ARMS),
    claims=CLAIMS,
    batch=run_batch,
    data=data_version,
    figures=FIGURES,
    headline=((RECALL, "higher"), ("mrr@10", "higher"), ("ndcg@10", "higher")),
    profiles={
        "quick": Profile(
            seeds=5,
            scale=_SCALE,
            core_seconds=260,
            arms=tuple(arm.name for arm in HEAD_ARMS),
            batch=5,
        ),
        "standard": Profile(
            seeds=4,
            scale={
                **_SCALE,
                "scales": [5.0, 10.0, 20.0, 40.0],
                "tuning_seeds": 2,
                "trainer": {**_PARTIAL},
            },
            core_seconds=2900,
            arms=tuple(arm.name for arm in (*HEAD_ARMS, *TRAINER_ARMS) if arm.name != "encoder/sum-marg-lh"),
            batch=4,
        ),
        "paper": Profile(
            seeds=3,
            scale={**_SCALE, "data": None, "trainer": _FULL},
            core_seconds=1_000_000,
            arms=tuple(arm.name for arm in TRAINER_ARMS),
            batch=1,
        ),
    },
)
