"""Runs in TREC's format: there and back, as trec_eval reads them, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradatim.curricula.run_pairs import ranked_documents
from gradatim.tasks import read_trec_run, write_trec_run

ids = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=8)
runs = st.dictionaries(
    ids, st.dictionaries(ids, st.floats(-1e6, 1e6), min_size=1, max_size=5), min_size=1, max_size=4
)


@given(runs)
def test_what_is_written_is_read(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("run") / "run.txt"
    write_trec_run(run, path)
    found = read_trec_run(path)
    assert found == run
    assert list(found) == list(run)
    for query, docs in run.items():
        assert list(found[query]) == ranked_documents(query, docs)


def test_the_format_is_trecs(tmp_path):
    import pytrec_eval

    write_trec_run({"q1": {"b": 1.5, "a": 1.5, "c": 7.0}}, tmp_path / "run", tag="mine")
    lines = (tmp_path / "run").read_text().splitlines()
    assert lines == ["q1 Q0 c 1 7.0 mine", "q1 Q0 b 2 1.5 mine", "q1 Q0 a 3 1.5 mine"]
    with (tmp_path / "run").open() as stream:
        assert pytrec_eval.parse_run(stream) == read_trec_run(tmp_path / "run")
    (tmp_path / "other").write_text("1\tQ0\tdoc-7\t1\t1.25e1\tanserini\n\n1 Q0 doc-8 2 3 anserini\n")
    assert read_trec_run(tmp_path / "other") == {"1": {"doc-7": 12.5, "doc-8": 3.0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 d 1 2.0\n", "line 1: 5 fields"),
        ("q Q0 d 1 2.0 t\nq Q0 e 2 high t\n", "line 2: the score 'high'"),
        ("q Q0 d 1 nan t\n", "line 1: the score 'nan'"),
        ("q Q0 d 1 2 t\nq Q0 d 2 1 t\n", "line 2: query q has document d twice"),
        ("\n", "holds no line"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    (tmp_path / "run").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_trec_run(tmp_path / "run")


@pytest.mark.parametrize("run", [{"a b": {"d": 1.0}}, {"q": {"": 1.0}}, {"q": {"d\n": 1.0}}])
def test_names_with_blanks_are_refused(tmp_path, run):
    with pytest.raises(ValueError, match="blanks"):
        write_trec_run(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()
