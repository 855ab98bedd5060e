"""Pairwise re-ranking losses, each example weighted by a curriculum.

A relevant document scores s+, less relevant ones s_1 ... s_n. Per example

    softmax                 1 - P+                        with P+ = exp(s+) / (exp(s+) + sum_j exp(s_j))
    cross_entropy           -log P+
    nogueira_cross_entropy  -log sigmoid(s+) - mean_j log sigmoid(-s_j)
    hinge                   mean_j relu(margin - s+ + s_j)
    mse                     mean_j (margin - s+ + s_j)^2

With n = 1, softmax is sigmoid(s_1 - s+): bounded, so that a mislabelled pair cannot dominate. A score is the
log-odds of relevance, the difference of the two logits that nogueira_cross_entropy was written for.

Source: Training Curricula for Open Domain Answer Re-Ranking, SIGIR 2020, arXiv 2004.14269;
nogueira_cross_entropy: Passage Re-ranking with BERT, 2019, arXiv 1901.04085.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

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

PAIRWISE_KINDS = ("softmax", "cross_entropy", "nogueira_cross_entropy", "hinge", "mse")

_LABELS = "the difficulty D in [0, 1], or a list of one per negative"


def pairwise_loss(
    scores: Float[Tensor, "batch candidates"],
    *,
    loss: str = "softmax",
    margin: int | float = 0.0,
    reduction: Reduction = "mean",
    weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """The loss of the module's table; column 0 of `scores` is the relevant document, the others are not.

    `reduction` "none" gives weighted values, "sum" their sum, "mean" the sum divided by the total weight
    (for the paper's mean of W L, weight the values of "none" yourself or use `PairwiseCurriculumLoss`).
    Half-precision scores are computed in float32. Raises ValueError for an unknown loss or reduction, fewer
    than two columns, or a margin for a loss that has none.
    """
    if loss not in PAIRWISE_KINDS:
        raise ValueError(f"loss={loss!r} is unknown; choose one of {', '.join(PAIRWISE_KINDS)}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction={reduction!r} is unknown; choose mean, sum or none")
    if margin and loss not in ("hinge", "mse"):
        raise ValueError(f"margin={margin} belongs to loss='hinge' or 'mse', not to {loss!r}")
    if scores.shape[1] < 2:
        raise ValueError("scores have 1 column; give the relevant document and at least one other")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    positive, negatives = scores[:, 0], scores[:, 1:]
    match loss:
        case "softmax":
            rows = torch.sigmoid(torch.logsumexp(negatives, dim=1) - positive)
        case "cross_entropy":
            rows = softplus(torch.logsumexp(negatives, dim=1) - positive)
        case "nogueira_cross_entropy":
            rows = softplus(-positive) + softplus(negatives).mean(dim=1)
        case "hinge":
            rows = F.relu(margin - positive[:, None] + negatives).mean(dim=1)
        case "mse":
            rows = (margin - positive[:, None] + negatives).square().mean(dim=1)
    return reduce_rows(rows, torch.ones_like(rows, dtype=torch.bool), weight, reduction)


class PairwiseCurriculumLoss(nn.Module):
    """Pairwise training of a re-ranker, easy pairs first.

    For sentence-transformers' CrossEncoderTrainer, with columns query, positive, negative (negative_2 ...)
    and `label`, the difficulty D of the pair (`attach_difficulty` makes it), or a list of one per negative,
    of which the least counts. Without a curriculum no label is needed. `CurriculumCallback(loss)` keeps
    `position`; with a loop of your own set it yourself, in the unit of the curriculum.

    Args:
        model: a CrossEncoder with one output, or a ConvKNRM; None for `compute_loss_from_scores` alone.
        loss: softmax, cross_entropy, nogueira_cross_entropy, hinge or mse.
        margin: of hinge and mse.
        curriculum: a LinearCurriculum; None weighs all pairs equally.
        weighting: "sample", the published formula, or "batch", the mean weight of the batch as one factor.
        smooth: replaces the curriculum's own.

    Raises ValueError for unknown options, a model of several outputs, labels that are missing, of wrong arity
    or outside [0, 1] (naming the row), another number of negatives than before, and scores that are not
    finite (naming the step).

    Source: Training Curricula for Open Domain Answer Re-Ranking, SIGIR 2020, arXiv 2004.14269.
    """

    def __init__(
        self,
        model: Any,
        loss: str = "softmax",
        margin: int | float = 0.0,
        curriculum: LinearCurriculum | None = None,
        weighting: str = "sample",
        smooth: int | float | None = None,
    ) -> None:
        super().__init__()
        if loss not in PAIRWISE_KINDS:
            raise ValueError(f"loss={loss!r} is unknown; choose one of {', '.join(PAIRWISE_KINDS)}")
        if margin and loss not in ("hinge", "mse"):
            raise ValueError(f"margin={margin} belongs to loss='hinge' or 'mse', not to {loss!r}")
        check_single_logit(model)
        self.model = model
        self.loss = loss
        self.margin = margin
        self.curriculum = check_weighting(weighting, curriculum, smooth)
        self.weighting = weighting
        self.position: int | float = 0
        self.step: int | None = None
        self._negatives: int | None = None

    def forward(
        self,
        inputs: list[list[str]],
        labels: Tensor | list[Tensor] | None = None,
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        if len(inputs) < 3:
            raise ValueError(
                f"{len(inputs)} text columns; the dataset needs query, positive and at least one negative"
            )
        queries, *documents = inputs
        # One pass over all pairs: a model wrapped for distributed training counts forward passes.
        pairs = [(q, d) for column in documents for q, d in zip(queries, column, strict=True)]
        scores = pair_scores(self.model, pairs, prompt, task).reshape(len(documents), len(queries)).T
        return self.compute_loss_from_scores(scores, labels)

    def compute_loss_from_scores(
        self,
        scores: Float[Tensor, "batch candidates"],
        labels: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The loss from scores, column 0 the relevant document's; for bi-encoders and rankers of any kind."""
        negatives = scores.shape[1] - 1
        if self._negatives not in (None, negatives):
            raise ValueError(
                f"{negatives} negatives per query after {self._negatives} before; "
                "give every row the same number"
            )
        self._negatives = negatives
        check_scores(scores, self.step)
        rows = pairwise_loss(scores, loss=self.loss, margin=self.margin, reduction="none")
        if self.curriculum is None:
            return rows.mean()
        weight = self.curriculum.weight(self.difficulty(labels, *scores.shape), self.position)
        return weighted_mean(rows, weight.to(rows.device), self.weighting)

    def difficulty(
        self, labels: Tensor | Sequence[Tensor] | None, batch: int, candidates: int
    ) -> Float[Tensor, " batch"]:
        """D of each row from the label column: the least over its negatives."""
        easy = stacked_labels(labels, _LABELS)
        if easy.shape == (batch, candidates - 1):
            return check_difficulty(easy).amin(dim=1)
        if easy.shape == (batch,):
            return easy
        raise ValueError(
            f"labels have shape {tuple(easy.shape)}; "
            f"{batch} rows of {candidates - 1} negatives need {_LABELS}"
        )

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "margin": self.margin,
            "curriculum": repr(self.curriculum),
            "weighting": self.weighting,
        }

    @property
    def citation(self) -> str:
        return CITATION


CITATION = """
@inproceedings{macavaney2020curricula,
    title={Training Curricula for Open Domain Answer Re-Ranking},
    author={MacAvaney and Nardini and Perego and Tonellotto and Goharian and Frieder},
    booktitle={SIGIR},
    year={2020},
    eprint={2004.14269},
    archivePrefix={arXiv}
}
"""
