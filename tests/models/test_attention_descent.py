"""The gradient against autograd, its log-domain form against the literal one, and what training selects."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradatim.models.attention_descent import (
    QuadraticHead,
    ReLUHead,
    attention_gradient,
    train_attention,
)
from gradatim.models.single_query_attention import SingleQueryAttention
from gradatim.optim.normalized_sgd import NormalizedSGD
from gradatim.tasks.attention_tokens import (
    orthonormal_instance,
    random_instance,
    random_instances,
    relu_instance,
)


def tensors(count=3, n=6, t=8, d=10):
    i = random_instances(n, t, d, range(count))
    return i.x, i.z, i.y, i.v


def weights(count=3, d=10, scale=1.0):
    return scale * torch.randn(count, d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def loss(x, z, y, v, w):
    a = torch.einsum("bntd,bde,bne->bnt", x, w, z).softmax(-1)
    f = torch.einsum("bnt,bntd,bd->bn", a, x, v)
    return nn.functional.softplus(-y * f).mean(-1).sum()


@pytest.mark.parametrize("d", [10, 70])
def test_gradient_equals_autograd(d):
    data, w = tensors(d=d), weights(d=d).requires_grad_()
    (expected,) = torch.autograd.grad(loss(*data, w), w)
    torch.testing.assert_close(attention_gradient(*data, w.detach()), expected, atol=1e-16, rtol=1e-10)


@pytest.mark.parametrize("kind", ["relu", "quadratic"])
def test_gradient_of_other_heads_equals_autograd(kind):
    x, z, y, v = tensors(d=6)
    w = weights(d=6, scale=3.0).requires_grad_()
    matrix = torch.randn(3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    u = torch.einsum("bnt,bntd->bnd", torch.einsum("bntd,bde,bne->bnt", x, w, z).softmax(-1), x)
    if kind == "relu":
        head, f = ReLUHead(matrix), torch.einsum("bnd,bdk->bnk", u, matrix).relu().sum(-1)
    else:
        head, f = QuadraticHead(v, 0.7), torch.einsum("bnd,bd->bn", u, v) - 0.7 * u.square().sum(-1)
    (expected,) = torch.autograd.grad(nn.functional.softplus(-y * f).mean(-1).sum(), w)
    torch.testing.assert_close(attention_gradient(x, z, y, head, w.detach()), expected, atol=1e-16, rtol=1e-9)
    direction = attention_gradient(x, z, y, head, w.detach(), log_domain=True)
    cosine = nn.functional.cosine_similarity(direction.flatten(1), expected.flatten(1))
    assert (1 - cosine).abs().max() < 1e-10


@pytest.mark.parametrize("parameterization", ["w", "kq"])
def test_ridge_means_the_same_in_both_domains(parameterization):
    data = tensors()
    options = {"parameterization": parameterization, "rate": 0.1, "steps": 40, "ridge": 1e-3}
    literal = train_attention(*data, log_domain=False, **options).weight
    torch.testing.assert_close(train_attention(*data, **options).weight, literal, atol=1e-9, rtol=1e-9)
    free = train_attention(*data, **{**options, "ridge": 0.0}).weight
    assert (free - literal).abs().max() > 1e-3


def test_a_tiny_ridge_stops_growth_in_float32_as_in_float64():
    data = tensors()
    options = {"parameterization": "kq", "rate": 0.3, "steps": 600, "ridge": 2.2e-16}
    double = train_attention(*data, **options).weight
    single = train_attention(*(a.float() for a in data), **options).weight
    assert double.norm(dim=(1, 2)).max() < 200  # without it the norm grows as the square of the step count
    cosine = nn.functional.cosine_similarity(double.flatten(1), single.double().flatten(1))
    assert (1 - cosine).abs().max() < 1e-5


def test_log_domain_points_the_same_way_until_rounding_wins():
    data = tensors()
    for scale in (0.0, 1.0, 5.0):
        a = attention_gradient(*data, weights(scale=scale)).flatten(1)
        b = attention_gradient(*data, weights(scale=scale), log_domain=True).flatten(1)
        assert (1 - nn.functional.cosine_similarity(a, b)).abs().max() < 1e-10


def test_log_domain_survives_saturation_in_float32():
    data = tensors()
    w = train_attention(*data, steps=300).weight
    w = w * (1000 / w.norm(dim=(1, 2), keepdim=True))
    exact = attention_gradient(*data, w, log_domain=True).flatten(1)
    single = attention_gradient(*(a.float() for a in data), w.float(), log_domain=True).flatten(1)
    assert exact.isfinite().all()
    assert (exact.norm(dim=1) > 0).all()
    assert (1 - nn.functional.cosine_similarity(exact, single.double())).abs().max() < 1e-4
    literal = attention_gradient(*(a.float() for a in data), w.float()).flatten(1)
    lost = 1 - nn.functional.cosine_similarity(exact, literal.double())
    assert not lost.abs().max() < 1e-4


@pytest.mark.parametrize("parameterization", ["w", "kq"])
def test_training_equals_the_module_under_normalized_sgd(parameterization):
    data = tensors(count=1)
    found = train_attention(
        *data, parameterization=parameterization, rate=0.1, steps=50, log_domain=False, seeds=[7]
    )
    g = torch.Generator().manual_seed(7)
    model = SingleQueryAttention(10, parameterization=parameterization, value=data[3][0]).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.empty(10, 10, dtype=torch.float64).uniform_(-(10**-0.5), 10**-0.5, generator=g))
    optimizer = NormalizedSGD(model.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        out, _ = model(data[0][0], data[1][0])
        nn.functional.softplus(-data[2][0] * out).mean().backward()
        optimizer.step()
    torch.testing.assert_close(found.weight[0], model.combined_weight.detach(), atol=1e-9, rtol=0)
    _, attention = model(data[0][0], data[1][0])
    torch.testing.assert_close(found.attention[0], attention.detach(), atol=1e-9, rtol=0)


def test_a_problem_does_not_depend_on_its_companions():
    data = tensors(count=4)
    together = train_attention(*data, steps=100, seeds=[0, 1, 2, 3])
    alone = train_attention(*(a[2:3] for a in data), steps=100, seeds=[2])
    torch.testing.assert_close(together.weight[2], alone.weight[0], atol=1e-8, rtol=1e-8)


def test_padding_changes_nothing():
    x, z, y, v = tensors()
    junk = torch.full_like(x[:, :, :2], 3.0)
    mask = torch.zeros(3, 6, 10, dtype=torch.bool)
    mask[:, :, 8:] = True
    for log_domain in (True, False):
        plain = train_attention(x, z, y, v, steps=40, log_domain=log_domain)
        padded = train_attention(
            torch.cat([x, junk], 2), z, y, v, steps=40, log_domain=log_domain, key_padding_mask=mask
        )
        torch.testing.assert_close(plain.weight, padded.weight, atol=1e-9, rtol=0)
        assert padded.attention[:, :, 8:].eq(0).all()


def test_training_saturates_on_one_token_and_keeps_snapshots():
    found = train_attention(*tensors(count=8), steps=300, snapshots=[100, 300])
    assert found.attention.amax(-1).min() > 0.99
    assert sorted(found.snapshots) == [100, 300]
    assert torch.equal(found.snapshots[300], found.weight)


def test_bad_requests():
    data = tensors(count=1)
    with pytest.raises(ValueError, match="stationary"):
        train_attention(*data, parameterization="kq", init="zero")
    with pytest.raises(ValueError, match="needs normalize=True"):
        train_attention(*data, normalize=False)
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        train_attention(*data, ridge=-1.0)
    with pytest.raises(ValueError, match="1 seeds, got 2"):
        train_attention(*data, seeds=[1, 2])
    with pytest.raises(ValueError, match="not padding"):
        train_attention(*data, key_padding_mask=torch.ones(1, 6, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="parameterization"):
        SingleQueryAttention(4, parameterization="x")
    with pytest.raises(ValueError, match="value must have shape"):
        SingleQueryAttention(4, value=torch.ones(3))


def test_generators_are_seeded_and_as_stated():
    one, two = random_instance(6, 8, 10, seed=3), random_instance(6, 8, 10, seed=3)
    assert torch.equal(one.x, two.x)
    assert not torch.equal(one.x, random_instance(6, 8, 10, seed=4).x)
    torch.testing.assert_close(one.x.norm(dim=-1), torch.ones(6, 8).double(), atol=1e-6, rtol=0)
    assert set(one.y.tolist()) <= {-1.0, 1.0}
    # Drawn as float32, v first.
    g = torch.Generator().manual_seed(3)
    v = torch.randn(10, generator=g)
    torch.testing.assert_close(one.v, (v / v.norm()).double(), atol=0, rtol=0)
    o = orthonormal_instance(3, 4, 6, seed=0).x
    torch.testing.assert_close(o @ o.mT, torch.eye(4).double().expand(3, 4, 4), atol=1e-12, rtol=0)
    assert relu_instance(3, 4, 6, seed=0).v.shape == (6, 6)
    with pytest.raises(ValueError, match="orthonormal tokens need"):
        orthonormal_instance(3, 5, 4, seed=0)
    with pytest.raises(ValueError, match="t >= 2"):
        random_instance(3, 1, 4, seed=0)
