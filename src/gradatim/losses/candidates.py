"""Which columns of a batch's score matrix are positives of a query, which are negatives, which are neither.

A batch holds B queries with n passages each; passage j of query i is column i * n + j of a B x (B n) matrix.
Passages are recognised by a 64-bit key of their tokens, so that a passage which another query brings along
is not taken for a negative of a query that has it among its positives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradatim.losses.gather import gather_rows, rank

_MIX = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # splitmix64's odd constants


@dataclass(frozen=True)
class Candidates:
    """Labels and keys of the whole batch, and where this process's queries stand in it.

    `labels` are this process's: 1 positive, 0 negative, -1 neither (padding, doubtful). `all_labels` and the
    keys cover every process. `offset` is the place of the first local query among all.
    """

    labels: Int[Tensor, "batch n"]
    all_labels: Int[Tensor, "all_batch n"]
    offset: int
    query_keys: Int[Tensor, " all_batch"] | None
    passages: Int[Tensor, "all_batch n"] | None
    distinct: int
    in_batch: bool

    def block(self, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For local queries begin..end: own columns, which are positive, who is no negative, duplicates.

        The last is the number of columns that count as no negative only because their passage is labelled
        positive for the query elsewhere.
        """
        labels = self.labels[begin:end]
        rows, n = labels.shape
        device = labels.device
        place = torch.arange(self.offset + begin, self.offset + end, device=device)
        columns = place[:, None] * n + torch.arange(n, device=device)
        if self.in_batch:
            excluded = (self.all_labels.reshape(1, -1) < 0).repeat(rows, 1)
            excluded.scatter_(1, columns, labels != 0)
        else:
            excluded = torch.ones(rows, self.all_labels.numel(), dtype=torch.bool, device=device)
            excluded.scatter_(1, columns, labels != 0)
        masked = torch.zeros((), dtype=torch.long, device=device)
        if self.query_keys is not None and self.passages is not None:
            duplicate = self._positives_elsewhere(place)
            masked = (duplicate & ~excluded).sum()
            excluded |= duplicate
        return columns, labels == 1, excluded, masked

    def _positives_elsewhere(self, place: Tensor) -> Bool[Tensor, "rows cand"]:
        assert self.query_keys is not None
        assert self.passages is not None
        # Rows that ask the same query share their positives; every row shares with itself.
        row, twin = (self.query_keys[place][:, None] == self.query_keys[None, :]).nonzero(as_tuple=True)
        which, column = (self.all_labels[twin] == 1).nonzero(as_tuple=True)
        known = torch.zeros(len(place), self.distinct, dtype=torch.bool, device=place.device)
        known[row[which], self.passages[twin[which], column]] = True
        return known[:, self.passages.reshape(-1)]


def batch_candidates(
    labels: Int[Tensor, "batch n"],
    keys: tuple[Int[Tensor, " batch"], Int[Tensor, "batch n"]] | None,
    in_batch: bool,
    gather: bool,
) -> Candidates:
    """Collects what `Candidates` needs, from every process with `gather`.

    `keys` are those of queries and passages, or None to recognise no duplicates.
    """
    everyone = gather_rows(labels) if gather else labels
    offset = rank() * len(labels) if gather else 0
    if keys is None:
        return Candidates(labels, everyone, offset, None, None, 0, in_batch)
    query_keys, passage_keys = (gather_rows(k) if gather else k for k in keys)
    distinct, index = passage_keys.unique(return_inverse=True)
    if len(distinct) == passage_keys.numel():
        return Candidates(labels, everyone, offset, None, None, 0, in_batch)
    return Candidates(labels, everyone, offset, query_keys, index, len(distinct), in_batch)


def check_labels(labels: Tensor | None, batch: int, n: int) -> Int[Tensor, "batch n"]:
    """Labels as whole numbers; raises ValueError for a missing column, a wrong shape or other values."""
    if labels is None:
        raise ValueError(
            "no labels; the dataset needs a column 'label' with a list of 1, 0 or -1 per passage"
        )
    if n < 2:
        raise ValueError(f"{n} passage column; give each query at least 2 (doc_1, doc_2, ...)")
    if labels.shape != (batch, n):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; {batch} queries of {n} passages need {(batch, n)}"
        )
    known = (labels == 1) | (labels == 0) | (labels == -1)
    if not bool(known.all()):
        wrong = labels[~known].flatten()[0].item()
        raise ValueError(f"label {wrong}: labels are 1 (positive), 0 (negative) or -1 (neither)")
    return labels.long()


def token_keys(features: Sequence[Mapping[str, Any]]) -> list[Int[Tensor, " batch"]] | None:
    """A 64-bit key per row and input column from its unpadded tokens; None if the inputs are not tokens.

    Equal token sequences have equal keys; unequal ones collide with a chance near 2^-63. A prompt is part
    of the tokens: the same passage under two prompts counts as two.
    """
    keys = []
    for column in features:
        ids, attended = column.get("input_ids"), column.get("attention_mask")
        if ids is None or attended is None or ids.ndim != 2 or ids.shape != attended.shape:
            return None
        # Counting attended tokens makes the key independent of the padding's side and width.
        position = attended.cumsum(dim=1)
        keys.append((mix(mix(ids.long()) + position * _MIX[0]) * attended).sum(dim=1))
    return keys


def keyed_lots(
    seed: int, epoch: int, keys: Int[Tensor, " batch"], places: int
) -> Float[Tensor, "batch places"]:
    """Uniform numbers in [0, 1) that follow from (seed, epoch, key, place) on every machine."""
    # Products stay tensors: they wrap around at 64 bits, Python's would not.
    when = mix(torch.full_like(keys, seed)) + torch.full_like(keys, epoch) * _MIX[0]
    state = mix(mix(keys + when))
    each = mix(state[:, None] + torch.arange(1, places + 1, device=keys.device) * _MIX[0])
    # float32 holds 24 bits exactly on every device; more would round up to 1.
    return ((each >> 40) & 0xFFFFFF).float() / 2**24


def mix(value: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """splitmix64's finaliser: a bijection of 64-bit numbers that leaves no visible pattern."""
    value = (value ^ _shift(value, 30)) * _MIX[1]
    value = (value ^ _shift(value, 27)) * _MIX[2]
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    # int64 shifts copy the sign bit; splitmix64 wants zeros.
    return (value >> bits) & ((1 << (64 - bits)) - 1)
