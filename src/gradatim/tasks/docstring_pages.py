"""The documentation of installed packages as a folder of text files, to search in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gradatim.tasks.docstrings import TEXT_PACKAGES, docstring_texts


def write_docstring_pages(
    folder: str | Path, packages: Sequence[str] = TEXT_PACKAGES, topics: bool = True
) -> Path:
    """A file per documented object (`numpy/linalg/svd.txt`) and help topic, titled by its name; whole or not.

    Raises FileExistsError when the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    corpus = docstring_texts(tuple(packages), topics)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for name, text in zip(corpus.names, corpus.texts, strict=True):
            file = scratch.joinpath(*name.split(".")).with_suffix(".txt")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name}\n{'=' * len(name)}\n\n{text}\n", encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder
