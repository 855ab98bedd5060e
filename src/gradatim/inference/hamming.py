"""Nearest binary codes by Hamming distance, through faiss, with ties in a stated order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16


class HammingIndex:
    """Exact search over packed codes: faiss's IndexBinaryFlat, which counts differing bits of 8-byte words.

    `codes` uint8 [N, bytes] as `numpy.packbits` makes them. Among equal distances the lower row comes first;
    with a `random_state` it is a random order instead, the same at every query with the same seed.
    Raises ValueError for codes of another type or shape, without rows, or wider than 8191 bytes.
    """

    def __init__(self, codes: UInt8[np.ndarray, "docs bytes"], random_state: int | None = None) -> None:
        import faiss

        codes = _checked_codes(codes, "codes")
        if not len(codes):
            raise ValueError("codes has no row; index at least one")
        if codes.shape[1] > 8191:
            raise ValueError(f"codes of {codes.shape[1]} bytes: distances above 65535 do not fit uint16")
        self.codes = codes
        rows = np.arange(len(codes), dtype=np.int64)
        self._rows = rows if random_state is None else np.random.default_rng(random_state).permutation(rows)
        self._index = faiss.IndexBinaryFlat(8 * codes.shape[1])
        # Counting by distance keeps equal distances in the order of adding; faiss promises none for its heap.
        index: Any = self._index
        index.use_heap = False
        self._index.add(codes if random_state is None else codes[self._rows])

    def __len__(self) -> int:
        return len(self.codes)

    def query(
        self, codes: UInt8[np.ndarray, "queries bytes"], k: int = 10, n_jobs: int = 1
    ) -> tuple[UInt16[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        """Distances and rows of the `k` nearest codes of each query, nearest first (all N when N < k)."""
        codes = _checked_codes(codes, "queries")
        if codes.shape[1] != self.codes.shape[1]:
            raise ValueError(f"queries have {codes.shape[1]} bytes, the index {self.codes.shape[1]}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        k = min(k, len(self))
        if not len(codes):
            return np.zeros((0, k), np.uint16), np.zeros((0, k), np.int64)
        with _threads(n_jobs):
            distances, places = self._index.search(codes, k)
        return distances.astype(np.uint16), self._rows[places]

    def query_then_rank(
        self,
        codes: UInt8[np.ndarray, "queries bytes"],
        vectors: Float[np.ndarray, "queries dim"],
        corpus: Float[np.ndarray, "docs dim"],
        k: int = 10,
        shortlist: int = 100,
        n_jobs: int = 1,
    ) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        """Real-Binary search: codes give a short list, cosines of real vectors order it.

        Returns cosines and rows, best first; equal cosines keep the order of the short list. A zero vector
        has cosine 0 with everything.
        """
        if len(corpus) != len(self) or len(vectors) != len(codes):
            raise ValueError(
                f"one real vector per code: {len(corpus)} for {len(self)} codes, {len(vectors)} for "
                f"{len(codes)} queries"
            )
        _, rows = self.query(codes, max(k, shortlist), n_jobs)
        cosines = np.einsum("qd,qkd->qk", _unit(vectors), _unit(corpus)[rows])
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(cosines, best, 1), np.take_along_axis(rows, best, 1)


def hamming_distances(
    a: UInt8[np.ndarray, "queries bytes"], b: UInt8[np.ndarray, "docs bytes"]
) -> UInt16[np.ndarray, "queries docs"]:
    """Every distance between two sets of packed codes: the number of ones of their exclusive or."""
    a, b = _checked_codes(a, "codes"), _checked_codes(b, "codes")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"codes of {a.shape[1]} and {b.shape[1]} bytes cannot be compared")
    found = np.empty((len(a), len(b)), np.uint16)
    for i, code in enumerate(a):
        found[i] = np.bitwise_count(code ^ b).sum(axis=1, dtype=np.uint16)
    return found


def _checked_codes(codes: np.ndarray, name: str) -> np.ndarray:
    if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] < 1:
        found = f"{codes.dtype} {codes.shape}" if isinstance(codes, np.ndarray) else type(codes).__name__
        raise ValueError(f"{name}: expected uint8 [n, bytes] of packed bits (numpy.packbits), got {found}")
    return np.ascontiguousarray(codes)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)


@contextmanager
def _threads(n_jobs: int) -> Iterator[None]:
    import faiss
    from joblib import effective_n_jobs

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(effective_n_jobs(n_jobs))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
