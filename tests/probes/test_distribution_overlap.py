"""Overlap, sensitivity and sparsity against loops written from the formulas, and on a tiny model."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.inference import GradientPredictor, InContextPredictor, ZeroShotPredictor
from gradatim.models.causal_lm import untrained_twin
from gradatim.probes.distribution_overlap import (
    accuracy,
    compare,
    compare_distributions,
    kl_divergence,
    overlap_cosine,
    token_overlap,
    total_variation,
    union_cosine,
)
from gradatim.probes.order_sensitivity import RunningSpread, order_sensitivity, spread_of
from gradatim.probes.update_similarity import update_similarity
from gradatim.probes.weight_sparsity import weight_sparsity
from tiny_causal_lm import tiny_gpt2, tiny_llama, tiny_tokenizer

PATTERN = "Review : {text}\nSentiment :{label}"
LABELS = {"1": " positive", "0": " negative"}
DEMOS = ["the film was great", "a dull book", "we all good", "very poor meal"]
ANSWERS = ["1", "0", "1", "0"]
TESTS = ["the meal was fine", "music", "it is a very very bad trip and so poor"]


def draws(count, vocabulary, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(count, vocabulary, generator=generator, dtype=torch.float64)).softmax(-1)


def by_loop(p, q, k):
    """One item, from the formulas."""
    tops = [set(sorted(range(len(d)), key=lambda v: -d[v])[:k]) for d in (p, q)]
    shared, either = tops[0] & tops[1], tops[0] | tops[1]

    def norm(d, where):
        return math.sqrt(sum(d[v] ** 2 for v in where))

    cosine = 0.0
    if shared:
        inner = sum(p[v] * q[v] for v in shared)
        cosine = inner / (norm(p, shared) * norm(q, shared) * math.sqrt(max(1, k - len(shared))))
    union = sum(p[v] * q[v] for v in either) / (norm(p, either) * norm(q, either))
    return {
        "token_overlap": len(shared) / k,
        "overlap_cosine": cosine,
        "union_cosine": union,
        "kl": sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)),
        "total_variation": sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
        "agreement": float(p.index(max(p)) == q.index(max(q))),
    }


@given(st.integers(0, 10**6), st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_measures_are_the_formulas(seed, k):
    p, q = draws(4, 12, seed), draws(4, 12, seed + 1)
    found = compare_distributions(p, q, k)
    for i in range(4):
        for name, value in by_loop(p[i].tolist(), q[i].tolist(), k).items():
            assert found[name][i] == pytest.approx(value, abs=1e-12), name


def test_published_cosine_where_it_is_defined_and_its_repair_where_not():
    p = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04], dtype=torch.float64)
    q = torch.tensor([0.1, 0.5, 0.06, 0.3, 0.04], dtype=torch.float64)
    # top 3 of p: 0, 1, 2; of q: 1, 3, 0; shared 0, 1: two of three, one missing
    inner, norms = 0.5 * 0.1 + 0.3 * 0.5, math.hypot(0.5, 0.3) * math.hypot(0.1, 0.5)
    assert float(overlap_cosine(p, q, 3)) == pytest.approx(inner / norms)
    assert float(overlap_cosine(p, p, 5)) == pytest.approx(1.0)
    assert float(overlap_cosine(p, p.flip(0), 2)) == 0.0
    assert float(union_cosine(p, p, 2)) == pytest.approx(1.0)


def test_extremes():
    p, point = draws(1, 8), torch.eye(8, dtype=torch.float64)[:1]
    assert float(kl_divergence(point, p)) == pytest.approx(-math.log(p[0, 0]))
    assert float(kl_divergence(p, point)) == math.inf
    assert float(total_variation(point, point.roll(1, dims=1))) == 1.0
    for bad in (0, 9):
        for measure in (token_overlap, overlap_cosine, union_cosine):
            with pytest.raises(ValueError, match="vocabulary of 8"):
                measure(p, p, bad)


def test_accuracy_over_the_vocabulary_and_over_the_words():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.2, 0.3, 0.5]])
    full, restricted = accuracy(p, [1, 1, 1], [1, 2])
    assert full.tolist() == [0, 1, 0]
    assert restricted.tolist() == [1, 1, 0]


@pytest.fixture(scope="module")
def predictors():
    parts = (tiny_llama(), tiny_tokenizer(), PATTERN, LABELS)
    icl = InContextPredictor(*parts).fit(DEMOS, ANSWERS)
    gd = GradientPredictor(*parts, lr=0.05, epochs=3, stop=None).fit(DEMOS, ANSWERS)
    return icl, gd, ZeroShotPredictor(*parts)


def test_compare_reads_both_predictors(predictors):
    icl, gd, _ = predictors
    found = compare(icl, gd, TESTS, ["1", "0", "0"], k=5)
    p, q = icl.next_token_proba(TESTS), gd.next_token_proba(TESTS)
    for i in range(3):
        expected = by_loop(p[i].tolist(), q[i].tolist(), 5)
        for name, value in expected.items():
            assert getattr(found, name)[i] == pytest.approx(value, abs=1e-9), name
    truth = np.array(["1", "0", "0"])
    assert found.restricted_a.tolist() == (icl.predict(TESTS) == truth).tolist()
    assert found.restricted_b.tolist() == (gd.predict(TESTS) == truth).tolist()
    assert found.accuracy_a.tolist() == [
        float(p[i].argmax() == icl.label_ids[c]) for i, c in enumerate(truth)
    ]
    assert found.mean()["token_overlap"] == pytest.approx(found.token_overlap.mean())
    assert "3 texts" in str(found)
    assert compare(icl, icl, TESTS).agreement.tolist() == [1, 1, 1]
    assert compare(icl, icl, TESTS).accuracy_a is None
    with pytest.raises(ValueError, match="no word for label 'x'"):
        compare(icl, gd, TESTS, ["1", "0", "x"])


def test_sensitivity_is_the_spread_over_all_orders(predictors):
    icl, _, zero = predictors
    found = order_sensitivity(
        icl, DEMOS, ANSWERS, TESTS, n_orders=30, k=4, reference=zero.next_token_proba(TESTS), keep=True
    )
    every = list(permutations(range(4)))
    assert sorted(found.orders) == sorted(every)
    whole = np.stack([icl.fit(DEMOS, ANSWERS, o).next_token_proba(TESTS).numpy() for o in found.orders])
    std = whole.std(axis=0, ddof=1)
    np.testing.assert_allclose(found.per_text, std.sum(-1), rtol=1e-9)
    assert found.sen == pytest.approx(std.sum(-1).mean())
    words = list(icl.label_ids.values())
    np.testing.assert_allclose(found.on_labels, std[:, words].sum(-1), rtol=1e-9)
    np.testing.assert_allclose(found.probs.numpy(), whole, rtol=1e-9)
    moved = np.abs(whole - zero.next_token_proba(TESTS).numpy()).sum(-1).mean() / 2
    assert found.per_move == pytest.approx(found.sen / moved)
    likeliest = whole.argmax(-1)
    assert found.flips == pytest.approx((likeliest != likeliest[0]).any(0).mean())
    assert (found.top_ids[:, :, 0].numpy() == likeliest).all()
    assert found.top_probs.shape == (24, 3, 4)
    assert "24 orders" in str(found)


def test_full_batch_descent_has_no_order_and_a_constant_none_at_all(predictors):
    parts = (tiny_llama(), tiny_tokenizer(), PATTERN, LABELS)
    full = GradientPredictor(*parts, optimizer="gd", lr=0.05, epochs=2, stop=None)
    assert order_sensitivity(full, DEMOS, ANSWERS, TESTS, 4).sen < 1e-8
    sequential = GradientPredictor(*parts, lr=0.05, epochs=2, stop=None)
    assert order_sensitivity(sequential, DEMOS, ANSWERS, TESTS, 4).sen > 1e-3
    zero = predictors[2]
    reference = zero.next_token_proba(TESTS)
    found = order_sensitivity(zero, DEMOS, ANSWERS, TESTS, 4, reference=reference)
    assert (found.sen, found.flips, found.per_move) == (0.0, 0.0, None)


def test_running_spread_does_not_lose_small_spreads_on_large_means():
    values = [torch.full((1, 1), 1e6 + x, dtype=torch.float64) for x in (0.0, 1e-3, 2e-3)]
    spread = RunningSpread()
    for v in values:
        spread.add(v)
    assert float(spread.std()) == pytest.approx(1e-3, rel=1e-5)
    with pytest.raises(ValueError, match="needs two"):
        RunningSpread().add(values[0]).std()
    with pytest.raises(ValueError, match="k must be"):
        spread_of(draws(2, 5)[:, None], [[0], [1]], [0], k=6)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_sparsity_counts_entries(make):
    model = make()
    table = weight_sparsity(model, [2.0, 10.0])
    if make is tiny_llama:
        per_layer = [layer.self_attn.k_proj.weight for layer in model.model.layers]
    else:
        per_layer = [block.attn.c_attn.weight[:, 16:32] for block in model.transformer.h]
    for column, threshold in enumerate((2.0, 10.0)):
        shares = [float((w.detach().abs() < 1 / threshold).double().mean()) for w in per_layer]
        assert table["key"][column] == pytest.approx(np.mean(shares))
    assert table["threshold"] == [2.0, 10.0]
    assert table["key_std"][0] == pytest.approx(np.mean([float(w.detach().std()) for w in per_layer]))
    with pytest.raises(ValueError, match="no separate"):
        weight_sparsity(torch.nn.Linear(3, 3))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_updates_are_read_where_they_happen(make):
    parts = (make(), tiny_tokenizer(), PATTERN, LABELS)
    icl = InContextPredictor(*parts).fit(DEMOS, ANSWERS)
    gd = GradientPredictor(*parts, lr=0.05, epochs=3, stop=None).fit(DEMOS, ANSWERS)
    before = parts[0].config._attn_implementation
    found = update_similarity(icl, gd, TESTS, ["1", "0", "0"])
    assert parts[0].config._attn_implementation == before
    eager = parts[0]
    eager.set_attn_implementation("eager")
    h = []
    for prompt, trained in ((False, False), (True, False), (False, True)):
        rows = []
        for text in TESTS:
            asked = icl.template.prompt(icl._examples, text) if prompt else icl.template.question(text)
            seen = []
            attentions = [
                m for m in eager.modules() if type(m).__name__ in ("LlamaAttention", "GPT2Attention")
            ]
            handles = [
                m.register_forward_hook(lambda m, a, o, s=seen: s.append(o[0][0, -1])) for m in attentions
            ]
            ids = parts[1](asked, return_tensors="pt").input_ids
            with torch.no_grad():
                if trained:
                    with gd.applied():
                        eager(ids)
                else:
                    eager(ids)
            for handle in handles:
                handle.remove()
            rows.append(torch.stack(seen))
        h.append(torch.stack(rows))
    expected = torch.cosine_similarity(h[1] - h[0], h[2] - h[0], dim=-1).mean(0)
    np.testing.assert_allclose(found.sim_aou, expected.numpy(), atol=1e-5)
    assert np.abs(found.sim_aou_gaussian).max() < 0.6
    assert (found.sim_am <= 1 + 1e-9).all()
    zero = ZeroShotPredictor(*parts)
    words = [icl.label_ids[c] for c in "100"]
    right = [p.next_token_proba(TESTS).argmax(-1).numpy() == words for p in (zero, gd, icl)]
    gained = right[1] & ~right[0]
    assert found.recoverable == gained.sum()
    if gained.any():
        assert found.recovered == pytest.approx(right[2][gained].mean())
    assert "SimAOU" in str(found)


def test_scores_are_those_before_softmax():
    """softmax of the recorded scores is the attention map that the model reports, and equal models agree."""
    from gradatim.probes.update_similarity import _last_scores

    model, tokenizer = tiny_llama(), tiny_tokenizer()
    ids = tokenizer("the film was great", return_tensors="pt").input_ids
    with torch.no_grad():
        with _last_scores(model) as scores:
            model(ids)
        model.set_attn_implementation("eager")
        maps = model(ids, output_attentions=True).attentions
    for score, one in zip(scores, maps, strict=True):
        torch.testing.assert_close(score.softmax(-1), one[:, :, -1], rtol=1e-5, atol=1e-7)


def test_update_similarity_of_a_model_with_itself_and_with_another():
    parts = (tiny_llama(), tiny_tokenizer(), PATTERN, LABELS)
    icl = InContextPredictor(*parts).fit(DEMOS, ANSWERS)
    tiny_step = GradientPredictor(*parts, lr=1e-9, epochs=1, stop=None).fit(DEMOS, ANSWERS)
    same = update_similarity(icl, tiny_step, TESTS)
    np.testing.assert_allclose(same.sim_am_zero_shot, 1.0, atol=1e-6)
    assert same.recovered is None
    assert same.recoverable == 0
    other = GradientPredictor(untrained_twin(parts[0]), *parts[1:], epochs=1).fit(DEMOS, ANSWERS)
    with pytest.raises(ValueError, match="same model"):
        update_similarity(icl, other, TESTS)
    again = update_similarity(icl, tiny_step, TESTS, normalize=True)
    assert again.sim_aou.shape == (3,)
