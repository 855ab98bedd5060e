"""Token sequences, queries, labels and a value head for one layer of attention.

The generators of Tarzanagh, Li, Thrampoulidis and Oymak, "Transformers as Support Vector Machines" (2023,
arXiv 2308.16898), as their notebooks draw them: a seeded CPU generator, float32 draws, then a cast to
float64. The order of the draws is part of the instance: v, Y, X, Z for one token per sequence, V, X, Y, Z
for the ReLU problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class AttentionInstance:
    """One problem, or a stack of them: tokens, queries, labels (+-1) and the value head.

    `v` is a vector [d] for a linear head v^T u, or a matrix [d, d] for the head sum(relu(V^T u)).
    """

    x: Float[Tensor, "*batch n t d"]
    z: Float[Tensor, "*batch n d"]
    y: Float[Tensor, "*batch n"]
    v: Float[Tensor, "*batch d"] | Float[Tensor, "*batch d d"]


def random_instance(n: int, t: int, d: int, seed: int) -> AttentionInstance:
    """Unit-norm Gaussian tokens and queries, random signs, a unit-norm linear head; float64.

    `n` sequences of `t` tokens in dimension `d`. Raises ValueError for sizes below 1 (2 for `t`).
    """
    _check_sizes(n, t, d)
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(d, generator=g)
    y = torch.randn(n, generator=g).sign()
    x = torch.randn(n, t, d, generator=g)
    z = torch.randn(n, d, generator=g)
    return AttentionInstance(_unit(x).double(), _unit(z).double(), y.double(), _unit(v).double())


def random_instances(n: int, t: int, d: int, seeds: Sequence[int]) -> AttentionInstance:
    """`random_instance` for every seed, stacked along a leading dimension."""
    return stack([random_instance(n, t, d, seed) for seed in seeds])


def relu_instance(n: int, t: int, d: int, seed: int) -> AttentionInstance:
    """The multi-token problem: V [d, d] normal over its Frobenius norm, drawn before X, Y, Z; float64."""
    _check_sizes(n, t, d)
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(d, d, generator=g)
    x = torch.randn(n, t, d, generator=g)
    y = torch.randn(n, generator=g).sign()
    z = torch.randn(n, d, generator=g)
    return AttentionInstance(_unit(x).double(), _unit(z).double(), y.double(), (v / v.norm()).double())


def orthonormal_instance(n: int, t: int, d: int, seed: int) -> AttentionInstance:
    """Orthonormal tokens within each sequence (t <= d), labels +1, a unit-norm linear head; float64."""
    _check_sizes(n, t, d)
    if t > d:
        raise ValueError(f"t={t} orthonormal tokens need d >= {t}, got d={d}")
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(d, generator=g)
    x = torch.randn(n, t, d, generator=g)
    z = torch.randn(n, d, generator=g)
    u, _, w = torch.linalg.svd(x.double(), full_matrices=False)
    return AttentionInstance(u @ w, _unit(z).double(), torch.ones(n).double(), _unit(v).double())


def planar_instance(t: int, seed: int) -> AttentionInstance:
    """Two sequences in the plane, for pictures of the path that training takes; float64, labels +1.

    `t=3`: tokens 0.3 N(0, I) around (-1, 0) for sequence 0 and (1, 0) for sequence 1. `t=5`: token 0 at
    (1, 0.5) and (1, -0.5), the others 0.5 N(0, I) around (-1, 0). The paper's pictures use seeds 1 and 3.
    """
    if t not in (3, 5):
        raise ValueError(f"t must be 3 or 5, the two pictures of the paper, got {t}")
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(2, generator=g)
    x = torch.randn(2, t, 2, generator=g)
    z = torch.randn(2, 2, generator=g)
    if t == 3:
        x = 0.3 * x + torch.tensor([[-1.0, 0.0], [1.0, 0.0]])[:, None]
    else:
        x = 0.5 * x + torch.tensor([-1.0, 0.0])
        x[:, 0] = torch.tensor([[1.0, 0.5], [1.0, -0.5]])
    return AttentionInstance(x.double(), _unit(z).double(), torch.ones(2).double(), _unit(v).double())


def stack(instances: Sequence[AttentionInstance]) -> AttentionInstance:
    """Stack instances of equal sizes along a new leading dimension."""
    if not instances:
        raise ValueError("no instance to stack")
    return AttentionInstance(
        *(torch.stack([getattr(i, name) for i in instances]) for name in ("x", "z", "y", "v"))
    )


def _unit(a: Tensor) -> Tensor:
    return a / a.norm(dim=-1, keepdim=True)


def _check_sizes(n: int, t: int, d: int) -> None:
    if n < 1 or d < 1 or t < 2:
        raise ValueError(f"need n >= 1, t >= 2 and d >= 1, got n={n}, t={t}, d={d}")
