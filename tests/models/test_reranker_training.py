"""Training a re-ranker from a run, and re-ranking another."""

from __future__ import annotations

import pytest
import torch

from gradatim.curricula import LinearCurriculum
from gradatim.curricula.run_pairs import Pair
from gradatim.models import ConvKNRM, load_cross_encoder, rerank_run, train_reranker
from gradatim.models.reranker_training import _groups, _pairwise, _pointwise
from gradatim.tasks import evaluate_run
from tiny_encoder import WORDS, tiny_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def collection(count=24, docs=8):
    """The relevant document repeats the query's word; the first stage ranks at random."""
    g = torch.Generator().manual_seed(0)
    queries = {f"q{i}": WORDS[i % len(WORDS)] for i in range(count)}
    corpus = {f"d{i}": f"{WORDS[i % len(WORDS)]} {WORDS[(5 * i + 3) % len(WORDS)]}" for i in range(count)}
    run, qrels = {}, {}
    for i, query in enumerate(queries):
        others = [f"d{j}" for j in torch.randperm(count, generator=g).tolist() if j != i][: docs - 1]
        scores = torch.rand(docs, generator=g).tolist()
        run[query] = dict(zip([f"d{i}", *others], scores, strict=True))
        qrels[query] = {f"d{i}": 2}
    return queries, corpus, run, qrels


SMALL = {"dim": 8, "filters": 8, "max_query_tokens": 4, "max_doc_tokens": 8}
OPTIONS = {"iterations": 4, "steps_per_iteration": 8, "batch_size": 8, "learning_rate": 1e-2}


def mrr(model, material):
    queries, corpus, run, qrels = material
    return evaluate_run(rerank_run(model, queries, corpus, run, top=8), qrels)["mrr@10"]


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_it_learns_with_and_without_a_curriculum(encoder, kind):
    material = collection()
    for curriculum in (None, LinearCurriculum(2, iteration_size=64)):
        model = ConvKNRM.from_sentence_transformer(encoder, **SMALL)
        before = mrr(model, material)
        history = train_reranker(model, *material, kind=kind, curriculum=curriculum, **OPTIONS)
        assert mrr(model, material) > max(0.8, before)
        assert history.losses[-1] < history.losses[0]
        assert history.validation == ()
        assert history.kept == 3
        assert not model.training


def test_the_same_seed_trains_the_same_model_and_leaves_global_state(encoder):
    def trained(**options):
        model = ConvKNRM.from_sentence_transformer(encoder, **SMALL)
        train_reranker(model, *collection(), **{**OPTIONS, "iterations": 1, **options})
        return model.output.weight.detach()

    before = torch.random.get_rng_state()
    one = trained(seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(trained(seed=3), one)
    assert not torch.equal(trained(seed=4), one)
    assert not torch.equal(trained(seed=3, curriculum=LinearCurriculum(0)), one)
    assert not torch.equal(trained(seed=3, curriculum=LinearCurriculum(0), heuristic="kde"),
                           trained(seed=3, curriculum=LinearCurriculum(0), heuristic="recip"))  # fmt: skip
    assert not torch.equal(trained(seed=3, loss="hinge"), one)


def test_the_best_iteration_is_kept_and_patience_ends_training(encoder, monkeypatch):
    queries, corpus, run, qrels = collection()
    held_out = {q: qrels[q] for q in list(qrels)[:6]}
    found = iter([0.2, 0.6, 0.6, 0.5, 0.9])
    states = []

    def watched(scored, judged, mrr_least_grade):
        states.append(model.output.weight.detach().clone())
        assert set(scored) == set(held_out)
        return {"mrr@10": next(found)}

    monkeypatch.setattr("gradatim.models.reranker_training.evaluate_run", watched)
    model = ConvKNRM.from_sentence_transformer(encoder, **SMALL)
    options = {**OPTIONS, "iterations": 5, "patience": 2}
    history = train_reranker(model, queries, corpus, run, qrels, validation_qrels=held_out, **options)
    assert history.validation == (0.2, 0.6, 0.6, 0.5)
    assert history.kept == 1
    assert len(history.losses) == 4
    assert torch.equal(model.output.weight, states[1])


@pytest.mark.parametrize(("unit", "expected"), [("iteration", [0, 3, 6, 9]), ("step", [0, 1, 2, 3])])
def test_positions_count_samples_and_steps(encoder, monkeypatch, unit, expected):
    seen = []
    progress = LinearCurriculum.progress

    def watched(self, position):
        seen.append(position)
        return progress(self, position)

    monkeypatch.setattr(LinearCurriculum, "progress", watched)
    model = ConvKNRM.from_sentence_transformer(encoder, **SMALL)
    options = {"iterations": 2, "steps_per_iteration": 2, "batch_size": 3}
    train_reranker(model, *collection(), curriculum=LinearCurriculum(9, unit), **options)
    assert seen == expected
    seen.clear()
    # One positive a query and 24 queries: a pass is 8 steps of 3.
    train_reranker(model, *collection(), curriculum=LinearCurriculum(9, "epoch"), **options)
    assert seen == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8])


def test_queries_under_validation_are_not_trained_on(encoder, monkeypatch):
    queries, corpus, run, qrels = collection()
    held_out = {q: qrels[q] for q in list(qrels)[:6]}
    seen = set()

    def watched(pairs, *rest):
        seen.update(pair.query for pair in pairs)
        return _pairwise(pairs, *rest)

    monkeypatch.setattr("gradatim.models.reranker_training._pairwise", watched)
    model = ConvKNRM.from_sentence_transformer(encoder, **SMALL)
    train_reranker(model, queries, corpus, run, qrels, validation_qrels=held_out, **OPTIONS)
    assert seen == set(qrels) - set(held_out)


def test_examples_hold_texts_grades_and_difficulties():
    queries, corpus = {"q": "sort"}, {"a": "A", "b": "B", "c": "C"}
    pair, heights = Pair("q", "a", ("b", "c")), {"q": {"a": 0.75, "b": 0.25}}
    texts, easy = _pairwise([pair], queries, corpus, {"q": {"a": 2}}, heights)
    assert texts == [["sort"], ["A"], ["B"], ["C"]]
    torch.testing.assert_close(easy, torch.tensor([0.75]))  # of 0.75 and 0.875: c is outside the run, H = 0
    texts, labels = _pointwise([pair], queries, corpus, {"q": {"a": 2, "b": 1}}, heights)
    assert texts == [["sort"] * 3, ["A", "B", "C"]]
    torch.testing.assert_close(labels, torch.tensor([[2.0, 0.75], [1.0, 0.25], [0.0, 0.0]]))


def test_reranking_moves_the_top_alone():
    class ByLength:
        def predict(self, pairs, **_):
            return torch.tensor([float(len(doc)) for _, doc in pairs])

    corpus = {"a": "xx", "b": "xxxx", "c": "x", "d": "xxxxxx"}
    run = {"q": {"a": 9.0, "b": 8.0, "c": 7.0, "d": 1.0}, "r": {"c": 1.0}}
    found = rerank_run(ByLength(), {"q": "", "r": ""}, corpus, run, top=3)
    assert list(found["q"]) == ["b", "a", "c", "d"]
    assert sorted(found["q"], key=found["q"].get, reverse=True) == ["b", "a", "c", "d"]
    assert list(found["r"]) == ["c"]
    assert rerank_run(ByLength(), {}, corpus, {}) == {}
    with pytest.raises(ValueError, match="top=0"):
        rerank_run(ByLength(), {"q": ""}, corpus, run, top=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "listwise"}, "kind='listwise' is unknown; choose pairwise or pointwise"),
        ({"iterations": 0}, "iterations=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"least_grade": 3}, "no query has a document of grade 3"),
    ],
)
def test_bad_options_are_refused(encoder, options, message):
    model = ConvKNRM.from_sentence_transformer(encoder, **SMALL)
    with pytest.raises(ValueError, match=message):
        train_reranker(model, *collection(), **options)


def test_a_cross_encoder_trains_with_two_rates(encoder, tmp_path):
    folder = tmp_path / "encoder"
    encoder[0].auto_model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    before = torch.random.get_rng_state()
    model = load_cross_encoder(str(folder), max_length=16, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    twin = load_cross_encoder(str(folder), max_length=16, seed=1)
    assert torch.equal(model.model.classifier.weight, twin.model.classifier.weight)
    groups = _groups(model, 1e-3, 2e-5)
    assert [group["lr"] for group in groups] == [2e-5, 1e-3]
    head = {id(p) for p in model.model.classifier.parameters()}
    assert {id(p) for p in groups[1]["params"]} == head
    history = train_reranker(
        model, *collection(), curriculum=LinearCurriculum(2, "step"), iterations=2, steps_per_iteration=2
    )
    assert len(history.losses) == 2
    assert not torch.equal(model.model.classifier.weight, twin.model.classifier.weight)
    assert mrr(model, collection()) > 0


def test_a_name_that_is_no_encoder_is_refused(tmp_path):
    from gradatim.models import EncoderUnavailableError

    with pytest.raises(EncoderUnavailableError, match="could not be opened as a cross-encoder"):
        load_cross_encoder(str(tmp_path))
