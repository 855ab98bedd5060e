"""Hard and soft labels in one pass, as a sentence-transformers loss.

    L = hard_weight * contrastive(annotated positives) + soft_weight * soft(teacher)

Both read the same matrix of scores. Dataset columns: a query, passages doc_1 ... doc_n, and `label`, a list
of the teacher's n scores per row (`TeacherEnsemble.annotate`, `mine_negatives(label="scores")`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.util import cos_sim
from torch import Tensor, nn

from gradatim.losses.candidates import Candidates
from gradatim.losses.gather import gather_rows, sum_over_devices, world_size
from gradatim.losses.multi_positive import block_loss, drawn_positive
from gradatim.losses.multi_positive_ranking import Keys, MultiPositiveRankingLoss
from gradatim.losses.soft_labels import Soft, counted_rows, soft_label_loss, teacher_entropy

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

HardTargets = Literal["first", "argmax", "mask"]
InBatch = Callable[[Tensor, Tensor], Tensor]
FLAT = 0.95


class SoftLabelRankingLoss(nn.Module):
    """A contrastive loss and a distillation loss from one forward pass; returns {"hard": ..., "soft": ...}.

    The trainer of sentence-transformers adds and logs the parts of a dict.

    Args:
        model: the student.
        scale: 1 / temperature of the student's similarities, in both parts: the temperature it is used with.
        teacher_temperature: tau of the teacher's softmax. Scores in [0, 1] need a tau of about 0.05: with
            1 their softmax is nearly uniform and teaches the student to be flat. z-scores want about 0.5.
        soft_weight, hard_weight: weights of the two parts; 0 leaves a part out.
        soft: "kl", "margin_mse" or "bce" (`soft_label_loss`).
        in_batch_teacher: (query keys [B], passage keys [B n]) -> scores [B, B n]: the soft part then covers
            the passages of all rows, not only a row's own. `InBatchTeacher` is one; keys are those of the
            tokens. With it the dataset's own scores serve the hard targets only.
        hard_targets: which passages are positive. "first": the first column; "argmax": the teacher's best;
            "mask": labels of shape (B, 2, n) hold scores, then 1 positive, 0 negative, -1 neither.
        label_floor: the annotated positive gets at least the teacher's largest score of the row.
        objective, in_batch_negatives, mask_duplicates, similarity_fct, gather_across_devices: of the hard
            part, as in `MultiPositiveRankingLoss`. With one positive every objective is InfoNCE.

    `entropy` is the mean entropy of the last batch's teacher as a share of its largest, `agreement` the share
    of rows whose best passage is the same for student and teacher. A teacher above 0.95 warns once: so
    flat a target carries no signal.

    Raises ValueError for bad options, labels of wrong shape, teacher scores that are not finite.
    Source: LG-ANNA-Embedding, 2025, arXiv 2506.07438; the formulas are our version of it.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float | int = 20.0,
        teacher_temperature: float | int = 0.5,
        soft_weight: float | int = 1.0,
        hard_weight: float | int = 1.0,
        soft: str = "kl",
        in_batch_teacher: InBatch | None = None,
        hard_targets: str = "first",
        label_floor: bool = False,
        objective: str = "joint-lh",
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        in_batch_negatives: bool = True,
        mask_duplicates: bool = True,
        gather_across_devices: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if soft not in get_args(Soft):
            raise ValueError(f"soft={soft!r} is unknown; choose kl, margin_mse or bce")
        if hard_targets not in get_args(HardTargets):
            raise ValueError(f"hard_targets={hard_targets!r} is unknown; choose first, argmax or mask")
        if not teacher_temperature > 0:
            raise ValueError(f"teacher_temperature={teacher_temperature} must be above 0")
        if min(soft_weight, hard_weight) < 0 or soft_weight + hard_weight == 0:
            raise ValueError(
                f"hard_weight={hard_weight} and soft_weight={soft_weight}: neither below 0, not both 0"
            )
        self.contrastive = MultiPositiveRankingLoss(
            model,
            objective=objective,
            scale=scale,
            similarity_fct=similarity_fct,
            in_batch_negatives=in_batch_negatives,
            mask_duplicates=mask_duplicates,
            gather_across_devices=gather_across_devices,
            seed=seed,
        )
        self.model = model
        self.scale = scale
        self.teacher_temperature = teacher_temperature
        self.soft_weight, self.hard_weight = soft_weight, hard_weight
        self.soft = soft
        self.in_batch_teacher = in_batch_teacher
        self.hard_targets = hard_targets
        self.label_floor = label_floor
        self._entropy: Tensor | None = None
        self._agreement: Tensor | None = None
        self._warned = False

    @property
    def entropy(self) -> float:
        """Mean teacher entropy of the last batch, from 0 (certain) to 1 (flat)."""
        return float("nan") if self._entropy is None else float(self._entropy)

    @property
    def agreement(self) -> float:
        """Share of the last batch's rows whose best own passage is the same for student and teacher."""
        return float("nan") if self._agreement is None else float(self._agreement)

    def set_epoch(self, epoch: int) -> None:
        """From here on rand1-lh draws for this epoch."""
        self.contrastive.set_epoch(epoch)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        features = list(sentence_features)
        keys = self.contrastive.keys(features)  # before embedding, which may change attention masks
        return self.compute_loss_from_embeddings(embed_columns(self.model, features), labels, keys)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None, keys: Keys | None = None
    ) -> dict[str, Tensor]:
        """Both parts from the embeddings of the query column and of each passage column, all (B, d).

        `keys` (of queries [B] and passages [B, n]) recognise duplicates and are what the in-batch teacher is
        asked with.
        """
        loss = self.contrastive
        batch, n = len(embeddings[0]), len(embeddings) - 1
        teacher, relevance = self._targets(labels, batch, n)
        queries, passages = loss.stack(embeddings)
        candidates = loss.candidates(relevance, keys, batch, n)
        if loss.gather_across_devices:
            passages = gather_rows(passages)
        scores = loss.scores(queries, passages)
        columns, valid, excluded, masked = candidates.block(0, batch)
        loss._masked = masked
        own = scores.gather(1, columns)
        self._observe(own.detach(), teacher, relevance)
        parts: dict[str, Tensor] = {}
        if self.hard_weight:
            share = loss.share_per_query(candidates, batch)
            drawn = loss.lots(candidates, keys)
            if drawn is not None:
                valid = drawn_positive(valid, drawn)
            hard = block_loss(
                scores, columns, valid, excluded, objective=loss.objective, reduction="sum", if_empty="zero"
            )
            parts["hard"] = self.hard_weight * hard * share
        if self.soft_weight:
            parts["soft"] = self.soft_weight * self._soft(
                scores, own, teacher, relevance, candidates, columns, keys
            )
        return parts

    def _soft(
        self,
        scores: Float[Tensor, "batch cand"],
        own: Float[Tensor, "batch n"],
        teacher: Float[Tensor, "batch n"],
        relevance: Int[Tensor, "batch n"],
        candidates: Candidates,
        columns: Int[Tensor, "batch n"],
        keys: Keys | None,
    ) -> Tensor:
        place = (relevance == 1).int().argmax(dim=1)
        if self.in_batch_teacher is None:
            ignored = relevance < 0
            return self._mean(own, self._floored(teacher, place, ~ignored), ignored, place)
        if keys is None:
            raise ValueError("in_batch_teacher is asked by token keys: pass keys=, or inputs that are tokens")
        passages = keys[1].flatten()
        if self.contrastive.gather_across_devices:
            passages = gather_rows(passages)
        everyone = self.in_batch_teacher(keys[0], passages).to(scores.device)
        if everyone.shape != scores.shape:
            raise ValueError(
                f"in_batch_teacher gave shape {tuple(everyone.shape)}; {len(scores)} queries and "
                f"{scores.shape[1]} passages need {tuple(scores.shape)}"
            )
        column = columns.gather(1, place[:, None])[:, 0]
        ignored = (candidates.all_labels.reshape(1, -1) < 0) | self._repeats(passages, column)
        return self._mean(scores, self._floored(everyone.to(scores.dtype), column, ~ignored), ignored, column)

    def _mean(
        self,
        scores: Float[Tensor, "batch cand"],
        teacher: Float[Tensor, "batch cand"],
        ignored: Bool[Tensor, "batch cand"],
        positive: Int[Tensor, " batch"],
    ) -> Tensor:
        """The mean over rows that count; with gathering, this process's share of that of all processes."""
        value = soft_label_loss(
            scores,
            teacher,
            ignored,
            soft=self.soft,
            teacher_temperature=self.teacher_temperature,
            positive=positive,
            reduction="sum" if self.contrastive.gather_across_devices else "mean",
        )
        if not self.contrastive.gather_across_devices:
            return value
        counted = counted_rows(~ignored, self.soft, positive).sum()
        return value * world_size() / sum_over_devices(counted).clamp(min=1)

    def _repeats(
        self, passages: Int[Tensor, " cand"], column: Int[Tensor, " batch"]
    ) -> Bool[Tensor, "batch cand"]:
        """Columns whose passage stands further left too; a row's own positive is kept instead of its twin."""
        distinct, inverse = passages.unique(return_inverse=True)
        at = torch.arange(len(passages), device=passages.device)
        leftmost = torch.full_like(distinct, len(passages)).scatter_reduce(0, inverse, at, "amin")
        first = leftmost[inverse] == at
        ignored = (~first).expand(len(column), -1).clone()
        twin = passages[column][:, None] == passages[None, :]
        return (ignored | twin).scatter(1, column[:, None], False)

    def _floored(
        self,
        teacher: Float[Tensor, "batch cand"],
        place: Int[Tensor, " batch"],
        keep: Bool[Tensor, "batch cand"],
    ) -> Float[Tensor, "batch cand"]:
        if not self.label_floor:
            return teacher
        highest = teacher.masked_fill(~keep, -torch.inf).amax(dim=1, keepdim=True)
        return teacher.scatter(1, place[:, None], highest)

    def _targets(
        self, labels: Tensor | None, batch: int, n: int
    ) -> tuple[Float[Tensor, "batch n"], Int[Tensor, "batch n"]]:
        wanted = (batch, 2, n) if self.hard_targets == "mask" else (batch, n)
        if labels is None:
            raise ValueError(
                "no labels; the dataset needs a column 'label' with the teacher's scores per passage"
            )
        if tuple(labels.shape) != wanted:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}; {batch} queries of {n} passages with "
                f"hard_targets={self.hard_targets!r} need {wanted}"
            )
        teacher = labels[:, 0] if self.hard_targets == "mask" else labels
        teacher = teacher if teacher.dtype == torch.float64 else teacher.float()
        if not bool(teacher.isfinite().all()):
            row = int((~teacher.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"row {row}: teacher scores are not finite; check the teacher")
        if self.hard_targets == "mask":
            return teacher, labels[:, 1].long()
        place = (
            teacher.argmax(dim=1) if self.hard_targets == "argmax" else torch.zeros_like(teacher[:, 0]).long()
        )
        return teacher, torch.zeros_like(teacher).long().scatter(1, place[:, None], 1)

    def _observe(self, own: Tensor, teacher: Tensor, relevance: Tensor) -> None:
        keep = relevance >= 0
        best = [x.masked_fill(~keep, -torch.inf).argmax(dim=1) for x in (own, teacher)]
        self._agreement = (best[0] == best[1]).float().mean()
        self._entropy = teacher_entropy(teacher, keep, self.teacher_temperature).mean()
        if not self._warned and self.soft == "kl" and self.soft_weight and self.entropy > FLAT:
            self._warned = True
            warnings.warn(
                f"the teacher's softmax is nearly flat (entropy {self.entropy:.3f} of its largest): it "
                f"teaches the student to be flat; lower teacher_temperature={self.teacher_temperature} or "
                "standardise the scores",
                UserWarning,
                stacklevel=2,
            )

    def get_config_dict(self) -> dict[str, Any]:
        return {
            **self.contrastive.get_config_dict(),
            "teacher_temperature": self.teacher_temperature,
            "soft_weight": self.soft_weight,
            "hard_weight": self.hard_weight,
            "soft": self.soft,
            "in_batch_teacher": self.in_batch_teacher is not None,
            "hard_targets": self.hard_targets,
            "label_floor": self.label_floor,
        }

    @property
    def temperature(self) -> float:
        return 1.0 / self.scale

    @property
    def citation(self) -> str:
        return """
@misc{choi2025lganna,
    title={LG-ANNA-Embedding technical report},
    author={Choi and Kim and Jang and Jun and Bae and Choi and Choi and Lee and Yun},
    year={2025},
    eprint={2506.07438},
    archivePrefix={arXiv}
}
"""
