"""A linear map on top of a frozen encoder, trained with a multi-positive loss.

Queries and passages share one bias-free square matrix, the identity at the start:

    s(q, d) = scale * cos(W q, W d)

The encoder is run once over the texts; training takes seconds. `as_sentence_transformer` puts the map
behind the encoder, so that what was measured is what is saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradatim.losses.multi_positive import multi_positive_loss
from gradatim.losses.soft_labels import soft_label_loss
from gradatim.tasks.annotations import Row, draw_rows
from gradatim.tasks.retrieval import RetrievalTask

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

RATE = 1e-3
BATCH = 32
PASSAGES = 8
MAX_POSITIVES = 4


def train_head(
    task: RetrievalTask,
    query_vectors: Mapping[str, np.ndarray],
    passages: np.ndarray,
    passage_row: Mapping[str, int],
    negatives: Mapping[str, Sequence[str]],
    *,
    objective: str,
    scale: float,
    seed: int,
    epochs: int,
    teacher: Mapping[str, Mapping[str, float]] | None = None,
) -> Tensor:
    """The matrix W [dim, dim] after `epochs` over the queries of `query_vectors`.

    With `teacher`, a score per query and document, the KL divergence of the row's own passages from the
    teacher's softmax is added to the objective.

    Each epoch draws every query's row anew: up to 4 positives (for infonce always the first, which is all
    it uses) and hard negatives up to 8 passages; other rows' passages are negatives too, unless relevant.
    """
    ids = list(query_vectors)
    positives = {query: task.relevant(query) for query in ids}
    dim = passages.shape[1]
    weight = torch.eye(dim).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=RATE, weight_decay=0.0)
    shuffle = np.random.default_rng(seed)
    draws = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        select: Any = "first" if objective == "infonce" else "random"
        rows = draw_rows(positives, negatives, PASSAGES, MAX_POSITIVES, select, seed, epoch)
        order = shuffle.permutation(len(rows))
        for start in range(0, len(rows), BATCH):
            batch = [rows[i] for i in order[start : start + BATCH]]
            docs = np.array([passage_row[d] for row in batch for d in row.docs])
            positive, ignored = candidate_masks(batch, positives)
            q = torch.from_numpy(np.stack([query_vectors[row.query] for row in batch]))
            scores = scale * _cosine(q @ weight.T, torch.from_numpy(passages[docs]) @ weight.T)
            loss = multi_positive_loss(
                scores, positive, ignored, objective=objective, generator=draws, if_empty="zero"
            )
            if teacher is not None:
                loss = loss + _soft_part(scores, batch, teacher)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weight.detach()


def _soft_part(scores: Tensor, batch: Sequence[Row], teacher: Mapping[str, Mapping[str, float]]) -> Tensor:
    n = len(batch[0].docs)
    own = torch.arange(len(batch) * n).reshape(len(batch), n)
    given = torch.tensor([[teacher[row.query][doc] for doc in row.docs] for row in batch])
    padding = torch.tensor([[label < 0 for label in row.labels] for row in batch])
    return soft_label_loss(scores.gather(1, own), given, padding)


def candidate_masks(batch: Sequence[Row], positives: Mapping[str, Sequence[str]]) -> tuple[Tensor, Tensor]:
    """(B, B n) masks: a row's own labelled positives, and what counts for neither side.

    Neither side: padding, and passages relevant to the row's query that stand in any other place.
    """
    docs = np.array([doc for row in batch for doc in row.docs], dtype=object)
    labels = np.array([label for row in batch for label in row.labels])
    n = len(batch[0].docs)
    positive = np.zeros((len(batch), len(docs)), dtype=bool)
    ignored = np.zeros_like(positive)
    for i, row in enumerate(batch):
        own = slice(i * n, (i + 1) * n)
        positive[i, own] = labels[own] == 1
        relevant = set(positives[row.query])
        ignored[i] = np.array([doc in relevant for doc in docs]) & ~positive[i]
    return torch.from_numpy(positive), torch.from_numpy(ignored | (labels == -1)[None])


def apply_head(weight: Tensor, values: np.ndarray) -> np.ndarray:
    """Unit vectors W x / |W x|, row by row."""
    with torch.no_grad():
        return F.normalize(torch.from_numpy(np.ascontiguousarray(values)) @ weight.T, dim=1).numpy()


def as_sentence_transformer(encoder: SentenceTransformer, weight: Tensor) -> SentenceTransformer:
    """The encoder's own modules, then the map, then unit length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    dim = weight.shape[0]
    dense = Dense(dim, dim, bias=False, activation_function=torch.nn.Identity(), init_weight=weight.clone())
    return SentenceTransformer(modules=[*encoder, dense, Normalize()], device=str(encoder.device))


def _cosine(queries: Tensor, docs: Tensor) -> Tensor:
    return F.normalize(queries, dim=1) @ F.normalize(docs, dim=1).T
