"""From per-example losses and a curriculum to one number: what both curriculum losses share.

    weighting="sample"   mean_s W(s) L(s)            the published formula
    weighting="batch"    mean_s W(s) * mean_s L(s)   what the authors' code computes

With "batch" the weights of a batch become one scalar, which Adam, being blind to the loss's scale, all but
cancels: it is kept for comparison.

Source: Training Curricula for Open Domain Answer Re-Ranking, SIGIR 2020, arXiv 2004.14269.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.curricula.linear import LinearCurriculum

if TYPE_CHECKING:
    from collections.abc import Mapping

WEIGHTINGS = ("sample", "batch")


def weighted_mean(
    rows: Float[Tensor, " batch"], weight: Float[Tensor, " batch"], weighting: str = "sample"
) -> Float[Tensor, ""]:
    """mean W L, or mean W times mean L with `weighting="batch"`."""
    if weighting == "batch":
        return weight.mean().to(rows.dtype) * rows.mean()
    return (weight.to(rows.dtype) * rows).mean()


def check_weighting(
    weighting: str, curriculum: LinearCurriculum | None, smooth: int | float | None
) -> LinearCurriculum | None:
    """The curriculum with the loss's own `smooth`, where it has one; refuses unknown weightings."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r} is unknown; choose sample or batch")
    if curriculum is None or smooth is None:
        return curriculum
    return replace(curriculum, smooth=smooth)


def check_scores(scores: Tensor, step: int | None) -> None:
    """Raises ValueError that names the step and row of the first score that is NaN or infinite."""
    if torch.compiler.is_compiling() or bool(scores.isfinite().all()):
        return
    row = int((~scores.isfinite()).flatten(1).any(1).nonzero()[0])
    when = "" if step is None else f" at step {step}"
    raise ValueError(
        f"the scores of row {row}{when} are not finite: {scores[row].tolist()}; "
        "lower the learning rate or clip gradients"
    )


def stacked_labels(labels: Tensor | Sequence[Tensor] | None, needed: str) -> Tensor:
    """Labels as the trainer's collator gives them, one tensor or a list of rows, as one float tensor."""
    if labels is None:
        raise ValueError(f"no labels; the dataset needs a column 'label' with {needed}")
    if isinstance(labels, Tensor):
        return labels if labels.is_floating_point() else labels.float()
    widths = {tuple(row.shape) for row in labels}
    if len(widths) > 1:
        raise ValueError(f"labels of rows differ in length; every row needs {needed}")
    return torch.stack(list(labels)).float()


def pair_scores(
    model: Any, pairs: Sequence[tuple[str, str]], prompt: str | None, task: str | None
) -> Float[Tensor, " pairs"]:
    """The model's scores of (query, document) pairs, in one forward pass."""
    features: Mapping[str, Any] = model.preprocess(list(pairs), prompt=prompt, task=task)
    device = model.device
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in features.items()}
    scores: Tensor = model(moved)["scores"]
    if scores.numel() != len(pairs):
        raise ValueError(
            f"the model gives {scores.numel() // len(pairs)} scores per pair; use one with num_labels=1"
        )
    return scores.reshape(-1)


def check_single_logit(model: Any) -> None:
    """Refuses a model of several outputs: which of two logits means relevant is a trap."""
    outputs = getattr(model, "num_labels", 1)
    if outputs != 1:
        raise ValueError(f"the model has num_labels={outputs}; load it with num_labels=1")
