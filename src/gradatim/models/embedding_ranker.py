"""A re-ranker that begins as good as an encoder's cosine: one trained map on frozen embeddings.

    s(q, d) = scale cos(W q, W d),     W = identity at the start

q and d are the encoder's vectors. Nothing has to be learnt before it ranks well, each text is encoded once,
and a training step costs a product of small matrices: it has use for a few dozen judged queries, where a
re-ranker with a new head, or from nothing, still ranks at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class EmbeddingRanker(nn.Module):
    """Scores (query, document) pairs by a map on an encoder's vectors; it answers to `train_reranker`,
    `rerank_run` and the curriculum losses as a CrossEncoder does.

    Args:
        encoder: a `SentenceTransformer`, or anything with `encode(texts, batch_size=, show_progress_bar=)`.
        scale: steepness of the loss; it changes no order.
        batch_size: of texts that have to be encoded.

    Raises ValueError for a scale that is not above 0, vectors that are not finite or of another width.
    """

    num_labels = 1

    def __init__(self, encoder: Any, dim: int, scale: float | int = 20.0, batch_size: int = 32) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale={scale} must be above 0; 20 is usual")
        self._encoder = (encoder,)  # in a tuple it is no submodule: its weights are neither trained nor kept
        self.scale, self.batch_size = float(scale), batch_size
        self.weight = nn.Parameter(torch.eye(dim))
        self._known: dict[str, Tensor] = {}

    @property
    def encoder(self) -> Any:
        """The frozen encoder."""
        return self._encoder[0]

    @property
    def device(self) -> torch.device:
        """Where the map is."""
        return self.weight.device

    def remember(self, texts: Sequence[str], vectors: Float[np.ndarray, "texts dim"]) -> EmbeddingRanker:
        """Take these vectors for these texts instead of encoding them."""
        found = torch.as_tensor(vectors, dtype=torch.float32)
        if found.shape != (len(texts), len(self.weight)) or not bool(found.isfinite().all()):
            raise ValueError(
                f"vectors of shape {tuple(found.shape)} for {len(texts)} texts: give finite rows of "
                f"{len(self.weight)} numbers"
            )
        self._known.update(zip(texts, found, strict=True))
        return self

    def preprocess(
        self, pairs: Sequence[Sequence[str]], prompt: str | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """The encoder's vectors of both sides; `prompt` is put before each query."""
        queries, docs = [(prompt or "") + query for query, _ in pairs], [doc for _, doc in pairs]
        fresh = [text for text in dict.fromkeys([*queries, *docs]) if text not in self._known]
        if fresh:
            vectors = self.encoder.encode(fresh, batch_size=self.batch_size, show_progress_bar=False)
            self.remember(fresh, np.asarray(vectors, dtype=np.float32))
        return {
            "queries": torch.stack([self._known[text] for text in queries]),
            "docs": torch.stack([self._known[text] for text in docs]),
        }

    def forward(self, features: Mapping[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """`{"scores": (pairs,)}` of what `preprocess` made."""
        of_queries, of_docs = (features[side] @ self.weight.T for side in ("queries", "docs"))
        return {"scores": self.scale * F.cosine_similarity(of_queries, of_docs, dim=1)}

    @torch.inference_mode()
    def predict(
        self,
        inputs: Sequence[Sequence[str]],
        batch_size: int = 1024,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = False,
        **_: Any,
    ) -> Any:
        """Scores of (query, document) pairs, as `CrossEncoder.predict` gives them."""
        parts = [torch.zeros(0, device=self.device)]
        for begin in range(0, len(inputs), batch_size):
            features = self.preprocess(inputs[begin : begin + batch_size])
            parts.append(self({name: tensor.to(self.device) for name, tensor in features.items()})["scores"])
        scores = torch.cat(parts)
        return scores if convert_to_tensor else scores.cpu().numpy()
