"""The best tokens that go on with a substring, without asking the index about the whole vocabulary.

A beam search needs few tokens per beam. A narrow range is enumerated. In a wide one the model's tokens are
probed in descending order until enough are found: exactly what a full mask gives, for less.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.inference.substring_index import SubstringIndex, counts

_NARROW = 256
"""Ranges of fewer rows are enumerated."""

_LEAST_PROBED = 64


def best_allowed(
    index: SubstringIndex,
    log_probs: Float[Tensor, "rows vocab"],
    ranges: Int[np.ndarray, "rows shards 2"],
    depth: int | Int[np.ndarray, " rows"],
    k: int,
) -> tuple[Int[np.ndarray, "rows k"], Float[np.ndarray, "rows k"]]:
    """The k allowed tokens of highest log-probability of each row, ties by lower token.

    Where fewer are allowed the rest is filled with token -1 and -inf.
    """
    deep = np.broadcast_to(np.asarray(depth, dtype=np.int64), (len(ranges),))
    tokens = np.full((len(ranges), k), -1, dtype=np.int64)
    values = np.full((len(ranges), k), -np.inf)
    narrow = counts(ranges) < _NARROW
    if narrow.any():
        _enumerate(index, log_probs, ranges, deep, np.flatnonzero(narrow), tokens, values)
    rows = np.flatnonzero(~narrow)
    width = max(4 * k, _LEAST_PROBED)
    while len(rows):
        width = min(width, log_probs.shape[1])
        best = torch.topk(log_probs[torch.from_numpy(rows).to(log_probs.device)], width, dim=1)
        ids, scores = best.indices.cpu().numpy(), best.values.double().cpu().numpy()
        allowed = index.probe(ranges[rows], deep[rows], ids) > 0
        masked = np.where(allowed, scores, -np.inf)
        order = np.lexsort((ids, -masked), axis=1)[:, :k]
        chosen = np.take_along_axis(masked, order, axis=1)
        # A tie with the last one probed may go on outside: only what is above it is settled.
        done = (chosen[:, -1] > scores[:, -1]) if order.shape[1] == k else np.zeros(len(rows), dtype=bool)
        if width == log_probs.shape[1]:
            done[:] = True
        found = rows[done]
        got = order.shape[1]
        values[found, :got] = chosen[done]
        tokens[found, :got] = np.where(
            np.isfinite(chosen[done]), np.take_along_axis(ids, order, axis=1)[done], -1
        )
        rows = rows[~done]
        width *= 4
    return tokens, values


def all_allowed(
    index: SubstringIndex,
    log_probs: Float[Tensor, "rows vocab"],
    ranges: Int[np.ndarray, "rows shards 2"],
    depth: int | Int[np.ndarray, " rows"],
) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"], Float[np.ndarray, " found"]]:
    """Row, token and log-probability of every allowed token.

    Raises ValueError where the index holds a token that the model does not score.
    """
    offsets, tokens, _ = index.next_tokens(ranges, depth)
    rows = np.repeat(np.arange(len(ranges)), np.diff(offsets))
    if len(tokens) and tokens.max() >= log_probs.shape[1]:
        raise ValueError(
            f"the index holds token id {tokens.max()}, but the model scores {log_probs.shape[1]} tokens; "
            "index and model need the same tokenizer"
        )
    on: Any = log_probs.device
    picked = log_probs[torch.from_numpy(rows).to(on), torch.from_numpy(tokens).to(on)]
    return rows, tokens, picked.double().cpu().numpy()


def _enumerate(
    index: SubstringIndex,
    log_probs: Tensor,
    ranges: np.ndarray,
    depth: np.ndarray,
    rows: np.ndarray,
    tokens: np.ndarray,
    values: np.ndarray,
) -> None:
    chosen = log_probs[torch.from_numpy(rows).to(log_probs.device)]
    row, token, value = all_allowed(index, chosen, ranges[rows], depth[rows])
    order = np.lexsort((token, -value, row))
    row, token, value = row[order], token[order], value[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)  # rank within its row
    kept = place < tokens.shape[1]
    tokens[rows[row[kept]], place[kept]] = token[kept]
    values[rows[row[kept]], place[kept]] = value[kept]
