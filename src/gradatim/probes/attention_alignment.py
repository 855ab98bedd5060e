"""Comparing key-query matrices: the cosine between two of them, and the numerical rank of one."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def directional_alignment(
    a: Float[Tensor, "*batch d e"], b: Float[Tensor, "*batch2 d e"]
) -> Float[Tensor, "*out"]:
    """<A, B> / (||A||_F ||B||_F) over the last two dimensions, in float64; leading ones broadcast.

    Raises:
        ValueError: if the matrices differ in shape, or one of them is zero and so has no direction.
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[-2:] != b.shape[-2:]:
        raise ValueError(
            f"expected two (batches of) matrices of one shape, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    a, b = a.double(), b.double()
    # Dividing by the largest entry first keeps the squares of very large or small weights finite.
    peaks = [m.abs().amax(dim=(-2, -1), keepdim=True) for m in (a, b)]
    if any(bool((p == 0).any()) for p in peaks):
        raise ValueError("a zero matrix has no direction; train for a step first or leave it out")
    a, b = (m / p for m, p in zip((a, b), peaks, strict=True))
    norms = torch.linalg.matrix_norm(a) * torch.linalg.matrix_norm(b)
    return (a * b).sum(dim=(-2, -1)) / norms


def effective_rank(w: Float[Tensor, "*batch d e"], rtol: float = 1e-4) -> Int[Tensor, "*batch"]:
    """How many singular values exceed `rtol` times the largest; 0 for a zero matrix.

    The tolerance is relative: an absolute one counts the noise of whatever solver made `w`. A solution
    known to a relative accuracy tol carries rank information only for `rtol` well above tol.

    Raises:
        ValueError: if `rtol` is outside [0, 1) or `w` has fewer than two dimensions.
    """
    if w.ndim < 2:
        raise ValueError(f"w must be a matrix or a batch of matrices, got shape {tuple(w.shape)}")
    if not 0.0 <= rtol < 1.0:
        raise ValueError(f"rtol must lie in [0, 1), got {rtol}")
    s = torch.linalg.svdvals(w.double())
    return (s > rtol * s[..., :1]).sum(dim=-1)
