"""Formal-language trials of study 04: which rules for writing a memory can track a state, and how far.

All arms are one layer that mixes positions, and a network, both residual, behind an embedding of width
`dim`; they differ in the layer alone. Strings of up to `train` symbols are learned with a label at every
position; longer ones judge. Models of all seeds are trained as one stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradatim.bench import Arm, Curve, Outcome, Scale
from gradatim.bench.stacked import StackedTraining, train_stacked
from gradatim.models.decoder import MLP, Decoder
from gradatim.models.delta_rule import DeltaRule
from gradatim.models.self_modifying_memory import SelfModifyingMemory
from gradatim.tasks.contexts import context_generator
from gradatim.tasks.formal_languages import FORMAL_LANGUAGES, IGNORED, LabelledStrings, exact, last_accuracy

TRAINING, EVALUATION, MODEL = range(3)

# (name, settings, label, role)
_RULES: tuple[tuple[str, dict[str, Any], str, Literal["method", "baseline", "control"]], ...] = (
    ("self-modifying", {"rule": "self"}, "self-modifying, DGD", "method"),
    (
        "self-modifying, no DGD",
        {"rule": "self", "delta_gradient": False},
        "self-modifying, plain gradient",
        "control",
    ),
    (
        "self-modifying, literal v",
        {"rule": "self", "normalize_value": False, "alone": True},
        "self-modifying, values as printed",
        "control",
    ),
    ("delta (0,1)", {"rule": "delta", "beta_max": 1.0}, "delta rule, rates below 1", "baseline"),
    ("delta (0,2)", {"rule": "delta", "beta_max": 2.0}, "delta rule, rates up to 2", "control"),
    ("linear attention", {"rule": "linear_attention"}, "linear attention", "baseline"),
    ("LSTM", {"rule": "lstm"}, "LSTM", "baseline"),
    ("Transformer", {"rule": "attention"}, "Transformer", "baseline"),
)


def arms_of(language: str) -> tuple[Arm, ...]:
    """Every rule on one of `FORMAL_LANGUAGES`, named `language/rule`."""
    return tuple(
        Arm(f"{language}/{name}", {"language": language, **settings}, label, role)
        for name, settings, label, role in _RULES
    )


ARMS = arms_of("parity")

# `train`: (length, steps) in turn; `judge`: lengths; `bins`: ranges of lengths for whole strings.
QUICK: Scale = {
    "dim": 24,
    "batch": 16,
    "lr": 1e-2,
    "train": ((16, 300), (32, 60)),
    "judge": (16, 32, 64, 128),
    "bins": ((2, 32), (33, 64)),
    "strings": 200,
}
# Lengths of the paper's table: up to 50 to learn from and to judge (Bin0), 51 to 100 beyond (Bin1).
STANDARD: Scale = {
    "dim": 32,
    "batch": 32,
    "lr": 5e-3,
    "train": ((16, 400), (32, 200), (50, 100)),
    "judge": (16, 32, 64, 128),
    "bins": ((2, 50), (51, 100)),
    "strings": 500,
}


class Mixed(nn.Module):
    """embedding -> h + layer(norm(h)) -> h + MLP(norm(h)) -> logits."""

    def __init__(self, settings: dict[str, Any], dim: int, symbols: int, classes: int, longest: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, dim)
        self.mixer_norm, self.mlp_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.mixer = make_mixer(settings, dim, longest)
        self.mlp = MLP(dim, 4 * dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, time] -> logits [batch, time, classes]."""
        h = self.embedding(tokens)
        found = self.mixer(self.mixer_norm(h))
        h = h + (found[0] if isinstance(found, tuple) else found)
        return self.head(h + self.mlp(self.mlp_norm(h)))


def make_mixer(settings: dict[str, Any], dim: int, longest: int) -> nn.Module:
    """The layer of an arm; each gives its output first."""
    rule = settings["rule"]
    if rule == "self":
        switches = {k: settings[k] for k in ("delta_gradient", "normalize_value") if k in settings}
        # At this width a loop over tokens is quicker than sweeps over blocks, and can be stacked.
        return SelfModifyingMemory(dim, conv_size=0, method="steps", **switches)
    if rule == "lstm":
        return LSTM(dim)
    if rule == "attention":
        return Decoder(dim, 1, 2, max_positions=longest, positions="rotary")
    return DeltaRule(dim, kind=rule, beta_max=settings.get("beta_max", 1.0), conv_size=0, chunk=16)


class LSTM(nn.Module):
    """`torch.nn.LSTM`, as one matrix per step that can be stacked over seeds: i, f, o = sigmoid, g = tanh."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inputs, self.hidden = nn.Linear(dim, 4 * dim), nn.Linear(dim, 4 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, H] -> [batch, time, H]."""
        drive = self.inputs(x)
        h = c = torch.zeros_like(x[:, 0])
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (drive[:, t] + self.hidden(h)).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1)


def parity_batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """One outcome per seed; the models of all seeds are trained as one stack.

    Metrics: last{T} accuracy over the last 8 positions of strings of T symbols; exact{low}-{high} share of
    strings with every position right; loss, the mean training loss of the last 20 steps; diverged, 1 where
    the loss was lost, and finite_steps, the share of the steps before that. A diverged seed has only those
    two.
    """
    if arm.settings.get("alone"):  # one that diverges would stop the others
        return [_outcome(arm, seed, scale) for seed in seeds]
    return _judged(arm, seeds, scale, _train(arm, seeds, scale))


def parity(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """One seed alone: the same as in a stack, to rounding."""
    return _outcome(arm, seed, scale)


def _outcome(arm: Arm, seed: int, scale: Scale) -> Outcome:
    losses: list[float] = []
    try:
        return _judged(arm, [seed], scale, _train(arm, [seed], scale, losses))[0]
    except (FloatingPointError, RuntimeError) as error:
        if "not finite" not in str(error):
            raise
    steps = sum(count for _, count in scale["train"])
    return Outcome(
        {"diverged": 1.0, "finite_steps": len(losses) / steps}, {"loss": _loss_curve(np.asarray(losses))}
    )


def _train(arm: Arm, seeds: Sequence[int], scale: Scale, log: list[float] | None = None) -> StackedTraining:
    """Strings of each length in turn, drawn anew at every step, the same for every arm."""
    language = FORMAL_LANGUAGES[arm.settings["language"]]
    longest = max(*scale["judge"], *(high for _, high in scale["bins"]))
    stages = [length for length, count in scale["train"] for _ in range(count)]

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=context_generator(MODEL, seed, 0))))
            sizes = (scale["dim"], len(language.alphabet), len(language.classes), longest)
            return Mixed(dict(arm.settings), *sizes)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        high = stages[step] // language.multiple * language.multiple
        # Where every prefix of a string is one of the language's own tasks, longest strings hold all others.
        low = high if language.multiple == 1 else 2
        drawn = [
            language.sample(scale["batch"], (low, high), context_generator(TRAINING, seed, step))
            for seed in seeds
        ]
        return torch.stack([d.tokens for d in drawn]), torch.stack([d.labels for d in drawn])

    def loss(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
        found = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        if log is not None:
            log.append(float(found.detach()))
        return found

    return train_stacked(
        make,
        draw,
        loss,
        seeds=seeds,
        steps=len(stages),
        lr=scale["lr"],
        engine="loop" if len(seeds) == 1 else "vmap",
    )


@torch.no_grad()
def _judged(arm: Arm, seeds: Sequence[int], scale: Scale, found: StackedTraining) -> list[Outcome]:
    language = FORMAL_LANGUAGES[arm.settings["language"]]
    outcomes = []
    for i, (seed, model) in enumerate(zip(seeds, found.models, strict=True)):

        def strings(low: int, high: int, seed: int = seed) -> LabelledStrings:
            generator = context_generator(EVALUATION, seed, low * 1000 + high)
            return language.sample(scale["strings"], (low, high), generator)

        metrics = {"diverged": 0.0, "finite_steps": 1.0, "loss": float(found.losses[-20:, i].mean())}
        for length in scale["judge"]:
            whole = length // language.multiple * language.multiple
            drawn = strings(whole, whole)
            metrics[f"last{length}"] = float(last_accuracy(model(drawn.tokens).argmax(-1), drawn).mean())
        for low, high in scale["bins"]:
            drawn = strings(low, high)
            metrics[f"exact{low}-{high}"] = float(exact(model(drawn.tokens).argmax(-1), drawn).mean())
        lengths = tuple(scale["judge"])
        reached = [metrics[f"last{n}"] for n in lengths]
        by_length = Curve(lengths, reached, "string length", "accuracy, last 8")
        curves = {"loss": _loss_curve(found.losses[:, i]), "accuracy": by_length}
        outcomes.append(Outcome(metrics, curves))
    return outcomes


def _loss_curve(losses: np.ndarray) -> Curve:
    """Mean loss of every ten steps."""
    groups = [losses[i : i + 10].mean() for i in range(0, len(losses), 10)]
    return Curve([10.0 * i for i in range(len(groups))], [float(g) for g in groups], "step", "training loss")
