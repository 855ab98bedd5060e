"""Writing a report folder whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

MARKER = ".gradatim-report"


class ReportError(ValueError):
    """A folder that cannot hold the report; the message is one line and says the fix."""


def replace_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Make `folder` hold exactly `files` (relative path to text).

    The files are written to a sibling folder that then takes the place of the old one: a reader, or a
    crash, sees the old report or the new one, never a mixture.

    Raises ReportError when `folder` holds something that is not a report, or cannot be written.
    """
    check_folder(folder)
    folder = folder.resolve()
    tag = uuid.uuid4().hex[:8]
    fresh = folder.with_name(f".{folder.name}.{tag}.new")
    try:
        for name, text in {
            **files,
            MARKER: "A report written by gradatim; it is replaced as a whole.\n",
        }.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        _swap(fresh, folder, folder.with_name(f".{folder.name}.{tag}.old"))
    except OSError as e:
        raise ReportError(
            f"cannot write the report to {folder}: {e.strerror or e}; choose another --out"
        ) from e
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_folder(folder: Path) -> None:
    """Refuse, before anything is measured, a folder that a report must not replace.

    Raises ReportError when `folder` is a file or holds something that is not a report.
    """
    folder = folder.resolve()
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ReportError(f"{folder} is a file; choose a folder with --out")
    if any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise ReportError(f"{folder} holds other files and would be replaced; choose an empty or new --out")


def _swap(fresh: Path, folder: Path, old: Path) -> None:
    for _ in range(10):
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, old)
        try:
            os.rename(fresh, folder)
        except OSError as e:
            if folder.is_dir():
                # Another process put its report there between our two steps: take its place in turn.
                shutil.rmtree(old, ignore_errors=True)
                continue
            if old.is_dir():
                os.rename(old, folder)
            raise e
        shutil.rmtree(old, ignore_errors=True)
        return
    raise ReportError(f"other processes keep writing to {folder}; choose another --out")
