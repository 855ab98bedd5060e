"""A JSON Lines file of {"query": ..., "positives": [...], "negatives": [...]}.

The corpus is every passage that the file names. Lines with the same query are joined, so that a query
never stands on both sides of a split.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gradatim.compare.errors import DataError, quoted
from gradatim.compare.readers.jsonl import checked_text, json_objects, text_field
from gradatim.compare.readers.reservoir import Reservoir
from gradatim.compare.readers.retrieval_data import RetrievalData

Row = tuple[str, tuple[str, ...], tuple[str, ...]]


def read_pairs(path: str | os.PathLike[str], *, max_queries: int = 20_000, seed: int = 0) -> RetrievalData:
    """Read a JSON Lines file of queries with their passages; one split, "all".

    "positives" is a list of strings (or "positive" one string), "negatives" (or "negative") is
    optional. Above `max_queries` lines a seeded uniform sample of the lines is kept.
    Raises DataError (file, line, fix).
    """
    file = Path(path)
    reservoir: Reservoir[tuple[int, Row]] = Reservoir(max_queries, seed)
    for line, record in json_objects(file):
        reservoir.add((line, _row(record, file, line)))

    passages: dict[str, str] = {}
    query_ids: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    negatives: dict[str, dict[str, None]] = {}
    for line, (query, positive_texts, negative_texts) in reservoir.items():
        q = query_ids.setdefault(query, f"q{len(query_ids)}")
        for text in positive_texts:
            relevant.setdefault(q, {})[passages.setdefault(text, f"p{len(passages)}")] = 1
        for text in negative_texts:
            negatives.setdefault(q, {})[passages.setdefault(text, f"p{len(passages)}")] = None
        both = next((p for p in negatives.get(q, ()) if p in relevant[q]), None)
        if both is not None:
            text = next(t for t, p in passages.items() if p == both)
            raise DataError(
                f"passage {quoted(text, 40)} is both positive and negative for one query",
                "keep it in one of the lists",
                file=file,
                line=line,
            )
    return RetrievalData(
        corpus={p: text for text, p in passages.items()},
        queries={q: text for text, q in query_ids.items()},
        qrels={"all": relevant},
        negatives={q: tuple(ps) for q, ps in negatives.items()},
        passages_seen=len(passages),
        queries_seen=len(query_ids) if reservoir.seen <= max_queries else reservoir.seen,
    )


def _row(record: dict[str, Any], file: Path, line: int) -> Row:
    query = text_field(record, "query", file, line)
    if not query.strip():
        raise DataError('"query" is empty', "write the query", file=file, line=line)
    positives = _texts(record, "positives", "positive", file, line)
    if not positives:
        raise DataError(
            'has no "positives"',
            "list at least one relevant passage, or delete the line",
            file=file,
            line=line,
        )
    return query, positives, _texts(record, "negatives", "negative", file, line)


def _texts(record: dict[str, Any], many: str, one: str, file: Path, line: int) -> tuple[str, ...]:
    value = record.get(many)
    if value is None:
        value = record.get(one)
        value = [] if value is None else [value]
    if not isinstance(value, list):
        raise DataError(f'"{many}" is no list', f'write "{many}": ["...", "..."]', file=file, line=line)
    texts = tuple(checked_text(text, f'"{many}"', file, line) for text in value)
    if not all(text.strip() for text in texts):
        raise DataError(f'"{many}" holds an empty text', "write the passage or drop it", file=file, line=line)
    return texts
