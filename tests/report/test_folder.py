"""A report folder is replaced whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from gradatim.report.folder import MARKER, ReportError, check_folder, replace_folder


def _siblings(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.parent.iterdir())


def test_replaces_everything(tmp_path):
    out = tmp_path / "deep" / "report"
    replace_folder(out, {"index.html": "one", "data/a.json": "{}"})
    replace_folder(out, {"index.html": "two"})
    assert (out / "index.html").read_text() == "two"
    assert sorted(p.name for p in out.rglob("*")) == sorted([MARKER, "index.html"])
    assert _siblings(out) == ["report"]


def test_accepts_an_empty_folder_and_refuses_any_other(tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    replace_folder(out, {"index.html": "x"})
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("years of work")
    with pytest.raises(ReportError, match=r"thesis holds other files"):
        check_folder(other)
    check_folder(out)
    check_folder(tmp_path / "new")
    with pytest.raises(ReportError, match=r"thesis holds other files.*--out"):
        replace_folder(other, {"index.html": "x"})
    assert (other / "chapter.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="is a file"):
        replace_folder(tmp_path / "file", {"index.html": "x"})


def test_failure_keeps_the_old_report(tmp_path, monkeypatch):
    out = tmp_path / "report"
    replace_folder(out, {"index.html": "old"})
    real = Path.write_text

    def full(self, text, **keywords):
        if self.name == "b.html":
            raise OSError(28, "No space left on device")
        return real(self, text, **keywords)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ReportError, match="No space left"):
        replace_folder(out, {"index.html": "new", "b.html": "x"})
    assert (out / "index.html").read_text() == "old"
    assert _siblings(out) == ["report"]


def test_a_failed_swap_puts_the_old_report_back(tmp_path, monkeypatch):
    out = tmp_path / "report"
    replace_folder(out, {"index.html": "old"})
    real = os.rename

    def broken(source, target):
        if str(source).endswith(".new"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(ReportError, match="Input/output"):
        replace_folder(out, {"index.html": "new"})
    assert (out / "index.html").read_text() == "old"
    assert _siblings(out) == ["report"]


def test_a_reader_never_sees_a_mixture(tmp_path):
    out = tmp_path / "report"
    files = {f"{i}.html": "0" for i in range(30)}
    replace_folder(out, files)
    stop = threading.Event()
    seen: set[frozenset[str]] = set()

    def read():
        while not stop.is_set():
            try:
                # An open descriptor stays with one folder, whatever takes its name.
                fd = os.open(out, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                names = [n for n in os.listdir(fd) if n.endswith(".html")]
                seen.add(frozenset(_read(fd, n) for n in names) if len(names) == 30 else frozenset())
            except FileNotFoundError:
                pass
            finally:
                os.close(fd)

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(1, 25):
        replace_folder(out, dict.fromkeys(files, str(k)))
    stop.set()
    reader.join()
    mixed = [s for s in seen if len(s) > 1]
    assert mixed == []


def _read(fd: int, name: str) -> str:
    file = os.open(name, os.O_RDONLY, dir_fd=fd)
    try:
        return os.read(file, 10).decode()
    finally:
        os.close(file)


def test_two_writers_end_with_one_whole_report(tmp_path):
    out = tmp_path / "report"
    errors = []

    def write(k):
        for _ in range(20):
            try:
                replace_folder(out, {f"{i}.html": k for i in range(5)})
            except ReportError as e:
                errors.append(e)

    threads = [threading.Thread(target=write, args=(k,)) for k in "ab"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    assert len({p.read_text() for p in out.glob("*.html")}) == 1
    assert len(list(out.glob("*.html"))) == 5
    assert _siblings(out) == ["report"]
