"""Postings on disk: the terms as lines of text, the rest as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradatim.inference.search.errors import IndexDamagedError
from gradatim.inference.search.files import CheckedFolder, write_array
from gradatim.inference.search.postings import Postings


def write_postings(folder: Path, postings: Postings) -> None:
    """`terms.txt` and four arrays."""
    (folder / "terms.txt").write_bytes("".join(f"{t}\n" for t in postings.terms).encode("utf-8", "replace"))
    write_array(folder / "term-starts.npy", postings.starts.astype("<i8"))
    write_array(folder / "term-passages.npy", postings.passages.astype("<i4"))
    write_array(folder / "term-counts.npy", postings.counts.astype("<i4"))
    write_array(folder / "lengths.npy", postings.lengths.astype("<i4"))


def read_postings(files: CheckedFolder, passages: int) -> Postings:
    """What `write_postings` wrote, for so many passages. Raises IndexDamagedError for anything else."""
    try:
        terms = files.path("terms.txt").read_bytes().decode("utf-8").split("\n")[:-1]
    except ValueError as error:
        raise IndexDamagedError(f"{files.root / 'terms.txt'} is no UTF-8; make the index again") from error
    starts = files.array("term-starts.npy", "<i8", len(terms) + 1)
    entries = int(starts[-1])
    if entries < 0:
        raise IndexDamagedError(f"{files.root / 'term-starts.npy'} is damaged; make the index again")
    lengths = files.array("lengths.npy", "<i4", passages)
    return Postings(
        terms,
        starts,
        files.array("term-passages.npy", "<i4", entries),
        files.array("term-counts.npy", "<i4", entries),
        np.asarray(lengths),
    )
