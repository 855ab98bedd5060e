"""Paper 16: binary paragraph vectors, and skip-gram with several senses per word.

Grzegorczyk, "Vector representations of text data in deep learning", 2019, arXiv 1901.01695; it joins "Binary
Paragraph Vectors" (arXiv 1611.01116) and "Disambiguated skip-gram model" (EMNLP 2018).

Real text that is on every machine: docstrings, whose module is their topic. Part A asks whether codes learned
from text beat codes made from real vectors; part B merges pairs of words and asks who tells them apart again.
The paper's profile reads a folder of texts per topic (20 Newsgroups, RCV1) that the user supplies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradatim.bench import Arm, Claim, Contrast, Control, Level, Paper, Profile, Results, Study
from gradatim.studies.text_vectors_figures import BITS, FIGURES
from gradatim.studies.text_vectors_trials import data_version, run_trial

MAP, NDCG, ARI = "map", "ndcg@10", "ari"


def _code_arms(bits: int) -> tuple[Arm, ...]:
    def arm(name: str, role: Any, **settings: Any) -> Arm:
        own = {"part": "codes", "bits": bits, "recipe": name, **settings}
        return Arm(f"codes/{name}-{bits}", own, role=role)

    return (
        arm("bpv", "method", kind="binary"),
        arm("bpv-smooth", "control", kind="binary", rounding="none"),
        arm("real-binary", "method", kind="binary", real_dim=32),
        arm("pv-lsh", "baseline", kind="paragraph-hash", hash="lsh"),
        arm("pv-sign", "baseline", kind="paragraph-hash", hash="sign"),
        arm("pv-median", "baseline", kind="paragraph-hash", hash="median"),
        arm("pv-itq", "control", kind="paragraph-hash", hash="itq"),
        arm("lsa-itq", "control", kind="lsa"),
        arm("autoencoder", "baseline", kind="autoencoder"),
    )


CEILINGS = (
    Arm("codes/pv-cosine", {"part": "codes", "kind": "cosine", "recipe": "pv-cosine"}, role="baseline"),
    Arm("codes/tfidf-cosine", {"part": "codes", "kind": "tfidf"}, role="baseline"),
)


def _sense_arm(name: str, role: Any, kind: str = "senses", **options: Any) -> Arm:
    return Arm(f"senses/{name}", {"part": "senses", "kind": kind, "options": options}, role=role)


SENSE_ARMS = (
    _sense_arm("dsg", "method"),
    _sense_arm("dsg-stage1", "control", epochs=0, warm_epochs=6),
    _sense_arm("dsg-no-entropy", "control", entropy=0.0, final_entropy=0.0),
    _sense_arm("mssg", "baseline", assignment="hard"),
    _sense_arm("kmeans", "control", kind="kmeans"),
    _sense_arm("one-sense", "baseline", kind="one"),
)
CODE_ARMS = tuple(arm for bits in BITS for arm in _code_arms(bits))
# Signs against medians differ little from signs; they wait for the larger profiles.
QUICK_ARMS = tuple(a for a in (*_code_arms(32), *CEILINGS, *SENSE_ARMS) if "pv-median" not in a.name)


@dataclass(frozen=True)
class Within:
    """How far one metric of an arm stays above another of it, seed by seed."""

    arm: str
    metric: str
    other: str

    def __call__(self, results: Results) -> dict[int, float]:
        ours, theirs = results.metric(self.arm, self.metric), results.metric(self.arm, self.other)
        return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


CLAIMS = (
    Claim(
        id="codes-beat-hashing",
        statement="32-bit binary paragraph vectors beat random hyperplanes on real paragraph vectors",
        effect=Contrast("codes/bpv-32", "codes/pv-lsh-32", MAP),
        control=Control(
            "a rotation learned on the same real vectors does as well: against PV + ITQ",
            Contrast("codes/bpv-32", "codes/pv-itq-32", MAP),
        ),
        unit="MAP",
        paper_says="codes learned from text beat hashing of real vectors",
    ),
    Claim(
        id="codes-beat-autoencoder",
        statement="32-bit binary paragraph vectors beat 32-bit codes of a deep autoencoder",
        effect=Contrast("codes/bpv-32", "codes/autoencoder-32", MAP),
        control=Control(
            "a linear code of the same counts does as well: against LSA + ITQ",
            Contrast("codes/bpv-32", "codes/lsa-itq-32", MAP),
        ),
        unit="MAP",
        paper_says="better retrieval than semantic hashing, with fewer bits",
    ),
    Claim(
        id="fewer-bits",
        statement="32-bit binary paragraph vectors beat 128-bit codes of a deep autoencoder",
        effect=Contrast("codes/bpv-32", "codes/autoencoder-128", MAP),
        control=Control(
            "a linear code does so too: against LSA + ITQ of 32 bits",
            Contrast("codes/bpv-32", "codes/lsa-itq-32", MAP),
        ),
        unit="MAP",
        paper_says="with fewer bits: 32 against 128",
        profiles=("standard", "paper"),
    ),
    Claim(
        id="bits-in-training",
        statement="bits learned in place beat the signs of real paragraph vectors (32 bits)",
        effect=Contrast("codes/bpv-32", "codes/pv-sign-32", MAP),
        control=Control(
            "the sigmoid does it, not the rounding: against the unrounded twin",
            Contrast("codes/bpv-32", "codes/bpv-smooth-32", MAP),
        ),
        unit="MAP",
        paper_says="rounding in the forward pass makes training codes binary",
    ),
    Claim(
        id="filter-then-rank",
        statement="real vectors of Real-Binary rank the codes' hundred best better than the codes do",
        effect=Within("codes/real-binary-32", "reranked ndcg@10", NDCG),
        control=Control(
            "the codes lose what the real vectors gain: equal to cosine over everything within 0.02",
            Within("codes/real-binary-32", "reranked ndcg@10", "cosine ndcg@10"),
            test="equivalent",
            margin=0.02,
        ),
        unit="NDCG@10",
        paper_says="codes filter, real vectors rank",
    ),
    Claim(
        id="senses-beat-clusters",
        statement="the disambiguated skip-gram tells merged words apart better than hard clusters (MSSG)",
        effect=Contrast("senses/dsg", "senses/mssg", ARI),
        control=Control(
            "its contexts alone hold that much: against k-means on them, given the true number",
            Contrast("senses/dsg", "senses/kmeans", ARI),
        ),
        unit="adjusted Rand index",
        paper_says="above AdaGram and MSSG on three of four word sense induction sets",
    ),
    Claim(
        id="senses-found",
        statement="the disambiguated skip-gram finds senses better than one sense does (ARI above 0)",
        effect=Level("senses/dsg", ARI, 0.0),
        control=Control(
            "the shared classifier of stage 1 finds them: against stage 1 alone",
            Contrast("senses/dsg", "senses/dsg-stage1", ARI),
        ),
        unit="adjusted Rand index",
        paper_says="multi-sense embeddings, differentiable in all parameters",
    ),
    Claim(
        id="entropy-reward",
        statement="rewarding entropy in stage 1 keeps senses from collapsing",
        effect=Contrast("senses/dsg", "senses/dsg-no-entropy", "senses in use"),
        control=Control(
            "what is kept is of no use: the difference in adjusted Rand index",
            Contrast("senses/dsg", "senses/dsg-no-entropy", ARI),
        ),
        unit="senses in use",
        paper_says="a negative entropy cost in stage 1",
    ),
)

_SCALE: dict[str, Any] = {
    "packages": ["numpy", "scipy", "sklearn", "torch"],
    "least_documents": 60,
    "queries": 400,
    "paragraphs": {"min_count": 5, "epochs": 40},
    # Thirty-two recipes were tried for each, on tuning seeds: see text_vectors_tuning.
    "recipes": {
        "bpv": {"lr": 0.001, "doc_lr": 2.0, "sample": 1e-4, "min_lr": 1e-5},
        "bpv-smooth": {"lr": 0.001, "doc_lr": 10.0, "sample": 1e-4, "min_lr": 1e-5},
        "real-binary": {"lr": 0.01, "doc_lr": 0.025, "sample": 1e-4, "dropout": 0.1},
        "pv-lsh": {"lr": 0.005, "doc_lr": 0.01, "sample": 1e-4, "real": 100},
        "pv-sign": {"lr": 0.005, "doc_lr": 0.02, "sample": 1e-4},
        "pv-median": {"lr": 0.005, "doc_lr": 0.01, "sample": 1e-4},
        "pv-itq": {"lr": 0.01, "doc_lr": 0.01, "sample": 1e-4, "real": 200},
        "pv-cosine": {"lr": 0.01, "doc_lr": 0.01, "sample": 1e-4, "real": 200},
        "lsa-itq": {"dim": 64, "sublinear_tf": True, "use_idf": True},
        "autoencoder": {"words": 500, "hidden": 128, "lr": 5e-3, "epochs": 40, "noise": 0.7},
    },
    # More bits than a document has words ask for more of it.
    "dropouts": {"32": 0.1, "64": 0.2, "128": 0.3},
    "pairs": 20,
    "counts": [150, 1500],
    "senses": {
        "n_senses": 2,
        "n_components": 50,
        "window": 5,
        "warm_epochs": 2,
        "epochs": 10,
        "classifier_lr": 0.025,
    },
    "skip_gram": {"n_components": 50, "window": 5, "epochs": 5},
}
_STANDARD: dict[str, Any] = {
    **_SCALE,
    "packages": ["numpy", "scipy", "sklearn", "torch", "sympy", "networkx", "pandas"],
    "queries": 600,
    "pairs": 40,
    "counts": [200, 1500],
    "senses": {**_SCALE["senses"], "epochs": 20},
}

SNIPPET = """
from gradatim.inference import HammingIndex
from gradatim.models import ParagraphVector

texts = ["sort the rows of an array", "the mean of an array along an axis", "sort rows by a key"] * 20
model = ParagraphVector(n_components=32, binary=True, min_count=1, random_state=0).fit(texts)

index = HammingIndex(model.codes_)
distances, rows = index.query(model.encode(["sort an array"]), k=5)
"""

PLAIN = """
A paragraph vector is trained to predict the words of its document. A **binary paragraph vector** goes through
a sigmoid that is rounded to 0 or 1 on the way, so that the vector is a code of, say, 32 bits, and documents
are found by counting differing bits. **Real-Binary** learns a real vector and a projection to bits together:
bits find a short list, real vectors order it. The **disambiguated skip-gram** gives each word several vectors
and a small classifier that picks one by the words around, trained together through noisy (Gumbel) choices.

Documents here are docstrings of numpy, scipy, scikit-learn and torch, relevant what comes from the same
module. For senses, pairs of unrelated words are merged into one token and have to be told apart again.
"""

NOTES = """
The recipe decides more than the method: a document's step has to be far above the words', and a small word
step with many passes and strong sub-sampling lifts every arm. **Every family was tuned alike**: sixteen
recipes on a coarse grid, then sixteen around the winner, by mean average precision at 32 bits on two tuning
seeds, forty passes for all that make passes. Queries are never trained on; their codes are inferred.
Tied distances count with the mean over all their orders. Pseudo-words are unrelated words: easier than real
senses, and k-means is told the true number. The paper's own corpora are a hundred to a thousand times larger.
Intervals are over seeds, which draw queries, training and pseudo-words anew.
"""

study = Study(
    number=16,
    slug="text-vectors",
    title="Binary paragraph vectors and words with several senses",
    paper=Paper("Vector representations of text data in deep learning", "Grzegorczyk", 2019, "1901.01695"),
    plain=PLAIN,
    snippet=SNIPPET,
    notes=NOTES,
    rooms=("models", "inference", "tasks"),
    arms=(*CODE_ARMS, *CEILINGS, *SENSE_ARMS),
    claims=CLAIMS,
    trial=run_trial,
    data=data_version,
    figures=FIGURES,
    headline=((MAP, "higher"), (NDCG, "higher"), (ARI, "higher")),
    profiles={
        "quick": Profile(seeds=7, scale=_SCALE, core_seconds=270, arms=tuple(arm.name for arm in QUICK_ARMS)),
        "standard": Profile(seeds=5, scale=_STANDARD, core_seconds=5000),
        "paper": Profile(
            seeds=3,
            scale={**_STANDARD, "packages": None},
            core_seconds=200_000,
        ),
    },
)
