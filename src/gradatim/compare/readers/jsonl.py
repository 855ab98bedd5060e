"""JSON objects of a JSON Lines file, one per line, with their line numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradatim.compare.errors import DataError, quoted
from gradatim.compare.readers.text import text_lines


def json_objects(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for every line that is not blank.

    Raises DataError for broken JSON, NaN and Infinity, a line that is no object, and a file with none.
    """
    file = Path(path)
    found = False
    for number, line in text_lines(file):
        if not line or line.isspace():
            continue
        found = True
        yield number, _parse(line, file, number)
    if not found:
        raise DataError("holds only blank lines", "give one JSON object per line", file=file)


def _parse(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except RecursionError:
        raise DataError("is nested too deeply", "write flat JSON objects", file=file, line=number) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"is not JSON ({error.msg} at column {error.colno})",
            "write one JSON object per line",
            file=file,
            line=number,
        ) from None
    except ValueError as error:
        raise DataError(f"is not JSON ({error})", "correct that number", file=file, line=number) from None
    if not isinstance(value, dict):
        raise DataError(
            f"holds {_kind(value)} where an object is needed",
            'write {"key": "value"} on each line',
            file=file,
            line=number,
        )
    return value


def text_field(record: dict[str, Any], key: str, file: Path, line: int, *, default: str | None = None) -> str:
    """A string under `key`; `default` where it is absent or null, DataError if there is no default."""
    value = record.get(key)
    if value is None:
        if default is not None:
            return default
        present = ", ".join(quoted(k, 20) for k in list(record)[:5]) or "none"
        raise DataError(
            f'has no "{key}" (keys here: {present})', f'add "{key}" with a string', file=file, line=line
        )
    return checked_text(value, f'"{key}"', file, line)


def checked_text(value: object, what: str, file: Path, line: int) -> str:
    """`value` if it is a string that can be written as UTF-8; DataError otherwise."""
    if not isinstance(value, str):
        raise DataError(
            f"{what} is {_kind(value)} where a string is needed",
            'put the text in "quotation marks"',
            file=file,
            line=line,
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{what} holds half of a surrogate pair", "remove that \\u escape", file=file, line=line
        ) from None
    return value


def id_field(record: dict[str, Any], key: str, file: Path, line: int) -> str:
    """An identifier: a string without blanks at its ends, or an integer, under `key`."""
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = text_field(record, key, file, line)
    if not text or text != text.strip() or "\t" in text or "\n" in text:
        raise DataError(
            f'"{key}" is {quoted(text)}',
            "give every record an id without tabs or blanks around it",
            file=file,
            line=line,
        )
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {quoted(value, 30)}")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
