"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from gradatim.compare.errors import DataError


def check_new_folder(folder: Path) -> None:
    """Raises DataError unless `folder` is absent or empty, and its parent can be written."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError("exists already", "give --save a new folder", file=folder)
        parent = next(p for p in folder.absolute().parents if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise DataError("cannot be made there", "give --save a folder you may write", file=folder)
    except OSError as error:
        raise DataError(
            f"cannot be made ({error.strerror})", "give --save another folder", file=folder
        ) from None


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a sibling folder, which then takes the name `folder`."""
    check_new_folder(folder)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.new")
    fresh.mkdir()
    try:
        fill(fresh)
        if folder.exists():
            folder.rmdir()
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
