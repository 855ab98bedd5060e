"""Hard negatives as row numbers, from vectors: the arithmetic of mining, without texts.

For each query: the `range_max` nearest rows that are none of its positives, less those that score closer to
the positive than the margin allows, then the best `num_negatives` or a random draw of what is left. Places
that stay empty are filled with random rows, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradatim.curricula.margins import Margin
from gradatim.curricula.nearest import nearest_rows

Sampling = Literal["top", "random"]
Several = Literal["min", "mean", "max"]
Rescore = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(first query, candidate rows [block, r]) -> new scores of the positives [block] and candidates [block,
r]."""

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class MiningReport:
    """What mining did.

    `candidates` were looked at, `dropped` of them were too close to the positive, `kept` passed;
    `padded` places of `queries_padded` queries were filled with random rows, `empty` places could not be.
    Quantiles (0, 25, 50, 75, 100 %) are of t(q, p) and of the margin t(q, p) - t(q, d) of mined negatives.
    """

    queries: int
    candidates: int
    dropped: int
    kept: int
    padded: int
    queries_padded: int
    queries_emptied: int
    empty: int
    positive_quantiles: tuple[float, ...]
    margin_quantiles: tuple[float, ...]

    def __str__(self) -> str:
        share = self.dropped / max(1, self.candidates)
        margins = ", ".join(f"{v:.3f}" for v in self.margin_quantiles) or "none"
        return (
            f"{self.queries} queries: {self.candidates} candidates, {self.dropped} ({share:.1%}) too close "
            f"to the positive; {self.padded} places of {self.queries_padded} queries filled at random; "
            f"margins at 0/25/50/75/100 %: {margins}"
        )


@dataclass(frozen=True)
class MinedRows:
    """Rows mined for each query (-1: none left), their scores (NaN: filled at random), the positives'
    score."""

    rows: Int[Tensor, "queries k"]
    scores: Float[Tensor, "queries k"]
    positive: Float[Tensor, " queries"]
    report: MiningReport


def mine_rows(
    queries: Float[Tensor, "queries dim"],
    corpus: Float[Tensor, "docs dim"],
    positives: Sequence[Sequence[int]],
    margin: Margin | None = None,
    num_negatives: int = 7,
    range_max: int = 100,
    range_min: int = 0,
    sampling: str = "top",
    several: str = "min",
    chunk_size: int = 1024,
    seed: int = 0,
    rescore: Rescore | None = None,
    most_emptied: float | int = 0.5,
    doc_chunk: int = 16_384,
) -> MinedRows:
    """Mines negatives by dot product (give unit vectors for cosines).

    Args:
        positives: per query the rows that are no negatives; t(q, p) is the smallest, mean or largest over
            them.
        margin: None keeps every candidate (naive mining).
        range_min, range_max: which of the nearest non-positive rows are candidates.
        rescore: replaces the scores of positives and candidates before the filter, as a re-ranker does.
        most_emptied: refuse when the margin leaves no candidate to more than this share of queries.

    Raises ValueError for options out of range, a query without a positive, vectors that are not finite, and
    when too many queries are left without candidates (with the quantiles that tell why).
    """
    _check(len(queries), positives, num_negatives, range_min, range_max, sampling, several, chunk_size)
    if len(queries) and not (bool(queries.isfinite().all()) and bool(corpus.isfinite().all())):
        raise ValueError("query or corpus vectors are not finite; check the mining model")
    device = queries.device
    width = max(len(p) for p in positives)
    known = torch.full((len(positives), width), -1, dtype=torch.long)
    for i, own_rows in enumerate(positives):
        known[i, : len(own_rows)] = torch.as_tensor(list(own_rows))
    known = known.to(device)
    # One more than needed per positive, so that range_max candidates are left when all of them stand on top.
    fetched = range_max + width
    rng = np.random.default_rng(seed)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    counts = np.zeros(3, dtype=np.int64)  # candidates, dropped, emptied queries
    for begin, scores, columns in nearest_rows(queries, corpus, fetched, chunk_size, doc_chunk):
        own = known[begin : begin + len(columns)]
        candidate = ~(columns[:, :, None] == own[:, None, :]).any(dim=2)
        place = candidate.cumsum(dim=1) - 1
        candidate &= (place >= range_min) & (place < range_max)
        if rescore is None:
            of_positives = (
                queries[begin : begin + len(columns), None].float() * corpus[own.clamp(min=0)]
            ).sum(2)
            positive = _combine(of_positives, own >= 0, several)
        else:
            positive, scores = rescore(begin, columns)
            positive, scores = positive.to(device).float(), scores.to(device).float()
        passed = candidate
        if margin is not None:
            passed = candidate & (scores <= margin.highest(positive, scores, candidate)[:, None])
        counts += [
            int(candidate.sum()),
            int((candidate & ~passed).sum()),
            int((candidate.any(dim=1) & ~passed.any(dim=1)).sum()),
        ]
        # Scores order the survivors; a random draw orders them by lots. Both streams follow from the seed
        # alone, not from the block size.
        lots = torch.from_numpy(rng.random(columns.shape)).to(device) if sampling == "random" else scores
        order = lots.masked_fill(~passed, -torch.inf).argsort(dim=1, descending=True, stable=True)
        order = order[:, :num_negatives]
        taken = passed.gather(1, order)
        rows = columns.gather(1, order).masked_fill(~taken, -1)
        chosen = scores.gather(1, order).masked_fill(~taken, torch.nan)
        if sampling == "random":
            best = chosen.nan_to_num(-torch.inf).argsort(dim=1, descending=True, stable=True)
            rows, chosen = rows.gather(1, best), chosen.gather(1, best)
        missing = num_negatives - rows.shape[1]
        if missing > 0:  # a corpus of fewer rows than negatives wanted
            rows = torch.nn.functional.pad(rows, (0, missing), value=-1)
            chosen = torch.nn.functional.pad(chosen, (0, missing), value=torch.nan)
        parts.append((rows, chosen, positive))
    rows, chosen, positive = (torch.cat([part[i] for part in parts]) for i in range(3))
    emptied = int(counts[2])
    if emptied > most_emptied * len(queries):
        at = ", ".join(f"{v:.3f}" for v in _quantiles(positive))
        raise ValueError(
            f"{margin} leaves no candidate to {emptied} of {len(queries)} queries (t(q, p) at "
            f"0/25/50/75/100 %: {at}); use a smaller margin, a larger range_max={range_max}, or look at the "
            "positives"
        )
    padded, empty = _fill(rows, positives, len(corpus), seed)
    report = MiningReport(
        queries=len(queries),
        candidates=int(counts[0]),
        dropped=int(counts[1]),
        kept=int(counts[0] - counts[1]),
        padded=int(padded.sum()),
        queries_padded=int((padded > 0).sum()),
        queries_emptied=emptied,
        empty=empty,
        positive_quantiles=_quantiles(positive),
        margin_quantiles=_quantiles((positive[:, None] - chosen)[chosen.isfinite()]),
    )
    return MinedRows(rows, chosen, positive, report)


def _combine(
    scores: Float[Tensor, "block p"], present: Bool[Tensor, "block p"], several: str
) -> Float[Tensor, " block"]:
    if several == "min":
        return scores.masked_fill(~present, torch.inf).amin(dim=1)
    if several == "max":
        return scores.masked_fill(~present, -torch.inf).amax(dim=1)
    return scores.masked_fill(~present, 0.0).sum(dim=1) / present.sum(dim=1)


def _fill(
    rows: Int[Tensor, "queries k"], positives: Sequence[Sequence[int]], docs: int, seed: int
) -> tuple[np.ndarray, int]:
    """Puts random rows, none of them a positive or already there, into empty places; counts both outcomes."""
    padded = np.zeros(len(rows), dtype=np.int64)
    empty = 0
    for i in (rows < 0).any(dim=1).nonzero().flatten().tolist():
        row = rows[i].tolist()
        taken = {*positives[i], *(r for r in row if r >= 0)}
        wanted = sum(r < 0 for r in row)
        rng = np.random.default_rng([seed, 1, i])
        # A few draws suffice in a large corpus; a small one is listed.
        drawn = rng.choice(docs, size=min(docs, wanted + len(taken)), replace=False).tolist()
        fresh = [r for r in drawn if r not in taken][:wanted]
        row = [r for r in row if r >= 0] + fresh
        padded[i] = len(fresh)
        empty += wanted - len(fresh)
        rows[i] = torch.tensor(row + [-1] * (rows.shape[1] - len(row)))
    return padded, empty


def _quantiles(values: Tensor) -> tuple[float, ...]:
    if not len(values):
        return ()
    return tuple(float(v) for v in np.quantile(values.double().cpu().numpy(), QUANTILES))


def _check(
    queries: int,
    positives: Sequence[Sequence[int]],
    num_negatives: int,
    range_min: int,
    range_max: int,
    sampling: str,
    several: str,
    chunk_size: int,
) -> None:
    if not queries:
        raise ValueError("no queries to mine for")
    if len(positives) != queries:
        raise ValueError(f"{queries} queries but {len(positives)} entries of positives; give one each")
    bare = next((i for i, rows in enumerate(positives) if not len(rows)), None)
    if bare is not None:
        raise ValueError(f"query {bare} has no positive; leave it out")
    if num_negatives < 1 or chunk_size < 1:
        raise ValueError(f"num_negatives={num_negatives} and chunk_size={chunk_size} must be at least 1")
    if not 0 <= range_min <= range_max - num_negatives:
        raise ValueError(
            f"range_min={range_min} and range_max={range_max} leave fewer than num_negatives={num_negatives}"
        )
    if sampling not in get_args(Sampling):
        raise ValueError(f"sampling={sampling!r} is unknown; choose top or random")
    if several not in get_args(Several):
        raise ValueError(f"several={several!r} is unknown; choose min, mean or max")
