"""Estimates with intervals: paired by seed, 95%, honest about small samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
ALPHA = 1.0 - LEVEL
POWER = 0.8
MAX_SEEDS = 100_000


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval.

    `low`/`high` is the Student t (or Wilson) interval, `boot_low`/`boot_high` the BCa bootstrap beside
    it (None below 4 seeds or without spread), `p` the two-sided p-value against zero. With one seed, or
    none, there is no interval and every bound is None.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    boot_low: float | None
    boot_high: float | None
    p: float | None

    @property
    def standardized(self) -> tuple[float, float, float] | None:
        """Mean and interval in units of the standard deviation over seeds (Cohen's d_z)."""
        if self.mean is None or self.low is None or self.high is None or not self.sd:
            return None
        return self.mean / self.sd, self.low / self.sd, self.high / self.sd


def estimate(values: Sequence[float], overlap: float = 0.0) -> Estimate:
    """Mean of `values` with a Student t interval, `mean +- t_{n-1} sd sqrt(1/n + overlap)`.

    `overlap` is n_test / n_train where the values come from overlapping resamples of one data set
    (Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003).
    """
    x = np.asarray(values, dtype=np.float64)
    n = x.size
    if n == 0:
        return Estimate(0, None, None, None, None, None, None, None)
    mean = float(x.mean())
    if n == 1:
        return Estimate(1, mean, None, None, None, None, None, None)
    sd = float(x.std(ddof=1))
    # Identical numbers differ by rounding alone; a spread at rounding level is no spread.
    if sd <= 8 * np.finfo(np.float64).eps * float(np.abs(x).max()):
        p = 1.0 if mean == 0.0 else 0.0
        return Estimate(n, mean, 0.0, mean, mean, None, None, p)
    se = sd * math.sqrt(1.0 / n + overlap)
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * se
    p = float(2 * stats.t.sf(abs(mean) / se, n - 1))
    boot = _bca(x) if n >= 4 else (None, None)
    return Estimate(n, mean, sd, mean - half, mean + half, *boot, p)


def estimate_proportion(outcomes: Sequence[float], bound: float, sign: float) -> Estimate:
    """`sign * (share - bound)` of 0/1 outcomes with a Wilson score interval.

    Raises ValueError when an outcome is neither 0 nor 1.
    """
    x = np.asarray(outcomes, dtype=np.float64)
    if not np.isin(x, (0.0, 1.0)).all():
        raise ValueError(f"a proportion needs outcomes 0 or 1, got {sorted(set(x.tolist()))[:4]}")
    n = x.size
    if n == 0:
        return Estimate(0, None, None, None, None, None, None, None)
    test = stats.binomtest(int(x.sum()), n, min(max(bound, 0.0), 1.0))
    ci = test.proportion_ci(LEVEL, method="wilson")
    low, high = sorted((sign * (ci.low - bound), sign * (ci.high - bound)))
    share = float(x.mean())
    # The Wilson half-width gives all-equal outcomes a spread; the sample deviation would say none.
    spread = max(float(x.std(ddof=1)) if n > 1 else 0.0, math.sqrt(n) * (high - low) / 4)
    return Estimate(
        n, sign * (share - bound), spread, float(low), float(high), None, None, float(test.pvalue)
    )


def _bca(x: np.ndarray) -> tuple[float | None, float | None]:
    with np.errstate(all="ignore"):
        ci = stats.bootstrap(
            (x,), np.mean, confidence_level=LEVEL, n_resamples=4999, method="BCa",
            rng=np.random.default_rng(0), vectorized=True,
        ).confidence_interval  # fmt: skip
    if not (math.isfinite(ci.low) and math.isfinite(ci.high)):
        return None, None
    return float(ci.low), float(ci.high)


def equivalence_p(e: Estimate, margin: float, overlap: float = 0.0) -> float | None:
    """p-value of two one-sided tests that the mean lies within +-`margin`."""
    if e.mean is None or e.sd is None:
        return None
    if e.sd == 0.0:
        return 0.0 if abs(e.mean) < margin else 1.0
    se = e.sd * math.sqrt(1.0 / e.n + overlap)
    below = float(stats.t.sf((e.mean + margin) / se, e.n - 1))
    above = float(stats.t.cdf((e.mean - margin) / se, e.n - 1))
    return max(below, above)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values; None stays None and counts as a test made."""
    m = len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * m
    running = 0.0
    for rank, (p, i) in enumerate(order):
        running = max(running, min(1.0, (m - rank) * p))
        adjusted[i] = running
    return adjusted


def seeds_needed(
    e: Estimate, distance: float, tests: int = 1, overlap: float = 0.0, one_sided: bool = False
) -> int | None:
    """Seeds at which a true mean `distance` from the decision line is seen with 80% power.

    Uses the spread seen so far and a level of 5% / `tests`; None where no number of seeds would do
    (no distance, no spread known, more than 100,000, or overlap so large that resampling cannot help).
    """
    if not e.sd or distance <= 0:
        return None
    alpha = ALPHA / max(tests, 1)
    tail = alpha if one_sided else alpha / 2

    def enough(n: int) -> bool:
        se = e.sd * math.sqrt(1.0 / n + overlap)  # type: ignore[operator]
        return distance / se >= stats.t.ppf(1 - tail, n - 1) + stats.t.ppf(POWER, n - 1)

    if not enough(MAX_SEEDS):
        return None
    low, high = 2, MAX_SEEDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
