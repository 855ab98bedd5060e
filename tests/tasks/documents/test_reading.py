"""Walking a folder and reading its files in processes that may be lost."""

from __future__ import annotations

import os

import pytest
from tiny_pdf import pdf

from gradatim.tasks.documents import ReadLimits, read_files, walk
from gradatim.tasks.documents.walking import FoundFile


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "docs"
    root.mkdir()

    def put(path, data="some words"):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
        return file

    return root, put


def test_what_is_read_and_what_is_left_out(folder):
    root, put = folder
    for path in ("b.txt", "a/deep/c.md", "a.py", "LICENSE", "Z/ü.html"):
        put(path)
    put("sub/.hidden/x.txt")
    put(".env")
    put("empty.txt", "")
    put("photo.png", b"\x89PNG\r\n\0\0")
    put("data.json", "{}")
    put("node_modules/x/readme.md")
    put("env/pyvenv.cfg")
    put("env/lib/x.py")
    put("large.txt", "x" * 2000)
    put("large.jsonl", '{"text": "x"}\n' * 100)
    put("own/manifest.json")
    (root / "link.txt").symlink_to(root / "b.txt")
    (root / "loop").symlink_to(root)
    (root / "gone.txt").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.txt")
    found = walk(root, most_bytes=1500, without=root / "own")
    assert [f.path for f in found.files] == [
        "LICENSE",
        "Z/ü.html",
        "a.py",
        "a/deep/c.md",
        "b.txt",
        "large.jsonl",
    ]
    assert dict(found.skipped) == {
        "hidden": 2, "empty": 1, "binary": 1, "no reader for its kind": 1, "too large": 1, "link": 3,
        "folder of installed or compiled files": 2, "no regular file": 1, "the index itself": 1,
    }  # fmt: skip
    assert found.examples["binary"] == "photo.png"


def test_links_are_followed_but_not_in_circles(folder):
    root, put = folder
    put("a/x.txt")
    (root / "a" / "up").symlink_to(root)
    (root / "b").symlink_to(root / "a")
    (root / "c.txt").symlink_to(root / "a" / "x.txt")
    found = walk(root, follow_links=True, hidden=True)
    assert [f.path for f in found.files] == ["a/x.txt", "b/x.txt", "c.txt"]
    assert found.skipped["link in a circle"] == 2


def test_no_folder(tmp_path):
    with pytest.raises(NotADirectoryError):
        walk(tmp_path / "none")


def test_names_that_are_no_unicode(folder):
    root, _ = folder
    with open(os.fsencode(root) + b"/caf\xe9.txt", "wb") as file:
        file.write(b"words in a file")
    (found,) = walk(root).files
    (read,) = read_files(root, [found])
    assert read.error == ""
    assert read.passages[0].text == "words in a file"


def test_files_that_fail_cost_only_themselves(folder):
    root, put = folder
    put("a.txt")
    put("b.pdf", pdf("fine"))
    put("broken.pdf", b"%PDF-1.4 nonsense")
    put("deep.html", "<div>" * 60_000 + "x")
    put("z.txt", "last")
    files = walk(root).files
    files.append(FoundFile("gone.txt", "text", 1, 1))
    files.append(FoundFile("a.txt", "no such format", 1, 1))
    *reads, unknown = read_files(root, files, ReadLimits(seconds=20.0))
    assert "no format" in unknown.error
    got = {r.file.path: r for r in reads}
    assert [p for p in got if not got[p].error and p != "deep.html"] == ["a.txt", "b.pdf", "z.txt"]
    assert "broken PDF" in got["broken.pdf"].error
    assert "cannot be opened (No such file" in got["gone.txt"].error
    assert got["a.txt"].sha256
    assert all("\n" not in r.error for r in got.values())


def test_time_runs_out(folder):
    root, put = folder
    put("a.txt")
    os.mkfifo(root / "never.txt")  # opening it waits for a writer
    put("z.txt")
    files = [FoundFile(n, "text", 1, 1) for n in ("a.txt", "never.txt", "z.txt")]
    got = list(read_files(root, files, ReadLimits(seconds=1.5)))
    assert [(r.file.path, r.error) for r in got] == [
        ("a.txt", ""), ("never.txt", "took longer than 1.5 s"), ("z.txt", ""),
    ]  # fmt: skip


def test_a_reader_that_dies_is_replaced(folder):
    root, put = folder
    for i in range(6):
        put(f"{i}.txt")
    from gradatim.tasks.documents import reading

    killed = []
    original = reading._Worker._message

    def dying(self, process):
        if not killed:
            killed.append(process.pid)
            process.kill()
        return original(self, process)

    reading._Worker._message = dying
    try:
        got = sorted(read_files(root, walk(root).files, jobs=2), key=lambda r: r.file.path)
    finally:
        reading._Worker._message = original
    assert sorted(r.error for r in got) == ["", "", "", "", "", "crashed its reader"]


def test_memory_is_limited(folder):
    root, put = folder
    put("big.html", "<p>" + "word " * 3_000_000)
    (read,) = read_files(root, walk(root).files, ReadLimits(megabytes=40, seconds=20.0))
    assert read.error in ("takes too much memory", "crashed its reader")


def test_limits_are_checked():
    with pytest.raises(ValueError, match="above 0"):
        ReadLimits(seconds=0.0)
