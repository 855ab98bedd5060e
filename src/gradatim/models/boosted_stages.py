"""The boosting loop: block after block on the pseudo-residuals, and the network the blocks add up to.

    F_0 = init;   r = -dL/dF(y, F_{t-1});   h_t = fit_block(rows drawn, r);   F_t = F_{t-1} + rho_t h_t.

Source: "Sequential Training of Neural Networks with Gradient Boosting", 2019, arXiv 1909.12098.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from gradatim.models.boosted_block import (
    ACTIVATIONS,
    Activation,
    Block,
    BlockSolver,
    draw_start,
    fit_block,
    hidden_units,
    with_ones,
)
from gradatim.models.boosted_objectives import LineSearch, block_step, clip_step

StageWeights = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""(stage t from 0, scores F [n, k], encoded targets y [n, k]) -> non-negative row weights [n]."""

CHUNK_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class StagedNetwork:
    """T blocks as one hidden layer, which remembers where each block ends.

    `W2` holds rho_t W2_t, and row m of `stage_bias` [T + 1, k] is the output bias of the first m blocks,
    F0 + sum_{t <= m} rho_t c2_t: switching blocks off also takes back their biases.
    """

    W1: Float[np.ndarray, "d units"]
    c1: Float[np.ndarray, " units"]
    W2: Float[np.ndarray, "units k"]
    stage_bias: Float[np.ndarray, "stages_plus_1 k"]
    units_per_step: int
    activation: Activation

    @property
    def n_stages(self) -> int:
        return len(self.stage_bias) - 1

    def scores(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """F(x) of all blocks, in the precision of X; rows go through in pieces that fit the cache."""
        W1, c1, W2, bias = self._cast(X.dtype)
        out = np.empty((len(X), W2.shape[1]), dtype=X.dtype)
        step = max(1, CHUNK_ELEMENTS // max(len(c1), 1))
        for begin in range(0, len(X), step):
            hidden = X[begin : begin + step] @ W1
            hidden += c1
            ACTIVATIONS[self.activation](hidden)
            np.matmul(hidden, W2, out=out[begin : begin + step])
        out += bias[-1]
        return out

    def staged_scores(self, X: Float[np.ndarray, "n d"]) -> Iterator[Float[np.ndarray, "n k"]]:
        """F after 1, 2 ... T blocks: one product X W1, then a running sum over blocks."""
        W1, c1, W2, bias = self._cast(X.dtype)
        hidden = W1.T @ X.T
        hidden += c1[:, None]
        ACTIVATIONS[self.activation](hidden)
        total = np.zeros((W2.shape[1], len(X)), dtype=X.dtype)
        for t in range(self.n_stages):
            block = slice(t * self.units_per_step, (t + 1) * self.units_per_step)
            total += W2[block].T @ hidden[block]
            yield (total + bias[t + 1][:, None]).T.copy()

    def running_sum(self, XT: Float[np.ndarray, "d_plus_1 n"]) -> Float[np.ndarray, "n k"]:
        """sum_t rho_t W2_t^T s(W1_t^T x + c1_t), without biases, added up as `boost` does, bit for bit."""
        total = np.zeros((XT.shape[1], self.W2.shape[1]))
        for t in range(self.n_stages):
            block = slice(t * self.units_per_step, (t + 1) * self.units_per_step)
            total += hidden_units(XT, self.W1[:, block], self.c1[block], self.activation).T @ self.W2[block]
        return total

    def first(self, n_stages: int) -> StagedNetwork:
        """The network of the first `n_stages` blocks: its own, smaller, contiguous matrices."""
        units = n_stages * self.units_per_step
        return StagedNetwork(
            np.ascontiguousarray(self.W1[:, :units]),
            self.c1[:units].copy(),
            self.W2[:units].copy(),
            self.stage_bias[: n_stages + 1].copy(),
            self.units_per_step,
            self.activation,
        )

    def _cast(self, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return tuple(a.astype(dtype, copy=False) for a in (self.W1, self.c1, self.W2, self.stage_bias))  # type: ignore[return-value]


@dataclass(frozen=True)
class BoostSettings:
    """How blocks are fitted and added; names and meaning as in `BoostedMLPClassifier`."""

    units_per_step: int
    learning_rate: float
    subsample: float
    activation: Activation
    alpha: float
    max_iter: int
    tol: float
    solver: BlockSolver
    line_search: LineSearch
    max_step: float | None
    seed: int


@dataclass(frozen=True)
class Rows:
    """Rows to learn from or to watch: X^T with a row of ones, encoded targets, weights."""

    XT: Float[np.ndarray, "d_plus_1 n"]
    y: Float[np.ndarray, "n k"]
    weight: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Rows:
        return cls(with_ones(X), y, weight)

    def mean_loss(self, objective: Any, F: np.ndarray) -> float:
        """sum_i w_i L_i / sum_i w_i."""
        return float(self.weight @ objective.loss(self.y, F) / self.weight.sum())


@dataclass(frozen=True)
class Stage:
    """One added block: rho_t, and mean losses after it (`oob_*` over the rows it was not fitted on)."""

    block: Block
    step: float
    train_loss: float
    oob_loss: float | None
    oob_improvement: float | None


def boost(
    rows: Rows,
    total: Float[np.ndarray, "n k"],
    bias: Float[np.ndarray, " k"],
    objective: Any,
    settings: BoostSettings,
    *,
    first_stage: int,
    last_stage: int,
    stage_weights: StageWeights | None = None,
) -> Iterator[Stage]:
    """Add blocks `first_stage` .. `last_stage` - 1 to F = `total` + `bias`, the running sum of the hidden
    units' part and of the biases; `total` is carried forward in place.

    Every stage draws from its own generator, seeded by (seed, stage), so that going on later gives the
    same blocks as never having stopped. One generator serves the stage's rows and its start.
    """
    d, n, k = rows.XT.shape[0] - 1, rows.XT.shape[1], rows.y.shape[1]
    # As a decimal: 0.29 * 100 is 28.999... in binary, and 29 rows are meant.
    drawn = int(np.floor(settings.subsample * n + 1e-9))
    F = total + bias
    even = bool(np.all(rows.weight == rows.weight[0]))
    for t in range(first_stage, last_stage):
        rng = np.random.default_rng([settings.seed, t])
        weight, uniform = rows.weight, even
        if stage_weights is not None:
            weight = weight * checked_stage_weights(stage_weights(t, F.copy(), rows.y), n, t)
            uniform = False
        inside = np.sort(rng.permutation(n)[:drawn]) if drawn < n else None
        residual = -objective.gradient(rows.y, F)
        start = draw_start(d, settings.units_per_step, k, settings.activation, rng)
        taken = slice(None) if inside is None else inside
        block_weight = None if uniform else weight[taken]
        if block_weight is not None and not block_weight.sum() > 0.0:
            raise ValueError(
                f"stage {t}: every row drawn has weight 0; raise subsample (now {settings.subsample}) or "
                "give more rows a positive weight"
            )
        block = fit_block(
            rows.XT if inside is None else rows.XT[:, inside],
            residual[taken],
            settings.units_per_step,
            start=start,
            weight=block_weight,
            activation=settings.activation,
            alpha=settings.alpha,
            max_iter=settings.max_iter,
            tol=settings.tol,
            solver=settings.solver,
        )
        hidden = hidden_units(rows.XT, block.W1, block.c1, settings.activation)
        h = hidden.T @ block.W2 + block.c2
        outside = None if inside is None else np.setdiff1d(np.arange(n), inside, assume_unique=True)
        step = 0.0
        if block.n_iter > 0:
            step = block_step(objective, rows.y, F, h, weight, settings.line_search)
            seen = h if outside is None else h[outside]
            step = settings.learning_rate * clip_step(
                step, float(np.abs(seen).max()), float(np.abs(residual).max()), settings.max_step
            )
        oob_before = None if outside is None else _mean_loss(objective, rows, F, outside)
        if step != 0.0:
            # What is kept is rho W2 and the sum of rho c2: adding just these lets a later fit go on exactly.
            total += hidden.T @ (step * block.W2)
            bias = bias + step * block.c2
            F = total + bias
        oob_after = None if outside is None else _mean_loss(objective, rows, F, outside)
        improvement = None if oob_before is None or oob_after is None else oob_before - oob_after
        yield Stage(block, step, rows.mean_loss(objective, F), oob_after, improvement)


def assemble(
    stages: list[Stage],
    initial: Float[np.ndarray, " k"],
    d: int,
    units_per_step: int,
    activation: Activation,
    before: StagedNetwork | None = None,
) -> StagedNetwork:
    """Blocks side by side: W1 = [W1_1 .. W1_T], W2 = [rho_1 W2_1; ..], biases accumulated."""
    k = len(initial)
    W1 = [before.W1] if before is not None else [np.empty((d, 0))]
    c1 = [before.c1] if before is not None else [np.empty(0)]
    W2 = [before.W2] if before is not None else [np.empty((0, k))]
    bias = list(before.stage_bias) if before is not None else [initial]
    for stage in stages:
        W1.append(stage.block.W1)
        c1.append(stage.block.c1)
        W2.append(stage.step * stage.block.W2)
        bias.append(bias[-1] + stage.step * stage.block.c2)
    return StagedNetwork(
        np.hstack(W1), np.concatenate(c1), np.vstack(W2), np.array(bias), units_per_step, activation
    )


def checked_stage_weights(weight: Any, n: int, t: int) -> Float[np.ndarray, " n"]:
    """The hook's answer as float64 [n], or ValueError saying what is wrong with it."""
    checked = np.asarray(weight, dtype=np.float64)
    if checked.shape != (n,):
        raise ValueError(f"stage_weights({t}, ...) must have shape ({n},), got {checked.shape}")
    if not np.isfinite(checked).all() or (checked < 0.0).any() or not checked.sum() > 0.0:
        raise ValueError(f"stage_weights({t}, ...) must be finite, not negative and not all 0")
    return checked


def _mean_loss(objective: Any, rows: Rows, F: np.ndarray, chosen: np.ndarray) -> float:
    weight = rows.weight[chosen]
    if not weight.sum() > 0.0:
        return 0.0
    return float(weight @ objective.loss(rows.y[chosen], F[chosen]) / weight.sum())
