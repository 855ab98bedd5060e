"""The multi-positive losses for batches larger than memory, by gradient caching.

All texts are embedded in mini-batches without a graph; the loss is computed on the embeddings of the whole
batch, a few queries at a time; then each mini-batch is embedded again, now with a graph, and receives its
embeddings' gradients. The gradient is that of the whole batch; memory is that of one mini-batch.

Source: Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021, arXiv 2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin, has_static_embedding_input
from sentence_transformers.util import cos_sim
from torch import Tensor, nn

from gradatim.losses.gather import gather_rows
from gradatim.losses.multi_positive import NegativeSelector, PositiveSelector
from gradatim.losses.multi_positive_ranking import Keys, MultiPositiveRankingLoss

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class CachedMultiPositiveRankingLoss(CachedLossMixin, nn.Module):
    """`MultiPositiveRankingLoss` with gradient caching: the same loss and gradient, less memory, more time.

    `mini_batch_size` texts are embedded at a time, and so many queries are scored at a time; alternatively
    `mini_batch_num_tokens` packs texts up to a number of tokens. The other arguments are those of
    `MultiPositiveRankingLoss`, whose conditions and errors hold. A StaticEmbedding model, whose inputs
    cannot be cut, raises ValueError.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        objective: str = "lse-pair",
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        normalize: bool = True,
        positive_selector: PositiveSelector = "all",
        negative_selector: NegativeSelector = "all",
        in_batch_negatives: bool = True,
        mask_duplicates: bool = True,
        gather_across_devices: bool = False,
        seed: int = 0,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__()
        if has_static_embedding_input(model):
            raise ValueError(
                "a StaticEmbedding model cannot be cut into mini-batches; use MultiPositiveRankingLoss"
            )
        if mini_batch_size < 1:
            raise ValueError(f"mini_batch_size={mini_batch_size} must be at least 1")
        if mini_batch_num_tokens is not None and mini_batch_num_tokens < 1:
            raise ValueError(f"mini_batch_num_tokens={mini_batch_num_tokens} must be at least 1 or None")
        self.model = model
        self.loss = MultiPositiveRankingLoss(
            model,
            objective=objective,
            scale=scale,
            similarity_fct=similarity_fct,
            normalize=normalize,
            positive_selector=positive_selector,
            negative_selector=negative_selector,
            in_batch_negatives=in_batch_negatives,
            mask_duplicates=mask_duplicates,
            gather_across_devices=gather_across_devices,
            seed=seed,
        )
        self.mini_batch_size = mini_batch_size
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar
        self._keys: Keys | None = None

    def set_epoch(self, epoch: int) -> None:
        """From here on rand1-lh draws for this epoch."""
        self.loss.set_epoch(epoch)

    @property
    def masked_duplicates(self) -> int:
        """Columns of the last batch that duplicate masking kept from being false negatives."""
        return self.loss.masked_duplicates

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        features = list(sentence_features)
        self._keys = self.loss.keys(features)
        return self.forward_cached(features, labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of the whole batch from its embeddings; with `with_backward` also their gradients."""
        columns = [torch.cat(parts) for parts in reps]
        batch = len(columns[0])
        candidates = self.loss.candidates(labels, self._keys, batch, len(columns) - 1)
        queries, passages = self.loss.stack(columns)
        share = self.loss.share_per_query(candidates, batch, self.mini_batch_size)
        drawn = self.loss.lots(candidates, self._keys)
        everyone = gather_rows(passages) if self.loss.gather_across_devices else passages
        # The chunks' gradients meet in a leaf, so that gathering is differentiated once and not per chunk.
        meeting = everyone.detach().requires_grad_() if with_backward else everyone
        total = torch.zeros((), device=queries.device)
        masked = torch.zeros((), dtype=torch.long, device=queries.device)
        for begin in range(0, batch, self.mini_batch_size):
            end = min(begin + self.mini_batch_size, batch)
            loss, spared = self.loss.block(queries, meeting, candidates, drawn, begin, end)
            loss = loss * share
            if with_backward:
                loss.backward()
                loss = loss.detach()
            total = total + loss
            masked = masked + spared
        if with_backward:
            everyone.backward(meeting.grad)
        self.loss._masked = masked
        return total

    def get_config_dict(self) -> dict[str, Any]:
        return {
            **self.loss.get_config_dict(),
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_num_tokens": self.mini_batch_num_tokens,
        }

    @property
    def temperature(self) -> float:
        return self.loss.temperature

    @property
    def citation(self) -> str:
        return (
            self.loss.citation
            + """
@misc{gao2021scaling,
    title={Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup},
    author={Luyu Gao and Yunyi Zhang and Jiawei Han and Jamie Callan},
    year={2021},
    eprint={2101.06983},
    archivePrefix={arXiv},
    primaryClass={cs.LG}
}
"""
        )
