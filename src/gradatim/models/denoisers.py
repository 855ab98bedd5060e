"""Denoisers that spend their compute otherwise than by descending an energy: the controls of equal size.

`DiffusionDenoiser` predicts the noise and walks back along a diffusion schedule; `FeedForwardDenoiser` adds a
correction, once or several times. Both share `DiffusionTransformer` with `EnergyDenoiser`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.models.diffusion_transformer import DiffusionTransformer, TimeEmbedding
from gradatim.tasks.image_denoising import NoiseSchedule


@dataclass(frozen=True)
class DenoiserOutput:
    """What a control gives: the recovered array, and the loss where a target was given."""

    prediction: Tensor | None
    loss: Tensor | None = None


class DiffusionDenoiser(nn.Module):
    """eps-prediction: || eps(x_t, t) - eps ||^2, t uniform on 0 .. max_time; deterministic DDIM backwards.

        x0 = (x_t - sqrt(1 - abar_t) eps(x_t, t)) / sqrt(abar_t)
        x_{t-1} = sqrt(abar_{t-1}) x0 + sqrt(1 - abar_{t-1}) eps(x_t, t)             (abar_{-1} = 1)

    ("Denoising Diffusion Implicit Models", Song et al. 2020, arXiv 2010.02502, eta = 0; the schedule and the
    network are DDPM's and DiT's.) What has more noise than `max_time` is walked through again and again.

    Args:
        shape: of one item, (C, H, W) or (L, D).
        max_time: the largest time trained; the schedule is linear over `schedule.num_steps`.
        schedule: the noise. settings: of `DiffusionTransformer`.

    Raises ValueError for a max_time outside the schedule.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        max_time: int = 99,
        schedule: NoiseSchedule | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.schedule = schedule or NoiseSchedule()
        if not 0 <= max_time < self.schedule.num_steps:
            raise ValueError(f"max_time must lie in 0 .. {self.schedule.num_steps - 1}, got {max_time}")
        self.max_time = max_time
        self.body = DiffusionTransformer(shape, seed=seed, **settings)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed + 1)
            self.time = TimeEmbedding(self.body.hidden_size)

    def noise(self, x: Tensor, t: Float[Tensor, " batch"]) -> Tensor:
        """eps(x_t, t), of the shape of `x`; one time for all or one per item."""
        out: Tensor = self.body(x, condition=self.time(t))
        return out

    def forward(
        self,
        x: Float[Tensor, "batch first *rest"],
        target: Float[Tensor, "batch first *rest"] | None = None,
        *,
        rounds: int = 1,
        generator: torch.Generator | None = None,
    ) -> DenoiserOutput:
        """Without a target, `x` denoised from `max_time` down, `rounds` times over.

        With one, the training loss of the clean `target`; `x` is then not looked at, since noise of all times
        is drawn from `generator`.
        """
        if target is None:
            return DenoiserOutput(self.denoise(x, rounds))
        device = target.device if generator is None else generator.device
        t = torch.randint(self.max_time + 1, (len(target),), generator=generator, device=device)
        eps = torch.randn(target.shape, generator=generator, device=device, dtype=target.dtype)
        eps, t = eps.to(target.device), t.to(target.device)
        noisy = self.schedule.add_noise(target, eps, t)
        return DenoiserOutput(None, F.mse_loss(self.noise(noisy, t.to(target.dtype)), eps))

    @torch.no_grad()
    def denoise(
        self, x: Float[Tensor, "batch first *rest"], rounds: int = 1
    ) -> Float[Tensor, "batch first *rest"]:
        """`rounds` walks of max_time + 1 passes each. Raises ValueError for rounds < 1."""
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}")
        kept = [*self.schedule.alphas_cumprod.tolist()[: self.max_time + 1]]
        for _ in range(rounds):
            for t in range(self.max_time, -1, -1):
                before = kept[t - 1] if t else 1.0
                eps = self.noise(x, torch.full((1,), float(t), dtype=x.dtype, device=x.device))
                clean = (x - (1.0 - kept[t]) ** 0.5 * eps) / kept[t] ** 0.5
                x = before**0.5 * clean + (1.0 - before) ** 0.5 * eps
        return x


class FeedForwardDenoiser(nn.Module):
    """y <- y + f(y), from the noisy array; one pass, or the same network again.

    The control of an energy model at equal parameters: body and condition (one learned vector) are the same,
    the read-out gives a correction instead of an energy, and no gradient is needed to answer.

    Args:
        shape: of one item, (C, H, W) or (L, D).
        num_steps_range: how many passes training takes, drawn uniformly for each batch, both ends included;
            the loss is on the last. (1, 1) is a plain network.
        beta: of the Smooth-L1 loss. settings: of `DiffusionTransformer`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        num_steps_range: tuple[int, int] = (1, 1),
        beta: float = 1.0,
        seed: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        low, high = num_steps_range
        if not 1 <= low <= high:
            raise ValueError(f"num_steps_range must hold 1 <= low <= high, got {num_steps_range}")
        self.num_steps_range, self.beta = (low, high), beta
        self.body = DiffusionTransformer(shape, seed=seed, **settings)
        self.condition = learned_vector(self.body.hidden_size, seed)

    def forward(
        self,
        x: Float[Tensor, "batch first *rest"],
        target: Float[Tensor, "batch first *rest"] | None = None,
        *,
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> DenoiserOutput:
        """`num_steps` passes; by default as many as training takes at least, or in training as it draws."""
        low, high = self.num_steps_range
        if num_steps is None:
            num_steps = low
            if target is not None:
                num_steps = int(
                    torch.randint(low, high + 1, (), generator=generator, device=_device(generator))
                )
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        y = x
        for _ in range(num_steps):
            y = y + self.body(y, condition=self.condition)
        loss = None if target is None else F.smooth_l1_loss(y, target, beta=self.beta)
        return DenoiserOutput(y, loss)


def learned_vector(width: int, seed: int | None) -> nn.Parameter:
    """The condition [1, width] where nothing conditions: N(0, 1) at the start."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed + 1)
        return nn.Parameter(torch.randn(1, width))


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
