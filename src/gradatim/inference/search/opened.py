"""One generation of an index, opened: its shards answer, their answers are merged into one ranking."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.inference.search.errors import SearchError
from gradatim.inference.search.files import CheckedFolder, Manifest
from gradatim.inference.search.postings import TermStatistics
from gradatim.inference.search.ranking import reciprocal_rank_fusion
from gradatim.inference.search.settings import METHODS, setting
from gradatim.inference.search.shard import Scored, Shard, merge
from gradatim.inference.search.words import query_words

FUSED = 100
"""Hits of each method that hybrid looks at."""


class OpenIndex:
    """A manifest with its shards, here or in Ray workers. Several threads may ask at once."""

    def __init__(
        self, index: Path, manifest: Manifest, engine: str, ray_address: str | None, device: str | None
    ) -> None:
        self.index, self.manifest, self.device = index, manifest, device
        self.engine, self.ray_address = engine, ray_address

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods this index can answer with."""
        held = [m for m in METHODS if m in self.manifest.settings.get("methods", ())]
        return (*held, "hybrid") if "dense" in held else tuple(held)

    def ranked(self, question: str, k: int, method: str) -> list[Scored]:
        """The best `k` passages by one of `methods`."""
        if method == "bm25":
            return self._by_words(question, k)
        if method == "dense":
            return merge(self._ask("by_vector", self._vector(question), k), k)
        if method == "binary":
            return merge(self._ask("by_code", self._code(question), k), k)
        if method == "seal":
            return self._seal(question, k)
        # Codes of a short question are too coarse to help: fused with bm25 they only lower it.
        return fuse([self.ranked(question, max(k, FUSED), part) for part in ("bm25", "dense")], k)

    def shared_folder(self, name: str) -> Path:
        """A checked folder that all shards share. Raises SearchError where the index was made without it."""
        if not any(part.startswith(f"shared/{name}/") for part in self.manifest.parts):
            raise SearchError(f"the index has no {name} of its own; make it again with --{name}")
        return self._shared.folder(name)

    @cached_property
    def _shared(self) -> CheckedFolder:
        return CheckedFolder(self.index, self.manifest, "shared")

    def _by_words(self, question: str, k: int) -> list[Scored]:
        terms = query_words(question)
        if not terms:
            return []
        of_all = TermStatistics(0, 0, {})
        for part in self._ask("statistics", terms):
            of_all = of_all + part
        return merge(self._ask("by_words", terms, of_all, k), k)

    def _vector(self, question: str) -> np.ndarray:
        from gradatim.inference.search.dense import query_encoder

        kept = self.manifest.settings
        name, digest = setting(kept, "encoder", str), setting(kept, "encoder_digest", str)
        return query_encoder(name, digest, self.device)(question)

    def _code(self, question: str) -> np.ndarray:
        from gradatim.inference.search.codes import encode_codes

        return encode_codes(self._code_model, [question])[0]

    @cached_property
    def _code_model(self) -> Any:
        from gradatim.inference.search.codes import load_code_model

        return load_code_model(self.shared_folder("code-model"), setting(self.manifest.settings, "bits", int))

    @cached_property
    def _seal(self) -> Any:
        from gradatim.inference.search.seal import SealSearch

        name = setting(self.manifest.settings, "seal_model", str)
        return SealSearch(self._local, name or str(self.shared_folder("generator")), self.device)

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
