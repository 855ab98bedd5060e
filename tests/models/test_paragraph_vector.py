"""Paragraph vectors: one step of each variant against automatic differentiation, then what training does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from text_vector_references import filled, nll, only, sgd_step

from gradatim.inference import hamming_distances
from gradatim.models import ParagraphVector
from gradatim.tasks import retrieval_scores, shared_labels

kernels = pytest.importorskip("gradatim.models.paragraph_kernels")
compiled = pytest.importorskip("gradatim.models.compiled")
TABLE = compiled.sigmoid_table()
LR, DOC_LR = 0.05, 0.4


def hidden(p, how, row=0):
    """h of a document with the rounding as identity in the backward pass."""
    z = p["D"][row] if "P" not in p else p["P"] @ p["D"][row] + p["c"]
    if how == kernels.REAL:
        return z
    s = torch.sigmoid(z)
    return s + ((z > 0).double() - s).detach() if how == kernels.ROUNDED else s


def one_pass(
    parameters, ids, how, *, dm=False, combine=0, window=2, block=1, shared=1, negative=1, learn=True,
    schedule=(LR, DOC_LR, 1.0, 0, 1),
):  # fmt: skip
    """The kernel's pass over one document with word 0 as every noise word; new parameters."""
    made = {name: array.copy() for name, array in parameters.items()}
    nothing = np.zeros((0, 1), np.float32)
    kernels.paragraph_pass(
        np.array(ids, np.int32), np.array([0, len(ids)], np.int64), 0, 1, made["D"], made["U"],
        made.get("P", nothing), made.get("c", np.zeros(0, np.float32)), made.get("W", nothing),
        made.get("Q", nothing), np.full(9, 2**32 - 1, np.uint32), *only(0), TABLE, dm, how, 0.0, 0.0,
        negative, block, shared, window, combine, *schedule, learn, np.array([5], np.uint64),
    )  # fmt: skip
    return made


def agree(ours, expected, tolerance=1e-5):
    for name, array in expected.items():
        np.testing.assert_allclose(ours[name], array, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("how", [kernels.REAL, kernels.ROUNDED, kernels.SMOOTH])
def test_dbow_is_one_gradient_step_per_word(how, projected):
    size = 6
    p = {"D": filled((1, 4 if projected else size), 0), "U": filled((4, 16), 1)}
    p["U"][:, size + 1 :] = 0
    if projected:
        p |= {"P": filled((size, 4), 2), "c": filled(size, 3)}
    rates = {"D": DOC_LR, "U": LR, "P": LR, "c": LR}
    expected = p
    for word in (2, 3):

        def loss(q, word=word):
            rows = q["U"][[word, 0]]
            return nll(hidden(q, how), rows[:, :size], rows[:, size])

        expected = sgd_step(loss, expected, rates)
    agree(one_pass(p, [2, 3], how), expected)
    frozen = one_pass(p, [2, 3], how, learn=False)
    for name in p:
        assert np.array_equal(frozen[name], p[name]) == (name != "D")


def test_both_steps_fall_over_all_epochs():
    """The second of four epochs starts after a quarter of the fall: 1 - 0.8 / 4 = 0.8 of the first steps."""
    p = {"D": filled((1, 6), 0), "U": filled((4, 16), 1)}
    later = one_pass(p, [2], kernels.SMOOTH, schedule=(LR, DOC_LR, 0.2, 1, 4))
    agree(later, one_pass(p, [2], kernels.SMOOTH, schedule=(0.8 * LR, 0.8 * DOC_LR, 1.0, 0, 1)), 1e-6)


def drawn_hidden(d, how, noise=0.0, dropout=0.0):
    """What `hidden_vector` makes of d without a projection, and its slope."""
    h, slope = np.zeros_like(d), np.zeros_like(d)
    nothing, state = np.zeros((0, 1), np.float32), np.uint64(88172645463325252)
    kernels.hidden_vector(d, nothing, nothing[:, 0], how, noise, dropout, TABLE, h, slope, state)
    return h.astype(np.float64), slope


def test_noise_has_its_deviation_and_dropout_keeps_the_mean():
    h, slope = drawn_hidden(np.full(5000, 0.5, np.float32), kernels.NOISY, noise=1.5)
    z = np.log(h / (1 - h))
    assert z.mean() == pytest.approx(0.5, abs=0.08)
    assert z.std() == pytest.approx(1.5, rel=0.04)
    np.testing.assert_allclose(slope, h * (1 - h), atol=1e-5)
    for values in drawn_hidden(np.ones(5000, np.float32), kernels.REAL, dropout=0.25):
        np.testing.assert_allclose(np.unique(values), [0, 1 / 0.75], rtol=1e-5)
        assert values.mean() == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize(("how", "most"), [(kernels.SMOOTH, 6.0), (kernels.REAL, 8.0)])
def test_only_codes_are_bounded(how, most):
    d, ones = np.array([5.0, -5.0], np.float32), np.ones(2, np.float32)
    nothing = np.zeros((0, 1), np.float32)
    gradient = np.array([3.0, -3.0], np.float32)
    kernels.update_document(
        d, nothing, nothing[:, 0], how, gradient, ones, np.float32(1), np.float32(1), True
    )
    np.testing.assert_array_equal(d, [most, -most])


def test_straight_through_gradient_is_the_linear_one_times_the_sigmoids_slope():
    size = 6
    p = {"D": filled((1, size), 0), "U": filled((4, 16), 1)}
    moved = one_pass(p, [2], kernels.ROUNDED, learn=False)["D"][0] - p["D"][0]
    h = (p["D"][0] > 0).astype(float)
    e = np.array([1.0, 0.0]) - 1 / (1 + np.exp(-(p["U"][[2, 0], :size] @ h + p["U"][[2, 0], size])))
    s = 1 / (1 + np.exp(-p["D"][0].astype(float)))
    np.testing.assert_allclose(moved, DOC_LR * (e @ p["U"][[2, 0], :size]) * s * (1 - s), atol=1e-6)


@pytest.mark.parametrize("n", [1, 5, 6, 7, 13])
@pytest.mark.parametrize("learn", [True, False])
def test_outputs_of_one_hidden_vector_move_by_the_gradient_of_their_weighted_sum(n, learn):
    """Distinct rows, one of them twice, in groups of six of which the last is not full; any weights."""
    rng = np.random.default_rng(n)
    x, U = filled(16, 0), filled((20, 16), 1)
    rows = rng.permutation(20)[:18].astype(np.int64)
    rows[min(3, n - 1)] = rows[0]
    target = (rng.random(18) < 0.5).astype(np.float32)
    weight = rng.uniform(0, 2, 18).astype(np.float32)

    def loss(q):
        score = q["U"][rows[:n]] @ q["x"]
        sign = torch.from_numpy(2 * target[:n] - 1).double()
        return -(torch.from_numpy(weight[:n]).double() * torch.nn.functional.logsigmoid(sign * score)).sum()

    step = sgd_step(loss, {"U": U, "x": x}, {"U": LR, "x": 1.0})
    made, g = U.copy(), np.full(16, 9, np.float32)
    kernels.output_rows(
        x, made, rows.copy(), weight * target, weight.copy(), n, np.float32(LR), learn, TABLE, g
    )
    np.testing.assert_allclose(g, step["x"] - x, atol=1e-5)
    np.testing.assert_allclose(made, step["U"] if learn else U, atol=1e-5)


def test_a_block_shares_its_weighted_noise_words():
    """Four words and two shared noise words of three wanted each: a weighted sum at one h, all at once."""
    size, words = 5, [2, 3, 2, 0]
    p = {"D": filled((1, size), 0), "U": filled((4, 16), 1)}
    p["U"][:, size + 1 :] = 0

    def loss(q):
        h = q["D"][0]
        score = q["U"][:, :size] @ h + q["U"][:, size]
        away = torch.nn.functional.logsigmoid(-score[0])
        return -torch.nn.functional.logsigmoid(score[words]).sum() - 2 * (3 * 3 / 2) * away

    ours = one_pass(p, words, kernels.REAL, block=4, shared=2, negative=3)
    agree(ours, sgd_step(loss, p, {"D": DOC_LR, "U": LR}))


@pytest.mark.parametrize("dm", [False, True])
def test_noise_equal_to_the_word_is_left_out_and_drawn_twice_counts_twice(dm):
    p = {"D": filled((1, 3), 0), "U": filled((4, 16), 1), "W": filled((4, 3), 2)}
    p["U"][:, 4:] = 0
    for word, noise in ((0, 0), (2, 9)):

        def loss(q, word=word, noise=noise):
            rows = q["U"][[word] + [0] * noise]
            return nll(q["D"][0], rows[:, :3], rows[:, 3])

        ours = one_pass(p, [word], kernels.REAL, dm=dm, negative=9, shared=9)
        agree(ours, sgd_step(loss, p, {"D": DOC_LR, "U": LR, "W": LR}))


@pytest.mark.parametrize(
    ("combine", "how"),
    [
        (c, h)
        for c in (kernels.MEAN, kernels.CONCAT, kernels.ORDERED)
        for h in (kernels.REAL, kernels.ROUNDED)
    ],
)
def test_dm_is_one_gradient_step_per_word(combine, how):
    size, width, window = 3, 3, 1
    columns = {kernels.MEAN: width, kernels.CONCAT: size + width, kernels.ORDERED: size + 2 * width}[combine]
    p = {"D": filled((1, size), 0), "U": filled((4, 16), 1), "W": filled((4, width), 2)}
    p["U"][:, columns + 1 :] = 0
    if combine == kernels.MEAN and how != kernels.REAL:
        p["Q"] = filled((width, size), 3)
    expected = p
    for word, before in ((1, None), (2, "other")):
        beside = 2 if before is None else 1

        def loss(q, word=word, beside=beside):
            h, w = hidden(q, how), q["W"][beside]
            if combine == kernels.MEAN and how == kernels.REAL:
                x = h + w + ((h + w) / 2 - (h + w)).detach()  # every vector of a mean gets the whole gradient
            elif combine == kernels.MEAN:
                x = q["Q"] @ h + w
            elif combine == kernels.CONCAT:
                x = torch.cat([h, w])
            else:
                zero = torch.zeros(width, dtype=torch.float64)
                x = torch.cat([h, zero, w] if word == 1 else [h, w, zero])
            rows = q["U"][[word, 0]]
            return nll(x, rows[:, :columns], rows[:, columns])

        expected = sgd_step(loss, expected, {"D": DOC_LR, "U": LR, "W": LR, "Q": LR})
    agree(one_pass(p, [1, 2], how, dm=True, combine=combine, window=window), expected)


@pytest.mark.parametrize("mode", ["dbow", "dm"])
@pytest.mark.parametrize("binary", [False, True])
def test_torch_module_has_the_kernels_gradient(mode, binary):
    from gradatim.models.paragraph_torch import ParagraphModule

    model = ParagraphVector(n_components=4, mode=mode, binary=binary, combine="mean", word_dim=4, window=2)
    plan = model._plan()
    p = {"D": filled((1, 4), 0), "U": filled((4, 16), 1)}
    p["U"][:, 5:] = 0
    weights = {
        "outputs": torch.from_numpy(p["U"]).double(),
        "words": torch.from_numpy(filled((4, 4), 2)).double(),
        "projection": torch.zeros(0, 1, dtype=torch.float64),
        "projection_bias": torch.zeros(0, dtype=torch.float64),
        "mixing": torch.from_numpy(filled((4, 4), 3)).double(),
    }
    module = ParagraphModule(plan, torch.from_numpy(p["D"]).double(), weights, sparse=False)
    args = (
        torch.tensor([0]), torch.tensor([1]), torch.tensor([[2, 3]]), torch.tensor([[False, True]]),
        torch.tensor([[0]]),
    )  # fmt: skip
    module(*args).backward()
    q = {**p, **({"W": filled((4, 4), 2)} if mode == "dm" else {})}
    how = kernels.ROUNDED if binary else kernels.REAL

    def loss(q):
        x = hidden(q, how)
        if mode == "dm":
            w = q["W"][3]
            x = torch.from_numpy(filled((4, 4), 3)).double() @ x + w if binary else (
                x + w + ((x + w) / 2 - (x + w)).detach()
            )  # fmt: skip
        rows = q["U"][[1, 0]]
        return nll(x, rows[:, :4], rows[:, 4])

    step = sgd_step(loss, q, {"D": 1.0, "U": 1.0, "W": 1.0})
    np.testing.assert_allclose(p["D"] - module.documents.weight.grad.numpy(), step["D"], atol=1e-7)
    np.testing.assert_allclose(p["U"] - module.outputs.weight.grad.numpy(), step["U"], atol=1e-7)


# --- What training does ------------------------------------------------------------------------------------


def topics(n=400, length=40, words=60, seed=0):
    rng = np.random.default_rng(seed)
    return [[f"{'ab'[i % 2]}{j}" for j in rng.integers(0, words, length)] for i in range(n)]


def mean_average_precision(model, documents):
    """Of the first fifty documents, inferred, over all trained ones; topics alternate."""
    labels = np.arange(len(documents)) % 2
    relevance = shared_labels(labels[:50], labels)
    if model.binary:
        distances = hamming_distances(model.encode(documents[:50]), model.codes_)
        return retrieval_scores(distances, relevance, distances=True)["map"]
    a, b = model.transform(documents[:50]), model.embedding_
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    return retrieval_scores(unit[0] @ unit[1].T, relevance)["map"]


def small(**options):
    return ParagraphVector(**{"n_components": 16, "lr": 0.05, "epochs": 15, "random_state": 0, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"binary": True},
        {"binary": True, "shared_negatives": False},
        {"binary": True, "rounding": "none"},
        {"binary": True, "rounding": "noise"},
        {"binary": True, "dropout": 0.1, "ngram": 2},
        {"binary": True, "real_dim": 24},
        {"mode": "dm", "combine": "mean"},
        {"mode": "dm", "binary": True},
        {"mode": "dm", "binary": True, "combine": "ordered", "window": 2},
        {"binary": True, "device": "cpu", "batch_size": 1024, "lr": 0.02},
    ],
)
def test_two_topics_are_told_apart(options):
    documents = topics()
    model = small(**options).fit(documents)
    assert mean_average_precision(model, documents) > 0.95
    if model.binary:
        assert model.codes_.shape == (400, 2)
        assert ((model.bit_means_ > 0) & (model.bit_means_ < 1)).any()


def test_codes_are_packed_and_padded():
    documents = topics(60)
    model = small(binary=True, n_components=11, epochs=2).fit(documents)
    bits = np.unpackbits(model.codes_, axis=1)
    np.testing.assert_array_equal(bits[:, :11], model.embedding_ > 0)
    assert not bits[:, 11:].any()
    rb = small(binary=True, n_components=11, real_dim=5, epochs=2).fit(documents)
    w = rb.weights_
    expected = rb.embedding_ @ w.projection.T + w.projection_bias > 0
    np.testing.assert_array_equal(np.unpackbits(rb.codes_, axis=1)[:, :11], expected)


def test_training_repeats_itself_and_inference_depends_on_the_document_alone():
    documents = topics(80)
    model = small(binary=True, epochs=3).fit(documents)
    again = small(binary=True, epochs=3).fit(documents)
    np.testing.assert_array_equal(model.embedding_, again.embedding_)
    assert not np.array_equal(
        model.embedding_, small(binary=True, epochs=3, random_state=1).fit(documents).embedding_
    )
    together = model.transform(documents[:9])
    np.testing.assert_array_equal(together[4], model.transform([documents[4]])[0])
    np.testing.assert_array_equal(together, model.set_params(n_jobs=2).transform(documents[:9]))
    assert not np.array_equal(together[0], together[2])
    two = small(binary=True, n_jobs=2).fit(topics())
    assert mean_average_precision(two, topics()) > 0.9


def test_documents_without_known_words_are_zeros_with_a_warning():
    documents = [*topics(40), ["never", "seen"], []]
    with pytest.warns(UserWarning, match=r"fit: 2 of 42 documents \(first: number 40\)"):
        model = small(binary=True, epochs=2).fit(documents)
    assert not model.embedding_[40:].any()
    assert not model.codes_[40:].any()
    with pytest.warns(UserWarning, match="transform: 1 of 1"):
        assert not model.transform([["never"]]).any()


def test_partial_fit_adds_documents_and_goes_on():
    documents = topics(120)
    model = small(epochs=40).partial_fit(documents[:80])
    before = model.weights_.outputs.copy()
    vocabulary = model.vocabulary_
    model.partial_fit(documents[80:])
    assert model.embedding_.shape == (120, 16)
    assert model.vocabulary_ is vocabulary
    assert not np.array_equal(before, model.weights_.outputs)
    labels = np.arange(120) % 2
    unit = model.embedding_ / np.linalg.norm(model.embedding_, axis=1, keepdims=True)
    scores = retrieval_scores(unit[80:] @ unit[:80].T, shared_labels(labels[80:], labels[:80]))
    assert scores["map"] > 0.9


def test_strings_pipelines_and_params():
    texts = [" ".join(d) for d in topics(40)]
    pipeline = make_pipeline(small(epochs=2), StandardScaler())
    assert pipeline.fit_transform(texts).shape == (40, 16)
    assert list(pipeline[0].get_feature_names_out()[:2]) == ["paragraphvector0", "paragraphvector1"]
    assert clone(pipeline[0]).get_params() == pipeline[0].get_params()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"real_dim": 8}, "real_dim=8 belongs to Real-Binary"),
        ({"ngram": 2, "mode": "dm"}, 'ngram=2 needs mode="dbow"'),
        ({"mode": "dm", "combine": "mean", "word_dim": 3}, "word_dim=3 must be n_components=16"),
        ({"mode": "dm", "window": 0}, "'window' parameter of ParagraphVector"),
        ({"min_lr": 1.0}, "min_lr=1.0 is above lr=0.05"),
        ({"min_count": 10_000}, "min_count=10000, but the most frequent"),
    ],
)
def test_settings_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options).fit(topics(10))


def test_codes_need_binary():
    with pytest.raises(ValueError, match="binary=False"):
        small(epochs=1).fit(topics(20)).encode([["a1"]])


@pytest.mark.parametrize(
    "options", [{"binary": True, "real_dim": 5}, {"mode": "dm", "binary": True, "combine": "mean"}]
)
def test_saved_model_is_the_same_model(tmp_path, options):
    documents = topics(30)
    model = small(epochs=2, **options).fit(documents)
    model.save(tmp_path)
    again = ParagraphVector.load(tmp_path)
    np.testing.assert_array_equal(again.codes_, model.codes_)
    np.testing.assert_array_equal(again.transform(documents[:5]), model.transform(documents[:5]))
    with np.load(tmp_path / "arrays.npz") as stored:
        arrays = dict(stored)
    np.savez(tmp_path / "arrays.npz", **{**arrays, "outputs": arrays["outputs"][:3]})
    with pytest.raises(ValueError, match="array 'outputs'"):
        ParagraphVector.load(tmp_path)
    np.savez(tmp_path / "arrays.npz", **{n: a for n, a in arrays.items() if n != "projection"})
    with pytest.raises(ValueError, match="'projection' is missing"):
        ParagraphVector.load(tmp_path)
    np.savez(tmp_path / "arrays.npz", **{**arrays, "embedding": arrays["embedding"] * np.nan})
    with pytest.raises(ValueError, match="embedding holds NaN"):
        ParagraphVector.load(tmp_path)
    document = json.loads((tmp_path / "model.json").read_text())
    assert "pickle" not in json.dumps(document)
