"""A teacher for every pair of a batch, found again by the batch's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.losses.candidates import token_keys


class InBatchTeacher:
    """Teacher scores of queries and passages that training may bring together, as a matrix or two factors.

        scores = ensemble.matrix(queries, passages)
        teacher = InBatchTeacher.of_texts(model.preprocess, queries, passages, scores)
        loss = SoftLabelRankingLoss(model, in_batch_teacher=teacher)

    A trainer hands a loss tokens, not ids; the 64-bit key of a text's tokens finds its row. Give
    `of_texts` the texts as training sees them, with the prompts it uses.

    Args:
        query_keys, passage_keys: keys of the rows and columns of the scores.
        scores: matrix [queries, passages], or vectors (queries [q, d], passages [p, d]) whose dot products
            are the scores: a gather and a product instead of a stored matrix.

    Raises ValueError for sizes that do not agree, and when a batch holds a text that the teacher never saw.
    """

    def __init__(
        self,
        query_keys: Int[Tensor, " queries"],
        passage_keys: Int[Tensor, " passages"],
        scores: Tensor | tuple[Tensor, Tensor],
    ) -> None:
        rows, columns = (len(s) for s in scores) if isinstance(scores, tuple) else scores.shape
        if (rows, columns) != (len(query_keys), len(passage_keys)):
            raise ValueError(
                f"scores are for {rows} queries and {columns} passages; there are {len(query_keys)} and "
                f"{len(passage_keys)} keys"
            )
        self.scores = scores
        self._queries = query_keys.cpu().sort()
        self._passages = passage_keys.cpu().sort()

    @classmethod
    def of_texts(
        cls,
        preprocess: Callable[..., Mapping[str, Any]],
        queries: Sequence[str],
        passages: Sequence[str],
        scores: Tensor | tuple[Tensor, Tensor],
        query_prompt: str | None = None,
        batch_size: int = 512,
    ) -> InBatchTeacher:
        """Keys made with the model's own `preprocess`."""

        def keys(texts: Sequence[str], prompt: str | None) -> Tensor:
            parts = []
            for i in range(0, len(texts), batch_size):
                found = token_keys([preprocess(list(texts[i : i + batch_size]), prompt=prompt)])
                if found is None:
                    raise ValueError(
                        "preprocess gives no input_ids and attention_mask; an in-batch teacher needs them"
                    )
                parts.append(found[0])
            return torch.cat(parts)

        return cls(keys(queries, query_prompt), keys(passages, None), scores)

    def __call__(
        self, query_keys: Int[Tensor, " batch"], passage_keys: Int[Tensor, " cand"]
    ) -> Float[Tensor, "batch cand"]:
        """Scores of every query with every passage, on the keys' device."""
        rows = _places(self._queries, query_keys.cpu(), "query")
        columns = _places(self._passages, passage_keys.cpu(), "passage")
        if isinstance(self.scores, tuple):
            found = self.scores[0][rows].float() @ self.scores[1][columns].float().T
        else:
            found = self.scores[rows][:, columns].float()
        return found.to(query_keys.device)


def _places(known: Any, keys: Tensor, what: str) -> Tensor:
    values, order = known
    at = torch.searchsorted(values, keys).clamp(max=len(values) - 1)
    missing = values[at] != keys
    if bool(missing.any()):
        raise ValueError(
            f"{what} {int(missing.nonzero()[0])} of the batch is unknown to the in-batch teacher; give it "
            "every training text, with the prompt and the maximal length that training uses"
        )
    return order[at]
