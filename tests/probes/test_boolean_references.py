"""Reference learners of Boolean prompts against loops, enumeration and independent libraries."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from gradatim.probes import (
    Elimination,
    EliminationClassifier,
    FeedForwardGD,
    GF2Classifier,
    GF2Elimination,
    NearestNeighbours,
    Null,
    SignAveraging,
    TernaryBayes,
    TernaryBayesClassifier,
    score_prompts,
)
from gradatim.probes.boolean_measures import accuracy, balanced_accuracy
from gradatim.probes.boolean_references import check_prompts
from gradatim.tasks import BooleanTask
from gradatim.tasks.boolean_functions import BOOLEAN_CLASSES, all_functions

ALL = (
    Null(), SignAveraging(), NearestNeighbours(), NearestNeighbours(3, "cosine"), Elimination(),
    Elimination("disjunction"), GF2Elimination(), TernaryBayes(), TernaryBayes(inputs=True),
    FeedForwardGD((8,), steps=5, every=2),
)  # fmt: skip


def prompt(name="conjunction", d=5, n=14, batch=12, seed=0, **settings):
    task = BooleanTask(d, name, n, **settings)
    return task.sample(batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("reference", ALL, ids=lambda r: r.name)
def test_an_answer_depends_on_earlier_pairs_and_its_own_input_alone(reference):
    p = prompt()
    found = reference(p.x, p.y)
    for t in (0, 1, 6, 13):
        y = p.y.clone()
        y[:, t:] = -y[:, t:]
        x = p.x.clone()
        x[:, t + 1 :] = -x[:, t + 1 :]
        assert torch.allclose(reference(x, y)[:, t], found[:, t]), t
    assert torch.equal(reference(p.x[3:5], p.y[3:5]), found[3:5]) or "FFN" in reference.name
    assert found.shape == p.y.shape
    assert reference.curve(p.x, p.y).abs().max() <= 1


def test_averaging_against_a_loop():
    p = prompt(seed=1)
    found = SignAveraging()(p.x, p.y)
    assert (found[:, 0] == -1).all()
    for b, t in itertools.product(range(12), range(1, 14)):
        w = sum(p.y[b, j] * p.x[b, j] for j in range(t)) / t
        assert found[b, t] == torch.sign((w @ p.x[b, t] * t).round())


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_neighbours_against_scikit_learn_and_the_tie_rules(k, metric):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(6, 12, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (6, 12), generator=generator).double() * 2 - 1
    found = NearestNeighbours(k, metric)(x, y)
    assert (found[:, 0] == 0).all()
    for b, t in itertools.product(range(6), range(k, 12)):
        peer = KNeighborsClassifier(k, metric=metric).fit(x[b, :t].numpy(), y[b, :t].numpy())
        neighbours = peer.kneighbors(x[b, t][None].numpy(), return_distance=False)[0]
        assert found[b, t] == y[b, neighbours].sum().sign()
    # The label of the first of equals, as the task itself has it, in every prompt of the task.
    tied = BooleanTask(7, "nearest_neighbour", 40, start_idx=5).sample(50, generator=generator)
    if k == 1:
        assert accuracy(NearestNeighbours(1, metric)(tied.x, tied.y), tied.y, tied.scored) == 1.0
    # Equally near points: the earliest counts. Opposite votes: undecided.
    bits = torch.tensor([[[1.0, 1], [-1, -1], [-1, -1], [1, -1]]])
    assert NearestNeighbours(1, metric)(bits, torch.tensor([[1.0, -1, -1, 1]]))[0, 3] == 1
    assert NearestNeighbours(2, metric)(bits, torch.tensor([[1.0, -1, -1, 1]]))[0, 2] == 0


@pytest.mark.parametrize("kind", ["conjunction", "disjunction"])
def test_elimination_against_a_loop(kind):
    p = prompt(kind, seed=2)
    found = Elimination(kind)(p.x, p.y)
    for b in range(12):
        literals = {(i, s) for i in range(5) for s in (1, -1)}
        for t in range(14):
            x = p.x[b, t].tolist()
            if kind == "conjunction":
                answer = 1 if all(x[i] == s for i, s in literals) else -1
            else:
                answer = 1 if any(x[i] == s for i, s in literals) else -1
            assert found[b, t] == answer
            wanted = 1 if kind == "conjunction" else -1
            if p.y[b, t] == wanted:
                literals = {(i, s) for i, s in literals if x[i] == wanted * s}


def test_elimination_is_exact_after_its_teaching_sequence():
    for kind in ("conjunction", "disjunction"):
        p = prompt(kind, d=10, n=30, batch=200, teaching=True)
        assert accuracy(Elimination(kind)(p.x, p.y), p.y, p.scored) == 1.0


def span_answer(xs, ys, x):
    """The label of x implied by a sum of a subset of the rows, found by trying every subset."""
    for size in range(len(xs) + 1):
        for rows in itertools.combinations(range(len(xs)), size):
            total = [sum(xs[r][i] for r in rows) % 2 for i in range(len(x))]
            if total == x:
                return 2 * (sum(ys[r] for r in rows) % 2) - 1
    return 0


def test_gf2_against_every_subset():
    p = prompt("parity", d=4, n=8, batch=10, seed=3)
    found = GF2Elimination()(p.x, p.y)
    bits, labels = (p.x > 0).long().tolist(), (p.y > 0).long().tolist()
    for b, t in itertools.product(range(10), range(8)):
        assert found[b, t] == span_answer(bits[b][:t], labels[b][:t], bits[b][t])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(0, 1000))
def test_gf2_answers_every_parity_once_the_inputs_span(d, seed):
    p = prompt("parity", d=d, n=d + 12, batch=2, seed=seed)
    found = GF2Elimination()(p.x, p.y)
    assert ((found == p.y) | (found == 0)).all()
    for b in range(2):
        pivots: list[int] = []
        for t in range(d + 12):
            v = int("".join(map(str, (p.x[b, t] > 0).long().tolist())), 2)
            for q in pivots:
                v = min(v, v ^ q)
            assert (found[b, t] != 0) == (v == 0)
            if v:
                pivots.append(v)


def brute_force_bayes(x, y, functions, prior, planted, noise, inputs, sign):
    """Posterior by one product per function and position."""
    m, n = x.shape
    found = np.zeros(m)
    for t in range(m):
        votes = {1: 0.0, -1: 0.0}
        for i in range(len(functions)):
            values = functions[torch.tensor([i])](x[None])[0]
            k = int(functions.w[i].abs().sum())
            p = float(prior[i])
            for j in range(t + 1):
                if inputs:
                    p *= 2.0**-n * (1 - planted + planted * 2**k * float(values[j] == sign))
                if j < t:
                    p *= 1 - noise if values[j] == y[j] else noise
            votes[int(values[t])] += p
        total = votes[1] + votes[-1]
        found[t] = (votes[1] - votes[-1]) / total if total > 0 else 0.0
    return found


@pytest.mark.parametrize("name", ["conjunction", "disjunction", "majority", "threshold", "sparse_parity"])
@pytest.mark.parametrize(("inputs", "noise"), [(False, 0.0), (True, 0.0), (True, 0.1)])
def test_bayes_against_the_formula(name, inputs, noise):
    p = prompt(name, d=3, n=6, batch=3, noise=noise, seed=4)
    functions, log_prior = all_functions(name, 3)
    kind = BOOLEAN_CLASSES[name]
    sign = 1 if kind.rule == "dnf" else -1
    found = TernaryBayes(name, inputs, noise)(p.x, p.y)
    for b in range(3):
        expected = brute_force_bayes(
            p.x[b], p.y[b], functions, log_prior.exp(), kind.planted, noise, inputs, sign
        )
        assert np.allclose(found[b], expected, atol=1e-12)


def test_bayes_is_not_beaten_and_inputs_help():
    p = prompt("conjunction", d=6, n=16, batch=1500, seed=5)
    found = {r.name: accuracy(r(p.x, p.y), p.y) for r in ALL if not isinstance(r, FeedForwardGD)}
    best = found["Bayes (labels and inputs)"]
    assert best > found["Bayes (labels only)"] + 0.01
    assert found["Bayes (labels only)"] > max(v for k, v in found.items() if "Bayes" not in k)


def test_bayes_is_calibrated():
    p = prompt("conjunction", d=5, n=10, batch=4000, seed=6)
    probability = (1 + TernaryBayes(inputs=True)(p.x, p.y)) / 2
    for low in np.arange(0, 1, 0.1):
        chosen = (probability >= low) & (probability < low + 0.1)
        if chosen.sum() > 300:
            rate, mean = (p.y[chosen] > 0).double().mean(), probability[chosen].mean()
            assert abs(rate - mean) < 4 * math.sqrt(0.25 / int(chosen.sum())), low


@pytest.mark.parametrize("loss", ["bce", "squared"])
def test_stacked_networks_train_as_single_ones_do(loss):
    p = prompt("majority", d=4, n=9, batch=3)
    reference = FeedForwardGD((6, 5), lr=1e-2, steps=7, every=3, loss=loss)
    weights = reference.initial(6, 4, torch.Generator().manual_seed(0))
    found = reference(p.x, p.y)
    assert (found[:, :3] == 0).all()
    for b, (g, length) in itertools.product(range(3), enumerate((3, 6))):
        own = [w[2 * b + g].double() for w in weights]
        layers = []
        for i in range(0, 6, 2):
            linear = torch.nn.Linear(*own[i].shape, dtype=torch.float64)
            linear.weight.data, linear.bias.data = own[i].T.clone(), own[i + 1][0].clone()
            layers += [linear, torch.nn.ReLU()]
        net = torch.nn.Sequential(*layers[:-1])
        adam = torch.optim.Adam(net.parameters(), lr=1e-2)
        measure = torch.nn.BCEWithLogitsLoss() if loss == "bce" else torch.nn.MSELoss()
        target = (p.y[b, :length] + 1) / 2 if loss == "bce" else p.y[b, :length]
        for _ in range(7):
            adam.zero_grad()
            measure(net(p.x[b, :length])[:, 0], target).backward()
            adam.step()
        assert torch.equal(found[b, length : length + 3], net(p.x[b, length : length + 3])[:, 0].sign())


def test_small_minibatches_and_parts_change_nothing_that_matters():
    p = prompt("majority", d=6, n=20, batch=30)
    whole = FeedForwardGD((16,), steps=60, every=10)
    parts = FeedForwardGD((16,), steps=60, every=10, cells=1)
    assert torch.equal(whole(p.x, p.y), parts(p.x, p.y))
    batched = FeedForwardGD((16,), steps=60, every=10, batch_size=4)
    mask = torch.arange(20) >= 10
    a, b = (accuracy(r(p.x, p.y), p.y, mask.expand_as(p.y)) for r in (whole, batched))
    assert a > 0.65
    assert b > 0.6


# -- measures ------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    y = torch.tensor([[1.0, -1, 1, -1], [1, 1, 1, -1]])
    found = torch.tensor([[0.2, -3, 0, 1], [1, -1, 2, -1]])
    assert accuracy(found, y) == 5 / 8
    assert accuracy(found, y, undecided=0.5) == 5.5 / 8
    assert balanced_accuracy(found, y) == pytest.approx((3 / 5 + 2 / 3) / 2)
    mask = torch.tensor([[False, True, True, True], [False, False, True, True]])
    scores = score_prompts(found, y, mask)
    assert np.isnan(scores.accuracy[0])
    assert scores.accuracy[1:].tolist() == [1.0, 0.5, 0.5]
    assert scores.low[2] == 0.0
    assert scores.high[2] == 1.0
    assert scores.mean == pytest.approx(3 / 5)
    assert scores.null == pytest.approx(3 / 5)
    assert scores.examples_to(0.9) == 1
    assert scores.examples_to(1.1) == 4
    assert str(scores).startswith("mean 0.600")
    with pytest.raises(ValueError, match="both classes"):
        balanced_accuracy(found, torch.ones_like(y))
    with pytest.raises(ValueError, match="no position"):
        accuracy(found, y, torch.zeros_like(mask))


def test_the_band_of_a_partly_scored_position():
    y = torch.ones(50, 2)
    y[:, 1] = -1
    mask = torch.ones(50, 2, dtype=torch.bool)
    mask[10:, 0] = False
    scores = score_prompts(y, y, mask)
    assert scores.accuracy.tolist() == scores.low.tolist() == scores.high.tolist() == [1.0, 1.0]


def test_the_band_covers_what_it_should():
    generator = torch.Generator().manual_seed(0)
    y = torch.ones(400, 200)
    y[:, ::2] = -1
    found = torch.where(torch.rand(400, 200, generator=generator) < 0.8, y, -y)
    scores = score_prompts(found, y)
    inside = ((scores.low <= 0.8) & (scores.high >= 0.8)).mean()
    assert 0.82 < inside < 0.97


# -- refusals ------------------------------------------------------------------------------------------


def test_bad_prompts_are_refused():
    p = prompt()
    with pytest.raises(TypeError, match="floating"):
        check_prompts(p.x.long(), p.y.long())
    with pytest.raises(ValueError, match=r"labels must be -1 or \+1, got 0"):
        Elimination()(p.x, (p.y + 1) / 2)
    with pytest.raises(ValueError, match="inputs must be -1"):
        GF2Elimination()((p.x + 1) / 2, p.y)
    with pytest.raises(ValueError, match="finite"):
        NearestNeighbours()(p.x * math.nan, p.y)
    wide = prompt(d=13)
    with pytest.raises(ValueError, match="n <= 12"):
        TernaryBayes()(wide.x, wide.y)
    for bad in (
        lambda: NearestNeighbours(0),
        lambda: Elimination("parity"),
        lambda: TernaryBayes(noise=0.6),
        lambda: TernaryBayes("xor"),
        lambda: TernaryBayes("dnf"),
        lambda: FeedForwardGD(loss="hinge"),
    ):
        with pytest.raises(ValueError, match=r"must|no Boolean class|not enumerated"):
            bad()


# -- scikit-learn --------------------------------------------------------------------------------------

CLASSIFIERS = (
    EliminationClassifier(),
    EliminationClassifier("disjunction"),
    GF2Classifier(),
    TernaryBayesClassifier(),
    TernaryBayesClassifier("majority"),
)


# Checks of column vectors, of one class and others warn on purpose.
@pytest.mark.filterwarnings("default")
@parametrize_with_checks(list(CLASSIFIERS))
def test_scikit_learn_contract_of_boolean_classifiers(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("classifier", "name"),
    [
        (EliminationClassifier(binarize=None), "conjunction"),
        (EliminationClassifier("disjunction"), "disjunction"),
        (GF2Classifier(), "parity"),
        (TernaryBayesClassifier(noise=0.0), "conjunction"),
        (TernaryBayesClassifier("sparse_parity", noise=0.0), "sparse_parity"),
        (TernaryBayesClassifier(inputs=True, noise=0.0), "conjunction"),
    ],
)
def test_one_example_at_a_time_gives_the_curve(classifier, name):
    p = prompt(name, d=6, n=18, batch=4, seed=8)
    curve = classifier.curve(p.x.numpy(), p.y.numpy())
    assert np.array_equal(curve[1], classifier.curve(p.x[1].numpy(), p.y[1].numpy()))
    for b in range(4):
        x, y = p.x[b].numpy(), p.y[b].numpy()
        labels = np.where(y > 0, "yes", "no")
        classifier.partial_fit(x[:1], labels[:1], classes=["no", "yes"])
        for t in range(1, 18):
            answer = classifier.predict(x[t : t + 1])[0]
            if curve[b, t] != 0:
                assert answer == ("yes" if curve[b, t] > 0 else "no")
            if hasattr(classifier, "predict_proba"):
                assert classifier.predict_proba(x[t : t + 1])[0, 1] == pytest.approx((1 + curve[b, t]) / 2)
            classifier.partial_fit(x[t : t + 1], labels[t : t + 1])
        at_once = type(classifier)(**classifier.get_params())
        if len(set(labels)) == 2:
            assert (at_once.fit(x, labels).predict(x) == classifier.predict(x)).all()
        del classifier.state_


@pytest.mark.parametrize("kind", ["conjunction", "disjunction"])
def test_the_hypothesis_of_elimination_is_the_function_once_taught(kind):
    p = prompt(kind, d=7, n=20, batch=20, teaching=True, seed=9)
    for b in range(20):
        k = int(p.teach_len[b])
        fitted = EliminationClassifier(kind).partial_fit(
            p.x[b, :k].numpy(), p.y[b, :k].numpy(), classes=[-1, 1]
        )
        assert fitted.literals_.tolist() == p.w[b].tolist()
    with pytest.raises(ValueError, match="set binarize"):
        EliminationClassifier(binarize=None).fit(np.array([[0.5], [1.0]]), [0, 1])
    with pytest.raises(ValueError, match="not in classes"):
        fitted.partial_fit(p.x[0].numpy(), np.full(20, 3.0))
