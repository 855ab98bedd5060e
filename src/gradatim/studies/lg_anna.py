"""Paper 23: hard negatives behind a margin, soft labels from a teacher, instructions with examples.

Choi, Kim, Jang, Jun, Bae, Choi, Choi, Lee and Yun, "LG-ANNA-Embedding technical report", 2025, arXiv
2506.07438.

The report trains Mistral-7B and gives no figure per ingredient; its formulas for the margin and the soft
labels are not public. What can be tested is each ingredient's direction, on clean labels and with wrong
positives
among them: a small student over the docstrings of numpy, scipy and scikit-learn, mined and taught by
MiniLM and BM25. The standard profile trains MiniLM itself, with a cross-encoder among the teachers, and the
in-context task; the paper profile a causal language model on a BEIR folder.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from gradatim.bench import Arm, Claim, Contrast, Control, Level, Outcome, Paper, Profile, Scale, Study
from gradatim.models.text_encoder import EncoderUnavailableError, check_text_encoder, encoder_digest
from gradatim.studies.lg_anna_figures import FIGURES

MRR = "mrr@10"
NOISE = {"clean": 0.0, "noisy": 0.4}


def trial(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """One arm and seed: annotate, mine, train, and rank the test queries over the whole corpus."""
    check_text_encoder(scale["model"])
    where, settings = arm.settings["where"], dict(arm.settings)
    if where == "prompt":
        from gradatim.studies.lg_anna_prompts import prompt_scores

        return Outcome(prompt_scores(settings["kind"], seed, scale))
    if where in ("encoder", "context"):
        from gradatim.studies import lg_anna_encoder as real

        if where == "context":
            return Outcome(real.context_scores(settings["kind"], seed, scale))
        return Outcome(real.ladder_scores(settings, seed, scale))
    import torch

    from gradatim.studies import lg_anna_student as small

    b = small.bench(scale["model"])
    if where == "reference":
        kind = settings["kind"]
        if kind == "untrained":
            return Outcome(small.evaluate(b, torch.eye(b.passages.shape[1])))
        scores = b.teacher if kind == "teacher" else b.miner_queries @ b.miner_passages.T
        return Outcome(small.evaluate_scores(b, scores))
    del settings["where"]
    weight, facts = small.train_student(b, small.Recipe(**settings), seed, scale)
    return Outcome({**small.evaluate(b, weight), **facts})


def data_version(scale: Scale) -> str:
    """The corpus is a function of three packages' versions; vectors and teacher also of the encoder's
    weights."""
    packages = [f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn", "bm25s")]
    try:
        encoder = encoder_digest(str(scale["model"]))[:16]
    except EncoderUnavailableError:
        encoder = "absent"  # listing studies must not fail; the trials say what to install
    return "; ".join([*packages, encoder])


# --- Arms --------------------------------------------------------------------------------------------------


def _student(noise: str, name: str, role: Any = "method", **settings: Any) -> Arm:
    return Arm(f"{noise}/{name}", {"where": "student", "noise": NOISE[noise], **settings}, role=role)


def _ladder(noise: str) -> tuple[Arm, ...]:
    relative = {"margin": "relative", "value": 0.95}
    return (
        _student(noise, "in-batch", "baseline", margin=None),
        _student(noise, "naive", "baseline", margin="naive"),
        _student(noise, "skip", "control", margin="skip", value=10),
        _student(noise, "absolute", margin="absolute", value=0.05),
        _student(noise, "relative", **relative),
        _student(noise, "adaptive", margin="adaptive", value=0.5),
        _student(noise, "in-batch+soft", margin=None, soft_weight=1.0),
        _student(noise, "naive+soft", margin="naive", soft_weight=1.0),
        _student(noise, "relative+soft", **relative, soft_weight=1.0),
        _student(noise, "relative+smoothed", "control", **relative, soft_weight=1.0, teacher="smoothed"),
        _student(noise, "relative+soft-only", **relative, soft_weight=1.0, hard_weight=0.0),
    )


def _sweep(noise: str) -> tuple[Arm, ...]:
    relative = {"margin": "relative", "value": 0.95}
    return (
        *(_student(noise, f"relative-{v:g}", margin="relative", value=v) for v in (0.8, 0.9, 1.0)),
        *(_student(noise, f"adaptive-{v:g}", margin="adaptive", value=v) for v in (0.25, 1.0, 2.0)),
        *(_student(noise, f"relative+soft-{v:g}", **relative, soft_weight=v) for v in (0.3, 3.0)),
        _student(noise, "relative+soft-z", **relative, soft_weight=1.0, temperature=1.0),
        _student(noise, "relative+margin-mse", **relative, soft_weight=0.1, soft="margin_mse"),
        _student(noise, "relative+bce", **relative, soft_weight=1.0, soft="bce"),
    )


REFERENCES = tuple(
    Arm(name, {"where": "reference", "kind": name}, label=label, role="control")
    for name, label in (
        ("untrained", "the untrained student"),
        ("minilm", "MiniLM, which mines"),
        ("teacher", "the teacher itself (MiniLM and BM25)"),
    )
)
PROMPTS = tuple(
    Arm(f"prompt/{kind}", {"where": "prompt", "kind": kind}, role="control" if kind == "none" else "method")
    for kind in ("none", "instruction", "examples")
)
LADDER = tuple(arm for noise in NOISE for arm in _ladder(noise))
SWEEP = tuple(arm for noise in NOISE for arm in _sweep(noise))
# Beside the ladder's arms these give three or four points of each sweep; the standard profile has them all.
QUICK_SWEEP = tuple(
    arm
    for arm in SWEEP
    if arm.name
    in {
        f"noisy/{name}"
        for name in ("relative-0.8", "relative-1", "adaptive-2", "relative+soft-0.3", "relative+soft-3")
    }
)
ENCODER = tuple(
    Arm(
        f"encoder/{name}",
        {"where": "encoder", "noise": NOISE["noisy"], "margin": margin, "soft_weight": soft},
        role="baseline" if name in ("in-batch", "naive") else "method",
    )
    for name, margin, soft in (
        ("in-batch", None, 0.0),
        ("naive", "naive", 0.0),
        ("relative", "relative", 0.0),
        ("relative+soft", "relative", 1.0),
    )
)
CONTEXT = tuple(
    Arm(f"context/{kind}", {"where": "context", "kind": kind}, role="control" if kind == "none" else "method")
    for kind in ("none", "instruction", "examples")
)


# --- Claims ------------------------------------------------------------------------------------------------

UNIT = "MRR@10 of the own passage"
WORDS = {"clean": "clean labels", "noisy": "40 % of positives wrong"}
SMALL = ("quick", "standard")


def _filter_claim(noise: str, name: str, label: str) -> Claim:
    return Claim(
        id=f"{name}-{noise}",
        statement=f"the {label} beats unfiltered hard negatives ({WORDS[noise]})",
        effect=Contrast(f"{noise}/{name}", f"{noise}/naive", MRR),
        control=Control(
            "any easier negatives would do: the nearest ten skipped, without looking at the positive",
            Contrast(f"{noise}/{name}", f"{noise}/skip", MRR),
        ),
        unit=UNIT,
        paper_says="adaptive margin-based mining drops negatives too close to the positive; no figure is "
        "given",
        profiles=SMALL,
    )


CLAIMS = (
    *(
        _filter_claim(noise, name, label)
        for noise in NOISE
        for name, label in (
            ("relative", "relative margin 0.95"),
            ("absolute", "absolute margin 0.05"),
            ("adaptive", "margin of half a deviation"),
        )
    ),
    *(
        Claim(
            id=f"soft-{noise}",
            statement=f"soft labels beside hard ones beat hard ones alone ({WORDS[noise]})",
            effect=Contrast(f"{noise}/relative+soft", f"{noise}/relative", MRR),
            control=Control(
                "any softening would do: labels smoothed by a tenth",
                Contrast(f"{noise}/relative+soft", f"{noise}/relative+smoothed", MRR),
            ),
            unit=UNIT,
            paper_says="soft labels distilled from a retriever and a re-ranker improve training; no figure "
            "is given",
            profiles=SMALL,
        )
        for noise in NOISE
    ),
    Claim(
        id="recipe",
        statement="margin and soft labels together beat in-batch negatives with hard labels (40 % wrong)",
        effect=Contrast("noisy/relative+soft", "noisy/in-batch", MRR),
        control=Control(
            "the teacher could serve instead: the student against the teacher's own ranking",
            Contrast("noisy/relative+soft", "teacher", MRR),
        ),
        unit=UNIT,
        paper_says="the whole recipe is among the leaders of MTEB(eng, v2)",
        profiles=SMALL,
    ),
    Claim(
        id="prompts-need-training",
        statement="an encoder that never saw prompts is hurt by an instruction with two examples",
        effect=Contrast("prompt/none", "prompt/examples", "mrr@10 prompt pooled"),
        control=Control(
            "it is only the prompt's tokens in the mean: left out of it",
            Contrast("prompt/none", "prompt/examples", MRR),
        ),
        unit="MRR@10 lost",
        paper_says="not in the paper, which trains with them",
        profiles=SMALL,
    ),
    Claim(
        id="encoder-filter",
        statement="with MiniLM as the student, the relative margin beats unfiltered hard negatives (40 % "
        "wrong)",
        effect=Contrast("encoder/relative", "encoder/naive", MRR),
        control=Control(
            "hard negatives are not needed at all: against in-batch negatives",
            Contrast("encoder/relative", "encoder/in-batch", MRR),
        ),
        unit=UNIT,
        paper_says="adaptive margin-based mining; no figure is given",
        profiles=("standard", "paper"),
    ),
    Claim(
        id="encoder-soft",
        statement="with MiniLM as the student, soft labels beat hard ones (40 % wrong)",
        effect=Contrast("encoder/relative+soft", "encoder/relative", MRR),
        control=Control("the teacher could serve instead", Contrast("encoder/relative+soft", "teacher", MRR)),
        unit=UNIT,
        paper_says="soft labels from a retriever and a re-ranker; no figure is given",
        profiles=("standard",),
    ),
    Claim(
        id="instruction-told-apart",
        statement="after training, the right instruction ranks better than the other relation's",
        effect=Level("context/instruction", "difference"),
        control=Control(
            "one vector for both relations would do: training without any prompt",
            Contrast("context/instruction", "context/none", "ndcg@10"),
        ),
        unit="nDCG@10",
        paper_says="structured instructions tell tasks apart",
        profiles=("standard",),
    ),
    Claim(
        id="examples-help",
        statement="two examples in the query beat the instruction alone",
        effect=Contrast("context/examples", "context/instruction", "ndcg@10"),
        control=Control(
            "the examples' text helps whatever the relation: difference between right and wrong prompt",
            Contrast("context/examples", "context/instruction", "difference"),
        ),
        unit="nDCG@10",
        paper_says="few-shot examples help in-context learning of a 7B decoder; 22M weights are another "
        "matter",
        profiles=("standard",),
    ),
)

_SCALE: dict[str, Any] = {
    "model": "minilm",
    "pool": 10,
    "range_max": 40,
    "similarity": 20.0,
    "lr": 1e-3,
    "batch": 32,
    "negatives": 4,
    "epochs": 4,
    "prompt_queries": 40,
}
_TRAINER: dict[str, Any] = {
    "data": "docstrings",
    "backbone": "",
    "lora_rank": 0,
    "trainable_layers": 2,
    "tokens": 48,
    "context_tokens": 128,
    "batch": 16,
    "negatives": 3,
    "lr": 5e-5,
    "warmup": 0.1,
    "steps": 100,
    "epochs": 1,
    "reranker_steps": 150,
    "reranker": "",
}
# Usual for 7B encoders; the report names none of these. Backbone and re-ranker are the user's to name.
_DECODER = {
    **_TRAINER,
    "data": "beir",
    "backbone": "mistralai/Mistral-7B-v0.1",
    "lora_rank": 16,
    "trainable_layers": 0,
    "tokens": 512,
    "batch": 32,
    "negatives": 7,
    "lr": 1e-4,
    "steps": 0,
    "reranker_steps": 0,
    "reranker": "cross-encoder/ms-marco-MiniLM-L6-v2",
}

SNIPPET = """
import torch
from gradatim.curricula import RelativeMargin, mine_rows
from gradatim.losses import soft_label_loss

# Three queries and eight passages; the first passage of each is its positive.
generator = torch.Generator().manual_seed(0)
passages = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=1)
queries = torch.nn.functional.normalize(
    passages[:3] + 0.2 * torch.randn(3, 16, generator=generator), dim=1
)
mined = mine_rows(queries, passages, [[0], [1], [2]], RelativeMargin(0.95), num_negatives=3, range_max=7)
print(mined.report)

scores = (20 * queries @ passages.T).requires_grad_()
teacher = queries @ passages.T / 0.1
soft_label_loss(scores, teacher, soft="kl").backward()

# With sentence-transformers:
#   from gradatim.curricula import BM25, TeacherEnsemble, mine_negatives
#   from gradatim.losses import SoftLabelRankingLoss
#   data = mine_negatives(queries, positives, corpus, model, margin=RelativeMargin(0.95))
#   data = TeacherEnsemble([BM25(), model], [cross_encoder]).fit(corpus).annotate(data, keep_labels=True)
#   loss = SoftLabelRankingLoss(student, hard_targets="mask")
"""

PLAIN = """
A search model learns best from passages that look right and are wrong, *hard negatives*. Mined by
machine, some of them are right answers that nobody marked. The **margin** leaves out what scores
nearly as high as the marked answer. **Soft labels** replace "this one and no other" by a teacher's grades for
all passages. An **instruction with worked examples** before the question tells one model which of many tasks
it is asked to do.

Here a small student (the mean of word-piece embeddings and one linear map) learns to find the documentation
of numpy, scipy and scikit-learn objects from their summary lines. MiniLM mines; MiniLM and BM25 together
teach. Every rung of the ladder is run on clean labels and with 40 % of the positives replaced by a passage
that MiniLM takes for close.
"""

NOTES = """
The report's formulas for the margin and for the soft labels, its settings and its ablations could not be
read; the three margins, the fusion of the teachers and all weights are choices of this study, taken over
unchanged from published work on hard negatives or fixed before the judging seeds were run. Nothing is tuned
per arm. Mined negatives that nobody linked count as wrong, and links are the documentation authors' choice.
MiniLM saw over a billion pairs in its training, code documentation among them: it is a strong miner and
teacher here. The intervals are over seeds (wrong positives, negatives, order) for one set of test queries.
The leaderboard figures of the report are mostly in-domain and are no standard for a study of this size.
"""

study = Study(
    number=23,
    slug="lg-anna",
    title="Instruction embeddings: margins for hard negatives, soft labels, examples in the query",
    paper=Paper(
        "LG-ANNA-Embedding technical report",
        "Choi, Kim, Jang, Jun, Bae, Choi, Choi, Lee, Yun",
        2025,
        "2506.07438",
    ),
    plain=PLAIN,
    snippet=SNIPPET,
    notes=NOTES,
    rooms=("curricula", "losses", "models", "tasks"),
    arms=(*REFERENCES, *LADDER, *SWEEP, *PROMPTS, *ENCODER, *CONTEXT),
    claims=CLAIMS,
    trial=trial,
    data=data_version,
    figures=FIGURES,
    headline=((MRR, "higher"), ("ndcg@10", "higher")),
    profiles={
        "quick": Profile(
            seeds=7,
            scale=_SCALE,
            core_seconds=285,
            arms=tuple(arm.name for arm in (*REFERENCES, *LADDER, *QUICK_SWEEP, *PROMPTS)),
        ),
        "standard": Profile(
            seeds=3,
            scale={**_SCALE, "prompt_queries": 100, "trainer": _TRAINER},
            core_seconds=3300,
            arms=tuple(arm.name for arm in (*REFERENCES, *LADDER, *SWEEP, *PROMPTS, *ENCODER, *CONTEXT)),
        ),
        "paper": Profile(
            seeds=3,
            scale={**_SCALE, "data": None, "trainer": _DECODER},
            core_seconds=2_000_000,
            arms=tuple(arm.name for arm in ENCODER),
        ),
    },
)
