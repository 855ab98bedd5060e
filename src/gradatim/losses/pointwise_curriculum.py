"""Pointwise re-ranking losses, each example weighted by a curriculum.

A document with relevance grade y (0: not relevant) scores s. Per example, with p = sigmoid(s) and t = 1 where
y > 0, else 0,

    mse                   (s - y)^2
    l1                    |s - y|
    smooth_l1             Huber's loss of s - y, quadratic within 1
    cross_entropy         -log s if t else -log(1 - s)     the score itself is a probability
    cross_entropy_logits  -log p if t else -log(1 - p)
    softmax               1 - p  if t else p

The last two are the two-logit losses of the authors' code with s the difference of the logits.

Source: Training Curricula for Open Domain Answer Re-Ranking, SIGIR 2020, arXiv 2004.14269.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.curricula.difficulty import pointwise_difficulty
from gradatim.curricula.linear import LinearCurriculum, check_difficulty
from gradatim.losses.curriculum_weighting import (
    check_scores,
    check_single_logit,
    check_weighting,
    pair_scores,
    stacked_labels,
    weighted_mean,
)
from gradatim.losses.multi_positive import Reduction, reduce_rows, softplus
from gradatim.losses.pairwise_curriculum import CITATION

POINTWISE_KINDS = ("mse", "l1", "smooth_l1", "cross_entropy", "cross_entropy_logits", "softmax")

UNJUDGED = -999
"""The grade by which collections say that nobody judged the document; it counts as 0."""

_LABELS = "[relevance, H], H in [0, 1] how high the first stage ranks the document"


def pointwise_loss(
    scores: Float[Tensor, " batch"],
    relevance: Float[Tensor, " batch"],
    *,
    loss: str = "mse",
    reduction: Reduction = "mean",
    weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """The loss of the module's table for every document; a relevance of -999 (unjudged) counts as 0.

    `reduction` "none" gives weighted values, "sum" their sum, "mean" the sum divided by the total weight.
    Half-precision scores are computed in float32. Raises ValueError for an unknown loss or reduction, and for
    a score outside [0, 1] with cross_entropy.
    """
    if loss not in POINTWISE_KINDS:
        raise ValueError(f"loss={loss!r} is unknown; choose one of {', '.join(POINTWISE_KINDS)}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction={reduction!r} is unknown; choose mean, sum or none")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    grade = judged(relevance).to(scores.dtype)
    relevant = grade > 0
    match loss:
        case "mse":
            rows = (scores - grade).square()
        case "l1":
            rows = (scores - grade).abs()
        case "smooth_l1":
            rows = F.smooth_l1_loss(scores, grade, reduction="none")
        case "cross_entropy":
            _check_probabilities(scores)
            tiny = torch.finfo(scores.dtype).tiny
            rows = -torch.where(relevant, scores, 1 - scores).clamp(min=tiny).log()
        case "cross_entropy_logits":
            rows = softplus(torch.where(relevant, -scores, scores))
        case "softmax":
            rows = torch.sigmoid(torch.where(relevant, -scores, scores))
    return reduce_rows(rows, torch.ones_like(relevant), weight, reduction)


def judged(relevance: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Grades with unjudged documents (-999) as 0."""
    return torch.where(relevance == UNJUDGED, 0.0, relevance)


def _check_probabilities(scores: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    sound = (scores >= 0) & (scores <= 1)
    if not bool(sound.all()):
        row = int((~sound).nonzero()[0])
        raise ValueError(
            f"score {float(scores[row])} of row {row} is no probability; "
            "use loss='cross_entropy_logits' for log-odds"
        )


class PointwiseCurriculumLoss(nn.Module):
    """Pointwise training of a re-ranker, easy examples first.

    For sentence-transformers' CrossEncoderTrainer, with columns query, doc and `label`, the list
    [relevance, H] (`attach_difficulty` makes it); D = H where the relevance is above 0, else 1 - H. Without a
    curriculum `label` may be the relevance alone. `CurriculumCallback(loss)` keeps `position`; with a loop
    of your own set it yourself, in the unit of the curriculum.

    Args:
        model: a CrossEncoder with one output, or a ConvKNRM; None for `compute_loss_from_scores` alone.
        loss: mse, l1, smooth_l1, cross_entropy, cross_entropy_logits or softmax.
        curriculum: a LinearCurriculum; None weighs all examples equally.
        weighting: "sample", the published formula, or "batch", the mean weight of the batch as one factor.
        smooth: replaces the curriculum's own.

    Raises ValueError for unknown options, a model of several outputs, labels that are missing, of wrong arity
    or with an H outside [0, 1] (naming the row), and scores that are not finite (naming the step).

    Source: Training Curricula for Open Domain Answer Re-Ranking, SIGIR 2020, arXiv 2004.14269.
    """

    def __init__(
        self,
        model: Any,
        loss: str = "mse",
        curriculum: LinearCurriculum | None = None,
        weighting: str = "sample",
        smooth: int | float | None = None,
    ) -> None:
        super().__init__()
        if loss not in POINTWISE_KINDS:
            raise ValueError(f"loss={loss!r} is unknown; choose one of {', '.join(POINTWISE_KINDS)}")
        check_single_logit(model)
        self.model = model
        self.loss = loss
        self.curriculum = check_weighting(weighting, curriculum, smooth)
        self.weighting = weighting
        self.position: int | float = 0
        self.step: int | None = None

    def forward(
        self,
        inputs: list[list[str]],
        labels: Tensor | list[Tensor] | None = None,
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        if len(inputs) != 2:
            raise ValueError(f"{len(inputs)} text columns; the dataset needs two: query and doc")
        pairs = list(zip(*inputs, strict=True))
        return self.compute_loss_from_scores(pair_scores(self.model, pairs, prompt, task), labels)

    def compute_loss_from_scores(
        self, scores: Float[Tensor, " batch"], labels: Tensor | Sequence[Tensor] | None = None
    ) -> Tensor:
        """The loss from scores; for bi-encoders and rankers of any kind."""
        known = stacked_labels(labels, _LABELS).to(scores.device)
        if known.shape == (len(scores),) and self.curriculum is None:
            known = torch.stack([known, torch.zeros_like(known)], dim=1)
        if known.shape != (len(scores), 2):
            raise ValueError(f"labels have shape {tuple(known.shape)}; {len(scores)} rows need {_LABELS}")
        check_scores(scores[:, None], self.step)
        relevance, height = judged(known[:, 0]), known[:, 1]
        rows = pointwise_loss(scores, relevance, loss=self.loss, reduction="none")
        if self.curriculum is None:
            return rows.mean()
        easy = pointwise_difficulty(check_difficulty(height), relevance > 0)
        return weighted_mean(rows, self.curriculum.weight(easy, self.position), self.weighting)

    def get_config_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "curriculum": repr(self.curriculum), "weighting": self.weighting}

    @property
    def citation(self) -> str:
        return CITATION
