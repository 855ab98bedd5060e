"""SEAL and the re-ranker in an index: made from the folder, asked, sharded, kept."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest
from folders import content, make_folder, put, text

from gradatim.inference.search import (
    FolderIndex,
    IndexSettings,
    SearchError,
    build_index,
    reranker_building,
    seal_building,
)
from gradatim.inference.search.own_questions import own_question, own_questions
from gradatim.inference.search.passages import StoredPassage
from gradatim.inference.search.reranking import load_blend, load_reranker, rerank

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from tiny_encoder import tiny_encoder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(seal_building, "FEWEST_STEPS", 2)
    monkeypatch.setattr(seal_building, "MOST_STEPS", 2)
    monkeypatch.setattr(seal_building, "BATCH", 8)
    monkeypatch.setattr(reranker_building, "ITERATIONS", 2)
    monkeypatch.setattr(reranker_building, "STEPS", 2)


def test_own_questions_are_first_sentences():
    rest = " ".join(["word"] * 20)
    passage = StoredPassage("f", 0, "Title", f"How the kernel is applied to data. {rest}")
    assert own_question(passage) == ("How the kernel is applied to data.", f"Title\n{rest}")
    for said in ("Too short. " + rest, "No sentence " + rest, "This is a fine sentence. but no rest"):
        assert own_question(StoredPassage("f", 0, "", said)) is None
    many = [StoredPassage("f", i, "", f"Question number {i} about things. {rest}") for i in range(9)]
    assert len(own_questions(many, 5)) == 5
    # The choice depends on the texts, not on where they stand.
    assert {q for _, q, _ in own_questions(many, 5)} == {q for _, q, _ in own_questions(many[::-1], 5)}


def test_reranking_orders_the_first_hits_alone():
    class Lengths:
        def predict(self, pairs):
            return np.array([len(doc) for _, doc in pairs], np.float32)

    found = [(9.0 - i, StoredPassage("f", i, "", "x" * (i % 3))) for i in range(6)]
    assert [p.number for _, p in rerank("q", found, Lengths(), depth=4)] == [2, 1, 0, 3]
    assert rerank("q", [], Lengths()) == []
    # Mixed: both at mean 0 and deviation 1.
    first, second = np.array([9.0, 8.0, 7.0, 6.0]), np.array([0.0, 1.0, 2.0, 0.0])
    mixed = 0.4 * (first - first.mean()) / first.std() + 0.6 * (second - second.mean()) / second.std()
    got = rerank("q", found, Lengths(), depth=4, blend=0.6)
    assert [p.number for _, p in got] == np.argsort(-mixed).tolist()
    np.testing.assert_allclose([s for s, _ in got], np.sort(mixed)[::-1])
    assert [p.number for _, p in rerank("q", found, Lengths(), depth=4, blend=0.0)] == [0, 1, 2, 3]


def test_an_encoders_folder_ranks_by_cosine(encoder):
    ranker = load_reranker(encoder)
    found = [
        (1.0, StoredPassage("f", i, "", text)) for i, text in enumerate(("sort rows", "mean of a matrix"))
    ]
    got = rerank("mean of a matrix", found, ranker)
    assert [p.number for _, p in got] == [1, 0]
    assert got[0][0] == pytest.approx(1, abs=1e-5)
    vectors = ranker.encoder.encode(["mean of a matrix", "sort rows"])
    cosine = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert got[1][0] == pytest.approx(cosine, abs=1e-5)


def test_a_rerankers_weight_is_read_and_checked(tmp_path):
    assert load_blend(str(tmp_path)) == load_blend("no/such/name") == 1.0
    put(tmp_path / "blend.json", '{"reranker": 0.25}')
    assert load_blend(str(tmp_path)) == 0.25
    for bad in ('{"reranker": 2}', '{"reranker": true}', '{"reranker": NaN}', "[]", "{", '{"weight": 1}'):
        put(tmp_path / "blend.json", bad)
        with pytest.raises(SearchError, match="make it again"):
            load_blend(str(tmp_path))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tiny_encoder(folder).save_pretrained(str(folder / "tiny"))
    return str(folder / "tiny")


@pytest.mark.slow
def test_seal_answers_from_any_number_of_shards(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "docs", 8)
    put(folder / "needle.txt", "the quick brown needle jumps over lazy dogs " * 3)
    build_index(folder, tmp_path / "one", IndexSettings(methods=("seal",)))
    model = next(p for p in (tmp_path / "one").glob("g*/shared/generator"))
    monkeypatch.setattr(
        seal_building, "train_generator", lambda passages, home, device, tell: copied(model, home)
    )
    build_index(folder, tmp_path / "many", IndexSettings(methods=("seal",), shards=3))
    one, many = FolderIndex(tmp_path / "one"), FolderIndex(tmp_path / "many")
    assert one.methods == ("bm25", "seal")
    assert one.search("quick brown needle", 8, "seal").hits
    for question in ("quick brown needle", "matrix norm of axis", "🙂", "x" * 3000):
        a, b = (ix.search(question, 5, "seal").hits for ix in (one, many))
        # Ranges add up, keys are added in the same order: no digit differs.
        assert a == b


def copied(source, home):
    import shutil

    shutil.copytree(source, home, dirs_exist_ok=True)
    return seal_building.load_generator(str(home))[1]


@pytest.mark.slow
def test_a_generator_is_kept_until_much_is_new(tmp_path):
    folder = make_folder(tmp_path / "docs", 8)
    settings = IndexSettings(methods=("seal",))
    build_index(folder, tmp_path / "ix", settings)
    weights = {n: d for n, d in content(tmp_path / "ix").items() if "generator" in n}
    assert weights
    put(folder / "a/file00.txt", text(random.Random(1), 90), age=30)
    build_index(folder, tmp_path / "ix", settings)
    assert weights == {n: d for n, d in content(tmp_path / "ix").items() if "generator" in n}


def test_an_index_with_its_own_reranker(tmp_path, encoder):
    folder = make_folder(tmp_path / "docs", 2)
    rng = random.Random(0)
    lines = [f"{text(rng, 6)}. {text(rng, 60)}" for _ in range(60)]
    for i, line in enumerate(lines):
        put(folder / f"q{i}.txt", line)
    settings = IndexSettings(encoder=encoder, reranker=True)
    build_index(folder, tmp_path / "ix", settings)
    index = FolderIndex(tmp_path / "ix")
    plain = index.search("matrix norm sort", 5)
    ranked = index.search("matrix norm sort", 5, rerank="own")
    assert ranked.rerank == "own"
    assert len(ranked.hits) == len(plain.hits) == 5
    scores = [h.score for h in ranked.hits]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= load_blend(str(next((tmp_path / "ix").glob("g*/shared/reranker")))) <= 1
    few = make_folder(tmp_path / "few", 2)
    with pytest.raises(SearchError, match="index without --reranker"):
        build_index(few, tmp_path / "ix2", settings)
