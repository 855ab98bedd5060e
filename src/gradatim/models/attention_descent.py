r"""Gradient descent on key-query weights of one layer of attention, many problems at once.

Loss (1/n) sum_i ln(1 + exp(-Y_i f_i)) + ridge ||weights||^2 with f_i = h(u_i), u_i = X_i^T a_i,
a_i = softmax(X_i W z_i). With the token scores s_it = x_it^T grad h(u_i) (v^T x_it for a linear head) the
gradient of the loss is (1/n) sum_i l'_i Y_i sum_t a_it (s_it - sum_r a_ir s_ir) x_it z_i^T,
l'_i = -sigmoid(-Y_i f_i).

Once attention saturates, a_it (s_it - sum_r a_ir s_ir) is the difference of numbers that are almost equal,
and then underflows; a normalised step would divide rounding noise by its own norm. The log-domain form works
with la = log softmax, k_i = argmax_t la_it, delta_it = s_it - s_{i,k_i} and df_i = sum_t a_it delta_it:

    c_it = exp(la_it - m) (delta_it - df_i)  for t != k_i,    c_{i,k_i} = -sum of the others,

with m the largest la_it over all t != k_i. The common factor exp(m) is lost in the normalisation, and meets
the ridge as exp(log ridge - m), so that the two stay comparable however small both are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

# Up to this many numbers the outer products x z^T are formed once: two matrix products a step and no more.
FLATTEN_UP_TO = 2**25


@dataclass(frozen=True)
class LinearHead:
    """h(u) = v^T u, one `v` [b, d] per problem."""

    v: Float[Tensor, "b d"]

    def __call__(self, u: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor]:
        """h(u) [b, n] and its gradient [b, n, d]."""
        v = self.v.unsqueeze(1)
        return (u * v).sum(-1), v.expand_as(u)


@dataclass(frozen=True)
class ReLUHead:
    """h(u) = sum relu(V^T u), one `v` [b, d, k] per problem."""

    v: Float[Tensor, "b d k"]

    def __call__(self, u: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor]:
        """h(u) [b, n] and its gradient [b, n, d]."""
        before = u @ self.v
        return before.relu().sum(-1), (before > 0).to(u.dtype) @ self.v.mT


@dataclass(frozen=True)
class QuadraticHead:
    """h(u) = v^T u - penalty ||u||^2: a head that likes averages of several tokens."""

    v: Float[Tensor, "b d"]
    penalty: float

    def __call__(self, u: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor]:
        """h(u) [b, n] and its gradient [b, n, d]."""
        v = self.v.unsqueeze(1)
        return (u * v).sum(-1) - self.penalty * u.square().sum(-1), v - 2.0 * self.penalty * u


Head = LinearHead | ReLUHead | QuadraticHead


@dataclass(frozen=True)
class AttentionDescent:
    """What training found, for every problem of the stack.

    `weight` [b, d, d] (W, or K Q^T), `attention` [b, n, t] at the end, `snapshots` W by step.
    """

    weight: Float[Tensor, "b d d"]
    attention: Float[Tensor, "b n t"]
    snapshots: dict[int, Float[Tensor, "b d d"]]


@dataclass(frozen=True)
class _Problem:
    x: Float[Tensor, "b n t d"]
    z: Float[Tensor, "b n d"]
    y: Float[Tensor, "b n"]
    head: Head
    scores: Float[Tensor, "b n t"] | None  # x^T v, which does not change where the head is linear
    real: Bool[Tensor, "b n t"]
    flat: Float[Tensor, "b nt dd"] | None

    def logits(self, weight: Tensor) -> Float[Tensor, "b n t"]:
        if self.flat is not None:
            out = torch.bmm(self.flat, weight.flatten(1).unsqueeze(-1)).view(self.real.shape)
        else:
            out = torch.einsum("bntd,bnd->bnt", self.x, torch.einsum("bde,bne->bnd", weight, self.z))
        return out.masked_fill(~self.real, -torch.inf)

    def combine(self, coefficients: Float[Tensor, "b n t"]) -> Float[Tensor, "b d d"]:
        """sum_i sum_t c_it x_it z_i^T."""
        d = self.x.shape[-1]
        if self.flat is not None:
            return torch.bmm(coefficients.flatten(1).unsqueeze(1), self.flat).view(-1, d, d)
        pooled = torch.einsum("bnt,bntd->bnd", coefficients, self.x)
        return torch.einsum("bnd,bne->bde", pooled, self.z)


def attention_gradient(
    x: Float[Tensor, "b n t d"],
    z: Float[Tensor, "b n d"],
    y: Float[Tensor, "b n"],
    v: Float[Tensor, "b d"] | Head,
    weight: Float[Tensor, "b d d"],
    *,
    key_padding_mask: Bool[Tensor, "b n t"] | None = None,
    log_domain: bool = False,
) -> Float[Tensor, "b d d"]:
    """Gradient of the logistic loss with respect to W; with `log_domain`, a positive multiple of it.

    `v` is the linear head's vector, or a `LinearHead`, `ReLUHead` or `QuadraticHead`. The multiple differs
    from problem to problem and has no rounding noise however saturated the attention.
    """
    problem = _prepare(x, z, y, v, key_padding_mask)
    return _log_domain(problem, weight)[0] if log_domain else _literal(problem, weight)


def train_attention(
    x: Float[Tensor, "b n t d"],
    z: Float[Tensor, "b n d"],
    y: Float[Tensor, "b n"],
    v: Float[Tensor, "b d"] | Head,
    *,
    parameterization: str = "w",
    rate: float = 1.0,
    steps: int = 1000,
    head_dim: int | None = None,
    normalize: bool = True,
    log_domain: bool = True,
    ridge: float = 0.0,
    init: Literal["uniform", "zero"] = "uniform",
    seeds: Sequence[int] | None = None,
    key_padding_mask: Bool[Tensor, "b n t"] | None = None,
    snapshots: Sequence[int] = (),
) -> AttentionDescent:
    """Full-batch gradient descent on W, or on K and Q each normalised by its own gradient.

    `init="uniform"` draws entries uniform in +-1/sqrt(d) from one CPU generator per problem (`seeds`,
    default 0..b-1), so that a problem's start does not depend on its companions; `"zero"` starts W at 0
    (K, Q cannot: it is a stationary point). `snapshots` lists steps after which W is kept.

    `ridge` adds ridge ||W||^2, or ridge (||K||^2 + ||Q||^2). The paper's code uses machine epsilon: enough to
    stop growth where the loss is rounded away, and what lets the direction of K, Q settle (their weak
    directions otherwise catch up only with the logarithm of time).

    Raises ValueError for a bad parameterization, `log_domain` without `normalize`, or a zero start of K, Q.
    """
    if parameterization not in ("w", "kq"):
        raise ValueError(f"parameterization must be 'w' or 'kq', got {parameterization!r}")
    if log_domain and not normalize:
        raise ValueError("log_domain gives a direction only; it needs normalize=True")
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}")
    if init == "zero" and parameterization == "kq":
        raise ValueError("K = Q = 0 is a stationary point; use init='uniform'")
    b, _, _, d = x.shape
    m = d if head_dim is None or parameterization == "w" else head_dim
    problem = _prepare(x, z, y, v, key_padding_mask)
    seeds = range(b) if seeds is None else seeds
    if len(seeds) != b:
        raise ValueError(f"{b} problems need {b} seeds, got {len(seeds)}")
    start = [_uniform(d, m, seed, init == "zero") for seed in seeds]
    left = torch.stack([a for a, _ in start]).to(x)  # W, or K
    right = torch.stack([c for _, c in start]).to(x)  # Q
    kept: dict[int, Tensor] = {}
    for step in range(1, steps + 1):
        weight = left if parameterization == "w" else left @ right.mT
        if log_domain:
            gradient, scale = _log_domain(problem, weight)
            pull, shrink = _comparable(scale, ridge)
            gradient = pull * gradient
        else:
            gradient, shrink = _literal(problem, weight), 2.0 * ridge
        if parameterization == "w":
            by_left = gradient + shrink * left
        else:
            by_left, by_right = gradient @ right + shrink * left, gradient.mT @ left + shrink * right
            right = right - rate * (_normalized(by_right) if normalize else by_right)
        left = left - rate * (_normalized(by_left) if normalize else by_left)
        if step in snapshots:
            kept[step] = (left if parameterization == "w" else left @ right.mT).clone()
    weight = left if parameterization == "w" else left @ right.mT
    return AttentionDescent(weight, problem.logits(weight).softmax(dim=-1), kept)


def _prepare(x: Tensor, z: Tensor, y: Tensor, v: Tensor | Head, padding: Tensor | None) -> _Problem:
    b, n, t, d = x.shape
    real = torch.ones(b, n, t, dtype=torch.bool, device=x.device) if padding is None else ~padding
    if not bool(real.any(dim=-1).all()):
        raise ValueError("every sequence needs at least one token that is not padding")
    # What stands in padded places must not matter, not even where it is NaN.
    x = x.masked_fill(~real.unsqueeze(-1), 0.0)
    flat = None
    if d <= 64 and b * n * t * d * d <= FLATTEN_UP_TO:
        flat = (x.unsqueeze(-1) * z[:, :, None, None, :]).reshape(b, n * t, d * d)
    head = LinearHead(v) if isinstance(v, Tensor) else v
    scores = torch.einsum("bntd,bd->bnt", x, head.v) if isinstance(head, LinearHead) else None
    return _Problem(x, z, y, head, scores, real, flat)


def _uniform(d: int, m: int, seed: int, zero: bool) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    bound = 0.0 if zero else 1.0 / math.sqrt(d)
    first = torch.empty(d, m, dtype=torch.float64).uniform_(-bound, bound, generator=g)
    return first, torch.empty(d, m, dtype=torch.float64).uniform_(-bound, bound, generator=g)


def _outputs(problem: _Problem, attention: Float[Tensor, "b n t"]) -> tuple[Tensor, Float[Tensor, "b n t"]]:
    """l'_i Y_i of the logistic loss [b, n, 1], and the token scores s_it."""
    if problem.scores is not None:
        outputs = (attention * problem.scores).sum(-1)
        return (-problem.y * torch.sigmoid(-problem.y * outputs)).unsqueeze(-1), problem.scores
    outputs, slope = problem.head(torch.einsum("bnt,bntd->bnd", attention, problem.x))
    scores = torch.einsum("bntd,bnd->bnt", problem.x, slope)
    return (-problem.y * torch.sigmoid(-problem.y * outputs)).unsqueeze(-1), scores


def _literal(problem: _Problem, weight: Tensor) -> Float[Tensor, "b d d"]:
    attention = problem.logits(weight).softmax(dim=-1)
    pull, scores = _outputs(problem, attention)
    inner = attention * (scores - (attention * scores).sum(-1, keepdim=True))
    return problem.combine(pull * inner) / problem.y.shape[-1]


def _log_domain(problem: _Problem, weight: Tensor) -> tuple[Float[Tensor, "b d d"], Float[Tensor, "b 1 1"]]:
    """A direction, and the logarithm of the factor that makes it the gradient."""
    la = F.log_softmax(problem.logits(weight), dim=-1)
    k = la.argmax(dim=-1, keepdim=True)
    pull, scores = _outputs(problem, la.exp())
    delta = scores - scores.gather(-1, k)
    shift = (la.exp() * delta).sum(-1, keepdim=True)
    others = la.scatter(-1, k, -torch.inf)
    m = others.amax(dim=(-2, -1), keepdim=True)
    m = torch.where(m.isfinite(), m, torch.zeros_like(m))
    c = (others - m).exp() * (delta - shift)
    c = c.scatter(-1, k, -c.sum(-1, keepdim=True))
    return problem.combine(pull * c), m - math.log(problem.y.shape[-1])


def _comparable(scale: Float[Tensor, "b 1 1"], ridge: float) -> tuple[Tensor | float, Tensor | float]:
    """Factors of the direction and of the weights in the gradient, the larger of the two being 1."""
    if ridge == 0:
        return 1.0, 0.0
    ratio = math.log(2.0 * ridge) - scale
    return (-ratio).clamp(max=0.0).exp(), ratio.clamp(max=0.0).exp()


def _normalized(gradient: Float[Tensor, "b d m"]) -> Float[Tensor, "b d m"]:
    norm = gradient.norm(dim=(-2, -1), keepdim=True)
    return torch.where(norm > 0, gradient / norm.clamp_min(torch.finfo(gradient.dtype).tiny), gradient)
