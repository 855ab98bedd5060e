"""How far apart are two in-context learners? Predictions, errors, weights, and forgetting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Learner = Callable[..., Any]


def predictions(learner: Learner, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Tensor:
    """What a learner predicts, [batch, n], whether it returns a tensor or an ICLOutput; without gradients."""
    with torch.no_grad():
        found = learner(x, y)
    found = getattr(found, "predictions", found)
    if not isinstance(found, Tensor) or found.shape != y.shape:
        shape = tuple(getattr(found, "shape", ()))
        raise ValueError(f"a learner must return predictions {tuple(y.shape)}, got {shape or type(found)}")
    return found


def spd(
    a: Float[Tensor, "batch n"], b: Float[Tensor, "batch n"], d: int, *, robust: bool = False
) -> Float[Tensor, " n"]:
    """Squared prediction difference per prefix, E (a - b)^2 / d, over contexts.

    `robust=True` takes the median over contexts: next to t = d least squares has no finite variance, and a
    handful of contexts makes the mean. Source: Akyurek et al. (2022, arXiv 2211.15661), section 4.1.
    """
    _same(a, b)
    if d < 1:
        raise ValueError(f"d must be at least 1, got {d}")
    square = (a.double() - b.double()).square() / d
    return square.median(dim=0).values if robust else square.mean(dim=0)


def mspd(a: Float[Tensor, "batch n"], b: Float[Tensor, "batch n"], d: int, *, robust: bool = False) -> float:
    """Mean of `spd` over the prefixes of 1 to d - 1 pairs, where algorithms differ most."""
    curve = spd(a, b, d, robust=robust)[1:d]
    if not len(curve):
        raise ValueError("mspd averages over prefixes of 1 to d - 1 pairs: d and n must be at least 2")
    return float(curve.mean())


def similarity_of_errors(
    a: Float[Tensor, "batch n"],
    b: Float[Tensor, "batch n"],
    y: Float[Tensor, "batch n"],
    *,
    skip_first: bool = True,
) -> Float[Tensor, " batch"]:
    """Cosine of the residuals a - y and b - y over the prefixes of each context; the paper averages it.

    With `skip_first` the empty prefix is left out: there every learner predicts about 0, which would make all
    of them alike. Source: Fu et al. (2023, arXiv 2310.17086), section 3.

    Raises ValueError for other shapes or fewer than two prefixes to compare.
    """
    _same(a, b, y)
    residuals = error_directions(torch.stack([a, b]), y, skip_first=skip_first)
    return (residuals[0] * residuals[1]).sum(-1)


def error_directions(
    curves: Float[Tensor, "curves batch n"], y: Float[Tensor, "batch n"], *, skip_first: bool = True
) -> Float[Tensor, "curves batch kept"]:
    """Residuals over prefixes, scaled to length 1; what cannot be scaled (no error, or no number) is 0."""
    start = 1 if skip_first else 0
    if y.shape[1] - start < 2:
        raise ValueError("a cosine of errors needs at least two prefixes to compare")
    errors = (curves.double() - y.double())[..., start:]
    largest = errors.abs().amax(-1, keepdim=True)  # first by the largest: squares may overflow
    errors = torch.where((largest > 0) & largest.isfinite(), errors / largest, 0.0)
    return errors / errors.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def similarity_of_weights(
    a: Float[Tensor, "batch *prefixes d"], b: Float[Tensor, "batch *prefixes d"]
) -> Float[Tensor, " batch"]:
    """Cosine of induced weights, averaged over the prefixes of each context. Fu et al., section 3."""
    _same(a, b)
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)
    return cosine.flatten(1).mean(-1) if cosine.dim() > 1 else cosine


def forgetting(
    learner: Learner,
    x: Float[Tensor, "batch n d"],
    y: Float[Tensor, "batch n"],
    n: int | None = None,
) -> Float[Tensor, " first_n"]:
    """Mean squared error on an input already seen, asked again after the first n pairs.

    Entry g belongs to the pair g places before the end (g = 0: the newest). A learner that keeps what it has
    seen has a flat curve; one that overwrites it rises with g. Fu et al., figure 5.

    Raises ValueError unless 1 <= n <= the length of the contexts.
    """
    count = x.shape[1] if n is None else n
    if not 1 <= count <= x.shape[1]:
        raise ValueError(f"n must be between 1 and {x.shape[1]}, got {count}")
    x, y = x[:, :count], y[:, :count]
    error = (ask(learner, x, y, x) - y).double().square().mean(0)
    return error.flip(0)


def ask(
    learner: Learner,
    x: Float[Tensor, "batch n d"],
    y: Float[Tensor, "batch n"],
    queries: Float[Tensor, "batch q d"],
    chunk: int = 4096,
) -> Float[Tensor, "batch q"]:
    """Answers to many queries after the same n pairs, each asked alone as the next input of its context."""
    batch, count = x.shape[:2]
    q = queries.shape[1]
    if hasattr(learner, "weights") and callable(learner.weights):  # linear: no need to ask one by one
        return torch.einsum("bqd,bd->bq", queries.to(x), learner.weights(x, y))
    rows = torch.arange(batch * q, device=x.device)
    found = torch.empty(batch * q, dtype=y.dtype, device=x.device)
    for part in rows.split(chunk):
        owner, which = part // q, part % q
        asked = torch.cat([x[owner], queries[owner, which][:, None].to(x)], dim=1)
        labels = torch.cat([y[owner], y.new_zeros(len(part), 1)], dim=1)
        found[part] = predictions(learner, asked, labels)[:, count].to(y)
    return found.view(batch, q)


def span_residual(w: Float[Tensor, "batch d"], x: Float[Tensor, "batch n d"]) -> Float[Tensor, " batch"]:
    """Distance of w from the span of the inputs, as a share of |w|: 0 for any method that starts at 0.

    Fu et al., appendix B.4.
    """
    w, x = w.double(), x.double()
    _, root, right = torch.linalg.svd(x, full_matrices=False)
    kept = root > torch.finfo(x.dtype).eps * max(x.shape[1:]) * root[:, :1]
    inside = (right @ w[..., None])[..., 0] * kept
    left = w - (right.mT @ inside[..., None])[..., 0]
    size = w.norm(dim=-1)
    return left.norm(dim=-1) / torch.where(size > 0, size, 1.0)


def _same(*tensors: Tensor) -> None:
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) > 1:
        raise ValueError(f"these must have one shape, got {' and '.join(map(str, sorted(shapes)))}")
