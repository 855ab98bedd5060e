"""The nearest orthogonal matrix by matrix products alone.

    X <- a X + (b X X^T + c (X X^T)^2) X,        X_0 = G / ||G||_F

moves every singular value of G towards 1 and leaves the singular vectors: U S V^T -> U V^T. The quintic
coefficients (Muon, Keller Jordan, 2024) rise fastest from small singular values and end between about 0.7 and
1.2; the cubic ones (1.5, -0.5, 0), which "Nested Learning" (2025, arXiv 2512.24695) derives, converge to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
CUBIC = (1.5, -0.5, 0.0)


def newton_schulz(
    matrices: Float[Tensor, "*batch rows columns"],
    steps: int = 5,
    coefficients: Sequence[float] = QUINTIC,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*batch rows columns"]:
    """Newton-Schulz iterations on every matrix, on its smaller side: O(steps * min^2 * max) each.

    Args:
        matrices: any number of matrices; a zero matrix stays zero.
        steps: iterations; 0 gives G / ||G||_F.
        coefficients: (a, b, c) of the formula above.
        eps: smallest norm that is divided by.
        dtype: computes in this type (torch.bfloat16 on a GPU halves the time); None: that of the input.

    Raises ValueError for negative `steps` or coefficients that are not three.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    if len(coefficients) != 3:
        raise ValueError(f"coefficients must be three numbers (a, b, c), got {tuple(coefficients)}")
    a, b, c = coefficients
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype or matrices.dtype)
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    flat = x.reshape(-1, *x.shape[-2:])
    for _ in range(steps):
        gram = flat @ flat.mT  # [n, small, small]
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        flat = torch.baddbmm(flat, polynomial, flat, beta=a)
    x = flat.reshape(x.shape)
    return (x.mT if tall else x).to(matrices.dtype)


def newton_schulz_many(
    matrices: Sequence[Tensor],
    steps: int = 5,
    coefficients: Sequence[float] = QUINTIC,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """`newton_schulz` of matrices of several shapes: those that share one (or its transpose) in one call."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, m in enumerate(matrices):
        sides = (min(m.shape), max(m.shape))
        groups.setdefault((*sides, m.device, m.dtype), []).append(i)
    found: list[Tensor] = list(matrices)
    for members in groups.values():
        wide = [m.mT if m.shape[0] > m.shape[1] else m for m in (matrices[i] for i in members)]
        if len(wide) == 1:
            results = [newton_schulz(wide[0], steps, coefficients, eps, dtype)]
        else:
            # Stacked in the type of the products: one copy, not two.
            stacked = torch.stack([m.to(dtype or m.dtype) for m in wide])
            together = newton_schulz(stacked, steps, coefficients, eps)
            results = [m.to(wide[0].dtype) for m in together.unbind()]
        for i, result in zip(members, results, strict=True):
            found[i] = result.mT if matrices[i].shape[0] > matrices[i].shape[1] else result
    return found
