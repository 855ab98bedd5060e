"""11. Does attention learn in context by gradient descent?

von Oswald et al., "Transformers learn in-context by gradient descent" (2022, arXiv 2212.07677). A seed is one
initialisation, one stream of training contexts and one set of 10,000 evaluation contexts. First the best
rates of GD and GD++ from eigenvalues alone; then layers of linear attention are trained and compared with
them: losses, sensitivities, weights in between, shifted tasks, repetition. d = 10, inputs U(-1/2, 1/2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
from gradatim.studies.icl_gradient_descent_figures import (
    draw_between,
    draw_gamma,
    draw_losses,
    draw_repetition,
    draw_shifts,
    draw_training,
    table_between,
    table_gamma,
    table_losses,
    table_repetition,
    table_shifts,
    table_training,
)
from gradatim.studies.icl_gradient_descent_trials import PAPER_GAMMA, batch

Role = Literal["method", "baseline", "control"]
UNTIED: dict[str, Any] = {"num_layers": 5, "tied": False, "clamp": 10.0}
APART: dict[str, Any] = {
    "num_layers": 2,
    "tied": False,
    "tokens": "interleaved",
    "pos_dim": 21,
    "attention": "softmax-first",
    "init_scale": 0.5,
}


def _arm(
    name: str, label: str, kind: str, recipe: str, role: Role = "method", n: int = 10, **settings: Any
) -> Arm:
    model = settings.pop("model", {})
    return Arm(name, {"kind": kind, "n": n, "model": model, "recipe": recipe, **settings}, label, role)


CORE = (
    *(
        Arm(f"filter/n{n}", {"kind": "filter", "n": n}, f"GD++ filter, N = {n}", "baseline")
        for n in PAPER_GAMMA
    ),
    _arm("layer/one", "1 layer", "linear", "one", shifts=True, repeat=True),
    _arm("layer/two-heads", "1 layer, 2 heads", "linear", "one", "control", model={"num_heads": 2}),
    _arm("layer/skewed", "1 layer, skewed inputs", "linear", "skewed", "control", skewed=True),
    _arm("layer/looped", "2 looped layers", "linear", "looped", model={"num_layers": 2}, shifts=True),
    _arm("layer/untied", "5 layers", "linear", "untied", model=UNTIED),
    _arm("softmax/one-head", "softmax, 1 head", "plain", "softmax", "control",
         model={"attention": "softmax", "init_scale": 0.1}),
    _arm("softmax/two-heads", "softmax, 2 heads", "plain", "softmax",
         model={"attention": "softmax", "num_heads": 2, "init_scale": 0.1}),
    _arm("plateau/one-head", "1 head, small rate", "plateau", "plateau"),
    _arm("plateau/wide-head", "1 head, twice as wide, small rate", "plateau", "plateau", "control",
         model={"key_dim": 22}),
    _arm("plateau/two-heads", "2 heads, small rate", "plateau", "plateau", model={"num_heads": 2}),
    _arm("tokens/interleaved", "x and y as tokens of their own", "interleaved", "interleaved", model=APART),
)  # fmt: skip
MORE = (
    _arm("layer/looped-n25", "2 looped layers, N = 25", "linear", "looped", n=25, model={"num_layers": 2}),
    _arm("layer/looped-n50", "2 looped layers, N = 50", "linear", "looped", n=50, model={"num_layers": 2}),
    _arm("layer/ten-looped", "10 looped layers", "linear", "untied",
         model={"num_layers": 10, "clamp": 10.0}),
    _arm("layer/norm", "2 looped layers, layer norm between", "plain", "looped", "control",
         model={"num_layers": 2, "layer_norm": "between"}),
    _arm("layer/mlp", "2 layers with MLPs, 4 heads", "plain", "looped",
         model={"num_layers": 2, "tied": False, "mlp_ratio": 4, "num_heads": 4}),
    _arm("layer/mixed", "1 layer, softmax and linear mixed", "plain", "softmax",
         model={"attention": "mixed", "init_scale": 0.1}),
    *(_arm(f"pool/{size}", f"1 layer, {size} contexts", "linear", "one", "control", pool=size)
      for size in (128, 512, 2048, 8192)),
    _arm("sine", "sine waves, network and 1 layer", "sine", "sine", model={"d": 1, "features": 39}),
)  # fmt: skip
LARGE = (
    _arm("layer/twelve", "12 blocks with MLPs, 4 heads", "plain", "large",
         model={"num_layers": 12, "tied": False, "mlp_ratio": 4, "num_heads": 4, "clamp": 10.0}),
)  # fmt: skip


@dataclass(frozen=True)
class _MeanOver:
    """The mean over arms of one metric, seed by seed, for seeds that every arm has."""

    arms: tuple[str, ...]
    metric: str
    minus: str | None = None

    def __call__(self, results: Results) -> Mapping[int, float]:
        found = [results.metric(arm, self.metric) for arm in self.arms]
        less = [results.metric(arm, self.minus) if self.minus else {} for arm in self.arms]
        seeds = set.intersection(*(set(f) for f in found)) if found else set()
        return {
            s: sum(f[s] - g.get(s, 0.0) for f, g in zip(found, less, strict=True)) / len(found)
            for s in sorted(seeds)
        }


@dataclass(frozen=True)
class _Between:
    """metric `more` minus metric `less` of one arm, seed by seed; divided by `over` if given."""

    arm: str
    more: str
    less: str
    over: str | None = None

    def __call__(self, results: Results) -> Mapping[int, float]:
        more, less = results.metric(self.arm, self.more), results.metric(self.arm, self.less)
        over = results.metric(self.arm, self.over) if self.over else dict.fromkeys(more, 1.0)
        return {s: (more[s] - less[s]) / over[s] for s in more}


@dataclass(frozen=True)
class _Nearer:
    """The largest of the metrics `ours` minus the largest of `theirs`, seed by seed."""

    arm: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]

    def __call__(self, results: Results) -> Mapping[int, float]:
        ours, theirs = ([results.metric(self.arm, m) for m in names] for names in (self.ours, self.theirs))
        return {s: max(m[s] for m in ours) - max(m[s] for m in theirs) for s in ours[0]}


@dataclass(frozen=True)
class _Left:
    """An effect, for the seeds of its arm that left their plateau in time to end (see `left_plateau`)."""

    effect: Level | _Between | _Nearer

    def __call__(self, results: Results) -> Mapping[int, float]:
        left = results.metric(self.effect.arm, "left_plateau")
        return {seed: value for seed, value in self.effect(results).items() if left[seed]}


@dataclass(frozen=True)
class _HeadGain:
    """Loss over GD's of the arm with one head, minus that with two; less the same gain of other arms."""

    one: str
    two: str
    less: tuple[str, str] | None = None

    def __call__(self, results: Results) -> Mapping[int, float]:
        gain = _difference(results, self.one, self.two)
        other = _difference(results, *self.less) if self.less else dict.fromkeys(gain, 0.0)
        return {s: gain[s] - other[s] for s in gain if s in other}


def _difference(results: Results, one: str, two: str) -> dict[int, float]:
    a, b = results.metric(one, "excess_gd1"), results.metric(two, "excess_gd1")
    return {s: a[s] - b[s] for s in a if s in b}


FILTERS = tuple(f"filter/n{n}" for n in PAPER_GAMMA)

CLAIMS = (
    Claim(
        "gamma",
        "The best γ of two looped GD++ steps, found on eigenvalues alone, is the γ of the paper's trained "
        "layers (mean over N = 10, 25, 50, 100)",
        _MeanOver(FILTERS, "gamma_gap"),
        Control(
            "stability alone sets γ: the value where λ(1 - γλ)² turns over at the typical largest "
            "eigenvalue comes as near",
            _MeanOver(FILTERS, "rule_distance", "gamma_distance"),
        ),
        unit="relative difference",
        test="equivalent",
        margin=0.03,
        paper=0.0,
        paper_says="trained looped layers have γ = 0.179, 0.099, 0.056, 0.029",
    ),
    Claim(
        "one-step-loss",
        "One trained layer has the loss of one step of gradient descent at its best rate",
        _Left(Level("layer/one", "excess_gd1")),
        Control(
            "the layer may hide more than one step: its loss above that of two steps at their best rate",
            _Left(Level("layer/one", "excess_gd", bound=0.1)),
        ),
        unit="relative difference of losses",
        test="equivalent",
        margin=0.02,
        paper=0.0,
        paper_says="the two curves of the loss coincide (about 0.206)",
    ),
    Claim(
        "one-step-model",
        "One trained layer computes the step: cosine of the sensitivities above 0.98",
        _Left(Level("layer/one", "cos_gd1", bound=0.98)),
        Control(
            "a layer learns the best matrix P in w = P Xᵀy, which is a multiple of the identity only because "
            "inputs are isotropic: on skewed inputs plain GD at its best rate would lie as near as "
            "preconditioned GD",
            _Left(_Between("layer/skewed", "cos_gd1", "cos_pgd")),
            test="equivalent",
            margin=0.01,
        ),
        unit="cosine above 0.98",
        paper=0.02,
        paper_says="cosine about 1, differences about 0",
    ),
    Claim(
        "interpolation",
        "Halfway between the trained layer and the construction the loss is that of the trained layer",
        _Left(Level("layer/one", "halfway_excess")),
        Control(
            "the loss is flat there: halfway to a construction of twice the rate it is no worse",
            _Left(Level("layer/one", "astray_excess", bound=0.02)),
        ),
        unit="relative difference of losses",
        test="equivalent",
        margin=0.02,
        paper=0.0,
        paper_says="the interpolated model's curve coincides with both",
    ),
    Claim(
        "shifts",
        "The layer follows GD on shifted tasks: mean |log ratio| of median losses below 0.1 over inputs, "
        "weights, families and distractors",
        _Left(Level("layer/one", "shift_gap_model", bound=0.1, better="lower")),
        Control(
            "far outside, any learner of the kind does the same: GD++ at its best is as near to GD",
            _Left(_Between("layer/one", "shift_gap_pp", "shift_gap_model")),
        ),
        unit="0.1 minus log ratio",
        paper_says="the out-of-distribution curves of layer and GD coincide",
    ),
    Claim(
        "damping",
        "Applied 50 times with damping 0.75, the trained layer lowers the loss, as GD does: by more than 0.3 "
        "decades beyond its first application",
        _Left(Level("layer/one", "damped_fall", bound=0.3)),
        Control(
            "no damping is needed: without it the loss falls as well",
            _Left(_Between("layer/one", "damped_fall", "plain_fall")),
        ),
        unit="decades of loss above 0.3",
        paper_says="the damped layer keeps improving like damped GD, the undamped ones diverge",
    ),
    Claim(
        "looped-beats-gd",
        "Two looped layers have a lower loss than two steps of GD at their best rate",
        _Left(_Between("layer/looped", "loss_gd", "loss", "loss_gd")),
        Control(
            "a rate for each step explains it: GD with its own best rates",
            _Left(_Between("layer/looped", "loss_gd_own", "loss", "loss_gd_own")),
        ),
        unit="relative gain",
        paper_says="the trained model is clearly below GD and coincides with GD++",
    ),
    Claim(
        "looped-is-gd-pp",
        "Two looped layers compute GD++ rather than GD: difference of the cosines",
        _Left(_Between("layer/looped", "cos_pp", "cos_gd")),
        Control(
            "a rate for each step explains it: GD with its own best rates is as near",
            _Left(_Between("layer/looped", "cos_pp", "cos_gd_own")),
        ),
        unit="difference of cosines",
        paper=0.05,
        paper_says="cosine about .95 with GD, about 1 with GD++",
    ),
    Claim(
        "looped-gamma",
        "The γ that two looped layers learn is the best γ of the filter",
        _Left(Level("layer/looped", "gamma_gap")),
        Control(
            "the scale by which products are read makes it: then η, read the same way, would be off",
            _Left(Level("layer/looped", "lr_gap")),
            test="equivalent",
            margin=0.1,
        ),
        unit="relative difference",
        test="equivalent",
        margin=0.1,
        paper_says="γ = 0.179 at N = 10 (learned); the filter's best is 0.176",
    ),
    Claim(
        "untied-is-gd-pp",
        "Five layers of their own compute GD++ rather than GD: cosine with the nearer GD++ (shared or own "
        "rates) minus that with the nearer GD",
        _Left(_Nearer("layer/untied", ("cos_pp", "cos_pp_own"), ("cos_gd", "cos_gd_own"))),
        Control(
            "looped GD++, one rate and one γ, has as low a loss as five layers of their own",
            _Left(_Between("layer/untied", "loss_pp", "loss", "loss_pp")),
        ),
        unit="difference of cosines",
        paper_says="close to GD++ with ten scalars, loss near 0",
    ),
    Claim(
        "two-softmax-heads",
        "A second head lets softmax attention come close to the GD step: share of GD's loss gained",
        _HeadGain("softmax/one-head", "softmax/two-heads"),
        Control(
            "any second head helps: what it gains without softmax",
            _HeadGain("softmax/one-head", "softmax/two-heads", less=("layer/one", "layer/two-heads")),
        ),
        unit="share of GD's loss",
        paper_says="one softmax head is worse than GD, two close the gap",
    ),
    Claim(
        "plateaus",
        "A second head shortens the plateau of training",
        Contrast("plateau/two-heads", "plateau/one-head", "waited", better="lower"),
        Control(
            "it takes parameters, not heads: one head with keys twice as wide",
            Contrast("plateau/two-heads", "plateau/wide-head", "waited", better="lower"),
        ),
        unit="share of training",
        paper_says="long plateaus that depend on the seed with one head, none with two",
    ),
    Claim(
        "copying",
        "With x and y as tokens of their own, two layers reach the loss of one step, not of two",
        _Left(Level("tokens/interleaved", "excess_gd1")),
        Control(
            "no copying is involved: layer 1 reads the next token no more than others",
            _Left(Level("tokens/interleaved", "copying_log")),
        ),
        unit="relative difference of losses",
        test="equivalent",
        margin=0.05,
        paper=0.0,
        paper_says="about 0.2, the loss of one step, once layer 1 has learned to read the next token",
    ),
)

study = Study(
    number=11,
    slug="icl-gradient-descent",
    title="One layer of linear attention learns in context by a step of gradient descent",
    paper=Paper(
        "Transformers learn in-context by gradient descent",
        "von Oswald, Niklasson, Randazzo, Sacramento, Mordvintsev, Zhmoginov, Vladymyrov",
        2022,
        "2212.07677",
    ),
    rooms=("models", "probes", "tasks"),
    plain="""A transformer is shown pairs (x, y) and asked for the y of a new x; each context has a
linear rule of its own, so it must learn the rule on the spot. With linear attention, weights can be written
down that make one layer exactly *one step of gradient descent* on the context's squared error. The paper
finds that training arrives at the same thing: same loss, same predictions, same answers on shifted tasks, and
the weights halfway between the trained layer and the written-down one work just as well.

With more layers the model does better than gradient descent: besides the step, each layer multiplies every x
by (I - γ XᵀX), which evens out the eigenvalues. The paper calls that GD++. Its best rates can be computed
from eigenvalues alone, without any attention, and are what the trained layers show.""",
    arms=(*CORE, *MORE, *LARGE),
    claims=CLAIMS,
    profiles={
        "quick": Profile(
            6,
            {
                "contexts": 10_000,
                "alignment_contexts": 2000,
                "fit_contexts": 4000,
                "shift_contexts": 2000,
                "recipes": {
                    "one": [256, 1200, 3e-2, 1.0],
                    "skewed": [256, 2000, 3e-2, 1.0],
                    "looped": [512, 1600, 1e-2, 1e-2],
                    "untied": [256, 2000, 1e-2, 1.0],
                    "softmax": [256, 1500, 1e-2, 1.0],
                    "plateau": [256, 1000, 1e-3, 1e-3],
                    "interleaved": [256, 1100, 1e-2, 1.0],
                },
            },
            core_seconds=340,
            arms=tuple(a.name for a in CORE),
            batch=3,
        ),
        "standard": Profile(
            8,
            {
                "contexts": 10_000,
                "alignment_contexts": 5000,
                "fit_contexts": 10_000,
                "shift_contexts": 10_000,
                "recipes": {
                    "one": [512, 2000, 3e-2, 1.0],
                    "skewed": [512, 4000, 3e-2, 1.0],
                    "looped": [512, 4000, 1e-2, 1e-2],
                    "untied": [512, 6000, 1e-2, 1.0],
                    "softmax": [512, 4000, 1e-2, 1.0],
                    "plateau": [512, 3000, 1e-3, 1e-3],
                    "interleaved": [512, 3000, 1e-2, 1.0],
                    "sine": [512, 2000, 3e-3, 1.0],
                },
            },
            core_seconds=3500,
            arms=tuple(a.name for a in (*CORE, *MORE)),
            batch=4,
        ),
        # The paper's own batch, rates, clipping and steps.
        "paper": Profile(
            10,
            {
                "contexts": 10_000,
                "alignment_contexts": 10_000,
                "fit_contexts": 20_000,
                "shift_contexts": 10_000,
                "device": "auto",
                "recipes": {
                    "one": [2048, 5000, 1e-3, 1e-3],
                    "skewed": [2048, 10_000, 1e-3, 1e-3],
                    "looped": [2048, 5000, 1e-3, 1e-3],
                    "untied": [2048, 50_000, 5e-4, 10.0],
                    "softmax": [2048, 5000, 1e-3, 1e-3],
                    "plateau": [2048, 5000, 1e-3, 1e-3],
                    "interleaved": [2048, 40_000, 1e-3, 10.0],
                    "sine": [2048, 20_000, 1e-3, 100.0],
                    "large": [2048, 50_000, 5e-4, 10.0],
                },
            },
            core_seconds=200_000,
            batch=10,
        ),
    },
    headline=(("loss", "lower"), ("cos_gd1", "higher"), ("cos_pp", "higher"), ("gamma", "higher")),
    batch=batch,
    figures=(
        StudyFigure(
            "losses",
            "Depth against its rivals",
            "Bars of loss for one, two looped and five layers beside gradient descent and GD++ at their best"
            " rates: one layer equals one step of GD, deeper models lie below GD and near GD++.",
            draw_losses,
            table_losses,
        ),
        StudyFigure(
            "between",
            "Weights in between",
            "Loss along the straight line from the trained layer to the construction: flat from end to end.",
            draw_between,
            table_between,
        ),
        StudyFigure(
            "gamma",
            "γ from eigenvalues alone",
            "γ over the number of pairs on logarithmic axes: the filter's best values lie on the paper's"
            " trained layers and on ours.",
            draw_gamma,
            table_gamma,
        ),
        StudyFigure(
            "shifts",
            "Shifted tasks",
            "Four panels of median loss as inputs, weights, families and labels shift: the trained layer lies"
            " on one step of GD everywhere, GD++ elsewhere.",
            draw_shifts,
            table_shifts,
        ),
        StudyFigure(
            "repetition",
            "The layer applied again",
            "Loss over applications of the one layer: with damping it keeps falling, like damped GD; without,"
            " both diverge.",
            draw_repetition,
            table_repetition,
        ),
        StudyFigure(
            "training",
            "Plateaus and copying",
            "Left: training losses at the paper's small rate; some seeds of one head wait on a plateau, two"
            " heads do not. Right: the interleaved model's loss falls when layer 1 starts to read the next"
            " token.",
            draw_training,
            table_training,
        ),
    ),
    snippet="""from gradatim.models import LinearAttentionRegressor, LSAConfig
from gradatim.models.constructions import gradient_descent
from gradatim.probes import alignment, optimal_gd_lr
from gradatim.tasks import LinearRegressionTask
import torch

task = LinearRegressionTask(d=4, n=11, x="uniform")       # ten pairs and a query
layer = LinearAttentionRegressor(LSAConfig(d=4), torch.Generator().manual_seed(0))
layer.fit(task, steps=500)
rate, loss = optimal_gd_lr(4, 10, 1 / 12, 1 / 80)
step = gradient_descent(4, 10, rate)                      # explicit weights: exactly one step
drawn = task.sample(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
print(alignment(layer.double(), step, drawn).cos)
""",
    notes="""- Inputs are U(-1/2, 1/2): the paper's text says U(-1, 1), but only the former gives its losses
  and its γ.
- "One step of gradient descent" holds because inputs are isotropic. A layer learns the best matrix P in
  w = P Xᵀy; on skewed inputs (`layer/skewed`) that is preconditioned GD, and plain GD at its best rate is
  not it.
- Two softmax heads with small opposite logits cancel the constant of softmax but not the mean of the logits:
  their limit is a GD step on inputs centred over the context (`softmax_gradient_descent`, tested).
- At the paper's rate of 0.001 some seeds of one head wait long on a plateau where one direction of x has been
  learned; with a larger rate and decay nearly all leave it. The arms `plateau/*` keep the small rate. Claims
  about a trained model count the seeds that left their plateau within three quarters of training; the table
  of plateaus says which did not.
- Per-step rates of GD++ have far better optima than those reached from a grid (`loss_pp_own`); trained
  layers end between GD++ with shared and with own rates.""",
)
