"""Families of reference algorithms whose free numbers are tuned to lie as near to a learner as they can.

A reference with a rate of its own choosing loses by construction against one with a tuned rate. So every
family is tuned on contexts of its own before it is judged: a rate, a penalty, a time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from gradatim.probes.krylov_algorithms import ConjugateGradient
from gradatim.probes.reference_algorithms import (
    Averaging,
    BayesLinear,
    GradientDescent,
    GradientDescentPlusPlus,
    GradientFlow,
    IterativeNewton,
    LeastSquares,
    Ridge,
    Zero,
)
from gradatim.probes.sequential_algorithms import (
    KNeighbors,
    OnlineGradientDescent,
    PreconditionedGradientDescent,
)
from gradatim.probes.spectral import Predictor, PrefixSpectrum, SpectralPredictor, prefix_spectra

Distance = Callable[[Tensor], float]
"""From predictions [batch, n] to one number to be made small."""


@dataclass(frozen=True)
class Family:
    """Algorithms that differ in positive numbers: `make(*numbers)`, each started from its `grid`.

    `plain` orders families that fit equally well: the lowest is named first. A family with `fit(x, y,
    predictions, positions)` takes a whole matrix from the contexts instead. `keep_name` shows its own name,
    not that of its member.
    """

    name: str
    make: Callable[..., Predictor]
    grids: tuple[tuple[float, ...], ...] = ()
    plain: int = 0
    fit: Callable[[Tensor, Tensor, Tensor, Sequence[int]], Predictor] | None = None
    keep_name: bool = False


class Contexts:
    """Contexts with the spectra of all prefixes kept, so that another setting costs a product."""

    def __init__(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> None:
        self.x, self.y = x.double(), y.double()
        self._spectra: list[PrefixSpectrum] | None = None

    @property
    def spectra(self) -> list[PrefixSpectrum]:
        """Decomposed once, when first asked for."""
        if self._spectra is None:
            self._spectra = list(prefix_spectra(self.x, self.y))
        return self._spectra

    def predict(self, predictor: Predictor) -> Float[Tensor, "batch n"]:
        """Predictions of every prefix; an algorithm that diverges gives huge numbers, never NaN."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            if isinstance(predictor, SpectralPredictor):
                found = [
                    torch.linalg.vecdot(predictor.filter(s.values, s.count), s.products) for s in self.spectra
                ]
                return torch.cat(found).nan_to_num(nan=1e30, posinf=1e30, neginf=-1e30)
            return predictor.predict(self.x, self.y).double().nan_to_num(nan=1e30, posinf=1e30, neginf=-1e30)


def tuned(
    family: Family, contexts: Contexts, distance: Distance, learner: Tensor, positions: Sequence[int]
) -> tuple[Predictor, tuple[float, ...]]:
    """The member of the family nearest to the learner on these contexts, and its numbers.

    One number: the grid, then Brent's method between the best point's neighbours, on the logarithm. Several:
    Nelder-Mead on the logarithms from the best grid point.
    """
    if family.fit is not None:
        return family.fit(contexts.x, contexts.y, learner, positions), ()
    if not family.grids:
        return family.make(), ()

    def off(logs: Any) -> float:
        try:
            value = distance(contexts.predict(family.make(*np.exp(np.atleast_1d(logs)).tolist())))
        except ValueError:  # numbers that the algorithm refuses on these contexts
            return 1e300
        return value if math.isfinite(value) else 1e300

    axes = [np.log(grid) for grid in family.grids]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    values = [off(point) for point in points]
    best = points[int(np.argmin(values))]
    if len(axes) == 1 and len(axes[0]) > 1:
        at = int(np.argmin(values))
        low, high = axes[0][max(at - 1, 0)], axes[0][min(at + 1, len(axes[0]) - 1)]
        found = minimize_scalar(off, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
        best = np.atleast_1d(found.x) if found.fun <= min(values) else best
    elif len(axes) > 1:
        options = {"maxfev": 200, "xatol": 1e-6, "fatol": 0.0}
        found = minimize(off, best, method="Nelder-Mead", options=options)
        best = found.x if found.fun <= min(values) else best
    numbers = tuple(float(v) for v in np.exp(best))
    return family.make(*numbers), numbers


def linear_families(
    contexts: Contexts, positions: Sequence[int], *, bayes: tuple[float, float] | None = None
) -> list[Family]:
    """Every reference algorithm for linear regression contexts, with grids that suit these contexts.

    `bayes` is (sigma, tau) of the task where it has noise. With a single position, summed and averaged
    gradient descent differ by a constant, so only the averaged convention (von Oswald et al.) is offered.
    """
    x = contexts.x
    d, largest = x.shape[2], _largest_eigenvalue(contexts, positions)
    mean_size = float(torch.tensor([float(p) for p in positions]).mean().clamp(min=1))
    rates = tuple(float(v) for v in np.geomspace(1e-2, 2.0, 12) / largest)
    one_step = tuple(float(v) for v in np.geomspace(1e-2, 1e2, 17) / largest)
    averaged = tuple(rate * mean_size for rate in rates)
    one_averaged = tuple(rate * mean_size for rate in one_step)
    families = [
        Family("zero", Zero, plain=0),
        Family("averaging", Averaging, plain=1),
        Family("OLS", LeastSquares, plain=2),
        Family("ridge", Ridge, (tuple(float(v) for v in np.geomspace(1e-5, 1e1, 13) * largest),), plain=4),
        Family(
            "GD, one step",
            lambda lr: GradientDescent(1, lr, reduction="mean"),
            (one_averaged,),
            plain=3,
        ),
    ]
    if bayes is not None and bayes[0] > 0:
        sigma, tau = bayes
        families.append(Family("Bayes ridge", lambda: BayesLinear(sigma, tau), plain=2))
    if len(set(positions)) > 1:
        families.append(
            Family("GD on sums, one step", lambda lr: GradientDescent(1, lr), (one_step,), plain=3)
        )
        families += [_descent(k, rates, "sum") for k in (2, 3, 4, 6, 8, 16, 64, 256, 1024)]
    families += [_descent(k, averaged, "mean") for k in (2, 3, 4, 6, 8, 16, 64, 256, 1024)]
    families.append(
        Family(
            "gradient flow",
            GradientFlow,
            (tuple(float(v) for v in np.geomspace(1e-2, 1e4, 15) / largest),),
            plain=5,
        )
    )
    for k in (1, 2, 3):
        families.append(_plus_plus(k, averaged, largest))
    for k in (*range(1, 13), 16, 20):
        families.append(Family("Newton", lambda k=k: IterativeNewton(k), plain=9))
    # A construction's alpha is one number for all contexts, below 2 / lambda_max^2 of the worst of them.
    alphas = tuple(float(v) for v in np.geomspace(1e-4, 1.0, 5) / largest**2)
    families += [
        Family("Newton", lambda alpha, k=k: IterativeNewton(k, alpha), (alphas,), plain=9)
        for k in range(1, 7)
    ]
    families += [
        Family("conjugate gradient", lambda k=k: ConjugateGradient(k), plain=7) for k in range(1, min(d, 6))
    ]
    families += [
        Family("online GD", lambda: OnlineGradientDescent("nlms"), plain=6),
        Family("online GD", OnlineGradientDescent, (rates,), plain=6),
        Family("k-NN", lambda: KNeighbors(3, "uniform"), plain=6),
    ]
    if d <= 16:
        families.append(
            Family("preconditioned GD", PreconditionedGradientDescent, plain=8, fit=fit_preconditioner)
        )
    return families


def _descent(steps: int, rates: tuple[float, ...], reduction: str) -> Family:
    name = "GD" if reduction == "mean" else "GD on sums"
    return Family(name, lambda lr: GradientDescent(steps, lr, reduction=reduction), (rates,), plain=5)


def _plus_plus(steps: int, rates: tuple[float, ...], largest: float) -> Family:
    gammas = tuple(float(v) for v in np.geomspace(0.02, 0.6, 6) / largest)
    return Family(
        "GD++",
        lambda lr, gamma: GradientDescentPlusPlus(lr, gamma, steps=steps),
        (rates[::2] + tuple(4 * r for r in rates[-3:]), gammas),
        plain=8,
    )


def _largest_eigenvalue(contexts: Contexts, positions: Sequence[int]) -> float:
    """The 95% quantile over contexts of the largest eigenvalue that the used prefixes have."""
    at = list(positions)
    tops = torch.cat([s.values[:, at, -1].amax(dim=1) for s in contexts.spectra])
    return max(float(torch.quantile(tops, 0.95)), 1e-12)


def fit_preconditioner(
    x: Tensor, y: Tensor, learner: Tensor, positions: Sequence[int]
) -> PreconditionedGradientDescent:
    """The matrix P with x_q^T P (X^T y) / t nearest to the learner in least squares: d^2 unknowns.

    It is the best that any single linear self-attention layer can do (Ahn et al. 2023, arXiv 2306.00297).
    """
    d = x.shape[2]
    rows, targets = [], []
    for t in positions:
        if t == 0:
            continue
        b = torch.einsum("bnd,bn->bd", x[:, :t], y[:, :t]) / t
        rows.append(torch.einsum("bi,bj->bij", x[:, t], b).flatten(1))
        targets.append(learner[:, t])
    if not rows:
        return PreconditionedGradientDescent(torch.zeros(d, d, dtype=torch.float64))
    design, target = torch.cat(rows), torch.cat(targets)
    gram = design.T @ design
    ridge = 1e-10 * gram.diagonal().mean().clamp(min=1e-300)
    eye = torch.eye(d * d, dtype=gram.dtype)
    solution = torch.linalg.solve(gram + ridge * eye, design.T @ target)
    return PreconditionedGradientDescent(solution.reshape(d, d))
