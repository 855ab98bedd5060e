"""Power laws of loss against data, parameters or compute: exponents with intervals, and comparisons of two.

log y = a - b log x by least squares; b is the exponent. The "rate" at which one method scales faster than
another is b_1 / b_2 - 1, as in "Energy-Based Transformers are Scalable Learners and Thinkers" (Gladstone et
al. 2025, arXiv 2507.02092), whose figures compare slopes of validation perplexity on logarithmic axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PowerLaw:
    """y = exp(intercept) x^(-exponent); `low` and `high` bound the exponent (95%), None without spread."""

    exponent: float
    intercept: float
    low: float | None
    high: float | None

    def __call__(self, x: float) -> float:
        """The fitted y at x."""
        return float(np.exp(self.intercept - self.exponent * np.log(x)))


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Exponent and intercept of log y = intercept - exponent log x, by least squares.

    Raises ValueError for fewer than two different x, unequal lengths, and values that are not above 0.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if xs.shape != ys.shape or xs.ndim != 1 or len(np.unique(xs)) < 2:
        raise ValueError(
            f"a power law needs at least two different x and as many y, got {len(xs)} and {len(ys)}"
        )
    if not (np.all(xs > 0) and np.all(ys > 0)):
        raise ValueError("a power law needs values above 0")
    slope, intercept = np.polyfit(np.log(xs), np.log(ys), 1)
    return float(-slope), float(intercept)


def scaling_law(
    curves: Mapping[int, tuple[Sequence[float], Sequence[float]]], resamples: int = 1000, seed: int = 0
) -> PowerLaw:
    """The exponent over all seeds' points, with a percentile bootstrap over seeds and, within them, points.

    Raises ValueError for no curve at all.
    """
    if not curves:
        raise ValueError("no curve to fit")
    points = [np.stack([np.asarray(x, float), np.asarray(y, float)]) for x, y in curves.values()]
    exponent, intercept = fit_power_law(*np.concatenate(points, axis=1))
    drawn = _bootstrap(points, resamples, seed)
    if len(drawn) == 0 or np.ptp(drawn) == 0:
        return PowerLaw(exponent, intercept, None, None)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return PowerLaw(exponent, intercept, float(low), float(high))


def _bootstrap(points: Sequence[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(resamples):
        seeds = rng.integers(len(points), size=len(points))
        chosen = [points[s][:, rng.integers(points[s].shape[1], size=points[s].shape[1])] for s in seeds]
        x, y = np.concatenate(chosen, axis=1)
        if len(np.unique(x)) > 1:
            found.append(fit_power_law(x, y)[0])
    return np.asarray(found)
