"""One shard of an index, answering for its own passages. A whole index is a shard of one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.inference.search.codes import nearest_codes
from gradatim.inference.search.dense import nearest
from gradatim.inference.search.errors import IndexDamagedError
from gradatim.inference.search.files import CheckedFolder, Manifest
from gradatim.inference.search.passages import PassageFile, StoredPassage
from gradatim.inference.search.postings import Postings, TermStatistics
from gradatim.inference.search.postings_file import read_postings
from gradatim.inference.search.ranking import best_rows

Scored = tuple[float, StoredPassage]


def shard_name(number: int) -> str:
    """The folder of a shard."""
    return f"shard-{number:04d}"


class Shard:
    """The files of one shard, opened and checked when a method first needs them."""

    def __init__(self, index: Path, manifest: Manifest, number: int) -> None:
        self.files = CheckedFolder(index, manifest, shard_name(number))

    @cached_property
    def passages(self) -> PassageFile:
        return PassageFile(self.files)

    @cached_property
    def postings(self) -> Postings:
        return read_postings(self.files, len(self.passages))

    @cached_property
    def vectors(self) -> np.ndarray:
        return self.files.array("vectors.npy", "<f4", len(self.passages), None)

    @cached_property
    def codes(self) -> np.ndarray:
        return self.files.array("codes.npy", "|u1", len(self.passages), None)

    @cached_property
    def _hamming(self) -> Any:
        from gradatim.inference.hamming import HammingIndex

        return HammingIndex(np.asarray(self.codes))

    def statistics(self, terms: Sequence[str]) -> TermStatistics:
        """This shard's part of what BM25 needs to know."""
        return self.postings.statistics(terms)

    def by_words(self, terms: Sequence[str], of_all: TermStatistics, k: int) -> list[Scored]:
        """Best passages by BM25, those that share no term with the question left out."""
        scores = self.postings.scores(terms, of_all)
        return [(float(scores[row]), self.passages[row]) for row in best_rows(scores, k, above=0.0).tolist()]

    def by_vector(self, query: np.ndarray, k: int) -> list[Scored]:
        """Best passages by the cosine of their vector with the question's."""
        if not len(self.passages):
            return []
        if self.vectors.shape[1] != len(query):
            raise IndexDamagedError(f"vectors of {self.vectors.shape[1]} numbers; make the index again")
        rows, cosines = nearest(self.vectors, query, k)
        return [(float(c), self.passages[row]) for row, c in zip(rows.tolist(), cosines, strict=True)]

    def by_code(self, code: np.ndarray, k: int) -> list[Scored]:
        """Best passages by the share of bits that their code has in common with the question's."""
        if not len(self.passages):
            return []
        if self.codes.shape[1] != len(code):
            raise IndexDamagedError(f"codes of {self.codes.shape[1]} bytes; make the index again")
        rows, distances = nearest_codes(self._hamming, code, k)
        bits = 8 * len(code)
        return [
            (1 - float(d) / bits, self.passages[row])
            for row, d in zip(rows.tolist(), distances.tolist(), strict=True)
        ]


def merge(parts: Sequence[Sequence[Scored]], k: int) -> list[Scored]:
    """The best of what shards found; equal scores in the order of files, as one index has them."""
    found = [scored for part in parts for scored in part]
    return sorted(found, key=lambda s: (-s[0], s[1].file, s[1].number))[:k]
