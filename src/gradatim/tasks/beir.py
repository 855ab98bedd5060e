"""Writing a retrieval task in BEIR's folder layout: corpus.jsonl, queries.jsonl, qrels/test.tsv."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradatim.tasks.retrieval import RetrievalTask


def write_beir(task: RetrievalTask, folder: str | Path) -> Path:
    """Write `task` below `folder`, whole or not at all.

    Raises FileExistsError when the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _write_lines(
            scratch / "corpus.jsonl", ({"_id": k, "title": "", "text": t} for k, t in task.corpus.items())
        )
        _write_lines(scratch / "queries.jsonl", ({"_id": k, "text": t} for k, t in task.queries.items()))
        (scratch / "qrels").mkdir()
        rows = ["query-id\tcorpus-id\tscore"]
        rows += [f"{q}\t{d}\t{g}" for q, grades in task.qrels.items() for d, g in grades.items()]
        (scratch / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
