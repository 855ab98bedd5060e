"""Skip-gram: kernels against automatic differentiation, then what training does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from text_vector_references import filled, nll, only, sgd_step

from gradatim.models import SkipGram
from gradatim.models.vocabulary import Vocabulary, alias_table, build_vocabulary, tokenized

kernels = pytest.importorskip("gradatim.models.skip_gram_kernels")
compiled = pytest.importorskip("gradatim.models.compiled")

LR = 0.1
TABLE = compiled.sigmoid_table()


def topics(n=200, length=30, words=20, seed=0):
    """Documents of two topics without a common word."""
    rng = np.random.default_rng(seed)
    return [[f"{'ab'[i % 2]}{j}" for j in rng.integers(0, words, length)] for i in range(n)]


def within_topic(model, k=10):
    return np.mean(
        [[near[0] == w[0] for near, _ in model.most_similar(w, k)] for w in model.vocabulary_.words]
    )


def test_sigmoid_table_is_close_everywhere():
    x = np.linspace(-30, 30, 4001).astype(np.float32)
    ours = np.array([compiled.sigmoid(v, TABLE) for v in x])
    np.testing.assert_allclose(ours, 1 / (1 + np.exp(-x.astype(np.float64))), atol=3.1e-6)


def test_uniform_draws_are_inside_the_unit_interval_and_even():
    state, draws = np.uint64(compiled.scrambled(3)), []
    for _ in range(20000):
        state = np.uint64(compiled.next_state(state))
        draws.append(compiled.uniform(state))
    assert 0 < min(draws) < max(draws) < 1
    assert np.histogram(draws, 10, (0, 1))[0].std() < 4 * np.sqrt(2000)
    # The largest and the smallest value that 23 bits can give are strictly inside as well.
    assert np.float32((2**23 - 1 + 0.5) * 2.0**-23) < 1


def test_plain_pair_is_a_gradient_step():
    W, U = filled((4, 16), 0), filled((4, 16), 1)
    expected = sgd_step(lambda p: nll(p["W"][1], p["U"][[2, 0, 0]]), {"W": W, "U": U}, {"W": LR, "U": LR})
    # Two copies of one noise word in sequence see each other's step; a small step keeps that negligible.
    small = 1e-4
    slow = sgd_step(lambda p: nll(p["W"][1], p["U"][[2, 0, 0]]), {"W": W, "U": U}, {"W": small, "U": small})
    w, u = W.copy(), U.copy()
    kernels.plain_pair(
        w[1], 2, u, *only(0), TABLE, 2, np.float32(small), np.zeros(16, np.float32), np.uint64(1)
    )
    np.testing.assert_allclose(w, slow["W"], atol=1e-6)
    np.testing.assert_allclose(u, slow["U"], atol=1e-6)
    one = sgd_step(lambda p: nll(p["W"][1], p["U"][[2, 0]]), {"W": W, "U": U}, {"W": LR, "U": LR})
    w, u = W.copy(), U.copy()
    kernels.plain_pair(w[1], 2, u, *only(0), TABLE, 1, np.float32(LR), np.zeros(16, np.float32), np.uint64(1))
    np.testing.assert_allclose(w, one["W"], atol=1e-5)
    np.testing.assert_allclose(u, one["U"], atol=1e-5)
    assert np.abs(expected["W"] - W).max() > 1e-3


def test_noise_that_equals_the_centre_is_skipped():
    W, U = filled((4, 16), 0), filled((4, 16), 1)
    expected = sgd_step(lambda p: nll(p["W"][1], p["U"][[2]]), {"W": W, "U": U}, {"W": LR, "U": LR})
    kernels.plain_pair(W[1], 2, U, *only(2), TABLE, 3, np.float32(LR), np.zeros(16, np.float32), np.uint64(1))
    np.testing.assert_allclose(W, expected["W"], atol=1e-5)
    np.testing.assert_allclose(U, expected["U"], atol=1e-5)


@pytest.mark.parametrize("negative", [2, 5, 9])
def test_shared_block_equals_plain_steps_with_the_same_noise(negative):
    V, D = 30, 32
    W, U = filled((V, D), 0), filled((V, D), 1)
    table = alias_table(np.arange(1.0, V + 1))
    size = -(-(negative + 1) // kernels.GROUP) * kernels.GROUP
    rows, rate, B = np.zeros(size, np.int64), np.zeros(size, np.float32), np.zeros((size, D), np.float32)
    lr = np.float32(LR)
    kernels.draw_block(3, U, table.threshold, table.other, negative, rows, rate, lr, B, np.uint64(7))
    used = [int(r) for r, s in zip(rows[: negative + 1], rate, strict=False) if s > 0]
    assert used[0] == 3
    assert len(set(used)) == len(used) > 1
    w, u = W.copy(), U.copy()
    contexts = [7, 8, 7]
    for c in contexts:
        step = sgd_step(lambda p, c=c: nll(p["W"][c], p["U"][used]), {"W": w, "U": u}, {"W": LR, "U": LR})
        w, u = step["W"], step["U"]
    fused = W.copy()
    for c in contexts:
        gradient = np.zeros(D, np.float32)
        for group in range(size // kernels.GROUP):
            kernels.block_pair(fused[c], B, rate, group, TABLE, gradient)
        fused[c] += gradient
    np.testing.assert_allclose(fused, w, atol=1e-5)
    np.testing.assert_allclose(
        B[: len(rows)][[i for i in range(negative + 1) if rate[i] > 0]], u[used], atol=1e-5
    )


@pytest.mark.parametrize("shared", [True, False])
def test_a_pass_over_one_pair_of_words_is_two_gradient_steps(shared):
    W, U = filled((3, 16), 0), filled((3, 16), 1)
    ids, offsets = np.array([1, 2], np.int32), np.array([0, 2], np.int64)
    keep = np.full(3, 2**32 - 1, np.uint32)
    w, u = W.copy(), U.copy()
    pairs = kernels.skip_gram_pass(
        ids, offsets, 0, 1, w, u, keep, *only(0), TABLE, 4, 1, shared, LR, 1.0, 0, 1, 9
    )  # fmt: skip
    assert pairs == 2
    first = sgd_step(lambda p: nll(p["W"][2], p["U"][[1, 0]]), {"W": W, "U": U}, {"W": LR, "U": LR})
    both = sgd_step(lambda p: nll(p["W"][1], p["U"][[2, 0]]), first, {"W": LR, "U": LR})
    np.testing.assert_allclose(w, both["W"], atol=1e-5)
    np.testing.assert_allclose(u, both["U"], atol=1e-5)


def test_step_falls_linearly_to_its_end():
    """With one word per document there is nothing to learn from; with two the last document moves least."""
    V = 40
    W, U = np.ones((V, 16), np.float32) * 0.1, np.zeros((V, 16), np.float32)
    ids, offsets = np.arange(V, dtype=np.int32), np.arange(0, V + 1, 2)
    kernels.skip_gram_pass(
        ids, offsets, 0, V // 2, W, U, np.full(V, 2**32 - 1, np.uint32), *only(0), TABLE, 1, 1, False, 0.5,
        0.1, 0, 1, 2,
    )  # fmt: skip
    moved = np.abs(U).sum(axis=1)[2:].reshape(-1, 2).sum(axis=1)
    expected = 0.5 * (1 - 0.9 * np.arange(1, V // 2) / (V // 2))
    np.testing.assert_allclose(moved / moved[0], expected / expected[0], rtol=0.02)


def test_windows_have_one_to_window_words_on_each_side():
    W, U = filled((1, 16), 0), filled((1, 16), 1)
    ids, offsets, keep = np.zeros(4000, np.int32), np.array([0, 4000]), np.full(1, 2**32 - 1, np.uint32)
    pairs = kernels.skip_gram_pass(
        ids, offsets, 0, 1, W, U, keep, *only(0), TABLE, 5, 1, True, 1e-3, 1.0, 0, 1, 4
    )  # fmt: skip
    assert pairs / 4000 == pytest.approx(2 * 3, rel=0.03)


def test_step_falls_over_all_epochs():
    """The second of four epochs starts after a quarter of the fall: 1 - 0.8 / 4 = 0.8 of the first step."""
    ids, offsets, keep = np.array([1, 2], np.int32), np.array([0, 2]), np.full(3, 2**32 - 1, np.uint32)
    moved = []
    for lr, end_share, epoch, epochs in ((0.5, 0.2, 1, 4), (0.4, 1.0, 0, 1)):
        W, U = filled((3, 16), 0), filled((3, 16), 1)
        kernels.skip_gram_pass(
            ids, offsets, 0, 1, W, U, keep, *only(0), TABLE, 2, 1, False, lr, end_share, epoch, epochs, 9
        )  # fmt: skip
        moved.append(U)
    np.testing.assert_allclose(*moved, atol=1e-6)


def test_torch_module_has_the_same_gradient():
    from gradatim.models.skip_gram_torch import SkipGramModule

    W, U = filled((5, 8), 0).astype(np.float64), filled((5, 8), 1).astype(np.float64)
    module = SkipGramModule(torch.from_numpy(W.copy()), torch.from_numpy(U.copy()), sparse=False)
    batch = (
        torch.tensor([2, 4]),
        torch.tensor([[1, 3], [0, 0]]),
        torch.tensor([[True, True], [True, False]]),
        torch.tensor([[0, 2], [1, 1]]),
    )
    module(*batch).backward()

    def loss(p):
        w, u = p["W"], p["U"]
        return nll(w[1], u[[2, 0]]) + nll(w[3], u[[2, 0]]) + nll(w[0], u[[4, 1, 1]])

    step = sgd_step(loss, {"W": W, "U": U}, {"W": 1.0, "U": 1.0})
    np.testing.assert_allclose(W - module.inputs.weight.grad.numpy(), step["W"], atol=1e-10)
    np.testing.assert_allclose(U - module.outputs.weight.grad.numpy(), step["U"], atol=1e-10)


def small(**options):
    return SkipGram(
        **{"n_components": 16, "epochs": 8, "sample": 0.0, "lr": 0.05, "random_state": 0, **options}
    )


@pytest.mark.parametrize(
    "options", [{}, {"shared_negatives": False}, {"device": "cpu", "lr": 0.02, "batch_size": 512}]
)
def test_words_of_a_topic_end_up_together(options):
    model = small(**options).fit(topics())
    assert within_topic(model) > 0.95
    assert model.vectors_.shape == (40, 16)


def test_one_thread_is_bitwise_reproducible_and_two_agree_with_it():
    docs = topics()
    one, again, two = small().fit(docs), small().fit(docs), small(n_jobs=2).fit(docs)
    np.testing.assert_array_equal(one.vectors_, again.vectors_)
    assert not np.array_equal(one.vectors_, small(random_state=1).fit(docs).vectors_)
    overlap = [
        len({w for w, _ in one.most_similar(word, 19)} & {w for w, _ in two.most_similar(word, 19)}) / 19
        for word in one.vocabulary_.words
    ]
    assert np.mean(overlap) > 0.6


def test_noise_words_follow_their_law():
    vocabulary = Vocabulary(("a", "b", "c", "d"), np.array([1000, 100, 10, 1]))
    laws = {0.75: vocabulary.counts**0.75, None: np.log((np.arange(4) + 2) / (np.arange(4) + 1))}
    for exponent, law in laws.items():
        table, state, seen = vocabulary.noise(exponent), np.uint64(compiled.scrambled(1)), np.zeros(4)
        for _ in range(40000):
            state = np.uint64(compiled.next_state(state))
            seen[compiled.draw_word(state, table.threshold, table.other)] += 1
        np.testing.assert_allclose(seen / seen.sum(), law / law.sum(), atol=0.01)


def test_frequent_words_are_sub_sampled_by_the_stated_chance():
    vocabulary = Vocabulary(("a", "b"), np.array([9_900, 100]))
    keep = vocabulary.keep_thresholds(0.01)
    ids = np.zeros(20000, np.int32)
    n, _ = compiled.kept_tokens(
        ids, 0, len(ids), keep, np.empty(len(ids), np.int64), np.uint64(compiled.scrambled(4))
    )
    ratio = 0.01 / 0.99
    assert n / len(ids) == pytest.approx(np.sqrt(ratio) + ratio, abs=0.01)
    assert (vocabulary.keep_thresholds(0.0) == 2**32 - 1).all()


def test_vocabulary_counts_cuts_and_refuses():
    docs = [["b", "a", "b"], ["c", "b", "a"]]
    assert build_vocabulary(docs, 2).words == ("b", "a")
    assert build_vocabulary(docs, 1, max_vocab=1).words == ("b",)
    assert build_vocabulary(docs, 2, ngram=2).words == ("b", "a", "b a")
    with pytest.raises(ValueError, match="min_count=9, but the most frequent of 3 words occurs 3 times"):
        build_vocabulary(docs, 9)
    with pytest.raises(ValueError, match="there is no word"):
        build_vocabulary([[]], 1)
    with pytest.raises(TypeError, match="one string"):
        tokenized("a text")
    with pytest.raises(TypeError, match="document 1 is nan"):
        tokenized([["a"], float("nan")])
    with pytest.raises(TypeError, match="token 3"):
        tokenized([["a", 3]])
    assert tokenized(["Ünder_score Ω, x"]) == [["ünder_score", "ω", "x"]]


def test_documents_words_and_errors():
    model = small(epochs=1).fit([" ".join(d) for d in topics(20)])
    with pytest.warns(UserWarning, match=r"1 of 2 documents \(first: number 1\)"):
        means = model.transform(["a0 a1 zzz", "zzz"])
    np.testing.assert_allclose(means[0], (model.vector("a0") + model.vector("a1")) / 2, atol=1e-6)
    assert not means[1].any()
    with pytest.raises(KeyError, match="zzz"):
        model.most_similar("zzz")
    with pytest.raises(ValueError, match=r"min_lr=1.0 is above lr=0.05"):
        small(min_lr=1.0).fit(topics(4))
    with pytest.raises(ValueError, match="'n_components' parameter of SkipGram"):
        small(n_components=0).fit(topics(4))
    with pytest.raises(FloatingPointError, match="diverged"):
        small(lr=1e30, min_lr=1e29).fit(topics(20))
    assert clone(model).get_params() == model.get_params()


def test_saved_model_is_the_same_model(tmp_path):
    model = small(epochs=1).fit(topics(20))
    model.save(tmp_path / "m")
    again = SkipGram.load(tmp_path / "m")
    np.testing.assert_array_equal(again.vectors_, model.vectors_)
    assert again.vocabulary_.words == model.vocabulary_.words
    assert again.get_params() == model.get_params()
    document = json.loads((tmp_path / "m" / "model.json").read_text())
    for change, message in (
        ({"kind": "ParagraphVector"}, "holds a ParagraphVector, not a SkipGram"),
        ({"format": 99}, "format 99"),
        ({"words": document["words"][1:]}, "do not fit counts"),
        ({"own_tokenizer": True}, "tokenizer"),
        ({"settings": {"depth": 3}}, "'depth', unknown"),
    ):
        (tmp_path / "m" / "model.json").write_text(json.dumps({**document, **change}))
        with pytest.raises(ValueError, match=message):
            SkipGram.load(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text(json.dumps(document))
    (tmp_path / "m" / "arrays.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="no readable"):
        SkipGram.load(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match=r"model.json"):
        SkipGram.load(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gensim_reads_the_vectors():
    pytest.importorskip("gensim")
    model = small(epochs=2).fit(topics(40))
    keyed = model.to_keyed_vectors()
    ours, theirs = model.most_similar("a1", 5), keyed.most_similar("a1", topn=5)
    assert [w for w, _ in ours] == [w for w, _ in theirs]
    np.testing.assert_allclose([s for _, s in ours], [s for _, s in theirs], atol=1e-5)
