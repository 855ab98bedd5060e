r"""Layers of linear attention by their products: the rates they learned, weights in between, repetition.

A layer depends on A = W_Q W_K^T and V = W_V P alone, and on those only up to (A s, V / s). Measures of
"Transformers learn in-context by gradient descent" (2022, arXiv 2212.07677).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.models.linear_attention import LinearAttentionRegressor, LSAConfig
from gradatim.models.linear_self_attention import LinearSelfAttention
from gradatim.probes.context_alignment import split_query
from gradatim.tasks.contexts import ICLBatch


@dataclass(frozen=True)
class LearnedRates:
    """What a layer's products say in the construction's own terms, after A / beta and V beta.

    lr, gamma     eta = -n V_yy and gamma = -mean diag V_xx
    spread        largest deviation of the x-diagonal of A from 1
    off_diagonal  largest entry of A off the x-diagonal, rows and columns of y included
    other         largest entry of V that the construction has as 0, in units of |V_yy|
    """

    lr: float
    gamma: float
    spread: float
    off_diagonal: float
    other: float


def learned_rates(model: LinearAttentionRegressor, n: int, layer: int = 0) -> LearnedRates:
    """Read eta and gamma from a one-head layer trained on contexts of n pairs. Raises as `interpolate`."""
    _refuse_layers(model, allow_untied=True)
    (a,), (v,) = _rescaled(cast(LinearSelfAttention, model.layers[layer]))
    d = model.config.x_width
    diagonal = a.diagonal()[:d]
    rest_v = v.clone()
    rest_v.diagonal().zero_()
    rest_a = a.clone()
    rest_a.diagonal()[:d] = 0
    pairs = 1 if model.config.normalize == "n" else n
    return LearnedRates(
        lr=-pairs * float(v[d, d]),
        gamma=-float(v.diagonal()[:d].mean()),
        spread=float((diagonal - 1).abs().max()),
        off_diagonal=float(rest_a.abs().max()),
        other=float(rest_v.abs().max() / v[d, d].abs()),
    )


def interpolate(
    model: LinearAttentionRegressor,
    construction: LinearAttentionRegressor,
    t: float = 0.5,
    *,
    rescale: bool = True,
    force: bool = False,
) -> LinearAttentionRegressor:
    r"""The model whose products are (1 - t) those of `model` plus t those of `construction`.

    A layer depends on A and V only, and on those only up to (A s, V / s). So both are first brought to one
    scale: A / beta, V beta with beta the mean of the first d diagonal entries of A (`rescale`).

    Raises ValueError for models of different shapes, biases, softmax; and, unless `force`, for several
    heads or layers of their own, where other ambiguities remain (heads permute, layers share signs).
    """
    for each in (model, construction):
        _refuse_layers(each, allow_untied=force, allow_heads=force)
    if len(model.layers) != len(construction.layers) or model.config.width != construction.config.width:
        raise ValueError("interpolation needs models of one shape")
    settings = {**model.config.to_dict(), "key_dim": None}
    between = LinearAttentionRegressor(LSAConfig(**settings), torch.Generator())
    between = _like(between, model)
    for target, ours, theirs in zip(between.layers, model.layers, construction.layers, strict=True):
        read = _rescaled if rescale else _products
        (a, v), (b, w) = (read(cast(LinearSelfAttention, layer)) for layer in (ours, theirs))
        mixed = [(1 - t) * p + t * q.to(p) for p, q in ((a, b), (v, w))]
        cast(LinearSelfAttention, target).set_products(*mixed)
    between.w0.copy_((1 - t) * model.w0 + t * construction.w0.to(model.w0))
    return between


def repeated(
    model: LinearAttentionRegressor, times: int, damping: float = 1.0, *, y_only: bool = False
) -> LinearAttentionRegressor:
    """The model's one layer applied `times` times with this damping, in the y-entries alone if asked."""
    _refuse_layers(model, allow_heads=True)
    settings = {**model.config.to_dict(), "num_layers": times, "damping": damping, "y_only": y_only}
    again = LinearAttentionRegressor(LSAConfig(**settings), torch.Generator())
    again = _like(again, model)
    again.load_state_dict(model.state_dict())
    return again


def repeated_losses(
    model: LinearAttentionRegressor,
    batch: ICLBatch,
    times: int,
    damping: float = 1.0,
    *,
    y_only: bool = False,
) -> Float[Tensor, "times_plus_one batch"]:
    """Half the squared error at the query after 0, 1, ... `times` applications of the layer."""
    x, y, query, label = split_query(batch)
    with torch.no_grad():
        out = repeated(model, times, damping, y_only=y_only)(x, y, query=query, output_hidden_states=True)
    guesses = torch.stack([-state[:, 0, model.config.x_width] for state in out.hidden_states])
    return 0.5 * (guesses - label[:, 0]).square()


def _products(layer: LinearSelfAttention) -> tuple[Tensor, Tensor]:
    a, v = layer.products()
    return a.detach(), v.detach()


def _rescaled(layer: LinearSelfAttention) -> tuple[Tensor, Tensor]:
    """A / beta and V beta of every head, beta the mean of A's diagonal over the entries of x."""
    a, v = _products(layer)
    beta = a.diagonal(dim1=-2, dim2=-1)[:, :-1].mean(-1)[:, None, None]
    if bool((beta.abs() < 1e-3 * a.abs().amax((-2, -1), keepdim=True)).any()):
        warnings.warn(
            "A has no diagonal to rescale by: the layer is not of the construction's form",
            RuntimeWarning,
            stacklevel=3,
        )
    return a / beta, v * beta


def _refuse_layers(
    model: LinearAttentionRegressor, *, allow_untied: bool = False, allow_heads: bool = False
) -> None:
    c = model.config
    if c.num_heads > 1 and not allow_heads:
        raise ValueError(f"products of several heads are not comparable, got num_heads={c.num_heads}")
    if not c.tied and c.num_layers > 1 and not allow_untied:
        raise ValueError("layers of their own are not comparable one by one: tied=False")
    if c.attention != "linear" or c.bias or c.tokens != "concat":
        raise ValueError(
            f"linear attention over concatenated tokens without bias is needed, got "
            f"attention={c.attention!r}, bias={c.bias}, tokens={c.tokens!r}"
        )


def _like(twin: LinearAttentionRegressor, model: LinearAttentionRegressor) -> LinearAttentionRegressor:
    return nn.Module.to(twin, model.w0.device, model.w0.dtype)
