r"""Do two in-context learners compute the same thing? Sensitivities, and losses on other distributions.

The measures of "Transformers learn in-context by gradient descent" (2022, arXiv 2212.07677). In all of them
the last pair of a context is the query, answered from the pairs before it. A learner is a model whose forward
takes `query=`, an algorithm with `weights(x, y)` (the reference algorithms), or any callable
(x [batch, n, d], y [batch, n]) -> predictions [batch, n], or an output with such `predictions`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.tasks.contexts import ContextTask, ICLBatch, context_generator

Learner = Callable[..., Any]
OOD_KINDS = ("x_scale", "w_scale", "family", "distractors")


def answers(
    learner: Learner,
    x: Float[Tensor, "batch n d"],
    y: Float[Tensor, "batch n"],
    query: Float[Tensor, "batch q d"],
) -> Float[Tensor, "batch q"]:
    """What a learner predicts for queries from all n pairs."""
    if hasattr(learner, "weights"):
        return (query @ learner.weights(x, y)[..., None])[..., 0]
    if _takes_query(learner):
        return _predictions(learner(x, y, query=query))
    each = []
    for i in range(query.shape[1]):
        longer = torch.cat([x, query[:, i : i + 1]], dim=1)
        each.append(_predictions(learner(longer, torch.cat([y, y.new_zeros(len(y), 1)], dim=1)))[:, -1])
    return torch.stack(each, dim=1)


def sensitivity(
    learner: Learner,
    x: Float[Tensor, "batch n d"],
    y: Float[Tensor, "batch n"],
    query: Float[Tensor, "batch q d"],
) -> Float[Tensor, "batch q d"]:
    """The gradient of every answer in its query: the implied weights, where the answer is linear in it."""
    if hasattr(learner, "weights"):
        return cast(Tensor, learner.weights(x, y))[:, None].expand_as(query)
    with torch.enable_grad():
        asked = query.detach().clone().requires_grad_()
        # Answers do not depend on one another's queries, so one backward pass gives every gradient.
        (gradient,) = torch.autograd.grad(answers(learner, x, y, asked).sum(), asked)
    return gradient


@dataclass(frozen=True)
class Alignment:
    """How alike two learners are, averaged over contexts.

    cos         cosine between the two sensitivities
    model_diff  length of the sensitivities' difference
    pred_diff   absolute difference of the predictions

    `cosines` [contexts] and the other two are kept for paired comparisons; their `*_error` is the standard
    error of the mean.
    """

    cosines: Float[Tensor, " contexts"] = field(repr=False)
    model_diffs: Float[Tensor, " contexts"] = field(repr=False)
    pred_diffs: Float[Tensor, " contexts"] = field(repr=False)

    @property
    def cos(self) -> float:
        return float(self.cosines.mean())

    @property
    def model_diff(self) -> float:
        return float(self.model_diffs.mean())

    @property
    def pred_diff(self) -> float:
        return float(self.pred_diffs.mean())

    @property
    def cos_error(self) -> float:
        return _standard_error(self.cosines)

    @property
    def model_diff_error(self) -> float:
        return _standard_error(self.model_diffs)

    @property
    def pred_diff_error(self) -> float:
        return _standard_error(self.pred_diffs)

    def __str__(self) -> str:
        return (
            f"cosine {self.cos:.4f} ± {self.cos_error:.1g}, model difference {self.model_diff:.4g} ± "
            f"{self.model_diff_error:.1g}, prediction difference {self.pred_diff:.4g} ± "
            f"{self.pred_diff_error:.1g} over {len(self.cosines)} contexts"
        )


def alignment(a: Learner, b: Learner, batch: ICLBatch) -> Alignment:
    """Compare two learners on the same contexts, in the precision of the contexts (take float64).

    Raises ValueError where a context has fewer than two pairs.
    """
    x, y, query, _ = split_query(batch)
    ours, theirs = (sensitivity(learner, x, y, query)[:, 0].detach() for learner in (a, b))
    with torch.no_grad():
        difference = (answers(a, x, y, query) - answers(b, x, y, query))[:, 0]
    cosines = torch.cosine_similarity(ours, theirs, dim=-1, eps=1e-8)
    return Alignment(cosines, torch.linalg.vector_norm(ours - theirs, dim=-1), difference.abs())


def split_query(batch: ICLBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contexts (x, y), their query [batch, 1, d] and its label [batch, 1]."""
    if batch.x.shape[1] < 2:
        raise ValueError(f"a context and its query need at least two pairs, got {batch.x.shape[1]}")
    return batch.x[:, :-1], batch.y[:, :-1], batch.x[:, -1:], batch.y[:, -1:]


def query_losses(learner: Learner, batch: ICLBatch) -> Float[Tensor, " batch"]:
    """Half the squared error of the last pair's prediction, context by context."""
    x, y, query, label = split_query(batch)
    with torch.no_grad():
        return 0.5 * (answers(learner, x, y, query) - label).square()[:, 0]


@dataclass(frozen=True)
class OODCurve:
    """Losses of one learner over a grid of shifts: mean and median over contexts.

    Far outside, a few contexts carry the mean: read the median beside it.
    """

    kind: str
    grid: tuple[float, ...]
    losses: Float[Tensor, "grid contexts"] = field(repr=False)

    @property
    def mean(self) -> list[float]:
        return [float(row.mean()) for row in self.losses]

    @property
    def median(self) -> list[float]:
        return [float(row.median()) for row in self.losses]

    def __str__(self) -> str:
        lines = [f"{self.kind:>11s} {'mean':>10s} {'median':>10s}"]
        for value, mean, median in zip(self.grid, self.mean, self.median, strict=True):
            lines.append(f"{value:11g} {mean:10.4g} {median:10.4g}")
        return "\n".join(lines)


def ood_curve(
    learner: Learner,
    task: ContextTask,
    kind: str,
    grid: Sequence[float | int],
    *,
    contexts: int = 10_000,
    seed: int = 0,
) -> OODCurve:
    """Half the squared error at the query as the task shifts; one seed gives all learners the same contexts.

    `kind`: "x_scale" multiplies inputs; "w_scale" multiplies the weights and with them the labels; "family"
    draws the inputs of each context from the exponential, normal or Laplace law, divides them by the
    Frobenius norm of the context and multiplies by the grid's value; "distractors" replaces that many labels
    with N(0, 1).

    Raises ValueError for another kind or an empty grid.
    """
    if kind not in OOD_KINDS:
        raise ValueError(f"kind must be one of {', '.join(OOD_KINDS)}, got {kind!r}")
    if not grid:
        raise ValueError("an OOD curve needs at least one grid value")
    rows = []
    for value in grid:
        shifted = _shifted(task, kind, value)
        batch = shifted.sample(contexts, generator=context_generator(seed), dtype=torch.float64)
        rows.append(query_losses(learner, batch))
    return OODCurve(kind, tuple(float(v) for v in grid), torch.stack(rows))


def _shifted(task: Any, kind: str, value: float | int) -> Any:
    if kind == "x_scale":
        return replace(task, x_scale=task.x_scale * value)
    if kind == "w_scale":
        return replace(task, tau=task.tau * value)
    if kind == "family":
        return replace(task, x="mixture", normalize=True, x_scale=float(value))
    return replace(task, distractors=int(value))


def token_sensitivity(
    layer: Callable[[Tensor], Tensor],
    tokens: Float[Tensor, "batch t width"],
    *,
    probes: int = 4,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "t t"]:
    """Entry (i, j): the Frobenius norm of d (layer's token i) / d (token j), root mean square over the batch.

    Estimated with `probes` random projections per token and context: E |J^T v|^2 = |J|^2 for v ~ N(0, I).
    """
    t = tokens.shape[1]
    squared = tokens.new_zeros(t, t)
    for i in range(t):
        asked = tokens.detach().clone().requires_grad_()
        with torch.enable_grad():
            out = layer(asked)[:, i]
            for _ in range(probes):
                v = torch.randn(out.shape, generator=generator, dtype=out.dtype).to(out.device)
                (gradient,) = torch.autograd.grad((out * v).sum(), asked, retain_graph=True)
                squared[i] += gradient.square().sum(-1).mean(0) / probes
    return squared.sqrt()


def _takes_query(learner: Learner) -> bool:
    function = learner.forward if isinstance(learner, nn.Module) else learner
    try:
        return "query" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _predictions(out: Any) -> Tensor:
    return cast(Tensor, out if isinstance(out, Tensor) else out.predictions)


def _standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")


def in_float64(model: nn.Module) -> nn.Module:
    """A copy of a model in double precision, for measuring."""
    return copy.deepcopy(model).double().eval()
