"""Hamming search against counting bits one by one, and the order of ties."""

from __future__ import annotations

import numpy as np
import pytest

from gradatim.inference import HammingIndex, hamming_distances


def codes(n, width, seed=0):
    made = np.random.default_rng(seed).integers(0, 256, (n, width)).astype(np.uint8)
    made[n // 2 :] = made[: n - n // 2]  # every distance at least twice
    return made


@pytest.mark.parametrize("width", [1, 3, 4, 8, 16, 33])
def test_equals_brute_force_with_ties_by_row(width):
    stored, asked = codes(300, width), codes(20, width, 1)
    bits = np.unpackbits(stored, axis=1)[None] != np.unpackbits(asked, axis=1)[:, None]
    distances = bits.sum(axis=2)
    np.testing.assert_array_equal(hamming_distances(asked, stored), distances)
    for k in (1, 7, 300):
        found, rows = HammingIndex(stored).query(asked, k)
        np.testing.assert_array_equal(rows, np.argsort(distances, axis=1, kind="stable")[:, :k])
        np.testing.assert_array_equal(found, np.sort(distances, axis=1)[:, :k])
        assert found.dtype == np.uint16


def test_a_seed_gives_ties_a_random_order_of_its_own():
    stored = np.zeros((200, 2), np.uint8)
    stored[100:] = 255
    (rows, again, other) = (
        HammingIndex(stored, random_state=seed).query(np.zeros((1, 2), np.uint8), 120)[1][0]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(rows, again)
    assert not np.array_equal(rows, other)
    assert set(rows[:100]) == set(range(100))
    assert not np.array_equal(rows[:100], np.arange(100))


def test_two_threads_give_the_same_and_k_beyond_the_index_gives_all():
    stored = codes(500, 8)
    index = HammingIndex(stored)
    for a, b in zip(index.query(stored, 9), index.query(stored, 9, n_jobs=2), strict=True):
        np.testing.assert_array_equal(a, b)
    assert index.query(stored[:1], 10_000)[1].shape == (1, 500)
    assert index.query(stored[:0], 3)[0].shape == (0, 3)
    assert len(index) == 500


def test_short_list_is_ordered_by_cosine():
    rng = np.random.default_rng(0)
    stored, vectors = codes(60, 2), rng.normal(size=(60, 5))
    asked, query_vectors = codes(4, 2, 3), rng.normal(size=(4, 5))
    cosines, rows = HammingIndex(stored).query_then_rank(asked, query_vectors, vectors, k=5, shortlist=20)
    _, short = HammingIndex(stored).query(asked, 20)
    for q in range(4):
        every = [
            float(
                query_vectors[q] @ vectors[r] / np.linalg.norm(query_vectors[q]) / np.linalg.norm(vectors[r])
            )
            for r in short[q]
        ]
        best = np.argsort(every)[::-1][:5]
        np.testing.assert_array_equal(rows[q], short[q][best])
        np.testing.assert_allclose(cosines[q], np.array(every)[best])


def test_bad_input_is_named():
    stored = codes(10, 2)
    with pytest.raises(ValueError, match="packed bits"):
        HammingIndex(stored[0:0].reshape(0, 2)[:, :0])
    with pytest.raises(ValueError, match="no row"):
        HammingIndex(stored[:0])
    with pytest.raises(ValueError, match="queries have 3 bytes, the index 2"):
        HammingIndex(stored).query(codes(2, 3))
    with pytest.raises(ValueError, match="k must be at least 1"):
        HammingIndex(stored).query(stored, 0)
    with pytest.raises(ValueError, match="one real vector per code"):
        HammingIndex(stored).query_then_rank(stored, np.zeros((10, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match="65535"):
        HammingIndex(np.zeros((1, 8192), np.uint8))
