"""`gradatim index`, `search`, `serve`: output, one-line errors, a quick start."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "inference", "search"))
from folders import make_folder, put


@pytest.fixture
def indexed(run, tmp_path):
    folder = make_folder(tmp_path / "docs", 4)
    put(folder / "n/needle.md", "# Sewing\n\nThe needle is [bold]sharp[/bold] :smile:.\n")
    assert run("index", "docs", "--out", "ix", "--quiet")[0] == 0
    return folder


def refused(result, match):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert match in err


def test_index_says_what_it_did(run, tmp_path):
    folder = make_folder(tmp_path / "docs", 3)
    put(folder / "bad.pdf", "%PDF-1.4 nothing")
    put(folder / ".hidden.txt", "x")
    code, out, err = run("index", "docs", "--out", "ix")
    assert code == 0
    assert "3 files, " in out
    assert "left out   1 hidden (such as .hidden.txt)" in out
    assert "failed     bad.pdf: broken PDF" in out
    assert 'gradatim search "your question" --index ix' in out
    assert "reading 4 of 4" in err  # progress goes to standard error
    (folder / "bad.pdf").unlink()
    code, out, err = run("index", "docs", "--out", "ix", "--json")
    report = json.loads(out)
    assert (report["read"], report["reused"], report["removed"]) == (0, 3, 1)
    assert "ix is up to date: 3 files" in run("index", "docs", "--out", "ix")[1]


def test_search_shows_file_line_and_words(run, indexed):
    code, out, _ = run("search", "needle", "--index", "ix", "-k", "3")
    assert code == 0
    assert " 1  n/needle.md:3  Sewing" in out
    assert "The needle is [bold]sharp[/bold] :smile:." in out  # text is no markup
    assert "1 hits, bm25" in out
    code, out, _ = run("search", "how", "sharp", "is", "it", "--index", "ix", "-k", "3", "--json")
    (hit,) = json.loads(out)["hits"]
    assert hit["file"] == "n/needle.md"
    assert [hit["text"][a:b] for a, b in hit["highlights"]] == ["sharp"]
    assert "no passage shares a word" in run("search", "zzz", "--index", "ix")[1]


def test_terminal_codes_in_files_stay_words(run, tmp_path):
    put(tmp_path / "docs" / "a.txt", "evil \x1b]0;title\x07\x1b[2J words")
    with open(os.fsencode(tmp_path / "docs") + b"/\xff\x1b[31m.txt", "wb") as file:
        file.write(b"other words")
    run("index", "docs", "--out", "ix")
    for arguments in (("search", "words", "--index", "ix"), ("search", "words", "--index", "ix", "--json")):
        code, out, _ = run(*arguments)
        assert code == 0
        assert "\x1b" not in out
        assert out.encode()


def test_errors_are_one_line(run, indexed, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(run("index", "none", "--out", "x"), "none is no folder")
    refused(run("index", "empty", "--out", "x"), "holds no file that can be read")
    refused(run("index", "docs", "--out", "x", "--methods", "bm26"), "give some of bm25, dense, binary, seal")
    refused(run("index", "docs", "--out", "x", "--max-file-size", "big"), "write 500kB, 20MB or 1GB")
    refused(run("index", "docs", "--out", "x", "--engine", "spark"), "use local or ray")
    refused(run("index", "docs", "--out", "x", "--methods", "dense", "--model", "./no"), "is no folder")
    refused(run("index", "docs", "--out", "docs"), "holds something else")
    refused(run("search", "x", "--index", "none"), "make one: gradatim index DIR --out none")
    refused(run("search", "x", "--index", "docs"), "holds no manifest.json")
    refused(run("search", "", "--index", "ix"), "the question is empty")
    refused(run("search", "x", "--index", "ix", "--method", "google"), "there are: bm25, dense")
    refused(run("search", "x", "--index", "ix", "--method", "dense"), "--methods bm25,dense")
    refused(run("search", "x", "--index", "ix", "-k", "0"), "-k")
    refused(run("search", "needle", "--index", "ix", "--rerank", "./none"), "no such folder")
    refused(run("search", "needle", "--index", "ix", "--rerank", "own"), "--reranker")
    refused(run("serve", "--index", "none"), "no search index at none")
    refused(run("serve", "--index", "ix", "--host", "203.0.113.7"), "give another --port")


def test_questions_of_any_bytes(indexed, tmp_path):
    command = [sys.executable, "-c", "from gradatim.cli import main; main()", "search"]
    for question in (b"\xff\xfe needle", "検索 needle 🙂".encode(), b"needle " * 5000):
        done = subprocess.run(
            [*command, question, "--index", tmp_path / "ix", "--json"], capture_output=True, check=True
        )
        assert json.loads(done.stdout)["hits"][0]["file"] == "n/needle.md"


def test_a_search_by_words_loads_no_framework(indexed, tmp_path):
    code = (
        "import sys\nfrom gradatim.cli import main\n"
        "try:\n    main(['search', 'needle', '--index', 'ix'])\n"
        "except SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'numba', 'scipy', 'sklearn', 'pandas', 'faiss') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("[]")


def test_an_update_keeps_what_is_not_said(run, indexed, tmp_path):
    code, out, _ = run("index", "docs", "--out", "ix", "--methods", "bm25", "--shards", "2", "--json")
    assert (code, json.loads(out)["changed"]) == (0, True)
    assert json.loads((tmp_path / "ix/manifest.json").read_text())["shards"] == 2
    put(tmp_path / "docs/new.txt", "more words", age=50)
    assert run("index", "docs", "--out", "ix", "--quiet")[0] == 0
    manifest = json.loads((tmp_path / "ix/manifest.json").read_text())
    assert (manifest["shards"], manifest["settings"]["methods"]) == (2, ["bm25"])
    manifest["settings"]["methods"] = 7
    (tmp_path / "ix/manifest.json").write_text(json.dumps(manifest))
    refused(run("index", "docs", "--out", "ix"), "setting 'methods' is damaged")


def test_sizes():
    from gradatim.cli.errors import UsageError
    from gradatim.cli.index import _bytes

    assert [_bytes(t) for t in ("20MB", "1.5 kB", "3g", "7")] == [20_000_000, 1500, 3 * 10**9, 7]
    for wrong in ("", "-1", "0", "MB"):
        with pytest.raises(UsageError):
            _bytes(wrong)
