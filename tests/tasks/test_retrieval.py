"""Metrics against the formulas written out, BM25 against its own, and the task's checks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.tasks.retrieval import (
    RetrievalTask,
    bm25_run,
    dense_run,
    evaluate_run,
    pooled_negatives,
    rank_documents,
    ranked,
)


def by_hand(order, grades, k):
    """Recall, reciprocal rank and nDCG at k from a ranked list, as the textbook writes them."""
    relevant = {doc for doc, grade in grades.items() if grade >= 1}
    top = order[:k]
    recall = len(relevant & set(top)) / len(relevant)
    first = next((1 / (i + 1) for i, doc in enumerate(top) if doc in relevant), 0.0)
    gain = sum(grades.get(doc, 0) / math.log2(i + 2) for i, doc in enumerate(top))
    ideal = sum(g / math.log2(i + 2) for i, g in enumerate(sorted(grades.values(), reverse=True)[:k]))
    return recall, first, gain / ideal


@given(
    order=st.permutations([f"d{i}" for i in range(12)]),
    grades=st.dictionaries(st.sampled_from([f"d{i}" for i in range(12)]), st.integers(0, 3), min_size=1),
    depth=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_metrics_equal_the_formulas(order, grades, depth):
    if max(grades.values()) == 0:
        with pytest.raises(ValueError, match="no query has a document"):
            evaluate_run({"q": ranked(order)}, {"q": grades})
        return
    found = evaluate_run({"q": ranked(order[:depth])}, {"q": grades}, recall_at=(3, 10))
    recall, first, ndcg = by_hand(order[:depth], grades, 10)
    assert found["recall@10"] == pytest.approx(recall)
    assert found["mrr@10"] == pytest.approx(first)
    assert found["ndcg@10"] == pytest.approx(ndcg)
    assert found["recall@3"] == pytest.approx(by_hand(order[:depth], grades, 3)[0])


def test_per_query_values_missing_queries_and_the_gold_grade():
    qrels = {"a": {"x": 3, "y": 1}, "b": {"y": 1}, "c": {"z": 0}}
    found = evaluate_run({"a": ranked(["y", "x"])}, qrels, mrr_least_grade=3)
    assert found.query_ids == ("a", "b")  # c has nothing relevant; b was not retrieved
    assert found.per_query["mrr@10"].tolist() == [0.5, 0.0]
    assert found["recall@10"] == 0.5
    assert set(found.means()) == {"mrr@10", "ndcg@10", "recall@10", "recall@100"}
    with pytest.raises(KeyError, match="measured: mrr@10"):
        found["map"]
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_run({}, qrels, recall_at=(0,))


def test_ties_at_the_mrr_cut_keep_the_order_of_the_run():
    docs = [f"d{i:02d}" for i in range(20)]
    qrels = {"q": {"d09": 1, "d15": 1}}
    assert evaluate_run({"q": ranked(docs)}, qrels)["mrr@10"] == 0.1
    assert evaluate_run({"q": ranked(docs)}, {"q": {"d10": 1}})["mrr@10"] == 0.0


@given(seed=st.integers(0, 1000), k=st.integers(1, 9), values=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_rank_documents_is_a_stable_sort(seed, k, values):
    similarity = np.random.default_rng(seed).integers(values, size=(3, 7)).astype(float)
    columns, best = rank_documents(similarity, k)
    expected = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(columns, expected)
    np.testing.assert_array_equal(best, np.take_along_axis(similarity, expected, 1))


def test_nan_similarities_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        rank_documents(np.array([[0.0, np.nan]]), 1)


def test_dense_run_in_chunks_equals_one_product():
    rng = np.random.default_rng(0)
    queries, docs = rng.normal(size=(5, 4)), rng.normal(size=(9, 4))
    names = [f"d{i}" for i in range(9)]
    whole = dense_run(queries, docs, list("abcde"), names, k=3)
    assert whole == dense_run(queries, docs, list("abcde"), names, k=3, chunk=2)
    for i, query in enumerate("abcde"):
        best = [names[j] for j in np.argsort(-(docs @ queries[i]))[:3]]
        assert sorted(whole[query], key=lambda d: -whole[query][d]) == best


@pytest.fixture
def task():
    corpus = {
        "cats": "cats purr softly when cats sleep",
        "dogs": "dogs bark loudly",
        "both": "cats chase dogs",
        "none": "birds sing",
    }
    return RetrievalTask("toy", {"q": "cats purr", "r": "dogs"}, corpus, {"q": {"cats": 3}, "r": {"dogs": 1}})


def test_bm25_equals_the_formula(task):
    k1, b = 1.4, 0.4
    texts = {name: text.replace("when ", "").split() for name, text in task.corpus.items()}
    mean = np.mean([len(words) for words in texts.values()])

    def score(query, words):
        total = 0.0
        for term in query.split():
            holds = sum(term in other for other in texts.values())
            idf = math.log(1 + (len(texts) - holds + 0.5) / (holds + 0.5))
            tf = words.count(term)
            total += idf * tf / (tf + k1 * (1 - b + b * len(words) / mean))
        return total

    run = bm25_run(task)
    for query, text in task.queries.items():
        scores = {name: score(text, words) for name, words in texts.items()}
        expected = sorted((n for n in scores if scores[n] > 0), key=lambda n: -scores[n])
        assert sorted(run[query], key=lambda d: -run[query][d]) == expected


def test_negatives_are_pooled_without_the_relevant(task):
    runs = [bm25_run(task), {"q": ranked(["none", "cats"]), "r": {}}]
    assert pooled_negatives(task, runs, k=2) == {"q": ["both", "none"], "r": ["both"]}


def test_task_queries_grades_and_digest(task):
    assert task.relevant("q") == ["cats"]
    assert task.doc_ids == ("cats", "dogs", "both", "none")
    only = task.of_queries(["r"])
    assert (list(only.queries), dict(only.qrels)) == (["r"], {"r": {"dogs": 1}})
    assert only.sha256 != task.sha256
    assert task.sha256 == RetrievalTask("other", task.queries, task.corpus, task.qrels).sha256
    with pytest.raises(ValueError, match="no query 'z'"):
        task.of_queries(["z"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": {}}, "queries is empty"),
        ({"corpus": {}}, "corpus is empty"),
        ({"qrels": {}}, "qrels is empty"),
        ({"qrels": {"x": {"cats": 1}}}, "query 'x', not in queries"),
        ({"qrels": {"q": {"cows": 1}}}, "document 'cows', not in corpus"),
        ({"qrels": {"q": {"cats": -1}}}, "grade -1"),
    ],
)
def test_tasks_that_do_not_hold_together_are_refused(task, change, message):
    parts = {"queries": task.queries, "corpus": task.corpus, "qrels": task.qrels} | change
    with pytest.raises(Exception, match=message):
        RetrievalTask("toy", **parts)
