"""What a file holds is what the task holds; texts stay texts; each refusal names its line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradatim.tasks.text_classification import (
    STATEMENTS,
    PromptTemplate,
    TextTask,
    read_text_classification,
    statements,
)


@pytest.mark.parametrize("name", STATEMENTS)
def test_our_statements_are_64_different_sentences_per_class(name):
    task = statements(name)
    assert all(task.labels.count(c) == 64 for c in task.classes)
    assert len(set(task.texts)) == len(task) == 64 * len(task.words)
    assert tuple(task.words) == task.classes
    # a class must not be told by its length
    lengths = [
        sum(len(t.split()) for t, c in zip(task.texts, task.labels, strict=True) if c == k) / 64
        for k in task.classes
    ]
    assert max(lengths) < 1.25 * min(lengths)


def test_a_draw_is_balanced_disjoint_and_depends_on_the_seed_alone():
    task = statements("topic")
    drawn = task.draw(8, 12, seed=3)
    assert drawn == task.draw(8, 12, seed=3)
    assert drawn != task.draw(8, 12, seed=4)
    for labels, each in ((drawn.labels, 2), (drawn.test_labels, 3)):
        assert all(labels.count(c) == each for c in task.classes)
    assert not set(drawn.texts) & set(drawn.test_texts)
    truth = dict(zip(task.texts, task.labels, strict=True))
    assert [truth[t] for t in (*drawn.texts, *drawn.test_texts)] == [*drawn.labels, *drawn.test_labels]
    orders = {task.draw(8, 12, seed=s).labels for s in range(10)}
    assert len(orders) == 10  # not in blocks by class


def test_an_uneven_draw_gives_the_rest_to_random_classes():
    task = statements("sentiment")
    counts = {task.draw(1, 3, seed=s).labels[0] for s in range(20)}
    assert counts == {"positive", "negative"}


def test_a_text_that_occurs_twice_is_not_both_shown_and_asked():
    task = TextTask(
        "t", ("a", "a", "b", "b", "c", "d"), ("0", "0", "1", "1", "0", "1"), {"0": " x", "1": " y"}
    )
    for seed in range(10):
        drawn = task.draw(2, 2, seed)
        assert not set(drawn.texts) & set(drawn.test_texts)
    with pytest.raises(ValueError, match="too few texts for 4 shots and 2 items"):
        task.draw(4, 2, 0)


def test_prompt_is_written_as_the_template_says():
    t = PromptTemplate("Q {text}\nA:{label}", separator=" | ")
    assert t.prompt([("one", " x"), ("two", " y")], "three") == "Q one\nA: x | Q two\nA: y | Q three\nA:"


@given(st.text(min_size=1))
def test_braces_in_a_text_are_text(text):
    assert PromptTemplate("T {text} L{label}").example(text + "{label}{0.__class__}", "!") == (
        f"T {text}{{label}}{{0.__class__}} L!"
    )


@pytest.mark.parametrize(
    "pattern",
    ["{text}", "{label}", "{text}{label}.", "{label} {text}", "{text.__class__}{label}", "{text!r}{label}",
     "{text:>9}{label}", "{text}{text}{label}", "{}{label}", "{0}{label}", "{text}{other}{label}",
     "{text{label}", "}{text}{label}"],
)  # fmt: skip
def test_other_templates_are_refused(pattern):
    with pytest.raises(ValueError, match="template"):
        PromptTemplate(pattern)


def test_files_of_both_kinds_hold_the_same(tmp_path):
    rows = [("good {thing}", "0"), ('b\u00e4d, "quoted"', "1"), ("a \u2028 separator", "1")]
    (tmp_path / "a.tsv").write_text(
        "Text\tLabel\r\n" + "\r\n".join("\t".join(r) for r in rows) + "\r\n\r\n",
        encoding="utf-8-sig",
        newline="",
    )
    (tmp_path / "a.jsonl").write_text(
        "\n\n".join(json.dumps({"text": t, "label": int(c), "more": 1}) for t, c in rows), encoding="utf-8"
    )
    words = {"0": " neg", "1": " pos"}
    tsv, jsonl = (read_text_classification(tmp_path / f, words=words) for f in ("a.tsv", "a.jsonl"))
    assert tsv == jsonl
    assert list(zip(tsv.texts, tsv.labels, strict=True)) == rows
    assert read_text_classification(tmp_path / "a.tsv").words == {"0": " 0", "1": " 1"}


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("a.tsv", "fine\t1\nno tab here\n", "line 2: expected text<TAB>label, got 1 fields"),
        ("a.tsv", "fine\t1\tmore\n", "line 1: expected text<TAB>label, got 3"),
        ("a.tsv", "fine\t1\n \t0\n", "line 2: text is empty"),
        ("a.tsv", "fine\t1\ngood\t\n", "line 2: label is empty"),
        ("a.tsv", "fine\t1\ngood\t7\n", "line 2: no word for label '7'"),
        ("a.tsv", "fine\t1\ngood\t1\n", "one class only"),
        ("a.tsv", "\n", "holds no items"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", '["a", 1]\n', "line 1: expected {"),
        ("a.jsonl", '{"text": "a"}\n', "line 1: expected {"),
        ("a.jsonl", '{"text": 3, "label": 1}\n', "line 1: text must be a string"),
        ("a.jsonl", '{"text": "a", "label": true}\n', "line 1: text must be a string, label"),
        ("a.csv", "x", "expected a .tsv or .jsonl"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, file, content, says):
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=says) as error:
        read_text_classification(tmp_path / file, words={"0": " neg", "1": " pos"})
    assert "\n" not in str(error.value)
    assert file in str(error.value)


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"fine\t1\nb\xe4d\t0\n")
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        read_text_classification(tmp_path / "a.tsv")
    with pytest.raises(ValueError, match="cannot be read"):
        read_text_classification(tmp_path / "none.tsv")


def test_other_misuse():
    with pytest.raises(ValueError, match="there are sentiment"):
        statements("films")
    with pytest.raises(ValueError, match="no word for label 'b'"):
        TextTask("t", ("x", "y"), ("a", "b"), {"a": " a"})
    with pytest.raises(ValueError, match="text 1 is empty"):
        TextTask("t", ("x", " "), ("a", "b"), {"a": " a", "b": " b"})
    with pytest.raises(ValueError, match="2 texts but 1 labels"):
        TextTask("t", ("x", "y"), ("a",), {"a": " a"})
    with pytest.raises(ValueError, match="at least 1"):
        statements().draw(0, 3, 0)
