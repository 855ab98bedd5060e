"""Cached gradients are the plain loss's gradients, whatever the chunks."""

from __future__ import annotations

import pytest
import torch

from gradatim.losses import OBJECTIVES, CachedMultiPositiveRankingLoss, MultiPositiveRankingLoss
from tiny_encoder import collate, tiny_encoder, toy_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("encoder")


def value_and_gradient(loss, model, columns):
    features, labels = collate(model, columns)
    model.zero_grad()
    value = loss([dict(f) for f in features], labels)
    value.backward()
    return value.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def duplicated(seed):
    columns = toy_rows(9, 4, seed=seed)
    columns["doc_3"][2] = columns["doc_1"][0]
    columns["query"][5] = columns["query"][1]
    columns["label"][4] = [0, 0, 0, 0]  # left out
    columns["label"][6][3] = -1
    return columns


@pytest.mark.filterwarnings("ignore:1 of 9 queries have no positive:UserWarning")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("chunk", [2, 4, 64])
def test_cached_equals_plain(folder, objective, chunk):
    model = tiny_encoder(folder, seed=2).double()
    columns = duplicated(1)
    plain = MultiPositiveRankingLoss(model, objective=objective)
    cached = CachedMultiPositiveRankingLoss(model, objective=objective, mini_batch_size=chunk)
    value, gradient = value_and_gradient(plain, model, columns)
    cached_value, cached_gradient = value_and_gradient(cached, model, columns)
    torch.testing.assert_close(cached_value, value, rtol=1e-6, atol=1e-9)
    assert len(gradient) == len(cached_gradient) > 5
    for a, b in zip(gradient, cached_gradient, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-8)
    assert cached.masked_duplicates == plain.masked_duplicates > 0


def test_second_pass_repeats_the_dropout_of_the_first(folder):
    model = tiny_encoder(folder, seed=3, dropout=0.4).train()
    loss = CachedMultiPositiveRankingLoss(model, mini_batch_size=3)
    features, labels = collate(model, toy_rows(6, 3, seed=2))
    seen: list[torch.Tensor] = []
    embed = loss.embed_minibatch
    loss.embed_minibatch = lambda *a, **k: [out := embed(*a, **k), seen.append(out[0].detach())][0]
    torch.manual_seed(0)
    loss(features, labels).backward()
    half = len(seen) // 2
    assert half == 8  # 4 columns in 2 mini-batches each
    for first, second in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(first, second)


def test_gradient_scales_with_what_comes_from_above(folder):
    model = tiny_encoder(folder, seed=4)
    features, labels = collate(model, toy_rows(5, 3, seed=3))
    loss = CachedMultiPositiveRankingLoss(model, mini_batch_size=2)
    gradients = []
    for factor in (1.0, 0.25):
        model.zero_grad()
        (loss([dict(f) for f in features], labels) * factor).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0] * 0.25)


def test_evaluation_has_no_graph(folder):
    model = tiny_encoder(folder, seed=4)
    features, labels = collate(model, toy_rows(5, 3, seed=3))
    with torch.no_grad():
        value = CachedMultiPositiveRankingLoss(model, mini_batch_size=2)([dict(f) for f in features], labels)
        plain = MultiPositiveRankingLoss(model)([dict(f) for f in features], labels)
    torch.testing.assert_close(value, plain)
    assert not value.requires_grad


def test_token_budget_gives_the_same_gradient(folder):
    model = tiny_encoder(folder, seed=5)
    columns = toy_rows(7, 3, seed=4)
    _, one = value_and_gradient(MultiPositiveRankingLoss(model), model, columns)
    budget = CachedMultiPositiveRankingLoss(model, mini_batch_size=2, mini_batch_num_tokens=20)
    _, two = value_and_gradient(budget, model, columns)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)


def test_options_and_errors(folder):
    model = tiny_encoder(folder, seed=5)
    loss = CachedMultiPositiveRankingLoss(model, objective="joint-lh", mini_batch_size=7, scale=3.0)
    config = loss.get_config_dict()
    assert (config["objective"], config["mini_batch_size"], config["scale"]) == ("joint-lh", 7, 3.0)
    assert "2101.06983" in loss.citation
    assert "2602.12727" in loss.citation
    with pytest.raises(ValueError, match="mini_batch_size=0"):
        CachedMultiPositiveRankingLoss(model, mini_batch_size=0)
    features, labels = collate(model, toy_rows(3, 2))
    with pytest.raises(RuntimeError, match="has a positive"):
        loss(features, torch.zeros_like(labels))
