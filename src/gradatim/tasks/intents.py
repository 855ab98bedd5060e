"""Texts with intents from a user's file in the layout of CLINC-150, as fixed vectors.

Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction" (2019, arXiv
1909.02027) published 150 intents as JSON: {"train": [[text, intent], ...], "val": ..., "test": ...}; its
`data_small.json` has 50 training and 30 test texts per intent. Any file of that layout is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Intents:
    """Training and test texts; labels are places in `names`, which are sorted.

    Raises ValueError for fewer than two intents, or one that lacks training or test texts.
    """

    names: tuple[str, ...]
    train_texts: tuple[str, ...]
    train_labels: Int[Tensor, " train"]
    test_texts: tuple[str, ...]
    test_labels: Int[Tensor, " test"]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError(f"classification needs two intents, got {list(self.names)}")
        for part, labels in (("train", self.train_labels), ("test", self.test_labels)):
            counts = torch.bincount(labels, minlength=len(self.names))
            if bool((counts == 0).any()):
                raise ValueError(f"intent {self.names[int(counts.argmin())]!r} has no {part} text")


def read_intents(path: str | Path) -> Intents:
    """A JSON file with "train" and "test" lists of [text, intent]; other lists in it are left alone.

    Raises FileNotFoundError where there is no file, ValueError that names what is wrong in it.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"no file {file}: give the path of a file like data_small.json of github.com/clinc/oos-eval"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file.name} is not JSON in UTF-8 ({error})") from error
    if not isinstance(content, dict) or not {"train", "test"} <= content.keys():
        raise ValueError(f'{file.name}: expected {{"train": [[text, intent], ...], "test": [...]}}')
    parts = {name: _pairs(content[name], name, file.name) for name in ("train", "test")}
    names = tuple(sorted({intent for _, intent in parts["train"]}))
    place = {name: i for i, name in enumerate(names)}
    unknown = [intent for _, intent in parts["test"] if intent not in place]
    if unknown:
        raise ValueError(f"{file.name}: intent {unknown[0]!r} of the test has no train text")
    made: list[Any] = [names]
    for pairs in parts.values():
        made += [tuple(t for t, _ in pairs), torch.tensor([place[i] for _, i in pairs], dtype=torch.long)]
    return Intents(*made)


def _pairs(rows: Any, part: str, name: str) -> list[tuple[str, str]]:
    if not isinstance(rows, list):
        raise ValueError(f'{name}: "{part}" must be a list of [text, intent], got {type(rows).__name__}')
    for i, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) == 2 and all(isinstance(v, str) and v for v in row)):
            raise ValueError(f'{name}: entry {i} of "{part}" must be [text, intent], got {row!r:.80}')
    return [(text, intent) for text, intent in rows]


def hashed_ngrams(texts: Sequence[str], features: int = 256) -> Float[Tensor, "texts features"]:
    """Signed counts of words and word pairs in `features` hashed places, each row of length sqrt(features).

    A fixed map: nothing is learned, and a row depends on its own text alone.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    counted = HashingVectorizer(n_features=features, ngram_range=(1, 2), norm="l2").transform(texts)
    return torch.tensor(counted.toarray(), dtype=torch.float32) * math.sqrt(features)
