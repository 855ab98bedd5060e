"""A folder in the BEIR layout: corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv.

The judgments are read first, so that one pass over the corpus can keep every judged passage and a
seeded uniform sample of the rest: a corpus of any length is read in bounded memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gradatim.compare.errors import DataError, quoted
from gradatim.compare.readers.ids import IdLog, first_duplicate
from gradatim.compare.readers.jsonl import id_field, json_objects, text_field
from gradatim.compare.readers.qrels import judgments
from gradatim.compare.readers.reservoir import Reservoir
from gradatim.compare.readers.retrieval_data import RetrievalData
from gradatim.compare.readers.text import check_folder

SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}

Lines = dict[str, tuple[Path, int]]


def files_of(folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The files that `read_beir` reads, in a fixed order; DataError when one is missing."""
    folder = check_folder(folder)
    corpus, queries, qrels = folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels"
    for needed in (corpus, queries):
        if not needed.exists():
            raise DataError(
                f"holds no {needed.name}",
                "a BEIR folder has corpus.jsonl, queries.jsonl and qrels/*.tsv",
                file=folder,
            )
    found = sorted(check_folder(qrels).glob("*.tsv")) if qrels.exists() else []
    if not found:
        raise DataError("holds no qrels/*.tsv", "add qrels/test.tsv with the judgments", file=folder)
    return (corpus, queries, *found)


def read_beir(
    folder: str | os.PathLike[str], *, max_passages: int = 100_000, max_queries: int = 20_000, seed: int = 0
) -> RetrievalData:
    """Read a BEIR folder.

    Files `train`, `dev` (or `valid`, `val`) and `test` under qrels/ are the splits; a folder with any
    other names gives the single split "all". Above `max_queries` a seeded sample of each split's
    queries is kept; above `max_passages` every judged passage and a seeded sample of the others.

    Raises DataError (file, line, fix) for anything that does not hold together.
    """
    corpus_file, queries_file, *qrels_files = files_of(folder)
    grades, queries_at, passages_at, sampled_from = _read_qrels(qrels_files, max_queries, seed)
    queries = _read_queries(queries_file, queries_at)
    corpus, seen = _read_corpus(corpus_file, passages_at, max_passages, seed)
    qrels = {
        split: {q: relevant for q, judged in rows.items() if (relevant := _above_zero(judged))}
        for split, rows in grades.items()
    }
    qrels = {split: rows for split, rows in qrels.items() if rows}
    if not qrels:
        raise DataError(
            "names no relevant passage", "give at least one line a score of 1 or more", file=qrels_files[0]
        )
    kept = {q for rows in qrels.values() for q in rows}
    negatives: dict[str, tuple[str, ...]] = {}
    for rows in grades.values():
        for query, judged in rows.items():
            not_relevant = tuple(p for p, grade in judged.items() if grade <= 0)
            if query in kept and not_relevant:
                negatives[query] = not_relevant
    return RetrievalData(
        corpus=corpus,
        queries={q: text for q, text in queries.items() if q in kept},
        qrels=qrels,
        negatives=negatives,
        passages_seen=seen,
        queries_seen=max(sampled_from, len(kept)),
    )


def _above_zero(judged: dict[str, int]) -> dict[str, int]:
    return {passage: grade for passage, grade in judged.items() if grade > 0}


def _read_qrels(
    files: list[Path], max_queries: int, seed: int
) -> tuple[dict[str, dict[str, dict[str, int]]], Lines, Lines, int]:
    named = all(file.stem.lower() in SPLITS for file in files)
    grades: dict[str, dict[str, dict[str, int]]] = {}
    queries_at: Lines = {}
    passages_at: Lines = {}
    split_of: dict[str, str] = {}
    seen = 0
    for file in files:
        split = SPLITS[file.stem.lower()] if named else "all"
        kept, count = _kept_queries(file, max_queries, seed)
        seen += count
        rows = grades.setdefault(split, {})
        for judgment in judgments(file):
            if kept is not None and judgment.query not in kept:
                continue
            query, passage = judgment.query, judgment.passage
            if split_of.setdefault(query, split) != split:
                raise DataError(
                    f"query {quoted(query)} is also in the split {split_of[query]}",
                    "keep each query in one split, or the test set is trained on",
                    file=file,
                    line=judgment.line,
                )
            judged = rows.setdefault(query, {})
            if judged.setdefault(passage, judgment.grade) != judgment.grade:
                raise DataError(
                    f"query {quoted(query)} and passage {quoted(passage)} have two scores",
                    "keep one of the lines",
                    file=file,
                    line=judgment.line,
                )
            queries_at.setdefault(query, (file, judgment.line))
            passages_at.setdefault(passage, (file, judgment.line))
        if not rows:
            raise DataError(
                "holds no judgment", "add lines of query-id, corpus-id and score, or delete it", file=file
            )
    return grades, queries_at, passages_at, seen


def _kept_queries(file: Path, max_queries: int, seed: int) -> tuple[set[str] | None, int]:
    """A sample of the file's queries, or None for all of them; and how many there are."""
    # Judgments of one query stand together in practice; where they do not, a query may be offered
    # twice, which changes its chance and nothing else.
    reservoir: Reservoir[str] = Reservoir(max_queries, seed)
    last = None
    for judgment in judgments(file):
        if judgment.query != last:
            reservoir.add(judgment.query)
            last = judgment.query
    return (None if reservoir.seen <= max_queries else set(reservoir.items())), reservoir.seen


def _read_queries(file: Path, wanted: Lines) -> dict[str, str]:
    queries: dict[str, str] = {}
    ids = IdLog()
    for line, record in json_objects(file):
        identifier = id_field(record, "_id", file, line)
        ids.add(identifier)
        if identifier in wanted:
            text = text_field(record, "text", file, line)
            if not text.strip():
                raise DataError(
                    f"query {quoted(identifier)} is empty", "write the query", file=file, line=line
                )
            queries[identifier] = text
    _refuse_duplicates(file, ids)
    _refuse_unknown(wanted, queries, "query", file)
    return queries


def _read_corpus(file: Path, judged: Lines, max_passages: int, seed: int) -> tuple[dict[str, str], int]:
    corpus: dict[str, str] = {}
    others: Reservoir[tuple[str, str]] = Reservoir(max(1, max_passages - len(judged)), seed)
    ids = IdLog()
    for line, record in json_objects(file):
        identifier = id_field(record, "_id", file, line)
        ids.add(identifier)
        title = text_field(record, "title", file, line, default="")
        text = text_field(record, "text", file, line)
        passage = f"{title} {text}".strip()
        if identifier in judged:
            corpus[identifier] = passage
        else:
            others.add((identifier, passage))
    _refuse_duplicates(file, ids)
    _refuse_unknown(judged, corpus, "passage", file)
    corpus.update(others.items())
    return corpus, len(ids)


def _refuse_duplicates(file: Path, ids: IdLog) -> None:
    suspects = ids.suspects()
    if suspects and (found := first_duplicate(_ids(file), suspects)):
        identifier, first, again = found
        raise DataError(
            f"id {quoted(identifier)} is also on line {first}",
            "give every record its own _id",
            file=file,
            line=again,
        )


def _ids(file: Path) -> Iterator[tuple[int, str]]:
    return ((line, id_field(record, "_id", file, line)) for line, record in json_objects(file))


def _refuse_unknown(wanted: Lines, found: dict[str, str], what: str, source: Path) -> None:
    for identifier, (file, line) in wanted.items():
        if identifier not in found:
            raise DataError(
                f"{what} {quoted(identifier)} is not in {source.name}",
                f"add it to {source.name} or delete the line",
                file=file,
                line=line,
            )
