"""Lines of a UTF-8 text file, one at a time, with their numbers; everything else is refused."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from gradatim.compare.errors import DataError

LONGEST_LINE = 64 * 2**20
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_file(path: str | os.PathLike[str]) -> Path:
    """The path of a regular, readable, non-empty file; DataError otherwise."""
    path = Path(path)
    try:
        if path.is_dir():
            raise DataError("is a folder where a file is needed", "name the file inside it", file=path)
        if not path.exists():
            raise DataError("does not exist", "check the path", file=path)
        if not path.is_file():
            raise DataError("is not a regular file", "copy its content to a file first", file=path)
        with path.open("rb") as stream:
            if not stream.read(1):
                raise DataError("is empty", "give a file with at least one record", file=path)
    except (OSError, ValueError) as error:
        refuse_os_error(error, path)
    return path


def check_folder(path: str | os.PathLike[str]) -> Path:
    """The path of an existing folder that may be listed; DataError otherwise."""
    path = Path(path)
    try:
        if not path.exists():
            raise DataError("does not exist", "check the path", file=path)
        if not path.is_dir():
            raise DataError("is a file where a folder is needed", "name the folder that holds it", file=path)
        next(path.iterdir(), None)
    except (OSError, ValueError) as error:
        refuse_os_error(error, path)
    return path


def refuse_os_error(error: Exception, path: Path) -> NoReturn:
    """Raise what the operating system said about a path as a DataError."""
    if isinstance(error, DataError):
        raise error
    if isinstance(error, PermissionError):
        raise DataError("may not be read", "give yourself permission to read it", file=path) from None
    reason = getattr(error, "strerror", None) or str(error)
    raise DataError(f"cannot be opened ({reason})", "check the path", file=path) from None


def text_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end), for every line, blank ones included.

    A byte order mark at the start is dropped. Raises DataError for bytes that are not UTF-8, for UTF-16,
    and for a line above 64 MiB (memory stays bounded whatever the file holds).
    """
    path = check_file(path)
    try:
        with path.open("rb") as stream:
            number = 0
            while line := stream.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    raise DataError(
                        "is longer than 64 MiB", "put one record on each line", file=path, line=number
                    )
                if number == 1:
                    line = _without_mark(line, path)
                yield number, _decode(line, path, number)
    except OSError as error:
        refuse_os_error(error, path)


def _without_mark(line: bytes, path: Path) -> bytes:
    if line.startswith(UTF16):
        raise DataError("is UTF-16 text", "save it as UTF-8", file=path, line=1)
    return line.removeprefix(codecs.BOM_UTF8)


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = line[error.start]
        raise DataError(
            f"byte 0x{wrong:02x} at position {error.start + 1} is not UTF-8",
            "save the file as UTF-8",
            file=path,
            line=number,
        ) from None
    return text.removesuffix("\n").removesuffix("\r")
