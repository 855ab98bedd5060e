"""A step on any loss by automatic differentiation, in float64: what compiled kernels are held to."""

from __future__ import annotations

import numpy as np
import torch


def sgd_step(loss_of, parameters, rates):
    """New values of the parameters after one plain step on a loss; arrays in, arrays out."""
    leaves = {
        n: torch.tensor(np.asarray(p, dtype=np.float64), requires_grad=True) for n, p in parameters.items()
    }
    loss_of(leaves).backward()
    return {
        n: (leaf - rates[n] * (0 if leaf.grad is None else leaf.grad)).detach().numpy()
        for n, leaf in leaves.items()
    }


def nll(hidden, rows, bias=None):
    """-log sigma(hidden . row 0) - the sum over the other rows of log sigma(-hidden . row)."""
    logits = rows @ hidden + (0 if bias is None else bias)
    sign = torch.ones(len(rows), dtype=torch.float64)
    sign[1:] = -1
    return -torch.nn.functional.logsigmoid(sign * logits).sum()


def only(word):
    """An alias table that always draws this word."""
    return np.zeros(1, np.uint32), np.array([word], np.int32)


def filled(shape, seed, scale=0.5):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)
