"""The documentation as files: one per object, whole or not at all."""

from __future__ import annotations

import pytest

from gradatim.tasks.docstring_pages import write_docstring_pages
from gradatim.tasks.docstrings import docstring_texts


def test_one_file_per_object(tmp_path):
    out = write_docstring_pages(tmp_path / "pages", ("numpy",), topics=True)
    corpus = docstring_texts(("numpy",))
    files = sorted(out.rglob("*.txt"))
    assert len(files) == len(corpus.names)
    svd = (out / "numpy/linalg/svd.txt").read_text(encoding="utf-8")
    assert svd.startswith("numpy.linalg.svd\n================\n\n")
    assert corpus.texts[corpus.names.index("numpy.linalg.svd")] in svd
    assert (out / "python" / "assert.txt").exists()
    with pytest.raises(FileExistsError):
        write_docstring_pages(out, ("numpy",))
    assert [p.name for p in tmp_path.iterdir()] == ["pages"]
