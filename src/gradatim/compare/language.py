"""Which language model on my text? Small models trained from scratch, at equal parameters and equal compute.

All arms have as many parameters as the Transformer++ of the size asked for. Each is trained twice:

- *at equal compute*: for as many updates as the FLOPs of the Transformer++'s `steps` updates buy it. It does
  so at every rate, and the rate that does best on the validation part is kept. This is what is judged.
- *at equal steps*: for `steps` updates at that rate, so on the same windows of text, whatever they cost.

The two tables differ: an Energy-Based Transformer's update costs several of a Transformer's. FLOPs are those
of all matrix products, forward and backward, gradients inside a forward pass included; CPU seconds stand
beside them.

The text is cut into the first 80%, the next 10% and the last 10%; what counts is the test part. Seeds repeat
the training on that one division: the interval holds the training's randomness, not the text's.

    from gradatim.compare import language
    study = language.comparison("book.txt", ["transformer", "ebt-s2"])
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradatim.bench.study import Arm, Better, Curve, Outcome, Scale, Study
from gradatim.compare.comparison import Task, Winner, as_metrics, comparison_study
from gradatim.compare.errors import DataError
from gradatim.compare.language_arms import (
    ARMS,
    COUNTED,
    REFERENCE,
    Shape,
    build,
    loss_of,
    make_optimizer,
    parameter_count,
    update_flops,
)
from gradatim.compare.language_counts import count_model_losses
from gradatim.compare.language_figures import COMPUTE, LEARNING, STEPS
from gradatim.compare.language_source import (
    LanguageData,
    bits,
    language_digest,
    load,
    source_of,
    tokens_of,
)

SIZES: Mapping[str, tuple[int, int, int]] = {
    "tiny": (64, 2, 4),
    "small": (128, 4, 4),
    "medium": (256, 6, 8),
    "large": (512, 8, 8),
}
"""Width, layers, heads."""
RATES = (1e-3, 4e-3)
ORDERS = range(1, 9)
MOST_WINDOWS = 200
CURVE_POINTS = 40
METRICS: tuple[tuple[str, Better], ...] = (
    (f"nats/char {COMPUTE}", "lower"),
    (f"nats/char {STEPS}", "lower"),
)
JUDGED = {"compute": METRICS, "steps": METRICS[::-1]}
SHOWN = {
    "nats/char": "nats/char",
    "bits/byte": "bits/byte",
    "perpl.": "perplexity",
    "updates": "updates",
    "TFLOPs": "TFLOPs",
    "CPU s": "CPU seconds",
}
"""Columns of both tables, by heading; perplexity is per token."""
REGIMES = (
    ("equal parameters, equal compute", COMPUTE),
    ("equal parameters, equal steps", STEPS),
)
"""The two tables: title and what their metrics end with."""


def trial(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """One seed of one arm: choose the rate at equal compute, judge; train again for equal steps, judge."""
    data = load(scale)
    if arm.name in COUNTED:
        return _counted(arm.name, data, scale)
    shape = shape_of(scale)
    cost = flops_per_update(arm.name, shape, scale["batch"])
    updates = updates_at_equal_compute(arm.name, scale)
    best: _Trained | None = None
    refused: list[str] = []
    for rate in scale["rates"]:
        try:
            found = _train(arm.name, seed, scale, rate, updates)
        except FloatingPointError as error:
            refused.append(f"{rate:g}: {error}")
            continue
        if best is None or found.valid < best.valid:
            best = found
    if best is None:
        raise FloatingPointError(f"training overflowed at every rate ({'; '.join(refused)})")
    equal = best if updates == scale["steps"] else _train(arm.name, seed, scale, best.rate, scale["steps"])
    metrics = {"parameters": float(parameter_count(arm.name, shape))}
    curves: dict[str, Curve] = {}
    for suffix, run in ((COMPUTE, best), (STEPS, equal)):
        metrics |= _scores(_losses(run.model, data, "test", scale), data, suffix)
        spent = len(run.history) * cost / 1e12
        metrics |= {
            f"updates {suffix}": float(len(run.history)),
            f"TFLOPs {suffix}": spent,
            f"CPU seconds {suffix}": run.seconds,
        }
        curves |= _learning(run.history, cost, suffix)
    return Outcome({**metrics, **as_metrics({"rate": best.rate})}, curves)


def comparison(
    data: str | Path,
    arms: Sequence[str] = (),
    *,
    seeds: int = 3,
    size: str = "tiny",
    context: int = 64,
    steps: int = 400,
    batch: int = 16,
    rates: Sequence[float] = RATES,
    tokens: str = "characters",
    tokenizer: str | Path | None = None,
    judge: str = "compute",
    max_characters: int = 5_000_000,
) -> Study:
    """The study that compares language models (the first arm is the baseline) on a text.

    Args:
        data: a UTF-8 text file, a `.jsonl` file of {"text": ...}, a folder of `.txt` files, "topics"
            (Python's help texts) or "docstrings" (those of the installed packages).
        size: a key of `SIZES`: width, layers and heads of the Transformer++ that sets the parameters.
        context: tokens that a prediction may see. batch: windows of an update.
        steps: updates of the Transformer++; the budget of all.
        rates: learning rates to choose from.
        tokens: "characters" or "bytes"; tokenizer: the folder of a Hugging Face tokenizer instead.
        judge: "compute" or "steps": which of the two tables the verdicts are about.
        max_characters: a longer text is cut there.

    Raises DataError for text, tokens or arms that cannot be used.
    """
    width, layers, heads = SIZES[_known("--size", size, SIZES)]
    metrics = JUDGED[_known("--judge", judge, JUDGED)]
    scale: dict[str, Any] = {
        "data": source_of(data),
        "tokens": tokens_of(tokens, tokenizer),
        "max_characters": max_characters,
        "width": width,
        "layers": layers,
        "heads": heads,
        "context": context,
        "steps": steps,
        "batch": batch,
        "rates": [float(rate) for rate in rates],
    }
    found = load(scale)
    shape = shape_of(scale)
    cost = flops_per_update(REFERENCE, shape, batch)
    lengths = ", ".join(f"{len(part):,} {name}" for name, part in found.parts.items())
    kind = "tokenizer" if tokenizer else tokens
    remark = (
        f"{found.name}: {lengths} tokens ({kind}, {found.vocab_size:,} kinds);"
        f" {parameter_count(REFERENCE, shape):,} parameters, context {context}, {steps} updates of {batch}"
        f" windows for the Transformer++ = {steps * cost / 1e12:.3g} TFLOPs (matrix products, forward and"
        " backward, gradients inside a forward pass included)."
        f" Rate chosen from {', '.join(f'{r:g}' for r in rates)} on the validation part."
        " Seeds repeat the training on one division: the interval holds its randomness, not the text's."
        f" {found.used}"
    ).strip()
    return comparison_study(
        TASK,
        arms,
        metrics=metrics,
        unit="nats per character",
        scale=scale,
        seeds=seeds,
        # A core does some 2e10 FLOPs a second on networks this small; energy arms cost five budgets more.
        core_seconds=seeds * 6 * (len(rates) + 2.5) * max(1.0, steps * cost / 2e10),
        source=found.name,
        remark=remark,
        figures=(LEARNING,),
    )


def fit_winner(won: Winner, scale: Scale) -> nn.Module | None:
    """The winner, trained once more at the rate chosen most often and equal compute; None for counts."""
    if won.arm in COUNTED:
        return None
    run = _train(won.arm, 0, scale, won.settings["rate"], updates_at_equal_compute(won.arm, scale))
    return run.model.eval()


def shape_of(scale: Scale) -> Shape:
    """Sizes that all arms share; windows hold the context and one token more."""
    return Shape(
        load(scale).vocab_size, scale["width"], scale["layers"], scale["heads"], scale["context"] + 1
    )


def columns(suffix: str) -> tuple[tuple[str, str], ...]:
    """Headings and metrics of one of the two tables, what it is sorted by first."""
    return tuple((heading, f"{name} {suffix}") for heading, name in SHOWN.items())


@lru_cache(maxsize=64)
def flops_per_update(arm: str, shape: Shape, batch: int) -> float:
    """FLOPs of one update, counted once per process."""
    return update_flops(arm, shape, batch)


def updates_at_equal_compute(arm: str, scale: Scale) -> int:
    """Updates that the FLOPs of the Transformer++'s `steps` updates buy this arm; at least one."""
    shape, batch = shape_of(scale), scale["batch"]
    budget = scale["steps"] * flops_per_update(REFERENCE, shape, batch)
    return max(1, round(budget / flops_per_update(arm, shape, batch)))


class _Trained:
    """A model after its last update, how it went, and its loss on the validation part."""

    def __init__(
        self, model: nn.Module, rate: float, history: tuple[float, ...], seconds: float, valid: float
    ) -> None:
        self.model, self.rate, self.history, self.seconds, self.valid = model, rate, history, seconds, valid


def _train(arm: str, seed: int, scale: Scale, rate: float, updates: int) -> _Trained:
    from gradatim.bench.fit import fit

    data, shape = load(scale), shape_of(scale)
    model = build(arm, shape, seed)
    optimizer = make_optimizer(model, rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, updates))
    batches = _Windows(data, scale["batch"], shape.length, updates, seed)
    start = time.process_time()
    result = fit(
        model,
        optimizer,
        batches,
        loss_of(model, seed),
        scheduler=schedule,
        steps=updates,
        clip=1.0,
        seed=seed,
    )
    seconds = time.process_time() - start
    valid = float(_losses(model, data, "valid", scale).mean())
    if not math.isfinite(valid):
        raise FloatingPointError(f"the validation loss is {valid}")
    return _Trained(model, rate, result.losses, seconds, valid)


def _factor(step: int, updates: int) -> float:
    """Share of the rate: up linearly over a tenth of the updates, then down a cosine to a tenth."""
    warm_up = max(1, updates // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * (step - warm_up) / max(1, updates - warm_up)))


class _Windows:
    """Batches of training windows: update by update the same for every arm of a seed."""

    def __init__(self, data: LanguageData, batch: int, length: int, count: int, seed: int) -> None:
        self.data, self.batch, self.length, self.count, self.seed = data, batch, length, count, seed

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.count):
            yield self.data.windows(self.batch, self.length, generator)


@torch.no_grad()
def _losses(model: nn.Module, data: LanguageData, part: str, scale: Scale) -> np.ndarray:
    """Nats per token, [windows, context]."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    for ids in data.chunks(part, scale["context"] + 1, MOST_WINDOWS).split(4 * scale["batch"]):
        ids = ids.to(device)
        logits = model(input_ids=ids[:, :-1]).logits.float()
        found.append(F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").cpu())
    return torch.cat(found).double().numpy()


def _counted(arm: str, data: LanguageData, scale: Scale) -> Outcome:
    """Count models have no compute to speak of: they stand in both tables alike."""
    start = time.process_time()
    order = 0
    if arm == "n-gram":
        valid = data.chunks("valid", scale["context"] + 1, MOST_WINDOWS)
        nats = {o: _mean_nats(data, valid, o) for o in ORDERS}
        order = min(nats, key=lambda o: nats[o])
    test = data.chunks("test", scale["context"] + 1, MOST_WINDOWS)
    losses = count_model_losses(data.parts["train"], test, data.vocab_size, order)
    seconds = time.process_time() - start
    metrics: dict[str, float] = {}
    for suffix in (COMPUTE, STEPS):
        metrics |= _scores(losses, data, suffix) | {f"CPU seconds {suffix}": seconds}
    return Outcome(metrics | as_metrics({"order": order}))


def _mean_nats(data: LanguageData, windows: Tensor, order: int) -> float:
    return float(count_model_losses(data.parts["train"], windows, data.vocab_size, order).mean())


def _scores(losses: np.ndarray, data: LanguageData, suffix: str) -> dict[str, float]:
    """Averages first, then units: tokens per character and per byte are those of the whole test part."""
    nats = float(losses.mean())
    return {
        f"nats/char {suffix}": nats * data.per_character("test"),
        f"bits/byte {suffix}": bits(nats * data.per_byte("test")),
        f"perplexity {suffix}": math.exp(min(nats, 700.0)),
    }


def _learning(history: tuple[float, ...], cost: float, suffix: str) -> dict[str, Curve]:
    width = max(1, len(history) // CURVE_POINTS)
    ends = range(width, len(history) + 1, width)
    means = [float(np.mean(history[end - width : end])) for end in ends]
    return {
        f"loss {suffix}": Curve(list(ends), means, "updates", "training loss"),
        f"loss over TFLOPs {suffix}": Curve(
            [n * cost / 1e12 for n in ends], means, "TFLOPs", "training loss"
        ),
    }


def _known(option: str, value: str, known: Mapping[str, Any]) -> str:
    if value not in known:
        raise DataError(f'{option} "{value}" is unknown', f"use {', '.join(known)}")
    return value


TASK = Task(
    slug="compare-language",
    title="Language models compared",
    plain_words=(
        "Each arm is trained from scratch on your text with as many parameters as the others: once with the"
        " same compute, once for the same number of updates. Each has its own rate, chosen on held-out text;"
        " the last part of the text is what is judged."
    ),
    rooms=("models",),
    arms=ARMS,
    default=("transformer", "ebt-s1", "ebt-s2", "hope", "gated-delta", "lstm"),
    plain=("n-gram", "frequencies"),
    trial=trial,
    data=language_digest,
)
