"""A CSV or Parquet file of any length as a table of bounded size, ready for scikit-learn.

One streaming pass keeps a seeded uniform sample of at most `max_rows` rows and checks the target of
every row; what columns hold is decided on the sample:

- *numeric*: every value present is a number (in CSV also `true`/`false`); empty, NA, NaN, null and ? are
  missing values
- *categorical*: anything else; a column in which 9 of 10 values are numbers is refused, with the line
  of the first value that is none, unless it is named as categorical
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gradatim.compare.errors import DataError, quoted
from gradatim.compare.readers.delimited import DelimitedFile
from gradatim.compare.readers.parquet import ParquetFile
from gradatim.compare.readers.reservoir import RowScores
from gradatim.compare.readers.text import check_file

Kind = Literal["classification", "regression"]

PARQUET_ENDINGS = (".parquet", ".pq", ".parq")
MOST_CLASSES_OF_NUMBERS = 20
MOSTLY_NUMBERS = 0.9
LEAST_ROWS = 20
INFINITE = {"inf", "infinity"}
BOOLEANS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class TableData:
    """A table in memory.

    features   one column per feature: float64, or object (strings); NaN for missing, as pandas reads it
    target     class labels as strings, or float64
    numeric / categorical   names of the feature columns of each kind
    rows_seen  rows of the file; above the limit `len(features)` is a seeded uniform sample of them
    """

    features: pd.DataFrame
    target: np.ndarray
    kind: Kind
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    rows_seen: int

    @property
    def sampled(self) -> str:
        """One sentence on what was left out, or an empty string."""
        if len(self.features) == self.rows_seen:
            return ""
        return f"Measured on a seeded sample: {len(self.features):,} of {self.rows_seen:,} rows."


def read_table(
    path: str | os.PathLike[str],
    target: str,
    *,
    kind: Kind | Literal["auto"] = "auto",
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    max_rows: int = 100_000,
    seed: int = 0,
    least_per_class: int = 5,
) -> TableData:
    """Read a table and its target column.

    `kind="auto"` means classification where the target is not numbers, or is whole numbers of at most
    20 different values; regression otherwise. Parquet is known by its ending or its first four bytes.

    Raises DataError naming the file, the line (Parquet: the row, from 1) and the fix for: a file that
    cannot be read, unknown or repeated columns, lines of unequal length, wrong encoding, a missing or
    infinite target, infinite features, fewer than 20 rows, one class, a class with fewer than
    `least_per_class` rows.
    """
    source = _open(path)
    names = _wanted(source, target, drop, categorical)
    sample, rows, seen = _sample(source, names, target, max_rows, seed)
    if seen < LEAST_ROWS:
        raise DataError(
            f"holds {seen} row{'s' * (seen != 1)}", f"give at least {LEAST_ROWS}", file=source.path
        )
    label, resolved = _target(source, sample.column(target), target, rows, kind, least_per_class)
    columns: dict[str, np.ndarray] = {}
    numeric: list[str] = []
    categories: list[str] = []
    for name in names:
        if name == target:
            continue
        values = _feature(source, sample.column(name), name, rows, name in categorical)
        if values is None:
            continue
        columns[name] = values
        (numeric if values.dtype == np.float64 else categories).append(name)
    if not columns:
        raise DataError(
            f"has no feature column beside {quoted(target)}", "add one with values", file=source.path
        )
    features = pd.DataFrame({k: pd.Series(v, dtype=v.dtype) for k, v in columns.items()})
    return TableData(features, label, resolved, tuple(numeric), tuple(categories), seen)


def _open(path: str | os.PathLike[str]) -> DelimitedFile | ParquetFile:
    file = check_file(path)
    with file.open("rb") as stream:
        parquet = stream.read(4) == b"PAR1" or file.suffix.lower() in PARQUET_ENDINGS
    return ParquetFile(file) if parquet else DelimitedFile(file)


def _wanted(
    source: DelimitedFile | ParquetFile, target: str, drop: Sequence[str], categorical: Sequence[str]
) -> list[str]:
    for option, name in [
        ("--target", target),
        *(("--drop", n) for n in drop),
        *(("--categorical", n) for n in categorical),
    ]:
        if name not in source.names:
            known = ", ".join(quoted(n, 30) for n in source.names[:8])
            more = ", ..." if len(source.names) > 8 else ""
            raise DataError(
                f"has no column {quoted(name)}",
                f"give {option} one of {known}{more}",
                file=source.path,
                line=1 if source.unit == "line" else None,
            )
    if target in drop:
        raise DataError(f"--drop names the target {quoted(target)}", "keep the target", file=source.path)
    return [name for name in source.names if name not in drop]


def _sample(
    source: DelimitedFile | ParquetFile, names: list[str], target: str, max_rows: int, seed: int
) -> tuple[pa.Table, np.ndarray, int]:
    """The sampled rows, their numbers in the file from 0, and how many rows there are."""
    source.check_quotes()
    choose = RowScores(max_rows, seed)
    pieces: list[pa.Table] = []
    scores: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    for batch in _batches(source, names):
        first = choose.seen
        _check_target(source, batch.column(target), target, first)
        positions, score = choose.keep(batch.num_rows)
        pieces.append(pa.Table.from_batches([batch]).take(pa.array(positions)))
        scores.append(score)
        numbers.append(positions + first)
        if sum(len(s) for s in scores) > 2 * max_rows or len(scores) > 256:
            pieces, scores, numbers = _compact(choose, pieces, scores, numbers)
    if not pieces:
        raise DataError("holds a header and no rows", "add rows", file=source.path)
    pieces, _, numbers = _compact(choose, pieces, scores, numbers)
    return pieces[0], numbers[0], choose.seen


def _batches(source: DelimitedFile | ParquetFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    return (batch for batch in source.batches(names) if batch.num_rows)


def _compact(
    choose: RowScores, pieces: list[pa.Table], scores: list[np.ndarray], numbers: list[np.ndarray]
) -> tuple[list[pa.Table], list[np.ndarray], list[np.ndarray]]:
    score = np.concatenate(scores)
    chosen = choose.cut(score)
    # `take` copies, so the batches the rows came from can go.
    table = pa.concat_tables(pieces).take(pa.array(chosen)).combine_chunks()
    return [table], [score[chosen]], [np.concatenate(numbers)[chosen]]


def _check_target(source: DelimitedFile | ParquetFile, column: pa.Array, target: str, first: int) -> None:
    if column.null_count:
        row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise _at(source, row, f"target {quoted(target)} is missing", "fill it in or delete the row")
    if pa.types.is_string(column.type):
        bare = pc.utf8_lower(pc.utf8_ltrim(pc.utf8_trim_whitespace(column), "+-"))
        infinite = pc.is_in(bare, pa.array(sorted(INFINITE)))
    else:
        infinite = pc.is_inf(column)
    bad = np.flatnonzero(infinite.to_numpy(zero_copy_only=False))
    if bad.size:
        raise _at(
            source, first + int(bad[0]), f"target {quoted(target)} is infinite", "correct or delete the row"
        )


def _at(source: DelimitedFile | ParquetFile, row: int, problem: str, fix: str) -> DataError:
    return DataError(problem, fix, file=source.path, line=source.line_of(row), unit=source.unit)


def _as_numbers(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float64 with NaN where missing or no number, where a value is present but no number)."""
    present = np.array([value is not None for value in values])
    numbers = np.full(len(values), np.nan)
    wrong = np.zeros(len(values), dtype=bool)
    for i in np.flatnonzero(present):
        text = values[i].strip()
        try:
            # float() also takes 1_000 and Arabic digits, which no other reader of the file would.
            numbers[i] = float(text) if text.isascii() and "_" not in text else np.nan
            wrong[i] = not (text.isascii() and "_" not in text)
        except ValueError:
            numbers[i] = BOOLEANS.get(text.lower(), np.nan)
            wrong[i] = text.lower() not in BOOLEANS
    return numbers, wrong


def _target(
    source: DelimitedFile | ParquetFile,
    column: pa.ChunkedArray,
    target: str,
    rows: np.ndarray,
    kind: Kind | Literal["auto"],
    least_per_class: int,
) -> tuple[np.ndarray, Kind]:
    labels = column.to_numpy()
    if pa.types.is_string(column.type):
        numbers, wrong = _as_numbers(labels)
    else:
        numbers = labels.astype(np.float64)
        wrong = np.zeros(len(numbers), dtype=bool)
    several = np.unique(numbers[~wrong]).size > MOST_CLASSES_OF_NUMBERS
    if wrong.any() and (kind == "regression" or (several and kind == "auto")):
        row = int(np.flatnonzero(wrong)[0])
        fix = "correct it, or use --kind classification"
        raise _at(source, int(rows[row]), f"target {quoted(target)} is {quoted(labels[row])}, no number", fix)
    if kind == "auto":
        whole = bool(np.all(numbers == np.round(numbers)))
        kind = "classification" if wrong.any() or (whole and not several) else "regression"
    if kind == "regression":
        if np.unique(numbers).size < 2:
            raise DataError(
                f"target {quoted(target)} has one value", "choose a column that varies", file=source.path
            )
        return _finite(source, numbers, target, rows), kind
    names = labels if wrong.any() else np.array([f"{number:.15g}" for number in numbers], dtype=object)
    return _classes(source, names.astype(str), target, rows, least_per_class), kind


def _classes(
    source: DelimitedFile | ParquetFile, labels: np.ndarray, target: str, rows: np.ndarray, least: int
) -> np.ndarray:
    classes, first, counts = np.unique(labels, return_index=True, return_counts=True)
    if len(classes) < 2:
        raise DataError(
            f"target {quoted(target)} has the one class {quoted(str(classes[0]))}",
            "choose a column with two classes or more",
            file=source.path,
        )
    rare = int(np.argmin(counts))
    if counts[rare] < least:
        raise _at(
            source,
            int(rows[first[rare]]),
            f"class {quoted(str(classes[rare]))} of {quoted(target)} has {counts[rare]} of the rows"
            f" and {least} folds need {least}",
            "add rows, join classes, or use --kind regression",
        )
    return labels


def _feature(
    source: DelimitedFile | ParquetFile,
    column: pa.ChunkedArray,
    name: str,
    rows: np.ndarray,
    force_categorical: bool,
) -> np.ndarray | None:
    """float64, or object for a categorical column; None where every value is missing."""
    if column.null_count == len(column):
        return None
    if not pa.types.is_string(column.type):
        numbers = column.to_numpy().astype(np.float64)
        if not force_categorical:
            return _finite(source, numbers, name, rows)
        return np.array([np.nan if np.isnan(v) else f"{v:.15g}" for v in numbers], dtype=object)
    values = column.to_numpy().astype(object)
    missing = column.is_null().to_numpy()
    values[missing] = None
    if force_categorical:
        return _as_categories(values)
    numbers, wrong = _as_numbers(values)
    if not wrong.any():
        return _finite(source, numbers, name, rows)
    present = len(column) - column.null_count
    if 1 - wrong.sum() / present >= MOSTLY_NUMBERS:
        row = int(np.flatnonzero(wrong)[0])
        raise _at(
            source,
            int(rows[row]),
            f"column {quoted(name)} is {quoted(values[row])} where most rows have a number",
            f"correct it, or use --categorical {quoted(name)}",
        )
    return _as_categories(values)


def _as_categories(values: np.ndarray) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=object)


def _finite(
    source: DelimitedFile | ParquetFile, numbers: np.ndarray, name: str, rows: np.ndarray
) -> np.ndarray:
    # A magnitude above the square root of the largest float overflows when a scaler squares it.
    bad = np.flatnonzero(np.abs(numbers) > 1e150)
    if bad.size:
        value = f"{numbers[bad[0]]:g}"
        raise _at(
            source,
            int(rows[bad[0]]),
            f"column {quoted(name)} is {value}",
            "write a finite number of usual size, or leave it empty",
        )
    return numbers
