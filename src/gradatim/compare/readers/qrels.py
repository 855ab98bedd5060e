"""Relevance judgments: tab-separated `query-id corpus-id score` files of the BEIR layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gradatim.compare.errors import DataError, quoted
from gradatim.compare.readers.text import text_lines

HEADER = ("query-id", "corpus-id", "score")
LARGEST_GRADE = 1_000_000


@dataclass(frozen=True)
class Judgment:
    """One line: how relevant a passage is to a query (0 or less: judged not relevant)."""

    query: str
    passage: str
    grade: int
    line: int


def judgments(path: str | os.PathLike[str]) -> Iterator[Judgment]:
    """Every line of a qrels file; the header is optional, blank lines are skipped.

    Raises DataError for a line without exactly three fields, an empty id or a score that is no whole
    number.
    """
    file = Path(path)
    first = True
    for number, line in text_lines(file):
        if not line.strip():
            continue
        fields = [part.strip() for part in line.split("\t")]
        if first and tuple(part.lower() for part in fields) == HEADER:
            first = False
            continue
        first = False
        if len(fields) != 3:
            raise DataError(
                f"has {len(fields)} tab-separated field{'s' * (len(fields) != 1)} where 3 are needed",
                "write query-id, corpus-id and score with tabs between them",
                file=file,
                line=number,
            )
        query, passage, score = fields
        if not query or not passage:
            raise DataError("has an empty id", "fill in both ids", file=file, line=number)
        yield Judgment(query, passage, _grade(score, file, number), number)


def _grade(score: str, file: Path, line: int) -> int:
    try:
        value = float(score)
        grade = int(value)
    except (ValueError, OverflowError):
        value, grade = 0.5, 0
    if grade != value or abs(grade) > LARGEST_GRADE or not score.isascii():
        raise DataError(
            f"score {quoted(score)} is no whole number",
            "write 1 for relevant, 0 for not, or a higher grade",
            file=file,
            line=line,
        )
    return grade
