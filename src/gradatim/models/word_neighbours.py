"""Nearest words by cosine, and word vectors as gensim's KeyedVectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


def nearest(
    vectors: Float[np.ndarray, "rows dim"],
    names: Sequence[str],
    query: Float[np.ndarray, " dim"],
    k: int,
    without: Sequence[int] = (),
) -> list[tuple[str, float]]:
    """The `k` names of highest cosine with `query`, best first, some rows left out; equal ones by row."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    norms = np.linalg.norm(vectors, axis=1) * max(float(np.linalg.norm(query)), 1e-12)
    cosines = vectors @ query / np.maximum(norms, 1e-12)
    cosines[list(without)] = -np.inf
    best = np.argsort(-cosines, kind="stable")[:k]
    return [(names[i], float(cosines[i])) for i in best if np.isfinite(cosines[i])]


def keyed_vectors(names: Sequence[str], vectors: Float[np.ndarray, "rows dim"]) -> Any:
    """gensim's KeyedVectors of these rows; ImportError with the command to run when gensim is missing."""
    try:
        from gensim.models import KeyedVectors
    except ImportError as error:
        raise ImportError("KeyedVectors come from gensim; run: pip install 'gradatim[gensim]'") from error
    keyed = KeyedVectors(vector_size=vectors.shape[1])
    keyed.add_vectors(list(names), vectors)
    return keyed


def row_of(word: str, index: dict[str, int]) -> int:
    """The row of a word; KeyError that says so when it is not in the vocabulary."""
    if word not in index:
        raise KeyError(f"{word!r} is not in the vocabulary of {len(index)} words")
    return index[word]
