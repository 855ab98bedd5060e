"""Contrastive losses for queries with several positive passages, on a matrix of scores.

One query q has positives D+ (m of them) and negatives D-. With scores s,

    Z_- = logsumexp over D- of s        Z_all = logsumexp over D+ and D- of s        P(d) = exp(s_d - Z_all)

every objective is a function of the m positive scores and of the single number Z_-:

    infonce            softplus(Z_- - s_1)                     the first positive; the others are left out
    rand1-lh           softplus(Z_- - s_r)                     one drawn positive; the others are left out
    joint-lh           sum_p -log P(p) = m Z_all - sum_p s_p   divided by m with normalize=True
    sum-marg-lh        -log sum_p P(p) = softplus(Z_- - logsumexp_p(s_p))
    lse-pair           log(1 + sum_p sum_n exp(s_n - s_p)) = softplus(Z_- + logsumexp_p(-s_p))
    expected-rand1-lh  (1/m) sum_p softplus(Z_- - s_p)              the exact mean of rand1-lh over its draw

With one positive they are all InfoNCE. For every row

    sum-marg-lh <= expected-rand1-lh <= joint-lh / m
    expected-rand1-lh <= lse-pair <= max_p softplus(Z_- - s_p) + log m

Source: Training Dense Retrievers with Multiple Positive Passages, 2026, arXiv 2602.12727. The same formulas
appear as SupCon with the sum outside the log (joint-lh / m, 2020, arXiv 2004.11362), MIL-NCE (sum-marg-lh,
2020, arXiv 1912.06430) and LSEP for multi-label images (lse-pair, 2017, arXiv 1704.03135).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

Objective = Literal["infonce", "joint-lh", "sum-marg-lh", "lse-pair", "rand1-lh", "expected-rand1-lh"]
Reduction = Literal["mean", "sum", "none"]
PositiveSelector = Literal["all", "min", "max"]
NegativeSelector = Literal["all", "max"]

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

_ALIASES: dict[str, Objective] = {
    "single": "infonce",
    "joint": "joint-lh",
    "sum_marginal": "sum-marg-lh",
    "lsepair": "lse-pair",
    "rand1": "rand1-lh",
    "expected_rand1": "expected-rand1-lh",
}


def resolve_objective(name: str) -> Objective:
    """The objective that a name or one of its aliases stands for.

    Aliases: single (infonce), joint (joint-lh), sum_marginal (sum-marg-lh), lsepair (lse-pair),
    rand1 (rand1-lh), expected_rand1 (expected-rand1-lh). Raises ValueError, naming the right ones.
    """
    if name in OBJECTIVES:
        return name
    if name in _ALIASES:
        return _ALIASES[name]
    raise ValueError(f"objective={name!r} is unknown; choose one of {', '.join(OBJECTIVES)}")


def multi_positive_loss(
    scores: Float[Tensor, "batch cand"],
    positive_mask: Bool[Tensor, "batch cand"],
    ignore_mask: Bool[Tensor, "batch cand"] | None = None,
    *,
    objective: str = "lse-pair",
    normalize: bool = True,
    positive_selector: PositiveSelector = "all",
    negative_selector: NegativeSelector = "all",
    reduction: Reduction = "mean",
    weight: Float[Tensor, " batch"] | None = None,
    generator: torch.Generator | None = None,
    if_empty: Literal["raise", "zero"] = "raise",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """The loss of the module's table for every query (row), given all its candidates (columns).

    Args:
        scores: similarity of query and candidate, already multiplied by the scale (1 / temperature).
            Half-precision scores are computed in float32 and the loss is float32.
        positive_mask: True where the candidate is a positive of the query.
        ignore_mask: True where the candidate is neither positive nor negative: padding, or a suspected
            false negative. It wins over `positive_mask`. Every remaining candidate is a negative.
        objective: infonce, joint-lh, sum-marg-lh, lse-pair, rand1-lh or expected-rand1-lh.
        normalize: divide joint-lh by m, so that a query's weight does not grow with its positives.
        positive_selector: lse-pair only. "all", or only the lowest ("min") or highest ("max") positive.
        negative_selector: lse-pair only. "all", or only the highest-scoring negative ("max").
        reduction: "none" gives one value per query (0 for a query left out), "sum" their weighted sum,
            "mean" the sum divided by the sum of the weights of the queries that count.
        weight: non-negative weight per query, default 1.
        generator: draws the positive of rand1-lh, which needs it.
        if_empty: what to do when no query has both a positive and a negative: "raise", or "zero" for a
            zero that keeps the graph, so that a distributed process still takes part in the backward pass.

    A query without a positive or without a negative is left out of value, gradient and mean.

    Raises:
        ValueError: shapes that differ, an unknown name, a non-finite score, a negative weight,
            rand1-lh without a generator, a selector with another objective than lse-pair.
        RuntimeError: no query has both a positive and a negative (unless `if_empty="zero"`).
    Checks on values are skipped under torch.compile, where no query left means zero.
    """
    name = resolve_objective(objective)
    check_selectors(name, positive_selector, negative_selector)
    if positive_mask.shape != scores.shape:
        raise ValueError(
            f"positive_mask has shape {tuple(positive_mask.shape)}, scores {tuple(scores.shape)}; "
            "make them equal"
        )
    if ignore_mask is not None:
        if ignore_mask.shape != scores.shape:
            raise ValueError(
                f"ignore_mask has shape {tuple(ignore_mask.shape)}, scores {tuple(scores.shape)}; "
                "make them equal"
            )
        positive_mask = positive_mask & ~ignore_mask
        excluded = positive_mask | ignore_mask
    else:
        excluded = positive_mask
    columns, valid = positive_columns(positive_mask)
    if name == "rand1-lh":
        if generator is None:
            raise ValueError("objective='rand1-lh' draws a positive; pass generator=torch.Generator()")
        lots = torch.rand(valid.shape, generator=generator, device=generator.device).to(valid.device)
        valid = drawn_positive(valid, lots)
    return block_loss(
        scores,
        columns,
        valid,
        excluded,
        objective=name,
        normalize=normalize,
        positive_selector=positive_selector,
        negative_selector=negative_selector,
        reduction=reduction,
        weight=weight,
        if_empty=if_empty,
    )


def block_loss(
    scores: Float[Tensor, "batch cand"],
    columns: Int[Tensor, "batch block"],
    valid: Bool[Tensor, "batch block"],
    excluded: Bool[Tensor, "batch cand"],
    *,
    objective: Objective,
    normalize: bool = True,
    positive_selector: PositiveSelector = "all",
    negative_selector: NegativeSelector = "all",
    reduction: Reduction = "mean",
    weight: Float[Tensor, " batch"] | None = None,
    if_empty: Literal["raise", "zero"] = "raise",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """The same loss where the columns that may hold positives are known.

    `columns` are the candidates that may be positive, `valid` says which of them are, and `excluded` marks
    every candidate that is not a negative. Only Z_- then needs the whole matrix: one masked logsumexp.
    For rand1-lh `valid` must already hold the draw (see `drawn_positive`).
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction={reduction!r} is unknown; choose mean, sum or none")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    positives, negative_mass = _SplitScores.apply(scores, columns, excluded, negative_selector)
    # Unused places hold whatever column 0 scores; a NaN or an overflow there would reach the gradient.
    positives = positives.masked_fill(~valid, 0.0)
    rows = objective_rows(positives, valid, negative_mass, objective, normalize, positive_selector)
    # Without a negative Z_- is the mask value; asking Z_- saves a pass over the whole mask. NaN counts as a
    # negative, for the check below to find.
    counted = valid.any(dim=1) & ~(negative_mass < torch.finfo(negative_mass.dtype).min / 2)
    rows = torch.where(counted, rows, 0.0)
    if not torch.compiler.is_compiling():
        _check_rows(rows, counted, weight, if_empty)
    return reduce_rows(rows, counted, weight, reduction)


def objective_rows(
    positives: Float[Tensor, "batch block"],
    valid: Bool[Tensor, "batch block"],
    negative_mass: Float[Tensor, " batch"],
    objective: Objective,
    normalize: bool = True,
    positive_selector: PositiveSelector = "all",
) -> Float[Tensor, " batch"]:
    """The table of this module: the loss of each query from its positive scores and its Z_-.

    Rows without a valid positive get an arbitrary finite value; the caller leaves them out.
    """
    z = negative_mass
    m = valid.sum(dim=1).clamp(min=1)
    match objective:
        case "infonce" | "rand1-lh":
            first = valid & (valid.cumsum(dim=1) == 1)
            return softplus(z - positives.masked_fill(~first, 0.0).sum(dim=1))
        case "joint-lh":
            z_all = torch.logaddexp(z, _logsumexp(positives, valid))
            rows = (z_all[:, None] - positives).masked_fill(~valid, 0.0).sum(dim=1)
            return rows / m if normalize else rows
        case "sum-marg-lh":
            return softplus(z - _logsumexp(positives, valid))
        case "lse-pair":
            lowest = torch.finfo(positives.dtype).min
            match positive_selector:
                case "all":
                    hardest = _logsumexp(-positives, valid)
                case "min":
                    hardest = (-positives).masked_fill(~valid, lowest).amax(dim=1)
                case "max":
                    hardest = -positives.masked_fill(~valid, lowest).amax(dim=1)
            return softplus(z + hardest)
        case "expected-rand1-lh":
            return softplus(z[:, None] - positives).masked_fill(~valid, 0.0).sum(dim=1) / m


def positive_columns(
    positive_mask: Bool[Tensor, "batch cand"],
) -> tuple[Int[Tensor, "batch block"], Bool[Tensor, "batch block"]]:
    """Each row's positive columns, left-aligned and in order, and which of these places are in use.

    The block is as wide as the row with most positives; under torch.compile, where shapes may not depend
    on values, it is the whole row.
    """
    batch, cand = positive_mask.shape
    if torch.compiler.is_compiling():
        return torch.arange(cand, device=positive_mask.device).expand(batch, cand), positive_mask
    count = positive_mask.sum(dim=1)
    width = max(1, int(count.max())) if batch else 1
    rows, cols = positive_mask.nonzero(as_tuple=True)
    place = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    columns = torch.zeros(batch, width, dtype=torch.long, device=rows.device)
    columns[rows, place] = cols
    return columns, torch.arange(width, device=rows.device) < count[:, None]


def drawn_positive(
    valid: Bool[Tensor, "batch block"], lots: Float[Tensor, "batch block"]
) -> Bool[Tensor, "batch block"]:
    """Keeps, of each row's positives, the one with the highest lot (lots uniform in [0, 1))."""
    winner = lots.masked_fill(~valid, -1.0).argmax(dim=1, keepdim=True)
    return torch.zeros_like(valid).scatter(1, winner, True) & valid


def reduce_rows(
    rows: Float[Tensor, " batch"],
    counted: Bool[Tensor, " batch"],
    weight: Float[Tensor, " batch"] | None,
    reduction: Reduction,
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Weighted values, their sum, or the sum divided by the counted rows' total weight (0 if that is 0)."""
    if weight is None:
        share = counted.to(rows.dtype)
    else:
        share = weight.to(rows.dtype) * counted
        rows = rows * share
    if reduction == "none":
        return rows
    total = rows.sum()
    if reduction == "sum":
        return total
    mass = share.sum()
    return total / torch.where(mass > 0, mass, 1.0)


def check_selectors(objective: Objective, positive_selector: str, negative_selector: str) -> None:
    """Refuses unknown selectors, and selectors for an objective that has none."""
    if positive_selector not in get_args(PositiveSelector):
        raise ValueError(f"positive_selector={positive_selector!r} is unknown; choose all, min or max")
    if negative_selector not in get_args(NegativeSelector):
        raise ValueError(f"negative_selector={negative_selector!r} is unknown; choose all or max")
    if objective != "lse-pair" and (positive_selector, negative_selector) != ("all", "all"):
        raise ValueError(f"selectors belong to objective='lse-pair'; with {objective!r} leave both at 'all'")


def softplus(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 + exp(value)). `torch.nn.functional.softplus` drops exp(-value) above 20: 2e-9, not exact."""
    return -F.logsigmoid(-value)


def _logsumexp(values: Float[Tensor, "batch block"], keep: Bool[Tensor, "batch block"]) -> Tensor:
    return torch.logsumexp(values.masked_fill(~keep, torch.finfo(values.dtype).min), dim=1)


def _check_rows(rows: Tensor, counted: Tensor, weight: Tensor | None, if_empty: str) -> None:
    # One transfer for all checks: on a GPU each .item() would wait for the device.
    sound = rows.isfinite() if weight is None else (weight >= 0) & weight.isfinite()
    finite, any_counted, sound_weight = torch.stack(
        [rows.isfinite().all(), counted.any(), sound.all()]
    ).tolist()
    if not finite:
        where = int((~rows.isfinite()).nonzero()[0])
        raise ValueError(
            f"row {where}: scores are not finite; check the embeddings, or put such candidates in ignore_mask"
        )
    if not sound_weight:
        raise ValueError("weight must be finite and not negative")
    if not any_counted and if_empty == "raise":
        raise RuntimeError(
            f"none of the {len(rows)} queries has both a positive and a negative; "
            "check positive_mask and labels"
        )


class _SplitScores(torch.autograd.Function):
    """Scores -> (scores at `columns`, Z_-), reading the whole matrix as few times as possible.

    The gradient of Z_- is the softmax over negatives, which the forward pass has at hand; keeping it
    saves the second exponential and the two masked copies that autograd would make.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, columns: Tensor, excluded: Tensor, selector: NegativeSelector
    ) -> tuple[Tensor, Tensor]:
        positives = scores.gather(1, columns)
        negatives = scores.masked_fill(excluded, torch.finfo(scores.dtype).min)
        if selector == "max":
            top, hardest = negatives.max(dim=1, keepdim=True)
            mass = torch.zeros_like(negatives).scatter_(1, hardest, 1.0)
            total = torch.ones_like(top)
        else:
            top = negatives.amax(dim=1, keepdim=True)
            mass = negatives.sub_(top).exp_()
            total = mass.sum(dim=1, keepdim=True)
        ctx.save_for_backward(mass, total, columns)
        return positives, (top + total.log()).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_positives: Tensor, grad_z: Tensor) -> tuple[Tensor, None, None, None]:
        mass, total, columns = ctx.saved_tensors
        grad = mass * (grad_z[:, None] / total)
        # A padded place of the block repeats column 0 with gradient 0, hence add, not put.
        return grad.scatter_add_(1, columns, grad_positives), None, None, None
