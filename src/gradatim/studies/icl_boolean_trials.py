"""The trials of study 03: train in-context learners on Boolean prompts, ask the exact learners the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradatim.bench import Arm, Curve, Outcome, Scale
from gradatim.bench.stacked import train_stacked
from gradatim.probes import (
    Elimination,
    FeedForwardGD,
    GF2Elimination,
    NearestNeighbours,
    Null,
    SignAveraging,
    TernaryBayes,
    attention_scores,
    score_prompts,
)
from gradatim.probes.boolean_measures import accuracy
from gradatim.tasks.boolean import BooleanTask, Prompt
from gradatim.tasks.boolean_teaching import TAUGHT_CLASSES
from gradatim.tasks.contexts import context_generator

Predict = Callable[[Tensor, Tensor], Tensor]
PREFIXES = ("teaching", "permuted", "random")
SHIFTED, NOISE = 0.7, 0.1
LATE = 4  # points at the end of a prompt, and after a prefix, over which accuracy is averaged


def batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """One outcome per seed; training is stacked over the seeds."""
    kind = arm.settings["kind"]
    if kind == "prompted":
        from gradatim.studies.icl_boolean_prompting import prompted

        return [prompted(arm.settings, seed, scale) for seed in seeds]
    if kind == "train":
        return _train(arm.settings, seeds, scale)
    return [_reference(arm.settings, seed, scale) for seed in seeds]


def task_of(settings: Mapping[str, Any], scale: Scale, **changes: Any) -> BooleanTask:
    """The arm's class at the profile's size. Inputs are planted alike with and without a prefix."""
    size = scale["sizes"][settings["task"]]
    fixed: dict[str, Any] = {"d": size["d"], "name": settings["task"], "n": size["n"]}
    if "start_idx" in size:
        fixed["start_idx"] = size["start_idx"]
    task = BooleanTask(**fixed)
    if task.name in TAUGHT_CLASSES and task.planted_share:
        changes["planted"] = task.planted_share
    return BooleanTask(**{**fixed, **changes})


# -- trained models ------------------------------------------------------------------------------------


def _train(settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    task = task_of(settings, scale, teaching=settings.get("share", 0.0))
    size = scale["sizes"][settings["task"]]
    score = task.name == "nearest_neighbour"

    def draw(step: int) -> tuple[Tensor, ...]:
        prompts = [task.sample(scale["batch"], generator=context_generator(s, 1, step)) for s in seeds]
        x, y = torch.stack([p.x for p in prompts]), torch.stack([p.y for p in prompts])
        return (x, y, torch.stack([p.scored for p in prompts])) if score else (x, y)

    architecture = settings.get("model", "transformer")
    found = train_stacked(
        lambda seed: make_model(architecture, size, scale, seed, settings.get("freeze", "none")),
        draw,
        masked_loss if score else plain_loss,
        seeds=seeds,
        steps=size["steps"],
        lr=size.get("lr", scale["lr"]),
        warmup=0.05,
        # One engine for any number of seeds, so that a seed's rounding does not depend on its companions.
        engine="vmap",
        device="cuda" if scale.get("device") == "auto" and torch.cuda.is_available() else None,
    )
    losses = found.smoothed(25)
    outcomes = []
    for i, (model, seed) in enumerate(zip(found.models, seeds, strict=True)):
        model = model.cpu()
        metrics, curves = measure(predictor(model), settings, seed, scale)
        metrics["parameters"] = float(sum(p.numel() for p in model.parameters()))
        metrics["training_tokens"] = 2.0 * size["n"] * scale["batch"] * size["steps"]
        metrics["training_loss"] = float(losses[-1, i])
        if architecture == "transformer" and score:
            p = test_prompts(settings, seed, scale, "ordinary")
            metrics["nearest_head"] = float(
                attention_scores(model, p.x, p.y, "nearest", start=task.start_idx).scores.max()
            )
        steps = list(range(0, len(losses), max(1, len(losses) // 40)))
        curves["loss"] = Curve(steps, losses[steps, i].tolist(), "step", "training loss")
        outcomes.append(Outcome(metrics, curves))
    return outcomes


def make_model(
    architecture: str, size: Mapping[str, Any], scale: Scale, seed: int, freeze: str = "none"
) -> nn.Module:
    """An in-context learner of logits; a GRU gets the width that matches the Transformer's weights."""
    from gradatim.models.in_context import InContextConfig, InContextTransformer

    def config(width: int) -> InContextConfig:
        return InContextConfig(
            d=size["d"], n_positions=size["n"], n_layer=scale["layers"], n_head=scale["heads"], n_embd=width,
            tokens=size.get("tokens", scale["tokens"]), objective="binary", freeze=freeze,
        )  # fmt: skip

    if architecture == "transformer":
        return InContextTransformer(config(scale["width"]), seed=seed)
    if architecture == "gru":
        from gradatim.models.in_context_recurrent import InContextGRU

        # A GRU layer has 6 H^2 weights, a block of the Transformer 12 H^2.
        return InContextGRU(config(4 * round(scale["width"] * 2**0.5 / 4)), seed=seed)
    if architecture == "retnet":
        from gradatim.models.attention_free import InContextRetNet

        return InContextRetNet(config(scale["width"]), seed=seed)
    raise ValueError(f"no architecture {architecture!r}")


def plain_loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """Logistic loss over all positions."""
    return model(x, y, labels=y).loss


def masked_loss(model: Any, x: Tensor, y: Tensor, scored: Tensor) -> Tensor:
    """Logistic loss over the positions that can be answered."""
    return model(x, y, labels=y, scored=scored).loss


def predictor(model: Any) -> Predict:
    """The model's logits, without gradients."""

    def predict(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x, y).predictions

    return predict


# -- exact learners ------------------------------------------------------------------------------------


def _reference(settings: Mapping[str, Any], seed: int, scale: Scale) -> Outcome:
    name = settings["reference"]
    if name.startswith(("bayes", "inputs")) and "exact_prompts" in scale:
        # Enumeration is slow at more bits: the same prompts, the first of them.
        scale = {**scale, "first": scale["exact_prompts"]}
    task = task_of(settings, scale)
    if name == "ffn":
        return _networks(settings, seed, scale)
    planted = task.planted_share
    if name in ("bayes", "bayes-inputs"):
        # Beside noisy labels the exact learner is the one that knows how noisy they are.
        exact, aware = (
            TernaryBayes(task.name, inputs=name == "bayes-inputs", planted=planted, noise=noise)
            for noise in (0.0, NOISE)
        )
        return Outcome(*measure(exact, settings, seed, scale, aware))
    known: dict[str, Callable[[], Predict]] = {
        "null": Null,
        "averaging": SignAveraging,
        "1-nn": NearestNeighbours,
        "3-nn": lambda: NearestNeighbours(3),
        "elimination": Elimination,
        "gf2": GF2Elimination,
        # Labels flipped by a coin say nothing: what is left is what planted inputs leak.
        "inputs-only": lambda: TernaryBayes(task.name, inputs=True, planted=planted, noise=0.5),
    }
    # GF(2) elimination knows what it does not know: a coin there, as its user would toss.
    undecided = 0.5 if name == "gf2" else 0.0
    return Outcome(*measure(known[name](), settings, seed, scale, undecided=undecided))


def _networks(settings: Mapping[str, Any], seed: int, scale: Scale) -> Outcome:
    """A fresh network per prompt: on ordinary prompts of growing length, and on the prefix alone."""
    sizes = scale["sizes"][settings["task"]]
    count = scale["networks"]
    metrics: dict[str, float] = {}
    lengths, found, rival = [], [], []
    for length in scale["network_lengths"]:
        task = task_of(settings, {"sizes": {settings["task"]: {**sizes, "n": length + LATE}}})
        p = task.sample(count, generator=context_generator(seed, 4, length))
        net = FeedForwardGD(every=length, seed=seed, batch_size=length)
        mask = torch.arange(length + LATE).ge(length).expand_as(p.y)
        lengths.append(float(length))
        found.append(accuracy(net(p.x, p.y), p.y, mask))
        rival.append(accuracy(NearestNeighbours()(p.x, p.y), p.y, mask))
    metrics |= {"late": found[-1], "over_1nn": found[-1] - rival[-1]}
    if settings["task"] == "sparse_parity":
        # The prefix has 2 points: a network fitted on them answers the 2 points that follow.
        p = test_prompts(settings, seed, scale, "teaching")
        x, y = p.x[:count, :4], p.y[:count, :4]
        metrics["taught"] = accuracy(FeedForwardGD(every=2, seed=seed)(x, y), y, p.scored[:count, :4])
    return Outcome(metrics, {"accuracy": Curve(lengths, found, "examples", "accuracy")})


# -- what is measured ------------------------------------------------------------------------------------


def test_prompts(settings: Mapping[str, Any], seed: int, scale: Scale, kind: str) -> Prompt:
    """Test prompts of a seed: the same for every arm, and the three prefixes on the same functions."""
    changes: dict[str, Any] = {}
    if kind in PREFIXES:
        changes = {"teaching": True, "prefix": kind}
    elif kind == "shifted":
        changes = {"x_prob": SHIFTED}
    elif kind == "noisy":
        changes = {"noise": NOISE}
    key = 3 if kind in PREFIXES else 2
    task = task_of(settings, scale, **changes)
    p = task.sample(scale["prompts"], generator=context_generator(seed, key))
    count = scale.get("first", scale["prompts"])
    assert p.teach_len is not None
    assert p.clean is not None
    return Prompt(p.x[:count], p.y[:count], None, p.teach_len[:count], p.clean[:count])


def measure(
    predict: Predict,
    settings: Mapping[str, Any],
    seed: int,
    scale: Scale,
    noisy: Predict | None = None,
    undecided: float = 0.0,
) -> tuple[dict[str, float], dict[str, Curve]]:
    """Accuracies of one learner on one seed's prompts, and its curve by number of earlier examples.

    late: the last points of ordinary prompts. mean: all of them. taught, permuted, random: the points that
    follow a teaching prefix, the same prefix in random order, and as many ordinary points. shifted, noisy:
    the last points with bits set more often, and with flipped labels in the context (answered by `noisy`
    where one is given). An answer of 0 scores `undecided`: 0 is the paper's rule.
    """
    p = test_prompts(settings, seed, scale, "ordinary")
    answers = predict(p.x, p.y)
    scores = score_prompts(answers, p.y, p.scored, undecided=undecided)
    m = p.y.shape[1]
    last = torch.arange(m).ge(m - LATE).expand_as(p.y)
    metrics = {
        "late": accuracy(answers, p.y, last, undecided=undecided),
        "mean": scores.mean,
        "balanced": scores.balanced,
        "null": scores.null,
        "examples_to_90": float(scores.examples_to(0.9)),
    }
    first = int(p.scored[0].long().argmax())
    curve = Curve(list(range(first, m)), scores.accuracy[first:].tolist(), "earlier examples", "accuracy")
    curves = {"accuracy": curve}
    if settings["task"] in TAUGHT_CLASSES:
        for prefix, name in zip(PREFIXES, ("taught", "permuted", "random"), strict=True):
            q = test_prompts(settings, seed, scale, prefix)
            metrics[name] = accuracy(predict(q.x, q.y), q.y, q.after(LATE), undecided=undecided)
        metrics["prefix_gain"] = metrics["taught"] - metrics["random"]
        metrics["order_gain"] = metrics["taught"] - metrics["permuted"]
    for kind in ("shifted", "noisy"):
        q = test_prompts(settings, seed, scale, kind)
        assert q.clean is not None
        answering = noisy if noisy is not None and kind == "noisy" else predict
        metrics[kind] = accuracy(answering(q.x, q.y), q.clean, last, undecided=undecided)
    return metrics, curves
