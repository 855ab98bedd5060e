"""CSV as a stream of batches of strings, and the line on which a given row stands."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
from pyarrow import csv as arrow_csv

from gradatim.compare.errors import DataError, quoted
from gradatim.compare.readers.text import check_file, refuse_os_error, text_lines

DELIMITERS = (",", ";", "\t", "|")
MISSING = (
    "",
    "NA",
    "N/A",
    "n/a",
    "NaN",
    "nan",
    "NULL",
    "null",
    "None",
    "<NA>",
    "#N/A",
    "#NA",
    "#N/A N/A",
    "-nan",
    "-NaN",
    "?",
)
# Arrow reads up to 32 blocks ahead, and a record must fit into one.
BLOCK = 2 * 2**20
MOST_COLUMNS = 10_000


class DelimitedFile:
    """A CSV file with a header line; separator `,`, `;`, tab or `|`, quotes `"`, UTF-8."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        self.path = check_file(path)
        self._header_line, self.delimiter, self.names = _header(self.path)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named columns as strings, missing values as nulls; memory is bounded by the block size."""
        try:
            yield from arrow_csv.open_csv(
                self.path,
                # One parser thread: rows arrive in order, and a worker process owns one core.
                read_options=arrow_csv.ReadOptions(
                    block_size=BLOCK,
                    use_threads=False,
                    column_names=list(self.names),
                    skip_rows=self._header_line,
                ),
                parse_options=arrow_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    column_types={name: pa.string() for name in columns},
                    include_columns=list(columns),
                    null_values=list(MISSING),
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
        except (pa.ArrowException, UnicodeDecodeError) as error:
            self._explain(error)
        except OSError as error:
            refuse_os_error(error, self.path)

    def check_quotes(self) -> None:
        """Refuse a quotation mark that is never closed (it would swallow the rows behind it)."""
        with self.path.open("rb") as stream:
            marks = sum(chunk.count(b'"') for chunk in iter(lambda: stream.read(2**20), b""))
        if marks % 2:
            for _ in self._records():
                pass

    def line_of(self, row: int) -> int | None:
        """The line on which data row `row` (from 0) starts; None where Python's parser disagrees."""
        records = itertools.islice(self._records(), row + 1, row + 2)
        try:
            return next((line for line, _ in records), None)
        except DataError:
            return None

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """(line a record starts on, fields), header first, by the standard library's parser."""
        last = 0

        def lines() -> Iterator[str]:
            nonlocal last
            for number, line in text_lines(self.path):
                last = number
                yield line + "\n"

        start = 1
        reader = csv.reader(lines(), delimiter=self.delimiter, strict=True)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                unclosed = "end of data" in str(error)
                raise DataError(
                    "opens a quotation mark that is never closed" if unclosed else f"is not CSV ({error})",
                    'close it, or write "" for a mark inside quotes',
                    file=self.path,
                    line=start if unclosed else last,
                ) from None
            if fields:
                yield start, fields
            start = last + 1

    def _explain(self, error: Exception) -> NoReturn:
        """Find the line of what the fast parser met; it knows rows, not lines."""
        for line, fields in self._records():
            if len(fields) != len(self.names):
                raise DataError(
                    f"has {len(fields)} fields where the header has {len(self.names)}",
                    f"give every line {len(self.names)} fields, quoting those that hold"
                    f" {quoted(self.delimiter)}",
                    file=self.path,
                    line=line,
                ) from None
            if sum(len(field.encode()) for field in fields) > BLOCK // 2:
                raise DataError(
                    f"is a record of more than {BLOCK // 2**21} MiB",
                    "leave such texts out of a table",
                    file=self.path,
                    line=line,
                ) from None
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"is not CSV ({text})", "save it as CSV again", file=self.path) from None


def _header(path: Path) -> tuple[int, str, tuple[str, ...]]:
    number, line = next(((n, text) for n, text in text_lines(path) if text.strip()), (0, ""))
    if not number:
        raise DataError("holds only blank lines", "give it a header line and rows", file=path)
    if "\0" in line:
        raise DataError("is binary", "give a CSV or a Parquet file", file=path, line=number)
    delimiter = max(DELIMITERS, key=lambda d: len(_fields(line, d)))
    names = tuple(name.strip() for name in _fields(line, delimiter))
    if not names:
        raise DataError("is no header", "name the columns on the first line", file=path, line=number)
    if len(names) > MOST_COLUMNS:
        raise DataError(
            f"names {len(names):,} columns", f"keep at most {MOST_COLUMNS:,}", file=path, line=number
        )
    # A file written with its index has one nameless column in front.
    names = tuple(name or f"unnamed {i + 1}" for i, name in enumerate(names))
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(
            f"names column {quoted(twice)} twice", "give each column its own name", file=path, line=number
        )
    return number, delimiter, names


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []
