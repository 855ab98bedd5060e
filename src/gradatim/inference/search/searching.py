"""Asking an index: one question, one method, hits with their places and highlights."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.inference.search.errors import IndexDamagedError, SearchError
from gradatim.inference.search.files import CheckedFolder, Manifest, read_manifest
from gradatim.inference.search.highlight import highlights
from gradatim.inference.search.postings import TermStatistics
from gradatim.inference.search.ranking import reciprocal_rank_fusion
from gradatim.inference.search.settings import METHODS, setting
from gradatim.inference.search.shard import Scored, Shard, merge
from gradatim.inference.search.words import query_words

ALL_METHODS = (*METHODS, "hybrid")
MOST_HITS = 1000
LONGEST_QUESTION = 4000
"""Characters of a question that count; the rest is left out."""

FUSED = 100
"""Hits of each method that hybrid looks at."""


@dataclass(frozen=True)
class Hit:
    """A passage that answers: its file (below the indexed folder, with "/"), place, text, what to highlight.

    `highlights` are pairs of character positions in `text`. `score` is the method's own: BM25, cosine, share
    of equal bits, SEAL's or the fused ranks; a re-ranker's where there was one.
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
    re-ranking run. Raises IndexDamagedError where there is no index, or none that can be trusted.
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
        self._open()

    def _open(self) -> None:
        self.manifest: Manifest = read_manifest(self.index)
        self._stamp = self._seen()
        for name in ("_local", "_remote"):
            self.__dict__.pop(name, None)

    def _seen(self) -> tuple[int, int]:
        try:
            status = (self.index / "manifest.json").stat()
        except OSError as error:
            raise IndexDamagedError(f"{self.index} is gone ({error.strerror})") from error
        return status.st_mtime_ns, status.st_ino

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods this index can answer with."""
        held = [m for m in METHODS if m in self.manifest.settings.get("methods", ())]
        return (*held, "hybrid") if len(held) > 1 else tuple(held)

    @property
    def default_method(self) -> str:
        """hybrid where there are vectors, else bm25."""
        return "hybrid" if "dense" in self.methods else "bm25"

    def search(
        self, question: str, k: int = 10, method: str | None = None, rerank: str | None = None
    ) -> Answer:
        """The `k` best passages for a question.

        `method` is one of `methods`; `rerank` names a re-ranker (see `load_reranker`). Raises SearchError for
        an empty question, an unknown method, or one that the index was not made for.
        """
        method = method or self.default_method
        asked = clean_question(question)
        if not asked:
            raise SearchError("the question is empty; ask with at least one word")
        if not 1 <= k <= MOST_HITS:
            raise SearchError(f"k is {k}; ask for 1 to {MOST_HITS} hits")
        if method not in ALL_METHODS:
            raise SearchError(f"no method {method!r}; there are: {', '.join(ALL_METHODS)}")
        if method not in self.methods:
            raise SearchError(
                f"the index was made for {', '.join(self.methods)}, not for {method}; make it again with"
                f" --methods {','.join(dict.fromkeys([*self.methods, method]))}".replace(",hybrid", "")
            )
        try:
            if self._seen() != self._stamp:
                self._open()
            return self._answer(asked, k, method, rerank, len(question) > LONGEST_QUESTION)
        except IndexDamagedError:
            # An update replaced what we had open: look again, once.
            if self._seen() == self._stamp:
                raise
            self._open()
            return self._answer(asked, k, method, rerank, len(question) > LONGEST_QUESTION)

    def _answer(self, question: str, k: int, method: str, rerank: str | None, cut: bool) -> Answer:
        from gradatim.inference.search import reranking

        ranker = reranking.load_reranker(self._ranker(rerank), self.device) if rerank else None
        start = time.perf_counter()
        found = self._found(question, max(k, reranking.DEPTH) if ranker else k, method)
        if ranker is not None:
            found = reranking.rerank(question, found, ranker)
        terms = set(query_words(question))
        hits = tuple(_hit(rank, scored, terms) for rank, scored in enumerate(found[:k], 1))
        note = f"only the first {LONGEST_QUESTION} characters of the question count" if cut else ""
        if not hits:
            note = "no passage shares a word with the question" if method == "bm25" else "nothing found"
        return Answer(question, method, rerank or "", hits, time.perf_counter() - start, note)

    def _ranker(self, name: str) -> str:
        if name != "own":
            return name
        return str(CheckedFolder(self.index, self.manifest, "shared").folder("reranker"))

    def _found(self, question: str, k: int, method: str) -> list[Scored]:
        if method == "bm25":
            terms = query_words(question)
            if not terms:
                return []
            of_all = TermStatistics(0, 0, {})
            for part in self._ask("statistics", terms):
                of_all = of_all + part
            return merge(self._ask("by_words", terms, of_all, k), k)
        if method == "dense":
            return merge(self._ask("by_vector", self._vector(question), k), k)
        if method == "binary":
            return merge(self._ask("by_code", self._code(question), k), k)
        if method == "seal":
            raise SearchError("seal is not there yet")
        parts: list[str] = [m for m in ("bm25", "dense") if m in self.methods]
        parts = parts if len(parts) > 1 else [m for m in self.methods if m not in ("hybrid", "seal")]
        return fuse([self._found(question, max(k, FUSED), part) for part in parts], k)

    def _vector(self, question: str) -> np.ndarray:
        from gradatim.inference.search.dense import query_encoder

        kept = self.manifest.settings
        name, digest = setting(kept, "encoder", str), setting(kept, "encoder_digest", str)
        return query_encoder(name, digest, self.device)(question)

    def _code(self, question: str) -> np.ndarray:
        from gradatim.inference.search.codes import encode_codes, load_code_model

        bits = setting(self.manifest.settings, "bits", int)
        folder = CheckedFolder(self.index, self.manifest, "shared").folder("code-model")
        return encode_codes(load_code_model(folder, bits), [question])[0]

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        if self.engine == "ray":
            answers: list[Any] = self._remote.ask(method, *arguments)
            return answers
        return [getattr(shard, method)(*arguments) for shard in self._local]

    @cached_property
    def _local(self) -> Sequence[Shard]:
        return [Shard(self.index, self.manifest, number) for number in range(self.manifest.shards)]

    @cached_property
    def _remote(self) -> Any:
        from gradatim.inference.search.on_ray import RayShards

        return RayShards(self.index.absolute(), self.manifest, self.ray_address)


def clean_question(text: str) -> str:
    """A question without control characters and halves of characters, cut to its first 4000 characters."""
    text = text[:LONGEST_QUESTION]
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]+", " ", text).strip()


def fuse(rankings: Sequence[Sequence[Scored]], k: int) -> list[Scored]:
    """Reciprocal rank fusion of what several methods found."""
    passages = {}
    named = []
    for ranking in rankings:
        keys = []
        for _, passage in ranking:
            key = f"{passage.number}:{passage.file}"
            passages[key] = passage
            keys.append(key)
        named.append(keys)
    return [(score, passages[key]) for key, score in list(reciprocal_rank_fusion(named).items())[:k]]


def _hit(rank: int, scored: Scored, terms: set[str]) -> Hit:
    score, p = scored
    return Hit(
        rank, score, p.file, p.title, p.text, p.line, p.end_line, p.page, p.start, p.end,
        tuple(highlights(p.text, terms)),
    )  # fmt: skip
