"""One layer of attention against a loop written from its formula."""

from __future__ import annotations

import copy

import pytest
import torch

from gradatim.models import SingleQueryAttention


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(n=3, t=5, d=4, dtype=torch.float64):
    g = generator(1)
    return torch.randn(n, t, d, generator=g).to(dtype), torch.randn(n, d, generator=g).to(dtype)


def by_loop(w, x, z, real):
    pooled, attention = torch.zeros_like(x[:, 0]), torch.zeros(x.shape[:2], dtype=x.dtype)
    for i in range(len(x)):
        logits = [float(x[i, t] @ w @ z[i]) for t in range(x.shape[1]) if real[i, t]]
        weights = torch.tensor(logits, dtype=x.dtype).softmax(0)
        attention[i, real[i]] = weights
        pooled[i] = sum(a * x[i, t] for a, t in zip(weights, real[i].nonzero().flatten(), strict=True))
    return pooled, attention


@pytest.mark.parametrize(
    "options", [{}, {"parameterization": "kq"}, {"parameterization": "kq", "head_dim": 2}]
)
@pytest.mark.parametrize("padded", [False, True])
def test_forward_equals_a_loop(options, padded):
    x, z = inputs()
    mask = torch.zeros(3, 5, dtype=torch.bool)
    if padded:
        mask[0, 3:], mask[2, 0] = True, True
    model = SingleQueryAttention(4, generator=generator(), **options).double()
    junk = x.masked_fill(mask.unsqueeze(-1), float("nan"))
    out, attention = model(junk, z, mask if padded else None)
    pooled, weights = by_loop(model.combined_weight.detach(), x, z, ~mask)
    torch.testing.assert_close(out.detach(), pooled)
    torch.testing.assert_close(attention.detach(), weights)


def test_values_and_heads():
    x, z = inputs()
    v, matrix = torch.ones(4).double(), torch.randn(4, 6, generator=generator(2)).double()
    build = {"generator": generator()}
    pooled, _ = SingleQueryAttention(4, generator=generator()).double()(x, z)
    vector, _ = SingleQueryAttention(4, value=v, generator=generator()).double()(x, z)
    relu, _ = SingleQueryAttention(4, value=matrix, head=lambda u: u.relu().sum(-1), **build).double()(x, z)
    torch.testing.assert_close(vector, pooled @ v)
    torch.testing.assert_close(relu, (pooled @ matrix).relu().sum(-1))


def test_kq_gradients_are_the_chain_rule_of_w():
    x, z = inputs()
    kq = SingleQueryAttention(4, parameterization="kq", head_dim=3, value=torch.ones(4)).double()
    w = SingleQueryAttention(4, value=torch.ones(4)).double()
    with torch.no_grad():
        w.weight.copy_(kq.combined_weight)
    for model in (kq, w):
        model(x, z)[0].square().sum().backward()
    torch.testing.assert_close(kq.key.grad, w.weight.grad @ kq.query.detach())
    torch.testing.assert_close(kq.query.grad, w.weight.grad.T @ kq.key.detach())


def test_state_round_trip_and_seeded_start():
    model = SingleQueryAttention(4, parameterization="kq", value=torch.ones(4), generator=generator(3))
    twin = SingleQueryAttention(4, parameterization="kq", value=torch.zeros(4), generator=generator(3))
    assert torch.equal(model.key, twin.key)
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(model.value, twin.value)
    assert model.key.abs().max() <= 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype):
    x, z = inputs(dtype=dtype)
    out, attention = SingleQueryAttention(4, generator=generator()).to(dtype)(x, z)
    assert out.dtype == dtype
    torch.testing.assert_close(attention.detach().float().sum(-1), torch.ones(3), atol=2e-2, rtol=0)


def test_bad_requests():
    with pytest.raises(ValueError, match="parameterization"):
        SingleQueryAttention(4, parameterization="qk")
    with pytest.raises(ValueError, match="value must have shape"):
        SingleQueryAttention(4, value=torch.ones(3))
    with pytest.raises(ValueError, match="head_dim belongs"):
        SingleQueryAttention(4, head_dim=2)
    with pytest.raises(ValueError, match="at least 1"):
        SingleQueryAttention(4, parameterization="kq", head_dim=0)
