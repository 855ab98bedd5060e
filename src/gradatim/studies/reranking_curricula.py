"""Paper 08: re-rankers trained easy examples first.

MacAvaney, Nardini, Perego, Tonellotto, Goharian and Frieder, "Training Curricula for Open Domain Answer
Re-Ranking", SIGIR 2020, arXiv 2004.14269.

Real text, real first stage: BM25 over the docstrings of numpy, scipy and scikit-learn, a small ranker on
frozen MiniLM embeddings. Judgements are the true ones, or half of them are wrong. The standard profile adds
ConvKNRM and a cross-encoder; the paper profile trains on a folder in BEIR layout.
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
    Outcome,
    Paper,
    Profile,
    Results,
    Scale,
    Study,
)
from gradatim.models.text_encoder import EncoderUnavailableError, check_text_encoder, encoder_digest
from gradatim.studies.reranking_figures import FIGURES
from gradatim.studies.reranking_ranker import Recipe, first_stage_ranks, mrr, precision, train_ranker


def run_batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> Iterator[Outcome]:
    """One arm, seed by seed; the bench is made once per process."""
    check_text_encoder(str(scale["model"]))
    yield from (outcome(arm, seed, scale) for seed in seeds)


def outcome(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """What an arm's settings ask for."""
    where = arm.settings["where"]
    if where == "first stage":
        return first_stage_outcome(str(arm.settings["by"]), scale)
    recipe = recipe_of(arm, scale)
    if where == "ranker":
        return ranker_outcome(recipe, seed, scale)
    from gradatim.studies import reranking_models as text

    if where == "conv-knrm":
        return text.conv_knrm_outcome(recipe, seed, scale)
    if where == "cross-encoder":
        return text.cross_encoder_outcome(recipe, seed, scale)
    return text.beir_outcome(str(arm.settings["ranker"]), recipe, seed, scale)


def recipe_of(arm: Arm, scale: Scale) -> Recipe:
    """The recipe that an arm's settings name; the scale says where its curriculum ends, unless they do."""
    settings = {k: v for k, v in arm.settings.items() if k not in ("where", "ranker")}
    return Recipe(**{"end": int(scale["end"]), **settings})


def ranker_outcome(recipe: Recipe, seed: int, scale: Scale) -> Outcome:
    """Trains the small ranker: area under the curve's first part, last and best-validated iteration."""
    course = train_ranker(recipe, seed, scale)
    curves = {"mrr": mrr(course.test).tolist(), "p1": precision(course.test).tolist()}
    validation = mrr(course.validation).tolist()
    best = max(range(len(validation)), key=lambda i: validation[i])
    metrics = {"best_iteration": float(best + 1), **course.shares}
    for name, values in curves.items():
        early = values[: int(scale["end"])]
        metrics |= {
            f"area_{name}": sum(early) / len(early),
            f"final_{name}": values[-1],
            f"best_{name}": values[best],
        }
    x = list(range(1, len(validation) + 1))
    labels = {"mrr": "MRR@10", "p1": "P@1"}
    return Outcome(metrics, {name: Curve(x, y, "iteration", labels[name]) for name, y in curves.items()})


def first_stage_outcome(by: str, scale: Scale) -> Outcome:
    """BM25's order, or the frozen encoder's; no seed changes them."""
    ranks = first_stage_ranks(scale, by)
    values = {"mrr": float(mrr(ranks)), "p1": float(precision(ranks))}
    parts = ("area", "final", "best")
    return Outcome({f"{part}_{name}": value for name, value in values.items() for part in parts})


def data_version(scale: Scale) -> str:
    """The corpus is a function of three packages' versions; the vectors also of the encoder's weights."""
    packages = [f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn")]
    try:
        encoder = encoder_digest(str(scale["model"]))[:16]
    except EncoderUnavailableError:
        encoder = "absent"  # listing studies must not fail; the trials say what to install
    return "; ".join([*packages, encoder])


# --- Arms --------------------------------------------------------------------------------------------------

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "recip": {"heuristic": "recip"},
    "norm": {"heuristic": "norm"},
    "kde": {"heuristic": "kde"},
    "norm-kept": {"heuristic": "norm", "end": 0},
    "norm-anti": {"heuristic": "norm", "anti": True},
    "norm-batch": {"heuristic": "norm", "weighting": "batch"},
    "norm-mean1": {"heuristic": "norm", "normalize": True},
    "norm-shuffled": {"heuristic": "norm", "shuffled": True},
}
_CONTROLS = ("norm-anti", "norm-batch", "norm-mean1", "norm-shuffled")
LOSSES = {"pair": "pairwise", "point": "pointwise"}
CLEAN, NOISY = 0.0, 0.5


def _arm(where: str, loss: str, rho: float, variant: str, prefix: str = "", **more: Any) -> Arm:
    role: Any = "baseline" if variant == "none" else "control" if variant in _CONTROLS else "method"
    settings = {"where": where, "loss": loss, "rho": rho, **VARIANTS[variant], **more}
    return Arm(f"{prefix}{loss}-{rho:g}/{variant}", settings, role=role)


FIRST_STAGE = tuple(
    Arm(f"first stage/{by}", {"where": "first stage", "by": by}, role="baseline") for by in ("bm25", "cosine")
)
# On true labels these two answer no claim.
_NOISY_ALONE = ("norm-mean1", "norm-shuffled")
RANKER_ARMS = tuple(
    _arm("ranker", loss, rho, variant)
    for loss in LOSSES
    for rho in (CLEAN, NOISY)
    for variant in VARIANTS
    if rho == NOISY or variant not in _NOISY_ALONE
)
HALF_ARMS = tuple(_arm("ranker", loss, 0.25, variant) for loss in LOSSES for variant in VARIANTS)
ENDS = (2, 10, 20)
END_ARMS = tuple(
    Arm(
        f"{loss}-{NOISY:g}/norm-m{end}",
        {"where": "ranker", "loss": loss, "rho": NOISY, "heuristic": "norm", "end": end},
    )
    for loss in LOSSES
    for end in ENDS
)
KNRM_ARMS = tuple(
    _arm("conv-knrm", "pair", NOISY, variant, "knrm-")
    for variant in ("none", "norm", "norm-kept", "norm-anti")
)
CROSS_ARMS = tuple(_arm("cross-encoder", "pair", NOISY, variant, "cross-") for variant in ("none", "norm"))
COLLECTION_ARMS = tuple(
    Arm(
        f"collection-{ranker}-{loss}/{variant}",
        {"where": "collection", "ranker": ranker, "loss": loss, "rho": CLEAN, **VARIANTS[variant]},
        role="baseline" if variant == "none" else "method",
    )
    for ranker, loss in (("conv-knrm", "pair"), ("bert", "point"), ("bert", "pair"))
    for variant in ("none", "recip", "norm", "kde")
)


# --- Claims ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BestOf:
    """The gain of the heuristic with the highest mean over training without a curriculum, seed by seed."""

    group: str
    metric: str

    def __call__(self, results: Results) -> Mapping[int, float]:
        gains = {
            name: Contrast(f"{self.group}/{name}", f"{self.group}/none", self.metric, relative=True)(results)
            for name in ("recip", "norm", "kde")
        }
        if not all(gains.values()):
            return {}
        return max(gains.values(), key=lambda seeds: sum(seeds.values()) / len(seeds))


HERE = ("quick", "standard")
EARLY = "MRR@10, mean of the iterations before the curriculum ends"
AT_BEST = "relative gain in {} at the best-validated iteration"
SMALLEST = 0.003  # in MRR@10: half a percent of what these rankers reach
SMALLEST_SHARE = 0.005
SHUFFLED = "any unequal weights do it: the same weights dealt out to other examples"
UP_TO = "up to +4% MRR and +9% P@1 over the same ranker without a curriculum (BERT, best configuration)"


def _claims(loss: str) -> tuple[Claim, ...]:
    noisy, clean, name = f"{loss}-{NOISY:g}", f"{loss}-{CLEAN:g}", LOSSES[loss]
    return (
        Claim(
            id=f"early-{loss}",
            statement=f"easy examples first learns faster ({name} loss, norm, half of the labels wrong)",
            effect=Contrast(f"{noisy}/norm", f"{noisy}/none", "area_mrr"),
            control=Control(SHUFFLED, Contrast(f"{noisy}/norm", f"{noisy}/norm-shuffled", "area_mrr")),
            unit=EARLY,
            margin=SMALLEST,
            paper_says="down-weighting difficult samples early improves both rankers with both kinds of loss",
            profiles=HERE,
        ),
        Claim(
            id=f"anti-{loss}",
            statement=f"hard examples first learns slower ({name} loss, half of the labels wrong)",
            effect=Contrast(f"{noisy}/none", f"{noisy}/norm-anti", "area_mrr"),
            control=Control(
                "any unequal weights slow training: against the same amount of weights, dealt out at random",
                Contrast(f"{noisy}/norm-shuffled", f"{noisy}/norm-anti", "area_mrr"),
            ),
            unit=EARLY,
            margin=SMALLEST,
            paper_says="the order is what matters: the curriculum must go from easy to difficult",
            profiles=HERE,
        ),
        Claim(
            id=f"gain-clean-{loss}",
            statement=f"a trained ranker is better for the curriculum (best heuristic, {name}, labels true)",
            effect=BestOf(clean, "best_mrr"),
            control=Control(
                "so it is with one common weight per batch, as the published code has it",
                Contrast(f"{clean}/norm", f"{clean}/norm-batch", "best_mrr", relative=True),
            ),
            unit=AT_BEST.format("MRR@10"),
            margin=SMALLEST_SHARE,
            paper_says=UP_TO,
            profiles=HERE,
        ),
        Claim(
            id=f"gain-noisy-{loss}",
            statement=f"a trained ranker is better for the curriculum (best heuristic, {name}, half wrong)",
            effect=BestOf(noisy, "best_mrr"),
            control=Control(
                "weights that never fade do it: fading them adds nothing",
                Contrast(f"{noisy}/norm", f"{noisy}/norm-kept", "best_mrr", relative=True),
            ),
            unit=AT_BEST.format("MRR@10"),
            margin=SMALLEST_SHARE,
            paper_says=UP_TO,
            profiles=HERE,
        ),
        Claim(
            id=f"kept-{loss}",
            statement=f"weights that never fade end higher than weights that do ({name}, half of them wrong)",
            effect=Contrast(f"{noisy}/norm-kept", f"{noisy}/norm", "final_mrr"),
            control=Control(
                "fading weights end below no curriculum at all: against training without one",
                Contrast(f"{noisy}/norm-kept", f"{noisy}/none", "final_mrr"),
            ),
            unit="MRR@10 after the last iteration",
            margin=SMALLEST,
            paper_says="not in the paper, which fades the weights to 1",
            profiles=HERE,
        ),
        Claim(
            id=f"sample-{loss}",
            statement=f"a weight per sample beats the batch's mean weight ({name}, half of the labels wrong)",
            effect=Contrast(f"{noisy}/norm", f"{noisy}/norm-batch", "area_mrr"),
            control=Control(
                "smaller losses do it, not their distribution: weights of mean 1 against no curriculum",
                Contrast(f"{noisy}/norm-mean1", f"{noisy}/none", "area_mrr"),
            ),
            unit=EARLY,
            margin=SMALLEST,
            paper_says="not compared: the formula weighs samples, the published code the batch",
            profiles=HERE,
        ),
    )


TOP = Claim(
    id="gain-top",
    statement="the curriculum puts more right documents first (best heuristic, pairwise, half wrong)",
    effect=BestOf(f"pair-{NOISY:g}", "best_p1"),
    control=Control(
        "weights that never fade do it: fading them adds nothing",
        Contrast(f"pair-{NOISY:g}/norm", f"pair-{NOISY:g}/norm-kept", "best_p1", relative=True),
    ),
    unit=AT_BEST.format("P@1"),
    margin=SMALLEST_SHARE,
    paper_says=UP_TO,
    profiles=HERE,
)
KNRM = Claim(
    id="early-knrm",
    statement="easy examples first learns faster (ConvKNRM, pairwise, norm, half of the labels wrong)",
    effect=Contrast(f"knrm-pair-{NOISY:g}/norm", f"knrm-pair-{NOISY:g}/none", "area_mrr"),
    control=Control(
        "hard examples first would do as well",
        Contrast(f"knrm-pair-{NOISY:g}/norm", f"knrm-pair-{NOISY:g}/norm-anti", "area_mrr"),
    ),
    unit=EARLY,
    margin=SMALLEST,
    paper_says="ConvKNRM improves on all three collections",
    profiles=("standard",),
)
COLLECTION = tuple(
    Claim(
        id=f"collection-{metric}",
        statement=f"BERT with a pairwise loss gains {label} from its best curriculum",
        effect=BestOf("collection-bert-pair", f"best_{metric}"),
        control=Control(
            "the heuristics do not matter: norm against kde",
            Contrast(
                "collection-bert-pair/norm", "collection-bert-pair/kde", f"best_{metric}", relative=True
            ),
        ),
        unit=f"relative gain in {label}",
        paper=paper,
        paper_says=UP_TO,
        profiles=("paper",),
    )
    for metric, label, paper in (("mrr", "MRR@10", 0.04), ("p1", "P@1", 0.09))
)
CLAIMS = (*_claims("pair"), *_claims("point"), TOP, KNRM, *COLLECTION)

_SCALE: dict[str, Any] = {
    "model": "minilm",
    "batch": 16,
    "steps": 16,
    "iterations": 10,
    "end": 5,
    "lr": 1e-3,
    "test_queries": 400,
    "test_top": 30,
    "validation_queries": 150,
    "validation_top": 20,
}
_KNRM: dict[str, Any] = {
    "dim": 32,
    "filters": 32,
    "query_tokens": 12,
    "doc_tokens": 48,
    "lr": 3e-3,
    "batch": 16,
    "steps": 32,
    "iterations": 6,
    "end": 3,
    "test_queries": 100,
    "test_top": 30,
}
_CROSS: dict[str, Any] = {
    "tokens": 64,
    "trainable_layers": 2,
    "lr": 1e-3,
    "batch": 8,
    "steps": 15,
    "iterations": 3,
    "end": 2,
    "test_queries": 40,
    "test_top": 10,
}
# The settings of the authors' configurations where they are known.
_COLLECTION: dict[str, Any] = {
    "encoder": "bert-base-uncased",
    "dim": 300,
    "tokens": 512,
    "train_queries": 20_000,
    "validation_queries": 200,
    "depth": 100,
    "test_top": 100,
    "lr": 1e-3,
    "encoder_lr": 2e-5,
    "batch": 16,
    "steps": 32,
    "iterations": 100,
    "end": 20,
}

SNIPPET = """
import torch
from gradatim.curricula import KDEScore, LinearCurriculum, pairwise_difficulty

# BM25 scores of one query's documents; the first is relevant, the third is not.
height = KDEScore()(torch.tensor([9.1, 7.4, 3.0, 2.2, 0.5]))
difficulty = pairwise_difficulty(height[:1], height[2:3, None])

curriculum = LinearCurriculum(end=20)  # iterations of 512 samples
score = torch.tensor([[0.3, 0.1]], requires_grad=True)
losses = torch.sigmoid(score[:, 1] - score[:, 0])  # any loss per example
weight = curriculum.weight(difficulty, position=1_024)  # samples seen so far
(losses * weight).mean().backward()

# With sentence-transformers: columns query, positive, negative and label (the difficulty).
#   loss = PairwiseCurriculumLoss(model, curriculum=curriculum)
#   CrossEncoderTrainer(model, args, dataset, loss=loss, callbacks=[CurriculumCallback(loss)]).train()
"""

PLAIN = """
A search engine often works in two stages: a fast method such as BM25 fetches a hundred candidates, a slower
learned *re-ranker* puts them in order. The re-ranker learns from pairs of a right and a wrong document. Some
pairs are easy, because the fast method already has them in the right order; others are hard, or simply
mislabelled. The **curriculum** gives easy pairs more weight at first and lets the weights fade to equal ones.

Three ways to tell from BM25 how high a document stands: `recip` (one over its rank), `norm` (its score
between the lowest and the highest) and `kde` (the share of the candidates it beats, smoothed). The controls:
hard pairs first (`anti`), weights that never fade (`kept`), the same weights dealt out at random
(`shuffled`), one weight per batch as the published code has it (`batch`), and weights of mean 1 (`mean1`).
"""

NOTES = """
The re-ranker is small and reads frozen embeddings; what holds for it need not hold for BERT on MS MARCO. With
rho = 0.5 half of the training queries have a random candidate marked as right, for all of training: the
setting in which BM25 knows something that the labels do not. Every arm of a seed has the same initial weights
and the same pairs. The area is the mean MRR@10 over the iterations in which the curriculum is at work; the
best iteration is chosen on other queries. Pointwise training without a curriculum first learns to say 0 to
everything; weights that favour one class change that, and the shuffled control shows how much of the effect
it is. Intervals are over seeds for one set of test queries.
"""

study = Study(
    number=8,
    slug="reranking-curricula",
    title="Training curricula for re-ranking",
    paper=Paper(
        "Training Curricula for Open Domain Answer Re-Ranking",
        "MacAvaney, Nardini, Perego, Tonellotto, Goharian, Frieder",
        2020,
        "2004.14269",
    ),
    plain=PLAIN,
    snippet=SNIPPET,
    notes=NOTES,
    rooms=("curricula", "losses", "models"),
    arms=(*FIRST_STAGE, *RANKER_ARMS, *HALF_ARMS, *END_ARMS, *KNRM_ARMS, *CROSS_ARMS, *COLLECTION_ARMS),
    claims=CLAIMS,
    batch=run_batch,
    data=data_version,
    figures=FIGURES,
    headline=(("area_mrr", "higher"), ("best_mrr", "higher"), ("best_p1", "higher")),
    profiles={
        "quick": Profile(
            seeds=12,
            scale=_SCALE,
            core_seconds=240,
            arms=tuple(arm.name for arm in (*FIRST_STAGE, *RANKER_ARMS)),
            batch=12,
        ),
        "standard": Profile(
            seeds=16,
            scale={
                **_SCALE,
                "iterations": 24,
                "test_queries": 800,
                "conv_knrm": _KNRM,
                "cross_encoder": _CROSS,
            },
            core_seconds=3500,
            arms=tuple(
                arm.name
                for arm in (*FIRST_STAGE, *RANKER_ARMS, *HALF_ARMS, *END_ARMS, *KNRM_ARMS, *CROSS_ARMS)
            ),
            batch=4,
        ),
        "paper": Profile(
            seeds=5,
            scale={**_SCALE, "data": None, "end": 20, "collection": _COLLECTION},
            core_seconds=1_000_000,
            arms=tuple(arm.name for arm in COLLECTION_ARMS),
            batch=1,
        ),
    },
)
