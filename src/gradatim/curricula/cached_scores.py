"""A re-ranker's scores of (query, passage) pairs, kept on disk between runs.

Mining again with another margin then costs no pass of the model. A file belongs to one set of weights; pairs
are known by 128 bits of SHA-256 over their texts. It is a safetensors file: read with bounds checked, without
code; one that is damaged is set aside and written anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.curricula.mining import teacher_scores


class CachedScores:
    """`score(queries, candidates)` of a teacher that is asked only for pairs not seen before.

    Args:
        teacher: a cross-encoder, or what else `teacher_scores` takes. Its scores of a pair must not depend on
            the other candidates (a `TeacherEnsemble`'s do).
        name: what tells one teacher from another, such as `weights_digest`.
        folder: where its file lies; made if need be.

    `asked` counts the pairs that the teacher scored, `remembered` those it did not have to.
    """

    def __init__(self, teacher: Any, name: str, folder: str | Path) -> None:
        self.teacher = teacher
        self.file = Path(folder) / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"
        self.asked = self.remembered = 0
        self._known = _read(self.file)
        self._saved = len(self._known)

    def score(
        self, queries: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> Float[Tensor, "queries n"]:
        """Scores of each query's candidates; every query needs equally many."""
        rows = []
        for query, docs in zip(queries, candidates, strict=True):
            keys = [_key(query, doc) for doc in docs]
            fresh = [i for i, key in enumerate(keys) if key not in self._known]
            if fresh:
                found = teacher_scores(self.teacher, [query], [[docs[i] for i in fresh]])[0].tolist()
                self._known.update({keys[i]: value for i, value in zip(fresh, found, strict=True)})
            self.asked += len(fresh)
            self.remembered += len(docs) - len(fresh)
            rows.append([self._known[key] for key in keys])
        return torch.tensor(rows)

    def save(self) -> None:
        """Write what is known, whole or not at all."""
        if len(self._known) == self._saved:
            return
        from safetensors.numpy import save_file

        self.file.parent.mkdir(parents=True, exist_ok=True)
        keys = np.frombuffer(b"".join(self._known), dtype=np.uint8).reshape(-1, 16)
        scores = np.fromiter(self._known.values(), dtype=np.float32)
        part = self.file.with_name(f"{self.file.name}.{os.getpid()}.part")
        save_file({"keys": keys, "scores": scores}, part)
        part.replace(self.file)
        self._saved = len(self._known)


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights, and of how long a text it reads."""
    digest = hashlib.sha256(str(getattr(model, "max_length", "")).encode())
    for key, value in model.state_dict().items():
        digest.update(key.encode() + b"\0" + value.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _key(query: str, doc: str) -> bytes:
    digest = hashlib.sha256(query.encode("utf-8", "surrogatepass"))
    digest.update(b"\0" + doc.encode("utf-8", "surrogatepass"))
    return digest.digest()[:16]


def _read(file: Path) -> dict[bytes, float]:
    if not file.is_file():
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(file)
        keys, scores = found["keys"], found["scores"]
    except (OSError, SafetensorError, KeyError):
        return {}
    sound = (
        keys.dtype == np.uint8
        and scores.dtype == np.float32
        and keys.shape == (len(scores), 16)
        and bool(np.isfinite(scores).all())
    )
    return {k.tobytes(): float(s) for k, s in zip(keys, scores, strict=True)} if sound else {}
