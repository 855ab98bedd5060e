"""One eigendecomposition per prefix serves every algorithm that filters the spectrum of X^T X.

With S_t = sum_{i<=t} x_i x_i^T = U diag(lambda) U^T and b_t = sum_{i<=t} x_i y_i, ridge, gradient descent,
Newton-Schulz and many others give the weights w_t = U diag(f(lambda)) U^T b_t with a function f of their
own. A prediction is then sum_j f(lambda_j) (U^T b_t)_j (U^T x)_j, so a hundred settings cost hardly more than
one. Where an input is wider than the context is long the same sums are taken from the Gram matrix X X^T.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 1 << 22  # entries of a stack of matrices decomposed at once: 32 MB
LARGEST_EXPONENT = 250.0  # a diverging iteration stops growing at e^250, so that its square stays finite


@runtime_checkable
class Predictor(Protocol):
    """An algorithm: entry t of [batch, n] answers `x[:, t]` from the t pairs before it; 0 for t = 0."""

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        ...

    def predict(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions [batch, n] of every prefix."""
        ...


@dataclass(frozen=True)
class PrefixSpectrum:
    """What every filter needs of a stack of contexts, in float64; k is the smaller of d and n.

    `values`: eigenvalues of S_t for the first t = 0 .. n - 1 pairs, those that rounding made of 0 set to 0.
    `products`: so that the prediction of filter f for `x[:, t]` is (f(values) * products).sum(-1).
    `count`: t, as a column. `directions`, where asked for: so that the weights are directions @ f(values).
    """

    values: Float[Tensor, "batch n k"]
    products: Float[Tensor, "batch n k"]
    count: Float[Tensor, "n 1"]
    directions: Float[Tensor, "batch n d k"] | None = None


def prefix_spectra(
    x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], directions: bool = False
) -> Iterator[PrefixSpectrum]:
    """Spectra of all prefixes, a chunk of contexts at a time, in order.

    Raises ValueError for wrong shapes and for numbers that are not finite.
    """
    x, y = to_double(x, y)
    batch, n, d = x.shape
    step = max(1, CHUNK // (n * min(n, d) * max(min(n, d), d if directions else 1)))
    for start in range(0, batch, step):
        part = slice(start, start + step)
        yield _primal(x[part], y[part], directions) if d <= n else _dual(x[part], y[part], directions)


def _primal(x: Tensor, y: Tensor, directions: bool) -> PrefixSpectrum:
    n, d = x.shape[1:]
    s = before(torch.einsum("bni,bnj->bnij", x, x))
    b = before(x * y[..., None])
    values, basis = torch.linalg.eigh(s)
    inner = (basis.mT @ b[..., None])[..., 0]
    query = (basis.mT @ x[..., None])[..., 0]
    values, count = _clean(values, n, d)
    inner = torch.where(values > 0, inner, 0.0)
    along = basis * inner[..., None, :] if directions else None
    return PrefixSpectrum(values, inner * query, count, along)


def _dual(x: Tensor, y: Tensor, directions: bool) -> PrefixSpectrum:
    n, d = x.shape[1:]
    # Row i of prefix t exists for i < t; the others are zero and add zero eigenvalues.
    exists = torch.ones(n, n, dtype=x.dtype, device=x.device).tril(-1)
    gram = x @ x.mT
    values, basis = torch.linalg.eigh(gram[:, None] * exists[:, :, None] * exists[:, None, :])
    inner = (basis.mT @ (y[:, None] * exists)[..., None])[..., 0]
    query = (basis.mT @ (gram * exists)[..., None])[..., 0]
    values, count = _clean(values, n, d)
    inner = torch.where(values > 0, inner, 0.0)
    along = None
    if directions:
        rows = x[:, None] * exists[..., None]  # [batch, prefix, row, d]
        along = (rows.mT @ basis) * inner[..., None, :]
    return PrefixSpectrum(values, inner * query, count, along)


def _clean(values: Tensor, n: int, d: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues that exact arithmetic would have as 0 become 0: by rank, and by a relative cut-off."""
    k = values.shape[-1]
    count = torch.arange(n, dtype=values.dtype, device=values.device)[:, None]
    index = torch.arange(k, device=values.device)
    cut = torch.finfo(values.dtype).eps * count.clamp(min=d) * values[..., -1:]
    real = (index >= k - count) & (values > cut)  # ascending: a prefix of t pairs has rank t at most
    return torch.where(real, values, 0.0), count


def before(terms: Float[Tensor, "batch n *rest"]) -> Float[Tensor, "batch n *rest"]:
    """Row t: the sum of the first t terms (exclusive cumulative sum)."""
    sums = torch.zeros_like(terms)
    torch.cumsum(terms[:, :-1], dim=1, out=sums[:, 1:])
    return sums


def to_double(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Checked contexts in float64. Raises ValueError for wrong shapes or numbers that are not finite."""
    if x.dim() != 3:
        raise ValueError(f"x must be [batch, n, d], got {tuple(x.shape)}")
    if y.shape != x.shape[:2]:
        raise ValueError(f"y must be {tuple(x.shape[:2])} like the first two axes of x, got {tuple(y.shape)}")
    if x.shape[1] < 1 or x.shape[2] < 1:
        raise ValueError(f"a context needs at least one pair and one input dimension, got {tuple(x.shape)}")
    if x.device.type == "mps":  # no float64 there
        x, y = x.cpu(), y.cpu()
    x, y = x.double(), y.double()
    if not bool(torch.isfinite(x).all()) or not bool(torch.isfinite(y).all()):
        raise ValueError("x and y must be finite: NaN or infinity found")
    return x, y


class SpectralPredictor:
    """What all spectral filters share; a subclass is a frozen dataclass with `name` and `filter`."""

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        raise NotImplementedError

    def filter(self, values: Float[Tensor, "*rows k"], count: Float[Tensor, "*#rows 1"]) -> Tensor:
        """f(lambda): the factor that replaces 1 / lambda; `count` is how many pairs S was summed over."""
        raise NotImplementedError

    def unstable(self, values: Float[Tensor, "*rows k"], count: Float[Tensor, "*#rows 1"]) -> Tensor:
        """Of each spectrum: would further steps grow without bound on it?"""
        del count
        return torch.zeros(values.shape[:-1], dtype=torch.bool)

    def predict(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Entry t: the prediction for x[:, t] from the t pairs before it. Computed in float64.

        Warns (RuntimeWarning) where the iteration diverges on more than a few whole contexts. Raises
        ValueError for wrong shapes and for numbers that are not finite.
        """
        found = []
        for spectrum in prefix_spectra(x, y):
            self._warn(spectrum)
            found.append(_apply(self, spectrum))
        return torch.cat(found).to(x)

    __call__ = predict

    def coef(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n d"]:
        """Row t: the weights after the first t pairs; row 0 is 0."""
        found = []
        for spectrum in prefix_spectra(x, y, directions=True):
            self._warn(spectrum)
            assert spectrum.directions is not None
            f = self.filter(spectrum.values, spectrum.count)
            found.append((spectrum.directions @ f[..., None])[..., 0])
        return torch.cat(found).to(x)

    def weights(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch d"]:
        """The weights after all n pairs, from one decomposition per context."""
        given = x
        x, y = to_double(x, y)
        n = torch.tensor([[float(x.shape[1])]], dtype=x.dtype, device=x.device)
        left, root, right = torch.linalg.svd(x, full_matrices=False)
        values = root.square()
        cut = torch.finfo(x.dtype).eps * max(x.shape[1:]) * root[:, :1]
        values = torch.where(root > cut, values, 0.0)
        self._warn(PrefixSpectrum(values[:, None], values[:, None], n))
        inner = root * (left.mT @ y[..., None])[..., 0]
        found = (right.mT @ (self.filter(values, n) * inner)[..., None])[..., 0]
        return found.to(given)

    def risk(
        self,
        eigenvalues: Float[Tensor, "*rows k"],
        count: int | None = None,
        *,
        tau: float = 1.0,
        sigma: float = 0.0,
        second_moment: float = 1.0,
    ) -> Float[Tensor, "*rows"]:
        """Exact expected squared error E (w.x - w_hat.x)^2 over w ~ N(0, tau^2 I), the noise and a fresh x.

        `eigenvalues` are those of S of one context or of many; the fresh x has covariance second_moment * I:

            second_moment * sum_j [tau^2 (1 - lambda_j f_j)^2 + sigma^2 lambda_j f_j^2].

        `count` is the number of pairs behind S, needed by filters that average over them. The error against a
        noisy label is sigma^2 more; von Oswald et al. print half of it.
        """
        values = eigenvalues.double().clamp(min=0)
        n = torch.full((1,), float("nan") if count is None else float(count), dtype=values.dtype)
        f = self.filter(values, n.to(values.device))
        if bool(f.isnan().any()):
            raise ValueError(f"{self.name} divides by the number of pairs: give count=")
        bias = tau**2 * (1 - values * f).square()
        return second_moment * (bias + sigma**2 * values * f.square()).sum(-1)

    def _warn(self, spectrum: PrefixSpectrum) -> None:
        # The longest prefix decides: with an averaged loss any useful rate diverges on the first pairs. A
        # few contexts may: the best rate of a task is often too large for its rarest contexts.
        share = float(self.unstable(spectrum.values[:, -1], spectrum.count[-1]).double().mean())
        if share > 0.05:
            warnings.warn(
                f"{self.name} diverges on {share:.0%} of the contexts: its rate is too large for their "
                f"largest eigenvalue (up to {float(spectrum.values.max()):.3g})",
                RuntimeWarning,
                stacklevel=3,
            )

    def __str__(self) -> str:
        return self.name


class ContextSpectra:
    """The decompositions of one set of contexts, kept, for trying many settings one after the other."""

    def __init__(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> None:
        self.x, self.y = x, y
        self.parts = list(prefix_spectra(x, y))

    def predict(self, predictor: Predictor) -> Float[Tensor, "batch n"]:
        """Predictions as `predictor.predict(x, y)` gives them, in float64 and without its warning."""
        if not isinstance(predictor, SpectralPredictor):
            return predictor.predict(self.x, self.y).double()
        return torch.cat([_apply(predictor, part) for part in self.parts])


def sweep(
    predictors: Sequence[Predictor], x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]
) -> Float[Tensor, "predictors batch n"]:
    """Predictions of many algorithms on the same contexts; all spectral filters share one decomposition.

    Does not warn of divergence: a sweep over rates is meant to include rates that are too large.
    """
    found = torch.empty(len(predictors), *y.shape, dtype=x.dtype, device=x.device)
    filters = [(i, p) for i, p in enumerate(predictors) if isinstance(p, SpectralPredictor)]
    start = 0
    for part in prefix_spectra(x, y) if filters else ():
        end = start + len(part.values)
        for i, p in filters:
            found[i, start:end] = _apply(p, part)
        start = end
    for i, other in enumerate(predictors):
        if not isinstance(other, SpectralPredictor):
            found[i] = other.predict(x, y)
    return found


def _apply(predictor: SpectralPredictor, part: PrefixSpectrum) -> Tensor:
    return torch.linalg.vecdot(predictor.filter(part.values, part.count), part.products)


def geometric_complement(z: Tensor, steps: int | float) -> Tensor:
    """1 - (1 - z)^steps for a whole number of steps >= 0 and any z >= 0, without cancellation.

    Written through the square (1 - z)^2 = 1 - u, u = z (2 - z): its logarithm exists on both sides of z = 1.
    """
    half, odd = divmod(steps, 2)
    grown = half * torch.log1p(-(z * (2 - z)).clamp(max=1)) if half else torch.zeros_like(z)
    even = -torch.expm1(grown.clamp(max=LARGEST_EXPONENT))
    return z + (1 - z) * even if odd else even


def ratio_or(numerator: Tensor, values: Tensor, limit: Tensor | float) -> Tensor:
    """numerator / values where values > 0, its limit elsewhere."""
    positive = values > 0
    return torch.where(positive, numerator / torch.where(positive, values, 1.0), limit)
