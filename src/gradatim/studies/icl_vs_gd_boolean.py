"""The Boolean arm of study 17: models trained to learn in context, asked by context and by their own SGD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from gradatim.bench import Curve, Outcome, Scale
from gradatim.bench.stacked import train_stacked
from gradatim.inference import orders
from gradatim.tasks.boolean import BooleanTask
from gradatim.tasks.contexts import context_generator

QUERIES = 8


def boolean_batch(settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """One model per seed, trained as a stack, then asked about functions it has not seen."""
    size = scale["boolean"]
    task = BooleanTask(size["d"], "conjunction", size["n"])

    def draw(step: int) -> tuple[Tensor, Tensor]:
        prompts = [task.sample(size["batch"], generator=context_generator(s, 17, step)) for s in seeds]
        return torch.stack([p.x for p in prompts]), torch.stack([p.y for p in prompts])

    found = train_stacked(
        lambda seed: _model(size, settings["positions"], seed),
        draw,
        seeds=seeds,
        steps=size["steps"],
        lr=size["lr"],
        warmup=0.05,
        engine="vmap",  # one engine for any number of seeds: rounding must not depend on companions
    )
    smooth = found.smoothed(25)
    outcomes = []
    for i, (model, seed) in enumerate(zip(found.models, seeds, strict=True)):
        metrics = _measure(model.cpu().eval(), task, size, seed)
        metrics["training_loss"] = float(smooth[-1, i])
        steps = list(range(0, len(smooth), max(1, len(smooth) // 40)))
        curve = Curve(steps, smooth[steps, i].tolist(), "step", "training loss")
        outcomes.append(Outcome(metrics, {"loss": curve}))
    return outcomes


def _model(size: Mapping[str, Any], positions: str, seed: int) -> nn.Module:
    from gradatim.models.in_context import InContextConfig, InContextTransformer

    config = InContextConfig(
        d=size["d"], n_positions=size["n"], n_layer=size["layers"], n_head=size["heads"],
        n_embd=size["width"], tokens="paired", objective="binary", positions=positions,
    )  # fmt: skip
    return InContextTransformer(config, seed=seed)


def _measure(model: Any, task: BooleanTask, size: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Order sensitivity over two classes, accuracy and flips: by context and by sequential SGD."""
    shots, functions = size["shots"], size["functions"]
    p = BooleanTask(task.d, task.name, shots + QUERIES).sample(
        functions, generator=context_generator(seed, 18)
    )
    x, y = p.x[:, :shots], p.y[:, :shots]
    asked, truth = p.x[:, shots:], p.y[:, shots:]
    drawn = torch.tensor(orders(shots, size["orders"], seed))
    zero = torch.sigmoid(_ask(model, x[:, :0], y[:, :0], asked))
    # All orders of all functions at once: [orders * functions, ...]
    x, y, asked = (
        torch.cat(list(parts))
        for parts in (x[:, drawn].unbind(1), y[:, drawn].unbind(1), [asked] * len(drawn))
    )
    found = {"icl": _ask(model, x, y, asked), "sgd": _sgd(model, x, y, asked, size)}
    metrics: dict[str, float] = {}
    for name, logits in found.items():
        answers = torch.sigmoid(logits).double().unflatten(0, (len(drawn), functions))
        right = (answers > 0.5) == (truth > 0)
        sen = 2 * float(answers.std(0).mean())  # both classes have the same spread
        moved = float((answers - zero).abs().mean())
        metrics |= {
            f"sen_{name}": sen,
            f"sen_per_move_{name}": sen / moved if moved else 0.0,
            f"accuracy_{name}": float(right.double().mean()),
            f"flips_{name}": float(((answers > 0.5) != (answers[0] > 0.5)).any(0).double().mean()),
        }
    metrics["accuracy_zero"] = float(((zero > 0.5) == (truth > 0)).double().mean())
    for name in ("sen", "sen_per_move"):
        prompted, trained = metrics[f"{name}_icl"], metrics[f"{name}_sgd"]
        if prompted > 0 and trained > 0:  # one layer without positions does not know the order at all
            metrics[f"log_ratio_{name}"] = math.log(prompted / trained)
    return metrics


def _ask(model: Any, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """Logits [functions, queries], each query alone after the context."""
    functions, queries, d = asked.shape
    context = x[:, None].expand(-1, queries, -1, -1).reshape(functions * queries, -1, d)
    labels = y[:, None].expand(-1, queries, -1).reshape(functions * queries, -1)
    whole = torch.cat([context, asked.reshape(-1, 1, d)], 1)
    with torch.no_grad():
        # The last label is not known; no entry but those after it may depend on it.
        found = model(whole, torch.cat([labels, labels.new_ones(len(labels), 1)], 1)).predictions
    return found[:, -1].reshape(functions, queries)


def _sgd(model: Any, x: Tensor, y: Tensor, asked: Tensor, size: Mapping[str, Any]) -> Tensor:
    """Logits without context, [functions, queries], after one pass after another over the demonstrations.

    Every function has its own copy of the weights; each step sees one demonstration.
    """
    weights = {
        name: w.detach().expand(len(x), *w.shape).clone().requires_grad_(True)
        for name, w in model.named_parameters()
    }

    def alone(own: dict[str, Tensor], inputs: Tensor) -> Tensor:
        ones = torch.ones_like(inputs[:, :1])  # a label that nothing may depend on
        return functional_call(model, own, (inputs[:, None], ones)).predictions[:, 0]

    every = vmap(alone)
    for _ in range(size["epochs"]):
        for t in range(x.shape[1]):
            logits = every(weights, x[:, t : t + 1])[:, 0]
            # A copy's loss depends on its own weights alone: the sum's gradient is every copy's own.
            loss = nn.functional.softplus(-y[:, t] * logits).sum()
            steps = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            with torch.no_grad():
                for w, step in zip(weights.values(), steps, strict=True):
                    if step is not None:
                        w -= size["sgd_lr"] * step
    with torch.no_grad():
        return every(weights, asked)
