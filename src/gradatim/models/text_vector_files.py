"""Text-vector models on disk: `model.json` (settings, words) beside `arrays.npz`. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.models.vocabulary import Tokenizer, Vocabulary

FORMAT = 1


@dataclass(frozen=True)
class SavedTextVectors:
    """What a folder holds: the estimator's settings, its vocabulary, its arrays, and a few more facts."""

    settings: Mapping[str, Any]
    vocabulary: Vocabulary
    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


def save_text_vectors(
    folder: str | Path,
    kind: str,
    settings: Mapping[str, Any],
    vocabulary: Vocabulary,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes the folder; a tokenizer of the user's own and a RandomState are left out of the settings.

    `model.json` is written last, so that a folder left half-written does not load.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    kept = dict(settings)
    own_tokenizer = kept.pop("tokenizer", None) is not None
    if not isinstance(kept.get("random_state"), int | None):
        kept["random_state"] = None
    stored: dict[str, Any] = {**arrays, "counts": vocabulary.counts}
    np.savez(path / "arrays.npz", **stored)
    document = {
        "format": FORMAT,
        "kind": kind,
        "settings": kept,
        "own_tokenizer": own_tokenizer,
        "words": vocabulary.words,
        "facts": dict(facts or {}),
    }
    (path / "model.json").write_text(json.dumps(document), encoding="utf-8")


def load_text_vectors(
    folder: str | Path, kind: str, known_settings: set[str], tokenizer: Tokenizer | None = None
) -> SavedTextVectors:
    """Reads such a folder.

    Raises FileNotFoundError without one, and ValueError when it holds another kind of model, another format,
    settings this version does not know, arrays that do not fit the words, or when the model was fitted with a
    tokenizer of the user's own and none is given.
    """
    path = Path(folder)
    if not (path / "model.json").is_file():
        raise FileNotFoundError(f"{path} holds no model.json: no text-vector model was saved there")
    try:
        document = json.loads((path / "model.json").read_text(encoding="utf-8"))
        found, version, words = document["kind"], document["format"], document["words"]
        settings, facts, own = document["settings"], document["facts"], document["own_tokenizer"]
        with np.load(path / "arrays.npz", allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        counts = arrays.pop("counts")
    except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no readable text-vector model: {error}") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}; this version reads format {FORMAT}")
    if found != kind:
        raise ValueError(f"{path} holds a {found}, not a {kind}; load it with {found}.load")
    unknown = set(settings) - known_settings
    if unknown:
        raise ValueError(f"{path} has the setting {sorted(unknown)[0]!r}, unknown to this version of {kind}")
    if own and tokenizer is None:
        raise ValueError(f"{path} was fitted with a tokenizer of your own: load(folder, tokenizer=...)")
    whole = np.issubdtype(counts.dtype, np.integer) and counts.shape == (len(words),) and len(words) > 0
    if not whole or len(set(words)) != len(words) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{path}: {len(words)} words do not fit counts of shape {counts.shape}")
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
            raise ValueError(f"{path}: {name} holds NaN")
    return SavedTextVectors(
        {**settings, "tokenizer": tokenizer}, Vocabulary(tuple(words), counts.astype(np.int64)), arrays, facts
    )


def checked_array(
    saved: SavedTextVectors, name: str, shape: tuple[int | None, ...], dtype: type = np.float32
) -> np.ndarray:
    """An array of the model, C-contiguous; ValueError when it is missing or of another shape or type."""
    array = saved.arrays.get(name)
    if array is None:
        raise ValueError(f"array {name!r} is missing")
    fits = array.ndim == len(shape) and array.dtype == dtype
    if not fits or any(want not in (None, has) for want, has in zip(shape, array.shape, strict=True)):
        raise ValueError(
            f"array {name!r}: expected {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}"
        )
    return np.ascontiguousarray(array)
