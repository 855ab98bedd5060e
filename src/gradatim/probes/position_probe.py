"""What a layer holds about a whole context, and at which positions: probes that learn where to look.

"What learning algorithm is in-context learning?" (Akyürek et al. 2022, arXiv 2211.15661, appendix E).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PositionAttentionProbe(nn.Module):
    """v = FF( sum_t alpha_t W h_t ), alpha = softmax(s): scores s of positions do not depend on the input.

    W projects to `hidden` dimensions; FF is linear, or with `mlp=True` a network with one GELU layer of the
    same width. `attention` [time] says where the probe looks.

    Args:
        n_positions: tokens in a sequence. n_embd: width of the states. out_dim: length of v.
        hidden: width of the projection; None leaves it out (a linear probe of the weighted mean).

    Raises ValueError for sizes below 1.
    """

    def __init__(
        self, n_positions: int, n_embd: int, out_dim: int, hidden: int | None = 512, *, mlp: bool = True
    ) -> None:
        super().__init__()
        sizes = {"n_positions": n_positions, "n_embd": n_embd, "out_dim": out_dim, "hidden": hidden or 1}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.scores = nn.Parameter(torch.zeros(n_positions))
        self.project = nn.Linear(n_embd, hidden, bias=False) if hidden else nn.Identity()
        inner = hidden or n_embd
        self.read = (
            nn.Sequential(nn.Linear(inner, inner), nn.GELU(), nn.Linear(inner, out_dim))
            if mlp
            else nn.Linear(inner, out_dim)
        )

    def forward(self, h: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch out"]:
        """Hidden states of one layer to the probed vector."""
        return self.read(self.project(torch.einsum("t,bth->bh", self.scores.softmax(0), h)))

    @property
    def attention(self) -> Float[Tensor, " time"]:
        """alpha: how much each position counts."""
        return self.scores.detach().softmax(0)


@dataclass(frozen=True)
class PositionProbes:
    """One probe per layer, trained and judged on contexts apart.

    error      [layers] squared error on held-out contexts, relative to the variance of the target: 0 is
               perfect, 1 is no better than its mean
    attention  [layers, time] where each probe looks
    probes     the probes themselves
    """

    error: Tensor
    attention: Tensor
    probes: tuple[PositionAttentionProbe, ...]

    @property
    def best_layer(self) -> int:
        """The layer of least error; 0 is the embedding."""
        return int(self.error.argmin())

    def __str__(self) -> str:
        lines = ["layer  error  looks most at token"]
        for i, (error, share) in enumerate(zip(self.error, self.attention, strict=True)):
            t = int(share.argmax())
            what = f"{'xy'[t % 2]}_{t // 2 + 1}"
            lines.append(f"{i:5d}  {float(error):5.3f}  {what} ({float(share[t]):.2f})")
        return "\n".join(lines)

    def plot(self, figure: Figure) -> None:
        """Error by layer, and attention by layer and token, on an empty Matplotlib figure."""
        left, right = figure.subplots(1, 2)
        left.plot(range(len(self.error)), self.error.numpy(), "o-", color="C0")
        left.set(xlabel="layer", ylabel="relative error", ylim=(0, None))
        image = right.imshow(self.attention.numpy(), aspect="auto", cmap="viridis", vmin=0)
        right.set(xlabel="token (x, y in turn)", ylabel="layer")
        figure.colorbar(image, ax=right, label="attention")


def fit_position_probes(
    states: Sequence[Float[Tensor, "batch time width"]],
    target: Float[Tensor, "batch out"],
    *,
    hidden: int | None = 512,
    mlp: bool = True,
    steps: int = 1000,
    batch: int = 64,
    lr: float = 1e-3,
    held_out: float = 0.25,
    seed: int = 0,
) -> PositionProbes:
    """Train a probe per layer for one target and judge it on contexts that it has not seen.

    All layers train as one stacked program: Adam on the squared error of standardised targets. States are
    scaled to unit mean square per layer, so that one learning rate suits all. What a probe finds may be the
    probe's own work: compare with the same probe on a control model whose task does not need the target (the
    paper: one trained with fixed w = 1, given random-w contexts).

    Raises ValueError for no states, shapes that do not fit, too few contexts, or a constant target.
    """
    if not states:
        raise ValueError("no hidden states: give one [batch, time, width] tensor per layer")
    contexts, time, width = states[0].shape
    if any(s.shape != states[0].shape for s in states) or len(target) != contexts or target.dim() != 2:
        raise ValueError(
            f"states must all be [batch, time, width] and target [batch, out]; got "
            f"{[tuple(s.shape) for s in states]} and {tuple(target.shape)}"
        )
    if not 0 < held_out < 1 or steps < 1:
        raise ValueError(f"held_out must be in (0, 1) and steps at least 1, got {held_out} and {steps}")
    judged = round(contexts * held_out)
    if judged < 2 or contexts - judged < 2:
        raise ValueError(f"{contexts} contexts are too few to train and judge with held_out = {held_out}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(contexts, generator=generator).to(target.device)
    train, test = order[judged:], order[:judged]

    y = target.detach().float()
    mean, spread = y[train].mean(0), y[train].std(0)
    if not bool((spread > 0).all()):
        raise ValueError("the target does not vary: there is nothing to probe")
    y = (y - mean) / spread
    h = torch.stack([s.detach().float() for s in states])  # [layers, contexts, time, width]
    h = h / h[:, train].square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probes = [
            PositionAttentionProbe(time, width, y.shape[1], hidden, mlp=mlp).to(y.device) for _ in states
        ]
    parameters, buffers = stack_module_state(probes)

    def predict(state: tuple[dict[str, Tensor], dict[str, Tensor]], one: Tensor) -> Tensor:
        return functional_call(probes[0], state, (one,))

    every = vmap(predict)
    optimizer = torch.optim.Adam(parameters.values(), lr=lr)
    for _ in range(steps):
        rows = train[torch.randint(len(train), (batch,), generator=generator).to(train.device)]
        found = every((parameters, buffers), h[:, rows])
        loss = (found - y[rows]).square().mean(dim=(1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = every((parameters, buffers), h[:, test])
        error = (found - y[test]).square().mean(dim=(1, 2)) / y[test].var(0, correction=0).mean()
        for i, probe in enumerate(probes):
            for name, value in probe.named_parameters():
                value.copy_(parameters[name][i])
    return PositionProbes(error.cpu(), torch.stack([p.attention.cpu() for p in probes]), tuple(probes))


def context_moment(x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch d"]:
    """X^T y / n: what one step of gradient descent needs; a target for probes."""
    return torch.einsum("bnd,bn->bd", x, y) / x.shape[1]
