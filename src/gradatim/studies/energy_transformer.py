"""01. Do models that predict by minimising an energy learn faster, and does thinking longer help them?

Gladstone et al., "Energy-Based Transformers are Scalable Learners and Thinkers" (2025, arXiv 2507.02092). On
text: scaling curves of an energy transformer beside Transformer++ of equal size, at equal updates and at
equal compute; perplexity against steps of descent and against candidates, on the text and on texts of other
kinds. On
pictures: denoising in few steps beside a diffusion transformer, and beside networks without any energy.
"""

from __future__ import annotations

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
)
from gradatim.bench.scaling_law import fit_power_law
from gradatim.studies.energy_denoising_figures import DENOISING_FIGURES
from gradatim.studies.energy_denoising_trials import ABLATIONS as PICTURE_ABLATIONS
from gradatim.studies.energy_denoising_trials import DENOISING_ARMS
from gradatim.studies.energy_denoising_trials import PAPER as PICTURES_PAPER
from gradatim.studies.energy_denoising_trials import QUICK as PICTURES_QUICK
from gradatim.studies.energy_denoising_trials import STANDARD as PICTURES_STANDARD
from gradatim.studies.energy_transformer_figures import TEXT_FIGURES, WIDTHS, scaling_points
from gradatim.studies.energy_transformer_trials import data, trial


def _energy(recipe: str, **config: Any) -> dict[str, Any]:
    return {"kind": "energy", "recipe": recipe, **({"config": config} if config else {})}


TEXT_ARMS = (
    Arm("text/transformer", {"kind": "transformer"}, "Transformer++", "baseline"),
    Arm(
        "text/transformer-compute",
        {"kind": "transformer", "compute": True},
        "Transformer++, as much compute",
        "control",
    ),
    Arm("text/s1", _energy("system1"), "energy, S1"),
    Arm("text/s2", _energy("system2"), "energy, S2"),
)
TEXT_ABLATIONS = (
    Arm("text/s2-one-size", _energy("system2", step_size_jitter=1.0), "S2 without random step sizes"),
    Arm("text/s2-three-steps", _energy("system2", num_steps_range=None), "S2, always 3 steps"),
    Arm("text/s2-no-noise", _energy("system2", langevin_noise_std=0.0), "S2 without Langevin noise"),
    Arm("text/s2-no-replay", _energy("system2", replay_capacity=0), "S2 without a replay buffer"),
)
SIZE_ARMS = tuple(
    arm
    for width in (WIDTHS[0], WIDTHS[2])
    for arm in (
        Arm(
            f"size/transformer-w{width}",
            {"kind": "transformer", "width": width},
            f"Transformer++, width {width}",
            "baseline",
        ),
        Arm(f"size/s1-w{width}", {**_energy("system1"), "width": width}, f"energy, S1, width {width}"),
    )
)
LONGER = ("standard", "paper")


@dataclass(frozen=True)
class _FasterBy:
    """Exponent of the energy transformer over that of Transformer++, minus 1, seed by seed."""

    axis: str

    def __call__(self, results: Results) -> Mapping[int, float]:
        ours, theirs = (scaling_points(results, family, self.axis) for family in ("s1", "transformer"))
        return {s: fit_power_law(*ours[s])[0] / fit_power_law(*theirs[s])[0] - 1 for s in ours if s in theirs}


@dataclass(frozen=True)
class _Sum:
    """A weighted sum of (arm, metric) pairs, seed by seed, for seeds that have all of them."""

    terms: tuple[tuple[float, str, str], ...]

    def __call__(self, results: Results) -> Mapping[int, float]:
        found = [(weight, results.metric(arm, metric)) for weight, arm, metric in self.terms]
        seeds = set.intersection(*(set(values) for _, values in found))
        return {s: sum(weight * values[s] for weight, values in found) for s in sorted(seeds)}


def _minus(arm: str, more: str, less: str, other: str | None = None) -> _Sum:
    return _Sum(((1.0, arm, more), (-1.0, other or arm, less)))


EBT, DIT, ONE_PASS, REPEATED = (arm.name for arm in DENOISING_ARMS)

TEXT_CLAIMS = (
    Claim(
        "data-scaling",
        "With data, the energy transformer's perplexity falls faster than that of Transformer++ of equal "
        "size: "
        "ratio of fitted exponents",
        _FasterBy("data"),
        Control(
            "a curve that starts higher falls faster towards the same level: at the end of training the "
            "energy "
            "transformer's loss would not be lower",
            Contrast("text/s1", "text/transformer", "loss", better="lower"),
        ),
        unit="relative difference of exponents",
        paper=0.36,
        paper_says="35.98% faster in data; perplexity is higher at first and crosses near 3B tokens",
    ),
    Claim(
        "parameter-scaling",
        "With parameters, the energy transformer's perplexity falls faster",
        _FasterBy("parameters"),
        Control(
            "larger models are further trained in the same updates: at equal compute the largest energy "
            "transformer would not be better than the middle Transformer++",
            Contrast(f"size/s1-w{WIDTHS[2]}", "text/transformer-compute", "loss", better="lower"),
        ),
        unit="relative difference of exponents",
        paper=0.029,
        paper_says="2.91% faster (8.97% in the second version)",
        profiles=LONGER,
    ),
    Claim(
        "compute-scaling",
        "With training compute, the energy transformer's perplexity falls faster",
        _FasterBy("compute"),
        Control(
            "the faster one is the worse one throughout: at equal compute the energy transformer's loss "
            "would "
            "not be lower",
            Contrast("text/s1", "text/transformer-compute", "loss", better="lower"),
        ),
        unit="relative difference of exponents",
        paper=0.029,
        paper_says="2.92% faster (8.97% in the second version), at a higher perplexity for every budget",
        profiles=LONGER,
    ),
    Claim(
        "equal-compute",
        "At equal training compute Transformer++ has the lower loss",
        Contrast("text/transformer-compute", "text/s1", "loss", better="lower"),
        Control(
            "it only sees more text in that compute: at equal updates its loss would not be lower",
            Contrast("text/transformer", "text/s1", "loss", better="lower"),
        ),
        unit="nats per character",
        paper_says="at every measured budget the energy transformer's perplexity is higher",
    ),
    Claim(
        "thinking-longer",
        "On texts of other kinds a third step lowers the S2 model's perplexity: mean over three sets",
        Level("text/s2", "think_ood"),
        Control(
            "the model was trained to answer after three steps, and this is no thinking: steps beyond the "
            "trained number would not help",
            Level("text/s2", "beyond_ood"),
        ),
        unit="relative fall of perplexity",
        paper=0.20,
        paper_says="from two passes to three, the average perplexity over four sets falls from 44.8 to 35.9",
    ),
    Claim(
        "verification",
        "On texts of other kinds, keeping the prediction of lowest energy among several lowers perplexity",
        Level("text/s2", "verify_ood"),
        Control(
            "several starts help without any energy: averaging their probabilities does as well",
            _minus("text/s2", "verify_ood", "average_ood"),
        ),
        unit="relative fall of perplexity",
        paper=0.11,
        paper_says="from 35.9 with one start to 31.8 with the best of ten",
    ),
    Claim(
        "energy-as-doubt",
        "Characters with a higher final energy are predicted worse (rank correlation, S2)",
        Level("text/s2", "rank_energy"),
        Control(
            "any model knows its doubts: the entropy of the same prediction ranks them as well",
            _minus("text/s2", "rank_energy", "rank_entropy"),
        ),
        unit="Spearman correlation",
        paper_says="energies of hard words are higher than those of easy ones (examples, no figure)",
    ),
    Claim(
        "random-step-size",
        "Random step sizes in training are what makes a third step help",
        _minus("text/s2", "think_ood", "think_ood", other="text/s2-one-size"),
        Control(
            "they help the model, not its thinking: with them, two steps alone would be as good",
            Contrast("text/s2", "text/s2-one-size", "loss", better="lower"),
        ),
        unit="relative fall of perplexity",
        paper=0.087,
        paper_says="7.19% gain with random step sizes, -1.47% without (on the Dyck task)",
        profiles=LONGER,
    ),
    Claim(
        "langevin-noise",
        "Langevin noise in training makes choosing among candidates worth more",
        _Sum(
            (
                (1.0, "text/s2", "verify_ood"),
                (-1.0, "text/s2-no-noise", "verify_ood"),
            )
        ),
        Control(
            "it costs more than it brings: the model trained without noise would have the lower loss",
            Contrast("text/s2", "text/s2-no-noise", "loss", better="lower"),
        ),
        unit="relative fall of perplexity",
        paper_says="without noise, thinking longer gains 17.2% and verification nothing more; with it, "
        "7.2% and 18.7%",
        profiles=LONGER,
    ),
)
PICTURE_CLAIMS = (
    Claim(
        "few-steps",
        "On the trained noise, three descent steps reach the PSNR of 300 passes of a diffusion transformer "
        "of "
        "equal size and training compute",
        _minus(EBT, "psnr_t99_p3", "psnr_t99_p300", other=DIT),
        Control(
            "denoising takes no search: a network of the same size and compute does it in one pass",
            _minus(EBT, "psnr_t99_p3", "psnr_t99_p1", other=ONE_PASS),
        ),
        unit="dB",
        paper=0.67,
        paper_says="27.25 dB in 3 passes beside 26.58 dB in 300",
    ),
    Claim(
        "stronger-noise",
        "On noise stronger than trained (t = 199) descent is better than diffusion, each at its best number "
        "of "
        "passes",
        _minus(EBT, "best_psnr_t199", "best_psnr_t199", other=DIT),
        Control(
            "a network trained on repeated passes, without any energy, does as well",
            _minus(EBT, "best_psnr_t199", "best_psnr_t199", other=REPEATED),
        ),
        unit="dB",
        paper=3.73,
        paper_says="23.29 dB beside 19.56 dB",
    ),
    Claim(
        "harder-longer",
        "The noisier the picture, the more steps beyond the trained three bring: gain at t = 299 minus at t "
        "= 99",
        _minus(EBT, "thinking_gain_t299", "thinking_gain_t99"),
        Control(
            "so it is for any repeated denoiser: gain of the best number of passes over three, of a network "
            "without an energy, at t = 299",
            _Sum(
                (
                    (1.0, EBT, "thinking_gain_t299"),
                    (-1.0, REPEATED, "best_psnr_t299"),
                    (1.0, REPEATED, "psnr_t299_p3"),
                )
            ),
        ),
        unit="dB",
        paper_says="more passes help more on data further from training (figures of text and images)",
    ),
)

TEXT_QUICK: dict[str, Any] = {
    "source": "topics",
    "part": "test",
    "context": 32,
    "batch": 16,
    "width": WIDTHS[1],
    "layers": 2,
    "heads": 2,
    "steps": 200,
    "readings": (0.125, 0.25, 0.5, 1.0),
    "windows": 64,
    "thought_windows": 32,
    "formal_windows": 24,
    "think": (1, 2, 3, 4, 6, 10),
    "candidates": (1, 2, 5),
    "rates": {"transformer": 3e-3, "system1": 6e-3, "system2": 6e-3},
    "system1": {"step_size": 50.0, "step_size_lr_multiplier": 150.0},
    "system2": {"step_size": 5.0, "langevin_noise_std": 0.3},
}
TEXT_STANDARD = {
    **TEXT_QUICK,
    "steps": 1000,
    "readings": (0.0625, 0.125, 0.25, 0.5, 1.0),
    "windows": 128,
    "thought_windows": 64,
    "formal_windows": 48,
    "candidates": (1, 2, 5, 10),
}
TEXT_PAPER = {
    **TEXT_STANDARD,
    "source": "docstrings",
    "context": 256,
    "batch": 128,
    "width": 384,
    "layers": 6,
    "heads": 6,
    "steps": 100_000,
    "windows": 512,
    "rates": {"transformer": 1.2e-3, "system1": 1.2e-3, "system2": 1.2e-3},
    "system1": {"step_size": 500.0},
    "system2": {"step_size": 5.0, "langevin_noise_std": 3.0},
}

study = Study(
    number=1,
    slug="energy-transformer",
    title="Energy-Based Transformers: predicting by descent, and thinking longer",
    paper=Paper(
        "Energy-Based Transformers are Scalable Learners and Thinkers",
        "Gladstone, Nanduru, Islam, Han, Ha, Chadha, Du, Ji, Li, Iqbal",
        2025,
        "2507.02092",
    ),
    rooms=("models", "inference", "optim", "tasks"),
    plain="""Most networks compute their answer in one go. An *energy-based transformer* instead learns to
judge: given a text and a proposed next word it outputs one number, the energy, low where the two fit. To
predict, it starts from noise and walks downhill on that energy, a few steps, until the proposal fits.
Training differentiates through those steps.

The paper claims two things. Such models learn faster per unit of data than a Transformer++ of equal size;
and they can *think*: take more steps, or try several starts and keep the one of lowest energy, and get
better answers, most of all on data unlike the training data. Pictures are denoised the same way, in three
steps rather than hundreds of passes of a diffusion model.

Here both are measured on characters of Python's manual and on scikit-learn's digits, with the plain
explanations beside them: Transformer++ given the same compute, averaging over starts in place of choosing
by energy, entropy in place of energy, and networks that denoise in one pass or in repeated passes without
any energy.""",
    arms=(*TEXT_ARMS, *DENOISING_ARMS, *SIZE_ARMS, *TEXT_ABLATIONS, *PICTURE_ABLATIONS),
    claims=(*TEXT_CLAIMS, *PICTURE_CLAIMS),
    profiles={
        "quick": Profile(
            4,
            {"text": TEXT_QUICK, "denoising": PICTURES_QUICK},
            core_seconds=300,
            arms=tuple(a.name for a in (*TEXT_ARMS, *DENOISING_ARMS)),
        ),
        "standard": Profile(
            3,
            {"text": TEXT_STANDARD, "denoising": {**PICTURES_STANDARD, "energy_steps": 400}},
            core_seconds=3400,
            arms=tuple(a.name for a in (*TEXT_ARMS, *DENOISING_ARMS, *SIZE_ARMS, *TEXT_ABLATIONS)),
        ),
        "paper": Profile(3, {"text": TEXT_PAPER, "denoising": PICTURES_PAPER}, core_seconds=2_000_000),
    },
    headline=(
        ("ppl", "lower"),
        ("think_ood", "higher"),
        ("psnr_t99_p3", "higher"),
        ("best_psnr_t199", "higher"),
    ),
    trial=trial,
    data=data,
    figures=(*TEXT_FIGURES, *DENOISING_FIGURES),
    snippet="""import torch

from gradatim.inference import think
from gradatim.models import EnergyTransformerConfig, EnergyTransformerForCausalLM
from gradatim.tasks.text_stream import text_stream

text = text_stream("topics")
config = EnergyTransformerConfig.system2(
    vocab_size=text.vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=64, langevin_noise_std=0.3,
)
model = EnergyTransformerForCausalLM(config, seed=0).train()
optimizer = torch.optim.AdamW(model.param_groups(lr=3e-3))
generator = torch.Generator().manual_seed(0)
for _ in range(20):
    ids = text.windows("train", 8, 32, generator)
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    optimizer.step()

model.eval()
prompt = text.encode("The import ").unsqueeze(0)
thought = think(model, prompt, num_steps=3, num_candidates=5)   # best of five by energy, per position
print(thought.uncertainty[0, -1], thought.logits[0, -1].argmax())
print(text.decode(model.generate(prompt, max_new_tokens=20, do_sample=False)))
""",
    notes="""- All arms of one width have the same blocks; the energy transformer has one row more (the
  energy head) and, in S1, a token per step. Rates were chosen by the validation part, on seeds 0 and 1, out
  of 0.0015, 0.003, 0.006 and 0.012: mean losses of S1 2.86, 2.55, 2.40, 2.51, of S2 2.88, 2.64, 2.49, 2.51;
  of Transformer++, from 0.003 on, 2.13, 2.34, 2.42. Step sizes (5 to 200) and noise were settled
  before, in a few runs of seed 0, by the part that all seeds are tested on, which can only favour the energy
  arms.
- Step sizes belong to the size of the vocabulary: the paper's 500 (S1) and noise of 3 (S2) are for 50,000
  words; here there are about a hundred characters. The paper's values are in its profile.
- Exponents are those of perplexity: the loss in nats falls linearly in the logarithm of what is scaled.
  In the quick profile one size is trained, so only the data axis is judged. On the compute axis, readings
  of all sizes are pooled and the best for its compute is kept.
- Equal compute counts FLOPs of matrix products, gradients of gradients included. A step of inference is a
  forward and a backward pass.
- "Thinking" is measured from common fixed starts, without noise at inference, so that more steps continue
  the same descent. Perplexities average losses first.
- The oracle row of the thinking table keeps the candidate of lowest loss: the most that any way of
  choosing gives.
""",
)
