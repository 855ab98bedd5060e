"""Contexts whose labels are not linear in x: sine waves and two-layer networks; and a fixed pool."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gradatim.tasks.contexts import ContextTask, ICLBatch


@dataclass(frozen=True)
class SineTask:
    """Sine waves: y = a sin(x + phase) with x ~ U(-5, 5), a ~ U(0.1, 0.5), phase ~ U(0, pi) per context.

    One input wide. The ranges are those of the code of von Oswald et al. (2022, arXiv 2212.07677), whose text
    prints amplitudes up to 5. Raises ValueError for a range that does not increase.
    """

    n: int
    amplitude: tuple[float, float] = (0.1, 0.5)
    phase: tuple[float, float] = (0.0, math.pi)
    span: tuple[float, float] = (-5.0, 5.0)
    sigma: float = 0.0
    d: int = 1

    def __post_init__(self) -> None:
        if self.n < 1 or self.d != 1:
            raise ValueError(f"a sine context has n >= 1 pairs and d = 1, got n={self.n} and d={self.d}")
        if self.sigma < 0:
            raise ValueError(f"sigma must not be negative, got {self.sigma}")
        for name in ("amplitude", "phase", "span"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name} must be a range (low, high), got {(low, high)}")

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ICLBatch:
        """`batch` fresh contexts: x [batch, n, 1], y [batch, n]."""
        home = _home(batch, generator, device)

        def uniform(bounds: tuple[float, float], *shape: int) -> torch.Tensor:
            low, high = bounds
            return low + (high - low) * torch.rand(shape, generator=generator, device=home, dtype=dtype)

        x = uniform(self.span, batch, self.n, 1)
        y = uniform(self.amplitude, batch, 1) * torch.sin(x[..., 0] + uniform(self.phase, batch, 1))
        if self.sigma > 0:
            y = y + self.sigma * torch.randn(y.shape, generator=generator, device=home, dtype=dtype)
        return ICLBatch(x, y).to(device)


@dataclass(frozen=True)
class NetworkTask:
    """Two-layer networks: y = scale * sum_i a_i act(w_i . x) + sigma eps, with a, w and x standard normal.

    `hidden` units with "relu" or "tanh"; a new network for every context. `scale` defaults to
    sqrt(2 / hidden), which makes E y^2 = d for ReLU, as it is for linear regression. Source: Garg et al.
    (2022, arXiv 2208.01066). Raises ValueError for sizes below 1 or an unknown activation.
    """

    d: int
    n: int
    hidden: int = 100
    activation: str = "relu"
    scale: float | None = None
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if min(self.d, self.n, self.hidden) < 1:
            raise ValueError(f"d, n and hidden must be at least 1, got {self.d}, {self.n}, {self.hidden}")
        if self.activation not in ("relu", "tanh"):
            raise ValueError(f"activation must be 'relu' or 'tanh', got {self.activation!r}")
        if self.sigma < 0:
            raise ValueError(f"sigma must not be negative, got {self.sigma}")

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ICLBatch:
        """`batch` fresh contexts: x [batch, n, d], y [batch, n]."""
        home = _home(batch, generator, device)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=home, dtype=dtype)

        x = normal(batch, self.n, self.d)
        inner = x @ normal(batch, self.d, self.hidden)
        units = inner.relu() if self.activation == "relu" else inner.tanh()
        scale = math.sqrt(2 / self.hidden) if self.scale is None else self.scale
        y = scale * (units @ normal(batch, self.hidden, 1))[..., 0]
        if self.sigma > 0:
            y = y + self.sigma * normal(batch, self.n)
        return ICLBatch(x, y).to(device)


@dataclass(frozen=True)
class ContextPool:
    """Only `size` contexts of `task` exist, drawn once from `seed`; a batch draws among them.

    For asking how many different tasks a learner must see. (LinearRegressionTask's `w_pool` fixes the weights
    alone and keeps the inputs fresh.) Raises ValueError for an empty pool.
    """

    task: ContextTask
    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a pool needs at least 1 context, got {self.size}")

    @property
    def d(self) -> int:
        """Width of an input."""
        return self.task.d

    @property
    def n(self) -> int:
        """Pairs per context."""
        return self.task.n

    def sample(
        self,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ICLBatch:
        """`batch` contexts of the pool."""
        home = _home(batch, generator, device)
        which = torch.randint(self.size, (batch,), generator=generator, device=home)
        # Drawn anew rather than kept: a frozen task stays small to send, and its contexts cost microseconds.
        pool = self.task.sample(self.size, generator=torch.Generator().manual_seed(self.seed), dtype=dtype)
        pool = pool.to(home)
        chosen = ICLBatch(pool.x[which], pool.y[which], None if pool.w is None else pool.w[which])
        return chosen.to(device)


def _home(batch: int, generator: torch.Generator | None, device: torch.device | str | None) -> torch.device:
    """Contexts are drawn where the generator lives, so that it decides them whatever the device."""
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    return torch.device(device or "cpu") if generator is None else generator.device
