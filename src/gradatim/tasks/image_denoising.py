"""Denoising: a clean array, the noise of a diffusion schedule at time t, and the PSNR of what is recovered.

    x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps,   eps ~ N(0, I),   abar_t = prod_{s <= t} (1 - beta_s)

("Denoising Diffusion Probabilistic Models", Ho et al. 2020, arXiv 2006.11239). The images that ship with
scikit-learn need no download.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """Linear betas from `beta_start` to `beta_end` over `num_steps` times, t = 0 .. num_steps - 1.

    Raises ValueError for num_steps < 1 or betas that do not lie in 0 < beta_start <= beta_end < 1.
    """

    num_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise ValueError(
                f"betas must lie in 0 < beta_start <= beta_end < 1, got {self.beta_start}, {self.beta_end}"
            )

    @property
    def alphas_cumprod(self) -> Float[Tensor, " times"]:
        """abar_t for every t, in float64."""
        betas = torch.linspace(self.beta_start, self.beta_end, self.num_steps, dtype=torch.float64)
        return (1.0 - betas).cumprod(0)

    def signal_and_noise(self, t: int | Int[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), float64, of the shape of `t`. ValueError for t out of range."""
        times = torch.as_tensor(t, dtype=torch.int64, device="cpu")
        if times.numel() and not 0 <= int(times.min()) <= int(times.max()) < self.num_steps:
            raise ValueError(f"t must lie in 0 .. {self.num_steps - 1}, got {t}")
        kept = self.alphas_cumprod[times]
        return kept.sqrt(), (1.0 - kept).sqrt()

    def add_noise(
        self,
        x: Float[Tensor, "batch first *rest"],
        noise: Float[Tensor, "batch first *rest"],
        t: int | Tensor,
    ) -> Float[Tensor, "batch first *rest"]:
        """x_t; `t` is one time for all or one per item."""
        signal, deviation = (
            part.to(x).reshape(-1, *(1,) * (x.ndim - 1)) for part in self.signal_and_noise(t)
        )
        return signal * x + deviation * noise


def psnr(
    recovered: Tensor,
    clean: Tensor,
    low: float = -1.0,
    high: float = 1.0,
) -> float:
    """10 log10((high - low)^2 / MSE) in dB, the MSE over all items, `recovered` clipped to [low, high].

    One MSE for the whole set, as published figures have it; the mean of the images' own PSNRs is larger.
    Exact recovery is infinite.
    """
    if recovered.shape != clean.shape:
        raise ValueError(
            f"recovered and clean differ in shape: {tuple(recovered.shape)}, {tuple(clean.shape)}"
        )
    error = float((recovered.double().clamp(low, high) - clean.double()).square().mean())
    return math.inf if error == 0.0 else 10.0 * math.log10((high - low) ** 2 / error)


@dataclass(frozen=True)
class DigitImages:
    """scikit-learn's 1,797 digits as [n, 1, 8, 8] in [-1, 1], in three parts that share no image."""

    train: Float[Tensor, "n_train 1 8 8"]
    valid: Float[Tensor, "n_valid 1 8 8"]
    test: Float[Tensor, "n_test 1 8 8"]


def digit_images(seed: int, *, valid: int = 150, test: int = 297) -> DigitImages:
    """A random division of the digits; what is neither `valid` nor `test` is for training.

    Raises ValueError where nothing is left to train on.
    """
    images = _digits()
    if valid < 0 or test < 0 or valid + test >= len(images):
        raise ValueError(f"valid={valid} and test={test} images leave none of {len(images)} to train on")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    return DigitImages(
        train=images[order[valid + test :]], valid=images[order[:valid]], test=images[order[valid:][:test]]
    )


@lru_cache(maxsize=1)
def _digits() -> Tensor:
    from sklearn.datasets import load_digits

    pixels = np.asarray(load_digits().images, dtype=np.float32)
    return torch.from_numpy(pixels / 8.0 - 1.0).unsqueeze(1)
