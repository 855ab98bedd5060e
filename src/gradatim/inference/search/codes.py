"""Passages as binary codes of paragraph vectors, learned from the folder's own words; Hamming distance."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from gradatim.inference.search.errors import IndexDamagedError, SearchError
from gradatim.inference.search.words import STOP_WORDS, words_of

BITS = 256
MOST_TRAINED = 200_000
"""Passages that a code model is trained on: more are sampled."""

STALE = 0.2
"""Share of passages that may be new to a code model before it is trained again."""


def train_code_model(texts: Sequence[str], bits: int = BITS, seed: int = 0) -> Any:
    """A binary `ParagraphVector` of the texts.

    Raises SearchError where no word is frequent enough to learn from.
    """
    from gradatim.models import ParagraphVector

    documents = [code_words(text) for text in texts]
    model = ParagraphVector(
        n_components=bits,
        binary=True,
        min_count=2 if len(texts) < 2000 else 5,
        epochs=20 if len(texts) < 50_000 else 10,
        random_state=seed,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # passages without any known word: they get a code of zeros
            model.fit(documents)
    except ValueError as error:
        raise SearchError(f"no binary codes: {error}; index without binary in --methods") from error
    # Training's own vectors would be as large as the index; codes come from inference, for old and new alike.
    model.embedding_ = model.embedding_[:0]
    return model


def encode_codes(model: Any, texts: Sequence[str]) -> UInt8[np.ndarray, "texts bytes"]:
    """Packed codes of texts, each a function of the model and its own words alone."""
    if not len(texts):
        return np.zeros((0, (model.n_components + 7) // 8), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(model.encode([code_words(text) for text in texts]))


def code_words(text: str) -> list[str]:
    """The terms that codes are learned from."""
    return [word for word in words_of(text) if word not in STOP_WORDS]


@lru_cache(maxsize=4)
def load_code_model(folder: Path, bits: int) -> Any:
    """The model of an index. Raises IndexDamagedError when the folder does not hold one of so many bits."""
    from gradatim.models import ParagraphVector

    try:
        model = ParagraphVector.load(folder)
        if not model.binary or model.n_components != bits:
            raise ValueError(f"no codes of {bits} bits")
    except Exception as error:  # a hostile file may fail in any way
        reason = " ".join(str(error).split())[:100]
        raise IndexDamagedError(
            f"{folder} holds no model of codes ({reason}); make the index again"
        ) from error
    return model


def nearest_codes(
    index: Any, code: UInt8[np.ndarray, " bytes"], k: int
) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
    """Rows and distances of a `HammingIndex`, nearest first, of equal ones the lower row first."""
    distances, rows = index.query(code[None], k)
    return rows[0], distances[0].astype(np.int64)
