"""The multi-positive losses as a sentence-transformers loss, for its own trainer.

Dataset columns: a query, passages doc_1 ... doc_n, and `label`, a list of n values per row: 1 positive,
0 negative, -1 neither. Positives may stand in any column. `gradatim.tasks.to_multi_positive` makes such a
dataset.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.util import cos_sim, dot_score, similarity_fct_name
from torch import Tensor, nn

from gradatim.losses.candidates import Candidates, batch_candidates, check_labels, keyed_lots, token_keys
from gradatim.losses.gather import gather_rows, sum_over_devices, world_size
from gradatim.losses.multi_positive import (
    NegativeSelector,
    PositiveSelector,
    block_loss,
    check_selectors,
    drawn_positive,
    resolve_objective,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Keys = tuple[Int[Tensor, " batch"], Int[Tensor, "batch n"]]


def _unit(vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    # A product with 1 / norm has a cheaper backward pass than normalize's quotient.
    return vectors * vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12).reciprocal()


class MultiPositiveRankingLoss(nn.Module):
    """Contrastive training with several positives per query.

    Each query is scored against its own n passages and, with `in_batch_negatives`, those of every other
    query in the batch; the value is that of `gradatim.losses.multi_positive_loss`.

    Args:
        model: the encoder.
        objective: infonce, joint-lh, sum-marg-lh, lse-pair, rand1-lh or expected-rand1-lh.
        scale: similarities are multiplied by it (1 / temperature). It matters as much as the objective:
            tune it for each.
        similarity_fct: (queries, passages) -> matrix; cosine by default. Dot products want `scale=1`.
        normalize: joint-lh divided by the number of positives.
        positive_selector, negative_selector: see `multi_positive_loss`.
        in_batch_negatives: False leaves each query only its own passages labelled 0.
        mask_duplicates: a passage labelled positive for a query is no negative of it wherever else in the
            batch the same tokens appear. `masked_duplicates` tells how many columns that spared last time.
        gather_across_devices: also score against the passages of other processes.
        seed: of the positives that rand1-lh draws; they follow from (seed, epoch, the query's tokens). Call
            `set_epoch` (ResampleCallback does), else every forward pass counts as an epoch.

    Queries without a positive or without a negative are left out of value, gradient and mean; a warning
    says so once. Raises ValueError for bad options, labels of wrong shape or values, fewer than 2 passages
    per query, no negative in the whole batch or non-finite scores, and RuntimeError for a batch without any
    positive. In a distributed run an empty batch gives a zero with a graph instead: the other
    processes wait for it.

    Source: Training Dense Retrievers with Multiple Positive Passages, 2026, arXiv 2602.12727.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        objective: str = "lse-pair",
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        normalize: bool = True,
        positive_selector: PositiveSelector = "all",
        negative_selector: NegativeSelector = "all",
        in_batch_negatives: bool = True,
        mask_duplicates: bool = True,
        gather_across_devices: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale={scale} must be above 0")
        self.objective = resolve_objective(objective)
        check_selectors(self.objective, positive_selector, negative_selector)
        self.model = model
        self.scale = scale
        self.similarity_fct = similarity_fct
        self.normalize = normalize
        self.positive_selector = positive_selector
        self.negative_selector = negative_selector
        self.in_batch_negatives = in_batch_negatives
        self.mask_duplicates = mask_duplicates
        self.gather_across_devices = gather_across_devices
        self.seed = seed
        self.epoch: int | None = None
        self._calls = 0
        self._masked: Tensor | int = 0
        self._warned = False

    def set_epoch(self, epoch: int) -> None:
        """From here on rand1-lh draws for this epoch."""
        self.epoch = epoch

    @property
    def masked_duplicates(self) -> int:
        """Columns of the last batch that duplicate masking kept from being false negatives."""
        return int(self._masked)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        features = list(sentence_features)
        # Before embedding: pooling may change attention masks in place.
        keys = self.keys(features)
        return self.compute_loss_from_embeddings(embed_columns(self.model, features), labels, keys)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None, keys: Keys | None = None
    ) -> Tensor:
        """The loss from the embeddings of the query column and of each passage column, all (B, d).

        Without `keys` no duplicates are recognised and rand1-lh draws by place in the batch.
        """
        candidates = self.candidates(labels, keys, len(embeddings[0]), len(embeddings) - 1)
        queries, passages = self.stack(embeddings)
        share = self.share_per_query(candidates, len(queries))
        drawn = self.lots(candidates, keys)
        if self.gather_across_devices:
            passages = gather_rows(passages)
        loss, self._masked = self.block(queries, passages, candidates, drawn, 0, len(queries))
        return loss * share

    def keys(self, features: list[dict[str, Tensor]]) -> Keys | None:
        """Token keys of queries and passages; None where inputs are not tokens."""
        columns = token_keys(features)
        return None if columns is None else (columns[0], torch.stack(columns[1:], dim=1))

    def stack(self, embeddings: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Queries (B, d), and passages (B n, d) with the passages of a query side by side."""
        return embeddings[0], torch.stack(embeddings[1:], dim=1).flatten(0, 1)

    def candidates(self, labels: Tensor | None, keys: Keys | None, batch: int, n: int) -> Candidates:
        """Who is what for whom in this batch."""
        checked = check_labels(labels, batch, n)
        known = keys if self.mask_duplicates else None
        return batch_candidates(checked, known, self.in_batch_negatives, self.gather_across_devices)

    def lots(self, candidates: Candidates, keys: Keys | None) -> Float[Tensor, "batch n"] | None:
        """What rand1-lh draws by; None for the other objectives."""
        self._calls += 1
        if self.objective != "rand1-lh":
            return None
        labels = candidates.labels
        epoch = self._calls - 1 if self.epoch is None else self.epoch
        if keys is None:
            place = torch.arange(len(labels), device=labels.device) + candidates.offset
            return keyed_lots(self.seed, self._calls, place, labels.shape[1])
        return keyed_lots(self.seed, epoch, keys[0], labels.shape[1])

    def share_per_query(self, candidates: Candidates, batch: int, chunk: int = 1024) -> Tensor:
        """What one query's loss is multiplied by: 1 / queries that count.

        With gathering the count covers all processes, times their number: averaging gradients over
        processes then gives exactly the mean over all their queries.
        """
        positive = (candidates.labels == 1).any(dim=1)
        if self.in_batch_negatives and candidates.passages is None and len(candidates.all_labels) > 1:
            # Any negative, or any other query's passage, will do; only padding-only batches have none.
            per_row = (candidates.all_labels >= 0).sum(dim=1)
            own = slice(candidates.offset, candidates.offset + batch)
            negative = (per_row.sum() - per_row[own] + (candidates.labels == 0).sum(dim=1)) > 0
        else:
            parts = [
                ~candidates.block(begin, min(begin + chunk, batch))[2].all(dim=1)
                for begin in range(0, batch, chunk)
            ]
            negative = torch.cat(parts)
        counted = (positive & negative).sum()
        self._report(int(counted), int(positive.sum()), batch)
        if self.gather_across_devices:
            return world_size() / sum_over_devices(counted).clamp(min=1)
        return 1.0 / counted.clamp(min=1)

    def block(
        self,
        queries: Tensor,
        passages: Tensor,
        candidates: Candidates,
        drawn: Tensor | None,
        begin: int,
        end: int,
    ) -> tuple[Tensor, Tensor]:
        """Summed loss of local queries begin..end, and how many duplicates were masked for them."""
        columns, valid, excluded, masked = candidates.block(begin, end)
        if drawn is not None:
            valid = drawn_positive(valid, drawn[begin:end])
        loss = block_loss(
            self.scores(queries[begin:end], passages),
            columns,
            valid,
            excluded,
            objective=self.objective,
            normalize=self.normalize,
            positive_selector=self.positive_selector,
            negative_selector=self.negative_selector,
            reduction="sum",
            if_empty="zero",
        )
        return loss, masked

    def scores(self, queries: Float[Tensor, "batch dim"], passages: Float[Tensor, "cand dim"]) -> Tensor:
        """scale * similarity, in at least float32."""
        if queries.dtype in (torch.float16, torch.bfloat16):
            queries, passages = queries.float(), passages.float()
        # Scaling B x d queries instead of B x (B n) scores saves two passes over the matrix.
        if self.similarity_fct is cos_sim:
            return (_unit(queries) * self.scale) @ _unit(passages).T
        if self.similarity_fct is dot_score:
            return (queries * self.scale) @ passages.T
        return self.similarity_fct(queries, passages) * self.scale

    def _report(self, counted: int, with_positive: int, batch: int) -> None:
        if counted == 0 and world_size() == 1:
            if with_positive == 0:
                raise RuntimeError(f"none of the {batch} queries of the batch has a positive (label 1)")
            raise ValueError(
                "no negative in the whole batch; label some passages 0, or use in_batch_negatives=True with "
                "more than one query"
            )
        if counted < batch and not self._warned:
            self._warned = True
            warnings.warn(
                f"{batch - with_positive} of {batch} queries have no positive and {with_positive - counted} "
                "no negative; such queries are left out (said once)",
                UserWarning,
                stacklevel=2,
            )

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "objective": self.objective,
            "scale": self.scale,
            "similarity_fct": similarity_fct_name(self.similarity_fct),
            "normalize": self.normalize,
            "positive_selector": self.positive_selector,
            "negative_selector": self.negative_selector,
            "in_batch_negatives": self.in_batch_negatives,
            "mask_duplicates": self.mask_duplicates,
            "gather_across_devices": self.gather_across_devices,
            "seed": self.seed,
        }

    @property
    def temperature(self) -> float:
        return 1.0 / self.scale

    @property
    def citation(self) -> str:
        return """
@misc{wang2026multiplepositives,
    title={Training Dense Retrievers with Multiple Positive Passages},
    author={Wang and Tang and Zhang and Guo and Bi},
    year={2026},
    eprint={2602.12727},
    archivePrefix={arXiv}
}
"""
