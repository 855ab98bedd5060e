"""Small folders of documents, and what an index of them must hold."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

WORDS = """
sum mean matrix vector array norm axis sort sparse dense kernel fit predict score tree forest linear logistic
fourier signal filter wave sample random normal gamma beta test file read write
""".split()  # noqa: SIM905


def text(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


def make_folder(root: Path, files: int = 12, seed: int = 0) -> Path:
    """Text files of one to five passages, old enough to be trusted by their time of change."""
    rng = random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        paragraphs = [text(rng, rng.randint(60, 140)) for _ in range(rng.randint(1, 5))]
        put(root / f"{'ab'[i % 2]}/file{i:02d}.txt", "\n\n".join(paragraphs))
    return root


def put(file: Path, words: str, age: float = 100.0) -> None:
    """Write a file that was last changed `age` seconds ago, counted on so that no two changes look alike."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(words, encoding="utf-8")
    then = time.time() - age
    os.utime(file, (then, then))


def content(index: Path) -> dict[str, bytes]:
    """Every file of the index's generation, by name."""
    import json

    generation = json.loads((index / "manifest.json").read_bytes())["generation"]
    root = index / generation
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
