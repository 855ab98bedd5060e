"""ConvKNRM against loops over its formula, and in a CrossEncoder's place."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

from gradatim.curricula import LinearCurriculum
from gradatim.losses import PairwiseCurriculumLoss
from gradatim.models import ConvKNRM
from gradatim.models.principal_vectors import principal_word_vectors
from tiny_encoder import WORDS, tiny_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


SMALL = {"dim": 6, "filters": 5, "max_query_tokens": 6, "max_doc_tokens": 12}


@pytest.fixture
def model(encoder):
    return ConvKNRM.from_sentence_transformer(encoder, **SMALL)


PAIRS = [
    ("sort matrix", "the matrix and the vector of a kernel"),
    ("sort matrix", "sort along axis"),
    ("fit", "fit fit fit linear forest to the test file"),
    ("random normal sample", "gamma"),
]


def by_hand(model, query, doc):
    """The score of one pair, position by position, in Python."""
    table, unknown = model.embeddings.double(), model.tokenizer.unk_token_id

    def words(text, most):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"][:most]
        return [table[i] for i in ids if i != unknown]

    def grams(vectors, convolution):
        weight, bias = convolution.weight.double(), convolution.bias.double()
        found = []
        for at in range(len(vectors)):
            total = bias.clone()
            for offset in range(weight.shape[2]):
                if at + offset < len(vectors):
                    total = total + weight[:, :, offset] @ vectors[at + offset]
            if model.config.activation == "relu":
                total = total.relu()
            found.append(total / total.norm().clamp(min=1e-12))
        return found

    q, d = words(query, model.config.max_query_tokens), words(doc, model.config.max_doc_tokens)
    if not q:
        return 0.0
    phi = []
    for i, first in enumerate(model.convolutions):
        for j, second in enumerate(model.convolutions):
            if not model.config.crossmatch and i != j:
                continue
            gq, gd = grams(q, first), grams(d, second)
            for mu, sigma in zip(model.mu.tolist(), model.sigma.tolist(), strict=True):
                total = 0.0
                for a in gq:
                    soft = sum(math.exp(-((float(a @ b) - mu) ** 2) / (2 * sigma**2)) for b in gd)
                    total += math.log(soft + 1e-6)
                phi.append(total)
    weight = model.output.weight.double()[0]
    return float(weight @ torch.tensor(phi, dtype=torch.float64) + model.output.bias.double())


@pytest.mark.parametrize(
    "options",
    [{}, {"crossmatch": False}, {"activation": "relu"}, {"max_ngram": 1}, {"max_ngram": 2, "filters": 3}],
)
def test_scores_equal_loops_over_the_formula(encoder, options):
    model = ConvKNRM.from_sentence_transformer(encoder, **{**SMALL, **options}).double()
    with torch.no_grad():
        scores = model(model.preprocess(PAIRS))["scores"]
        expected = [by_hand(model, *pair) for pair in PAIRS]
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-8, atol=1e-8)


def test_the_size_is_the_papers():
    g = torch.Generator().manual_seed(0)
    model = ConvKNRM(None, torch.randn(10, 300, generator=g))
    trained = sum(p.numel() for p in model.parameters())
    assert trained == 128 * 300 * (1 + 2 + 3) + 3 * 128 + 22 + 100
    assert not any(p.shape == (10, 300) for p in model.parameters())


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_pads_do_not_leak(model, dtype, close):
    model = model.to(dtype)
    alone = model(model.preprocess(PAIRS[1:2]))["scores"]
    together = model(model.preprocess(PAIRS))["scores"][1:2]
    torch.testing.assert_close(alone, together, rtol=close, atol=close)
    features = model.preprocess(PAIRS)
    for name in ("query", "doc"):
        ids, mask = features[f"{name}_ids"], features[f"{name}_mask"]
        junk = torch.full((len(ids), 7), 9)  # a real word's vector where the mask says there is none
        features[f"{name}_ids"] = torch.cat([torch.where(mask, ids, 9), junk], dim=1)
        features[f"{name}_mask"] = torch.cat([mask, torch.zeros(junk.shape, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(
        model(features)["scores"], model(model.preprocess(PAIRS))["scores"], rtol=close, atol=close
    )


def test_distinct_texts_are_encoded_once(model, monkeypatch):
    features = model.preprocess([("sort", "a b"), ("sort", "fit"), ("sort", "a b")])
    assert features["query_ids"].shape[0] == 1
    assert features["doc_ids"].shape[0] == 2
    assert features["doc_of"].tolist() == [0, 1, 0]
    scores = model(features)["scores"]
    assert scores[0] == scores[2] != scores[1]


def test_queries_without_a_known_word_score_zero(model):
    with torch.no_grad():
        model.output.bias.fill_(3.0)
    assert model.predict([("", "fit"), ("zzz qqq", "fit"), ("fit", "")])[:2].tolist() == [0, 0]
    assert np.isfinite(model.predict([("fit", ""), ("fit", "zzz")])).all()
    scores = model(model.preprocess([("zzz", "fit"), ("fit", "")]))["scores"]
    scores.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_unknown_words_are_left_out_and_long_texts_cut(model):
    assert model.predict([("sort", "fit zzz test")]) == model.predict([("sort", "fit test")])
    long = " ".join(WORDS[:20])
    cut = " ".join(WORDS[:12])
    assert model.predict([("sort", long)]) == model.predict([("sort", cut)])


def test_predict_and_rank_as_a_cross_encoder(model):
    scores = model.predict(PAIRS)
    assert scores.shape == (4,)
    assert scores.dtype == np.float32
    for size in (1, 3):
        np.testing.assert_allclose(model.predict(PAIRS, batch_size=size), scores, rtol=1e-6, atol=1e-6)
    assert float(model.predict(PAIRS[0])) == pytest.approx(scores[0], rel=1e-6)
    assert torch.is_tensor(model.predict(PAIRS, convert_to_tensor=True))
    assert len(model.predict([])) == 0
    docs = [doc for _, doc in PAIRS]
    ranked = model.rank("sort matrix", docs, top_k=3, return_documents=True)
    assert [entry["score"] for entry in ranked] == sorted((e["score"] for e in ranked), reverse=True)
    assert all(entry["text"] == docs[entry["corpus_id"]] for entry in ranked)
    assert len(ranked) == 3
    activated = model.predict(PAIRS, activation_fn=torch.sigmoid)
    np.testing.assert_allclose(activated, 1 / (1 + np.exp(-scores)), rtol=1e-5)
    prompted = model.predict([("matrix", "fit")], prompt="sort ")
    assert prompted == model.predict([("sort matrix", "fit")])


def test_the_libraries_evaluator_takes_it(model):
    samples = [{"query": "sort", "positive": ["sort axis"], "negative": ["gamma", "file"]}] * 2
    evaluator = CrossEncoderRerankingEvaluator(samples, name="toy", write_csv=False)
    found = evaluator(model)
    assert 0 < found["toy_mrr@10"] <= 1
    assert model.model_card_data.metrics == found


def test_losses_train_it_and_the_kernels(model):
    loss = PairwiseCurriculumLoss(model, "cross_entropy", curriculum=LinearCurriculum(3, "step"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    queries, positives, negatives = (
        ["sort matrix", "fit"],
        ["sort axis", "fit linear"],
        ["gamma", "file read"],
    )
    kernels = model.sigma.detach().clone()
    values = []
    for step in range(30):
        loss.position = step
        value = loss([queries, positives, negatives], torch.tensor([0.8, 0.3]))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.2 * values[0]
    assert not torch.equal(model.sigma, kernels)
    right = model.predict(list(zip(queries, positives, strict=True)))
    assert (right > model.predict(list(zip(queries, negatives, strict=True)))).all()


def test_seeds_decide_the_weights_and_global_state_is_left_alone(encoder):
    before = torch.random.get_rng_state()
    one, two, other = (ConvKNRM.from_sentence_transformer(encoder, seed=s, **SMALL) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.output.weight, two.output.weight)
    assert not torch.equal(one.output.weight, other.output.weight)
    fixed = ConvKNRM.from_sentence_transformer(encoder, train_kernels=False, **SMALL)
    assert not fixed.mu.requires_grad
    assert not fixed.sigma.requires_grad
    fixed(fixed.preprocess(PAIRS))["scores"].sum().backward()
    assert fixed.mu.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_stay_close(model, dtype):
    expected = model.predict(PAIRS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = (model if dtype == torch.bfloat16 else model.double()).predict(PAIRS)
    # An exact match must stay one: the narrow kernel is 0.001 wide.
    tolerance = 0.2 if dtype == torch.bfloat16 else 1e-4
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_an_exact_match_counts_as_one_in_bfloat16(model):
    features = model.preprocess([("sort", "sort")])
    with torch.autocast("cpu", torch.bfloat16):
        grams = model.grams(features["doc_ids"], features["doc_mask"])[0]
    norm = grams.norm(dim=-1)
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=0, atol=1e-6)


# Files ----------------------------------------------------------------------------------------------------


def test_a_saved_ranker_scores_as_before(model, tmp_path):
    with torch.no_grad():
        model.mu.add_(0.01)
    model.save_pretrained(tmp_path / "ranker")
    loaded = ConvKNRM.from_pretrained(tmp_path / "ranker")
    np.testing.assert_array_equal(loaded.predict(PAIRS), model.predict(PAIRS))
    assert loaded.config == model.config
    assert not list((tmp_path / "ranker").rglob("*.bin"))


def test_damaged_folders_are_refused_with_the_file(model, tmp_path):
    with pytest.raises(ValueError, match=r"config.json could not be read"):
        ConvKNRM.from_pretrained(tmp_path)
    folder = tmp_path / "ranker"

    def damaged(name, content, message):
        model.save_pretrained(folder)
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            ConvKNRM.from_pretrained(folder)

    damaged("config.json", b"{", "config.json could not be read")
    damaged("config.json", b'{"kind": "bert"}', "describes no ConvKNRM")
    damaged("config.json", b'{"kind": "gradatim.ConvKNRM", "version": 9}', "version 9; this release reads 1")
    damaged("model.safetensors", b"junk", "model.safetensors could not be read")
    settings = json.loads((folder / "config.json").read_text()) | {}
    model.save_pretrained(folder)
    good = json.loads((folder / "config.json").read_text())
    assert settings["kind"] == good["kind"]
    damaged(
        "config.json",
        json.dumps(good | {"options": {**good["options"], "filters": 7}}).encode(),
        "holds no ConvKNRM",
    )
    damaged("config.json", json.dumps(good | {"options": {"colour": 1}}).encode(), "holds no ConvKNRM")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": 0}, "filters=0 must be at least 1"),
        ({"max_ngram": 0}, "max_ngram=0"),
        ({"dim": 17}, "dim=17 must lie between 1 and the vectors' 16"),
    ],
)
def test_bad_options_are_refused(encoder, options, message):
    with pytest.raises(ValueError, match=message):
        ConvKNRM.from_sentence_transformer(encoder, **{**SMALL, **options})


def test_bad_vectors_and_batch_sizes_are_refused(model):
    with pytest.raises(ValueError, match="word vectors hold values that are not finite"):
        ConvKNRM(None, torch.full((3, 2), math.nan))
    with pytest.raises(ValueError, match="batch_size=0"):
        model.predict(PAIRS, batch_size=0)


# Word vectors ----------------------------------------------------------------------------------------------


def test_word_vectors_are_the_principal_components():
    g = torch.Generator().manual_seed(0)
    table = torch.randn(50, 8, generator=g) @ torch.randn(8, 8, generator=g) + 3
    found = principal_word_vectors(table, 3).double()
    centred = (table - table.mean(0)).double()
    _, _, basis = torch.linalg.svd(centred, full_matrices=False)
    expected = centred @ basis[:3].T
    expected = expected / expected.square().mean().sqrt()
    torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-5, atol=1e-5)
    assert found.square().mean().item() == pytest.approx(1)
    whole = principal_word_vectors(table, 8).double()
    ratio = torch.cdist(whole, whole)[0, 1:] / torch.cdist(centred, centred)[0, 1:]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-5, atol=1e-6)
