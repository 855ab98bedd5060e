"""A full-text index over token ids: where an n-gram occurs, how often, and which tokens follow it.

    text = 0 d_1 0 d_2 0 ... d_D 0        token t of a document is a symbol >= 1, 0 is the document boundary

All suffixes that begin with an n-gram fill one range of rows; one more token narrows the range. A language
model that may only choose tokens whose range is not empty can write nothing but substrings of documents
("Autoregressive Search Engines", Bevilacqua et al. 2022, arXiv 2204.10628, with an FM-index).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Integer

from gradatim.inference import suffix_kernels as kernels
from gradatim.inference.document_bounds import DocumentBounds
from gradatim.inference.index_file import IndexFormatError, read_index, require, whole_number, write_index
from gradatim.inference.index_labels import Labels
from gradatim.inference.suffix_rows import SuffixRows, concatenated_ranges
from gradatim.inference.wavelet_rows import WaveletRows

Document = Sequence[int] | np.ndarray
"""Token ids: a list, or an array of whole numbers."""

Memory = Literal["auto", "fast", "compact"]
MOST_VOCABULARY = 1 << 24
_FAST_UP_TO = 1 << 30  # symbols: 8 GB as a suffix array


@dataclass(frozen=True)
class Followed:
    """An n-gram's range of rows, its count, and the distinct tokens after it with theirs, ascending."""

    lo: int
    hi: int
    next_tokens: Int[np.ndarray, " found"]
    next_counts: Int[np.ndarray, " found"]

    @property
    def count(self) -> int:
        return self.hi - self.lo


class TokenIndex:
    """An immutable index over documents of token ids, in memory or mapped from a file.

    Make one with `build`, `from_texts` or `load`. With memory "fast" it is a suffix array (about 7 bytes per
    token), with "compact" an FM-index in a wavelet matrix (about 2.5); both give the same answers.

    `eod` is the token id by which look-ups name the document boundary: `range((eod,))` are the beginnings of
    documents (-1 unless `build` was given an id). The boundary is never among the continuations.
    """

    def __init__(
        self,
        rows: SuffixRows | WaveletRows,
        alphabet: Int[np.ndarray, " distinct"],
        starts: Int[np.ndarray, " bounds"],
        vocab_size: int,
        eod: int,
        labels: Sequence[str] | None,
    ) -> None:
        self._rows = rows
        self._alphabet = alphabet
        self._starts = starts  # place of the boundary before each document, and of the last boundary
        self._bounds = DocumentBounds(starts)
        self.vocab_size = vocab_size
        self.eod = eod
        self.labels = labels

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        *,
        labels: Sequence[str] | None = None,
        vocab_size: int | None = None,
        eod: int | None = None,
        path: str | Path | None = None,
        memory: Memory = "auto",
    ) -> TokenIndex:
        """Index documents, each a sequence of token ids (a tokenizer's, or any whole numbers).

        Args:
            labels: a name for each document, kept in the file.
            vocab_size: ids must be below it; default: the largest id + 1.
            eod: an id that stands for the document boundary in look-ups and may occur in no document.
            path: save there and map the file instead of keeping the arrays.
            memory: "fast", "compact", or "auto": fast up to 2^30 tokens.

        Raises ValueError for no tokens at all, an id that is negative or not below `vocab_size`, a document
        that holds `eod`, and labels of another number than documents.
        """
        text, alphabet, starts, vocab_size = _join(documents, vocab_size, eod)
        if labels is not None and len(labels) != len(starts) - 1:
            raise ValueError(f"{len(labels)} labels for {len(starts) - 1} documents; give one label each")
        if memory not in ("auto", "fast", "compact"):
            raise ValueError(f"memory={memory!r}; choose 'auto', 'fast' or 'compact'")
        fast = memory == "fast" or (memory == "auto" and len(text) <= _FAST_UP_TO)
        kind: type[SuffixRows] | type[WaveletRows] = SuffixRows if fast else WaveletRows
        rows = kind.build(text, len(alphabet) + 1, starts)
        names = None if labels is None else Labels.of(labels)
        index = cls(rows, alphabet, starts, vocab_size, -1 if eod is None else eod, names)
        if path is None:
            return index
        index.save(path)
        return cls.load(path, verify=False)

    @classmethod
    def from_texts(cls, texts: Iterable[str], tokenizer: Any, **options: Any) -> TokenIndex:
        """`build` on texts; `tokenizer` is one of Hugging Face's, or any function from a text to ids."""
        from gradatim.inference.index_text import token_lists, vocabulary_size

        size = options.pop("vocab_size", None) or vocabulary_size(tokenizer)
        return cls.build(token_lists(texts, tokenizer), vocab_size=size, **options)

    # --- What it holds -------------------------------------------------------------------------------------

    @property
    def n_documents(self) -> int:
        return len(self._starts) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents, boundaries not counted."""
        return int(self._starts[-1]) - self.n_documents

    @property
    def memory(self) -> str:
        return "fast" if isinstance(self._rows, SuffixRows) else "compact"

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._arrays().values())

    def tokens(self, doc: int) -> Int[np.ndarray, " length"]:
        """The token ids of a document. Raises IndexError for a number outside 0 ... n_documents - 1."""
        if not 0 <= doc < self.n_documents:
            raise IndexError(f"document {doc}, but the index has {self.n_documents}")
        return self.tokens_of(np.array([doc]))[1]

    def tokens_of(
        self, docs: Int[np.ndarray, " docs"]
    ) -> tuple[Int[np.ndarray, " docs_and_one"], Int[np.ndarray, " total"]]:
        """Offsets per document, and the token ids of all of them, one after another."""
        begin, end = self._starts[docs] + 1, self._starts[docs + 1]
        offsets = np.concatenate([[0], np.cumsum(end - begin)])
        return offsets, self._to_tokens(self._rows.symbols(begin, end, docs))

    # --- Look-ups ------------------------------------------------------------------------------------------

    def range(self, tokens: Iterable[int]) -> tuple[int, int]:
        """Rows [lo, hi) of the suffixes that begin with `tokens`; all of them for none."""
        lo, hi = np.array([0]), np.array([self._rows.n_rows])
        for depth, token in enumerate(tokens):
            lo, hi = self.extend(lo, hi, depth, token)
        return int(lo[0]), int(hi[0])

    def count(self, tokens: Iterable[int]) -> int:
        """How often the n-gram occurs inside documents; the number of tokens for the empty one."""
        wanted = tuple(tokens)
        lo, hi = self.range(wanted)
        return hi - lo if wanted else self.n_tokens

    def extend(self, lo: Any, hi: Any, depth: Any, tokens: Any) -> tuple[np.ndarray, np.ndarray]:
        """Ranges of n-grams of length `depth` made longer by a token each; the arguments are broadcast.

        For B beams and K candidates: `lo`, `hi` [B, 1] and `tokens` [B, K]. A token that no document holds
        there gives an empty range.
        """
        parts = np.broadcast_arrays(lo, hi, depth, tokens)
        shape = parts[0].shape or (1,)
        low, high, deep, ids = (np.array(part, dtype=np.int64).reshape(-1) for part in parts)
        out_lo, out_hi = self._rows.extend(low, high, deep, self._to_symbols(ids))
        return out_lo.reshape(shape), out_hi.reshape(shape)

    def continuations(
        self, lo: int, hi: int, depth: int
    ) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """The distinct tokens after an n-gram of length `depth`, ascending, and how often each follows."""
        _, tokens, counts = self.continuations_of(np.array([lo]), np.array([hi]), np.array([depth]))
        return tokens, counts

    def continuations_of(
        self, lo: Int[np.ndarray, " m"], hi: Int[np.ndarray, " m"], depth: Int[np.ndarray, " m"]
    ) -> tuple[Int[np.ndarray, " m_and_one"], Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """`continuations` of many ranges: those of range i stand at offsets[i] ... offsets[i + 1]."""
        offsets, symbols, counts = self._rows.continuations(lo, hi, depth)
        return offsets, self._to_tokens(symbols), counts

    def follow(self, tokens: Iterable[int]) -> Followed:
        """The range, the count and all continuations of an n-gram in one call."""
        wanted = tuple(tokens)
        lo, hi = self.range(wanted)
        return Followed(lo, hi, *self.continuations(lo, hi, len(wanted)))

    def locate(self, lo: int, hi: int, depth: int, limit: int | None = None) -> Int[np.ndarray, " found"]:
        """Where the n-gram of length `depth` begins in the text, in row order, the first `limit` of them.

        The text has a boundary before every document: document 0 begins at place 1.
        """
        lo, hi = max(lo, 0), min(hi, self._rows.n_rows)
        rows = np.arange(lo, hi if limit is None else min(hi, lo + limit))
        return self._rows.positions(rows, np.full(len(rows), depth))

    def documents(self, lo: int, hi: int, depth: int, limit: int | None = None) -> Int[np.ndarray, " found"]:
        """The distinct documents of the first `limit` rows, ascending."""
        return np.unique(self.occurrences(lo, hi, depth, limit)[0])

    def occurrences(
        self, lo: int, hi: int, depth: int, limit: int | None = None
    ) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """Document and place in it of every occurrence; -1 is the boundary before its first token."""
        ranges, deep = np.array([[[lo, hi]]]), np.array([depth])
        if limit is not None:
            ranges[0, 0, 1] = min(hi, lo + limit)
        _, docs, places = self.places(ranges, deep)
        return docs, places

    # --- Many n-grams at once: what decoders use (`SubstringIndex`) ----------------------------------------

    def roots(self, m: int) -> Int[np.ndarray, "m 1 2"]:
        """The ranges of m empty n-grams: one index, [lo, hi)."""
        return np.tile(np.array([[[0, self._rows.n_rows]]]), (m, 1, 1))

    def advance(
        self, ranges: Int[np.ndarray, "m 1 2"], depth: Any, tokens: Int[np.ndarray, " m"]
    ) -> Int[np.ndarray, "m 1 2"]:
        """Ranges after one token more each; the boundary `eod` is allowed, for the beginning of documents."""
        out = np.empty((len(ranges), 1, 2), dtype=np.int64)
        deep = np.full(len(ranges), depth, dtype=np.int64)
        lo, hi = ranges[:, 0, 0].copy(), ranges[:, 0, 1].copy()
        out[:, 0, 0], out[:, 0, 1] = self._rows.extend(lo, hi, deep, self._to_symbols(tokens))
        return out

    def probe(
        self, ranges: Int[np.ndarray, "m 1 2"], depth: Any, tokens: Int[np.ndarray, "m k"]
    ) -> Int[np.ndarray, "m k"]:
        """How often each of k tokens follows each n-gram; `depth` is a number or one per n-gram."""
        deep = np.broadcast_to(depth, len(ranges))[:, None]
        lo, hi = self.extend(ranges[:, 0, :1], ranges[:, 0, 1:], deep, tokens)
        return np.where(tokens == self.eod, 0, hi - lo)

    def next_tokens(
        self, ranges: Int[np.ndarray, "m 1 2"], depth: Any
    ) -> tuple[Int[np.ndarray, " m_and_one"], Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """Offsets, tokens and counts of all continuations of every n-gram."""
        deep = np.array(np.broadcast_to(depth, len(ranges)), dtype=np.int64)
        return self.continuations_of(ranges[:, 0, 0].copy(), ranges[:, 0, 1].copy(), deep)

    def places(
        self, ranges: Int[np.ndarray, "m 1 2"], depth: Int[np.ndarray, " m"]
    ) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """n-gram (its number), document and place in it of every occurrence of m n-grams."""
        lo, hi = ranges[:, 0, 0], ranges[:, 0, 1]
        number = np.repeat(np.arange(len(lo)), hi - lo)
        places = self._rows.positions(concatenated_ranges(lo, hi), depth[number])
        docs = self._bounds.holders(places)
        inside = docs < self.n_documents
        number, docs, places = number[inside], docs[inside], places[inside]
        return number, docs, places - self._starts[docs] - 1

    # --- Growing -------------------------------------------------------------------------------------------

    def append(
        self,
        documents: Iterable[Document],
        *,
        labels: Sequence[str] | None = None,
        path: str | Path | None = None,
    ) -> TokenIndex:
        """A new index with further documents at the end: the same as building it from all of them at once.

        The order of all suffixes is made again (millions of tokens a second). Where that is too much at a
        time, `ShardedTokenIndex.append` sorts the new documents alone.
        Raises ValueError as `build`, and where one part has labels and the other has none.
        """
        added = list(documents)
        if not added:
            raise ValueError("no documents to append")
        if (labels is None) != (self.labels is None):
            raise ValueError("labels are needed for all documents or for none")
        names = None if labels is None or self.labels is None else [*self.labels, *labels]
        return self._again([*self._all_documents(), *added], names, path, self.vocab_size)

    @classmethod
    def merge(cls, indexes: Sequence[TokenIndex], *, path: str | Path | None = None) -> TokenIndex:
        """One index of the documents of several, in their order, as if built at once.

        Raises ValueError for no index, for different `eod`, and where some have labels and some have none.
        """
        if not indexes:
            raise ValueError("no indexes to merge")
        first = indexes[0]
        if len({index.eod for index in indexes}) > 1:
            raise ValueError(f"indexes differ in eod: {sorted({index.eod for index in indexes})}")
        if len({index.labels is None for index in indexes}) > 1:
            raise ValueError("labels are needed in all indexes or in none")
        names = None if first.labels is None else [x for index in indexes for x in index.labels or ()]
        documents = [doc for index in indexes for doc in index._all_documents()]
        return first._again(documents, names, path, max(index.vocab_size for index in indexes))

    # --- Files ---------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one file (see `index_file`), whole or not at all."""
        meta = {
            "memory": self.memory,
            "vocab_size": self.vocab_size,
            "eod": self.eod,
            "n_text": int(self._starts[-1]) + 1,
            "n_documents": self.n_documents,
            "n_distinct": len(self._alphabet),
        }
        write_index(path, meta, self._arrays())

    @classmethod
    def load(cls, path: str | Path, *, mmap: bool = True, verify: bool = True) -> TokenIndex:
        """Open a saved index; with `mmap` its pages are read when needed and shared between processes.

        `verify=False` skips the checksums (the file is read whole for them). A damaged or hostile file then
        may give wrong answers but never reads outside its arrays.
        Raises IndexFormatError for a file that is no index or is damaged, FileNotFoundError for none.
        """
        meta, arrays = read_index(path, mmap=mmap, verify=verify)
        n = whole_number(meta, "n_text", 2, 1 << 48)
        count = whole_number(meta, "n_documents", 1, n - 1)
        distinct = whole_number(meta, "n_distinct", 1, min(n, MOST_VOCABULARY))
        vocab_size = whole_number(meta, "vocab_size", 1, MOST_VOCABULARY)
        eod = whole_number(meta, "eod", -1, MOST_VOCABULARY)
        starts = require(arrays, "starts", "i", count + 1, last=n - 1).astype(np.int64)
        alphabet = require(arrays, "alphabet", "i", distinct).astype(np.int64)
        rises = bool((np.diff(alphabet) > 0).all()) and alphabet[0] >= 0 and alphabet[-1] < vocab_size
        if not rises or bool((np.diff(starts) < 1).any()):
            raise IndexFormatError("the index is damaged: token ids or document bounds are out of order")
        if meta.get("memory") not in ("fast", "compact"):
            raise IndexFormatError(f"the index is damaged: memory is {str(meta.get('memory'))[:40]!r}")
        kind: type[SuffixRows] | type[WaveletRows] = SuffixRows if meta["memory"] == "fast" else WaveletRows
        rows = kind.from_arrays(arrays, n, distinct + 1, starts)
        labels = Labels.from_arrays(arrays, count) if "labels" in arrays else None
        return cls(rows, alphabet, starts, vocab_size, eod, labels)

    def _arrays(self) -> dict[str, np.ndarray]:
        labels = self.labels.arrays() if isinstance(self.labels, Labels) else {}
        small = np.int32 if self._starts[-1] < 2**31 - 1 else np.int64
        return {
            "alphabet": self._alphabet.astype(np.int32),
            "starts": self._starts.astype(small),
            **self._rows.arrays(),
            **labels,
        }

    def _again(
        self, documents: Sequence[Any], labels: Sequence[str] | None, path: str | Path | None, vocab_size: int
    ) -> TokenIndex:
        largest = max((int(np.max(doc)) for doc in documents if len(doc)), default=0)
        return TokenIndex.build(
            documents,
            labels=labels,
            vocab_size=max(vocab_size, largest + 1),
            eod=None if self.eod < 0 else self.eod,
            path=path,
            memory="fast" if self.memory == "fast" else "compact",
        )

    def _all_documents(self) -> list[Int[np.ndarray, " _"]]:
        offsets, tokens = self.tokens_of(np.arange(self.n_documents))
        return np.split(tokens, offsets[1:-1])

    # --- Tokens and symbols --------------------------------------------------------------------------------

    @cached_property
    def _symbol_of(self) -> Int[np.ndarray, " vocab"]:
        table = np.full(self.vocab_size, -1, dtype=np.int64)
        table[self._alphabet] = np.arange(1, len(self._alphabet) + 1)
        return table

    def _to_symbols(self, tokens: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        symbols = self._symbol_of.take(tokens, mode="clip")
        symbols[(tokens < 0) | (tokens >= self.vocab_size)] = -1
        symbols[tokens == self.eod] = 0
        return symbols

    def _to_tokens(self, symbols: Integer[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        tokens = np.empty(len(symbols), dtype=np.int64)
        if not kernels.translate(symbols, self._alphabet, tokens):
            raise IndexFormatError("the index is damaged: it holds a symbol of no token; build it again")
        return tokens


def _join(
    documents: Iterable[Document], vocab_size: int | None, eod: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Text of symbols with boundaries, the distinct ids, the places of the boundaries, and the vocabulary."""
    parts = [_ids(number, doc) for number, doc in enumerate(documents)]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    if lengths.sum() == 0:
        raise ValueError(f"{len(parts)} documents without a single token; there is nothing to index")
    tokens = np.concatenate(parts)
    starts = np.concatenate([[0], np.cumsum(lengths + 1)])
    size = int(tokens.max()) + 1 if vocab_size is None else vocab_size
    if size > MOST_VOCABULARY:
        raise ValueError(f"token ids up to {size - 1}; an index holds ids below {MOST_VOCABULARY}")
    if eod is not None and not 0 <= eod < MOST_VOCABULARY:
        raise ValueError(f"eod must be a token id, got {eod}")
    for wrong, what in (
        (tokens < 0, "is negative"),
        (tokens >= size, f"is not below vocab_size = {size}"),
        (tokens == (-1 if eod is None else eod), "is eod, the document boundary"),
    ):
        if wrong.any():
            place = int(np.argmax(wrong))
            number = int(np.searchsorted(np.cumsum(lengths), place, side="right"))
            raise ValueError(f"token id {tokens[place]} in document {number} {what}")
    seen = np.zeros(size, dtype=bool)
    seen[tokens] = True
    alphabet = np.flatnonzero(seen)
    table = np.zeros(size, dtype=np.uint16 if len(alphabet) < 2**16 else np.uint32)
    table[alphabet] = np.arange(1, len(alphabet) + 1)
    text = np.zeros(int(starts[-1]) + 1, dtype=table.dtype)
    inside = np.ones(len(text), dtype=bool)
    inside[starts] = False
    text[inside] = table[tokens]
    return text, alphabet, starts, size


def _ids(number: int, document: Any) -> np.ndarray:
    array = np.asarray(document)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"document {number} is no list of token ids (got {array.dtype}, shape {array.shape})"
        )
    return array.astype(np.int64, copy=False)
