"""Read a gradient-norm log that some trainer wrote: CSV, JSON, JSON lines or TensorBoard events.

Only plain data is parsed, never a pickle; files are bounded in size; whatever is wrong is said in one line
that names the file and, where it has lines, the line.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.optim.traces import DESCRIPTION, FORMAT, GradNormTrace

MAX_BYTES = 512 * 2**20
MAX_RECORDS = 20_000_000
STEP_NAMES = ("step", "steps", "iter", "iteration", "global_step", "_step")
NORM_NAMES = (
    "grad_norm",
    "grad_norm_l2",
    "grad_norm_l1",
    "gradient_norm",
    "train/grad_norm",
    "norm",
    "norms",
    "gnorm",
    "value",
)

Record = tuple[int, Any, Any]
"""Where it stands (line or entry number), the step or None, the norm."""


class TraceError(ValueError):
    """A log that cannot be read as gradient norms; one line that names the file and the fix."""


def read_trace(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    norm_type: int | None = None,
    max_bytes: int = MAX_BYTES,
    max_records: int = MAX_RECORDS,
) -> GradNormTrace:
    """The gradient norms in a log file.

    Recognised by ending and content:
    - CSV with a header: a step column (optional) and one of norms;
    - JSON: a trace of ours, a list of numbers, a list of records, an object of columns, the
      `trainer_state.json` of a Hugging Face Trainer, or `{history: {train: {iter, grad_norm}}}`;
    - JSON lines (`.jsonl`): one record per line; records without a norm are skipped;
    - TensorBoard: an event file (`tfevents` in its name) or a folder of them (needs `tensorboard`).

    Entries are sorted by step; of entries logged twice the last counts.

    Args:
        path: the file.
        key: name of the column, field or tag; None looks for the usual names.
        norm_type: 1 or 2 where you know it and the file does not say.
        max_bytes, max_records: larger files are refused.

    Raises:
        TraceError: unreadable, too large, no norms, or a norm that is no number, negative or not finite.
    """
    file = Path(path)
    name = os.fspath(path)
    if not file.exists():
        raise TraceError(f"{name}: no such file")
    if file.is_dir() or "tfevents" in file.name:
        from gradatim.optim.trace_tensorboard import read_events

        return read_events(file, key=key, norm_type=norm_type, max_records=max_records)
    size = file.stat().st_size
    if size > max_bytes:
        raise TraceError(
            f"{name}: {size} bytes is more than the {max_bytes} allowed; log every k-th step, or"
            " raise max_bytes"
        )
    suffix = file.suffix.lower()
    readers = {".csv": _csv, ".tsv": _csv, ".json": _json, ".jsonl": _json_lines, ".ndjson": _json_lines}
    if suffix not in readers:
        known = ", ".join(sorted(readers))
        raise TraceError(f"{name}: unknown ending {suffix!r}; expected {known} or a TensorBoard event file")
    try:
        unit, description, records = readers[suffix](file, key)
        description["norm_type"] = norm_type or description.get("norm_type")
        return build_trace(name, records, unit=unit, description=description, max_records=max_records)
    except UnicodeDecodeError as error:
        line = _line_of_byte(file)
        raise TraceError(f"{name}, line {line}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise TraceError(f"{name}: cannot be read ({error.strerror or error})") from error


def build_trace(
    name: str, records: Iterable[Record], *, unit: str, description: dict[str, Any], max_records: int
) -> GradNormTrace:
    """A checked trace of records; `unit` is what their positions count ("line", "entry")."""
    norms: dict[int, float] = {}
    for count, (where, raw_step, raw_norm) in enumerate(records):
        if count >= max_records:
            raise TraceError(f"{name}: more than {max_records} entries; log every k-th step")
        norm = _number(name, unit, where, "gradient norm", raw_norm)
        if norm < 0:
            raise TraceError(f"{name}, {unit} {where}: a gradient norm cannot be negative, got {norm:g}")
        step = _step(name, unit, where, raw_step, count)
        norms[step] = norm
    if len(norms) < 2:
        raise TraceError(f"{name}: needs the gradient norms of at least 2 steps, got {len(norms)}")
    order = sorted(norms)
    try:
        return GradNormTrace(
            norms=np.fromiter((norms[s] for s in order), dtype=np.float64, count=len(order)),
            steps=np.fromiter(order, dtype=np.int64, count=len(order)),
            **description,
        )
    except ValueError as error:
        raise TraceError(f"{name}: {error}") from error


def _csv(file: Path, key: str | None) -> tuple[str, dict[str, Any], Iterator[Record]]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    with file.open(newline="", encoding="utf-8-sig") as opened:
        header = _rows(file, opened, delimiter, limit=1)
        columns = [c.strip() for _, row in header for c in row]
    if not columns:
        raise TraceError(f"{file}: the file is empty; expected a header line such as step,grad_norm")
    chosen = _choose(file, columns, key, "column")
    norm_index = columns.index(chosen)
    step_index = next((columns.index(s) for s in STEP_NAMES if s in columns), None)

    def records() -> Iterator[Record]:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            for line, row in itertools.islice(_rows(file, opened, delimiter), 1, None):
                if len(row) != len(columns):
                    raise TraceError(f"{file}, line {line}: {len(row)} fields, the header has {len(columns)}")
                if row[norm_index].strip():
                    yield line, None if step_index is None else row[step_index], row[norm_index]

    return "line", {"norm_type": norm_type_in_name(chosen)}, records()


def _rows(
    file: Path, opened: Iterable[str], delimiter: str, limit: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(opened, delimiter=delimiter, strict=True)
    try:
        full = (row for row in reader if row)
        for row in itertools.islice(full, limit):
            yield reader.line_num, row
    except csv.Error as error:
        raise TraceError(f"{file}, line {reader.line_num}: not readable as CSV ({error})") from error


def _json(file: Path, key: str | None) -> tuple[str, dict[str, Any], Iterator[Record]]:
    document = _parse(file, file.read_text(encoding="utf-8-sig"), 1)
    description: dict[str, Any] = {}
    if isinstance(document, dict):
        if document.get("format") == FORMAT:
            description = {name: document.get(name) for name in DESCRIPTION}
            description["optimizer"] = str(description["optimizer"] or "")
            key = "norms"
        elif isinstance(document.get("log_history"), list):
            document = document["log_history"]
        elif isinstance(document.get("history"), dict):
            document = document["history"].get("train", document["history"])
    if isinstance(document, list):
        numbers = key is None and not any(isinstance(item, dict) for item in document)
        records = (
            ((i, None, value) for i, value in enumerate(document, 1))
            if numbers
            else _from_objects(file, enumerate(document, 1), key, "entry")
        )
        return "entry", description, iter(records)
    if isinstance(document, dict):
        columns = {k: v for k, v in document.items() if isinstance(v, list)}
        chosen = _choose(file, list(columns), key, "list")
        steps = next((columns[s] for s in STEP_NAMES if s in columns), None)
        norms = columns[chosen]
        if steps is not None and len(steps) != len(norms):
            raise TraceError(f"{file}: {len(steps)} steps but {len(norms)} norms; the lists must match")
        description.setdefault("norm_type", norm_type_in_name(chosen))
        found = zip(itertools.count(1), steps or itertools.repeat(None), norms, strict=False)
        return "entry", description, found
    raise TraceError(f"{file}: holds {type(document).__name__}, expected a list or an object of norms")


def _json_lines(file: Path, key: str | None) -> tuple[str, dict[str, Any], Iterator[Record]]:
    def objects() -> Iterator[tuple[int, Any]]:
        with file.open(encoding="utf-8-sig") as opened:
            for line, text in enumerate(opened, 1):
                if text.strip():
                    yield line, _parse(file, text.rstrip(), line)

    return "line", {}, _from_objects(file, objects(), key, "line")


def _from_objects(
    file: Path, objects: Iterable[tuple[int, Any]], key: str | None, unit: str
) -> Iterator[Record]:
    chosen = key
    for where, item in objects:
        if not isinstance(item, dict):
            raise TraceError(f"{file}, {unit} {where}: expected an object with a norm, got {_short(item)}")
        if chosen is None:
            chosen = next((n for n in NORM_NAMES if n in item), None)
        if chosen is not None and item.get(chosen) is not None:
            yield where, next((item[s] for s in STEP_NAMES if s in item), None), item[chosen]


def _parse(file: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise TraceError(f"{file}, line {line}: not JSON ({error.msg}, column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        raise TraceError(f"{file}, line {first_line}: JSON too deep or with too long a number") from error


def _choose(file: Path, names: list[str], key: str | None, kind: str) -> str:
    if key is not None:
        if key not in names:
            raise TraceError(f"{file}: no {kind} {key!r}; there are: {_list(names)}")
        return key
    found = next((n for n in NORM_NAMES if n in names), None)
    if found is None:
        raise TraceError(
            f"{file}: no {kind} of gradient norms among: {_list(names)}; name it with key (--key)"
        )
    return found


def _number(name: str, unit: str, where: int, what: str, raw: Any) -> float:
    try:
        if isinstance(raw, bool) or not isinstance(raw, str | int | float):
            raise TypeError
        value = float(raw)
    except (TypeError, ValueError, OverflowError):
        raise TraceError(f"{name}, {unit} {where}: {what} {_short(raw)} is not a number") from None
    if not math.isfinite(value):
        raise TraceError(
            f"{name}, {unit} {where}: {what} is {value}; leave out steps that the optimizer skipped"
        )
    return value


def _step(name: str, unit: str, where: int, raw: Any, count: int) -> int:
    if raw is None:
        return count
    value = _number(name, unit, where, "step", raw)
    if value != int(value) or not 0 <= value < 2**62:
        raise TraceError(f"{name}, {unit} {where}: step must be a whole number from 0, got {_short(raw)}")
    return int(value)


def norm_type_in_name(column: str) -> int | None:
    return next((p for p in (1, 2) if column.endswith(f"_l{p}")), None)


def _line_of_byte(file: Path) -> int:
    with file.open("rb") as opened:
        for line, raw in enumerate(opened, 1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError:
                return line
    return 1


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _list(names: list[str]) -> str:
    shown = ", ".join(_short(n) for n in names[:8]) or "none"
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
