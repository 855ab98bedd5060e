"""Study 04, parts (a) and (e), and tasks along orthogonal directions: where the answer is known or cheap."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradatim.bench import Curve, Outcome, Scale, tuning_seeds
from gradatim.optim import DeepMomentumSGD, DeltaMomentumSGD, delta_gradient_step

# -- (a) what delta gradient descent computes ------------------------------------------------------------


def identities(seed: int, steps: int) -> Outcome:
    """One noiseless linear stream, float64: DGD beside gradient descent and beside its own argmin.

    slope_dgd, slope_gd   <W, A> / <A, A> at the end: 1 is the truth
    argmin_error          largest gradient of the step's own objective at the step taken
    doubled_error         DGD with doubled targets against gradient descent of twice the rate, at every step
    loss_*                mean squared error over the last tenth of the stream
    """
    g = torch.Generator().manual_seed(seed)
    truth = torch.randn(6, 8, generator=g, dtype=torch.float64)
    names = ("dgd", "gd", "doubled", "twice")
    weights = {name: torch.zeros_like(truth) for name in names}
    lr = 0.25
    argmin = doubled = 0.0
    losses: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(steps):
        x = nn.functional.normalize(torch.randn(8, generator=g, dtype=torch.float64), dim=0)
        y = truth @ x
        errors = {name: w @ x - y for name, w in weights.items()}
        for name, error in errors.items():
            losses[name].append(float(error.square().mean()))
        before = weights["dgd"]
        weights["dgd"] = delta_gradient_step(before, x, errors["dgd"], lr)
        residual = torch.outer(weights["dgd"] @ x + errors["dgd"], x) + (weights["dgd"] - before) / lr
        argmin = max(argmin, float(residual.abs().max()))
        weights["gd"] = delta_gradient_step(weights["gd"], x, errors["gd"], lr, decay=0.0)
        weights["doubled"] = delta_gradient_step(weights["doubled"], x, weights["doubled"] @ x - 2 * y, lr)
        step = 2 * lr / (1 + lr)
        weights["twice"] = weights["twice"] - step * torch.outer(errors["twice"], x)
        doubled = max(doubled, float((weights["doubled"] - weights["twice"]).abs().max()))
    end = steps // 10
    slopes = {f"slope_{n}": float((w * truth).sum() / truth.square().sum()) for n, w in weights.items()}
    finals = {f"loss_{n}": sum(losses[n][-end:]) / end for n in names}
    shown = list(range(0, steps - steps % 20, 20))
    curves = {
        n: Curve(
            [float(t) for t in shown],
            [_mean(losses[n][t : t + 20]) for t in shown],
            "sample",
            "squared error",
        )
        for n in ("dgd", "gd", "doubled")
    }
    return Outcome({**slopes, **finals, "argmin_error": argmin, "doubled_error": doubled}, curves)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# -- tasks along orthogonal directions ------------------------------------------------------------

DIM, DIRECTIONS = 16, 8
FLOOR = 1e-12  # losses below it are rounding, and count as equal


def make_rule(rule: str, w: nn.Parameter, lr: float) -> torch.optim.Optimizer | None:
    """The optimizer of an orthogonal-task arm; None for delta gradient descent, which needs the samples."""
    if rule == "momentum":
        return torch.optim.SGD([w], lr=lr, momentum=0.9)
    if rule == "gd":
        return torch.optim.SGD([w], lr=lr)
    if rule == "delta":
        return DeltaMomentumSGD([w], lr=lr, momentum=0.9)
    if rule == "deep":
        return DeepMomentumSGD([w], lr=lr, hidden=8)
    return None


def orthogonal_run(rule: str, lr: float, seed: int, spread: float, steps: int) -> dict[str, list[float]]:
    """Tasks in a row (Eq. 45): inputs of task i lie along u_i, labels y = W_i* x.

    x = (u_i + spread * n) z, with the u_i orthonormal and n a unit vector anew for each sample: with spread 0
    a step of task j cannot change what task i needs, except through momentum that still runs. Every task has
    its own W_i*. "earlier": loss on all earlier tasks after each task; "own": loss on the task just learned.
    """
    g = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(DIM, DIM, generator=g, dtype=torch.float64)).Q[:, :DIRECTIONS].mT
    truths = torch.randn(DIRECTIONS, 4, DIM, generator=g, dtype=torch.float64)
    tests = [_inputs(u[i], 64, spread, g) for i in range(DIRECTIONS)]
    w = nn.Parameter(torch.zeros(4, DIM, dtype=torch.float64))
    optimizer = make_rule(rule, w, lr)
    earlier, own = [], []

    def loss(task: int, x: Tensor) -> Tensor:
        return 0.5 * (x @ (w - truths[task]).mT).square().sum(1).mean()

    for task in range(DIRECTIONS):
        for _ in range(steps):
            x = _inputs(u[task], 8, spread, g)
            if optimizer is None:
                with torch.no_grad():
                    delta = x @ (w - (2.0 if rule == "dgd-doubled" else 1.0) * truths[task]).mT
                    w.copy_(delta_gradient_step(w, x, delta, lr))
                continue
            optimizer.zero_grad()
            loss(task, x).backward()
            optimizer.step()
        with torch.no_grad():
            own.append(_bounded(loss(task, tests[task])))
            if task:
                earlier.append(_mean([_bounded(loss(i, tests[i])) for i in range(task)]))
    return {"earlier": earlier, "own": own}


def _inputs(direction: Tensor, count: int, spread: float, g: torch.Generator) -> Tensor:
    z = torch.randn(count, 1, generator=g, dtype=torch.float64)
    noise = nn.functional.normalize(torch.randn(count, DIM, generator=g, dtype=torch.float64), dim=1)
    return (direction + spread * noise) * z


def _bounded(value: Tensor) -> float:
    number = float(value)
    return min(number, 1e6) if math.isfinite(number) else 1e6


@functools.lru_cache(maxsize=64)
def orthogonal_rate(rule: str, spread: float, steps: int) -> float:
    """The rate with the lowest mean loss over all tasks at the end of the row, on tuning seeds."""

    def score(lr: float) -> float:
        runs = [orthogonal_run(rule, lr, seed, spread, steps) for seed in tuning_seeds(2)]
        return _mean([math.log(max(r["earlier"][-1] + r["own"][-1] / (DIRECTIONS - 1), FLOOR)) for r in runs])

    return min((0.01, 0.03, 0.1, 0.3, 1.0), key=score)


def orthogonal(settings: Mapping[str, Any], seed: int, scale: Scale) -> Outcome:
    """Loss on earlier tasks at the end of the row and on each task when learned, at the best rate."""
    rule, steps = settings["rule"], scale["orthogonal_steps"]
    metrics: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    for name, spread in (("pure", 0.0), ("mixed", 0.3)):
        lr = orthogonal_rate(rule, spread, steps)
        found = orthogonal_run(rule, lr, seed, spread, steps)
        metrics |= {
            f"earlier_{name}": found["earlier"][-1],
            f"log_earlier_{name}": math.log10(max(found["earlier"][-1], FLOOR)),
            f"own_{name}": _mean(found["own"]),
            f"lr_{name}": lr,
        }
        tasks = [float(t) for t in range(2, DIRECTIONS + 1)]
        curves[name] = Curve(tasks, found["earlier"], "tasks learned", "loss on earlier tasks")
    return Outcome(metrics, curves)


# -- (e) a valley that winds ------------------------------------------------------------

GRID_LR = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
GRID_BETA = (0.9, 0.99)
VALLEY_A, VALLEY_OMEGA = 0.5, 2.0


def valley(point: Tensor, kappa: float) -> Tensor:
    """psi(r, t) = r^2 + kappa (r - t + a sin(omega r))^2; the paper does not publish its constants."""
    r, t = point.unbind(-1)
    return r.square() + kappa * (r - t + VALLEY_A * torch.sin(VALLEY_OMEGA * r)).square()


def valley_runs(
    rule: str, kappa: float, seeds: Sequence[int], steps: int
) -> dict[tuple[float, float], Tensor]:
    """{(lr, beta): values [steps, seeds]} for every pair of the grid, from random starts."""
    starts = [
        3 * torch.randn(2, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds
    ]
    cells = [(lr, beta) for lr in GRID_LR for beta in GRID_BETA]
    points = {cell: [nn.Parameter(s.clone()) for s in starts] for cell in cells}
    groups = [{"params": points[cell], "lr": cell[0], "momentum": cell[1]} for cell in cells]
    optimizer: torch.optim.Optimizer
    if rule == "momentum":
        optimizer = torch.optim.SGD(groups, lr=0.1)
    else:
        optimizer = DeltaMomentumSGD(groups, lr=0.1, normalize_key=rule == "delta", check_finite=False)
    everything = [p for cell in cells for p in points[cell]]
    values = torch.zeros(steps, len(everything), dtype=torch.float64)
    for t in range(steps):
        stacked = torch.stack([p.detach() for p in everything]).requires_grad_()
        found = valley(stacked, kappa)
        (gradient,) = torch.autograd.grad(found.sum(), stacked)
        values[t] = found.detach()
        for p, g in zip(everything, gradient, strict=True):
            p.grad = g
        optimizer.step()
    values = torch.nan_to_num(values, nan=1e12, posinf=1e12).clamp(max=1e12)
    return {cell: values[:, i * len(seeds) : (i + 1) * len(seeds)] for i, cell in enumerate(cells)}


@functools.lru_cache(maxsize=16)
def valley_cell(rule: str, kappa: float, steps: int) -> tuple[float, float]:
    """The pair whose mean logarithm of the last 20 values is lowest on tuning seeds."""
    runs = valley_runs(rule, kappa, tuning_seeds(6), steps)
    return min(runs, key=lambda cell: float((runs[cell][-20:].mean(0) + 1e-30).log().mean()))


def valley_outcomes(settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """Mean of the last 20 values at the rule's best pair, for a soft and a stiff valley."""
    steps = scale["valley_steps"]
    found = {}
    for kappa in (1.0, 10.0):
        cell = valley_cell(settings["rule"], kappa, steps)
        found[kappa] = (cell, valley_runs(settings["rule"], kappa, seeds, steps)[cell])
    outcomes = []
    for i in range(len(seeds)):
        metrics: dict[str, float] = {}
        curves = {}
        for kappa, (cell, values) in found.items():
            end = float(values[-20:, i].mean())
            name = f"k{kappa:g}"
            metrics |= {
                name: end,
                f"log_{name}": math.log10(end + 1e-30),
                f"lr_{name}": cell[0],
                f"beta_{name}": cell[1],
            }
            shown = range(0, steps, max(1, steps // 100))
            curves[name] = Curve(
                [float(t) for t in shown], [float(values[t, i]) for t in shown], "step", "value"
            )
        outcomes.append(Outcome(metrics, curves))
    return outcomes
