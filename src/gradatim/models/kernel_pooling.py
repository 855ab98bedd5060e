"""Soft counts of similarities by Gaussian kernels, without a copy of the similarities per kernel.

    S_k(q) = sum over d of exp(-(M_qd - mu_k)^2 / (2 sigma_k^2))

Written plainly this holds K arrays of the size of M for the backward pass. Here the kernels are taken one at
a time into one buffer, and the backward pass computes their exponentials again:

    dM   = - sum_k dS_k E_k (M - mu_k) / sigma_k^2
    dmu_k  = sum dS_k E_k (M - mu_k) / sigma_k^2        dsigma_k = sum dS_k E_k (M - mu_k)^2 / sigma_k^3

Source: End-to-End Neural Ad-hoc Ranking with Kernel Pooling, SIGIR 2017, arXiv 1706.06613.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST_SIGMA = 1e-4
"""Kernels are kept at least this wide: their gradient grows without bound as sigma goes to 0."""

_FAR = 1e6  # a similarity at which every kernel is exactly 0


def kernel_pooling(
    similarity: Float[Tensor, "*batch query doc"],
    doc_mask: Bool[Tensor, "*batch doc"],
    mu: Float[Tensor, " kernels"],
    sigma: Float[Tensor, " kernels"],
) -> Float[Tensor, "*batch query kernels"]:
    """S_k of every query position over the document positions where `doc_mask` is True.

    Half-precision similarities are pooled in float32: an exact match differs from 1 by more than the narrow
    kernel's width there. Sigmas below 1e-4 count as 1e-4.
    """
    if similarity.dtype in (torch.float16, torch.bfloat16):
        similarity = similarity.float()
    kept = similarity.masked_fill(~doc_mask.unsqueeze(-2), _FAR)
    width = sigma.to(similarity.dtype).clamp(min=LEAST_SIGMA)
    return _KernelSums.apply(kept, mu.to(similarity.dtype), width)


class _KernelSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, similarity: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        ctx.save_for_backward(similarity, mu, sigma)
        buffer = torch.empty_like(similarity)
        steepness = (-0.5 / sigma.square()).unbind()
        sums = []
        for mean, steep in zip(mu.unbind(), steepness, strict=True):
            torch.sub(similarity, mean, out=buffer)
            sums.append(buffer.square_().mul_(steep).exp_().sum(dim=-1))
        return torch.stack(sums, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        similarity, mu, sigma = ctx.saved_tensors
        needs_similarity, needs_mu, needs_sigma = ctx.needs_input_grad
        d_similarity = torch.zeros_like(similarity) if needs_similarity else None
        d_mu, d_sigma = [], []
        away, pull = torch.empty_like(similarity), torch.empty_like(similarity)
        precision = sigma.square().reciprocal()
        for k in range(len(mu)):
            torch.sub(similarity, mu[k], out=away)
            torch.mul(away, away, out=pull).mul_(-0.5 * precision[k]).exp_()
            pull.mul_(away).mul_((grad[..., k] * precision[k]).unsqueeze(-1))  # dS E (M - mu) / sigma^2
            if d_similarity is not None:
                d_similarity.sub_(pull)
            if needs_mu:
                d_mu.append(pull.sum())
            if needs_sigma:
                d_sigma.append(pull.mul_(away).sum() / sigma[k])
        return (
            d_similarity,
            torch.stack(d_mu) if needs_mu else None,
            torch.stack(d_sigma) if needs_sigma else None,
        )
