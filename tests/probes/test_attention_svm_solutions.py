"""Both SVMs against closed forms, cvxpy, and their own optimality conditions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.models import train_attention
from gradatim.probes import (
    AttentionSVM,
    InfeasibleError,
    attention_direction,
    attention_svm,
    directional_alignment,
    effective_rank,
    locally_optimal,
    selected_tokens,
    selection_quality,
    svm_equivalence,
    token_scores,
)
from gradatim.tasks import random_instance, random_instances

NORMS = ("frobenius", "nuclear")


def solve(*arguments, **options):
    """`attention_svm` with its tensors as arrays."""
    r = attention_svm(*arguments, **options)
    arrays = {k: getattr(r, k).numpy() for k in ("weight", "margins", "support", "dual")}
    return SimpleNamespace(**{**vars(r), "gap": r.gap, **arrays})


def aligned(a, b):
    return float(directional_alignment(torch.as_tensor(a), torch.as_tensor(b)))


def problem(n=6, t=8, d=10, seed=0):
    p = random_instance(n, t, d, seed)
    return p.x.numpy(), p.z.numpy(), token_scores(p.x, p.v, p.y).argmax(-1).numpy()


def pairs(x, z, selected):
    """Every constraint as a matrix (x_sel - x_t) z^T, by loops."""
    return [
        np.outer(x[i, selected[i]] - x[i, t], z[i])
        for i in range(len(x))
        for t in range(x.shape[1])
        if t != selected[i]
    ]


@pytest.mark.parametrize("norm", NORMS)
def test_one_pair_has_a_closed_form(norm):
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(1, 2, 4)), rng.normal(size=(1, 4))
    u = x[0, 1] - x[0, 0]
    result = solve(x, z, [1], norm=norm)
    np.testing.assert_allclose(result.weight, np.outer(u, z[0]) / ((u @ u) * (z[0] @ z[0])), atol=1e-8)
    assert result.rank == 1


@pytest.mark.parametrize("sizes", [(6, 8, 10), (10, 10, 20), (5, 5, 5), (4, 6, 30)])
def test_frobenius_satisfies_its_optimality_conditions(sizes):
    x, z, selected = problem(*sizes)
    r = solve(x, z, selected)
    matrices = pairs(x, z, selected)
    margins = np.array([(r.weight * m).sum() for m in matrices])
    others = np.arange(x.shape[1])[None] != selected[:, None]
    alpha = r.dual[others]
    assert margins.min() >= 1 - 1e-9
    assert alpha.min() >= 0
    np.testing.assert_allclose(alpha * (margins - 1), 0, atol=1e-8)
    np.testing.assert_allclose(sum(a * m for a, m in zip(alpha, matrices, strict=True)), r.weight, atol=1e-9)
    np.testing.assert_allclose(r.margins[others], margins, atol=1e-9)
    assert np.array_equal(r.support[others], np.abs(margins - 1) < 1e-5)
    assert r.gap < 1e-9


@pytest.mark.parametrize("sizes", [(6, 8, 10), (10, 10, 20), (5, 5, 5), (4, 6, 30)])
def test_nuclear_has_a_certificate(sizes):
    x, z, selected = problem(*sizes)
    r = solve(x, z, selected, norm="nuclear")
    matrices = pairs(x, z, selected)
    alpha = np.maximum(r.dual[np.arange(x.shape[1])[None] != selected[:, None]], 0)
    combined = sum(a * m for a, m in zip(alpha, matrices, strict=True))
    assert min((r.weight * m).sum() for m in matrices) >= 1 - 1e-9
    assert np.linalg.norm(combined, 2) <= 1 + 1e-6
    assert alpha.sum() == pytest.approx(np.linalg.norm(r.weight, "nuc"), rel=1e-6)
    assert r.objective <= np.linalg.norm(solve(x, z, selected).weight, "nuc") + 1e-9


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("norm", "solver"),
    [("frobenius", "osqp"), ("frobenius", "clarabel"), ("nuclear", "scs"), ("nuclear", "clarabel")],
)
def test_agrees_with_cvxpy(norm, solver):
    pytest.importorskip("cvxpy")
    x, z, selected = problem(5, 6, 8, seed=2)
    ours = solve(x, z, selected, norm=norm)
    theirs = solve(x, z, selected, norm=norm, solver=solver, tol=1e-8)
    assert theirs.objective == pytest.approx(ours.objective, rel=1e-5)
    assert 1 - aligned(ours.weight, theirs.weight) < (1e-9 if norm == "frobenius" else 1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_scaling_and_rotation(norm):
    x, z, selected = problem(4, 5, 6)
    w = solve(x, z, selected, norm=norm, tol=1e-9).weight
    np.testing.assert_allclose(solve(3 * x, z, selected, norm=norm, tol=1e-9).weight, w / 3, atol=1e-5)
    rng = np.random.default_rng(0)
    r, s = (np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2))
    turned = solve(x @ r.T, z @ s.T, selected, norm=norm, tol=1e-9).weight
    np.testing.assert_allclose(turned, r @ w @ s.T, atol=1e-5)
    doubled = solve(x, z, selected, norm=norm, margin=2.0, tol=1e-9).weight
    np.testing.assert_allclose(doubled, 2 * w, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_contradiction_is_refused_with_a_certificate(norm):
    x, z, _ = problem(1, 4, 6)
    x, z = np.repeat(x, 2, 0), np.repeat(z, 2, 0)
    with pytest.raises(InfeasibleError, match="contradict") as caught:
        solve(x, z, [0, 1], norm=norm)
    y = caught.value.certificate
    total = sum(
        y[i, t] * np.outer(x[i, s] - x[i, t], z[i]) for i, s in ((0, 0), (1, 1)) for t in range(4) if t != s
    )
    assert y.min() >= 0
    assert y.sum() == pytest.approx(1)
    assert np.linalg.norm(total) < 1e-8


def test_duplicates_and_zero_queries_are_found_exactly():
    x, z, selected = problem()
    twin = x.copy()
    twin[2, (selected[2] + 1) % 8] = twin[2, selected[2]]
    with pytest.raises(InfeasibleError, match="equals its selected token"):
        solve(twin, z, selected)
    z[3] = 0
    with pytest.raises(InfeasibleError, match="sequence 3: its query is zero"):
        solve(x, z, selected)


@pytest.mark.parametrize("norm", NORMS)
def test_padding_adds_no_constraint(norm):
    x, z, selected = problem()
    mask = np.zeros((6, 10), dtype=bool)
    mask[:, 8:] = True
    padded = np.concatenate([x, np.full((6, 2, 10), np.nan)], axis=1)
    r = solve(padded, z, selected, norm=norm, key_padding_mask=mask)
    np.testing.assert_allclose(r.weight, solve(x, z, selected, norm=norm).weight, atol=1e-7)
    assert np.isnan(r.margins[:, 8:]).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(1, 7), st.integers(0, 10_000))
def test_any_problem_is_solved_or_certified(n, t, d, seed):
    x, z, selected = problem(n, t, d, seed)
    try:
        r = solve(x, z, selected)
    except InfeasibleError as e:
        found, residual = e.certificate, e.residual
        r = None
    if r is None:
        assert found is not None
        assert residual < 1e-6
    else:
        assert min((r.weight * m).sum() for m in pairs(x, z, selected)) >= 1 - 1e-6


def test_bad_input_is_named():
    x, z, selected = problem()
    for arguments, error, match in [
        ((x[0], z, selected), ValueError, "x must have 3"),
        ((x, z[:2], selected), ValueError, "6 sequences but z has 2"),
        ((x, z, selected + 8), ValueError, "out of range for 8 tokens"),
        ((x, z, None), ValueError, "selected is missing"),
        ((x * np.nan, z, selected), ValueError, "NaN or infinite"),
        (((x * 10).astype(int), z, selected), TypeError, "floating-point"),
        ((x, z, np.zeros((6, 8), dtype=bool)), ValueError, "no selected token"),
    ]:
        with pytest.raises(error, match=match):
            solve(*arguments)
    with pytest.raises(ValueError, match="norm must be one of"):
        solve(x, z, selected, norm="l1")
    with pytest.raises(ValueError, match="OSQP cannot"):
        solve(x, z, selected, norm="nuclear", solver="osqp")


def test_estimator_predicts_the_selected_tokens():
    x, z, selected = problem()
    svm = AttentionSVM(norm="nuclear").fit(x, z, selected)
    assert np.array_equal(svm.predict(x, z), selected)
    assert svm.margin_ == pytest.approx(1 / svm.result_.objective)
    assert svm.is_feasible(x, z, selected)
    assert AttentionSVM(**svm.get_params()).norm == "nuclear"
    assert str(svm.result_).startswith("attention SVM, nuclear norm")


def test_self_attention_takes_its_query_from_the_tokens():
    x, _, selected = problem()
    a = solve(x, None, selected, query_index=2)
    np.testing.assert_allclose(a.weight, solve(x, x[:, 2], selected).weight)


def test_training_finds_the_direction_and_the_crossed_norm_does_not_fit():
    p = random_instances(6, 8, 10, range(8))
    for parameterization, own, other in (("w", *NORMS), ("kq", *NORMS[::-1])):
        trained = train_attention(p.x, p.z, p.y, p.v, parameterization=parameterization, steps=1000)
        matched, crossed = [], []
        for i in range(8):
            chosen = selected_tokens(trained.attention[i])
            for norm, into in ((own, matched), (other, crossed)):
                svm = solve(p.x[i], p.z[i], chosen, norm=norm)
                into.append(aligned(trained.weight[i], svm.weight))
        assert np.mean(matched) > 0.97
        assert np.mean(crossed) < 0.92


def test_equivalence_recovers_a_constructed_split():
    p = random_instance(3, 4, 8, seed=1)
    x, z = p.x.numpy(), p.z.numpy()
    kept = np.zeros((3, 4), dtype=bool)
    kept[:, :2] = True
    direction = solve(x, z, kept).weight
    tie = np.zeros(3)
    for i in range(3):
        tie[i] = (x[i, 0] - x[i, 1]) @ direction @ z[i]
    np.testing.assert_allclose(tie, 0, atol=1e-9)
    # A finite part with known log ratios on top of a long step along the direction.
    target = np.array([0.7, -0.3, 1.2])
    rows = np.stack([np.outer(x[i, 0] - x[i, 1], z[i]).ravel() for i in range(3)])
    finite = np.linalg.lstsq(rows, target, rcond=None)[0].reshape(8, 8)
    weight = finite + 50.0 * direction
    logits = np.einsum("ntd,de,ne->nt", x, weight, z)
    attn = torch.tensor(logits).softmax(-1).numpy()
    found = svm_equivalence(x, z, attn, weight)
    np.testing.assert_allclose(found.direction.numpy(), direction, atol=1e-8)
    np.testing.assert_allclose(found.finite.numpy(), finite, atol=1e-6)
    inside = ((weight - finite) * direction).sum() / (direction**2).sum()
    assert found.scale == pytest.approx(inside)
    assert aligned(found.predicted, weight) > 1 - 1e-9
    assert not found.ambiguous
    with pytest.raises(ValueError, match="ignore < select"):
        svm_equivalence(x, z, attn, weight, select=1e-7)


def test_small_helpers():
    eye = torch.eye(3)
    assert float(directional_alignment(eye, -2 * eye)) == pytest.approx(-1)
    with pytest.raises(ValueError, match="zero matrix"):
        directional_alignment(torch.zeros(2, 2), torch.eye(2))
    assert effective_rank(torch.tensor([1.0, 1e-3, 1e-5]).diag()) == 2
    assert effective_rank(torch.zeros(2, 2)) == 0
    attn = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    assert selected_tokens(attn).tolist() == [0, 2]
    assert selected_tokens(attn, 0.15).tolist() == [[True, True, False], [False, True, True]]
    quality = selection_quality(attn)
    assert quality.tied.tolist() == [True, False]
    assert not quality.converged
    with pytest.raises(ValueError, match="NaN or infinite"):
        selected_tokens(attn * float("nan"))
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    support = torch.tensor([[True, False, False]])
    assert locally_optimal(scores, torch.tensor([1]), support).tolist() == [True]
    assert locally_optimal(scores, torch.tensor([1]), ~support).tolist() == [False]


class TestHeads:
    """Logits from the extracted weights equal the layer's own, before scale, bias and position."""

    def test_multihead_attention(self):
        torch.manual_seed(0)
        layer = torch.nn.MultiheadAttention(12, 3, batch_first=True)
        model = torch.nn.ModuleDict({"attn": layer})
        model.forward = lambda x: layer(x, x, x)
        x = torch.randn(2, 5, 12)
        found = attention_direction(model, x, "attn")
        q, k, _ = layer.in_proj_weight.chunk(3)
        expected = torch.einsum("bthd,bshd->bhts", (x @ q.T).view(2, 5, 3, 4), (x @ k.T).view(2, 5, 3, 4))
        ours = torch.einsum("bsd,hde,bte->bhts", found.inputs, found.weight, found.inputs)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
    @pytest.mark.filterwarnings("ignore")
    def test_transformers(self, kind):
        import transformers as hf

        torch.manual_seed(0)
        if kind == "bert":
            config = hf.BertConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8, vocab_size=20
            )
            model, layer = hf.BertModel(config), "encoder.layer.0.attention.self"
            m = model.get_submodule(layer)
            q, k = m.query.weight, m.key.weight
        elif kind == "gpt2":
            config = hf.GPT2Config(n_embd=16, n_layer=1, n_head=4, vocab_size=20, n_positions=16)
            model, layer = hf.GPT2Model(config), "h.0.attn"
            q, k, _ = model.get_submodule(layer).c_attn.weight.T.chunk(3)
        else:
            config = hf.LlamaConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=8,
                vocab_size=20,
            )
            model, layer = hf.LlamaModel(config), "layers.0.self_attn"
            m = model.get_submodule(layer)
            q, k = m.q_proj.weight, m.k_proj.weight.view(2, 4, 16).repeat_interleave(2, 0).reshape(16, 16)
        found = attention_direction(model, {"input_ids": torch.arange(6)[None]}, layer)
        assert found.inputs.shape == (1, 6, 16)
        for h in range(4):
            rows = slice(4 * h, 4 * h + 4)
            torch.testing.assert_close(found.weight[h], k[rows].T @ q[rows], atol=1e-6, rtol=1e-5)
        with pytest.raises(ValueError, match="no layer 'nowhere'"):
            attention_direction(model, {"input_ids": torch.arange(6)[None]}, "nowhere")
