"""Texts with intents from a user's file."""

from __future__ import annotations

import json

import pytest
import torch

from gradatim.tasks.intents import hashed_ngrams, read_intents


def written(folder, **parts):
    file = folder / "data.json"
    file.write_text(json.dumps(parts), encoding="utf-8")
    return file


def test_a_file_is_read_as_it_stands(tmp_path):
    train = [["pay the bill", "pay"], ["what time is it", "time"], ["tell me the time", "time"]]
    file = written(tmp_path, train=train, test=[["the time please", "time"], ["pay now", "pay"]], oos_test=[])
    intents = read_intents(file)
    assert intents.names == ("pay", "time")
    assert intents.train_texts == tuple(t for t, _ in train)
    assert intents.train_labels.tolist() == [0, 1, 1]
    assert intents.test_labels.tolist() == [1, 0]


def test_vectors_are_fixed_and_of_one_length():
    texts = ["pay the bill", "the bill", "pay the bill"]
    x = hashed_ngrams(texts, 64)
    torch.testing.assert_close(x.norm(dim=1), torch.full((3,), 8.0))
    assert torch.equal(x[0], x[2])
    assert torch.equal(x[1], hashed_ngrams(texts[1:2], 64)[0])
    # "the bill" has three of the five words and pairs of "pay the bill": cos = 3 / sqrt(3 * 5)
    wide = hashed_ngrams(texts, 2**14)
    assert float(wide[0] @ wide[1]) / 2**14 == pytest.approx((3 / 5) ** 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'expected {"train"'),
        ('{"train": 3, "test": []}', '"train" must be a list'),
        ('{"train": [["a"]], "test": []}', "entry 0 of"),
        ('{"train": [["a", "x"], ["b", "y"]], "test": [["c", "z"]]}', "'z' of the test has no train"),
        ('{"train": [["a", "x"], ["b", "y"]], "test": [["c", "x"]]}', "'y' has no test text"),
        ('{"train": [["a", "x"]], "test": [["c", "x"]]}', "needs two intents"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    file = tmp_path / "data.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_intents(file)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_small\.json"):
        read_intents(tmp_path / "nowhere.json")
