"""The disambiguated skip-gram: steps against automatic differentiation, then senses of merged words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from text_vector_references import filled, nll, only, sgd_step

from gradatim.models import SenseSkipGram

kernels = pytest.importorskip("gradatim.models.sense_kernels")
compiled = pytest.importorskip("gradatim.models.compiled")
TABLE = compiled.sigmoid_table()
LR, CLASSIFIER_LR, T = 0.05, 0.3, 0.7
V, S, D = 4, 3, 16


def parameters(per_word=True):
    owners = V if per_word else 1
    return {
        "E": filled((V, S, D), 0), "O": filled((V, D), 1), "b": filled(V, 2),
        "A": filled((owners, S, D), 3), "a": filled((owners, S), 4),
    }  # fmt: skip


def one_pass(
    p, assignment, *, words=(1, 2), entropy=0.0, sampled=False, negative=1, expected=None,
    schedule=(LR, CLASSIFIER_LR, 1.0, 0, 1), heat=(T, T), pruned=(),
):  # fmt: skip
    """A pass over one document, every other word a context word, word 0 as noise; new parameters."""
    made = {n: a.copy() for n, a in p.items()}
    expected = np.zeros(V, np.float32) if expected is None else expected
    alive = np.ones(p["E"].shape[:2], np.uint8)
    alive[:, list(pruned)] = 0
    pairs = kernels.sense_pass(
        np.array(words, np.int32), np.array([0, len(words)], np.int64), 0, 1, made["E"], made["O"], made["b"],
        made["A"], made["a"], alive, np.full(V, 2**32 - 1, np.uint32), *only(0),
        expected, TABLE, assignment, sampled, 3, True, negative, True, *schedule[:3], entropy, *heat,
        2.0, *schedule[3:], 7,
    )  # fmt: skip
    assert pairs == len(words) * (len(words) - 1)
    return made


def test_steps_fall_over_all_epochs_and_the_temperature_over_its_own():
    """Epoch 2 of 4 starts at 0.8 of the steps and, cooling over two epochs, half-way between temperatures."""
    p = parameters()
    later = one_pass(p, kernels.SOFTMAX, schedule=(LR, CLASSIFIER_LR, 0.2, 1, 4), heat=(T + 0.3, T - 0.3))
    same = one_pass(p, kernels.SOFTMAX, schedule=(0.8 * LR, 0.8 * CLASSIFIER_LR, 1.0, 0, 1))
    for name, array in same.items():
        np.testing.assert_allclose(later[name], array, atol=1e-6, err_msg=name)


def noise_of(kernel_seed, negative):
    """The Gumbel noise drawn in `one_pass`: after two tokens, for each centre, noise words come first."""
    state = np.uint64(compiled.scrambled(kernel_seed))
    for _ in range(2):
        state = np.uint64(compiled.next_state(state))
    drawn = []
    for _ in range(2):
        for _ in range(negative):
            state = np.uint64(compiled.next_state(state))
        here = []
        for _ in range(S):
            state = np.uint64(compiled.next_state(state))
            here.append(-np.log(-np.log(np.float64(compiled.uniform(state)))))
        drawn.append(here)
    return torch.tensor(drawn, dtype=torch.float64)


def reference(p, assignment, *, entropy=0.0, per_word=True, sampled=False, expected=None):
    rates = {"E": LR, "O": LR, "b": LR, "A": CLASSIFIER_LR, "a": CLASSIFIER_LR}
    gumbel = noise_of(7, 1)
    for place, (word, beside) in enumerate(((1, 2), (2, 1))):

        def loss(q, place=place, word=word, beside=beside):
            owner = word if per_word else 0
            logits = q["A"][owner] @ q["O"][beside].detach() + q["a"][owner]
            noisy = logits + gumbel[place] if assignment == kernels.GUMBEL else logits
            pi = torch.full((S,), 1 / S, dtype=torch.float64)
            if assignment != kernels.UNIFORM:
                pi = torch.softmax(noisy / T, 0)
            v, rows = pi @ q["E"][word], [beside, 0]
            plain = torch.log_softmax(logits, 0)
            spread = -(plain.exp() * plain).sum()
            if sampled:
                scores = q["O"][rows] @ v + q["b"][rows] - torch.from_numpy(expected[rows]).double()
                return -torch.log_softmax(scores, 0)[0] + entropy * spread
            return nll(v, q["O"][rows], q["b"][rows]) + entropy * spread

        p = sgd_step(loss, p, rates)
    return p


@pytest.mark.parametrize("per_word", [True, False])
@pytest.mark.parametrize("entropy", [0.0, -0.5, 0.3])
@pytest.mark.parametrize("assignment", [kernels.SOFTMAX, kernels.GUMBEL])
def test_a_pass_is_a_gradient_step_per_pair(assignment, entropy, per_word):
    p = parameters(per_word)
    ours, expected = one_pass(p, assignment, entropy=entropy), reference(
        p, assignment, entropy=entropy, per_word=per_word
    )  # fmt: skip
    for name in p:
        np.testing.assert_allclose(ours[name], expected[name], atol=1e-5, err_msg=name)


def reference_of_many(p, words, entropy):
    """`one_pass` pair by pair: logits stay, the classifier moves once, by the sum over its pairs."""
    p, rates = {n: a.astype(np.float64) for n, a in p.items()}, {"E": LR, "O": LR, "b": LR, "A": 0, "a": 0}
    for place, word in enumerate(words):
        context = [*words[:place], *words[place + 1 :]]
        ctx = p["O"][context].mean(axis=0)
        logits, push = p["A"][word] @ ctx + p["a"][word], np.zeros(S)
        for beside in context:

            def loss(q, word=word, beside=beside):
                v, rows = torch.softmax(q["l"] / T, 0) @ q["E"][word], [beside, 0]
                plain = torch.log_softmax(q["l"], 0)
                return nll(v, q["O"][rows], q["b"][rows]) - entropy * (plain.exp() * plain).sum()

            p = sgd_step(loss, {**p, "l": logits}, {**rates, "l": 1.0})
            push += p.pop("l") - logits
        p["A"][word] += CLASSIFIER_LR * np.outer(push, ctx)
        p["a"][word] += CLASSIFIER_LR * push
    return p


@pytest.mark.parametrize("entropy", [0.0, -0.5])
def test_a_classifier_moves_by_the_sum_over_its_pairs_the_entropy_counting_for_each(entropy):
    p, words = parameters(), (1, 2, 3, 1)
    ours = one_pass(p, kernels.SOFTMAX, words=words, entropy=entropy)
    for name, array in reference_of_many(p, words, entropy).items():
        np.testing.assert_allclose(ours[name], array, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("assignment", [kernels.SOFTMAX, kernels.HARD])
def test_a_pruned_sense_is_as_if_it_were_not_there(assignment):
    p = parameters()
    p["a"] = np.abs(p["a"]) + 1  # for "hard" a number of contexts
    fewer = {n: array[:, :2].copy() if n in "EAa" else array for n, array in p.items()}
    ours, theirs = one_pass(p, assignment, pruned=[2]), one_pass(fewer, assignment)
    for name, array in theirs.items():
        kept = ours[name][:, :2] if name in "EAa" else ours[name]
        np.testing.assert_allclose(kept, array, atol=1e-6, err_msg=name)


def test_uniform_assignment_leaves_the_classifier_alone():
    p = parameters()
    ours, expected = one_pass(p, kernels.UNIFORM), reference(p, kernels.UNIFORM)
    for name in ("E", "O", "b"):
        np.testing.assert_allclose(ours[name], expected[name], atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(ours["A"], p["A"])


def test_sampled_softmax_takes_off_the_log_of_the_draws():
    p, expected = parameters(), np.array([0.7, -1.0, 0.4, 0.0], np.float32)
    ours = one_pass(p, kernels.SOFTMAX, sampled=True, expected=expected)
    theirs = reference(p, kernels.SOFTMAX, sampled=True, expected=expected)
    for name in p:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, err_msg=name)


def test_hard_assignment_fills_clusters_and_moves_the_nearest():
    p = parameters()
    p["A"][:], p["a"][:] = 0, 0
    p["A"][1, 0], p["a"][1, 0] = -p["O"][2], 1  # far from the context
    p["A"][1, 1], p["a"][1, 1] = 3 * p["O"][2], 1  # in its direction
    p["A"][1, 2], p["a"][1, 2] = np.roll(p["O"][2], 3), 1
    ours = one_pass(p, kernels.HARD)
    np.testing.assert_array_equal(ours["a"][1], [1, 2, 1])
    np.testing.assert_allclose(ours["A"][1, 1], 4 * p["O"][2], rtol=1e-5)
    assert not np.array_equal(ours["E"][1, 1], p["E"][1, 1])
    np.testing.assert_array_equal(ours["E"][1, [0, 2]], p["E"][1, [0, 2]])
    np.testing.assert_array_equal(ours["a"][2], [1, 0, 0])  # an empty cluster goes first


@pytest.mark.parametrize("sampled", [False, True])
def test_torch_module_has_the_same_gradient(sampled):
    from gradatim.models.sense_torch import SenseModule

    p, expected = parameters(), np.array([0.7, -1.0, 0.4, 0.0], np.float32)
    names = {"senses": "E", "outputs": "O", "output_bias": "b", "classifiers": "A", "classifier_bias": "a"}
    weights = {long: torch.from_numpy(p[short]).double() for long, short in names.items()}
    module = SenseModule(weights, sampled, torch.from_numpy(expected).double(), sparse=False)
    one = torch.tensor([1])
    module(
        one, torch.tensor([[2, 3]]), torch.tensor([[True, False]]), torch.tensor([[0]]), T, -0.5
    ).backward()

    def loss(q):
        logits = q["A"][1] @ q["O"][2].detach() + q["a"][1]
        v, rows = torch.softmax(logits / T, 0) @ q["E"][1], [2, 0]
        plain = torch.log_softmax(logits, 0)
        value = nll(v, q["O"][rows], q["b"][rows])
        if sampled:
            scores = q["O"][rows] @ v + q["b"][rows] - torch.from_numpy(expected[rows]).double()
            value = -torch.log_softmax(scores, 0)[0]
        return value + 0.5 * (plain.exp() * plain).sum()

    step = sgd_step(loss, p, dict.fromkeys(p, 1.0))
    for long, short in names.items():
        gradient = getattr(module, long).weight.grad.numpy().reshape(p[short].shape)
        np.testing.assert_allclose(p[short] - gradient, step[short], atol=1e-7, err_msg=long)


# --- What training does ------------------------------------------------------------------------------------


def merged_words(words=10, topics=20, documents=1500, length=30, seed=0):
    """Documents of disjoint topics; token `mixed{i}` stands in topics 2 i and 2 i + 1: two senses each."""
    rng = np.random.default_rng(seed)
    texts, gold = [], []
    for _ in range(documents):
        topic = int(rng.integers(topics))
        text = [f"t{topic}w{j}" for j in rng.integers(0, 30, length)]
        for at in rng.choice(length, 3, replace=False):
            text[at] = f"mixed{topic // 2}"
        texts.append(text)
        gold.append(topic)
    return texts, gold


def small(**options):
    made = {
        "n_senses": 5,
        "n_components": 20,
        "sample": 0.0,
        "warm_epochs": 3,
        "epochs": 5,
        "random_state": 0,
    }
    return SenseSkipGram(**{**made, **options})


def induced(model, texts, gold, words=10):
    scores = []
    for w in range(words):
        token, true, found = f"mixed{w}", [], []
        for text, topic in zip(texts, gold, strict=True):
            for i in [i for i, t in enumerate(text) if t == token]:
                around = text[max(0, i - 5) : i] + text[i + 1 : i + 6]
                true.append(topic)
                found.append(int(model.disambiguate(token, around).argmax()))
        scores.append(adjusted_rand_score(true, found))
    return float(np.mean(scores))


@pytest.fixture(scope="module")
def trained():
    texts, gold = merged_words()
    return small().fit(texts), texts, gold


def test_merged_words_get_their_two_senses_back_and_the_other_three_are_pruned(trained):
    model, texts, gold = trained
    assert induced(model, texts, gold) > 0.8
    in_use = [(model.priors_[model.vocabulary_.index[f"mixed{w}"]] > 0).sum() for w in range(10)]
    assert sum(n == 2 for n in in_use) >= 8
    np.testing.assert_allclose(model.priors_.sum(axis=1), 1.0)


def test_hard_clusters_find_them_too():
    texts, gold = merged_words(documents=800)
    model = small(n_senses=2, assignment="hard").fit(texts)
    assert induced(model, texts, gold) > 0.8


def test_without_the_entropy_reward_senses_collapse():
    texts, _ = merged_words(documents=800)
    kept, lost = (small(entropy=e, warm_epochs=2, epochs=2, n_senses=2).fit(texts) for e in (-1.0, 1.0))
    rows = [kept.vocabulary_.index[f"mixed{w}"] for w in range(10)]
    assert (kept.priors_[rows] > 0).sum() > (lost.priors_[rows] > 0).sum()


def test_probabilities_of_senses(trained):
    model, _, _ = trained
    context = ["t0w1", "t0w2", "unheard"]
    p = model.disambiguate("mixed0", context)
    assert p.sum() == pytest.approx(1.0)
    cold = model.disambiguate("mixed0", context, temperature=0.0)
    assert sorted(cold.tolist()) == [0, 0, 0, 0, 1]
    assert model.disambiguate("mixed0", context, temperature=1e-3).max() > 0.999
    assert cold.argmax() == p.argmax()
    assert not np.array_equal(p, model.disambiguate("mixed0", context, with_word=True))
    np.testing.assert_array_equal(
        model.disambiguate("mixed0", ["unheard"]), model.priors_[model.vocabulary_.index["mixed0"]]
    )
    assert (p[model.priors_[model.vocabulary_.index["mixed0"]] == 0] == 0).all()
    with pytest.raises(KeyError, match="nowhere"):
        model.disambiguate("nowhere", context)
    with pytest.raises(ValueError, match="temperature must be"):
        model.disambiguate("mixed0", context, temperature=-1.0)


def test_neighbours_of_a_sense_are_of_its_topic(trained):
    model, _, _ = trained
    row = model.vocabulary_.index["mixed3"]
    topics = set()
    for sense in np.flatnonzero(model.priors_[row]):
        near = [name.split("w")[0] for name, _ in model.most_similar("mixed3", int(sense), 8)]
        assert max(near.count(t) for t in near) >= 6
        topics.add(max(near, key=near.count))
    assert topics == {"t6", "t7"}
    off = int(np.flatnonzero(model.priors_[row] == 0)[0])
    with pytest.raises(ValueError, match=f"sense {off} of 'mixed3' is not in use"):
        model.most_similar("mixed3", off)


def test_saved_model_is_the_same_model(trained, tmp_path):
    model, texts, _ = trained
    model.save(tmp_path)
    again = SenseSkipGram.load(tmp_path)
    np.testing.assert_array_equal(again.transform(texts[:3]), model.transform(texts[:3]))
    assert again.get_params() == model.get_params()
    keyed = pytest.importorskip("gensim") and model.to_keyed_vectors()
    assert len(keyed) == int((model.priors_ > 0).sum())


def test_training_repeats_itself_and_other_forms_train():
    texts, _ = merged_words(documents=150)
    quick = {"epochs": 1, "warm_epochs": 1, "n_senses": 2}
    first, second = small(**quick).fit(texts), small(**quick).fit(texts)
    np.testing.assert_array_equal(first.vectors_, second.vectors_)
    for options in (
        {"loss": "sampled_softmax", "ns_exponent": None, "negative": 8},
        {"per_word": False},
        {"assignment": "softmax", "full_windows": False, "shared_negatives": False, "n_jobs": 2},
        {"device": "cpu", "batch_size": 2048},
    ):
        model = small(**quick, **options).fit(texts)
        assert np.isfinite(model.vectors_).all()
        assert not np.array_equal(model.vectors_, first.vectors_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_senses": 1}, "'n_senses' parameter of SenseSkipGram"),
        ({"temperature": (1.0, 0.0)}, "both above 0"),
        ({"epochs": 0, "warm_epochs": 0}, "nothing would be trained"),
        ({"assignment": "hard", "device": "cpu"}, "device=None"),
    ],
)
def test_settings_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options).fit(merged_words(documents=60)[0])
