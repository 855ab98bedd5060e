"""Training in O(chunk x V) memory: the vocabulary is met by a few tokens at a time, and never kept.

Between two steps of descent only the narrow moves q_i = alpha dE/de_i [tokens, D] are kept. The distribution
before step i follows from them, for any chunk of tokens, from the start on:

    p_0 = softmax(z_0),   z_{j+1} = p_j - q_j W^T,   p_{j+1} = softmax(z_{j+1}).

What meets W is differentiated by hand, chunk by chunk. The embedded prediction e_i = p_i W has
dW = p_i^T de; the loss L(z_{i+1}), with d = dL/dz = softmax(z) - onehot(target), has dq = -d W and
dW = -d^T q, both found along with the loss.

States carry no gradient from step to step (`detach_steps` or `truncate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gradatim.models.energy_start import seeded

Rows = Callable[[slice, int], Tensor]
"""rows(part, step) -> [len(part), V] noise that depends on the two alone."""


class States:
    """The state of every token along the descent, computed when asked for.

    projection: W [V, D]. start: [part] -> z_0 of these tokens. noise: added before a step, or None.
    """

    def __init__(
        self,
        projection: Float[Tensor, "vocabulary width"],
        tokens: int,
        chunk: int,
        start: Callable[[slice], Tensor],
        noise: Rows | None = None,
    ) -> None:
        device = projection.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else projection.dtype
        self.projection = projection.detach().to(narrow)
        self.wide = torch.promote_types(projection.dtype, torch.float32)
        self.tokens, self.chunk = tokens, chunk
        self._start, self._noise = start, noise
        self.moves: list[Tensor] = []

    def parts(self) -> Iterator[slice]:
        """The chunks, in order."""
        for first in range(0, self.tokens, self.chunk):
            yield slice(first, min(first + self.chunk, self.tokens))

    def before(self, step: int, part: slice) -> Tensor:
        """p of these tokens before step number `step`."""
        z = self._start(part).to(self.wide)
        for i in range(step):
            z = self.moved(self._disturbed(z, i, part).softmax(-1), self.moves[i][part])
        return self._disturbed(z, step, part).softmax(-1)

    def moved(self, p: Tensor, move: Tensor) -> Tensor:
        """p - q W^T; overwrites p."""
        if self.projection.dtype == p.dtype:
            return p.addmm_(move, self.projection.T, alpha=-1)
        return p.sub_((move.to(self.projection.dtype) @ self.projection.T).to(p.dtype))

    def narrowed(self, p: Tensor) -> Tensor:
        """p W."""
        return (p.to(self.projection.dtype) @ self.projection).to(self.wide)

    def outer(self, p: Tensor, rows: Tensor) -> Tensor:
        """p^T rows, summed over tokens in full precision."""
        return (p.to(self.projection.dtype).T @ rows.to(self.projection.dtype)).to(self.wide)

    def after(self, steps: int) -> Float[Tensor, "tokens vocabulary"]:
        """z after all steps, for those who need it whole."""
        last = steps - 1
        rows = [self.moved(self.before(last, part), self.moves[last][part]) for part in self.parts()]
        return torch.cat(rows)

    def _disturbed(self, z: Tensor, step: int, part: slice) -> Tensor:
        return z if self._noise is None else z + self._noise(part, step).to(z)


def embedded(states: States, step: int, projection: Tensor) -> Float[Tensor, "tokens width"]:
    """e = p W before step number `step`, with the gradient of W."""
    found: Tensor = _Embedded.apply(projection, states, step)
    return found


def scored(
    states: States,
    step: int,
    move: Float[Tensor, "tokens width"],
    projection: Tensor,
    targets: Int[Tensor, " tokens"],
) -> Float[Tensor, ""]:
    """Summed cross-entropy of z after step number `step`, which moves by `move`; -100 is not scored."""
    found: Tensor = _Scored.apply(move, projection, states, step, targets)
    return found


def drawn_rows(
    seed: int, stream: int, std: float, vocabulary: int, device: torch.device
) -> Callable[[slice, int], Tensor]:
    """Normal noise by chunk: a function of (seed, stream, step, first token), never kept."""

    def rows(part: slice, step: int) -> Tensor:
        generator = seeded(device, seed, stream, step, part.start)
        shape = (part.stop - part.start, vocabulary)
        return std * torch.randn(shape, generator=generator, device=device)

    return rows


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projection: Tensor, states: States, step: int) -> Tensor:
        ctx.states, ctx.step, ctx.dtype = states, step, projection.dtype
        with torch.autocast(projection.device.type, enabled=False):
            return torch.cat([states.narrowed(states.before(step, part)) for part in states.parts()])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,) = gradients
        states: States = ctx.states
        total = torch.zeros(states.projection.shape, dtype=states.wide, device=g.device)
        with torch.autocast(g.device.type, enabled=False):
            for part in states.parts():
                total += states.outer(states.before(ctx.step, part), g[part])
        return total.to(ctx.dtype), None, None


class _Scored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, move: Tensor, projection: Tensor, states: States, step: int, targets: Tensor
    ) -> Tensor:
        loss = torch.zeros((), dtype=states.wide, device=move.device)
        to_move = torch.zeros_like(move)
        to_projection = torch.zeros(projection.shape, dtype=states.wide, device=move.device)
        with torch.autocast(move.device.type, enabled=False):
            for part in states.parts():
                t, q = targets[part], move[part]
                z = states.moved(states.before(step, part), q)
                loss += F.cross_entropy(z, t, reduction="sum", ignore_index=-100)
                kept = (t != -100).to(z)
                d = z.softmax(-1).mul_(kept.unsqueeze(-1))
                d.scatter_add_(1, t.clamp(min=0).unsqueeze(-1), -kept.unsqueeze(-1))
                to_move[part] = -states.narrowed(d).to(move.dtype)
                to_projection -= states.outer(d, q)
        ctx.save_for_backward(to_move, to_projection.to(projection.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (g,) = gradients
        to_move, to_projection = ctx.saved_tensors
        return g.to(to_move.dtype) * to_move, g.to(to_projection.dtype) * to_projection, None, None, None
