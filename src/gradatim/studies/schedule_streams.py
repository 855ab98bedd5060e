"""Training runs of the schedule study, stacked: seeds times learning rates in one tensor program.

Each task draws its data seed by seed from that seed's own generator, trains one copy of the model per
(seed, rate), and never lets one copy touch another: the outcome of a seed does not depend on which other
seeds, or which other rates, ran beside it.

Schedules come in as factors [seeds, steps]; every rate of the grid multiplies them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

Array = np.ndarray
Run = Callable[[Sequence[int], Float64[Array, "seeds steps"], Sequence[float]], "Runs"]


@dataclass(frozen=True)
class Runs:
    """What a stack of runs ends with.

    `losses` [seeds, rates], of the last iterate; `averaged` the same of the mean iterate (NaN where a task
    does not form it); `norms` [seeds, rates, steps] gradient norms, L2 (or L1 for Adam).
    """

    losses: Array
    averaged: Array
    norms: Array


# --- Least absolute deviations: convex, not smooth, norms never vanish ---------------------------------


@dataclass(frozen=True)
class Lad:
    """One pass over y = a.x* + t_2 noise with loss |a.x - y|, one row per step."""

    steps: int = 2000
    dim: int = 50
    fresh: int = 4000

    def __call__(self, seeds: Sequence[int], factors: Array, rates: Sequence[float]) -> Runs:
        """SGD on every (seed, rate); losses are excess risks on fresh rows."""
        data = [lad_data(self, s) for s in seeds]
        rows, targets, fresh, noise, truth = (torch.stack(parts) for parts in zip(*data, strict=True))
        eta = _rates_by_step(factors, rates, torch.float64)
        x = torch.zeros(len(seeds), len(rates), self.dim, dtype=torch.float64)
        mean = torch.zeros_like(x)
        for t in range(self.steps):
            a = rows[:, t, None, :]
            residual = (a * x).sum(-1) - targets[:, t, None]
            mean += (x - mean) / (t + 1)
            x = x - (eta[t] * residual.sign())[..., None] * a
        # ||g_t|| = ||a_t||, whatever the rate: the loss is linear on either side of its kink.
        norms = rows.norm(dim=-1)[:, None, :].expand(-1, len(rates), -1)

        def excess(point: Tensor) -> Array:
            offset = torch.einsum("snd,srd->srn", fresh, point - truth[:, None, :])
            risk = (offset - noise[:, None, :]).abs() - noise[:, None, :].abs()
            return risk.mean(-1).numpy()

        return Runs(excess(x), excess(mean), norms.numpy())


@lru_cache(maxsize=256)
def lad_data(task: Lad, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Training rows and targets, fresh rows and their noise, and x*."""
    rng = np.random.default_rng([20, seed])
    truth = rng.standard_normal(task.dim)
    rows = rng.standard_normal((task.steps, task.dim))
    targets = rows @ truth + rng.standard_t(2, task.steps)
    fresh = rng.standard_normal((task.fresh, task.dim))
    noise = rng.standard_t(2, task.fresh)
    tensors = [torch.from_numpy(v) for v in (rows, targets, fresh, noise, truth)]
    return tensors[0], tensors[1], tensors[2], tensors[3], tensors[4]


# --- Teacher and student: a stream of classified points, one pass ---------------------------------------


@dataclass(frozen=True)
class TeacherStudent:
    """A 20-64-64-10 ReLU network learns the classes of a random tanh network; 10% of labels are noise.

    `adam=False` is SGD from weights 1.5 times He's: gradients start large and fall within a few steps.
    """

    steps: int = 800
    batch: int = 16
    hidden: int = 64
    fresh: int = 2000
    adam: bool = False

    def __call__(self, seeds: Sequence[int], factors: Array, rates: Sequence[float]) -> Runs:
        """Train every (seed, rate); losses are log-losses on fresh rows."""
        data = [teacher_student_data(self, s) for s in seeds]
        points = torch.stack([d[0] for d in data])
        labels = torch.stack([d[1] for d in data])
        weights = [
            torch.stack([d[2][i] for d in data])[:, None].repeat_interleave(len(rates), 1)
            for i in range(len(data[0][2]))
        ]
        eta = _rates_by_step(factors, rates, torch.float32)
        adam = Adam(weights) if self.adam else None
        norms = torch.empty(self.steps, len(seeds), len(rates))
        for t in range(self.steps):
            chunk = slice(t * self.batch, (t + 1) * self.batch)
            gradients = mlp_gradients(weights, points[:, chunk], labels[:, chunk])
            norms[t] = total_norm(gradients, 1 if self.adam else 2)
            updates = gradients if adam is None else adam.directions(gradients)
            for w, u in zip(weights, updates, strict=True):
                w.addcmul_(u, eta[t][..., None, None].expand_as(u), value=-1.0)
        losses = mlp_loss(weights, points[:, -self.fresh :], labels[:, -self.fresh :])
        return Runs(
            losses.double().numpy(),
            np.full(losses.shape, np.nan),
            norms.permute(1, 2, 0).double().numpy(),
        )


@lru_cache(maxsize=64)
def teacher_student_data(task: TeacherStudent, seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Points and labels (the last `fresh` rows are for testing), and the student's first weights."""
    rng = np.random.default_rng([21, seed])
    n = task.steps * task.batch + task.fresh
    a = rng.standard_normal((20, 32)) * 2 / np.sqrt(20)
    b = rng.standard_normal((32, 10))
    x = rng.standard_normal((n, 20))
    y = (np.tanh(x @ a) @ b).argmax(1)
    y = np.where(rng.random(n) < 0.1, rng.integers(0, 10, n), y)
    gain = 1.0 if task.adam else 1.5
    weights: list[Tensor] = []
    for fan_in, fan_out in ((20, task.hidden), (task.hidden, task.hidden), (task.hidden, 10)):
        w = rng.standard_normal((fan_in, fan_out)) * np.sqrt(2 / fan_in) * gain
        # The bias is the last row: one product per layer.
        weights.append(torch.from_numpy(np.vstack([w, np.zeros((1, fan_out))])).float())
    return torch.from_numpy(x).float(), torch.from_numpy(y), weights


def mlp_gradients(weights: Sequence[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """Gradients of the mean log-loss of stacked ReLU networks.

    weights: layers [seeds, rates, fan_in + 1, fan_out]; x [seeds, batch, dim]; y [seeds, batch].
    """
    inputs = [_with_one(x)[:, None]]
    for w in weights[:-1]:
        inputs.append(_with_one(torch.relu(inputs[-1] @ w)))
    delta = torch.softmax(inputs[-1] @ weights[-1], dim=-1)
    index = y[:, None, :, None].expand(*delta.shape[:3], 1)
    delta.scatter_add_(-1, index, torch.full_like(index, -1, dtype=delta.dtype))
    delta = delta / x.shape[1]
    gradients: list[Tensor] = []
    for i in range(len(weights) - 1, -1, -1):
        gradients.append(inputs[i].transpose(-1, -2) @ delta)
        if i > 0:
            delta = (delta @ weights[i][..., :-1, :].transpose(-1, -2)) * (inputs[i][..., :-1] > 0)
    return gradients[::-1]


def mlp_loss(weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Mean log-loss [seeds, rates] of stacked ReLU networks."""
    h = _with_one(x)[:, None]
    for w in weights[:-1]:
        h = _with_one(torch.relu(h @ w))
    logits = h @ weights[-1]
    index = y[:, None, :, None].expand(*logits.shape[:3], 1)
    return -torch.log_softmax(logits, -1).gather(-1, index).mean((-1, -2))


def total_norm(gradients: Sequence[Tensor], p: int) -> Tensor:
    """The p-norm [seeds, rates] over all layers."""
    powers = [(g.abs() if p == 1 else g.square()).sum((-1, -2)) for g in gradients]
    return torch.stack(powers).sum(0) ** (1.0 / p)


class Adam:
    """Adam's update directions for stacked weights, with the bias corrections."""

    def __init__(self, weights: Sequence[Tensor], betas: tuple[float, float] = (0.9, 0.95)) -> None:
        self.first = [torch.zeros_like(w) for w in weights]
        self.second = [torch.zeros_like(w) for w in weights]
        self.betas = betas
        self.t = 0

    def directions(self, gradients: Sequence[Tensor], eps: float = 1e-8) -> list[Tensor]:
        """m_hat / (sqrt(v_hat) + eps)."""
        self.t += 1
        b1, b2 = self.betas
        out = []
        for m, v, g in zip(self.first, self.second, gradients, strict=True):
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            out.append((m / (1 - b1**self.t)) / ((v / (1 - b2**self.t)).sqrt() + eps))
        return out


# --- Logistic regression on tables: interpolated or not -------------------------------------------------


@dataclass(frozen=True)
class Logistic:
    """Multi-class logistic regression on a bundled table, SGD over several epochs; the final train loss.

    `flip` replaces that share of the labels at random, so that the model cannot interpolate.
    """

    table: str = "digits"
    epochs: int = 8
    batch: int = 16
    flip: float = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return self.epochs * (len(logistic_table(self.table)[1]) // self.batch)

    def __call__(self, seeds: Sequence[int], factors: Array, rates: Sequence[float]) -> Runs:
        """Train every (seed, rate); losses are mean log-losses on the training rows."""
        x, _ = logistic_table(self.table)
        orders, labels = zip(*(self._draw(s) for s in seeds), strict=True)
        order, y = torch.stack(orders), torch.stack(labels)
        classes = int(logistic_table(self.table)[1].max()) + 1
        eta = _rates_by_step(factors, rates, torch.float64)
        # Near the edge of stability rounding grows, and rounding depends on what is stacked beside a seed:
        # in float64 it stays out of sight.
        w = torch.zeros(len(seeds), len(rates), x.shape[1] + 1, classes, dtype=torch.float64)
        norms = torch.empty(self.steps, len(seeds), len(rates))
        for t in range(self.steps):
            rows = order[:, t * self.batch : (t + 1) * self.batch]
            (g,) = mlp_gradients([w], x[rows], torch.gather(y, 1, rows))
            norms[t] = total_norm([g], 2)
            w = w - eta[t][..., None, None] * g
        everything = x.expand(len(seeds), *x.shape)
        losses = mlp_loss([w], everything, y)
        return Runs(
            losses.double().numpy(), np.full(losses.shape, np.nan), norms.permute(1, 2, 0).double().numpy()
        )

    def _draw(self, seed: int) -> tuple[Tensor, Tensor]:
        y = logistic_table(self.table)[1].numpy()
        rng = np.random.default_rng([22, seed])
        n, per_epoch = len(y), len(y) // self.batch * self.batch
        order = np.concatenate([rng.permutation(n)[:per_epoch] for _ in range(self.epochs)])
        noisy = np.where(rng.random(n) < self.flip, rng.integers(0, y.max() + 1, n), y)
        return torch.from_numpy(order), torch.from_numpy(noisy)


@lru_cache(maxsize=8)
def logistic_table(name: str) -> tuple[Tensor, Tensor]:
    """Standardised features and labels of a table that comes with scikit-learn, or a generated one."""
    from sklearn import datasets

    if name == "make_classification":
        x, y = datasets.make_classification(
            2000, 30, n_informative=10, n_classes=5, flip_y=0.1, random_state=20
        )
    else:
        loaders = {
            "digits": datasets.load_digits,
            "breast_cancer": datasets.load_breast_cancer,
            "iris": datasets.load_iris,
            "wine": datasets.load_wine,
        }
        x, y = loaders[name](return_X_y=True)
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))


def _rates_by_step(factors: Array, rates: Sequence[float], dtype: torch.dtype) -> Tensor:
    """[steps, seeds, rates] learning rates."""
    grid = np.asarray(factors, dtype=np.float64)[:, None, :] * np.asarray(rates)[None, :, None]
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(grid, -1, 0))).to(dtype)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
