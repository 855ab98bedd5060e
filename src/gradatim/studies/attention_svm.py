"""22. Which direction does gradient descent give the key-query weights of attention?

Tarzanagh, Li, Thrampoulidis, Oymak, "Transformers as Support Vector Machines" (2023, arXiv 2308.16898).
A seed is one random problem. A (`bias`): W and (K, Q) are trained on it and matched against the Frobenius and
the nuclear SVM of the tokens they selected. B (`width`): from W = 0 with growing width. C (`rank`): ranks of
the SVM solutions. D (`ties`): a ReLU head that keeps several tokens. E, the step rules, are A's controls.
"""

from __future__ import annotations

from typing import Any

from gradatim.bench import Arm, Claim, Contrast, Control, Level, Paper, Profile, Study, StudyFigure
from gradatim.studies.attention_figures import (
    WIDTHS,
    draw_alignment,
    draw_plane,
    draw_spectra,
    draw_width,
    table_alignment,
    table_plane,
    table_spectra,
    table_width,
)
from gradatim.studies.attention_trials import MACHINE_EPSILON, batch


def _bias(name: str, label: str, role: Any = "method", **settings: Any) -> Arm:
    base = {"kind": "bias", "n": 6, "t": 8, "d": 10, "parameterization": "w", "rate": 1.0}
    return Arm(f"bias/{name}", {**base, **settings}, label, role)


def _width(d: int, suffix: str = "", role: Any = "method", **settings: Any) -> Arm:
    base = {"kind": "width", "n": 5, "t": 5, "d": d, "init": "zero", "rate": 0.1}
    label = f"d = {d}{', one step' if suffix else ''}"
    return Arm(f"width/d{d}{suffix}", {**base, **settings}, label, role)


def _rank(name: str, label: str, role: Any = "method", **settings: Any) -> Arm:
    base = {"kind": "rank", "n": 10, "t": 5, "d": 15}
    return Arm(f"rank/{name}", {**base, **settings}, label, role)


def _ties(d: int) -> Arm:
    protocol = {"rate": 0.1, "log_domain": False, "ridge": MACHINE_EPSILON, "steps": 2000}
    return Arm(f"ties/d{d}", {"kind": "ties", "n": 3, "t": 4, "d": d, **protocol}, f"ReLU head, d = {d}")


# The paper's own protocol: the formula as it stands, steps of length 0.1, a ridge of machine epsilon.
LITERAL = {"log_domain": False, "rate": 0.1, "ridge": MACHINE_EPSILON}
# Rates were chosen on tuning seeds among 1, 3, 10, 30, 100, 300 (plain) and 0.1, 0.3, 1, 2 (log domain).
KQ = {"parameterization": "kq", "rate": 0.3, "ridge": MACHINE_EPSILON}

CORE = (
    _bias("w", "W"),
    _bias("kq", "K, Q", **KQ),
    _bias("w-single", "W in float32", "control", float32=True),
    _bias("w-plain", "W, plain gradient descent", "control", log_domain=False, normalize=False, rate=100.0),
    _bias("kq-plain", "K, Q, plain gradient descent", "control", log_domain=False, normalize=False, rate=30.0,
          parameterization="kq"),
    _bias("w-literal", "W, the paper's protocol", "baseline", **LITERAL),
    _bias("kq-literal", "K, Q, the paper's protocol", "baseline", **{**KQ, **LITERAL}),
    _bias("w-literal-single", "W, the paper's protocol in float32", "baseline", **LITERAL, float32=True),
    _bias("kq-no-ridge", "K, Q without the ridge", "baseline", parameterization="kq", rate=0.3),
    *(_width(d) for d in WIDTHS),
    _width(2, "-first-step", "control", steps=1),
    _width(20, "-first-step", "control", steps=1),
    _rank("frobenius", "Frobenius", norm="frobenius"),
    _rank("nuclear", "nuclear", norm="nuclear"),
    _rank("nuclear-loose", "nuclear, loose solve, absolute threshold", "control", norm="nuclear", tol=1e-4,
          absolute=1e-7),
    _ties(4),
    _ties(6),
    Arm("plane/w", {"kind": "plane", "t": 3, "rate": 0.3}, "two sequences in the plane"),
)  # fmt: skip
GRID = [(n, t, d) for n, t in ((5, 5), (10, 5), (15, 5), (5, 10), (5, 15)) for d in (2, 5, 10, 15, 20)]
MORE = (
    _bias("w-self", "W, self-attention", self_attention=True),
    _bias("kq-self", "K, Q, self-attention", self_attention=True, **KQ),
    _bias("kq-narrow", "K, Q of 4 dimensions", head_dim=4, **KQ),
    _ties(8),
    _ties(10),
    *(
        _rank(f"{norm}-n{n}-t{t}-d{d}", f"{norm}, n = {n}, T = {t}, d = {d}", n=n, t=t, d=d, norm=norm)
        for n, t, d in GRID
        for norm in ("frobenius", "nuclear")
    ),
)
LARGE = (
    _bias("w-large", "W, n = 48, T = 24, d = 64", n=48, t=24, d=64),
    _bias("kq-large", "K, Q, n = 48, T = 24, d = 64", n=48, t=24, d=64, **KQ),
)

CLAIMS = (
    Claim(
        "w-frobenius",
        "W trained directly points along the Frobenius SVM of its selected tokens, not along the nuclear one",
        Level("bias/w", "lead"),
        Control(
            "the normalised step, not descent itself, makes the direction: plain gradient descent at its "
            "best rate shows no such preference",
            Level("bias/w-plain", "lead"),
        ),
        unit="difference of alignments",
        margin=0.02,
        paper=0.13,
        paper_says="read off the notebooks' pictures: about 0.99 with the Frobenius and 0.86 with the "
        "nuclear solution (n = 6, T = 8, d = 10, 100 runs)",
    ),
    Claim(
        "kq-nuclear",
        "K and Q trained separately point along the nuclear SVM, not along the Frobenius one",
        Level("bias/kq", "lead"),
        Control(
            "the normalised step, not descent itself, makes the direction: plain gradient descent at its "
            "best rate shows no such preference",
            Level("bias/kq-plain", "lead"),
        ),
        unit="difference of alignments",
        margin=0.02,
        paper_says="the pictures show the same order with the roles exchanged; no figure is printed",
    ),
    Claim(
        "w-exact",
        "The alignment of W with its SVM exceeds 0.99",
        Level("bias/w", "frobenius", bound=0.99),
        Control(
            "it takes double precision: float32 ends elsewhere (equivalent within 0.002)",
            Contrast("bias/w-single", "bias/w", "frobenius"),
            test="equivalent",
            margin=0.002,
        ),
        unit="alignment above 0.99",
        paper_says="mean about 0.99 after 1,000 steps in the notebooks' pictures",
    ),
    Claim(
        "local",
        "Where training settles on other tokens than the best, W follows their SVM, not that of the best",
        Level("bias/w", "lead_over_best"),
        Control(
            "any similar selection fits as well: one sequence moved to its second choice",
            Level("bias/w", "lead_over_neighbour"),
        ),
        unit="difference of alignments",
        margin=0.02,
        paper_says="convergence may be to a locally optimal direction",
    ),
    Claim(
        "feasible",
        "The SVM of the best tokens is feasible once d >= max(T - 1, n): share at the bound, d = n = T = 5",
        Level("width/d5", "feasible", bound=0.9),
        Control(
            "the solver calls everything feasible: it certifies many as infeasible at d = 2",
            Contrast("width/d5", "width/d2", "feasible"),
        ),
        unit="share above 0.9",
        interval="wilson",
        paper=0.1,
        paper_says="feasible for almost all data in that range (theorem)",
    ),
    Claim(
        "global",
        "With more width, training from W = 0 selects the best token of every sequence more often",
        Contrast("width/d20", "width/d2", "global"),
        Control(
            "the first gradient points there already: the share after a single step, at d = 20",
            Contrast("width/d20", "width/d20-first-step", "global"),
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
            "rank is a matter of threshold and solver tolerance: the entropy rank of a loose solve, which "
            "has no threshold",
            Contrast("rank/nuclear-loose", "rank/frobenius", "entropy_rank", better="lower"),
        ),
        unit="rank (tolerance 1e-4 of the largest)",
        margin=1.0,
        paper_says="lower in the notebook's figure, where solver noise counts as rank and understates it",
    ),
    Claim(
        "general-equivalence",
        "With a ReLU head that keeps several tokens, finite part plus SVM part predict W better than the "
        "SVM of one token per sequence (d = 6)",
        Level("ties/d6", "gain_over_one_token"),
        Control(
            "the tied SVM explains it alone: the finite part, fitted to the same softmax, adds nothing",
            Level("ties/d6", "gain_over_svm_part"),
        ),
        unit="difference of alignments",
        margin=0.01,
        paper=0.128,
        paper_says="1 - alignment 0.017 against 0.145, over 500 accepted runs",
    ),
)

study = Study(
    number=22,
    slug="attention-svm",
    title="Trained attention points along a support vector machine",
    paper=Paper(
        "Transformers as Support Vector Machines", "Tarzanagh, Li, Thrampoulidis, Oymak", 2023, "2308.16898"
    ),
    rooms=("probes", "models", "optim", "tasks"),
    plain="""One layer of attention learns which token of a sequence to look at. Once it can separate
that token from the others, further training only scales its key-query weights up, and what settles is
their *direction*. The paper shows which one: the solution of a hard-margin support vector machine that
separates the selected token of every sequence from the rest. Train the product W directly, and the SVM
minimises the Frobenius norm; train K and Q, and it minimises the nuclear norm, hence a low rank.

Training uses normalised steps, computed in the log domain: the plain formula underflows as soon as attention
saturates, and what is then normalised is rounding noise.""",
    arms=(*CORE, *MORE, *LARGE),
    claims=CLAIMS,
    profiles={
        "quick": Profile(
            40,
            {"steps": 1000, "tries": 8},
            core_seconds=16,
            arms=tuple(a.name for a in CORE),
            batch=20,
        ),
        "standard": Profile(
            100,
            {"steps": 2000, "tries": 20},
            core_seconds=600,
            arms=tuple(a.name for a in (*CORE, *MORE)),
            batch=25,
        ),
        "paper": Profile(1000, {"steps": 2000, "tries": 20, "device": "auto"}, core_seconds=20_000, batch=50),
    },
    headline=(("lead", "higher"), ("global", "higher"), ("rank", "lower"), ("gain_over_one_token", "higher")),
    batch=batch,
    figures=(
        StudyFigure(
            "alignment",
            "The direction of training",
            "Two panels over training steps: trained W approaches the Frobenius solution and stays away from"
            " the nuclear one; trained K, Q the other way round. Bands are the middle 80% of problems.",
            draw_alignment,
            table_alignment,
        ),
        StudyFigure(
            "plane",
            "The path in the plane",
            "Two sequences of three tokens in the plane: the path of W z over training bends until it lies"
            " along the dashed direction that the SVM names.",
            draw_plane,
            table_plane,
        ),
        StudyFigure(
            "width",
            "More width, better selection",
            "Shares of random problems over width: the SVM becomes feasible well before training selects the"
            " best token of every sequence; one step alone selects it rarely.",
            draw_width,
            table_width,
        ),
        StudyFigure(
            "spectra",
            "What rank means",
            "Singular values of the SVM solutions on a logarithmic axis: Frobenius solutions keep all,"
            " nuclear ones fall to solver accuracy after a few; a loose solve leaves its noise above the"
            " published absolute threshold.",
            draw_spectra,
            table_spectra,
        ),
    ),
    snippet="""from gradatim.models import train_attention
from gradatim.probes import attention_svm, directional_alignment, selected_tokens
from gradatim.tasks import random_instances

p = random_instances(n=6, t=8, d=10, seeds=[0])           # six sequences of eight tokens
trained = train_attention(p.x, p.z, p.y, p.v, steps=500)
selected = selected_tokens(trained.attention[0])          # the token each sequence settled on
svm = attention_svm(p.x[0], p.z[0], selected, norm="frobenius")
print(float(directional_alignment(trained.weight[0], svm.weight)))
""",
    notes="""- The tiny ridge of the paper's code, machine epsilon, is more than a brake on growth: without it
  the direction of K, Q stays short of the nuclear solution (arm `bias/kq-no-ridge`), since weak directions of
  a product catch up only with the logarithm of time.
- The literal gradient in float32 loses the direction once attention saturates (`bias/w-literal-single`); the
  log-domain gradient gives the same direction in float32 as in float64 (`bias/w-single`), and allows steps
  ten times as long.
- The published rank figure counts solver noise: a loose solve with an absolute threshold gives the nuclear
  solution full rank (`rank/nuclear-loose`), although its entropy rank is that of the tight solve.
- Most problems of the ReLU study are not accepted, because some softmax value is still between the two
  thresholds; `drawn` and `accepted` count them. What is reported holds for the accepted ones.
- In every trained problem the selected tokens were checked for local optimality (`locally_optimal`).""",
)
