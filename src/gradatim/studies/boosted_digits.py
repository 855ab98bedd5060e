"""Trials of study 09 on pictures: a small convolutional net on digits, its last layers replaced."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from gradatim.bench import Arm, Outcome, Scale
from gradatim.models import BoostedHead
from gradatim.tasks.tabular import digits

CLASSES = 10
Pictures = tuple[Tensor, Tensor, Tensor, Tensor]


def digits_trial(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """Accuracy of one head on the features of one trained net (the same for every arm of a seed)."""
    x, y, x_test, y_test = _split(seed, scale)
    net = _trained_net(seed, scale["cnn_train"], scale["cnn_epochs"])
    body = net[:-1]
    with torch.no_grad():
        z, z_test = body(x), body(x_test)
    mean, sd = z.mean(0), z.std(0).clamp_min(1e-6)
    z, z_test = (z - mean) / sd, (z_test - mean) / sd
    kind = arm.settings["kind"]
    units, J = scale["head_units"], scale["head_step"]
    if kind != "boosted-head":
        head = _head(kind, z.shape[1], units, seed)
        head = _trained(head, z, y, seed, epochs=scale["head_epochs"])
        return Outcome({"accuracy": _accuracy(head(z_test), y_test)})
    boosted = BoostedHead(z.shape[1], CLASSES, J, learning_rate=scale["head_rate"])
    generator = torch.Generator().manual_seed(seed)
    stages = units // J
    boosted.fit(z, y, stages, generator=generator)
    metrics = {"accuracy": _accuracy(boosted(z_test), y_test)}
    for percent in (25, 50):
        part = boosted(z_test, stages=max(1, stages * percent // 100))
        metrics[f"score_{percent}pct_units"] = _accuracy(part, y_test)
    with torch.no_grad():
        gap = (boosted.to_sequential()(z_test) - boosted(z_test)).abs().max()
    return Outcome(metrics | {"assembly_gap": float(gap)})


def _split(seed: int, scale: Scale) -> Pictures:
    return _pictures(seed, scale["cnn_train"])


@lru_cache(maxsize=4)
def _pictures(seed: int, n_train: int) -> Pictures:
    X, y = digits()
    x = torch.from_numpy(X).float().reshape(-1, 1, 8, 8) / 16.0
    t = torch.from_numpy(y).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    learn, test = order[:n_train], order[-len(x) // 4 :]
    return x[learn], t[learn], x[test], t[test]


@lru_cache(maxsize=4)
def _trained_net(seed: int, n_train: int, epochs: int) -> nn.Sequential:
    x, y, _, _ = _pictures(seed, n_train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64, CLASSES),
        )  # fmt: skip
    return _trained(net, x, y, seed, epochs)


def _head(kind: str, features: int, units: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "linear-head":
            return nn.Sequential(nn.Linear(features, CLASSES))
        return nn.Sequential(nn.Linear(features, units), nn.Sigmoid(), nn.Linear(units, CLASSES))


def _trained(net: nn.Sequential, x: Tensor, y: Tensor, seed: int, epochs: int) -> nn.Sequential:
    from gradatim.bench.fit import fit

    shuffled = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True, generator=shuffled)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    fit(
        net,
        optimizer,
        loader,
        lambda model, rows: functional.cross_entropy(model(rows[0]), rows[1]),
        epochs=epochs,
        seed=seed,
    )
    return net.requires_grad_(False).eval()


def _accuracy(scores: Tensor, y: Tensor) -> float:
    return float((scores.argmax(1) == y).double().mean())
