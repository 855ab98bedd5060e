"""The one error of the readers: a file, a line, what is wrong, and the fix, on one line."""

from __future__ import annotations

import os

LONGEST_PIECE = 300


class DataError(ValueError):
    """What the user gave cannot be used.

    `str(error)` is exactly one printable line: `FILE, line N: PROBLEM; FIX`. `file` and `line` are None
    where the problem lies in an option, `line` also where it lies in the file as a whole. `unit` is
    "row" for formats that have no lines (Parquet).
    """

    def __init__(
        self,
        problem: str,
        fix: str,
        *,
        file: str | os.PathLike[str] | None = None,
        line: int | None = None,
        unit: str = "line",
    ) -> None:
        self.file = None if file is None else os.fspath(file)
        self.line = line
        self.problem = problem
        self.fix = fix
        self.unit = unit
        where = "" if self.file is None else _printable(self.file, 1000)
        if line is not None:
            where += f", {unit} {line}" if where else f"{unit} {line}"
        text = f"{_printable(problem)}; {_printable(fix)}"
        super().__init__(f"{where}: {text}" if where else text)

    def __reduce__(self) -> tuple[object, ...]:
        # An error may cross from a worker process; the default would call __init__ with str(self) alone.
        return (_rebuild, (self.problem, self.fix, self.file, self.line, self.unit))


def _rebuild(problem: str, fix: str, file: str | None, line: int | None, unit: str) -> DataError:
    return DataError(problem, fix, file=file, line=line, unit=unit)


def quoted(value: object, longest: int = 60) -> str:
    """A value from a file as it may stand in an error: quoted, escaped, cut."""
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= longest else text[: longest - 3] + "..."
    return f'"{_printable(text)}"' if isinstance(value, str) else _printable(text)


def _printable(text: str, longest: int = LONGEST_PIECE) -> str:
    text = text if len(text) <= longest else text[: longest - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
