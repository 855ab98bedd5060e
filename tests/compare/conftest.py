"""Small files of the kinds that comparisons read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

TOPICS = (
    "river",
    "stone",
    "apple",
    "engine",
    "violin",
    "cloud",
    "paper",
    "glass",
    "tiger",
    "market",
    "bread",
    "ice",
)


@pytest.fixture
def table(tmp_path) -> Callable[..., Path]:
    """A CSV with numbers, a hole, categories, and a target that depends on them."""

    def make(rows: int = 90, kind: str = "classification", name: str = "table.csv") -> Path:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(rows, 2))
        colour = rng.choice(["red", "green", "blue"], rows)
        value = 2 * x[:, 0] - x[:, 1] + (colour == "red") + 0.3 * rng.normal(size=rows)
        frame = pd.DataFrame({"width": x[:, 0], "height": x[:, 1], "colour": colour})
        frame.loc[3, "width"] = np.nan
        frame.loc[5, "colour"] = None
        frame["y"] = value if kind == "regression" else np.where(value > 0.3, "big", "small")
        path = tmp_path / name
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path, index=False)
        return path

    return make


@pytest.fixture
def beir(tmp_path) -> Callable[..., Path]:
    """A BEIR folder: passages about twelve topics, queries with three relevant passages each."""

    def make(queries: int = 48, splits: Sequence[str] = ("judged",)) -> Path:
        folder = tmp_path / "beir"
        (folder / "qrels").mkdir(parents=True)
        rng = np.random.default_rng(0)
        passages = [
            {"_id": f"d{i}", "title": "", "text": f"{TOPICS[i % 12]} {' '.join(rng.choice(TOPICS, 4))} {i}"}
            for i in range(2 * queries)
        ]
        asked = [{"_id": f"q{i}", "text": f"about {TOPICS[i % 12]} number {i}"} for i in range(queries)]
        (folder / "corpus.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages))
        (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in asked))
        for k, split in enumerate(splits):
            lines = ["query-id\tcorpus-id\tscore"]
            for i in range(k, queries, len(splits)):
                lines += [f"q{i}\td{j}\t1" for j in range(i % 12, 2 * queries, 12)][:3]
            (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        return folder

    return make
