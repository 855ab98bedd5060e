"""Passages and questions as vectors of a sentence encoder, compared by their cosine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gradatim.inference.search.errors import SearchError
from gradatim.inference.search.ranking import best_rows

# Vectors kept between two signs of progress; what is encoded so far survives a kill.
SLAB = 1024


def encode_passages(
    texts: Sequence[str],
    encoder: str,
    work: Path,
    device: str | None = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[np.ndarray, "texts dim"]:
    """Unit vectors of the texts; those that an interrupted call left in `work` are not made again."""
    from gradatim.models.text_encoder import encode_texts

    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), texts[i]))
    found: np.ndarray | None = None
    for begin in range(0, len(order), SLAB):
        rows = order[begin : begin + SLAB]
        vectors = encode_texts([texts[i] for i in rows], encoder, device=device, cache=work)
        if found is None:
            found = np.empty((len(texts), vectors.shape[1]), np.float32)
        found[rows] = unit(vectors)
        on_progress(begin + len(rows), len(order))
    return np.zeros((0, 0), np.float32) if found is None else found


class QueryEncoder:
    """Questions as unit vectors, by the encoder an index was made with.

    Raises SearchError when it is not here, or is another one under the same name.
    """

    def __init__(self, name: str, digest: str, device: str | None = "cpu") -> None:
        from gradatim.models.text_encoder import EncoderUnavailableError, encoder_digest, load_text_encoder

        self._lock = threading.Lock()
        try:
            here = encoder_digest(name)
            self._model: Any = load_text_encoder(name, device)
        except EncoderUnavailableError as error:
            raise SearchError(f"{error}; or search with --method bm25") from error
        if here != digest:
            raise SearchError(
                f"the encoder {name!r} here is not the one the index was made with; make the index again"
            )

    def __call__(self, question: str) -> Float[np.ndarray, " dim"]:
        with self._lock:  # tokenizers are not to be shared between threads
            vector = self._model.encode([question], show_progress_bar=False, convert_to_numpy=True)
        return unit(np.asarray(vector, dtype=np.float32))[0]


_loading = threading.Lock()


def query_encoder(name: str, digest: str, device: str | None) -> QueryEncoder:
    """One encoder per process, loaded at the first question, once even when many threads ask it."""
    with _loading:
        return _query_encoder(name, digest, device)


@lru_cache(maxsize=4)
def _query_encoder(name: str, digest: str, device: str | None) -> QueryEncoder:
    return QueryEncoder(name, digest, device)


def nearest(
    vectors: Float[np.ndarray, "rows dim"], query: Float[np.ndarray, " dim"], k: int
) -> tuple[Int[np.ndarray, " found"], Float[np.ndarray, " found"]]:
    """The `k` rows of highest dot product with the query, and those.

    A matrix product finds a few more than `k`; their order then comes from sums over one row each, which
    unlike the product's do not depend on how many rows there are: shards and one index agree to the last bit.
    """
    rough = np.asarray(vectors @ query)
    rows = np.sort(best_rows(rough, 2 * k + 64))
    exact = np.einsum("rd,d->r", np.ascontiguousarray(vectors[rows]), query)
    best = best_rows(exact, k)
    return rows[best], exact[best]


def unit(vectors: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    """Rows of length 1; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
