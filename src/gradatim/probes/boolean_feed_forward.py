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
        batch, m, _ = x.shape
        lengths = torch.arange(self.every, m, self.every)
        found = torch.zeros_like(y)
        if not len(lengths):
            return found
        prompt = torch.arange(batch).repeat_interleave(len(lengths))
        length = lengths.repeat(batch)
        generator = torch.Generator().manual_seed(self.seed)
        weights = self.initial(len(prompt), x.shape[2], generator)
        part = max(1, self.cells // (m * max(self.hidden)))
        for i in range(0, len(prompt), part):
            rows, fitted = prompt[i : i + part], length[i : i + part].to(x.device)
            own = [w[i : i + part].to(x) for w in weights]
            logits = self.fitted(own, x[rows], y[rows], fitted, generator)
            position = torch.arange(m, device=x.device)
            answers = (position >= fitted[:, None]) & (position < fitted[:, None] + self.every)
            # Prefixes of one prompt answer disjoint positions, so adding puts them side by side.
            found.index_add_(0, rows.to(x.device), logits.sign() * answers)
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

    def fitted(
        self, weights: list[Tensor], x: Tensor, y: Tensor, length: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Logits [nets, m] after training net g on the first length[g] pairs of its prompt."""
        weights = [w.clone().requires_grad_() for w in weights]
        adam = torch.optim.Adam(weights, lr=self.lr)
        known = torch.arange(x.shape[1], device=x.device) < length[:, None]
        for _ in range(self.steps):
            use = self._minibatch(known, length, generator)
            logits = _forward(weights, x)
            if self.loss == "bce":
                each = binary_cross_entropy_with_logits(logits, (y + 1) / 2, reduction="none")
            else:
                each = mse_loss(logits, y, reduction="none")
            adam.zero_grad()
            # A sum over nets of their own means: each net sees the gradient it would see alone.
            ((each * use).sum(1) / use.sum(1)).sum().backward()
            adam.step()
        with torch.no_grad():
            return _forward(weights, x)

    def _minibatch(self, known: Tensor, length: Tensor, generator: torch.Generator) -> Tensor:
        if int(length.max()) <= self.batch_size:
            return known
        keys = torch.rand(known.shape, generator=generator).to(known.device).masked_fill(~known, 2.0)
        rank = keys.argsort(dim=1).argsort(dim=1)
        return known & (rank < self.batch_size)


def _forward(weights: list[Tensor], x: Tensor) -> Tensor:
    hidden = x
    for i in range(0, len(weights), 2):
        hidden = torch.baddbmm(weights[i + 1], hidden, weights[i])
        if i + 2 < len(weights):
            hidden = hidden.relu()
    return hidden[..., 0]
