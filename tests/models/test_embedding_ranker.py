"""A map on frozen vectors as a re-ranker, and two runs mixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradatim.losses import PairwiseCurriculumLoss
from gradatim.models import EmbeddingRanker, blend_run, choose_blend, rerank_run, score_run, train_reranker
from gradatim.tasks import evaluate_run
from tiny_encoder import WORDS, tiny_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def test_it_begins_as_the_encoders_cosine(encoder):
    ranker = EmbeddingRanker(encoder, 16, scale=7.0)
    pairs = [("sort matrix", "sum vector"), ("mean", "kernel fit"), ("sort matrix", "sort matrix")]
    q, d = (encoder.encode([pair[side] for pair in pairs]) for side in (0, 1))
    cosine = (q * d).sum(1) / np.linalg.norm(q, axis=1) / np.linalg.norm(d, axis=1)
    np.testing.assert_allclose(ranker.predict(pairs), 7.0 * cosine, rtol=1e-4)
    assert ranker.predict([]).shape == (0,)
    assert [name for name, _ in ranker.named_parameters()] == ["weight"]
    with torch.no_grad():
        ranker.weight.copy_(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))
    q, d = q @ ranker.weight.detach().numpy().T, d @ ranker.weight.detach().numpy().T
    mapped = (q * d).sum(1) / np.linalg.norm(q, axis=1) / np.linalg.norm(d, axis=1)
    np.testing.assert_allclose(ranker.predict(pairs, batch_size=2), 7.0 * mapped, rtol=1e-4)


def test_texts_it_was_told_are_not_encoded():
    ranker = EmbeddingRanker(None, 2).remember(["a", "b"], np.array([[1.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_allclose(ranker.predict([("a", "a"), ("a", "b")]), [20.0, 0.0])
    with pytest.raises(ValueError, match="2 numbers"):
        ranker.remember(["c"], np.zeros((1, 3)))
    with pytest.raises(ValueError, match="scale=0"):
        EmbeddingRanker(None, 2, scale=0)


def material():
    """Vectors in which a rotation, not the cosine, tells what belongs to what."""
    g = torch.Generator().manual_seed(0)
    docs = torch.randn(30, 8, generator=g)
    queries = docs @ torch.linalg.qr(torch.randn(8, 8, generator=g))[0] + docs
    names = {f"q{i}": f"query {i}" for i in range(30)}
    corpus = {f"d{i}": f"{WORDS[i]} {i}" for i in range(30)}
    run = {
        f"q{i}": {f"d{(i + j) % 30}": float(s) for j, s in enumerate(torch.rand(10, generator=g))}
        for i in range(30)
    }
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(30)}
    ranker = EmbeddingRanker(None, 8).remember(list(names.values()), queries.numpy())
    return ranker.remember(list(corpus.values()), docs.numpy()), names, corpus, run, qrels


def test_it_learns_with_the_curriculums_loss_and_trainer():
    ranker, names, corpus, run, qrels = material()
    before = evaluate_run(rerank_run(ranker, names, corpus, run), qrels)["mrr@10"]
    train_reranker(
        ranker, names, corpus, run, qrels, iterations=4, steps_per_iteration=16, learning_rate=1e-2
    )
    assert evaluate_run(rerank_run(ranker, names, corpus, run), qrels)["mrr@10"] > before + 0.05
    loss = PairwiseCurriculumLoss(ranker)([["query 0"], [corpus["d0"]], [corpus["d1"]]])
    loss.backward()
    assert float(ranker.weight.grad.abs().sum()) > 0


def test_the_start_is_kept_where_training_harms():
    ranker, names, corpus, run, qrels = material()
    held_out = {q: qrels[q] for q in list(qrels)[:10]}
    options = {"iterations": 3, "steps_per_iteration": 4, "validation_qrels": held_out, "patience": 2}
    wrong = {q: {f"d{(int(q[1:]) + 1) % 30}": 1} for q in qrels}  # learns the neighbour's passage
    history = train_reranker(
        ranker, names, corpus, run, wrong | held_out, learning_rate=1.0, keep_start=True, **options
    )
    assert history.start > max(history.validation)
    assert history.kept == -1
    assert len(history.validation) == 2  # patience counts from the start
    torch.testing.assert_close(ranker.weight.detach(), torch.eye(8))


def test_a_blend_is_the_formula():
    first = {"q": {"a": 9.0, "b": 5.0, "c": 4.0, "z": 1.0}}
    second = {"q": {"a": -2.0, "b": 0.5, "c": 3.0}}

    def z(values):
        return (np.array(values) - np.mean(values)) / np.std(values)

    for weight in (0.0, 0.3, 0.5, 0.7, 1.0):
        mixed = (1 - weight) * z([9, 5, 4]) + weight * z([-2, 0.5, 3])
        expected = [*np.array(["a", "b", "c"])[np.argsort(-mixed)], "z"]
        assert list(blend_run(first, second, weight)["q"]) == expected, weight
    assert list(blend_run(first, {"q": {"a": 1.0, "b": 1.0}}, 1.0)["q"]) == ["a", "b", "c", "z"]
    assert blend_run({"r": {"x": 1.0}}, {}, 0.5) == {"r": {"x": 1.0}}
    with pytest.raises(ValueError, match=r"weight=1\.5"):
        blend_run(first, second, 1.5)


def test_the_best_weight_is_chosen():
    first = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}, "r": {"a": 3.0, "b": 2.0, "c": 1.0}}
    second = {"q": {"a": 0.0, "b": 1.0, "c": 0.2}, "r": {"a": 0.0, "b": 1.0, "c": 0.2}}
    assert choose_blend(first, second, {"q": {"a": 1}, "r": {"a": 1}}) < 0.5
    assert choose_blend(first, second, {"q": {"b": 1}, "r": {"b": 1}}) > 0.5
    with pytest.raises(ValueError, match="no weights"):
        choose_blend(first, second, {"q": {"a": 1}}, ())


def test_scores_of_a_run_are_the_models():
    ranker, names, corpus, run, _ = material()
    found = score_run(ranker, names, corpus, run, top=3)
    assert all(len(docs) == 3 and set(docs) <= set(run[q]) for q, docs in found.items())
    one = next(iter(found["q3"]))
    assert found["q3"][one] == pytest.approx(float(ranker.predict([("query 3", corpus[one])])[0]), rel=1e-5)
