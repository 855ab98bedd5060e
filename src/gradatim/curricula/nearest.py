"""The nearest rows of a large matrix for many queries, holding one block of similarities at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor


def nearest_rows(
    queries: Float[Tensor, "queries dim"],
    corpus: Float[Tensor, "docs dim"],
    k: int,
    query_chunk: int = 1024,
    doc_chunk: int = 16_384,
) -> Iterator[tuple[int, Float[Tensor, "block k"], Int[Tensor, "block k"]]]:
    """Blocks (first query, scores, columns) of the `k` rows of highest dot product, best first.

    A running top k over blocks of documents: at most query_chunk x (doc_chunk + k) similarities exist at a
    time, whatever the sizes. Equal scores are ordered by column. Half precision is multiplied in float32.
    """
    k = min(k, len(corpus))
    for begin in range(0, len(queries), query_chunk):
        block = queries[begin : begin + query_chunk].float()
        scores: Tensor | None = None
        columns: Tensor | None = None
        for first in range(0, len(corpus), doc_chunk):
            part = block @ corpus[first : first + doc_chunk].float().T
            found, where = part.topk(min(k, part.shape[1]), dim=1, sorted=False)
            where = where + first
            if scores is not None and columns is not None:
                found, where = torch.cat([scores, found], dim=1), torch.cat([columns, where], dim=1)
                found, keep = found.topk(min(k, found.shape[1]), dim=1, sorted=False)
                where = where.gather(1, keep)
            scores, columns = found, where
        assert scores is not None
        assert columns is not None
        by_column = columns.argsort(dim=1)
        scores, columns = scores.gather(1, by_column), columns.gather(1, by_column)
        best = scores.argsort(dim=1, descending=True, stable=True)
        yield begin, scores.gather(1, best), columns.gather(1, best)
