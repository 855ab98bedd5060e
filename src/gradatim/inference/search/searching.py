"""Asking an index: one question, one method, hits with their places and highlights."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradatim.inference.search.errors import IndexDamagedError, SearchError
from gradatim.inference.search.files import Manifest, read_manifest
from gradatim.inference.search.highlight import highlights
from gradatim.inference.search.opened import OpenIndex
from gradatim.inference.search.settings import METHODS
from gradatim.inference.search.shard import Scored
from gradatim.inference.search.words import query_words

ALL_METHODS = (*METHODS, "hybrid")
MOST_HITS = 1000
LONGEST_QUESTION = 4000
"""Characters of a question that count; the rest is left out."""


@dataclass(frozen=True)
class Hit:
    """A passage that answers: its file (below the indexed folder, with "/"), place, text, what to highlight.

    `highlights` are pairs of character positions in `text`. `score` is the method's own: BM25, cosine, share
    of equal bits, SEAL's or the fused ranks; a re-ranker's, or the mix with it, where there was one.
    """

    rank: int
    score: float
    file: str
    title: str
    text: str
    line: int | None
    end_line: int | None
    page: int | None
    start: int | None
    end: int | None
    highlights: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Answer:
    """Hits of a question, best first, and how they were found. `note`: what a reader should know, or ""."""

    question: str
    method: str
    rerank: str
    hits: tuple[Hit, ...]
    seconds: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `gradatim search --json` prints it."""
        return asdict(self)


class FolderIndex:
    """An index opened for questions. It follows the folder: after an update the next question sees the new.

    `engine="ray"` keeps each shard open in a Ray worker. `device` is where models of dense, seal and
    re-ranking run. Several threads may ask at once. Raises IndexDamagedError where there is no index, or none
    that can be trusted.
    """

    def __init__(
        self,
        index: str | Path,
        engine: str = "local",
        ray_address: str | None = None,
        device: str | None = "cpu",
    ) -> None:
        if engine not in ("local", "ray"):
            raise SearchError(f"engine {engine!r} is unknown; use local or ray")
        self.index = Path(index)
        self.engine, self.ray_address, self.device = engine, ray_address, device
        self._now = self._opened()

    @property
    def manifest(self) -> Manifest:
        """What the index holds, as it was last seen."""
        return self._now.manifest

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods this index can answer with."""
        return self._now.methods

    @property
    def default_method(self) -> str:
        """hybrid where there are vectors, else bm25."""
        return "hybrid" if "dense" in self.methods else "bm25"

    def search(
        self, question: str, k: int = 10, method: str | None = None, rerank: str | None = None
    ) -> Answer:
        """The `k` best passages for a question.

        `method` is one of `methods`; `rerank` names a re-ranker (see `load_reranker`), "own" the one made
        with the index. Raises SearchError for an empty question, an unknown method, or one that the index was
        not made for.
        """
        asked = clean_question(question)
        if not asked:
            raise SearchError("the question is empty; ask with at least one word")
        if not 1 <= k <= MOST_HITS:
            raise SearchError(f"k is {k}; ask for 1 to {MOST_HITS} hits")
        now = self._now
        if read_manifest(self.index).generation != now.manifest.generation:
            now = self._now = self._opened()
        try:
            return _answer(now, asked, k, method or self.default_method, rerank, len(question))
        except IndexDamagedError:
            # An update may have taken away what was about to be opened: look again, once.
            if read_manifest(self.index).generation == now.manifest.generation:
                raise
            now = self._now = self._opened()
            return _answer(now, asked, k, method or self.default_method, rerank, len(question))

    def _opened(self) -> OpenIndex:
        return OpenIndex(self.index, read_manifest(self.index), self.engine, self.ray_address, self.device)


def _answer(index: OpenIndex, question: str, k: int, method: str, rerank: str | None, asked: int) -> Answer:
    if method not in ALL_METHODS:
        raise SearchError(f"no method {method!r}; there are: {', '.join(ALL_METHODS)}")
    if method not in index.methods:
        held = [m for m in index.methods if m != "hybrid"]
        wanted = [*held, "dense" if method == "hybrid" else method]
        raise SearchError(
            f"the index was made for {', '.join(index.methods)}, not for {method}; make it again with"
            f" --methods {','.join(wanted)}"
        )
    ranker = None
    if rerank:
        from gradatim.inference.search import reranking

        name = str(index.shared_folder("reranker")) if rerank == "own" else rerank
        ranker, blend = reranking.load_reranker(name, index.device), reranking.load_blend(name)
    start = time.perf_counter()
    if ranker is None:
        found = index.ranked(question, k, method)
    else:
        found = index.ranked(question, max(k, reranking.DEPTH), method)
        found = reranking.rerank(question, found, ranker, blend=blend)
    terms = set(query_words(question))
    hits = tuple(_hit(rank, scored, terms) for rank, scored in enumerate(found[:k], 1))
    note = ""
    if asked > LONGEST_QUESTION:
        note = f"only the first {LONGEST_QUESTION} characters of the question count"
    elif not hits:
        note = "no passage shares a word with the question" if method == "bm25" else "nothing found"
    return Answer(question, method, rerank or "", hits, time.perf_counter() - start, note)


def clean_question(text: str) -> str:
    """A question without control characters and halves of characters, cut to its first 4000 characters."""
    text = text[:LONGEST_QUESTION]
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]+", " ", text).strip()


def _hit(rank: int, scored: Scored, terms: set[str]) -> Hit:
    score, p = scored
    return Hit(
        rank, score, p.file, p.title, p.text, p.line, p.end_line, p.page, p.start, p.end,
        tuple(highlights(p.text, terms)),
    )  # fmt: skip
