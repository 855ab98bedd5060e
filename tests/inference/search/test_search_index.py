"""An index from folder to hits: round trips, updates, kills, shards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from folders import content, make_folder, put, text

from gradatim.inference.search import (
    FolderIndex,
    IndexBusyError,
    IndexSettings,
    SearchError,
    build_index,
    building,
)

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from tiny_encoder import tiny_encoder

QUESTIONS = ("matrix norm", "sort the array", "random sample of a normal", "absent words only")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tiny_encoder(folder).save_pretrained(str(folder / "tiny"))
    return str(folder / "tiny")


def answers(index, methods=("bm25",), k=8, **options):
    opened = FolderIndex(index, **options)
    return [
        [(h.file, h.title, h.text, h.line, h.score) for h in opened.search(q, k, m).hits]
        for q in QUESTIONS
        for m in methods
    ]


def test_round_trip(tmp_path):
    folder = make_folder(tmp_path / "docs")
    put(folder / "notes.md", "# Gradient\n\nThe needle stands here, below a heading.\n")
    report = build_index(folder, tmp_path / "ix")
    assert (report.files, report.read, report.failed) == (13, 13, ())
    index = FolderIndex(tmp_path / "ix")
    assert index.methods == ("bm25",)
    answer = index.search("where is the NEEDLE?", k=3)
    (hit,) = answer.hits
    assert (hit.file, hit.title, hit.line, hit.rank) == ("notes.md", "Gradient", 3, 1)
    assert [hit.text[a:b] for a, b in hit.highlights] == ["needle"]
    source = (folder / "notes.md").read_text()
    assert source[hit.start : hit.end] == hit.text
    assert index.search("needle heading").hits[0].score > answer.hits[0].score
    # Every passage is found by its own words.
    assert sum(len(f) for f in [index.search("matrix sort norm axis", k=1000).hits]) > 20
    assert index.search("zzz").hits == ()
    assert "no passage shares a word" in index.search("zzz").note
    plain = json.loads(json.dumps(answer.to_json()))
    assert plain["hits"][0]["file"] == "notes.md"
    assert plain["hits"][0]["highlights"] == [[4, 10]]


def test_bm25_of_the_index_agrees_with_bm25s(tmp_path):
    import bm25s

    from gradatim.inference.search.words import query_words, words_of

    folder = make_folder(tmp_path / "docs")
    build_index(folder, tmp_path / "ix")
    index = FolderIndex(tmp_path / "ix")
    passages = list(index._now._local[0].passages)
    reference = bm25s.BM25(method="lucene", k1=1.4, b=0.4)
    reference.index([words_of(p.whole) for p in passages], show_progress=False)
    for question in QUESTIONS[:3]:
        terms = [t for t in query_words(question) if t in reference.vocab_dict]
        scores = reference.get_scores(terms)
        hits = index.search(question, 10).hits
        np.testing.assert_allclose([h.score for h in hits], np.sort(scores)[::-1][:10], rtol=1e-5)
        by_text = {p.text: s for p, s in zip(passages, scores, strict=True)}
        np.testing.assert_allclose([h.score for h in hits], [by_text[h.text] for h in hits], rtol=1e-5)


def change(folder, rng):
    """Edit, add, move and remove files."""
    put(folder / "a/file00.txt", text(rng, 200), age=50)
    put(folder / "b/new.txt", text(rng, 90) + "\n\n" + text(rng, 90), age=50)
    (folder / "a/file02.txt").rename(folder / "c.txt")
    (folder / "b/file01.txt").unlink()


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_an_update_ends_where_a_fresh_index_does(tmp_path, shards, encoder):
    rng = random.Random(5)
    folder = make_folder(tmp_path / "docs")
    settings = IndexSettings(methods=("bm25", "dense"), encoder=encoder, shards=shards)
    build_index(folder, tmp_path / "ix", settings)
    change(folder, rng)
    report = build_index(folder, tmp_path / "ix", settings)
    assert report.changed
    assert (report.read, report.reused, report.removed) == (3, 9, 2)
    again = build_index(folder, tmp_path / "fresh", settings)
    assert again.read == 12
    assert report.encoded < again.encoded
    updated, fresh = content(tmp_path / "ix"), content(tmp_path / "fresh")
    assert updated.keys() == fresh.keys()
    for name in updated:
        if name.endswith("vectors.npy"):
            a, b = (
                np.load(tmp_path / ix / gen / name) for ix, gen in (("ix", "g000002"), ("fresh", "g000001"))
            )
            np.testing.assert_allclose(a, b, atol=1e-5)  # padding changes the order of additions
        else:
            assert updated[name] == fresh[name], name
    assert answers(tmp_path / "ix") == answers(tmp_path / "fresh")
    assert [p.name for p in (tmp_path / "ix").iterdir() if p.name.startswith("g")] == ["g000002"]
    assert not (tmp_path / "ix" / "work").exists()


def test_nothing_to_do(tmp_path):
    folder = make_folder(tmp_path / "docs")
    build_index(folder, tmp_path / "ix")
    before = content(tmp_path / "ix")
    report = build_index(folder, tmp_path / "ix")
    assert (report.changed, report.read, report.files) == (False, 0, 12)
    assert content(tmp_path / "ix") == before
    # The same size and words, another time: read again, since time is all that a look from outside tells.
    put(folder / "a/file00.txt", (folder / "a/file00.txt").read_text(), age=10)
    assert build_index(folder, tmp_path / "ix").read == 1


def test_a_file_changed_a_moment_before_is_not_trusted(tmp_path):
    folder = make_folder(tmp_path / "docs", 3)
    put(folder / "hot.txt", "first words", age=0)
    build_index(folder, tmp_path / "ix")
    then = (folder / "hot.txt").stat().st_mtime_ns
    (folder / "hot.txt").write_text("other words")
    os.utime(folder / "hot.txt", ns=(then, then))  # same size, same time
    assert build_index(folder, tmp_path / "ix").read == 1
    assert FolderIndex(tmp_path / "ix").search("other").hits[0].file == "hot.txt"


def test_failed_files_are_named_and_tried_again(tmp_path):
    folder = make_folder(tmp_path / "docs", 2)
    (folder / "bad.pdf").write_bytes(b"%PDF nothing")
    report = build_index(folder, tmp_path / "ix")
    assert [path for path, _ in report.failed] == ["bad.pdf"]
    assert report.files == 2
    assert build_index(folder, tmp_path / "ix").read == 1


def test_other_settings_make_another_index(tmp_path, encoder):
    folder = make_folder(tmp_path / "docs", 4)
    build_index(folder, tmp_path / "ix")
    with pytest.raises(SearchError, match="make it again with --methods bm25,dense"):
        FolderIndex(tmp_path / "ix").search("x", method="dense")
    settings = IndexSettings(methods=("dense",), encoder=encoder)
    report = build_index(folder, tmp_path / "ix", settings)
    assert (report.read, report.reused) == (0, 4)
    index = FolderIndex(tmp_path / "ix")
    assert index.methods == ("bm25", "dense", "hybrid")
    assert index.default_method == "hybrid"


def test_refusals(tmp_path):
    folder = make_folder(tmp_path / "docs", 2)
    (tmp_path / "empty").mkdir()
    for bad, match in (
        (lambda: build_index(tmp_path / "none", tmp_path / "ix"), "no folder"),
        (lambda: build_index(tmp_path / "empty", tmp_path / "ix"), "no file that can be read; it is empty"),
        (lambda: build_index(folder, folder), "something else|folder itself"),
        (lambda: build_index(folder, tmp_path / "docs/a/file00.txt"), "is a file"),
        (lambda: build_index(tmp_path, folder), "holds something else"),
        (lambda: IndexSettings(methods=("bm26",)), "no method 'bm26'; there are: bm25"),
        (lambda: IndexSettings(shards=0), "0 shards"),
        (lambda: IndexSettings(bits=12), "multiple of 8"),
        (lambda: IndexSettings(engine="spark"), "use local or ray"),
        (lambda: FolderIndex(tmp_path / "none"), "make one: gradatim index DIR"),
        (lambda: FolderIndex(folder), "holds no manifest.json"),
    ):
        with pytest.raises(SearchError, match=match):
            bad()
    build_index(folder, tmp_path / "ix")
    index = FolderIndex(tmp_path / "ix")
    for question, k, method, match in (
        ("", 3, "bm25", "empty"),
        (" \n\t\x00", 3, "bm25", "empty"),
        ("x", 0, "bm25", "k is 0"),
        ("x", 10**9, "bm25", "1 to 1000"),
        ("x", 3, "bm26", "there are: bm25, dense"),
        ("x", 3, "seal", "was made for bm25"),
    ):
        with pytest.raises(SearchError, match=match):
            index.search(question, k, method)


@pytest.mark.parametrize(
    "question",
    [
        "matrix " * 100_000,
        "\ud800 matrix \udfff",
        "\x1b matrix",
        "行列 matrix",
        "🙂",
        "' OR 1=1 --",
        "%s%n",
        "\u202e" * 9 + "a",
    ],
)
def test_any_question_is_answered(tmp_path_factory, question):
    home = tmp_path_factory.getbasetemp() / "any-question"
    if not home.exists():
        build_index(make_folder(home / "docs", 3), home / "ix")
    answer = FolderIndex(home / "ix").search(question)
    json.dumps(answer.to_json()).encode()
    assert len(answer.question) <= 4000
    assert bool(answer.hits) == ("matrix" in question)
    if len(question) > 4000:
        assert "only the first 4000" in answer.note


def test_the_index_may_stand_in_its_folder(tmp_path):
    folder = make_folder(tmp_path / "docs", 3)
    report = build_index(folder, folder / "my-index")
    assert report.files == 3
    assert build_index(folder, folder / "my-index").skipped["the index itself"][0] == 1


def test_one_writer_at_a_time(tmp_path):
    from filelock import FileLock

    folder = make_folder(tmp_path / "docs", 2)
    build_index(folder, tmp_path / "ix")
    with FileLock(tmp_path / "ix" / ".lock"), pytest.raises(IndexBusyError, match="another process"):
        build_index(folder, tmp_path / "ix")
    assert FolderIndex(tmp_path / "ix").search("matrix").hits  # readers need no lock


def test_an_open_index_follows_updates(tmp_path):
    folder = make_folder(tmp_path / "docs", 3)
    build_index(folder, tmp_path / "ix")
    index = FolderIndex(tmp_path / "ix")  # nothing of it is opened yet
    put(folder / "new.txt", "the needle")
    build_index(folder, tmp_path / "ix")
    assert index.search("needle").hits[0].file == "new.txt"


class StopHere(BaseException):
    pass


def test_stopped_anywhere_it_goes_on_and_the_old_index_answers(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("gradatim.inference.search.dense.SLAB", 8)
    folder = make_folder(tmp_path / "docs", 8)
    settings = IndexSettings(methods=("bm25", "dense"), encoder=encoder, shards=2)
    build_index(folder, tmp_path / "ix", settings)
    old = answers(tmp_path / "ix", ("bm25", "dense", "hybrid"))
    change(folder, random.Random(3))
    build_index(folder, tmp_path / "whole", settings)
    expected = answers(tmp_path / "whole", ("bm25",))
    steps = []
    build_index(folder, tmp_path / "count", settings, lambda *step: steps.append(step))
    reads = []
    for stop in range(len(steps) + 1):
        seen = []

        def stopping(*step, seen=seen, stop=stop):
            seen.append(step)
            if step[0] == "reading" and step[1] == 0:
                reads.append(step[2])
            if len(seen) > stop:
                raise StopHere

        try:
            report = build_index(folder, tmp_path / "ix", settings, stopping)
        except StopHere:
            assert answers(tmp_path / "ix", ("bm25", "dense", "hybrid")) == old
        else:
            assert report.changed
            break
    else:
        pytest.fail("it never ended")
    assert answers(tmp_path / "ix", ("bm25",)) == expected
    assert not (tmp_path / "ix" / "work").exists()
    assert min(reads) == 0  # what was read before a stop was not read again


def test_torn_work_is_dropped(tmp_path):
    folder = make_folder(tmp_path / "docs", 4)
    seen = []

    def stopping(step, done, total):
        seen.append(step)
        if (step, done) == ("reading", 3):
            raise StopHere

    with pytest.raises(StopHere):
        build_index(folder, tmp_path / "ix", on_progress=stopping)
    journal = tmp_path / "ix" / "work" / "shard-0000" / "read.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:50])  # a kill in the middle of a line
    report = build_index(folder, tmp_path / "ix")
    assert report.read == 2
    build_index(folder, tmp_path / "fresh")
    assert content(tmp_path / "ix") == content(tmp_path / "fresh")


@pytest.mark.slow
def test_kill_minus_nine_again_and_again(tmp_path):
    folder = make_folder(tmp_path / "docs", 400)
    build_index(folder, tmp_path / "whole")
    code = "from gradatim.cli import main; main()"
    command = [sys.executable, "-c", code, "index", str(folder), "--out", str(tmp_path / "ix"), "--quiet"]
    rng = random.Random(0)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(rng.uniform(1.0, 5.0))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    else:
        subprocess.run(command, check=True)
    assert kills >= 2
    assert content(tmp_path / "ix") == content(tmp_path / "whole")


@pytest.mark.parametrize("shards", [3])
def test_shards_rank_as_one_index(tmp_path, shards, encoder):
    folder = make_folder(tmp_path / "docs", 20)
    for i in range(4):  # ties, in files of different shards
        put(folder / f"same{i}.txt", "matrix norm of the same words")
    methods = ("bm25", "dense", "binary", "hybrid")
    options = {"methods": ("bm25", "dense", "binary"), "encoder": encoder, "bits": 64}
    build_index(folder, tmp_path / "one", IndexSettings(**options))
    build_index(folder, tmp_path / "many", IndexSettings(**options, shards=shards))
    one, many = answers(tmp_path / "one", methods, k=30), answers(tmp_path / "many", methods, k=30)
    for a, b in zip(one, many, strict=True):
        assert [x[:4] for x in a] == [x[:4] for x in b]
        np.testing.assert_allclose([x[4] for x in a], [x[4] for x in b], atol=1e-6)


@pytest.mark.slow
def test_ray_builds_and_asks_the_same(tmp_path, encoder):
    ray = pytest.importorskip("ray")
    folder = make_folder(tmp_path / "docs", 12)
    options = {"methods": ("bm25", "dense"), "encoder": encoder, "shards": 3}
    build_index(folder, tmp_path / "local", IndexSettings(**options))
    try:
        build_index(folder, tmp_path / "ray", IndexSettings(**options, engine="ray"))
        methods = ("bm25", "dense", "hybrid")
        expected = answers(tmp_path / "local", methods)
        assert answers(tmp_path / "ray", methods) == expected
        assert answers(tmp_path / "ray", methods, engine="ray") == expected
        put(folder / "a/file00.txt", "needle", age=20)
        report = build_index(folder, tmp_path / "ray", IndexSettings(**options, engine="ray"))
        assert (report.read, report.reused) == (1, 11)
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_codes_are_learned_once_and_again_when_much_is_new(tmp_path):
    folder = make_folder(tmp_path / "docs", 20)
    settings = IndexSettings(methods=("binary",), bits=32)
    build_index(folder, tmp_path / "ix", settings)
    model = {n: d for n, d in content(tmp_path / "ix").items() if "code-model" in n}
    assert FolderIndex(tmp_path / "ix").search("matrix", 3, "binary").hits[0].score <= 1
    put(folder / "a/file00.txt", text(random.Random(9), 80), age=30)
    build_index(folder, tmp_path / "ix", settings)
    assert model == {n: d for n, d in content(tmp_path / "ix").items() if "code-model" in n}
    for i in range(1, 8):
        put(folder / f"new{i}.txt", text(random.Random(i), 300), age=30)
    build_index(folder, tmp_path / "ix", settings)
    assert model != {n: d for n, d in content(tmp_path / "ix").items() if "code-model" in n}


def test_a_file_stays_in_its_shard(tmp_path):
    from gradatim.tasks.documents import FoundFile

    files = [FoundFile(f"f{i}.txt", "text", 1, 1) for i in range(50)]
    settings = IndexSettings(shards=4)
    before = building._tasks(tmp_path, tmp_path, "g000001", files, settings, None, {})
    after = building._tasks(tmp_path, tmp_path, "g000001", files[::2], settings, None, {})
    home = {f.path: t.number for t in before for f in t.files}
    assert all(home[f.path] == t.number for t in after for f in t.files)
    assert len({t.number for t in before if t.files}) == 4


def test_time_of_a_question(tmp_path):
    build_index(make_folder(tmp_path / "docs", 10), tmp_path / "ix")
    index = FolderIndex(tmp_path / "ix")
    index.search("matrix")
    start = time.process_time()
    index.search("matrix norm sort")
    assert time.process_time() - start < 0.2
    assert isinstance(index.index, Path)
