"""Annotators and rows: counts against their distribution, and draws that follow from (seed, epoch, query)."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from gradatim.tasks import RetrievalTask, draw_rows, heterogeneous, homogeneous, to_multi_positive

QUERIES = {f"q{i}": f"query {i}" for i in range(400)}
CORPUS = {f"d{i}": f"text {i}" for i in range(500)}
QRELS = {f"q{i}": {f"d{i}": 3, f"d{i + 1}": 1, f"d{i + 2}": 1} for i in range(400)}
TASK = RetrievalTask("toy", QUERIES, CORPUS, QRELS)
POOL = {f"q{i}": [f"d{(i + j) % 500}" for j in range(10, 30)] for i in range(400)}


def test_clean_labels_are_gold_then_links_in_any_order():
    marked = homogeneous(TASK, POOL, rho=0.0)
    assert all(docs[0] == f"d{q[1:]}" and set(docs) == set(QRELS[q]) for q, docs in marked.items())
    assert 100 < sum(docs[1] == f"d{int(q[1:]) + 1}" for q, docs in marked.items()) < 300


@pytest.mark.parametrize("rho", [0.2, 0.5, 1.0])
def test_false_positives_are_binomial_and_from_the_pool(rho):
    marked = homogeneous(TASK, POOL, rho=rho)
    wrong = [[d for d in docs if d not in QRELS[q]] for q, docs in marked.items()]
    counts = np.array([len(w) for w in wrong])
    assert counts.max() <= 3
    assert abs(counts.mean() - 3 * rho) < 0.15
    assert abs(counts.var() - 3 * rho * (1 - rho)) < 0.15
    assert all(set(w) <= set(POOL[q]) for q, w in zip(marked, wrong, strict=True))
    # A false positive may stand anywhere but first: "first k" has no way to prefer the true ones.
    places = Counter(docs.index(d) for docs, w in zip(marked.values(), wrong, strict=True) for d in w)
    assert places[0] == 0
    assert min(places[1], places[2]) > 0.15 * counts.sum()


def test_humans_mark_the_gold_alone():
    marked = heterogeneous(TASK, POOL, human_share=0.5, rho=0.1)
    alone = [docs for docs in marked.values() if len(docs) == 1]
    assert 150 < len(alone) < 250
    assert all(docs == homogeneous(TASK, {}, 0.0)[q][:1] for q, docs in marked.items() if len(docs) == 1)
    assert all(len(d) == 1 for d in heterogeneous(TASK, POOL, 1.0, 0.5).values())


def test_draws_depend_on_seed_epoch_and_query_alone():
    marked = homogeneous(TASK, POOL, rho=0.3, seed=1)
    some = {q: marked[q] for q in ("q7", "q3")}
    every = {row.query: row for row in draw_rows(marked, POOL, select="random", seed=1, epoch=2)}
    assert [row == every[row.query] for row in draw_rows(some, POOL, select="random", seed=1, epoch=2)] == [
        True,
        True,
    ]
    for seed, epoch in ((2, 2), (1, 3)):
        other = draw_rows(marked, POOL, select="random", seed=seed, epoch=epoch)
        assert sum(row != every[row.query] for row in other) > 390
    assert homogeneous(TASK.of_queries(["q7"]), POOL, 0.3, seed=1)["q7"] == marked["q7"]


def test_draws_do_not_use_the_salted_hash():
    code = (
        "from gradatim.tasks import draw_rows;"
        "print(draw_rows({'q': list('abcdef')}, {'q': list('uvwxyz')}, 6, 3, 'random', 5, 1))"
    )
    outs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": str(salt)}
        ).stdout
        for salt in (1, 2)
    }
    assert len(outs) == 1
    assert "Row" in outs.pop()


def test_rows_hold_positives_then_fresh_negatives():
    positives = {"q0": ["d0", "d1", "d2", "d3", "d4"]}
    pool = {"q0": ["d3", *(f"d{i}" for i in range(10, 40))]}
    seen = set()
    for epoch in range(5):
        (row,) = draw_rows(positives, pool, 8, 4, "first", 0, epoch)
        assert row.docs[:4] == ("d0", "d1", "d2", "d3")
        assert row.labels == (1, 1, 1, 1, 0, 0, 0, 0)
        assert len(set(row.docs)) == 8
        assert "d3" not in row.docs[4:]  # a known positive is never a negative, chosen or not
        seen |= set(row.docs[4:])
    assert len(seen) > 10


def test_random_selection_is_uniform_and_cycle_turns():
    positives, pool = {"q": list("abcde")}, {"q": list("uvwxyz")}
    counts = Counter(
        d for e in range(1000) for d in draw_rows(positives, pool, 6, 2, "random", 0, e)[0].docs[:2]
    )
    assert all(abs(counts[d] - 400) < 70 for d in "abcde")
    turns = ["".join(draw_rows(positives, pool, 6, 2, "cycle", 0, e)[0].docs[:2]) for e in range(6)]
    assert turns == ["ab", "bc", "cd", "de", "ea", "ab"]


def test_short_pools_repeat_and_empty_ones_pad():
    (row,) = draw_rows({"q": ["a"]}, {"q": ["n"]}, 4, 2)
    assert (row.docs, row.labels) == (("a", "n", "n", "n"), (1, 0, 0, 0))
    (row,) = draw_rows({"q": ["a", "b"]}, {}, 4, 2)
    assert (row.docs, row.labels) == (("a", "b", "a", "a"), (1, 1, -1, -1))


def test_dataset_columns_and_qrels_as_positives():
    data = to_multi_positive(QUERIES, {"q5": {"d5": 1, "d6": 3, "d7": 0}}, CORPUS, POOL, 4, 3)
    assert data.column_names == ["query", "doc_1", "doc_2", "doc_3", "doc_4", "label"]
    row = data[0]
    assert (row["query"], row["doc_1"], row["doc_2"], row["label"]) == (
        "query 5",
        "text 6",
        "text 5",
        [1, 1, 0, 0],
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_passages": 1}, "n_passages=1"),
        ({"n_passages": 4, "max_positives": 4}, "max_positives=4"),
        ({"max_positives": 0}, "max_positives=0"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw_rows({"q": ["a"]}, {"q": ["b"]}, **options)


def test_bad_probabilities_and_empty_queries_are_refused():
    with pytest.raises(ValueError, match=r"rho=1\.5"):
        homogeneous(TASK, POOL, 1.5)
    with pytest.raises(ValueError, match=r"human_share=-0\.1"):
        heterogeneous(TASK, POOL, -0.1, 0.0)
    with pytest.raises(ValueError, match="query 'q' has no positive"):
        draw_rows({"q": []}, {})
    with pytest.raises(ValueError, match="no rows"):
        to_multi_positive({}, {}, {}, {})
