"""Attention layers with explicit weights that carry out gradient descent on the pairs they read.

Rates follow "Transformers learn in-context by gradient descent" (2022, arXiv 2212.07677): the loss is
(1/2N) sum (w^T x_i - y_i)^2, so a step of rate eta adds (eta / N) X^T (y - X w); gamma of GD++ multiplies the
SUM X^T X. All models come in float64; `.float()` them for speed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradatim.models.linear_attention import LinearAttentionRegressor, LSAConfig
from gradatim.models.linear_self_attention import LinearSelfAttention
from gradatim.models.newton_attention import NewtonAttention, newton

__all__ = [
    "NewtonAttention",
    "copy_layer",
    "divergent",
    "gradient_descent",
    "gradient_descent_pp",
    "newton",
    "preconditioned_gradient_descent",
    "softmax_gradient_descent",
]


def gradient_descent(
    d: int,
    n: int,
    lr: float | Sequence[float],
    steps: int | None = None,
    w0: Float[Tensor, " d"] | None = None,
    *,
    normalize: str | None = None,
    tokens: str = "concat",
) -> LinearAttentionRegressor:
    r"""K layers that are K steps of gradient descent: A = diag(I, 0), V's y-column (w0; -1) eta / n.

    `lr` is one rate for all `steps` (default 1; one looped layer) or a rate per step (layers of their own).
    Divided by n = `n`, or, with `normalize="n"`, by the number of pairs of each context. With
    `tokens="interleaved"` a copying layer comes first and n bounds the length of contexts.

    Raises ValueError for sizes or steps below 1, or where rates and steps differ in number.
    """
    if w0 is not None and w0.shape != (d,):
        raise ValueError(f"w0 must be ({d},), got {tuple(w0.shape)}")
    rates = _per_step(lr, steps, "lr")
    layers = [_products(d, rate, 0.0, w0) for rate in rates]
    return _stack(d, n, layers, _tied(lr), w0, normalize, tokens)


def gradient_descent_pp(
    d: int,
    n: int,
    lr: float | Sequence[float],
    gamma: float | Sequence[float],
    steps: int | None = None,
    *,
    normalize: str | None = None,
    tokens: str = "concat",
) -> LinearAttentionRegressor:
    r"""GD++: besides the step, every x becomes (I - gamma X^T X) x. V = diag(-gamma I, -eta / n).

    `lr` and `gamma` are one number each (looped) or one per step. With `normalize="n"` the layer divides
    everything by the number of pairs, so there `gamma` multiplies the MEAN of x x^T.

    Raises ValueError as `gradient_descent`, and where lr and gamma are of different lengths.
    """
    if steps is None:
        lengths = {len(v) for v in (lr, gamma) if isinstance(v, Sequence)}
        steps = max(lengths, default=1)
    rates, gammas = _per_step(lr, steps, "lr"), _per_step(gamma, steps, "gamma")
    layers = [_products(d, rate, g, None) for rate, g in zip(rates, gammas, strict=True)]
    return _stack(d, n, layers, _tied(lr) and _tied(gamma), None, normalize, tokens)


def preconditioned_gradient_descent(
    matrix: Float[Tensor, "d d"], n: int, steps: int = 1, *, normalize: str | None = None
) -> LinearAttentionRegressor:
    """Steps w <- w + P X^T (y - X w) / n with the fixed matrix P: A = diag(P, 0), V = diag(0, -1 / n).

    Raises ValueError where the matrix is not square.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must be square, got {tuple(matrix.shape)}")
    d = len(matrix)
    a, v = _products(d, 1.0, 0.0, None)
    a[:d, :d] = matrix.to(a)
    return _stack(d, n, [(a, v)] * _count(steps), True, None, normalize, "concat")


def softmax_gradient_descent(d: int, lr: float, epsilon: float = 1e-3) -> LinearAttentionRegressor:
    r"""Two softmax heads: logits +-epsilon x^T x_i, values of opposite sign scaled by 1 / (2 epsilon).

    softmax(+s)_i - softmax(-s)_i = (2/n)(s_i - mean(s)) + O(epsilon^3): constants cancel, the mean of s does
    not. So the layer is one GD step of rate eta on inputs centred over the context,
    w = (eta/n) sum_i y_i (x_i - mean(x)), up to O(epsilon^2), whatever the n.

    Raises ValueError for epsilon at or below 0, or sizes below 1.
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    config = LSAConfig(d=d, num_heads=2, attention="softmax")
    model = LinearAttentionRegressor(config, torch.Generator()).double()
    a, v = _products(d, lr, 0.0, None)
    # The head divides logits by sqrt(key_dim); softmax already averages over the n pairs.
    scale = epsilon * math.sqrt(config.width)
    heads_a = torch.stack([scale * a, -scale * a])
    heads_v = torch.stack([v, -v]) / (2 * epsilon)
    cast(LinearSelfAttention, model.layers[0]).set_products(heads_a, heads_v)
    return model


def copy_layer(d: int, n: int, *, softmax: bool = True, scale: float = 1600.0) -> LinearSelfAttention:
    r"""The layer that turns x_1, y_1, x_2, y_2 ... into (x_1, y_1), ...: every x-token fetches the next y.

    Tokens are [x (d), y, one-hot position (2 n + 1)], as an interleaved LinearAttentionRegressor makes them.
    With softmax the x-token at position p gives the key at p + 1 the logit `scale`, and every token gives
    half of that to position 0, an x-token whose y-entry is 0: y-tokens and the query, which have nothing to
    fetch, read that zero. What is left to the others is exp(-800), which is 0 in float64.

    Raises ValueError for n below 1, or a scale too small for the copy to be exact in float64.
    """
    if n < 1 or d < 1:
        raise ValueError(f"d and n must be at least 1, got d={d}, n={n}")
    if softmax and scale < 80:
        raise ValueError(f"scale below 80 leaks other tokens' labels into the copy, got {scale}")
    length = 2 * n + 1
    width = d + 1 + length
    a = torch.zeros(width, width, dtype=torch.float64)
    code = slice(d + 1, None)
    a[code, code][torch.arange(0, length - 1, 2), torch.arange(1, length, 2)] = scale if softmax else 1.0
    if softmax:
        a[code, code][:, 0] = scale / 2
        a *= math.sqrt(width)
    v = torch.zeros_like(a)
    v[d, d] = 1.0
    layer = LinearSelfAttention(width, attention="softmax" if softmax else "linear").double()
    return layer.set_products(a[None], v[None])


def divergent(
    x: Float[Tensor, "batch n d"], lr: float | Sequence[float], gamma: float | Sequence[float] = 0.0
) -> Bool[Tensor, " batch"]:
    """Contexts on which some step leaves the stable range: eta lambda / n > 2, or gamma lambda >= 1.

    lambda is the largest eigenvalue of the X^T X that the step meets (GD++ shrinks it as it goes).
    """
    n = x.shape[1]
    rates = [lr] if isinstance(lr, float | int) else list(lr)
    gammas = [gamma] if isinstance(gamma, float | int) else list(gamma)
    steps = max(len(rates), len(gammas))
    values = torch.linalg.eigvalsh(x.double().mT @ x.double()).clamp_min(0)
    bad = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for k in range(steps):
        eta, g = rates[min(k, len(rates) - 1)], gammas[min(k, len(gammas) - 1)]
        bad = bad | (eta * values / n > 2).any(-1)
        if g:
            bad = bad | (g * values >= 1).any(-1)
            values = values * (1 - g * values) ** 2
    return bad


def _products(d: int, lr: float, gamma: float, w0: Tensor | None) -> tuple[Tensor, Tensor]:
    """A and V [d + 1, d + 1] of one step, before the division by n."""
    a = torch.zeros(d + 1, d + 1, dtype=torch.float64)
    a[:d, :d] = torch.eye(d)
    v = torch.zeros_like(a)
    v[:d, :d] = -gamma * torch.eye(d, dtype=a.dtype)
    v[d, d] = -lr
    if w0 is not None:
        v[:d, d] = lr * w0.to(v)
    return a, v


def _stack(
    d: int,
    n: int,
    layers: Sequence[tuple[Tensor, Tensor]],
    tied: bool,
    w0: Tensor | None,
    normalize: str | None,
    tokens: str,
) -> LinearAttentionRegressor:
    """A regressor of these products; V's y-column is divided by n here, or by the layer itself."""
    if n < 1 or d < 1:
        raise ValueError(f"d and n must be at least 1, got d={d}, n={n}")
    interleaved = tokens == "interleaved"
    if interleaved and w0 is not None:
        raise ValueError("interleaved tokens start from w0 = 0")
    pairs = 1 if normalize == "n" else n
    # The layer counts keys; interleaved contexts hold two keys per pair.
    keys_per_pair = 2 if normalize == "n" and interleaved else 1
    options: dict[str, Any] = {"tokens": tokens, "normalize": normalize}
    if interleaved:
        options |= {"pos_dim": 2 * n + 1, "attention": "softmax-first"}
        tied = False
    depth = len(layers) + interleaved
    config = LSAConfig(d=d, num_layers=depth, tied=tied, **options)
    model = LinearAttentionRegressor(config, torch.Generator()).double()
    rest = list(model.layers)
    if interleaved:
        rest[0].load_state_dict(copy_layer(d, n).state_dict())
        rest = rest[1:]
    for layer, (a, v) in zip(rest, layers, strict=False):
        v = v * keys_per_pair
        v[:, d] /= pairs
        extra = config.width - d - 1
        padded = [torch.nn.functional.pad(m, (0, extra, 0, extra)) for m in (a, v)]
        cast(LinearSelfAttention, layer).set_products(padded[0][None], padded[1][None])
    if w0 is not None:
        model.w0.copy_(w0)
    return model.requires_grad_(True)


def _per_step(value: float | Sequence[float], steps: int | None, name: str) -> list[float]:
    if isinstance(value, Sequence):
        values = [float(v) for v in value]
        if not values or (steps is not None and steps != len(values)):
            raise ValueError(f"{name} names {len(values)} steps where {steps or 'at least 1'} are asked for")
        return values
    return [float(value)] * _count(1 if steps is None else steps)


def _count(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return steps


def _tied(value: float | Sequence[float]) -> bool:
    return not isinstance(value, Sequence)
