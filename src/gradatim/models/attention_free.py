"""Attention-free in-context learners: retention, a diagonal state space, long convolutions.

RetNet (Sun et al. 2023, arXiv 2307.08621), DSS (Gupta et al. 2022, arXiv 2203.14343) and Hyena (Poli et al.
2023, arXiv 2302.10866), in the plain forms that Bhattamishra et al. 2023 (arXiv 2310.03016) compare with the
transformer. Each mixes positions inside the same block: h <- h + mixer(LN(h)); h <- h + MLP(LN(h)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradatim.models.decoder import MLP
from gradatim.models.in_context import InContextConfig, InContextModel, xavier


class InContextRetNet(InContextModel):
    """`n_layer` blocks of retention with `n_head` heads; no positions; matrices start from Xavier."""

    def make_backbone(self, config: InContextConfig) -> nn.Module:
        """Blocks of `Retention`."""
        blocks = MixerStack(lambda: Retention(config.n_embd, config.n_head), config.n_embd, config.n_layer)
        xavier(blocks)
        return blocks


class InContextDSS(InContextModel):
    """`n_layer` blocks of a diagonal state space with `state_size` states per channel; no positions."""

    def make_backbone(self, config: InContextConfig) -> nn.Module:
        """Blocks of `DiagonalStateSpace`."""
        return MixerStack(
            lambda: DiagonalStateSpace(config.n_embd, config.state_size), config.n_embd, config.n_layer
        )


class InContextHyena(InContextModel):
    """`n_layer` blocks of the Hyena operator of order `order`, filters by networks `filter_size` wide."""

    def make_backbone(self, config: InContextConfig) -> nn.Module:
        """Blocks of `HyenaOperator`."""
        return MixerStack(
            lambda: HyenaOperator(config.n_embd, config.order, config.filter_size, 2 * config.n_positions),
            config.n_embd,
            config.n_layer,
        )


class MixerStack(nn.Module):
    """L blocks around a mixer of positions, and a final norm."""

    def __init__(self, make_mixer: Callable[[], nn.Module], width: int, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MixerBlock(make_mixer(), width) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Any = partial(checkpoint, use_reentrant=False)

    def forward(
        self, h: Tensor, *, read: slice | None = None, output_hidden_states: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """[batch, time, H] -> [batch, read, H], and the states of all layers where asked for."""
        states = [h]
        for block in self.blocks:
            again = self.gradient_checkpointing and self.training
            h = self._gradient_checkpointing_func(block, h) if again else block(h)
            states.append(h)
        if read is not None:
            states = [state[:, read] for state in states]
        states[-1] = self.final_norm(states[-1])
        return states[-1], tuple(states) if output_hidden_states else None


class MixerBlock(nn.Module):
    """h <- h + mixer(LN(h)); h <- h + MLP(LN(h))."""

    def __init__(self, mixer: nn.Module, width: int) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = nn.LayerNorm(width), mixer
        self.mlp_norm, self.mlp = nn.LayerNorm(width), MLP(width, 4 * width)

    def forward(self, h: Tensor) -> Tensor:
        """[batch, time, H] -> [batch, time, H]."""
        h = h + self.mixer(self.mixer_norm(h))
        return h + self.mlp(self.mlp_norm(h))


class Retention(nn.Module):
    """out( silu(x W_g) * (Q K^T o D) V ), D_ts = gamma^(t-s) for s <= t, gamma = 1 - 2^(-5-m) in head m.

    No softmax, scale, rotation or group norm: scores grow with the context, so use float32 or bfloat16.

    Raises ValueError where heads do not divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be divided among {heads} heads")
        self.heads = heads
        self.qkvg = nn.Linear(width, 4 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, H] -> [batch, time, H]."""
        q, k, v, gate = self.qkvg(x).chunk(4, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        age = torch.arange(x.shape[1], device=x.device)
        age = age[:, None] - age  # t - s, [time, time]
        gamma = 1 - 2.0 ** (-5 - torch.arange(self.heads, device=x.device, dtype=torch.float32))
        decay = torch.where(age >= 0, gamma[:, None, None] ** age.clamp(min=0), 0.0).to(x.dtype)
        mixed = (q @ k.transpose(-2, -1) * decay) @ v  # [batch, heads, time, size]
        return self.out(F.silu(gate) * mixed.transpose(1, 2).flatten(2))


class DiagonalStateSpace(nn.Module):
    """out( gelu( K * u + D u ) ), where K is the impulse response of N diagonal states per channel.

        s_t = e^(lambda dt) s_(t-1) + (e^(lambda dt) - 1) / lambda u_t,      y_t = Re sum_n w_n s_(t,n)
        K_l = Re sum_n w_n (e^(lambda_n dt) - 1) / lambda_n e^(lambda_n dt l)

    with lambda_n = -exp(a_n) + i b_n, shared by the channels and started at -1/2 + i pi n; dt of each channel
    starts log-uniform in [1e-3, 1e-1] (the form called DSS-exp).
    """

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.log_decay = nn.Parameter(torch.full((states,), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(states, dtype=torch.float32))
        low, high = math.log(1e-3), math.log(1e-1)
        self.log_step = nn.Parameter(low + (high - low) * torch.rand(width))
        self.weight_real = nn.Parameter(torch.randn(width, states))
        self.weight_imaginary = nn.Parameter(torch.randn(width, states))
        self.skip = nn.Parameter(torch.randn(width))
        self.out = nn.Linear(width, width)

    def kernel(self, time: int) -> Tensor:
        """[H, time]: K."""
        rate = torch.complex(-self.log_decay.exp(), self.frequency)  # lambda, [N]
        step = self.log_step.exp()[:, None] * rate  # lambda dt, [H, N]
        weight = torch.complex(self.weight_real, self.weight_imaginary) * torch.expm1(step) / rate
        lags = torch.arange(time, device=step.device)
        return (weight.unsqueeze(-1) * (step.unsqueeze(-1) * lags).exp()).sum(1).real

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, H] -> [batch, time, H]."""
        mixed = causal_convolution(x, self.kernel(x.shape[1])) + self.skip * x
        return self.out(F.gelu(mixed))


class HyenaOperator(nn.Module):
    """N gates and N - 1 long convolutions: v <- x_i * v, v <- h_i * v (convolved), ..., out(x_0 * v).

    The N + 1 projections of the input pass a short causal filter of three taps. The long filters come from a
    network of sines on 9 features of the position (t and four waves), times an exponential window that decays
    to 1% over 0.3 (fastest channel) to 1.5 (slowest) of `max_positions`.

    Raises ValueError for an order below 2.
    """

    BANDS = 4

    def __init__(self, width: int, order: int, filter_size: int, max_positions: int) -> None:
        super().__init__()
        if order < 2:
            raise ValueError(f"order must be at least 2, got {order}")
        self.order, self.max_positions = order, max_positions
        self.project = nn.Linear(width, (order + 1) * width)
        self.short = nn.Parameter(torch.empty((order + 1) * width, 3).uniform_(-(3**-0.5), 3**-0.5))
        self.filter = nn.ModuleList(
            [
                nn.Linear(1 + 2 * self.BANDS, filter_size),
                nn.Linear(filter_size, filter_size),
                nn.Linear(filter_size, filter_size),
                nn.Linear(filter_size, (order - 1) * width, bias=False),
            ]
        )
        self.filter_bias = nn.Parameter(torch.randn(order - 1, width))
        self.out = nn.Linear(width, width)

    def filters(self, time: int) -> Tensor:
        """[N - 1, H, time]: the long filters."""
        weight = self.filter[0].weight
        t = torch.arange(time, device=weight.device, dtype=weight.dtype)  # type: ignore[arg-type, call-overload]
        share = t / max(1, self.max_positions - 1)
        bands = torch.linspace(1e-4, self.BANDS - 1, self.BANDS, device=t.device, dtype=t.dtype)
        waves = 2 * math.pi * t[:, None] / self.max_positions * bands
        z = torch.cat([share[:, None], waves.cos(), -waves.sin()], dim=-1)
        for layer in self.filter[:-1]:
            z = layer(z).sin()
        width = self.filter_bias.shape[1]
        decay = torch.linspace(
            math.log(100) / 1.5, math.log(100) / 0.3, width, device=t.device, dtype=t.dtype
        )
        window = torch.exp(-share[:, None] * decay)  # [time, H]
        return (self.filter[-1](z).unflatten(-1, (self.order - 1, width)) * window[:, None]).permute(1, 2, 0)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, H] -> [batch, time, H]."""
        projected = self.project(x)
        padded = F.pad(projected, (0, 0, 2, 0))
        time = x.shape[1]
        taps_seen = [padded[:, k : k + time] * self.short[:, k] for k in range(3)]
        projected = taps_seen[0] + taps_seen[1] + taps_seen[2]
        *gates, v = projected.chunk(self.order + 1, dim=-1)
        for gate, taps, bias in zip(reversed(gates[1:]), self.filters(time), self.filter_bias, strict=True):
            v = v * gate
            v = causal_convolution(v, taps) + bias * v
        return self.out(v * gates[0])


def causal_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """y_t = sum_(s <= t) kernel_(t-s) x_s per channel: x [batch, time, H], kernel [H, time]; by FFT.

    Half precision is computed in float32: there is no transform of fewer bits.
    """
    time = x.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    spectrum = torch.fft.rfft(x.to(wide), n=2 * time, dim=1)
    response = torch.fft.rfft(kernel.to(wide), n=2 * time, dim=-1)
    return torch.fft.irfft(spectrum * response.transpose(-2, -1), n=2 * time, dim=1)[:, :time].to(x.dtype)
