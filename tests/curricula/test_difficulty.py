"""The heuristics against SciPy and loops over their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gaussian_kde

from gradatim.curricula import (
    KDEScore,
    NormalizedScore,
    ReciprocalRank,
    pairwise_difficulty,
    pointwise_difficulty,
)
from gradatim.curricula.difficulty import Heuristic, resolve_heuristic

EVERY = [ReciprocalRank(), NormalizedScore(), KDEScore()]
every_heuristic = pytest.mark.parametrize("heuristic", EVERY, ids=lambda h: type(h).__name__)


def scores_of(count, seed=0):
    """BM25-like: a few high scores, many low ones."""
    return np.sort(np.random.default_rng(seed).gamma(2.0, 3.0, count))[::-1].copy()


@pytest.mark.parametrize("bandwidth", ["scott", "silverman", 0.3])
@pytest.mark.parametrize("count", [2, 3, 17, 100])
def test_kde_is_scipys_distribution_function(count, bandwidth):
    scores = scores_of(count, seed=count)
    density = gaussian_kde(scores, bw_method=bandwidth)
    expected = [density.integrate_box_1d(-np.inf, score) for score in scores]
    found = KDEScore(bandwidth)(torch.from_numpy(scores))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-13)


def test_kde_at_points_alone_is_the_distribution_function_there():
    scores, points = scores_of(40), np.array([-3.0, 0.5, 7.7, 100.0])
    density = gaussian_kde(scores)
    expected = [density.integrate_box_1d(-np.inf, point) for point in points]
    found = KDEScore().at(torch.from_numpy(scores)[None], torch.from_numpy(points)[None])
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-13)


def test_kde_in_blocks_equals_query_by_query(monkeypatch):
    scores = torch.from_numpy(np.stack([scores_of(30, seed) for seed in range(9)]))
    whole = KDEScore()(scores)
    monkeypatch.setattr("gradatim.curricula.difficulty._BLOCK", 2 * 30 * 30)
    torch.testing.assert_close(KDEScore()(scores), whole, rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.stack([KDEScore()(row) for row in scores]), whole, rtol=0, atol=1e-15)


def test_norm_and_recip_equal_loops():
    scores = scores_of(25, 3).tolist()
    low, high = min(scores), max(scores)
    shuffled = np.random.default_rng(0).permutation(25)
    given = torch.tensor(scores)[shuffled]
    recip, norm = ReciprocalRank()(given), NormalizedScore()(given)
    for place, original in enumerate(shuffled):
        assert recip[place].item() == pytest.approx(1 / (1 + original))
        assert norm[place].item() == pytest.approx((scores[original] - low) / (high - low), abs=1e-6)


def test_of_equal_scores_the_earlier_place_ranks_higher():
    found = ReciprocalRank()(torch.tensor([2.0, 5.0, 2.0, 5.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor([1 / 3, 1.0, 1 / 4, 1 / 2, 1 / 5]))


@every_heuristic
def test_padded_rows_equal_rows_alone(heuristic):
    lengths, width = [1, 4, 9, 6], 9
    rows = [torch.from_numpy(scores_of(n, n)) for n in lengths]
    scores = torch.full((4, width), 1e9, dtype=torch.float64)
    scores[0, 3] = math.nan  # what stands in padding is nobody's business
    mask = torch.zeros(4, width, dtype=torch.bool)
    for i, row in enumerate(rows):
        scores[i, : len(row)], mask[i, : len(row)] = row, True
    found = heuristic(scores, mask)
    assert (found[~mask] == 0).all()
    for i, row in enumerate(rows):
        torch.testing.assert_close(found[i, : len(row)], heuristic(row), rtol=0, atol=1e-15)


@every_heuristic
@given(
    scores=st.lists(st.integers(-4000, 4000), min_size=1, max_size=12),
    scale=st.floats(0.5, 4.0),
    shift=st.floats(-50, 50),
)
@settings(max_examples=50, deadline=None)
def test_in_range_monotone_and_blind_to_scale_and_shift(heuristic, scores, scale, shift):
    r = torch.tensor(scores, dtype=torch.float64) / 8
    found = heuristic(r)
    assert ((found >= 0) & (found <= 1)).all()
    order = r.argsort(descending=True, stable=True)
    assert (found[order].diff() <= 1e-12).all()
    torch.testing.assert_close(heuristic(r * scale + shift), found, rtol=0, atol=1e-9)


def test_one_document_and_equal_scores_say_nothing():
    for heuristic in (NormalizedScore(), KDEScore()):
        assert heuristic(torch.tensor([3.7])).tolist() == [0.5]
        assert heuristic(torch.tensor([[0.1] * 5])).tolist() == [[0.5] * 5]
    assert ReciprocalRank()(torch.tensor([3.7])).tolist() == [1.0]


@every_heuristic
def test_precision_of_the_scores_is_kept(heuristic):
    scores = torch.from_numpy(scores_of(20))
    single = heuristic(scores.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), heuristic(scores), rtol=0, atol=1e-6)


def test_kde_is_near_uniform_where_norm_crowds_near_zero():
    scores = torch.from_numpy(scores_of(1000, 5))
    kde, norm = KDEScore()(scores), NormalizedScore()(scores)
    even = torch.linspace(1, 0, 1000, dtype=torch.float64)
    assert (kde - even).abs().max() < 0.06
    assert norm.median() < 0.25


@every_heuristic
def test_bad_scores_are_refused(heuristic):
    with pytest.raises(ValueError, match=r"score nan at \[1, 2\] is not finite"):
        heuristic(torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, math.nan]]))
    with pytest.raises(ValueError, match=r"run of query row \[1\] is empty"):
        heuristic(torch.ones(2, 2), torch.tensor([[True, False], [False, False]]))


@pytest.mark.parametrize("bandwidth", ["scot", 0, -1.0, math.nan])
def test_unknown_bandwidths_are_refused(bandwidth):
    with pytest.raises(ValueError, match="bandwidth="):
        KDEScore(bandwidth)


def test_difficulties_equal_the_formulas():
    height = torch.tensor([0.9, 0.9, 0.2, 0.2])
    relevant = torch.tensor([True, False, True, False])
    torch.testing.assert_close(pointwise_difficulty(height, relevant), torch.tensor([0.9, 0.1, 0.2, 0.8]))
    positive, negatives = torch.tensor([0.8, 0.1]), torch.tensor([[0.4, 0.6, 0.0], [1.0, 0.5, 0.2]])
    # (H+ - H- + 1) / 2 with the highest-ranked negative, the hardest pair.
    torch.testing.assert_close(pairwise_difficulty(positive, negatives), torch.tensor([0.6, 0.05]))
    assert pairwise_difficulty(torch.zeros(1), torch.ones(1, 1)).item() == 0
    assert pairwise_difficulty(torch.ones(1), torch.zeros(1, 1)).item() == 1


def test_names_stand_for_heuristics():
    for name, kind in (("recip", ReciprocalRank), ("norm", NormalizedScore), ("kde", KDEScore)):
        assert isinstance(resolve_heuristic(name), kind)
        assert isinstance(resolve_heuristic(name), Heuristic)
    with pytest.raises(ValueError, match="'rank' is unknown; choose recip, norm, kde"):
        resolve_heuristic("rank")
