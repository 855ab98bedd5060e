"""How an index is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradatim.inference.search.codes import BITS
from gradatim.inference.search.errors import SearchError
from gradatim.inference.search.files import MANIFEST, MOST_SHARDS, read_manifest

METHODS = ("bm25", "dense", "binary", "seal")

Progress = Callable[[str, int, int], None]
"""Told of every step: what is being done, how much of it, of how much (0: unknown)."""


@dataclass(frozen=True)
class IndexSettings:
    """What an index is to hold and how it is made.

    `methods`: which of bm25, dense, binary, seal to prepare; bm25 always is. `encoder` serves dense, `bits`
    are those of binary, `seal_model` is the language model of seal (None: a small one is trained);
    `reranker` trains one. `hidden`, `follow_links`, `most_bytes`, `seconds` and `megabytes` say which files
    are read and what one may take. `shards` files of their own are made by `engine` (local, or ray with
    `ray_address`); `jobs` processes read files. `fresh` reads everything again.

    Raises SearchError for a setting out of range.
    """

    methods: tuple[str, ...] = ("bm25",)
    encoder: str = "minilm"
    bits: int = BITS
    seal_model: str | None = None
    reranker: bool = False
    hidden: bool = False
    follow_links: bool = False
    most_bytes: int = 20_000_000
    seconds: float = 30.0
    megabytes: int = 2048
    shards: int = 1
    engine: str = "local"
    ray_address: str | None = None
    jobs: int = 1
    device: str | None = "cpu"
    fresh: bool = False

    def __post_init__(self) -> None:
        unknown = [m for m in self.methods if m not in METHODS]
        if unknown:
            raise SearchError(f"no method {unknown[0]!r}; there are: {', '.join(METHODS)}")
        if not 1 <= self.shards <= MOST_SHARDS:
            raise SearchError(f"{self.shards} shards; give 1 to {MOST_SHARDS}")
        if self.engine not in ("local", "ray"):
            raise SearchError(f"engine {self.engine!r} is unknown; use local or ray")
        if not 8 <= self.bits <= 4096 or self.bits % 8:
            raise SearchError(f"codes of {self.bits} bits; give a multiple of 8 from 8 to 4096")
        if self.most_bytes < 1 or self.seconds <= 0 or self.jobs < 1 or self.megabytes < 1:
            raise SearchError("limits on files and the number of readers must be above 0")

    def has(self, method: str) -> bool:
        return method == "bm25" or method in self.methods

    def kept(self) -> dict[str, Any]:
        """What the index itself remembers: the settings that shape its content."""
        return {
            "methods": [m for m in METHODS if self.has(m)],
            "encoder": self.encoder,
            "bits": self.bits,
            "seal_model": self.seal_model or "",
            "reranker": self.reranker,
            "hidden": self.hidden,
            "follow_links": self.follow_links,
            "most_bytes": self.most_bytes,
        }


def settings_like(index: Path | None, **said: Any) -> IndexSettings:
    """Settings as they are said; what is None is as `index` has it, if there is one, else the default."""
    before: dict[str, Any] = {}
    if index is not None and (index / MANIFEST).exists():
        manifest = read_manifest(index)
        kinds = {"methods": list, "encoder": str, "bits": int, "seal_model": str, "reranker": bool}
        before = {name: setting(manifest.settings, name, kind) for name, kind in kinds.items()}
        before["methods"] = tuple(str(name) for name in before["methods"])
        before["seal_model"] = before["seal_model"] or None
        before["shards"] = manifest.shards
    chosen: dict[str, Any] = {k: before.get(k) if v is None else v for k, v in said.items()}
    # Of a device, None says "whatever there is".
    return IndexSettings(**{k: v for k, v in chosen.items() if v is not None or k == "device"})


def setting(kept: Mapping[str, Any], name: str, kind: type) -> Any:
    """A setting out of a manifest. Raises SearchError where it is of another type."""
    value = kept.get(name)
    if type(value) is not kind:
        raise SearchError(f"the index's setting {name!r} is damaged; make the index again")
    return value
