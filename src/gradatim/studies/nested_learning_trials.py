"""The trials of study 04: one function per part, chosen by the arm's kind."""

from __future__ import annotations

from collections.abc import Sequence

from gradatim.bench import Arm, Outcome, Scale
from gradatim.studies import (
    nested_learning_classes,
    nested_learning_continual,
    nested_learning_optimizers,
    nested_learning_text,
    nested_learning_toys,
    nested_parity_trials,
)


def batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """One outcome per seed, in order; each depends on the arm, its seed and the scale alone."""
    settings = arm.settings
    kind = settings["kind"]
    if kind == "identity":
        return [nested_learning_toys.identities(seed, scale["stream"]) for seed in seeds]
    if kind == "orthogonal":
        return [nested_learning_toys.orthogonal(settings, seed, scale) for seed in seeds]
    if kind == "valley":
        return nested_learning_toys.valley_outcomes(settings, seeds, scale)
    if kind == "continual":
        return nested_learning_continual.run(settings, seeds, scale["continual"])
    if kind == "intents":
        sizes = scale["intents"]
        path = nested_learning_classes.intents_path(scale)
        streams = [
            nested_learning_classes.IntentStream(seed, path, sizes["tasks"], sizes["features"])
            for seed in seeds
        ]
        return nested_learning_continual.run_streams(settings, streams, seeds, sizes)
    if kind == "optimizer":
        return [nested_learning_optimizers.run(settings, seed, scale["optimizer"]) for seed in seeds]
    if kind == "text":
        return [nested_learning_text.run(settings, seed, scale["text"]) for seed in seeds]
    return nested_parity_trials.parity_batch(arm, seeds, scale[settings["scale"]])
