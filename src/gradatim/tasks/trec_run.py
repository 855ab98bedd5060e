"""First-stage runs in TREC's format, as Anserini, PyTerrier, trec_eval and most engines write and read them.

A line is `query Q0 document rank score tag`. Documents are ordered by (score, id), both descending, as
trec_eval does; the rank column is not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from gradatim.tasks.retrieval import Run


def read_trec_run(path: str | Path) -> dict[str, dict[str, float]]:
    """A run with its scores, queries in the order of the file.

    Raises ValueError, naming the line, for one that is not of six fields, a score that is no finite number or
    a document that a query has twice; OSError where the file cannot be read.
    """
    run: dict[str, dict[str, float]] = {}
    with Path(path).open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            fields = line.split()
            if not fields:
                continue
            where = f"{path}, line {number}"
            if len(fields) != 6:
                raise ValueError(f"{where}: {len(fields)} fields; a run has query Q0 document rank score tag")
            query, _, doc, _, written, _ = fields
            try:
                score = float(written)
            except ValueError:
                score = math.nan
            if not math.isfinite(score):
                raise ValueError(f"{where}: the score {written!r} is no finite number")
            docs = run.setdefault(query, {})
            if doc in docs:
                raise ValueError(f"{where}: query {query} has document {doc} twice; keep one")
            docs[doc] = score
    if not run:
        raise ValueError(f"{path} holds no line of a run")
    return run


def write_trec_run(run: Run, path: str | Path, tag: str = "gradatim") -> None:
    """Writes a run, best document first; `read_trec_run` gives it back.

    Raises ValueError for ids and tags that are empty or hold blanks, which the format cannot carry.
    """
    _check("tag", tag)
    lines = []
    for query, docs in run.items():
        _check("query", query)
        for rank, doc in enumerate(_ordered(docs), start=1):
            _check("document", doc)
            lines.append(f"{query} Q0 {doc} {rank} {float(docs[doc])!r} {tag}\n")
    Path(path).write_text("".join(lines), encoding="utf-8")


def _ordered(docs: Mapping[str, float]) -> list[str]:
    return sorted(docs, key=lambda doc: (docs[doc], doc), reverse=True)


def _check(what: str, name: str) -> None:
    if not name or name.split() != [name]:
        raise ValueError(f"{what} {name!r} has blanks or is empty; a run file separates fields by blanks")
