"""The prompted language model of study 03: small conjunctions as text, beside neighbours on the same."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from gradatim.bench import Curve, Outcome, Scale
from gradatim.inference.boolean_prompting import prompted_answers
from gradatim.probes import NearestNeighbours
from gradatim.probes.boolean_measures import accuracy
from gradatim.tasks.boolean import BooleanTask
from gradatim.tasks.contexts import context_generator

LITERALS = (0.5, 0.25, 0.25)  # the paper's prior for few bits


def prompted(settings: Mapping[str, Any], seed: int, scale: Scale) -> Outcome:
    """Accuracy over the second half of the prompt, of the language model and of its rivals."""
    size = scale["prompting"]
    task = BooleanTask(size["d"], settings["task"], size["n"], prior=LITERALS)
    p = task.sample(size["functions"], generator=context_generator(seed, 5))
    answers = prompted_answers(*_language_model(scale["language_model"]), p.x, p.y)
    half = torch.arange(task.n).ge(task.n // 2).expand_as(p.y)
    votes = p.y.cumsum(1) - p.y  # of earlier labels
    rivals = {
        "over_1nn": NearestNeighbours()(p.x, p.y),
        "over_majority": torch.where(votes > 0, 1.0, -1.0),
    }
    late = accuracy(answers.restricted, p.y, half)
    metrics = {
        "late": late,
        "free": accuracy(answers.free, p.y, half),
        "readable": answers.readable,
        **{name: late - accuracy(found, p.y, half) for name, found in rivals.items()},
    }
    curve = (answers.restricted == p.y).double().mean(0).tolist()
    return Outcome(metrics, {"accuracy": Curve(list(range(task.n)), curve, "earlier examples", "accuracy")})


@lru_cache(maxsize=1)
def _language_model(name: str) -> tuple[Any, Any]:
    from gradatim.models.causal_lm import load_causal_lm

    return load_causal_lm(name)
