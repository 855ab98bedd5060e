"""Binary codes of a new generation: one model for all shards, trained again when too much is new to it."""

from __future__ import annotations

import random
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.inference.search.codes import (
    MOST_TRAINED,
    STALE,
    encode_codes,
    load_code_model,
    train_code_model,
)
from gradatim.inference.search.files import CheckedFolder, Manifest, write_array
from gradatim.inference.search.settings import IndexSettings, Progress
from gradatim.inference.search.shard import Shard, shard_name

MODEL = "code-model"


@dataclass(frozen=True)
class CodeState:
    """How many passages a code model was trained on, and how many it has met since."""

    trained: int
    new: int


def build_codes(
    index: Path,
    generation: str,
    texts: Sequence[Sequence[str]],
    settings: IndexSettings,
    old: Manifest | None,
    on_progress: Progress,
) -> CodeState:
    """Write the model and every shard's `codes.npy`, given the shards' texts.

    The old model stays while at most a fifth of the passages are new to it: then only those are encoded.
    Otherwise one is trained on all passages (200,000 at most, drawn by their text and hence the same for any
    number of shards).
    """
    before = _before(index, old, settings)
    everything = sum(map(len, texts))
    home = index / generation / "shared" / MODEL
    home.parent.mkdir(parents=True, exist_ok=True)
    reuse: dict[str, np.ndarray] = {}
    state = None
    if before is not None:
        model_folder, old_state, reuse = before
        new = sum(text not in reuse for shard in texts for text in shard)
        if old_state.new + new <= STALE * old_state.trained and everything >= old_state.trained / 2:
            shutil.copytree(model_folder, home)
            state = CodeState(old_state.trained, old_state.new + new)
    if state is None:
        reuse = {}
        on_progress("learning codes", 0, 0)
        sample = _sample([text for shard in texts for text in shard])
        train_code_model(sample, settings.bits).save(home)
        state = CodeState(everything, 0)
    done = 0
    for number, shard in enumerate(texts):
        codes = np.zeros((len(shard), settings.bits // 8), np.uint8)
        rows = [i for i, text in enumerate(shard) if text not in reuse]
        if rows:
            codes[rows] = encode_codes(load_code_model(home, settings.bits), [shard[i] for i in rows])
        for i, text in enumerate(shard):
            if text in reuse:
                codes[i] = reuse[text]
        write_array(index / generation / shard_name(number) / "codes.npy", codes)
        done += len(shard)
        on_progress("coding", done, everything)
    return state


def _sample(texts: Sequence[str]) -> list[str]:
    """Texts to train on, in an order that depends on the texts alone."""
    ordered = sorted(texts, key=lambda text: (zlib.crc32(text.encode("utf-8", "replace")), text))
    kept = ordered[:MOST_TRAINED]
    random.Random(0).shuffle(kept)
    return kept


def _before(
    index: Path, old: Manifest | None, settings: IndexSettings
) -> tuple[Path, CodeState, dict[str, np.ndarray]] | None:
    """The old model's folder, its state, and the codes of texts it has encoded."""
    if old is None or "binary" not in old.settings.get("methods", ()):
        return None
    state: Any = old.settings.get("codes")
    if old.settings.get("bits") != settings.bits or not isinstance(state, dict):
        return None
    folder = CheckedFolder(index, old, "shared").folder(MODEL)
    codes: dict[str, np.ndarray] = {}
    for number in range(old.shards):
        shard = Shard(index, old, number)
        for i, passage in enumerate(shard.passages):
            codes[passage.whole] = shard.codes[i]
    return folder, CodeState(int(state["trained"]), int(state["new"])), codes
