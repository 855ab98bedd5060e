"""Ordering the first hits again by a model that reads question and passage together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradatim.inference.search.dense import unit
from gradatim.inference.search.errors import SearchError
from gradatim.inference.search.passages import StoredPassage
from gradatim.inference.search.shard import Scored

BLEND_FILE = "blend.json"
DEPTH = 50
"""Hits that are looked at again."""

MOST_CHARS = 4000


@lru_cache(maxsize=4)
def load_reranker(name: str, device: str | None = "cpu") -> Any:
    """A re-ranker by name: a folder that `ConvKNRM.save_pretrained` wrote, or the folder or Hugging Face name
    of a sentence-transformers CrossEncoder. A folder of an encoder, such as `compare retrieval --save` writes
    for its re-rankers, ranks by cosine: read as a CrossEncoder it would get a new head, and rank at random.

    Raises SearchError with one line for anything else.
    """
    folder = Path(name)
    if _is_conv_knrm(folder):
        from gradatim.models import ConvKNRM

        try:
            return ConvKNRM.from_pretrained(folder)
        except (ValueError, OSError) as error:
            raise SearchError(
                f"{folder} holds no re-ranker ({' '.join(str(error).split())[:120]})"
            ) from error
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise SearchError(f"--rerank {name}: no such folder; give a CrossEncoder's folder or name")
    from sentence_transformers import CrossEncoder

    try:
        if _is_encoder(folder):
            from gradatim.models.text_encoder import load_text_encoder

            return CosineRanker(load_text_encoder(name, device))
        return CrossEncoder(name, device=device)
    except Exception as error:  # anything that the hub or a file does
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise SearchError(f"--rerank {name!r} is no re-ranker that can be loaded here ({reason})") from error


class CosineRanker:
    """Scores pairs of texts by the cosine of an encoder's vectors."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def predict(self, pairs: Sequence[tuple[str, str]], **_: Any) -> Float[np.ndarray, " pairs"]:
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        vectors = unit(np.asarray(self.encoder.encode(texts, show_progress_bar=False), np.float32))
        row = {text: i for i, text in enumerate(texts)}
        queries, docs = ([row[pair[side]] for pair in pairs] for side in (0, 1))
        return np.einsum("pd,pd->p", vectors[queries], vectors[docs])


def _is_encoder(folder: Path) -> bool:
    """Whether a folder in sentence-transformers format holds a bi-encoder."""
    if not (folder / "modules.json").is_file():
        return False
    try:
        config = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
        return bool(config.get("model_type", "SentenceTransformer") == "SentenceTransformer")
    except FileNotFoundError:
        return True  # as old as the format: then there was only one kind


def _is_conv_knrm(folder: Path) -> bool:
    try:
        return "filters" in (folder / "config.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def load_blend(name: str) -> float:
    """The weight that a re-ranker was saved with, 1 where there is none: 0 is the first stage alone.

    Raises SearchError for a file that says no number from 0 to 1.
    """
    path = Path(name) / BLEND_FILE
    try:
        weight = json.loads(path.read_text(encoding="utf-8"))["reranker"]
    except (FileNotFoundError, NotADirectoryError):
        return 1.0
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SearchError(f"{path} is damaged; make it again") from error
    if type(weight) not in (int, float) or not 0 <= weight <= 1:
        raise SearchError(f"{path} says {weight!r}, not a weight from 0 to 1; make it again")
    return float(weight)


def rerank(
    question: str, found: Sequence[Scored], ranker: Any, depth: int = DEPTH, blend: float = 1.0
) -> list[Scored]:
    """The first `depth` hits in the re-ranker's order; equal scores keep the order they had.

    With `blend` below 1 in the order of (1 - blend) z(first) + blend z(re-ranker), as in `models.blend_run`.
    """
    from gradatim.models.run_blending import standardised

    first = list(found[:depth])
    if not first:
        return []
    scores = ranker.predict([(question, _read(passage)) for _, passage in first])
    if blend < 1:
        scores = (1 - blend) * standardised([score for score, _ in first]) + blend * standardised(
            [float(score) for score in scores]
        )
    order = sorted(range(len(first)), key=lambda i: (-float(scores[i]), i))
    return [(float(scores[i]), first[i][1]) for i in order]


def _read(passage: StoredPassage) -> str:
    return passage.whole[:MOST_CHARS]
