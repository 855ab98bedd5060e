"""Soft labels: a student's scores brought towards a teacher's, on matrices of scores.

With s the student's scores (scale x similarity), T the teacher's and tau its temperature, over the candidates
of one query:

    kl           sum_d y_d log(y_d / p_d),      y = softmax(T / tau),  p = softmax(s)
    margin_mse   mean over d != p of ((s_p - s_d) - (T_p - T_d) / tau)^2,      p the annotated positive
    bce          mean over d of  -[y_d log sigma(s'_d) + (1 - y_d) log sigma(-s'_d)],   y = sigma(T' / tau)

s' and T' are s and T less their mean over the query's candidates: a cosine has no natural zero. All three
therefore depend on differences within a row alone.

No factor tau^2: the student's temperature is the one it is used with, only the teacher's is softened.

Source: LG-ANNA-Embedding, 2025, arXiv 2506.07438, for soft labels from a retriever and a re-ranker; its
formula is not public, this is our version. MarginMSE: 2020, arXiv 2010.02666.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradatim.losses.multi_positive import Reduction, reduce_rows

Soft = Literal["kl", "margin_mse", "bce"]


def soft_label_loss(
    scores: Float[Tensor, "batch cand"],
    teacher: Float[Tensor, "batch cand"],
    ignore_mask: Bool[Tensor, "batch cand"] | None = None,
    *,
    soft: str = "kl",
    teacher_temperature: float | int = 0.5,
    positive: Int[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """The loss of the module's table for every query (row).

    Args:
        scores: scale x similarity. Half precision is computed in float32 and the loss is float32.
        teacher: the teacher's scores; no gradient flows into them.
        ignore_mask: True where the candidate takes no part.
        soft: kl, margin_mse or bce.
        teacher_temperature: tau; below 1 sharpens the teacher. For z-scores 0.5 is a start.
        positive: margin_mse only: the annotated positive's column (default 0).
        reduction, weight: as in `multi_positive_loss`.

    A row with fewer than two candidates is left out of value, gradient and mean.
    Raises ValueError for shapes that differ, scores that are not finite, an unknown name, tau <= 0.
    """
    if soft not in get_args(Soft):
        raise ValueError(f"soft={soft!r} is unknown; choose kl, margin_mse or bce")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction={reduction!r} is unknown; choose mean, sum or none")
    if not teacher_temperature > 0:
        raise ValueError(f"teacher_temperature={teacher_temperature} must be above 0")
    if teacher.shape != scores.shape:
        raise ValueError(
            f"teacher has shape {tuple(teacher.shape)}, scores {tuple(scores.shape)}; make them equal"
        )
    if ignore_mask is not None and ignore_mask.shape != scores.shape:
        raise ValueError(f"ignore_mask has shape {tuple(ignore_mask.shape)}, scores {tuple(scores.shape)}")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    keep = torch.ones_like(scores, dtype=torch.bool) if ignore_mask is None else ~ignore_mask
    target = teacher.detach().to(scores.dtype) / teacher_temperature
    if not torch.compiler.is_compiling():
        _check_finite(scores, target, keep)
    count = keep.sum(dim=1)
    if soft == "kl":
        rows = _kl(scores, target, keep)
    elif soft == "bce":
        logits, goal = _centred(scores, keep, count), _centred(target, keep, count).sigmoid()
        each = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
        rows = each.masked_fill(~keep, 0.0).sum(dim=1) / count.clamp(min=1)
    else:
        column = torch.zeros_like(count) if positive is None else positive
        others = keep.scatter(1, column[:, None], False)
        # Whoever is annotated cannot be ignored: without it there is no margin.
        others = others & keep.gather(1, column[:, None])
        gap = (scores.gather(1, column[:, None]) - scores) - (target.gather(1, column[:, None]) - target)
        rows = gap.masked_fill(~others, 0.0).square().sum(dim=1) / others.sum(dim=1).clamp(min=1)
    counted = counted_rows(keep, soft, positive)
    return reduce_rows(torch.where(counted, rows, 0.0), counted, weight, reduction)


def counted_rows(
    keep: Bool[Tensor, "batch cand"], soft: str = "kl", positive: Int[Tensor, " batch"] | None = None
) -> Bool[Tensor, " batch"]:
    """Which rows `soft_label_loss` counts: two candidates, for margin_mse one of them the positive."""
    counted = keep.sum(dim=1) > 1
    if soft == "margin_mse":
        column = torch.zeros_like(counted, dtype=torch.long) if positive is None else positive
        counted = counted & keep.gather(1, column[:, None])[:, 0]
    return counted


def teacher_entropy(
    teacher: Float[Tensor, "batch cand"],
    keep: Bool[Tensor, "batch cand"],
    teacher_temperature: float | int,
) -> Float[Tensor, " batch"]:
    """Entropy of softmax(T / tau) over the kept candidates as a share of its largest, log n; 0 for n < 2."""
    log_y = _log_softmax(teacher.detach() / teacher_temperature, keep)
    entropy = -(log_y.exp() * log_y).masked_fill(~keep, 0.0).sum(dim=1)
    most = keep.sum(dim=1).clamp(min=1).to(entropy.dtype).log()
    return torch.where(most > 0, entropy / torch.where(most > 0, most, 1.0), 0.0)


def _kl(scores: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    log_p, log_y = _log_softmax(scores, keep), _log_softmax(target, keep)
    return (log_y.exp() * (log_y - log_p)).masked_fill(~keep, 0.0).sum(dim=1)


def _log_softmax(values: Float[Tensor, "batch cand"], keep: Bool[Tensor, "batch cand"]) -> Tensor:
    # A finite floor instead of -inf: rows without candidates stay free of NaN, forwards and backwards.
    return values.masked_fill(~keep, torch.finfo(values.dtype).min).log_softmax(dim=1).masked_fill(~keep, 0.0)


def _centred(values: Tensor, keep: Tensor, count: Tensor) -> Tensor:
    mean = values.masked_fill(~keep, 0.0).sum(dim=1) / count.clamp(min=1)
    return (values - mean[:, None]).masked_fill(~keep, 0.0)


def _check_finite(scores: Tensor, target: Tensor, keep: Tensor) -> None:
    sound = torch.stack([(x.isfinite() | ~keep).all() for x in (scores.detach(), target)])
    if not bool(sound.all()):
        who, bad = ("scores", scores) if not bool(sound[0]) else ("teacher scores", target)
        row = int((~(bad.isfinite() | ~keep)).any(dim=1).nonzero()[0])
        raise ValueError(
            f"row {row}: {who} are not finite; check them, or put such candidates in ignore_mask"
        )
