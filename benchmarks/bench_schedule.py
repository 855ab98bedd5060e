"""Schedules: overhead per step, the recorder's share of a training step, refinement of a long log."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from _timing import alternate, report, row
from torch import nn
from torch.optim.lr_scheduler import PolynomialLR

from gradatim.optim import GradNormRecorder, LinearDecayLR, TableLR, last_iterate_bound, refine_schedule
from gradatim.optim.shapes import linear

TARGET_OVERHEAD = "at most 1.1x its time (ratio >= 0.91)"


def scheduler_steps(build: Callable[[torch.optim.Optimizer], Any], steps: int) -> Callable[[], None]:
    """`steps` scheduler steps on an optimizer with two groups."""

    def run() -> None:
        groups = [{"params": [nn.Parameter(torch.ones(1))]} for _ in range(2)]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        scheduler = build(optimizer)
        optimizer.step()
        for _ in range(steps):
            scheduler.step()

    return run


def training_steps(norm: int | None, steps: int, width: int, layers: int, batch: int) -> Callable[[], None]:
    """AdamW steps of a multi-layer network, recorded with `norm` or not at all."""
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(batch, width)

    def run() -> None:
        recorder = None if norm is None else GradNormRecorder(optimizer, norm=norm)  # type: ignore[arg-type]
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        if recorder is not None:
            recorder.close()

    return run


def refine_by_loop(norms: np.ndarray) -> np.ndarray:
    """Tail sums in a Python loop, as a reader of the formula would write them."""
    weights = (norms / np.median(norms)) ** -2.0
    eta, tail = np.empty_like(weights), 0.0
    for t in range(len(weights) - 1, -1, -1):
        eta[t] = weights[t] * tail
        tail += weights[t]
    return eta / eta.max()


def bound_by_loop(eta: np.ndarray, norms: np.ndarray) -> float:
    """The last-iterate bound in a Python loop."""
    tail, noise, last = 0.0, 0.0, 0.0
    for t in range(len(eta) - 1, -1, -1):
        later, tail = tail, tail + eta[t]
        noise += (eta[t] * norms[t]) ** 2
        if later > 0:
            last += 0.5 * eta[t] / later * noise / tail
    return (1.0 + noise) / (2.0 * tail) + last


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    rows = []

    n = 20_000
    seconds = alternate(
        {
            "PolynomialLR": scheduler_steps(lambda o: PolynomialLR(o, n), n),
            "TableLR": scheduler_steps(lambda o: TableLR(o, linear(n)), n),
            "LinearDecayLR": scheduler_steps(lambda o: LinearDecayLR(o, n), n),
        },
        arguments.repeats,
        clock="cpu",
    )
    rows += [
        row(f"{name}: {n} steps", seconds, name, "PolynomialLR", TARGET_OVERHEAD)
        for name in ("TableLR", "LinearDecayLR")
    ]

    # 10 x (1024^2 + 1024) = 10.5 million parameters.
    names: dict[str, int | None] = {"plain": None, "recorded L1": 1, "recorded L2": 2}
    cases = {name: training_steps(norm, 3, 1024, 10, 64) for name, norm in names.items()}
    seconds = alternate(cases, arguments.repeats, clock="cpu")
    rows += [
        row(f"10M parameters, {name}", seconds, name, "plain", "under 10% more on CPU (ratio > 0.909)")
        for name in ("recorded L1", "recorded L2")
    ]

    norms = np.random.default_rng(0).random(100_000) + 0.5
    seconds = alternate(
        {"refine": lambda: refine_schedule(norms), "loop": lambda: refine_by_loop(norms)},
        arguments.repeats,
    )
    rows.append(row("refine 1e5 steps (median filter too)", seconds, "refine", "loop", "under 50 ms"))
    factors = linear(100_000)
    seconds = alternate(
        {
            "bound": lambda: last_iterate_bound(factors, norms),
            "loop": lambda: bound_by_loop(factors, norms),
        },
        arguments.repeats,
    )
    rows.append(row("bound of 1e5 steps", seconds, "bound", "loop", "at least 10x"))
    report("schedule", "schedulers, recorder and refinement beside plain peers", rows, arguments.json)


if __name__ == "__main__":
    main()
