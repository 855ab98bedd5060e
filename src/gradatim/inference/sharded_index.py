"""A token index in several files, for corpora that outgrow one machine: shards by documents.

A shard answers for its own documents; counts add up, and documents are numbered on from shard to shard:
decoding and scoring give what one index of all documents gives. Shards are built by processes or Ray workers,
and queried here, by threads, or where they lie by Ray actors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from gradatim.inference.index_file import IndexFormatError
from gradatim.inference.substring_index import counts, ranges_of
from gradatim.inference.token_index import Document, Memory, TokenIndex

Engine = Literal["local", "joblib", "ray"]
LIST_FILE = "shards.json"
_FORMAT = 1


class ShardedTokenIndex:
    """Several `TokenIndex` files as one index. Make one with `build` or `load`; `close` ends Ray actors."""

    def __init__(
        self, paths: Sequence[Path], engine: Engine = "local", *, mmap: bool = True, verify: bool = True
    ) -> None:
        if engine not in ("local", "joblib", "ray"):
            raise ValueError(f"engine={engine!r}; choose 'local', 'joblib' or 'ray'")
        self.paths, self.engine = list(paths), engine
        self._shards = [_open(path, engine, mmap, verify) for path in self.paths]
        facts = self._each("facts")
        self.vocab_size = max(fact["vocab_size"] for fact in facts)
        self.eod = int(facts[0]["eod"])
        if len({fact["eod"] for fact in facts}) > 1:
            raise IndexFormatError("the shards differ in eod; build them again")
        self._tokens = sum(fact["n_tokens"] for fact in facts)
        self._starts = np.cumsum([0, *(fact["n_documents"] for fact in facts)])
        labels = [fact["labels"] for fact in facts]
        self.labels: Sequence[str] | None = (
            None if None in labels else [name for of_shard in labels for name in of_shard]
        )

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        path: str | Path,
        *,
        shards: int = 4,
        labels: Sequence[str] | None = None,
        vocab_size: int | None = None,
        eod: int | None = None,
        memory: Memory = "auto",
        engine: Engine = "local",
    ) -> ShardedTokenIndex:
        """Index documents in `shards` files of about as many documents each, below the folder `path`.

        `engine="joblib"` builds them in processes, "ray" in Ray tasks (the folder has to be one that all
        workers see). Raises ValueError for fewer documents than shards, and as `TokenIndex.build`.
        """
        texts = [np.asarray(doc, dtype=np.int64) for doc in documents]
        if not 1 <= shards <= len(texts):
            raise ValueError(f"{shards} shards for {len(texts)} documents; take from 1 to {len(texts)}")
        if labels is not None and len(labels) != len(texts):
            raise ValueError(f"{len(labels)} labels for {len(texts)} documents; give one label each")
        size = vocab_size or max((int(text.max()) for text in texts if len(text)), default=0) + 1
        folder = Path(path)
        bounds = [len(texts) * i // shards for i in range(shards + 1)]
        jobs = [
            {
                "documents": texts[a:b],
                "labels": None if labels is None else list(labels[a:b]),
                "vocab_size": size,
                "eod": eod,
                "memory": memory,
                "path": str(folder / _name(i)),
            }
            for i, (a, b) in enumerate(pairwise(bounds))
        ]
        _build_all(jobs, engine)
        _write_list(folder, [_name(i) for i in range(shards)])
        return cls.load(folder, engine=engine, verify=False)

    @classmethod
    def load(
        cls, path: str | Path, *, engine: Engine = "local", mmap: bool = True, verify: bool = True
    ) -> ShardedTokenIndex:
        """Open a folder of shards. Raises IndexFormatError where damaged, FileNotFoundError for none."""
        folder = Path(path)
        try:
            document = json.loads((folder / LIST_FILE).read_text(encoding="utf-8"))
            names = document["shards"]
            plain = all(isinstance(name, str) and name == Path(name).name and name for name in names)
            good = document["format"] == _FORMAT and bool(names) and plain
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            raise IndexFormatError(f"{LIST_FILE} is damaged or of another release; build the shards again")
        return cls([folder / name for name in names], engine, mmap=mmap, verify=verify)

    def append(
        self,
        documents: Iterable[Document],
        *,
        labels: Sequence[str] | None = None,
        memory: Memory = "auto",
    ) -> ShardedTokenIndex:
        """The same shards and one more with further documents; no other shard is sorted again.

        Raises ValueError as `TokenIndex.build`, and where only one part has labels.
        """
        if (labels is None) != (self.labels is None):
            raise ValueError("labels are needed for all documents or for none")
        texts = list(documents)
        largest = max((int(np.max(text)) for text in texts if len(text)), default=0)
        folder, name = self.paths[0].parent, _name(len(self.paths))
        TokenIndex.build(
            texts,
            labels=labels,
            vocab_size=max(self.vocab_size, largest + 1),
            eod=None if self.eod < 0 else self.eod,
            memory=memory,
            path=folder / name,
        )
        _write_list(folder, [*(path.name for path in self.paths), name])
        return type(self).load(folder, engine=self.engine, verify=False)

    def close(self) -> None:
        """End the actors of a Ray engine."""
        for shard in self._shards:
            shard.close()

    # --- What it holds -------------------------------------------------------------------------------------

    @property
    def n_shards(self) -> int:
        return len(self._shards)

    @property
    def n_tokens(self) -> int:
        return int(self._tokens)

    @property
    def n_documents(self) -> int:
        return int(self._starts[-1])

    def tokens(self, doc: int) -> Int[np.ndarray, " length"]:
        """The token ids of a document. Raises IndexError for a number outside 0 ... n_documents - 1."""
        if not 0 <= doc < self.n_documents:
            raise IndexError(f"document {doc}, but the index has {self.n_documents}")
        return self.tokens_of(np.array([doc]))[1]

    def tokens_of(
        self, docs: Int[np.ndarray, " docs"]
    ) -> tuple[Int[np.ndarray, " docs_and_one"], Int[np.ndarray, " total"]]:
        """Offsets per document, and the token ids of all of them, one after another."""
        shard = np.searchsorted(self._starts, docs, side="right") - 1
        texts: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(docs)
        arguments = [(docs[shard == s] - self._starts[s],) for s in range(self.n_shards)]
        for s, (offsets, tokens) in enumerate(self._each("tokens_of", arguments)):
            for place, text in zip(np.flatnonzero(shard == s), np.split(tokens, offsets[1:-1]), strict=False):
                texts[place] = text
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
        return offsets, np.concatenate([np.empty(0, dtype=np.int64), *texts])

    def count(self, tokens: Iterable[int]) -> int:
        """How often the n-gram occurs inside documents; the number of tokens for the empty one."""
        wanted = tuple(tokens)
        return int(counts(ranges_of(self, wanted))[0]) if wanted else self.n_tokens

    # --- Many n-grams at once: `SubstringIndex` ------------------------------------------------------------

    def roots(self, m: int) -> Int[np.ndarray, "m shards 2"]:
        """The ranges of m empty n-grams."""
        return np.concatenate(self._each("roots", [(m,)] * self.n_shards), axis=1)

    def advance(
        self, ranges: Int[np.ndarray, "m shards 2"], depth: Any, tokens: Int[np.ndarray, " m"]
    ) -> Int[np.ndarray, "m shards 2"]:
        """Ranges after one token more each."""
        parts = [(ranges[:, s : s + 1], depth, tokens) for s in range(self.n_shards)]
        return np.concatenate(self._each("advance", parts), axis=1)

    def probe(
        self, ranges: Int[np.ndarray, "m shards 2"], depth: Any, tokens: Int[np.ndarray, "m k"]
    ) -> Int[np.ndarray, "m k"]:
        """How often each of k tokens follows each n-gram."""
        parts = [(ranges[:, s : s + 1], depth, tokens) for s in range(self.n_shards)]
        return np.asarray(np.sum(self._each("probe", parts), axis=0))

    def next_tokens(
        self, ranges: Int[np.ndarray, "m shards 2"], depth: Any
    ) -> tuple[Int[np.ndarray, " m_and_one"], Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """Offsets, tokens in ascending order and counts of all continuations of every n-gram."""
        parts = [(ranges[:, s : s + 1], depth) for s in range(self.n_shards)]
        found = self._each("next_tokens", parts)
        m = len(ranges)
        row = np.concatenate([np.repeat(np.arange(m), np.diff(offsets)) for offsets, _, _ in found])
        token = np.concatenate([tokens for _, tokens, _ in found])
        number = np.concatenate([numbers for _, _, numbers in found])
        code, back = np.unique(row * (self.vocab_size + 1) + token, return_inverse=True)
        total = np.zeros(len(code), dtype=np.int64)
        np.add.at(total, back, number)
        rows, tokens = code // (self.vocab_size + 1), code % (self.vocab_size + 1)
        return np.searchsorted(rows, np.arange(m + 1)), tokens, total

    def places(
        self, ranges: Int[np.ndarray, "m shards 2"], depth: Int[np.ndarray, " m"]
    ) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """n-gram (its number), document and place in it of every occurrence."""
        parts = [(ranges[:, s : s + 1], depth) for s in range(self.n_shards)]
        found = self._each("places", parts)
        docs = [docs + self._starts[s] for s, (_, docs, _) in enumerate(found)]
        return (
            np.concatenate([number for number, _, _ in found]),
            np.concatenate(docs),
            np.concatenate([place for _, _, place in found]),
        )

    def _each(self, method: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """A method of every shard, all of them begun before the first is waited for."""
        calls = arguments or [()] * len(self._shards)
        waiting = [
            shard.begin(method, *of_shard) for shard, of_shard in zip(self._shards, calls, strict=True)
        ]
        return [wait() for wait in waiting]


class _Local:
    """A shard opened in this process, asked at once or by a thread."""

    def __init__(self, index: TokenIndex, threads: bool) -> None:
        self.index = index
        self.pool = ThreadPoolExecutor(1) if threads else None

    def begin(self, method: str, *arguments: Any) -> Callable[[], Any]:
        if self.pool is None:
            found = _ask(self.index, method, *arguments)
            return lambda: found
        return self.pool.submit(_ask, self.index, method, *arguments).result

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()


class _Shard:
    """What a Ray actor keeps: an open file. Of the module's own, so that workers find it by name."""

    def __init__(self, path: str, mmap: bool, verify: bool) -> None:
        self.index = TokenIndex.load(path, mmap=mmap, verify=verify)

    def ask(self, method: str, *arguments: Any) -> Any:
        # Arrays out of Ray's store are read-only; look-ups were compiled for others.
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        return _ask(self.index, method, *copies)


class _Remote:
    """A shard opened by a Ray actor, on whichever machine Ray puts it."""

    def __init__(self, path: str, mmap: bool, verify: bool) -> None:
        import ray

        self.ray: Any = ray
        self.actor: Any = self.ray.remote(_Shard).remote(path, mmap, verify)

    def begin(self, method: str, *arguments: Any) -> Callable[[], Any]:
        reference = self.actor.ask.remote(method, *arguments)
        return lambda: self.ray.get(reference)

    def close(self) -> None:
        self.ray.kill(self.actor)


def _ask(index: TokenIndex, method: str, *arguments: Any) -> Any:
    if method == "facts":
        return {
            "vocab_size": index.vocab_size,
            "eod": index.eod,
            "n_tokens": index.n_tokens,
            "n_documents": index.n_documents,
            "labels": None if index.labels is None else list(index.labels),
        }
    return getattr(index, method)(*arguments)


def _open(path: Path, engine: Engine, mmap: bool, verify: bool) -> _Local | _Remote:
    if engine == "ray":
        _start_ray()
        return _Remote(str(path.resolve()), mmap, verify)
    return _Local(TokenIndex.load(path, mmap=mmap, verify=verify), engine == "joblib")


def _build_all(jobs: Sequence[dict[str, Any]], engine: Engine) -> None:
    if engine == "ray":
        ray = _start_ray()
        task = ray.remote(_build_one)
        ray.get([task.remote(job) for job in jobs])
    elif engine == "joblib":
        from joblib import Parallel, delayed

        Parallel(n_jobs=-1)(delayed(_build_one)(job) for job in jobs)
    else:
        for job in jobs:
            _build_one(job)


def _build_one(job: dict[str, Any]) -> None:
    TokenIndex.build(**job)


def _start_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError("engine='ray' needs Ray; run: pip install 'gradatim[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    return ray


def _name(number: int) -> str:
    return f"shard-{number:05d}.index"


def _write_list(folder: Path, names: Sequence[str]) -> None:
    part = folder / f".{LIST_FILE}.part"
    part.write_text(json.dumps({"format": _FORMAT, "shards": list(names)}, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / LIST_FILE)
