"""What every retrieval reader gives: passages, queries, judgments, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Judgments = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class RetrievalData:
    """A retrieval collection in memory.

    corpus     passage id -> text
    queries    query id -> text; only queries with at least one relevant passage
    qrels      split name ("train", "dev", "test", or "all") -> query id -> passage id -> grade > 0
    negatives  query id -> passage ids named as not relevant
    passages_seen / queries_seen   how many the files hold; above the stated limits a seeded uniform
                                   sample of the rest was kept (judged passages always are)
    """

    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Judgments]
    negatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    passages_seen: int = 0
    queries_seen: int = 0

    @property
    def sampled(self) -> str:
        """One sentence on what was left out, or an empty string."""
        parts = []
        if len(self.corpus) < self.passages_seen:
            parts.append(f"{len(self.corpus):,} of {self.passages_seen:,} passages")
        if len(self.queries) < self.queries_seen:
            parts.append(f"{len(self.queries):,} of {self.queries_seen:,} queries")
        return f"Measured on a seeded sample: {' and '.join(parts)}." if parts else ""
