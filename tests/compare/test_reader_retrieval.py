"""BEIR folders and JSON Lines: what is read, what is refused and where, and that nothing else escapes."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradatim.compare.errors import DataError
from gradatim.compare.readers.beir import read_beir
from gradatim.compare.readers.ids import IdLog, first_duplicate
from gradatim.compare.readers.pairs import read_pairs

FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_message(error: DataError) -> None:
    assert len(str(error).splitlines()) == 1
    assert "; " in str(error)
    str(error).encode("utf-8")


def replace_line(path, number, text):
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(b"\n".join(lines))


def test_beir_is_read_whole(beir):
    folder = beir(24, splits=("train", "dev", "test"))
    data = read_beir(folder)
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    assert data.corpus == {p["_id"]: p["text"] for p in corpus}
    assert set(data.qrels) == {"train", "dev", "test"}
    assert data.qrels["dev"]["q1"] == {"d1": 1, "d13": 1, "d25": 1}
    assert len(data.queries) == 24
    assert data.sampled == ""


def test_grades_negatives_titles_and_marks(beir):
    folder = beir(24)
    qrels = folder / "qrels" / "judged.tsv"
    # Blank lines, a byte order mark, Windows line ends, no header: all fine.
    qrels.write_bytes(b"\xef\xbb\xbfq0\td0\t2\r\n\r\nq0\td5\t0\r\nq1\td1\t1.0\r\n")
    replace_line(folder / "corpus.jsonl", 1, '{"_id": "d0", "title": "A title", "text": "and text"}')
    data = read_beir(folder)
    assert data.qrels == {"all": {"q0": {"d0": 2}, "q1": {"d1": 1}}}
    assert data.negatives == {"q0": ("d5",)}
    assert data.corpus["d0"] == "A title and text"
    assert set(data.queries) == {"q0", "q1"}


def test_large_corpora_keep_judged_passages_and_a_sample(beir):
    folder = beir(48)
    data = read_beir(folder, max_passages=60, seed=1)
    judged = {p for grades in data.qrels["all"].values() for p in grades}
    assert judged <= set(data.corpus)
    assert len(data.corpus) == 60
    assert "60 of 96 passages" in data.sampled
    assert read_beir(folder, max_passages=60, seed=1).corpus == data.corpus
    assert read_beir(folder, max_passages=60, seed=2).corpus != data.corpus
    fewer = read_beir(folder, max_queries=10)
    assert len(fewer.queries) == 10
    assert "10 of 48 queries" in fewer.sampled


BAD = {
    "unknown passage": ("qrels/judged.tsv", 3, "q0\td999\t1", 'passage "d999" is not in corpus.jsonl'),
    "unknown query": ("qrels/judged.tsv", 3, "q999\td1\t1", 'query "q999" is not in queries.jsonl'),
    "two fields": ("qrels/judged.tsv", 4, "q0 d1 1", "1 tab-separated field "),
    "half a grade": ("qrels/judged.tsv", 4, "q0\td1\t0.5", "no whole number"),
    "grade of letters": ("qrels/judged.tsv", 4, "q0\td1\tnan", "no whole number"),
    "two scores": ("qrels/judged.tsv", 4, "q0\td0\t2", "have two scores"),
    "empty id": ("qrels/judged.tsv", 4, "\td1\t1", "empty id"),
    "broken JSON": ("corpus.jsonl", 2, '{"_id": "d1", "text": }', "is not JSON"),
    "NaN": ("corpus.jsonl", 2, '{"_id": "d1", "text": "x", "n": NaN}', "NaN"),
    "a list": ("corpus.jsonl", 2, "[1]", "holds a list"),
    "no text": ("corpus.jsonl", 2, '{"_id": "d1", "body": "x"}', 'has no "text"'),
    "text a number": ("corpus.jsonl", 2, '{"_id": "d1", "text": 5}', "the number 5"),
    "no id": ("corpus.jsonl", 2, '{"text": "x"}', 'has no "_id"'),
    "duplicate id": ("corpus.jsonl", 3, '{"_id": "d1", "text": "x"}', "also on line 2"),
    "empty query": ("queries.jsonl", 1, '{"_id": "q0", "text": " "}', "is empty"),
    "latin-1": ("queries.jsonl", 2, b'{"_id": "q1", "text": "caf\xe9"}', "not UTF-8"),
    "surrogate": ("queries.jsonl", 2, '{"_id": "q1", "text": "\\ud800"}', "surrogate"),
    "too deep": ("queries.jsonl", 2, "[" * 100_000, "nested|not JSON"),
    "long number": ("queries.jsonl", 2, '{"_id": ' + "1" * 5000 + "}", "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_beir_names_file_line_and_fix(beir, case):
    name, line, text, words = BAD[case]
    path = beir(24) / name
    replace_line(path, line, text)
    with pytest.raises(DataError, match=words) as caught:
        read_beir(path.parent.parent if "/" in name else path.parent)
    assert caught.value.line == line
    assert str(path) in str(caught.value)
    check_message(caught.value)


def test_folders_that_are_no_beir(beir, tmp_path):
    folder = beir(24)
    for broken, words in (("qrels/judged.tsv", "qrels"), ("corpus.jsonl", "corpus.jsonl")):
        (folder / broken).unlink()
        with pytest.raises(DataError, match=words):
            read_beir(folder)
    with pytest.raises(DataError, match="does not exist"):
        read_beir(tmp_path / "none")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(DataError, match="is a file where a folder"):
        read_beir(file)


def test_a_query_in_two_splits_is_refused(beir):
    folder = beir(24, splits=("train", "test"))
    path = folder / "qrels" / "train.tsv"
    path.write_text(path.read_text() + "q1\td2\t1\n")
    with pytest.raises(DataError, match="also in the split"):
        read_beir(folder)


def test_ids_that_only_share_a_hash_are_no_duplicates(monkeypatch):
    monkeypatch.setattr("gradatim.compare.readers.ids._hash", lambda text: len(text))
    log = IdLog()
    for name in ("aa", "bb", "c", "bb"):
        log.add(name)
    assert log.suspects() == {2}
    assert first_duplicate(enumerate(["aa", "bb", "c"]), log.suspects()) is None
    assert first_duplicate(enumerate(["aa", "bb", "c", "bb"]), log.suspects()) == ("bb", 1, 3)


def test_pairs_join_queries_and_share_passages(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [
        {"query": "a", "positives": ["x", "y"], "negatives": ["z"]},
        {"query": "b", "positive": "z"},
        {"query": "a", "positives": ["w"]},
    ]
    path.write_text("\n\n".join(json.dumps(r) for r in rows))
    data = read_pairs(path)
    text = data.corpus
    named = {data.queries[q]: {text[p] for p in ps} for q, ps in data.qrels["all"].items()}
    assert named == {"a": {"x", "y", "w"}, "b": {"z"}}
    assert {data.queries[q]: [text[p] for p in ps] for q, ps in data.negatives.items()} == {"a": ["z"]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"positives": ["x"]}, 'has no "query"'),
        ({"query": "", "positives": ["x"]}, '"query" is empty'),
        ({"query": "q"}, 'has no "positives"'),
        ({"query": "q", "positives": []}, 'has no "positives"'),
        ({"query": "q", "positives": "x"}, "is no list"),
        ({"query": "q", "positives": ["x", 3]}, "the number 3"),
        ({"query": "q", "positives": [" "]}, "an empty text"),
        ({"query": "q", "positives": ["x"], "negatives": ["x"]}, "both positive and negative"),
    ],
)
def test_bad_pairs(tmp_path, row, words):
    path = tmp_path / "p.jsonl"
    path.write_text('{"query": "fine", "positives": ["x"]}\n' + json.dumps(row))
    with pytest.raises(DataError, match=words) as caught:
        read_pairs(path)
    assert caught.value.line == 2
    check_message(caught.value)


@given(st.binary(max_size=200))
@FUZZ
def test_any_bytes_as_pairs(tmp_path, content):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    try:
        read_pairs(path)
    except DataError as error:
        check_message(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["query", "positives", "negatives", "positive", "_id", "text", "title"])


@given(st.lists(st.dictionaries(KEYS, JSON, max_size=5), min_size=1, max_size=4))
@FUZZ
def test_any_objects_as_pairs_and_as_beir(tmp_path, rows):
    text = "\n".join(json.dumps(row) for row in rows)
    folder = tmp_path / "b"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name in ("corpus.jsonl", "queries.jsonl", "pairs.jsonl"):
        (folder / name).write_text(text)
    (folder / "qrels" / "test.tsv").write_text("0\t0\t1\n")
    for read, path in ((read_pairs, folder / "pairs.jsonl"), (read_beir, folder)):
        try:
            read(path)
        except DataError as error:
            check_message(error)


@given(st.lists(st.lists(st.sampled_from(["q0", "q1", "d0", "d1", "1", "0", "-1", "x", ""]), max_size=4)))
@FUZZ
def test_any_fields_as_qrels(tmp_path, rows):
    folder = tmp_path / "b"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, prefix in (("corpus.jsonl", "d"), ("queries.jsonl", "q")):
        lines = [json.dumps({"_id": f"{prefix}{i}", "text": "words"}) for i in range(2)]
        (folder / name).write_text("\n".join(lines))
    (folder / "qrels" / "test.tsv").write_text("\n".join("\t".join(row) for row in rows))
    try:
        data = read_beir(folder)
    except DataError as error:
        check_message(error)
    else:
        assert all(p in data.corpus for rows in data.qrels.values() for ps in rows.values() for p in ps)


def peak_of(folder) -> int:
    tracemalloc.start()
    read_beir(folder, max_passages=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_corpus(beir):
    folder = beir(24)
    corpus = folder / "corpus.jsonl"
    judged = corpus.read_text()

    def passages(count):
        more = (json.dumps({"_id": f"x{i}", "text": "word " * 60}) + "\n" for i in range(count))
        corpus.write_text(judged + "".join(more))

    passages(5_000)
    small = peak_of(folder)
    passages(20_000)
    # Eight bytes an id, and as many again while duplicates are looked for; not the texts.
    assert peak_of(folder) < small + 15_000 * 60
