"""Where keys occur in documents, sorted as the greedy choice of keys needs it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from gradatim.inference import ngram_kernels as kernels
from gradatim.inference.key_table import KeyTable
from gradatim.inference.substring_index import SubstringIndex
from gradatim.inference.suffix_rows import concatenated_ranges


@dataclass(frozen=True)
class Matches:
    """Occurrences of keys by document, then key, then place; those of docs[i] are begin[i] ... begin[i + 1].

    Keys are numbered by rank. Place 0 is the boundary in front of a document, its first token is at 1.
    """

    docs: Int[np.ndarray, " docs"]
    begin: Int[np.ndarray, " docs_and_one"]
    key: Int[np.ndarray, " found"]
    place: Int[np.ndarray, " found"]

    @classmethod
    def sort(
        cls,
        doc: Int[np.ndarray, " found"],
        key: Int[np.ndarray, " found"],
        place: Int[np.ndarray, " found"],
    ) -> Matches:
        """From occurrences in any order: as one number each where it fits, which sorts faster."""
        bits = [int(part.max(initial=0)).bit_length() for part in (doc, key, place)]
        if sum(bits) < 63:
            code = (doc << (bits[1] + bits[2])) | (key << bits[2]) | place
            code.sort()
            doc, place = code >> (bits[1] + bits[2]), code & ((1 << bits[2]) - 1)
            key = (code >> bits[2]) & ((1 << bits[1]) - 1)
        else:
            order = np.lexsort((place, key, doc))
            doc, key, place = doc[order], key[order], place[order]
        first = np.ones(len(doc), dtype=bool)
        np.not_equal(doc[1:], doc[:-1], out=first[1:])
        begin = np.flatnonzero(first)
        return cls(doc[begin], np.append(begin, len(doc)), key, place)

    def of(self, rows: Int[np.ndarray, " rows"]) -> Matches:
        """Those in some of the documents, given by their places in `docs`."""
        begin, end = self.begin[rows], self.begin[rows + 1]
        at = concatenated_ranges(begin, end)
        offsets = np.concatenate([[0], np.cumsum(end - begin)])
        return Matches(self.docs[rows], offsets, self.key[at], self.place[at])

    def joined(self, row: Int[np.ndarray, " more"], key: np.ndarray, place: np.ndarray) -> Matches:
        """With further occurrences in the same documents, which are given by their places in `docs`."""
        old = np.repeat(np.arange(len(self.docs)), np.diff(self.begin))
        both = Matches.sort(
            np.concatenate([old, row]),
            np.concatenate([self.key, key]),
            np.concatenate([self.place, place]),
        )
        return Matches(self.docs, both.begin, both.key, both.place)

    def first_of_key(self) -> Bool[np.ndarray, " found"]:
        """Which occurrence is the first of its key in its document."""
        first = np.ones(len(self.key), dtype=bool)
        np.not_equal(self.key[1:], self.key[:-1], out=first[1:])
        first[self.begin[:-1]] = True
        return first


@dataclass(frozen=True)
class KeyTrie:
    """Some of the keys as a trie, to find all of them in documents in one reading."""

    tables: tuple[np.ndarray, ...]
    longest: int

    @classmethod
    def of(cls, table: KeyTable, chosen: Bool[np.ndarray, " keys"]) -> KeyTrie:
        begin, tokens = table.part(chosen)
        size = 1 << max(4, int(2 * len(tokens)).bit_length())
        nodes, edges, children = (np.full(size, -1, dtype=np.int64) for _ in range(3))
        ends = np.full(len(tokens) + 1, -1, dtype=np.int64)
        roots = np.full(table.bound, -1, dtype=np.int32)
        numbers = np.flatnonzero(chosen)
        kernels.build_trie(begin, tokens, numbers, roots, nodes, edges, children, ends)
        return cls((roots, nodes, edges, children, ends), int(np.diff(begin).max(initial=0)))

    def find(
        self, offsets: Int[np.ndarray, " docs_and_one"], tokens: Int[np.ndarray, " total"]
    ) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """Document (its number here), key and place of every occurrence."""
        room = max(1024, len(tokens))
        while True:
            out = [np.empty(room, dtype=np.int64) for _ in range(3)]
            count = kernels.match(*self.tables, self.longest, offsets, tokens, *out)
            if count <= room:
                return out[0][:count], out[1][:count], out[2][:count]
            room = count


def read_with_boundaries(
    index: SubstringIndex, docs: Int[np.ndarray, " docs"]
) -> tuple[Int[np.ndarray, " docs_and_one"], Int[np.ndarray, " total"]]:
    """Shifted tokens of documents, each with the boundary 0 in front."""
    inside, tokens = index.tokens_of(docs)
    offsets = inside + np.arange(len(inside))
    shifted = np.empty(int(offsets[-1]), dtype=np.int64)
    kernels.put_boundaries(inside, tokens, shifted)
    return offsets, shifted
