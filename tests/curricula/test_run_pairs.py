"""Pairs drawn from a run: who may be drawn, how often, and that seed, epoch and index alone decide."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.utils.data import DataLoader

from gradatim.curricula import Pair, RunPairs, attach_difficulty, pairs_to_dataset, sample_pairs
from gradatim.curricula.run_pairs import ranked_documents, uniform_lots

RUN = {
    "a": {"d1": 9.0, "d2": 7.0, "d3": 7.0, "d4": 1.0},
    "b": {"d1": 4.0, "d5": 2.0, "d6": 1.0},
    "c": {"d2": 3.0, "d4": 2.0},  # its positive is not in the run
    "d": {"d1": 1.0, "d2": 0.5},  # everything equally relevant
}
QRELS = {
    "a": {"d1": 3, "d3": 1, "d9": 3},
    "b": {"d5": 2, "d6": 0},
    "c": {"d9": 1, "d2": 0},
    "d": {"d1": 1, "d2": 1},
    "e": {"d1": 1},  # not in the run at all
}
ALLOWED = {
    ("a", "d1"): {"d2", "d3", "d4"},
    ("a", "d3"): {"d2", "d4"},
    ("b", "d5"): {"d1", "d6"},
}


def test_only_lower_labelled_documents_of_the_run_are_negatives():
    for by in ("query", "positive"):
        pairs = sample_pairs(RUN, QRELS, seed=0, by=by, count=600, negatives=2)
        drawn: dict[tuple[str, str], set[str]] = {}
        for pair in pairs:
            drawn.setdefault((pair.query, pair.positive), set()).update(pair.negatives)
        assert drawn == ALLOWED


def test_a_pass_covers_every_query_or_every_positive_once():
    for epoch in range(3):
        source = RunPairs(RUN, QRELS, seed=5, by="positive")
        source.set_epoch(epoch)
        assert sorted((p.query, p.positive) for p in source) == sorted(ALLOWED)
        source = RunPairs(RUN, QRELS, seed=5)
        source.set_epoch(epoch)
        assert sorted(p.query for p in source) == ["a", "b"]


def test_draws_are_uniform():
    pairs = sample_pairs(RUN, QRELS, seed=1, count=4000)
    positives = Counter(p.positive for p in pairs if p.query == "a")
    assert sum(positives.values()) == 2000
    assert chisquare([positives["d1"], positives["d3"]]).pvalue > 1e-3
    negatives = Counter(p.negatives[0] for p in pairs if p.positive == "d1")
    assert chisquare([negatives[d] for d in ("d2", "d3", "d4")]).pvalue > 1e-3
    lots = uniform_lots(3, np.arange(5000) % 7, np.arange(5000), 4)
    assert chisquare(np.histogram(lots[:, 2], 20, (0, 1))[0]).pvalue > 1e-3
    assert np.abs(np.corrcoef(lots.T) - np.eye(4)).max() < 0.05
    assert ((lots >= 0) & (lots < 1)).all()


def test_a_pair_follows_from_seed_epoch_and_index_alone():
    source = RunPairs(RUN, QRELS, seed=2, negatives=2)
    stream = sample_pairs(RUN, QRELS, seed=2, count=7 * len(source), negatives=2)
    for epoch in (3, 0, 6, 1):
        source.set_epoch(epoch)
        backwards = [source[i] for i in reversed(range(len(source)))][::-1]
        assert backwards == stream[epoch * len(source) : (epoch + 1) * len(source)]
    assert source[-1] == source[len(source) - 1]
    assert sample_pairs(RUN, QRELS, seed=3, count=14, negatives=2) != stream
    assert len(set(stream)) > len(ALLOWED)
    loaded = DataLoader(source, batch_size=None, num_workers=0, sampler=[1, 0])
    assert list(loaded) == [source[1], source[0]]


@pytest.mark.slow
def test_another_process_draws_the_same():
    code = (
        "from gradatim.curricula import sample_pairs; "
        f"print(sample_pairs({RUN!r}, {QRELS!r}, seed=11, count=20, negatives=2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(sample_pairs(RUN, QRELS, seed=11, count=20, negatives=2))


def test_least_grade_and_ties_by_id():
    assert {p.positive for p in sample_pairs(RUN, QRELS, 0, count=50, least_grade=3)} == {"d1"}
    assert ranked_documents("a", RUN["a"]) == ["d1", "d3", "d2", "d4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "doc"}, "by='doc' is unknown; choose query or positive"),
        ({"negatives": 0}, "negatives=0"),
        ({"least_grade": 0}, "least_grade=0"),
        ({"count": 0}, "count=0"),
        ({"seed": -1}, "seed=-1"),
        ({"least_grade": 9}, "no query has a document of grade 9 or more"),
        ({"run": {**RUN, "a": {}}}, "run of query 'a' is empty"),
        ({"run": {**RUN, "b": {"d5": float("inf"), "d6": 1.0}}}, "score inf of .'b', 'd5'. is not finite"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample_pairs(**{"run": RUN, "qrels": QRELS, "seed": 0, **options})
    with pytest.raises(IndexError):
        RunPairs(RUN, QRELS, 0)[2]


# Difficulties on a dataset ----------------------------------------------------------------------------------


def texts():
    return {q: f"query {q}" for q in RUN}, {f"d{i}": f"text {i}" for i in range(10)}


def test_pairwise_difficulty_of_a_dataset():
    pairs = [Pair("a", "d1", ("d4", "d2")), Pair("b", "d5", ("d1", "d9"))]
    dataset = attach_difficulty(pairs_to_dataset(pairs, *texts()), RUN, "recip")
    assert dataset.column_names == ["query", "positive", "negative", "negative_2", "label"]
    assert dataset[0]["negative_2"] == "text 2"
    expected = [[(1 - 1 / 4 + 1) / 2, (1 - 1 / 3 + 1) / 2], [(1 / 2 - 1 + 1) / 2, (1 / 2 - 0 + 1) / 2]]
    np.testing.assert_allclose(dataset["label"], expected, rtol=1e-6)
    single = attach_difficulty(pairs_to_dataset([Pair("a", "d2", ("d4",))], *texts()), RUN, "norm")
    assert single["label"][0] == pytest.approx((6 / 8 - 0 + 1) / 2)


def test_pointwise_labels_hold_the_grade_and_the_height():
    from datasets import Dataset

    plain = Dataset.from_dict(
        {
            "query": ["q", "q"],
            "doc": ["x", "y"],
            "query_id": ["a", "a"],
            "doc_id": ["d2", "d9"],
            "relevance": [0, 3],
        }
    )
    dataset = attach_difficulty(plain, RUN, "norm")
    assert dataset.column_names == ["query", "doc", "label"]
    np.testing.assert_allclose(dataset["label"], [[0, 0.75], [3, 0.0]])


def test_datasets_that_cannot_be_looked_up_are_refused():
    dataset = pairs_to_dataset([Pair("a", "d1", ("d4",))], *texts())
    with pytest.raises(ValueError, match="no column query_id"):
        attach_difficulty(dataset.remove_columns("query_id"), RUN, "norm")
    with pytest.raises(ValueError, match="positive_id and negative_id, or doc_id and relevance"):
        attach_difficulty(dataset.remove_columns("negative_id"), RUN, "norm")
    with pytest.raises(ValueError, match="the run has no query 'a'"):
        attach_difficulty(dataset, {"b": RUN["b"]}, "norm")
    with pytest.raises(ValueError, match="run of query 'a' is empty"):
        attach_difficulty(dataset, {"a": {}}, "norm")
    with pytest.raises(ValueError, match="no pairs"):
        pairs_to_dataset([], *texts())


def test_difficulty_of_the_docstring_task_separates_right_from_wrong_positives():
    """What the curriculum reads: a true positive is easier on average than a random document of the run."""
    g = torch.Generator().manual_seed(0)
    from gradatim.curricula.run_pairs import heuristic_table

    run = {f"q{i}": {f"d{j}": float(v) for j, v in enumerate(torch.rand(20, generator=g))} for i in range(50)}
    table = heuristic_table(run, list(run), "kde", chunk=7)
    top = [max(run[q], key=run[q].get) for q in run]
    assert np.mean([table[q][d] for q, d in zip(run, top, strict=True)]) > 0.9
    assert np.mean([h for row in table.values() for h in row.values()]) == pytest.approx(0.5, abs=1e-6)
