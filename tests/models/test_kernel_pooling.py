"""Kernel pooling against its materialised form and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from gradatim.models.kernel_pooling import LEAST_SIGMA, kernel_pooling


def materialised(similarity, doc_mask, mu, sigma):
    """All kernels at once, as the formula is written."""
    gaps = similarity.unsqueeze(-1) - mu
    each = torch.exp(-gaps.square() / (2 * sigma.square())) * doc_mask[..., None, :, None]
    return each.sum(dim=-2)


def case(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    similarity = (torch.rand(2, 3, 4, 5, generator=g, dtype=torch.float64) * 2 - 1).to(dtype)
    mask = torch.rand(2, 3, 5, generator=g) < 0.7
    mask[0, 0] = False  # a text without a word
    mu = torch.tensor([-0.5, 0.1, 1.0], dtype=dtype)
    sigma = torch.tensor([0.1, 0.3, 0.05], dtype=dtype)
    return similarity.requires_grad_(), mask, mu.requires_grad_(), sigma.requires_grad_()


@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradients_equal_the_materialised_form(seed):
    ours, mask, mu, sigma = case(seed)
    theirs, _, mu2, sigma2 = case(seed)
    a, b = kernel_pooling(ours, mask, mu, sigma), materialised(theirs, mask, mu2, sigma2)
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    pull = torch.randn(a.shape, generator=torch.Generator().manual_seed(9), dtype=a.dtype)
    (a * pull).sum().backward()
    (b * pull).sum().backward()
    for x, y in ((ours, theirs), (mu, mu2), (sigma, sigma2)):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-11, atol=1e-12)


def test_gradcheck():
    similarity, mask, mu, sigma = case()
    assert torch.autograd.gradcheck(
        lambda *args: kernel_pooling(args[0], mask, *args[1:]), (similarity, mu, sigma)
    )
    fixed = mu.detach()
    assert torch.autograd.gradcheck(lambda s: kernel_pooling(s, mask, fixed, fixed.abs()), (similarity,))


def test_masked_positions_count_for_nothing():
    similarity, mask, mu, sigma = case()
    before = kernel_pooling(similarity, mask, mu, sigma)
    changed = torch.where(
        mask.unsqueeze(-2), similarity.detach(), 0.1
    )  # where two kernels are near their peak
    torch.testing.assert_close(kernel_pooling(changed, mask, mu, sigma), before, rtol=0, atol=0)
    assert (before[0, 0] == 0).all()
    before.sum().backward()
    assert (similarity.grad[~mask.unsqueeze(-2).expand_as(similarity)] == 0).all()


def test_half_precision_is_pooled_in_float32():
    similarity, mask, mu, sigma = case(dtype=torch.float32)
    half = similarity.detach().bfloat16().requires_grad_()
    found = kernel_pooling(half, mask, mu, sigma)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, materialised(half.detach().float(), mask, mu, sigma))
    found.sum().backward()
    assert half.grad.dtype == torch.bfloat16


def test_a_kernel_never_gets_narrower_than_the_floor():
    similarity = torch.tensor([[[1.0, 1.0 - 1e-4]]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    mu = torch.ones(1, dtype=torch.float64)
    for sigma in (1e-9, 0.0, -1.0):
        width = torch.tensor([sigma], dtype=torch.float64, requires_grad=True)
        found = kernel_pooling(similarity, mask, mu, width)
        assert found.item() == pytest.approx(1 + math.exp(-0.5 * (1e-4 / LEAST_SIGMA) ** 2))
        found.sum().backward()
        assert similarity.grad.isfinite().all()
        assert width.grad == 0
