"""Study 04, part (d): M3 beside AdamW and Muon, each at the best of its rates, on scikit-learn's digits.

A network 64-128-128-10 with a mini-batch of 64. Rates were chosen once, by `tune` on the tuning seeds (lowest
test loss after the steps of the quick profile); a test asks whether they still are the best of their grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from gradatim.bench import Curve, Outcome, Scale, tuning_seeds
from gradatim.optim import M3, DeepMomentumSGD, DeltaMomentumSGD, matrix_groups
from gradatim.studies.nested_learning_continual import TRAIN, digits

RATES = tuple(base * 10.0**power for power in range(-7, 0) for base in (1.0, 2.0, 3.0, 5.0, 7.0))


class Both:
    """Two optimizers stepped as one: Muon takes matrices alone."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers

    def zero_grad(self) -> None:
        """Clear the gradients of both."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        """Step both."""
        for optimizer in self.optimizers:
            optimizer.step()


def make_optimizer(rule: str, net: nn.Module, lr: float, options: Mapping[str, Any]) -> Any:
    """The optimizer of an arm; outputs and biases take AdamW's where matrices have a rule of their own."""
    if rule == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    if rule == "delta":
        return DeltaMomentumSGD(net.parameters(), lr=lr, **options)
    if rule == "sgd":
        return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    if rule == "deep":
        return DeepMomentumSGD(net.parameters(), lr=lr, **options)
    matrices, rest = matrix_groups(net, not_matrix=("head",))
    if rule == "muon":
        return Both(
            torch.optim.Muon(
                matrices["params"], lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw", **options
            ),
            torch.optim.AdamW(rest["params"], lr=lr, weight_decay=0.0),
        )
    # Output layer and biases at AdamW's own usual rate: the printed division would set another scale.
    groups = [matrices, {**rest, "lr": lr if options.get("match_rms", 0.2) is not None else 3e-3}]
    return M3(groups, lr=lr, **options)


def network(seed: int) -> nn.Sequential:
    """64-128-128-10 with ReLU; weights as `nn.Linear` draws them, from this seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        net.add_module("head", nn.Linear(128, 10))
    return net


def run(settings: Mapping[str, Any], seed: int, scale: Scale) -> Outcome:
    """Final losses of one training; one that diverges ends there, with the loss of knowing nothing."""
    steps = round(scale["steps"] * settings.get("longer", 1.0))
    net = network(seed)
    optimizer = make_optimizer(settings["rule"], net, settings["lr"], settings.get("options", {}))
    x, y = digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    train, test = order[:TRAIN], order[TRAIN:]
    losses: list[float] = []
    for _ in range(steps):
        rows = train[torch.randint(TRAIN, (64,), generator=generator)]
        loss = F.cross_entropy(net(x[rows]), y[rows])
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        try:
            optimizer.step()
        except RuntimeError as error:
            if "not finite" not in str(error):
                raise
            losses.append(float("nan"))
            break
    diverged = not np.isfinite(losses[-1])
    with torch.no_grad():
        ends = [F.cross_entropy(net(x[rows]), y[rows]) for rows in (train, test)]
        right = (net(x[test]).argmax(1) == y[test]).float().mean()
    worst = float(np.log(10))
    ended = [worst if diverged or not torch.isfinite(e) else min(float(e), 1e3) for e in ends]
    metrics = {
        "train_loss": ended[0],
        "test_loss": ended[1],
        "log_train_loss": float(np.log10(max(ended[0], 1e-12))),
        "accuracy": 0.1 if diverged else float(right),
        "diverged": float(diverged),
    }
    known = [min(v, 1e3) for v in losses if np.isfinite(v)]
    smooth = [float(np.mean(known[max(0, t - 19) : t + 1])) for t in range(0, len(known), 10)]
    return Outcome(
        metrics, {"training": Curve([10.0 * t for t in range(len(smooth))], smooth, "step", "training loss")}
    )


def tune(
    settings: Mapping[str, Any],
    scale: Scale,
    rates: Sequence[float] = RATES,
    seeds: int = 3,
    trial: Callable[[Mapping[str, Any], int, Scale], Outcome] = run,
) -> dict[float, float]:
    """Mean test loss by rate, over tuning seeds."""
    return {
        lr: float(
            np.mean(
                [trial({**settings, "lr": lr}, s, scale).metrics["test_loss"] for s in tuning_seeds(seeds)]
            )
        )
        for lr in rates
    }
