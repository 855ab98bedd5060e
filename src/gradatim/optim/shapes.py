"""Learning-rate shapes in closed form: the baselines a refined schedule is held against.

A shape is a vector of factors in [0, 1] with maximum 1, one per optimizer step; the learning rate at step
t is the base rate times the factor. Steps are counted t = 0 .. T-1 here; the paper counts from 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

Factors = Float64[np.ndarray, " steps"]


def linear(steps: int, *, end_factor: float = 0.0) -> Factors:
    """Linear decay, 1 - (1 - end_factor) t / (T-1).

    With `end_factor=0` this is the paper's (T - t) / (T - 1) for t = 1 .. T, the refinement of constant
    gradient norms; its last step does not move. Raises ValueError for fewer than 2 steps or an
    `end_factor` outside [0, 1].
    """
    _check_steps(steps)
    if not 0.0 <= end_factor <= 1.0:
        raise ValueError(f"end_factor must lie in [0, 1], got {end_factor}")
    return 1.0 - (1.0 - end_factor) * (np.arange(steps, dtype=np.float64) / (steps - 1))


def polynomial(steps: int, *, exponent: float = 2.0) -> Factors:
    """(1 - t / (T-1))^exponent; `exponent=1` is linear decay, 2 the quadratic one."""
    if not exponent > 0:
        raise ValueError(f"exponent must be above 0, got {exponent}")
    return linear(steps) ** exponent


def cosine(steps: int) -> Factors:
    """(1 + cos(pi t / T)) / 2, the half cosine that ends just above 0."""
    return 0.5 * (1.0 + np.cos(np.pi * _progress(steps)))


def one_minus_sqrt(steps: int) -> Factors:
    """1 - sqrt(t / T)."""
    return 1.0 - np.sqrt(_progress(steps))


def inverse_sqrt(steps: int) -> Factors:
    """1 / sqrt(t + 1)."""
    _check_steps(steps)
    return 1.0 / np.sqrt(np.arange(1, steps + 1, dtype=np.float64))


def inverse(steps: int) -> Factors:
    """1 / (t + 1)."""
    _check_steps(steps)
    return 1.0 / np.arange(1, steps + 1, dtype=np.float64)


def flat(steps: int) -> Factors:
    """A constant rate."""
    _check_steps(steps)
    return np.ones(steps, dtype=np.float64)


def warmup_stable_decay(
    steps: int, *, warmup: float = 0.0, cooldown: float = 0.2, decay: str = "linear"
) -> Factors:
    """Warm-up, a constant stretch, then a cool-down over the last `cooldown` of the run (WSD).

    `decay` is "linear" or "1-sqrt". Raises ValueError where the fractions do not fit into the run.
    """
    _check_steps(steps)
    if not (0.0 <= warmup < 1.0 and 0.0 < cooldown <= 1.0 and warmup + cooldown <= 1.0):
        raise ValueError(
            f"warmup and cooldown must be fractions with warmup + cooldown <= 1, got {warmup} and {cooldown}"
        )
    tails: dict[str, Callable[[int], Factors]] = {"linear": linear, "1-sqrt": one_minus_sqrt}
    if decay not in tails:
        raise ValueError(f"decay must be one of {sorted(tails)}, got {decay!r}")
    factors = np.ones(steps, dtype=np.float64)
    n = max(2, round(cooldown * steps))
    factors[-n:] = tails[decay](n)
    return with_warmup(factors, warmup)


def stepwise(steps: int, *, milestones: tuple[float, ...] = (0.5, 0.75), gamma: float = 0.1) -> Factors:
    """The rate is multiplied by `gamma` at each milestone, a fraction of the run."""
    if not all(0.0 < m < 1.0 for m in milestones):
        raise ValueError(f"milestones must be fractions strictly between 0 and 1, got {milestones}")
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must lie strictly between 0 and 1, got {gamma}")
    passed = (_progress(steps)[:, None] >= np.asarray(milestones, dtype=np.float64)).sum(axis=1)
    return gamma ** passed.astype(np.float64)


def warmup_polynomial(steps: int, *, warmup: float, exponent: float = 1.0) -> Factors:
    """The two-number shape that the paper's authors suggest per task.

    With s = t / (T-1): s / warmup up to the end of the warm-up, then
    (1 - (s - warmup) / (1 - warmup))^exponent.
    The rate starts one step's share above zero, so that the first step moves.
    """
    _check_steps(steps)
    if not 0.0 <= warmup < 1.0:
        raise ValueError(f"warmup must be a fraction in [0, 1), got {warmup}")
    if not exponent > 0:
        raise ValueError(f"exponent must be above 0, got {exponent}")
    n = round(warmup * steps)
    rise = np.arange(1, n + 1, dtype=np.float64) / (n + 1)
    return np.concatenate([rise, polynomial(max(steps - n, 2), exponent=exponent)])[:steps]


def with_warmup(factors: Factors, warmup: float) -> Factors:
    """`factors` with the first `warmup` of the run multiplied by a linear rise from 0."""
    if not 0.0 <= warmup < 1.0:
        raise ValueError(f"warmup must be a fraction in [0, 1), got {warmup}")
    n = round(warmup * len(factors))
    scaled = factors.copy()
    scaled[:n] *= np.arange(1, n + 1, dtype=np.float64) / (n + 1)
    return scaled / scaled.max()


SHAPES: dict[str, Callable[[int], Factors]] = {
    "linear": linear,
    "cosine": cosine,
    "1-sqrt": one_minus_sqrt,
    "quadratic": polynomial,
    "wsd": warmup_stable_decay,
    "stepwise": stepwise,
    "1/sqrt(t)": inverse_sqrt,
    "flat": flat,
    "1/t": inverse,
}
"""Every baseline by name, with its default settings."""


def shape(name: str, steps: int) -> Factors:
    """The factors of a named baseline; see `SHAPES` for the names.

    Raises ValueError for an unknown name.
    """
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; choose from {', '.join(SHAPES)}")
    return SHAPES[name](steps)


def _progress(steps: int) -> Factors:
    _check_steps(steps)
    return np.arange(steps, dtype=np.float64) / steps


def _check_steps(steps: int) -> None:
    if steps < 2:
        raise ValueError(f"a schedule needs at least 2 steps, got {steps}")
