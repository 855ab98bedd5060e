"""Several copies of one small network trained at once, each at its own learning rate.

All copies share the initial weights and the minibatches; copy k moves by its rate lr_k times the factor
of the step. One batched tensor program takes the place of K runs; each copy does what `torch.optim.AdamW`
(or `SGD`) with a `TableLR` would have done to it alone (tested).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["cross entropy", "squared error"]

BETAS = (0.9, 0.999)
EPS = 1e-8
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class StackedRun:
    """What K copies ended with.

    layers   [(weights [K, in, out], biases [K, 1, out]), ...] after the last step
    losses   [T, K] minibatch loss before each step
    norms    [T, K] gradient norm of each step (L1 for AdamW, L2 for SGD)
    """

    layers: list[tuple[Tensor, Tensor]]
    losses: np.ndarray
    norms: np.ndarray

    def outputs(self, inputs: Tensor) -> Tensor:
        """[rows, in] -> [K, rows, out]."""
        with torch.no_grad():
            return _forward(self.layers, inputs)


def initial_layers(sizes: Sequence[int], generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Weights [in, out] with He's deviation sqrt(2 / in), biases 0, drawn from `generator`."""
    return [
        (torch.randn(n, m, generator=generator) * (2.0 / n) ** 0.5, torch.zeros(1, m))
        for n, m in itertools.pairwise(sizes)
    ]


def batch_order(rows: int, batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """[steps, batch] row numbers: one random order after another, each cut into whole batches."""
    per_epoch = rows // batch
    if per_epoch < 1:
        raise ValueError(f"a batch of {batch} needs at least {batch} rows, got {rows}")
    epochs = [
        torch.randperm(rows, generator=generator)[: per_epoch * batch].view(per_epoch, batch)
        for _ in range(-(-steps // per_epoch))
    ]
    return torch.cat(epochs)[:steps]


def train_stacked(
    layers: Sequence[tuple[Tensor, Tensor]],
    inputs: Tensor,
    targets: Tensor,
    order: Tensor,
    rates: Sequence[float],
    factors: np.ndarray,
    *,
    loss: Loss,
    optimizer: Literal["adamw", "sgd"] = "adamw",
) -> StackedRun:
    """Train one copy per rate; step t uses the rows `order[t]` and the rates `rates * factors[t]`.

    A copy whose loss overflows goes on as NaN and leaves the others alone.
    """
    if len(factors) != len(order):
        raise ValueError(f"{len(order)} steps need as many factors, got {len(factors)}")
    copies = len(rates)
    weights = [
        tensor.expand(copies, *tensor.shape).clone().requires_grad_() for pair in layers for tensor in pair
    ]
    first = [torch.zeros_like(w) for w in weights]
    second = [torch.zeros_like(w) for w in weights]
    base = torch.tensor(list(rates), dtype=inputs.dtype)[:, None, None]
    losses = torch.empty(len(order), copies, dtype=inputs.dtype)
    norms = torch.empty(len(order), copies, dtype=torch.float64)
    for t, rows in enumerate(order):
        value = _losses(_forward(_pairs(weights), inputs[rows]), targets[rows], loss)
        grads = torch.autograd.grad(value.sum(), weights)
        with torch.no_grad():
            losses[t] = value
            norms[t] = _norms(grads, 1 if optimizer == "adamw" else 2)
            lr = base * float(factors[t])
            if optimizer == "sgd":
                for w, g in zip(weights, grads, strict=True):
                    w -= lr * g
                continue
            correct1, correct2 = 1 - BETAS[0] ** (t + 1), 1 - BETAS[1] ** (t + 1)
            for w, g, m, v in zip(weights, grads, first, second, strict=True):
                w *= 1 - lr * WEIGHT_DECAY
                m.lerp_(g, 1 - BETAS[0])
                v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
                w -= lr / correct1 * m / (v.sqrt() / correct2**0.5 + EPS)
    return StackedRun(_pairs([w.detach() for w in weights]), losses.numpy(), norms.numpy())


def row_losses(outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """[K, rows, out] -> [K, rows]."""
    if loss == "squared error":
        return (outputs.squeeze(-1) - targets) ** 2
    copies = outputs.shape[0]
    return F.cross_entropy(outputs.transpose(1, 2), targets.expand(copies, -1), reduction="none")


def _losses(outputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    return row_losses(outputs, targets, loss).mean(dim=1)


def _forward(layers: Sequence[tuple[Tensor, Tensor]], inputs: Tensor) -> Tensor:
    hidden = inputs.expand(layers[0][0].shape[0], *inputs.shape)
    for i, (weight, bias) in enumerate(layers):
        hidden = torch.baddbmm(bias, hidden, weight)
        if i < len(layers) - 1:
            hidden = hidden.relu()
    return hidden


def _pairs(weights: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(weights[::2], weights[1::2], strict=True))


def _norms(grads: Sequence[Tensor], power: int) -> Tensor:
    sums = torch.stack([(g.double().abs() ** power).sum(dim=(1, 2)) for g in grads]).sum(dim=0)
    return sums ** (1 / power)
