"""A feed-forward net fitted by gradient descent on each prompt's own pairs, for many prefixes at once."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from gradatim.probes.boolean_references import check_prompts


@dataclass(frozen=True)
class FeedForwardGD:
    """One ReLU network per prompt and prefix, trained from scratch by Adam; answers sign(logit).

    All networks are one batch of matrix products. A network is fitted for every `every`-th prefix length and
    answers until the next one; prefix 0 is an untrained network and answers 0. With more pairs than
    `batch_size` every step draws that many of them.

    The published code has these settings (100, 100 hidden units, Adam 5e-3, 100 steps, batches of at most 100
    pairs) for a regression task only; the settings of its Boolean figure are not known. `loss` is "bce" or
    "squared".
    """

    hidden: tuple[int, ...] = (100, 100)
    lr: float = 5e-3
    steps: int = 100
    every: int = 5
    batch_size: int = 100
    loss: str = "bce"
    seed: int = 0
    cells: int = 4_000_000

    def __post_init__(self) -> None:
        if self.loss not in ("bce", "squared"):
            raise ValueError(f'loss must be "bce" or "squared", got {self.loss!r}')
        if min(self.steps, self.every, self.batch_size, *self.hidden) < 1:
            raise ValueError("hidden, steps, every and batch_size must be at least 1")

    @property
    def name(self) -> str:
        """Such as "FFN(100, 100; 100 steps)"."""
        return f"FFN({', '.join(map(str, self.hidden))}; {self.steps} steps)"

    def predict(self, x: Float[Tensor, "batch m n"], y: Float[Tensor, "batch m"]) -> Float[Tensor, "batch m"]:
        """-1, 0 or +1 for every point."""
        check_prompts(x, y, boolean=False)
        batch, m, n = x.shape
        lengths = range(self.every, m, self.every)
        found = torch.zeros_like(y)
        generator = torch.Generator().manual_seed(self.seed)
        weights = self.initial(batch * len(lengths), n, generator)
        for i, length in enumerate(lengths):
            part = max(1, self.cells // (length * max(self.hidden)))
            for rows in torch.arange(batch).split(part):
                own = [w[rows * len(lengths) + i].to(x) for w in weights]
                fitted = self.fitted(own, x[rows, :length], y[rows, :length], generator)
                with torch.no_grad():
                    logits = _forward(fitted, x[rows, length : length + self.every])
                found[rows, length : length + self.every] = logits.sign()
        return found

    curve = __call__ = predict

    def initial(self, count: int, n: int, generator: torch.Generator) -> list[Tensor]:
        """PyTorch's default: every weight and bias uniform in +-1/sqrt(fan in); weight, bias, weight ..."""
        sizes = (n, *self.hidden, 1)
        drawn = []
        for fan, out in itertools.pairwise(sizes):
            for shape in ((count, fan, out), (count, 1, out)):
                drawn.append((2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(fan))
        return drawn

    def fitted(self, weights: list[Tensor], x: Tensor, y: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The weights after training net g on the pairs x[g] [length, n], y[g] [length]."""
        weights = [w.clone().requires_grad_() for w in weights]
        # Elementwise, so one Adam over the stack is one Adam per network.
        adam = torch.optim.Adam(weights, lr=self.lr, fused=True)
        for _ in range(self.steps):
            xs, ys = self._minibatch(x, y, generator)
            logits = _forward(weights, xs)
            if self.loss == "bce":
                each = binary_cross_entropy_with_logits(logits, (ys + 1) / 2, reduction="none")
            else:
                each = mse_loss(logits, ys, reduction="none")
            adam.zero_grad()
            # A sum over nets of their own means: each net sees the gradient it would see alone.
            each.mean(1).sum().backward()
            adam.step()
        return [w.detach() for w in weights]

    def _minibatch(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if x.shape[1] <= self.batch_size:
            return x, y
        keys = torch.rand(y.shape, generator=generator).to(y.device)
        chosen = keys.topk(self.batch_size, dim=1).indices
        return x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2])), y.gather(1, chosen)


def _forward(weights: list[Tensor], x: Tensor) -> Tensor:
    hidden = x
    for i in range(0, len(weights), 2):
        hidden = torch.baddbmm(weights[i + 1], hidden, weights[i])
        if i + 2 < len(weights):
            hidden = hidden.relu()
    return hidden[..., 0]
