"""The docstring corpus: parsing on written examples, and what must hold of the installed packages."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from gradatim.tasks.docstrings import (
    GOLD,
    LINK,
    _stable,
    docstring_retrieval,
    docstring_texts,
    documented_objects,
    linked_split,
    sha256_of,
    split_query,
    split_see_also,
)

DOC = """ceil(x, /, out=None)

ceil(x)

Return the ceiling of the input,
element-wise.

Parameters
----------
x : array_like
    Input of ceil.

See Also
--------
floor, trunc : Other roundings.
numpy.rint
    Rounds to the nearest.

    Halves go to even.
:func:`fix`
`around` : Rounds evenly.

Notes
-----
The ceil of a number is the smallest integer above.

Examples
--------
>>> ceil(1.5)
2.0
... more
"""


def test_see_also_names_and_its_removal():
    text, links = split_see_also(DOC)
    assert links == ["floor", "trunc", "rint", "fix", "around"]
    assert "See Also" not in text
    assert "Rounds" not in text
    assert "Halves" not in text
    assert "The ceil of a number" in text
    assert split_see_also("No such section.\n\nSee also the other one.") == (
        "No such section.\n\nSee also the other one.",
        [],
    )


def test_see_also_at_the_end_runs_to_the_end():
    text, links = split_see_also("A.\n\nSee Also\n--------\nb : c\nd")
    assert (text, links) == ("A.\n", ["b", "d"])


def test_query_skips_signatures_and_passage_hides_the_answer():
    query, passage = split_query(split_see_also(DOC)[0], "ceil")
    assert query == "Return the ceiling of the input, element-wise."
    assert passage.startswith("Parameters x : array_like Input of . Notes")
    assert "ceil" not in passage.split()
    for gone in (">>>", "----", "more", "2.0 ..."):
        assert gone not in passage


@pytest.fixture(scope="module")
def task():
    return docstring_retrieval()


def test_the_task_holds_what_it_promises(task):
    assert len(task.corpus) > 2500
    assert list(task.corpus) == list(task.queries) == list(task.qrels)
    for name, grades in task.qrels.items():
        assert grades[name] == GOLD
        assert all(grade == LINK for doc, grade in grades.items() if doc != name)
        assert len(task.corpus[name]) > 120
        assert len(task.queries[name].split()) >= 3
        assert name.split(".")[-1] not in task.corpus[name].split()
    assert sum(len(grades) > 1 for grades in task.qrels.values()) > 900
    starts = {item.doc[:300] for item in documented_objects()}
    assert len(starts) == len(documented_objects())


def test_links_follow_the_documentation(task):
    assert task.qrels["numpy.linalg.svd"]["scipy.linalg.svd"] == LINK
    assert "singular value" in task.queries["scipy.linalg.svd"].lower()


def test_vendored_and_private_code_is_not_walked():
    parts = {part for item in documented_objects() for part in item.name.split(".")}
    assert not parts & {"externals", "tests", "conftest"}
    assert not any(part.startswith("_") for part in parts)


def test_another_process_reads_the_same_texts():
    # Another salt for hashes, and other modules imported before: scipy rewrites docstrings as it is imported.
    code = "import scipy.signal; from gradatim.tasks import docstring_texts; print(docstring_texts().sha256)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.stdout.strip() == docstring_texts().sha256, done.stderr[-500:]


def test_what_changes_from_process_to_process_is_left_out():
    table = "**Array API Standard Support**\n\nA table.\n\n    See :ref:`dev-arrayapi` for more information."
    doc = "Use {'b', 'a'} or {'c'}.\n\n" + table + "\n\n>>> x\narray([1.])  # may vary\n>>> y"
    assert _stable(doc) == "Use {'a', 'b'} or {'c'}.\n\n>>> x\n>>> y"


def test_split_covers_linked_queries_once(task):
    train, test = linked_split(task)
    linked = {query for query, grades in task.qrels.items() if len(grades) > 1}
    assert set(train) | set(test) == linked
    assert not set(train) & set(test)
    assert len(train) == int(0.7 * len(linked))
    assert linked_split(task) == (train, test)
    assert linked_split(task, seed=1)[1] != test


def test_texts_cover_torch_and_the_help_topics():
    corpus = docstring_texts()
    roots = {name.split(".")[0] for name in corpus.names}
    assert roots == {"numpy", "scipy", "sklearn", "torch", "python"}
    assert sum(len(text) for text in corpus.texts) > 5_000_000
    assert "python.assert" in corpus.names
    assert len(corpus.names) == len(corpus.texts) == len(set(corpus.names))
    again = sha256_of(part for pair in zip(corpus.names, corpus.texts, strict=True) for part in pair)
    assert again == corpus.sha256
    assert docstring_texts(("numpy",), topics=False).sha256 != corpus.sha256


def test_digest_cannot_be_moved_across_cuts():
    assert sha256_of(["ab", "c"]) != sha256_of(["a", "bc"])
    assert sha256_of(["é"]) == hashlib.sha256(b"\xc3\xa9\0").hexdigest()


def test_a_missing_package_is_named():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        documented_objects(("no_such_package",))
