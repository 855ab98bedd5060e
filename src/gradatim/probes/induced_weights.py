"""The linear model behind a learner's answers: fitted to its predictions on fresh, unlabelled inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.probes.context_measures import Learner, ask
from gradatim.tasks.contexts import ContextTask


@dataclass(frozen=True)
class InducedWeights:
    """Weights of each context and how well a linear function fits the answers at all (R^2)."""

    weights: Float[Tensor, "batch d"]
    r2: Float[Tensor, " batch"]


def induced_weights(
    learner: Learner,
    x: Float[Tensor, "batch n d"],
    y: Float[Tensor, "batch n"],
    queries: Float[Tensor, "batch q d"],
) -> InducedWeights:
    """Least-squares weights (no intercept) of the learner's answers to `queries` after all n pairs of (x, y).

    r2 = 1 - sum (answer - w.q)^2 / sum answer^2; 1 where all answers are 0. Sources: Akyurek et al. (2022,
    arXiv 2211.15661), implicit linear weights; Fu et al. (2023, arXiv 2310.17086).

    Raises ValueError for fewer queries than dimensions.
    """
    if queries.shape[1] < queries.shape[2]:
        raise ValueError(
            f"{queries.shape[2]} weights need at least as many queries, got {queries.shape[1]}: use 5 d"
        )
    answers = ask(learner, x, y, queries).double()
    q = queries.double()
    w = torch.linalg.lstsq(q, answers[..., None]).solution[..., 0]
    left = (answers - (q @ w[..., None])[..., 0]).square().sum(-1)
    total = answers.square().sum(-1)
    r2 = torch.where(total > 0, 1 - left / torch.where(total > 0, total, 1.0), 1.0)
    return InducedWeights(w, r2)


def ilwd(
    learner_a: Learner,
    learner_b: Learner,
    task: ContextTask,
    m: int | None = None,
    *,
    contexts: int = 200,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " n"]:
    """Implicit linear weight difference per prefix, E |w_a - w_b|^2 / d, from m (default 5 d) queries each.

    Entry t compares the learners after t pairs, t = 0 .. n - 1, on the same contexts and queries. Queries are
    further inputs of the same contexts, so they share their covariance.
    """
    m = 5 * task.d if m is None else m
    x, y, queries = draw_with_queries(task, m, contexts, generator)
    found = torch.zeros(task.n, dtype=torch.float64)
    for t in range(1, task.n):
        a, b = (induced_weights(a, x[:, :t], y[:, :t], queries).weights for a in (learner_a, learner_b))
        found[t] = (a - b).square().sum(-1).mean() / task.d
    return found


def linearity_r2(
    learner: Learner,
    task: ContextTask,
    m: int | None = None,
    *,
    contexts: int = 200,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " n"]:
    """Mean R^2 of the best linear fit to the learner's answers, per prefix of t = 0 .. n - 1 pairs.

    Entry 0 is NaN: without pairs there is nothing to fit. Akyurek et al., figure 6.
    """
    m = 5 * task.d if m is None else m
    x, y, queries = draw_with_queries(task, m, contexts, generator)
    found = torch.full((task.n,), float("nan"), dtype=torch.float64)
    for t in range(1, task.n):
        found[t] = induced_weights(learner, x[:, :t], y[:, :t], queries).r2.mean()
    return found


def draw_with_queries(
    task: ContextTask, m: int, contexts: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts x, y, and m further inputs [contexts, m, d] of each."""
    from dataclasses import replace

    drawn = replace(task, n=task.n + m).sample(contexts, generator=generator)  # type: ignore[type-var]
    return drawn.x[:, : task.n], drawn.y[:, : task.n], drawn.x[:, task.n :]
