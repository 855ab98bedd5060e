"""Study 04, longer profiles: a small Hope on text, and Hope with one part taken out (the paper's Table 6).

Characters of Python's help texts; every arm takes the same steps on the same windows, with AdamW and a cosine
rate. Levels of the continuum memory move by `MultiFrequency` clocks, as chunk means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradatim.bench import Curve, Outcome, Scale
from gradatim.bench.stacked import warmup_cosine
from gradatim.optim import MultiFrequency
from gradatim.tasks.contexts import context_generator
from gradatim.tasks.text_stream import text_stream

TRAINING, EVALUATION = range(2)


def run(settings: Mapping[str, Any], seed: int, scale: Scale) -> Outcome:
    """Test loss in nats per character, its perplexity, and the loss over training."""
    from gradatim.models.hope import HopeForCausalLM
    from gradatim.models.hope_config import HopeConfig

    stream = text_stream("topics")
    periods = settings.get("periods", (1, 4, 16))
    config = HopeConfig(
        vocab_size=stream.vocab_size, hidden_size=scale["dim"], num_hidden_layers=scale["layers"],
        num_attention_heads=settings.get("heads", 1), cms_periods=periods, **settings.get("model", {}),
    )  # fmt: skip
    model = HopeForCausalLM(config, seed=seed).train()
    optimizer = _optimizer(model, scale["lr"], settings.get("rate_matched", False))
    steps, length = scale["steps"], scale["length"]
    base = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step in range(steps):
        ids = stream.windows("train", scale["batch"], length + 1, context_generator(TRAINING, seed, step))
        loss = _loss(model, ids)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * warmup_cosine(step, steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    held = stream.windows("test", scale["windows"], length + 1, context_generator(EVALUATION, seed, 0))
    model.eval()
    with torch.no_grad():
        test = sum(float(_loss(model, part)) * len(part) for part in held.split(16)) / len(held)
    shown = range(0, steps, max(1, steps // 50))
    smooth = [sum(losses[t : t + 20]) / len(losses[t : t + 20]) for t in shown]
    metrics = {
        "test_loss": test,
        "perplexity": math.exp(test),
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }
    return Outcome(metrics, {"training": Curve([float(t) for t in shown], smooth, "step", "training loss")})


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _optimizer(model: Any, lr: float, rate_matched: bool) -> MultiFrequency:
    """AdamW for everything, the memory's levels by their clocks (or at the matched rates)."""
    groups: list[dict[str, Any]] = []
    memories: set[Tensor] = set()
    for layer in model.layers:
        for group in layer.cms.groups(lr=lr):
            period = group["period"]
            memories |= set(group["params"])
            if rate_matched:
                group |= {"period": 1, "lr": lr / period}
            groups.append({**group, "reduction": "mean"})
    groups.append({"params": [p for p in model.parameters() if p not in memories]})
    return MultiFrequency(
        lambda made: torch.optim.AdamW(made, lr=lr, betas=(0.9, 0.95), weight_decay=0.0), groups
    )
