"""04. Are memories of several speeds, and learners inside learners, better than one?

Behrouz, Razaviyayn, Zhong, Mirrokni, "Nested Learning: The Illusion of Deep Learning Architectures"
(NeurIPS 2025, arXiv 2512.24695). Five small parts: what delta gradient descent computes; tasks along
orthogonal directions and a winding valley for delta momentum; a continuum memory on digit tasks in a row; M3
beside AdamW and Muon; formal languages for memories that modify themselves. Each has the control that could
explain it.
"""

from __future__ import annotations

from typing import Any, Literal

from gradatim.bench import (
    Arm,
    Claim,
    Contrast,
    Control,
    Level,
    Paper,
    Profile,
    Study,
    StudyFigure,
)
from gradatim.studies.nested_learning_classes import data_version
from gradatim.studies.nested_learning_figures import (
    draw_continual,
    draw_languages,
    draw_levels,
    draw_optimizers,
    draw_stream,
    draw_toys,
    table_continual,
    table_languages,
    table_levels,
    table_optimizers,
    table_stream,
    table_toys,
)
from gradatim.studies.nested_learning_trials import batch
from gradatim.studies.nested_parity_trials import QUICK as QUICK_STRINGS
from gradatim.studies.nested_parity_trials import STANDARD as STANDARD_STRINGS
from gradatim.studies.nested_parity_trials import arms_of
from gradatim.tasks.formal_languages import FORMAL_LANGUAGES

Role = Literal["method", "baseline", "control"]
ONE, SLOWER = (1, 1, 1), (1, 8, 64)
RATE = 0.05


def _arm(name: str, label: str, kind: str, role: Role = "method", **settings: Any) -> Arm:
    return Arm(name, {"kind": kind, **settings}, label, role)


TOYS = (
    _arm("identity", "delta gradient descent on a linear stream", "identity"),
    _arm("orthogonal/gd", "gradient descent", "orthogonal", "control", rule="gd"),
    _arm("orthogonal/momentum", "momentum", "orthogonal", "baseline", rule="momentum"),
    _arm("orthogonal/delta", "delta momentum", "orthogonal", rule="delta"),
    _arm("orthogonal/deep", "deep momentum", "orthogonal", rule="deep"),
    _arm("orthogonal/dgd", "delta gradient descent", "orthogonal", rule="dgd"),
    _arm("orthogonal/dgd-doubled", "DGD, doubled targets", "orthogonal", "control", rule="dgd-doubled"),
    _arm("valley/momentum", "momentum", "valley", "baseline", rule="momentum"),
    _arm("valley/delta", "delta momentum, unit keys", "valley", rule="delta"),
    _arm("valley/raw", "delta momentum, keys as printed", "valley", "control", rule="raw"),
)
CONTINUAL = (
    _arm("digits/one", "one speed", "continual", "baseline", periods=ONE, lr=RATE),
    _arm("digits/cms", "1, 8, 64, mean", "continual", periods=SLOWER, lr=RATE, reduction="mean"),
    _arm("digits/rate-matched", "one speed, rates matched", "continual", "control", periods=ONE,
         lr=(RATE, RATE / 8, RATE / 64)),
    _arm("digits/cms-sum", "1, 8, 64, sum", "continual", periods=SLOWER, lr=RATE),
    _arm("digits/cms-reversed", "64, 8, 1, sum", "continual", "control", periods=(64, 8, 1), lr=RATE),
    _arm("digits/nested", "nested, mean", "continual", periods=SLOWER, lr=RATE, reduction="mean",
         kind_of="nested"),
    _arm("digits/ewc", "elastic weight consolidation", "continual", "baseline", periods=ONE, lr=RATE,
         ewc=100.0),
)  # fmt: skip
MORE_CONTINUAL = (
    _arm("digits/independent", "side by side, mean", "continual", periods=SLOWER, lr=RATE, reduction="mean",
         kind_of="independent"),
    _arm("digits/slow", "one speed, a tenth of the rate", "continual", "control", periods=ONE, lr=RATE / 10),
    _arm("digits/replay", "replay of 100 per task", "continual", "baseline", periods=ONE, lr=RATE,
         replay=True),
)  # fmt: skip
# Class by class, from the user's file: the same networks without permuted tasks.
INTENTS = tuple(
    Arm(f"intents/{a.name.split('/')[1]}", {**a.settings, "kind": "intents"}, f"{a.label}, intents", a.role)
    for a in (*CONTINUAL, *MORE_CONTINUAL)
    if a.name.split("/")[1] in ("one", "cms", "rate-matched", "ewc", "replay")
)
# At these sizes Newton-Schulz costs less in float32 than in bfloat16.
FULL: dict[str, Any] = {"ns_dtype": None}
LITERAL = {
    **FULL,
    "accumulate": "sum",
    "match_rms": None,
    "betas": (0.9, 0.999, 0.9),
    "slow_weight": 1.0,
    "slow_period": 100,
    "ns_steps": 3,
}
OPTIMIZERS = (
    _arm("m3/adamw", "AdamW", "optimizer", "baseline", rule="adamw", lr=5e-3),
    _arm("m3/muon", "Muon", "optimizer", "control", rule="muon", lr=3e-3),
    _arm("m3/muon-longer", "Muon, 1.3 times the steps", "optimizer", "control", rule="muon", lr=3e-3,
         longer=1.3),
    _arm("m3/m3", "M3", "optimizer", rule="m3", lr=7e-3, options=FULL),
    _arm("m3/no-slow", "M3 without the slow memory", "optimizer", "control", rule="m3", lr=7e-3,
         options={**FULL, "slow_weight": 0.0}),
    _arm("m3/long-fast", "M3, one memory of β = 0.99", "optimizer", "control", rule="m3", lr=5e-3,
         options={**FULL, "slow_weight": 0.0, "betas": (0.99, 0.999, 0.9)}),
    _arm("m3/no-second-moment", "M3 without V", "optimizer", "control", rule="m3", lr=2e-3,
         options={**FULL, "second_moment": False}),
    _arm("m3/means-undivided", "M3, moving means, update as printed", "optimizer", "control", rule="m3",
         lr=5e-6, options={**FULL, "match_rms": None}),
    _arm("m3/frozen", "AdamW on the output layer and biases alone", "optimizer", "control", rule="m3", lr=0.0,
         options={**FULL, "match_rms": None}),
    _arm("m3/literal", "M3 as printed", "optimizer", rule="m3", lr=3e-6, options=LITERAL),
)  # fmt: skip
TEXT = (
    _arm("text/hope", "Hope", "text"),
    _arm("text/rate-matched", "Hope, one speed, rates matched", "text", "control", rate_matched=True),
    _arm("text/no-cms", "Hope, one network of one speed", "text", "control", periods=(1,)),
    _arm("text/no-dgd", "Hope, plain gradient inside", "text", "control", model={"delta_gradient": False}),
    _arm("text/no-decay", "Hope, no decay inside", "text", "control", model={"decay": False}),
    _arm("text/no-inner-k", "Hope, keys by a projection", "text", "control", model={"inner_keys": False}),
    _arm("text/no-inner-v", "Hope, values by a projection", "text", "control", model={"inner_values": False}),
    _arm("text/inner-q", "Hope, queries by a memory too", "text", model={"inner_queries": True}),
    _arm("text/momentum", "Hope, momentum inside", "text", model={"momentum": 0.9}),
    _arm("text/delta", "delta rule with rates up to 2", "text", "baseline", periods=(1,),
         model={"mixer": "delta", "beta_max": 2.0}),
    _arm("text/transformer", "Transformer of the same blocks", "text", "baseline", periods=(1,), heads=4,
         model={"mixer": "attention"}),
)  # fmt: skip
MORE_OPTIMIZERS = (
    _arm("m3/sgd", "momentum SGD", "optimizer", "baseline", rule="sgd", lr=0.1),
    _arm("m3/delta", "delta momentum", "optimizer", rule="delta", lr=0.1),
    _arm("m3/deep", "deep momentum", "optimizer", rule="deep", lr=0.01),
)


def _language(name: str) -> tuple[Arm, ...]:
    return tuple(
        Arm(a.name, {"kind": "language", "scale": "strings", **a.settings}, a.label, a.role)
        for a in arms_of(name)
    )


PARITY = _language("parity")
LANGUAGES = tuple(name for name in FORMAL_LANGUAGES if name != "parity")
MORE_LANGUAGES = tuple(arm for language in LANGUAGES for arm in _language(language))
QUICK_RULES = (
    "self-modifying",
    "self-modifying, no DGD",
    "self-modifying, literal v",
    "delta (0,1)",
    "delta (0,2)",
)
QUICK_ARMS = (
    *(a.name for a in (*TOYS, *CONTINUAL, *OPTIMIZERS)),
    *(f"parity/{rule}" for rule in QUICK_RULES),
)

# On the other languages the memory and the rule that explains it; all rules run in the paper's profile.
STANDARD_ARMS = (
    *(a.name for a in (*TOYS, *CONTINUAL, *MORE_CONTINUAL, *OPTIMIZERS, *MORE_OPTIMIZERS, *TEXT, *PARITY)),
    *(f"{language}/{rule}" for language in LANGUAGES for rule in ("self-modifying", "delta (0,2)")),
)

CLAIMS = (
    Claim(
        "dgd-fixed-point",
        "On a noiseless linear stream delta gradient descent, as printed, ends at half of the truth",
        Level("identity", "slope_dgd", bound=0.5),
        Control(
            "the stream is too short for any rule: without the decay the same steps end at the truth",
            Level("identity", "slope_gd", bound=1.0),
            test="equivalent",
            margin=0.01,
        ),
        unit="share of the truth, minus 1/2",
        test="equivalent",
        margin=0.01,
        paper_says="derives the rule from a regression on its own error; does not discuss where it ends",
    ),
    Claim(
        "dgd-mixed",
        "On overlapping tasks in a row, delta gradient descent ends with a lower loss on earlier tasks than "
        "gradient descent, both at their best rates",
        Contrast("orthogonal/gd", "orthogonal/dgd", "log_earlier_mixed"),
        Control(
            "only its fixed point stands in the way: with doubled targets, where it is gradient descent with "
            "steps normalised by the inputs, it ends lower than gradient descent",
            Contrast("orthogonal/gd", "orthogonal/dgd-doubled", "log_earlier_mixed"),
        ),
        unit="decades of loss",
        paper_says="the decay along each input is meant for data that are not independent",
    ),
    Claim(
        "delta-momentum-orthogonal",
        "On tasks along orthogonal directions delta momentum ends with a lower loss on earlier tasks than "
        "momentum, both at their best rates",
        Contrast("orthogonal/momentum", "orthogonal/delta", "log_earlier_pure"),
        Control(
            "momentum is what forgets here, and delta momentum hardly has any: gradient descent without "
            "momentum ends as low",
            Contrast("orthogonal/gd", "orthogonal/delta", "log_earlier_pure"),
        ),
        unit="decades of loss",
        paper_says="momentum remembers some 43 gradients; a memory with a delta rule manages its capacity",
    ),
    Claim(
        "valley-soft",
        "In a gently winding valley delta momentum with unit keys ends lower than momentum, both "
        "at their best rates",
        Contrast("valley/momentum", "valley/delta", "log_k1"),
        Control(
            "unit keys make it, not the printed rule: with raw gradients as keys",
            Contrast("valley/momentum", "valley/raw", "log_k1"),
        ),
        unit="decades",
        paper_says="delta momentum finds the minimum of a time-varying curvature faster (Figure 4)",
    ),
    Claim(
        "valley-stiff",
        "The same in a steeply winding valley",
        Contrast("valley/momentum", "valley/delta", "log_k10"),
        Control(
            "unit keys make it, not the printed rule: with raw gradients as keys",
            Contrast("valley/momentum", "valley/raw", "log_k10"),
        ),
        unit="decades",
        paper_says="delta momentum finds the minimum of a time-varying curvature faster (Figure 4)",
    ),
    Claim(
        "cms-accuracy",
        "After five tasks in a row a continuum memory (chunks 1, 8, 64, means) is more accurate over all of "
        "them than a network of one speed",
        Contrast("digits/cms", "digits/one", "accuracy"),
        Control(
            "slow levels simply learn at a lower rate: one speed, with each level's rate matched",
            Contrast("digits/cms", "digits/rate-matched", "accuracy"),
            margin=0.005,
        ),
        unit="accuracy",
        paper_says="levels of several frequencies forget less; continual tasks gain (Figures 6 to 8)",
    ),
    Claim(
        "cms-sum",
        "The same with sums over the chunks, as printed: here the network of one speed has equal rates",
        Contrast("digits/cms-sum", "digits/one", "accuracy"),
        Control(
            "which level is slow does not matter: with the slowest level first",
            Contrast("digits/cms-sum", "digits/cms-reversed", "accuracy"),
        ),
        unit="accuracy",
        paper_says="levels of several frequencies forget less; continual tasks gain (Figures 6 to 8)",
    ),
    Claim(
        "cms-nested",
        "Nested levels, whose fast ones start again from a learned state, are more accurate than the chain",
        Contrast("digits/nested", "digits/cms", "accuracy"),
        Control(
            "starting again halfway only lowers the rate: one speed, rates matched",
            Contrast("digits/nested", "digits/rate-matched", "accuracy"),
        ),
        unit="accuracy",
        paper_says="names the nested kind beside the sequential and the independent one",
    ),
    Claim(
        "cms-intents",
        "After ten steps of new intents a continuum memory is more accurate over all of them than a network "
        "of one speed",
        Contrast("intents/cms", "intents/one", "accuracy"),
        Control(
            "slow levels simply learn at a lower rate: one speed, with each level's rate matched",
            Contrast("intents/cms", "intents/rate-matched", "accuracy"),
            margin=0.005,
        ),
        unit="accuracy",
        paper_says="Hope about 93 of 100 on CLINC beside 80 for consolidation, 8B model (read off Figure 6)",
        profiles=("paper",),
    ),
    Claim(
        "cms-ewc",
        "The continuum memory is more accurate over all tasks than elastic weight consolidation",
        Contrast("digits/cms", "digits/ewc", "accuracy"),
        Control(
            "consolidation trades plasticity for it: the accuracy on each task when it was learned",
            Contrast("digits/cms", "digits/ewc", "plasticity"),
        ),
        unit="accuracy",
        paper=0.05,
        paper_says="Hope about 93, consolidation about 80 of 100 on CLINC, 8B model (read off Figure 6); "
        "the smallest margin over its data sets is several points",
    ),
    Claim(
        "m3-adamw",
        "M3 (moving means, matched size) has a lower test loss than AdamW, both at their best rates",
        Contrast("m3/m3", "m3/adamw", "test_loss", better="lower"),
        Control(
            "orthogonal updates explain it: Muon", Contrast("m3/m3", "m3/muon", "test_loss", better="lower")
        ),
        unit="cross-entropy",
        paper_says="M3 has the lowest losses beside AdamW and Muon on ImageNet-21K (Figures 11, 12)",
    ),
    Claim(
        "m3-muon",
        "M3 has a lower test loss than Muon after as many steps, both at their best rates",
        Contrast("m3/m3", "m3/muon", "test_loss", better="lower"),
        Control(
            "a step of M3 takes longer: Muon for 1.3 times the steps",
            Contrast("m3/m3", "m3/muon-longer", "test_loss", better="lower"),
        ),
        unit="cross-entropy",
        paper_says="M3 has the lowest losses beside AdamW and Muon on ImageNet-21K (Figures 11, 12)",
    ),
    Claim(
        "m3-slow-memory",
        "The slow memory lowers M3's test loss, with and without at their best rates",
        Contrast("m3/m3", "m3/no-slow", "test_loss", better="lower"),
        Control(
            "a longer memory of one speed does as much: β = 0.99, no slow memory",
            Contrast("m3/m3", "m3/long-fast", "test_loss", better="lower"),
        ),
        unit="cross-entropy",
        paper_says="two momenta of different frequencies are the point of the algorithm",
    ),
    Claim(
        "m3-literal",
        "M3 as printed, with sums, has a lower test loss than AdamW at its best rate",
        Contrast("m3/literal", "m3/adamw", "test_loss", better="lower"),
        Control(
            "what it learns is the work of AdamW on the output layer: the same with fixed matrices",
            Contrast("m3/literal", "m3/frozen", "test_loss", better="lower"),
        ),
        unit="cross-entropy",
        paper_says="M3 has the lowest losses beside AdamW and Muon on ImageNet-21K (Figures 11, 12)",
    ),
    Claim(
        "parity",
        "A self-modifying memory is more accurate than the delta rule at the end of parity strings twice as "
        "long as those it learned from",
        Contrast("parity/self-modifying", "parity/delta (0,1)", "last64"),
        Control(
            "negative eigenvalues explain it: the delta rule with rates up to 2",
            Contrast("parity/self-modifying", "parity/delta (0,2)", "last64"),
        ),
        unit="accuracy",
        paper=0.899,
        paper_says="all strings right up to twice the length, against 10.1% for DeltaNet (Table 5)",
    ),
    Claim(
        "parity-dgd",
        "Its delta gradient descent matters: with plain gradient steps inside it is less accurate there",
        Contrast("parity/self-modifying", "parity/self-modifying, no DGD", "last64"),
        Control(
            "negative eigenvalues explain it: the delta rule with rates up to 2",
            Contrast("parity/self-modifying", "parity/delta (0,2)", "last64"),
        ),
        unit="accuracy",
        paper_says="without DGD perplexity rises from 12.24 to 13.41 (Table 6); parity is not ablated",
    ),
    Claim(
        "text-dgd",
        "On text, a small Hope has a lower loss than the same with plain gradient steps inside",
        Contrast("text/hope", "text/no-dgd", "test_loss", better="lower"),
        Control(
            "any mixing of positions does: a delta rule with rates up to 2 in its place",
            Contrast("text/hope", "text/delta", "test_loss", better="lower"),
        ),
        unit="nats per character",
        paper_says="perplexity rises from 12.24 to 13.41 without DGD (Table 6): 0.09 nats per token",
        profiles=("standard", "paper"),
    ),
    Claim(
        "text-inner-values",
        "On text, a small Hope has a lower loss than the same with values by a learned projection, which the "
        "paper finds the part that matters most",
        Contrast("text/hope", "text/no-inner-v", "test_loss", better="lower"),
        Control(
            "any part that is written does as much: with keys by a projection",
            Contrast("text/no-inner-k", "text/no-inner-v", "test_loss", better="lower"),
        ),
        unit="nats per character",
        paper_says="perplexity rises from 12.24 to 13.90 without inner values, to 13.77 without inner keys, "
        "and falls to 12.19 without inner queries (Table 6)",
        profiles=("standard", "paper"),
    ),
    Claim(
        "text-cms",
        "On text, a small Hope has a lower loss than with one network of one speed in place of its levels",
        Contrast("text/hope", "text/no-cms", "test_loss", better="lower"),
        Control(
            "slow levels simply learn at a lower rate: one speed, with each level's rate matched",
            Contrast("text/hope", "text/rate-matched", "test_loss", better="lower"),
        ),
        unit="nats per character",
        paper_says="perplexity rises from 12.24 to 13.04 without the continuum memory (Table 6)",
        profiles=("standard", "paper"),
    ),
    Claim(
        "parity-literal",
        "The self-modifying rule as printed, without normalised values, keeps a finite loss",
        Level("parity/self-modifying, literal v", "diverged", bound=0.5, better="lower"),
        Control(
            "any such rule diverges at this rate: with values of length 1",
            Level("parity/self-modifying", "diverged", bound=0.5, better="lower"),
        ),
        unit="share of seeds above 1/2",
        interval="wilson",
        paper_says="prints the rule so; names no normalisation of values",
    ),
)

QUICK: dict[str, Any] = {
    "stream": 2000,
    "orthogonal_steps": 60,
    "valley_steps": 400,
    "continual": {"epochs": 4, "batch_size": 16, "fisher": 200},
    "optimizer": {"steps": 300},
    "strings": dict(QUICK_STRINGS),
}
TEXT_SCALE = {
    "dim": 64, "layers": 2, "lr": 3e-3, "batch": 16, "length": 128, "steps": 150, "windows": 64,
}  # fmt: skip
STANDARD = {**QUICK, "strings": dict(STANDARD_STRINGS), "text": TEXT_SCALE}
PAPER_TEXT = {**TEXT_SCALE, "dim": 512, "layers": 12, "steps": 50_000, "length": 1024, "windows": 512}
# Ten steps of fifteen intents with CLINC-150.
INTENT_SCALE = {"tasks": 10, "features": 256, "epochs": 4, "batch_size": 16, "fisher": 200}
PAPER = {**STANDARD, "text": PAPER_TEXT, "intents": INTENT_SCALE}

study = Study(
    number=4,
    slug="nested-learning",
    title="Memories of several speeds: optimizers, continuum memory, self-modifying Titans",
    paper=Paper(
        "Nested Learning: The Illusion of Deep Learning Architectures",
        "Behrouz, Razaviyayn, Zhong, Mirrokni",
        2025,
        "2512.24695",
    ),
    rooms=("optim", "models", "probes"),
    plain="""The paper reads a network and its optimizer as one thing: memories inside memories, each with
something it compresses, a rule by which it is written, and a frequency. Attention takes in every token,
weights move once per step, frozen weights never; momentum is a memory of gradients. A memory can be given a
better rule (*delta momentum*), a network of its own (*deep momentum*) or two speeds (*M3*). An MLP, a memory
that is never written after training, can be split into levels written every 1, 8, 64 ... steps: the
*continuum memory system*. And a memory can produce its own keys, values and rates: *self-modifying Titans*;
with a continuum memory behind it, it is the paper's model *Hope*.

Here each of these is measured beside the plain thing that could explain its gain: a lower rate, no momentum
at all, orthogonal updates, a delta rule with larger rates.""",
    arms=(
        *TOYS,
        *CONTINUAL,
        *MORE_CONTINUAL,
        *INTENTS,
        *OPTIMIZERS,
        *MORE_OPTIMIZERS,
        *TEXT,
        *PARITY,
        *MORE_LANGUAGES,
    ),
    claims=CLAIMS,
    profiles={
        "quick": Profile(6, QUICK, core_seconds=290, arms=QUICK_ARMS, batch=6),
        "standard": Profile(6, STANDARD, core_seconds=3100, arms=STANDARD_ARMS, batch=6),
        "paper": Profile(10, PAPER, core_seconds=40_000, batch=5),
    },
    headline=(("accuracy", "higher"), ("test_loss", "lower"), ("last64", "higher"), ("forgetting", "lower")),
    batch=batch,
    data=data_version,
    figures=(
        StudyFigure(
            "continual",
            "Five tasks in a row",
            "Accuracy on the tasks so far after each of five tasks: the continuum memory lies on its"
            " rate-matched control; consolidation and replay lie above both.",
            draw_continual,
            table_continual,
        ),
        StudyFigure(
            "optimizers",
            "M3 beside AdamW and Muon",
            "Training loss over steps, and test loss by optimizer: M3 and Muon fall fastest; M3 as printed"
            " hardly moves.",
            draw_optimizers,
            table_optimizers,
        ),
        StudyFigure(
            "languages",
            "Parity, beyond the training length",
            "Accuracy at the end of parity strings over their length, by rule; half is chance.",
            draw_languages,
            table_languages,
        ),
        StudyFigure(
            "stream",
            "Where delta gradient descent ends",
            "Squared error over a noiseless linear stream: gradient descent and DGD with doubled targets fall"
            " to zero, DGD as printed stays at a quarter of the targets' size.",
            draw_stream,
            table_stream,
        ),
        StudyFigure(
            "toys",
            "Delta momentum: orthogonal tasks and a winding valley",
            "Left: loss on earlier tasks over tasks learned. Right: value over steps in the valley, at each"
            " rule's best rate.",
            draw_toys,
            table_toys,
        ),
        StudyFigure(
            "levels",
            "The lens itself: the continuum memory under M3",
            "Levels by frequency, slowest at the bottom: the three levels of the memory, their chunks, and"
            " the momenta of the optimizer, each a bar from its own frequency upwards.",
            draw_levels,
            table_levels,
        ),
    ),
    snippet="""import torch
from gradatim.models import ContinuumMemory
from gradatim.optim import M3, MultiFrequency
from gradatim.probes import nested_levels

memory = ContinuumMemory(16, periods=(1, 4, 16), generator=torch.Generator().manual_seed(0))
optimizer = MultiFrequency(lambda groups: M3(groups, lr=3e-3), memory.groups(lr=3e-3))
data = torch.Generator().manual_seed(1)
for step in range(256):
    x = torch.randn(32, 16, generator=data)
    loss = (memory(x) - x.flip(-1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()                    # level 2 moves every 4 steps, level 3 every 16
print(nested_levels(memory, optimizer, tokens_per_step=32))
print(loss.item())
""",
    notes="""- The rate-matched control runs every level at every step, with the rate at which the slow ones
  move on average (RATE / C for means). With sums the network of one speed is its own rate-matched control.
- Rates of part (d) were chosen on the tuning seeds by test loss; those of the toys are chosen there within
  each trial.
- The paper publishes neither the valley's constants nor M3's; ours are in the code. Its language-model and
  vision results need models of 24M to 8B parameters and are not re-measured here. The arms `intents/*` of the
  paper's profile read CLINC-150, class by class, on fixed hashed n-grams: set GRADATIM_INTENTS to the path of
  `data_small.json` of github.com/clinc/oos-eval (CC BY 3.0).
- Elastic weight consolidation takes its penalty's step implicitly, since the explicit one diverges at
  strengths that work.
- `digits/*`: one head for all tasks, no task label at test time; five tasks of 1,400 examples, 4 epochs
  each.""",
)
