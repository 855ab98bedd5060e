"""Linear regression contexts: y = w.x + noise, with every sampler that the in-context papers use."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.tasks.contexts import ICLBatch
from gradatim.tasks.input_distributions import draw, draw_mixture, moments, parse

Spectrum = Literal["ill", "skewed", "half"]
Query = Literal["free", "orthogonal", "overlapping", "quadrant"]


@dataclass(frozen=True)
class LinearRegressionTask:
    """Contexts of n pairs with their own weights: x ~ D_x, w ~ N(w_mean, tau^2 I), y = w.x + sigma eps.

    The input distribution:

    - `x`: the law of one entry: "normal" N(0, 1), "uniform" U(-1/2, 1/2), "exponential" (rate 1), "laplace"
      (scale 1); a string such as "normal*2.5+1" scales and shifts, and commas mix laws entry by entry
      ("normal*2.5,normal+2.5"). "mixture" gives every context one of exponential, normal and Laplace.
    - `x_scale`, `x_mean`: entries are multiplied and shifted, after everything below except the query.
    - `normalize`: inputs are divided by the Frobenius norm of the first n - 1 inputs of their context.
    - `cov`: None for independent entries; a (d, d) matrix; or a spectrum in a random basis of every context's
      own, scaled to mean 1: "ill" (half the eigenvalues `kappa` times the others), "skewed" (1 / i^2),
      "half" (half of them zero).
    - `query`: how the last input relates to those before it. "free"; "orthogonal" to all of them (n <= d);
      "overlapping", equal to one of them; "quadrant", the others lie in one orthant of the context's own.

    The labels:

    - `w`: law of one entry of w before `tau` and `w_mean`; the same strings as `x`.
    - `w_pool`: only this many different weight vectors exist, drawn once from `w_pool_seed`.
    - `distractors`: that many of the first n - 1 labels are replaced with N(0, 1).

    Everything is drawn per context. Source: Garg et al., "What can transformers learn in-context?" (2022,
    arXiv 2208.01066); Akyurek et al. (2022, arXiv 2211.15661); von Oswald et al. (2022, arXiv 2212.07677),
    whose text says U(-1, 1) where its code and its figures have U(-1/2, 1/2); Fu et al. (2023, arXiv
    2310.17086), whose code shares one basis over a batch where its text has one per sequence, as here.

    Raises ValueError for anything outside these ranges.
    """

    d: int
    n: int
    x: str = "normal"
    x_scale: float = 1.0
    x_mean: float = 0.0
    normalize: bool = False
    cov: str | Sequence[Sequence[float]] | Tensor | None = None
    kappa: float = 100.0
    query: str = "free"
    w: str = "normal"
    tau: float = 1.0
    w_mean: float = 0.0
    w_pool: int | None = None
    w_pool_seed: int = 0
    sigma: float = 0.0
    distractors: int = 0

    def __post_init__(self) -> None:
        if self.d < 1 or self.n < 1:
            raise ValueError(f"d and n must be at least 1, got d={self.d} and n={self.n}")
        if self.sigma < 0 or self.tau < 0:
            raise ValueError(f"sigma and tau must not be negative, got {self.sigma} and {self.tau}")
        for name in ("x_scale", "x_mean", "tau", "w_mean", "sigma", "kappa"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)}")
        if self.kappa < 1:
            raise ValueError(f"kappa is a ratio of eigenvalues, at least 1, got {self.kappa}")
        if self.query not in get_args(Query):
            raise ValueError(f"query must be one of {', '.join(get_args(Query))}, got {self.query!r}")
        if self.query == "orthogonal" and self.n > self.d:
            raise ValueError(f"a query orthogonal to {self.n - 1} inputs needs d >= n, got d={self.d}")
        if self.query == "overlapping" and self.n < 2:
            raise ValueError("an overlapping query needs an input before it: n must be at least 2")
        if not 0 <= self.distractors < self.n:
            raise ValueError(
                f"distractors must be between 0 and n - 1 = {self.n - 1}, got {self.distractors}"
            )
        if self.w_pool is not None and self.w_pool < 1:
            raise ValueError(f"w_pool must be at least 1, got {self.w_pool}")
        if self.x != "mixture":
            parse(self.x)
        parse(self.w)
        self._check_cov()

    def _check_cov(self) -> None:
        if self.cov is None:
            return
        if isinstance(self.cov, str):
            if self.cov not in get_args(Spectrum):
                raise ValueError(f"cov must be one of {', '.join(get_args(Spectrum))}, got {self.cov!r}")
            if self.cov in ("ill", "half") and self.d < 2:
                raise ValueError(f"cov={self.cov!r} splits the spectrum in halves and needs d >= 2")
            return
        matrix = torch.as_tensor(self.cov, dtype=torch.float64)
        if matrix.shape != (self.d, self.d):
            raise ValueError(f"cov must be ({self.d}, {self.d}), got {tuple(matrix.shape)}")
        # Nested tuples keep the task comparable, hashable and quick to send to another process.
        rows = tuple(tuple(row) for row in matrix.tolist())
        _root(rows)
        object.__setattr__(self, "cov", rows)

    # -- what is known about the task ------------------------------------------------------------------

    @property
    def bayes_alpha(self) -> float:
        """The ridge penalty of the posterior mean, sigma^2 / tau^2 (0 where there is no noise).

        It is the Bayes predictor for w ~ N(0, tau^2 I) and Gaussian noise. Raises ValueError for tau = 0.
        """
        if self.sigma == 0:
            return 0.0
        if self.tau == 0:
            raise ValueError("with tau = 0 the weights are known and no ridge penalty describes that")
        return self.sigma**2 / self.tau**2

    @property
    def spectrum(self) -> Float[Tensor, " d"]:
        """Eigenvalues of the covariance E (x - E x)(x - E x)^T of one input, ascending, float64.

        Raises ValueError for normalised inputs and "mixture", where it depends on n or on the context.
        """
        second, _ = self.entry_moments
        if isinstance(self.cov, str):
            shape = _eigenvalues(self.cov, self.d, self.kappa)
        elif self.cov is None:
            shape = torch.ones(self.d, dtype=torch.float64)
        else:
            shape = torch.linalg.eigvalsh(torch.tensor(self.cov, dtype=torch.float64))
        return shape.clamp(min=0).sort().values * second * self.x_scale**2

    @property
    def entry_moments(self) -> tuple[float, float]:
        """Central second and fourth moment of one entry drawn from `x`, before scale and covariance."""
        if self.normalize or self.x == "mixture":
            raise ValueError("normalised or mixed inputs have no moments in closed form: estimate them")
        return moments(parse(self.x))

    # -- drawing ---------------------------------------------------------------------------------------

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ICLBatch:
        """`batch` fresh contexts: x [batch, n, d], y [batch, n], w [batch, d].

        They are drawn where the generator lives and then moved, so a CPU generator gives the same contexts
        on every device.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        home = torch.device(device or "cpu") if generator is None else generator.device
        law = Law(generator, home, dtype)
        x = self._inputs(batch, law)
        w = self._weights(batch, law)
        y = torch.einsum("bnd,bd->bn", x, w)
        if self.sigma > 0:
            y = y + self.sigma * law.normal(batch, self.n)
        if self.distractors:
            y = self._distract(y, law)
        drawn = ICLBatch(x, y, w)
        return drawn if device is None else drawn.to(device)

    def _inputs(self, batch: int, law: Law) -> Float[Tensor, "batch n d"]:
        shape = (batch, self.n, self.d)
        if self.x == "mixture":
            x = draw_mixture(shape, law.generator, law.device, law.dtype)
        else:
            x = draw(parse(self.x), shape, law.generator, law.device, law.dtype)
        if isinstance(self.cov, str):
            x = _rotate(x, self.cov, self.kappa, law)
        elif self.cov is not None:
            x = x @ _root(self.cov).to(x)
        if self.normalize:
            context = x[:, : self.n - 1] if self.n > 1 else x
            x = x / context.flatten(1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)[:, None, None]
        if self.query == "quadrant":
            signs = law.normal(batch, 1, self.d).sign()
            x = torch.cat([x[:, :-1].abs() * signs, x[:, -1:]], dim=1)
        if self.x_scale != 1.0 or self.x_mean != 0.0:
            x = x * self.x_scale + self.x_mean
        if self.query == "overlapping":
            which = torch.randint(self.n - 1, (batch,), generator=law.generator, device=law.device)
            rows = torch.arange(batch, device=law.device)
            x = torch.cat([x[:, :-1], x[rows, which][:, None]], dim=1)
        elif self.query == "orthogonal" and self.n > 1:
            basis = _orthonormal(x[:, :-1].mT)
            last = x[:, -1, :, None]
            x = torch.cat([x[:, :-1], (last - basis @ (basis.mT @ last)).mT], dim=1)
        return x

    def _weights(self, batch: int, law: Law) -> Float[Tensor, "batch d"]:
        if self.w_pool is None:
            return self._entries(batch, law)
        pool = self._entries(
            self.w_pool, Law(torch.Generator().manual_seed(self.w_pool_seed), torch.device("cpu"), law.dtype)
        )
        which = torch.randint(self.w_pool, (batch,), generator=law.generator, device=law.device)
        return pool.to(law.device)[which]

    def _entries(self, count: int, law: Law) -> Float[Tensor, "count d"]:
        return (
            draw(parse(self.w), (count, self.d), law.generator, law.device, law.dtype) * self.tau
            + self.w_mean
        )

    def _distract(self, y: Float[Tensor, "batch n"], law: Law) -> Float[Tensor, "batch n"]:
        order = torch.rand(len(y), self.n - 1, generator=law.generator, device=law.device).argsort(dim=1)
        chosen = order < self.distractors  # a random subset of exactly that size per row
        noise = law.normal(len(y), self.n - 1)
        return torch.cat([torch.where(chosen, noise, y[:, :-1]), y[:, -1:]], dim=1)


@dataclass(frozen=True)
class Law:
    """Where randomness comes from, where it lands and in which precision."""

    generator: torch.Generator | None
    device: torch.device
    dtype: torch.dtype

    def normal(self, *shape: int) -> Tensor:
        """Standard normals."""
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)


def _eigenvalues(spectrum: str, d: int, kappa: float) -> Float[Tensor, " d"]:
    """The named spectrum, largest first, with mean 1 so that E |x|^2 = d."""
    index = torch.arange(1, d + 1, dtype=torch.float64)
    upper = index <= d // 2
    if spectrum == "ill":
        values = torch.where(upper, kappa, 1.0).double()
    elif spectrum == "half":
        values = upper.double()
    else:
        values = index**-2
    return values * (d / values.sum())


def _rotate(x: Float[Tensor, "batch n d"], spectrum: str, kappa: float, law: Law) -> Tensor:
    """x U diag(sqrt(eigenvalues)) U^T with a Haar-random U per context."""
    d = x.shape[-1]
    root = _eigenvalues(spectrum, d, kappa).sqrt().to(law.device)
    wide = torch.promote_types(x.dtype, torch.float32)  # no QR in half precision
    if spectrum == "skewed":
        basis = _orthonormal(law.normal(len(x), d, d).to(wide))
        return ((x.to(wide) @ basis) * root.to(wide) @ basis.mT).to(x.dtype)
    # Two different eigenvalues: a random subspace says it all, and half the columns are half the work.
    basis = _orthonormal(law.normal(len(x), d, d // 2).to(wide))
    large, small = float(root[0]), float(root[-1])
    inside = (x.to(wide) @ basis) @ basis.mT
    return (small * x + (large - small) * inside).to(x.dtype)


def _orthonormal(columns: Float[Tensor, "batch d k"]) -> Float[Tensor, "batch d k"]:
    """An orthonormal basis of the span of the columns."""
    wide = torch.promote_types(columns.dtype, torch.float32)
    basis: Tensor = torch.linalg.qr(columns.to(wide)).Q
    return basis.to(columns.dtype)


@functools.lru_cache(maxsize=32)
def _root(rows: tuple[tuple[float, ...], ...]) -> Float[Tensor, "d d"]:
    """The symmetric square root of a covariance matrix. Raises ValueError unless it is one."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    if not bool(torch.isfinite(matrix).all()) or not torch.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-12):
        raise ValueError("cov must be a symmetric matrix of finite numbers")
    values, basis = torch.linalg.eigh(matrix)
    if float(values.min()) < -1e-9 * float(values.abs().max()):
        raise ValueError(f"cov must be positive semi-definite, its smallest eigenvalue is {values.min():.3g}")
    return (basis * values.clamp(min=0).sqrt()) @ basis.T
