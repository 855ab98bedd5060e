"""A boosted network as other libraries' ordinary networks, with the same outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from gradatim.models.boosted_stages import StagedNetwork

TORCH_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "identity": nn.Identity,
}


def as_torch(network: StagedNetwork, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Linear, activation, Linear with the network's weights; outputs are the scores."""
    d, units = network.W1.shape
    k = network.W2.shape[1]
    hidden = nn.utils.skip_init(nn.Linear, d, units, dtype=dtype)
    output = nn.utils.skip_init(nn.Linear, units, k, dtype=dtype)
    with torch.no_grad():
        hidden.weight.copy_(torch.from_numpy(np.ascontiguousarray(network.W1.T)))
        hidden.bias.copy_(torch.from_numpy(network.c1))
        output.weight.copy_(torch.from_numpy(np.ascontiguousarray(network.W2.T)))
        output.bias.copy_(torch.from_numpy(network.stage_bias[-1]))
    return nn.Sequential(hidden, TORCH_ACTIVATIONS[network.activation](), output)


def as_mlp(mlp: Any, network: StagedNetwork, targets: np.ndarray, classes: np.ndarray | None) -> Any:
    """Give an unfitted MLPClassifier or MLPRegressor the network's weights.

    One `partial_fit` on rows of zeros, one per class (or one target row), lets scikit-learn set up
    everything else it keeps; what it learned and its optimizer's state are then replaced and dropped.
    """
    X = np.zeros((len(targets), network.W1.shape[0]))
    if classes is None:
        mlp.partial_fit(X, targets)
    else:
        mlp.partial_fit(X, targets, classes=classes)
    mlp.coefs_ = [network.W1.copy(), network.W2.copy()]
    mlp.intercepts_ = [network.c1.copy(), network.stage_bias[-1].copy()]
    for stale in ("_optimizer", "loss_"):
        mlp.__dict__.pop(stale, None)
    mlp.loss_curve_, mlp.best_loss_ = [], np.inf
    return mlp
