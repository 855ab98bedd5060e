"""Larger problems, limited rank and tied tokens: the routes that small problems do not take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradatim.probes import InfeasibleError, attention_svm
from gradatim.probes import attention_svm_frobenius as frobenius
from gradatim.probes import attention_svm_nuclear as nuclear
from gradatim.tasks import random_instance


def problem(n, t, d, seed=0):
    p = random_instance(n, t, d, seed)
    return p.x, p.z, (p.y[:, None] * (p.x @ p.v)).argmax(-1)


def ratio(a, b):
    return float((a - b).norm() / b.norm())


def test_every_frobenius_route_finds_the_same_solution(monkeypatch):
    data = problem(8, 6, 10)
    by_gram = attention_svm(*data).weight
    monkeypatch.setattr(frobenius, "_solve_gram", lambda problem: None)
    by_rows = attention_svm(*data).weight
    monkeypatch.setattr(frobenius, "WORKING_SET_FROM", 1)
    on_working_set = attention_svm(*data)
    assert ratio(by_gram, by_rows) < 1e-10
    assert ratio(on_working_set.weight, by_rows) < 1e-10
    assert on_working_set.gap < 1e-9


def test_nuclear_working_set_finds_the_same_solution(monkeypatch):
    data = problem(8, 6, 10)
    whole = attention_svm(*data, norm="nuclear", tol=1e-9)
    monkeypatch.setattr(nuclear, "WORKING_SET_FROM", 1)
    grown = attention_svm(*data, norm="nuclear", tol=1e-9)
    assert ratio(grown.weight, whole.weight) < 1e-4
    assert grown.objective == pytest.approx(whole.objective, rel=1e-8)
    assert float(grown.margins[grown.margins != 0].min()) >= 1 - 1e-9


@pytest.mark.parametrize("norm", ["frobenius", "nuclear"])
def test_a_large_problem_is_solved_to_its_certificate(norm):
    x, z, selected = problem(24, 20, 32)
    r = attention_svm(x, z, selected, norm=norm)
    assert r.status == "optimal"
    assert -1e-12 < r.gap < 1e-7
    direct = torch.einsum("nd,ntd->nt", (z @ r.weight.T), x)
    margins = direct.gather(1, selected[:, None]) - direct
    torch.testing.assert_close(margins, r.margins, atol=1e-9, rtol=1e-9)
    assert margins[r.margins != 0].min() >= 1 - 1e-7


@pytest.mark.parametrize("norm", ["frobenius", "nuclear"])
def test_contradictions_are_found_on_the_working_set_too(norm, monkeypatch):
    monkeypatch.setattr(frobenius, "WORKING_SET_FROM", 1)
    x, z, _ = problem(1, 6, 8)
    x, z = x.expand(2, -1, -1), z.expand(2, -1)
    with pytest.raises(InfeasibleError) as caught:
        attention_svm(x, z, torch.tensor([0, 1]), norm=norm)
    assert caught.value.least_norm > 1e8
    assert caught.value.certificate.sum() == pytest.approx(1.0)


def test_limited_rank():
    data = problem(6, 8, 10, seed=2)
    free = attention_svm(*data, norm="nuclear")
    assert free.rank == 4
    same = attention_svm(*data, norm="nuclear", rank=4)
    assert (same.status, same.objective) == ("optimal", pytest.approx(free.objective))
    narrow = attention_svm(*data, norm="nuclear", rank=2)
    assert narrow.status == "local"
    assert narrow.rank <= 2
    assert narrow.objective > free.objective * (1 + 1e-4)
    assert narrow.lower_bound == pytest.approx(free.lower_bound)
    assert float(narrow.margins[narrow.margins != 0].min()) >= 1 - 1e-9
    with pytest.raises(ValueError, match="norm='nuclear'"):
        attention_svm(*data, rank=2)


def test_rank_one_of_one_pair_is_the_closed_form():
    x, z = torch.randn(1, 2, 5, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    u = x[0, 1] - x[0, 0]
    w = attention_svm(x, z, [1], norm="nuclear", rank=1).weight
    torch.testing.assert_close(w, torch.outer(u, z[0]) / (u @ u) / (z[0] @ z[0]), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore")  # cvxpy's own deprecations
@pytest.mark.parametrize("norm", ["frobenius", "nuclear"])
def test_tied_tokens_agree_with_cvxpy_and_with_their_optimality_conditions(norm):
    pytest.importorskip("cvxpy")
    x, z, selected = problem(4, 5, 8)
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[torch.arange(4), selected] = True
    mask[0, (selected[0] + 1) % 5] = mask[2, (selected[2] + 2) % 5] = True
    ours = attention_svm(x, z, mask, norm=norm)
    theirs = attention_svm(x, z, mask, norm=norm, solver="clarabel", tol=1e-9)
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-6)
    logits = torch.einsum("ntd,nd->nt", x, z @ ours.weight.T)
    for i in range(4):
        kept = logits[i, mask[i]]
        assert float(kept.max() - kept.min()) < 1e-6
        assert float(kept.min() - logits[i, ~mask[i]].max()) >= 1 - 1e-6
    assert abs(ours.gap) < 1e-6


def test_devices_precisions_and_lists_are_taken():
    x, z, selected = problem(3, 4, 6)
    w = attention_svm(x, z, selected).weight
    single = attention_svm(x.float(), z.float(), selected.tolist())
    assert single.weight.dtype == torch.float64
    assert ratio(single.weight, w) < 1e-5
    assert ratio(attention_svm(x.bfloat16(), z.bfloat16(), selected).weight, w) < 0.2
    assert ratio(attention_svm(x.tolist(), z.numpy(), np.asarray(selected)).weight, w) < 1e-12


def test_sequences_of_one_token_ask_for_nothing():
    x = torch.randn(2, 1, 3, dtype=torch.float64)
    r = attention_svm(x, None, [0, 0], norm="nuclear")
    assert not r.weight.any()
    assert (r.rank, r.objective, r.gap) == (0, 0.0, 0.0)
