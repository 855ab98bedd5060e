"""Tables to learn from: Breiman's generators, two of scikit-learn's, and its bundled data sets.

Every function gives (X [n, d] float64, y [n]); labels are 0, 1 ... and draws come from `seed`.
Sources: twonorm, ringnorm from Breiman, "Bias, variance, and arcing classifiers", 1996; waveform from Breiman
et al., "Classification and Regression Trees", 1984; friedman1 from Friedman, "Multivariate adaptive
regression splines", 1991.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

Arrays = tuple[Float[np.ndarray, "n d"], Shaped[np.ndarray, " n"]]
Seed = int | np.random.Generator

NORM_FEATURES = 20
WAVE_FEATURES = 21
WAVE_CENTRES = (7, 15, 11)
WAVE_PAIRS = ((0, 1), (0, 2), (1, 2))


def twonorm(n: int, seed: Seed) -> Arrays:
    """Two unit normals in 20 dimensions at +a 1 (class 1) and -a 1 (class 0), a = 2/sqrt(20).

    Best possible accuracy Phi(2), about 0.977, by a linear rule.
    """
    rng = _rng(n, seed)
    y = rng.integers(0, 2, n)
    a = 2.0 / np.sqrt(NORM_FEATURES)
    return rng.standard_normal((n, NORM_FEATURES)) + a * (2.0 * y - 1.0)[:, None], y


def ringnorm(n: int, seed: Seed, shift: float = 2.0 / np.sqrt(NORM_FEATURES)) -> Arrays:
    """Class 1 is N(0, 4I), class 0 is N(shift 1, I), in 20 dimensions; Breiman's shift is 2/sqrt(20).

    A smaller shift makes it harder; no linear rule does well.
    """
    rng = _rng(n, seed)
    y = rng.integers(0, 2, n)
    Z = rng.standard_normal((n, NORM_FEATURES))
    return np.where(y[:, None] == 1, 2.0 * Z, Z + shift), y


def waveform(n: int, seed: Seed) -> Arrays:
    """Three classes of 21-point waves: u h_a + (1 - u) h_b + N(0, I) with u ~ U(0, 1).

    h_j(i) = max(6 - |i - c_j|, 0) for i = 1..21 with c = 7, 15, 11; class 0 mixes h_1, h_2, class 1 h_1, h_3,
    class 2 h_2, h_3. Best possible accuracy about 0.86.
    """
    rng = _rng(n, seed)
    y = rng.integers(0, 3, n)
    u = rng.random((n, 1))
    waves = base_waves()
    first = waves[np.array([a for a, _ in WAVE_PAIRS])[y]]
    second = waves[np.array([b for _, b in WAVE_PAIRS])[y]]
    return u * first + (1.0 - u) * second + rng.standard_normal((n, WAVE_FEATURES)), y


def base_waves() -> Float[np.ndarray, "3 21"]:
    """The three triangles that `waveform` mixes."""
    i = np.arange(1, WAVE_FEATURES + 1)
    return np.array([np.maximum(6.0 - np.abs(i - c), 0.0) for c in WAVE_CENTRES])


def moons(n: int, seed: Seed, noise: float = 0.3) -> Arrays:
    """Two interleaved half circles in the plane with normal noise."""
    from sklearn.datasets import make_moons

    X, y = make_moons(n, noise=noise, random_state=_legacy(n, seed))
    return X, y


def friedman1(n: int, seed: Seed, noise: float = 1.0) -> Arrays:
    """y = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + noise N(0, 1), x uniform in ten dimensions."""
    from sklearn.datasets import make_friedman1

    X, y = make_friedman1(n, n_features=10, noise=noise, random_state=_legacy(n, seed))
    return X, y


def breast_cancer() -> Arrays:
    """569 x 30, two classes."""
    return _bundled("breast_cancer")


def digits() -> Arrays:
    """1797 x 64 (8 x 8 grey levels 0..16), ten classes."""
    return _bundled("digits")


def wine() -> Arrays:
    """178 x 13, three classes."""
    return _bundled("wine")


def iris() -> Arrays:
    """150 x 4, three classes."""
    return _bundled("iris")


def diabetes() -> Arrays:
    """442 x 10, regression."""
    return _bundled("diabetes")


@dataclass(frozen=True)
class TabularTask:
    """A table by name: drawn anew for every seed (`draw`), or one set of real rows (`load`)."""

    name: str
    kind: Literal["classification", "regression"]
    draw: Callable[[int, Seed], Arrays] | None = None
    load: Callable[[], Arrays] | None = None


TABULAR_TASKS: Mapping[str, TabularTask] = {
    task.name: task
    for task in (
        TabularTask("twonorm", "classification", draw=twonorm),
        TabularTask("ringnorm", "classification", draw=ringnorm),
        TabularTask("waveform", "classification", draw=waveform),
        TabularTask("moons", "classification", draw=moons),
        TabularTask("friedman1", "regression", draw=friedman1),
        TabularTask("breast_cancer", "classification", load=breast_cancer),
        TabularTask("digits", "classification", load=digits),
        TabularTask("wine", "classification", load=wine),
        TabularTask("iris", "classification", load=iris),
        TabularTask("diabetes", "regression", load=diabetes),
    )
}


def _bundled(name: str) -> Arrays:
    from sklearn import datasets

    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return np.asarray(X, dtype=np.float64), np.asarray(y)


def _rng(n: int, seed: Seed) -> np.random.Generator:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return np.random.default_rng(seed)


def _legacy(n: int, seed: Seed) -> int:
    """A seed for scikit-learn's generators, drawn from ours."""
    return int(_rng(n, seed).integers(1 << 32))
