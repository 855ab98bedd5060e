"""Metrics with ties against the mean over every order of the tied documents, and against pytrec_eval."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest

from gradatim.tasks import evaluate_run, retrieval_scores, shared_labels


def by_every_order(scores, gains, k):
    """MAP and NDCG@k averaged over all orders that the scores allow."""
    found = []
    for order in permutations(range(len(scores))):
        if any(scores[a] < scores[b] for a, b in pairwise(order)):
            continue
        gain = gains[list(order)]
        hits = gain > 0
        precision = (np.cumsum(hits) / np.arange(1, len(gain) + 1))[hits].mean()
        discount = 1 / np.log2(np.arange(2, k + 2))
        found.append((precision, gain[:k] @ discount / (np.sort(gains)[::-1][:k] @ discount)))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("seed", range(6))
def test_tied_groups_count_with_the_mean_over_their_orders(seed):
    rng = np.random.default_rng(seed)
    scores, gains = rng.integers(0, 3, (1, 7)), rng.integers(0, 3, (1, 7))
    gains[0, 0] = 2
    for k in (1, 3, 7):
        expected = by_every_order(scores[0], gains[0].astype(float), k)
        ours = retrieval_scores(scores, gains, k)
        np.testing.assert_allclose([ours["map"], ours[f"ndcg@{k}"]], expected, atol=1e-12)
        other = retrieval_scores(-scores, gains, k, distances=True)
        np.testing.assert_allclose([other["map"], other[f"ndcg@{k}"]], expected, atol=1e-12)


def test_without_ties_trec_agrees():
    rng = np.random.default_rng(0)
    scores, gains = rng.normal(size=(5, 30)), rng.integers(0, 3, (5, 30))
    run = {f"q{i}": {f"d{j}": float(s) for j, s in enumerate(row)} for i, row in enumerate(scores)}
    qrels = {f"q{i}": {f"d{j}": int(g) for j, g in enumerate(row)} for i, row in enumerate(gains)}
    theirs, ours = evaluate_run(run, qrels), retrieval_scores(scores, gains)
    np.testing.assert_allclose(ours.per_query["ndcg@10"], theirs.per_query["ndcg@10"], atol=1e-9)
    import pytrec_eval

    maps = pytrec_eval.RelevanceEvaluator(qrels, {"map"}).evaluate(run)
    np.testing.assert_allclose(ours.per_query["map"], [maps[q]["map"] for q in qrels], atol=1e-9)


def test_queries_without_relevant_documents_are_left_out():
    ours = retrieval_scores(np.zeros((2, 3)), np.array([[0, 0, 0], [1, 0, 0]]), k=50)
    assert ours.query_ids == ("1",)
    assert ours["map"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_labels_become_relevance():
    np.testing.assert_array_equal(shared_labels(np.array([1, 2]), np.array([2, 1])), [[0, 1], [1, 0]])
    a, b = np.array([[1, 1, 0]]), np.array([[1, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(shared_labels(a, b), [[2, 0]])


def test_bad_input_is_named():
    one = np.ones((1, 2))
    with pytest.raises(ValueError, match="NaN"):
        retrieval_scores(np.array([[np.nan, 1.0]]), one)
    with pytest.raises(ValueError, match="k must be"):
        retrieval_scores(one, one, 0)
    with pytest.raises(ValueError, match="at least 0"):
        retrieval_scores(one, -one)
    with pytest.raises(ValueError, match="nothing to measure"):
        retrieval_scores(one, 0 * one)
