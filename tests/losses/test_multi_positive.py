"""The losses against loops over the formulas, closed-form gradients and the inequalities between them."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.losses import OBJECTIVES, multi_positive_loss
from gradatim.losses.multi_positive import positive_columns, resolve_objective

SCALES = (0.1, 1.0, 8.0)


def brute_force(scores, positive, ignore, objective, normalize=True, positive_sel="all", negative_sel="all"):
    """One query, Python floats, the sums of the formulas written out; rand1-lh is left to other tests."""
    plus = [s for s, p, i in zip(scores, positive, ignore, strict=True) if p and not i]
    minus = [s for s, p, i in zip(scores, positive, ignore, strict=True) if not p and not i]
    if not plus or not minus:
        return None
    z = sum(math.exp(s) for s in minus)
    everything = z + sum(math.exp(s) for s in plus)
    if objective == "infonce":
        return -math.log(math.exp(plus[0]) / (math.exp(plus[0]) + z))
    if objective == "joint-lh":
        total = -sum(math.log(math.exp(s) / everything) for s in plus)
        return total / len(plus) if normalize else total
    if objective == "sum-marg-lh":
        return -math.log(sum(math.exp(s) / everything for s in plus))
    if objective == "expected-rand1-lh":
        return sum(-math.log(math.exp(s) / (math.exp(s) + z)) for s in plus) / len(plus)
    assert objective == "lse-pair"
    plus = {"all": plus, "min": [min(plus)], "max": [max(plus)]}[positive_sel]
    minus = {"all": minus, "max": [max(minus)]}[negative_sel]
    return math.log(1 + sum(math.exp(n - p) for p in plus for n in minus))


def random_case(seed, batch=7, cand=12, scale=3.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    scores = (torch.randn(batch, cand, generator=g, dtype=torch.float64) * scale).to(dtype)
    positive = torch.rand(batch, cand, generator=g) < 0.35
    ignore = torch.rand(batch, cand, generator=g) < 0.2
    positive[0, 0], ignore[0, 0], positive[0, 1], ignore[0, 1] = True, False, False, False
    return scores, positive, ignore


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o != "rand1-lh"])
@pytest.mark.parametrize("seed", range(3))
def test_values_equal_loops_over_the_formula(objective, normalize, seed):
    scores, positive, ignore = random_case(seed)
    rows = multi_positive_loss(
        scores, positive, ignore, objective=objective, normalize=normalize, reduction="none"
    )
    for i, row in enumerate(rows.tolist()):
        expected = brute_force(*(t[i].tolist() for t in (scores, positive, ignore)), objective, normalize)
        assert row == pytest.approx(0.0 if expected is None else expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("positives", ["all", "min", "max"])
@pytest.mark.parametrize("negatives", ["all", "max"])
def test_lse_pair_selectors_equal_loops(positives, negatives):
    scores, positive, ignore = random_case(4)
    rows = multi_positive_loss(
        scores, positive, ignore, positive_selector=positives, negative_selector=negatives, reduction="none"
    )
    for i, row in enumerate(rows.tolist()):
        lists = (t[i].tolist() for t in (scores, positive, ignore))
        expected = brute_force(*lists, "lse-pair", True, positives, negatives)
        assert row == pytest.approx(0.0 if expected is None else expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("objective", ["joint-lh", "sum-marg-lh", "lse-pair", "expected-rand1-lh", "infonce"])
def test_gradients_equal_the_closed_forms_of_the_table(objective):
    g = torch.Generator().manual_seed(5)
    scores = (torch.randn(1, 9, generator=g, dtype=torch.float64) * 2).requires_grad_()
    positive = torch.tensor([[False, True, False, True, True, False, False, False, False]])
    multi_positive_loss(scores, positive, objective=objective, normalize=False, reduction="sum").backward()
    s, p = scores.detach()[0], positive[0]
    softmax_all, negatives = torch.softmax(s, 0), torch.softmax(s[~p], 0)
    z, m = torch.logsumexp(s[~p], 0), int(p.sum())
    expected = torch.zeros_like(s)
    if objective == "infonce":
        first = s[1]
        z_single = torch.logaddexp(z, first)
        expected[1], expected[~p] = torch.exp(first - z_single) - 1, torch.exp(s[~p] - z_single)
    elif objective == "joint-lh":
        expected[p], expected[~p] = m * softmax_all[p] - 1, m * softmax_all[~p]
    elif objective == "sum-marg-lh":
        expected[p] = -(1 - softmax_all[p].sum()) * torch.softmax(s[p], 0)
        expected[~p] = softmax_all[~p]
    elif objective == "lse-pair":
        pull = torch.sigmoid(z + torch.logsumexp(-s[p], 0))
        expected[p], expected[~p] = -pull * torch.softmax(-s[p], 0), pull * negatives
    else:
        pull = torch.sigmoid(z - s[p])
        expected[p], expected[~p] = -pull / m, pull.mean() * negatives
    torch.testing.assert_close(scores.grad[0], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("scale", SCALES)
def test_with_one_positive_all_objectives_are_infonce(scale):
    g = torch.Generator().manual_seed(6)
    scores = torch.randn(50, 20, generator=g, dtype=torch.float64) * scale
    positive = torch.zeros(50, 20, dtype=torch.bool).scatter(1, torch.randint(20, (50, 1), generator=g), True)
    target = positive.int().argmax(1)
    infonce = torch.nn.functional.cross_entropy(scores, target, reduction="none")
    for objective in OBJECTIVES:
        rows = multi_positive_loss(scores, positive, objective=objective, generator=g, reduction="none")
        torch.testing.assert_close(rows, infonce, rtol=1e-13, atol=4e-15)


@given(seed=st.integers(0, 10**6), scale=st.sampled_from(SCALES), count=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_order_of_the_objectives(seed, scale, count):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(4, 10, generator=g, dtype=torch.float64) * scale
    positive = torch.arange(10).expand(4, 10) < count
    rows = {
        o: multi_positive_loss(scores, positive, objective=o, generator=g, reduction="none")
        for o in OBJECTIVES
    }
    z = torch.logsumexp(scores[:, count:], 1, keepdim=True)
    single = torch.log1p(torch.exp(z - scores[:, :count]))
    eps = 1e-12
    assert (rows["sum-marg-lh"] <= rows["expected-rand1-lh"] + eps).all()
    assert (rows["expected-rand1-lh"] <= rows["joint-lh"] + eps).all()
    assert (rows["expected-rand1-lh"] <= rows["lse-pair"] + eps).all()
    assert (rows["lse-pair"] <= single.amax(1) + math.log(count) + eps).all()


def test_joint_lh_is_cross_entropy_to_a_uniform_target_and_never_below_log_m():
    scores, positive, _ = random_case(7)
    positive[:, 0], positive[:, 1] = True, False
    target = positive.double() / positive.sum(1, keepdim=True)
    rows = multi_positive_loss(scores, positive, objective="joint-lh", reduction="none")
    expected = torch.nn.functional.cross_entropy(scores, target, reduction="none")
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-13)
    assert (rows >= positive.sum(1).log() - 1e-12).all()


def test_joint_lh_pushes_a_positive_above_its_share_down():
    scores = torch.tensor([[6.0, 0.0, -6.0]], dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([[True, True, False]])
    multi_positive_loss(scores, positive, objective="joint-lh").backward()
    assert scores.grad[0, 0] > 0 > scores.grad[0, 1]


def test_rand1_averages_to_its_expectation_in_value_and_gradient():
    scores, positive, ignore = random_case(8, batch=1, cand=8, scale=1.0)
    positive[0, :4], ignore[0] = torch.tensor([True, True, True, False]), False
    one = scores.clone().requires_grad_()
    multi_positive_loss(one, positive, objective="expected-rand1-lh").backward()
    draws = 4000
    many = scores.expand(draws, -1).clone().requires_grad_()
    rows = multi_positive_loss(
        many,
        positive.expand(draws, -1),
        objective="rand1-lh",
        generator=torch.Generator().manual_seed(1),
        reduction="none",
    )
    rows.sum().backward()
    expected = multi_positive_loss(scores, positive, objective="expected-rand1-lh")
    error = rows.std() / draws**0.5
    assert abs(rows.mean() - expected) < 5 * error
    torch.testing.assert_close(many.grad.mean(0), one.grad[0], atol=0.03, rtol=0)
    # The other positives are left out of the row: each draw moves exactly one of them.
    assert ((many.grad[:, positive[0]] != 0).sum(1) == 1).all()
    assert rows.unique().numel() == int(positive.sum())


def test_rand1_draws_repeat_with_the_generator():
    scores, positive, ignore = random_case(9)
    values = [
        multi_positive_loss(
            scores, positive, ignore, objective="rand1-lh", generator=torch.Generator().manual_seed(s)
        )
        for s in (3, 3, 4)
    ]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_without_a_side_leave_value_gradient_and_mean(objective):
    scores, positive, _ = random_case(10, batch=4)
    positive[0] = False  # no positive
    positive[1] = True  # no negative
    positive[2:, 0], positive[2:, 1] = True, False
    every = scores.clone().requires_grad_()
    g = torch.Generator()
    # The lots of rand1-lh go row by row: draw for all four rows in both calls.
    full = multi_positive_loss(
        every, positive, objective=objective, generator=g.manual_seed(0), reduction="none"
    )
    assert full[0] == full[1] == 0
    mean = multi_positive_loss(every, positive, objective=objective, generator=g.manual_seed(0))
    torch.testing.assert_close(mean, full[2:].mean())
    mean.backward()
    assert (every.grad[:2] == 0).all()
    assert (every.grad[2:].abs().sum(1) > 0).all()


def test_no_usable_row_raises_or_gives_a_zero_with_a_graph():
    scores = torch.randn(3, 4, requires_grad=True)
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="none of the 3 queries"):
        multi_positive_loss(scores, nothing)
    zero = multi_positive_loss(scores, nothing, if_empty="zero")
    assert zero == 0
    zero.backward()
    assert (scores.grad == 0).all()


def test_ignored_candidates_may_hold_anything():
    scores, positive, ignore = random_case(11)
    clean = multi_positive_loss(scores, positive, ignore)
    dirty = torch.where(ignore, torch.nan, scores).requires_grad_()
    loss = multi_positive_loss(dirty, positive, ignore)
    loss.backward()
    assert loss == clean
    assert (dirty.grad[ignore] == 0).all()
    assert dirty.grad.isfinite().all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_huge_scores_stay_finite(objective):
    scores = torch.tensor([[3e4, -3e4, 2e4], [-6e4, 6e4, 0.0]], requires_grad=True)
    positive = torch.tensor([[True, True, False], [True, False, True]])
    rows = multi_positive_loss(
        scores, positive, objective=objective, generator=torch.Generator(), reduction="none"
    )
    rows.sum().backward()
    assert rows.isfinite().all()
    assert scores.grad.isfinite().all()


def test_aliases_and_unknown_names():
    assert [resolve_objective(a) for a in ("single", "lsepair", "expected_rand1")] == [
        "infonce",
        "lse-pair",
        "expected-rand1-lh",
    ]
    with pytest.raises(ValueError, match=r"objective='lsepear'.*infonce, joint-lh, sum-marg-lh, lse-pair"):
        multi_positive_loss(torch.randn(2, 3), torch.eye(2, 3, dtype=torch.bool), objective="lsepear")


BAD_OPTIONS = """
import torch
from gradatim.losses import multi_positive_loss
scores, mask = torch.randn(2, 3), torch.eye(2, 3, dtype=torch.bool)
for args, options, word in [
    ((scores, mask), {"objective": "rand1-lh"}, "generator"),
    ((scores, mask), {"reduction": "median"}, "median"),
    ((scores, mask), {"positive_selector": "worst"}, "positive_selector='worst'"),
    ((scores, mask), {"negative_selector": "worst"}, "negative_selector='worst'"),
    ((scores, mask), {"objective": "joint-lh", "negative_selector": "max"}, "lse-pair"),
    ((scores, mask), {"weight": torch.tensor([1.0, -1.0])}, "weight"),
    ((scores, mask), {"weight": torch.tensor([1.0, torch.inf])}, "weight"),
    ((scores, mask[:, :2]), {}, "positive_mask has shape (2, 2), scores (2, 3)"),
    ((scores, mask, mask[:1]), {}, "ignore_mask has shape (1, 3), scores (2, 3)"),
]:
    try:
        multi_positive_loss(*args, **options)
    except ValueError as error:
        assert word in str(error), (word, error)
    else:
        raise AssertionError(word)
print("refused")
"""


def test_bad_options_are_refused():
    # In a process of its own: the test run's type checks would speak before ours.
    done = subprocess.run([sys.executable, "-c", BAD_OPTIONS], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "refused", done.stderr[-2000:]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [0, 2])
def test_scores_that_are_not_finite_are_refused(value, column):
    scores = torch.zeros(2, 3)
    scores[1, column] = value
    positive = torch.tensor([[True, False, False], [True, False, False]])
    with pytest.raises(ValueError, match="row 1: scores are not finite"):
        multi_positive_loss(scores, positive, objective="joint-lh", reduction="none")


def test_positive_columns_are_left_aligned_in_order():
    mask = torch.tensor([[False, True, False, True], [False] * 4, [True, True, True, False]])
    columns, valid = positive_columns(mask)
    assert valid.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert columns[0, :2].tolist() == [1, 3]
    assert columns[2].tolist() == [0, 1, 2]
