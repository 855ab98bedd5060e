"""Rates at which a reference algorithm does its best on a task: the fair rival of a trained model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.probes.reference_algorithms import (
    GradientDescent,
    GradientDescentPlusPlus,
    gd_plus_plus_filter,
)
from gradatim.probes.spectral import ContextSpectra, Predictor

if TYPE_CHECKING:
    from gradatim.tasks import LinearRegressionTask

GUARD_REACH, GUARD_WEIGHT = 1.5, 1e-3


def optimal_gd_lr(
    d: int, n: int, second_moment: float, fourth_moment: float, *, sigma: float = 0.0, tau: float = 1.0
) -> tuple[float, float]:
    """The best rate of one step of gradient descent on the mean loss over n pairs, and its expected loss.

    Inputs have independent entries of mean 0, E x^2 = s^2 (`second_moment`) and E x^4 = k (`fourth_moment`):

        eta* = 1 / [(k / s^2 + (d - 1) s^2) / n + (n - 1) s^2 / n + sigma^2 / (n tau^2)],
        loss = (tau^2 s^2 d / 2) (1 - s^2 eta*)      (half the squared error of w.x at a fresh x).

    Raises ValueError for sizes below 1 or moments that no distribution has.
    """
    if d < 1 or n < 1:
        raise ValueError(f"d and n must be at least 1, got {d} and {n}")
    if second_moment <= 0 or fourth_moment < second_moment**2 * (1 - 1e-12):
        raise ValueError(
            f"moments must satisfy E x^2 > 0 and E x^4 >= (E x^2)^2, got {second_moment}, {fourth_moment}"
        )
    if sigma < 0 or tau <= 0:
        raise ValueError(f"sigma must not be negative and tau must be above 0, got {sigma} and {tau}")
    curvature = (fourth_moment / second_moment + (d - 1) * second_moment) / n
    curvature += (n - 1) * second_moment / n + sigma**2 / (n * tau**2)
    eta = 1 / curvature
    return eta, tau**2 * second_moment * d / 2 * (1 - second_moment * eta)


def fit_gd_plus_plus(
    task: LinearRegressionTask, steps: int, *, shared: bool = True, contexts: int = 4000, seed: int = 0
) -> GradientDescentPlusPlus:
    """GD++ with the (lr, gamma) that minimise its expected loss on the task's first n - 1 pairs.

    Works on eigenvalues alone: no attention, no tokens, a second or two. `shared=False` gives each step its
    own pair. A local optimum is all that is promised for many steps of their own.
    """
    lr, gamma = _fit(task, steps, shared, True, contexts, seed)
    return GradientDescentPlusPlus(lr, gamma, steps)


def fit_gradient_descent(
    task: LinearRegressionTask, steps: int, *, shared: bool = True, contexts: int = 4000, seed: int = 0
) -> GradientDescent:
    """Gradient descent on the mean loss with the rate (or the rates) of least expected loss."""
    lr, _ = _fit(task, steps, shared, False, contexts, seed)
    return GradientDescent(steps, lr, "mean")


def expected_loss(
    predictor: GradientDescent | GradientDescentPlusPlus,
    task: LinearRegressionTask,
    contexts: int = 4000,
    seed: int = 0,
) -> float:
    """Half the expected squared error of w.x after n - 1 pairs, exact in w and noise, sampled over inputs."""
    on = _spectra(task, contexts, seed)
    f = predictor.filter(on.values, torch.full((1,), float(on.count), dtype=on.values.dtype))
    return float(_loss(f, on, task))


def _fit(
    task: LinearRegressionTask, steps: int, shared: bool, plus_plus: bool, contexts: int, seed: int
) -> tuple[float | tuple[float, ...], float | tuple[float, ...]]:
    if steps < 1:
        raise ValueError(f"fitting needs at least one step, got {steps}")
    train = _spectra(task, contexts, seed)
    held_out = _spectra(task, 2 * contexts, seed + 1)
    values, count = train.values, train.count
    first = values.mean() / (values.square().mean() + task.sigma**2 / task.tau**2 * values.mean())
    typical = float(values.amax(-1).mean())
    scale = (train, held_out, task, plus_plus, typical)
    starts = [(torch.log(first)[None], torch.zeros(1, dtype=values.dtype))]
    if plus_plus:
        # GD++ flattens the spectrum on its way, so its best rate grows with the number of steps. A descent
        # takes hundredths of a second and some get stuck: try many.
        guesses = [float(first), *(c / typical for c in (1.5, 3.0, 0.6 * steps, steps, 1.4 * steps))]
        starts = [
            (torch.full_like(starts[0][1], math.log(rate)), torch.full_like(starts[0][1], gamma))
            for rate in guesses
            for gamma in (0.1, 0.25, 0.4, 0.55)
        ]
    log_lr, scaled = _best(starts, steps, *scale)
    if not shared:
        # Equal rates would stay equal, so the steps' own rates start spread around the shared optimum, both
        # ways. From there the loss falls smoothly; far from it GD++ of many steps overflows.
        spread = torch.linspace(-1, 1, steps, dtype=values.dtype)
        starts = [(log_lr + c * spread, scaled.expand(steps)) for c in (0.3, -0.3, 0.9)]
        log_lr, scaled = _best(starts, steps, *scale)
    rates, gammas = (log_lr.exp() * count).tolist(), (scaled / typical).tolist()
    return (rates[0], gammas[0]) if shared else (tuple(rates), tuple(gammas))


def _best(
    starts: list[tuple[Tensor, Tensor]],
    steps: int,
    train: Spectra,
    held_out: Spectra,
    task: LinearRegressionTask,
    plus_plus: bool,
    typical: float,
) -> tuple[Tensor, Tensor]:
    """The best of several descents, judged on contexts that none of them has seen.

    Many steps of GD++ grow doubly exponentially on an eigenvalue just beyond those they were fitted to. So
    spectra half as large again take part with a small weight where there are more than two steps, and the
    best moment of each descent is kept.
    """
    guarded = (plus_plus and steps > 2) or len(starts[0][0]) > 1
    found = []
    for lr_start, gamma_start in starts:
        log_lr = lr_start.clone().requires_grad_()
        scaled = gamma_start.clone().requires_grad_(plus_plus)
        optimizer = torch.optim.LBFGS(
            [log_lr, scaled] if plus_plus else [log_lr],
            max_iter=10,
            tolerance_grad=1e-10,
            tolerance_change=1e-13,
            line_search_fn="strong_wolfe",
        )

        def loss(on: Spectra, log_lr: Tensor = log_lr, scaled: Tensor = scaled) -> Tensor:
            lr, gamma = log_lr.exp().expand(steps), (scaled / typical).expand(steps)
            f = gd_plus_plus_filter(on.values, list(zip(lr, gamma, strict=True)))
            found = _loss(f, on, task)
            if guarded:
                beyond = replace(on, values=GUARD_REACH * on.values)
                f = gd_plus_plus_filter(beyond.values, list(zip(lr, gamma, strict=True)))
                found = found + GUARD_WEIGHT * _loss(f, beyond, task)
            return found.log()

        def closure(optimizer: torch.optim.LBFGS = optimizer, loss: Callable[..., Tensor] = loss) -> float:
            optimizer.zero_grad()
            value = loss(train)
            value.backward()  # type: ignore[no-untyped-call]
            return float(value.detach())

        last = math.inf
        for _ in range(40):
            with torch.no_grad():
                found.append((float(loss(held_out)), log_lr.detach().clone(), scaled.detach().clone()))
            now = float(optimizer.step(closure))
            if not math.isfinite(now) or abs(last - now) < 1e-12:
                break
            last = now
    found = [each for each in found if math.isfinite(each[0])]
    _, log_lr, scaled = min(found, key=lambda each: each[0])
    return log_lr, scaled


@dataclass(frozen=True)
class Spectra:
    """Eigenvalues of S over `count` pairs, and the variance of a fresh input along each eigenvector."""

    values: Float[Tensor, "contexts d"]
    weight: Float[Tensor, "contexts d"]
    count: int


def _loss(f: Tensor, on: Spectra, task: LinearRegressionTask) -> Tensor:
    error = task.tau**2 * (1 - on.values * f).square() + task.sigma**2 * on.values * f.square()
    return 0.5 * (on.weight * error).sum(-1).mean()


def _spectra(task: LinearRegressionTask, contexts: int, seed: int) -> Spectra:
    """Spectra of the first n - 1 pairs.

    The variance of a fresh input is known where entries are independent; else it is estimated from further
    inputs of the same context, which share its covariance.
    """
    count = task.n - 1
    if count < 1:
        raise ValueError("fitting needs contexts of at least two pairs: one to learn from, one to predict")
    if task.query != "free":
        raise ValueError(f"fitting needs queries like the other inputs, got query={task.query!r}")
    plain = task.cov is None and not task.normalize and task.x_mean == 0
    independent = plain and task.x in ("normal", "uniform")
    fresh = 0 if independent else 8 * task.d
    drawn = replace(task, n=count + max(fresh, 1), distractors=0).sample(
        contexts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    x = drawn.x[:, :count]
    values, basis = torch.linalg.eigh(x.mT @ x)
    if independent:
        weight = torch.full_like(values, float(task.spectrum[0]))
    else:
        weight = (drawn.x[:, count:] @ basis).square().mean(1)
    return Spectra(values.clamp(min=0), weight, count)


def tune(
    family: Callable[[float], Predictor],
    x: Float[Tensor, "batch n d"],
    y: Float[Tensor, "batch n"],
    target: Float[Tensor, "batch n"],
    low: float,
    high: float,
    *,
    skip: int = 1,
    points: int = 25,
    tolerance: float = 1e-3,
) -> tuple[float, float]:
    """The setting in [low, high] whose predictions are nearest to `target`, and their mean squared distance.

    A grid on a logarithmic axis finds the valley, golden-section search its bottom; the first `skip` prefixes
    do not count. `target` may be labels (the best algorithm) or a model's predictions (the most alike).

    Raises ValueError unless 0 < low < high.
    """
    if not 0 < low < high:
        raise ValueError(f"a search needs 0 < low < high, got {low} and {high}")
    spectra = ContextSpectra(x, y)

    def distance(log: float) -> float:
        gap = (spectra.predict(family(math.exp(log))) - target)[:, skip:].square().mean()
        return float(gap) if bool(gap.isfinite()) else math.inf

    grid = torch.linspace(math.log(low), math.log(high), points, dtype=torch.float64).tolist()
    heights = [distance(p) for p in grid]
    at = min(range(points), key=heights.__getitem__)
    a, b = grid[max(at - 1, 0)], grid[min(at + 1, points - 1)]
    golden = (math.sqrt(5) - 1) / 2
    left, right = b - golden * (b - a), a + golden * (b - a)
    f_left, f_right = distance(left), distance(right)
    while b - a > tolerance:
        if f_left <= f_right:
            b, right, f_right = right, left, f_left
            left = b - golden * (b - a)
            f_left = distance(left)
        else:
            a, left, f_left = left, right, f_right
            right = a + golden * (b - a)
            f_right = distance(right)
    found = min([(f_left, left), (f_right, right), (heights[at], grid[at])])
    return math.exp(found[1]), found[0]
