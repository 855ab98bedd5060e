"""Boolean prompts: our samplers beside per-point loops written from the formula.

The work unit is one batch of 64 prompts of 70 points in 28 bits (parity: 20 bits). `--reference DIR` also
times the classes of a checkout of satwik77/incontext-bool, given by the user, on the same sizes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import alternate, report, row

from gradatim.probes import FeedForwardGD
from gradatim.tasks import BooleanTask
from gradatim.tasks.boolean_functions import BOOLEAN_CLASSES

BATCH, POINTS, BITS = 64, 70, 28
CASES = ("conjunction", "disjunction", "dnf", "majority", "threshold", "int_halfspace", "sparse_parity")


def loop_prompts(name: str, bits: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One batch, drawn and labelled point by point as the definitions read."""
    kind = BOOLEAN_CLASSES[name]
    x = np.empty((BATCH, POINTS, bits))
    y = np.empty((BATCH, POINTS))
    for b in range(BATCH):
        terms = [draw_weights(kind, bits, rng) for _ in range(kind.terms)]
        bias = kind.bias if kind.bias is not None else rng.integers(-3, 3) + 0.5
        planted = terms[rng.integers(kind.terms)]
        for t in range(POINTS):
            x[b, t] = rng.choice([-1.0, 1.0], bits)
            if rng.random() < kind.planted:
                target = planted if kind.rule == "dnf" else -planted
                x[b, t] = np.where(target != 0, target, x[b, t])
            y[b, t] = loop_label(kind.rule, terms, bias, x[b, t])
    return x, y


def draw_weights(kind: Any, bits: int, rng: np.random.Generator) -> np.ndarray:
    """The weights of one term."""
    if kind.integers is not None:
        return rng.integers(-kind.integers, kind.integers + 1, bits).astype(float)
    if kind.k is not None:
        w = np.zeros(bits)
        w[rng.choice(bits, kind.k, replace=False)] = 1.0
        return w
    return rng.choice([0.0, 1.0, -1.0], bits, p=kind.prior)


def loop_label(rule: str, terms: Sequence[np.ndarray], bias: float, x: np.ndarray) -> float:
    """The label of one point."""
    if rule == "parity":
        return 1.0 if (x[terms[0] != 0] > 0).sum() % 2 else -1.0
    if rule == "halfspace":
        return 1.0 if terms[0] @ x > bias else -1.0
    sizes = [np.abs(w).sum() for w in terms]
    if rule == "dnf":
        return 1.0 if any(w @ x > k - 1 for w, k in zip(terms, sizes, strict=True)) else -1.0
    return 1.0 if all(w @ x > 1 - k for w, k in zip(terms, sizes, strict=True)) else -1.0


def loop_parity(bits: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Parity by listing every subset before one is drawn, as one might write it first."""
    masks = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
    w = masks[rng.integers(len(masks), size=BATCH)]
    x = rng.choice([-1.0, 1.0], (BATCH, POINTS, bits))
    return x, 2.0 * (((x > 0) * w[:, None]).sum(-1) % 2) - 1


def loop_neighbours(bits: int, start: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Nearest-neighbour labels, one point after the other."""
    x = rng.choice([-1.0, 1.0], (BATCH, POINTS, bits))
    y = rng.choice([-1.0, 1.0], (BATCH, POINTS))
    for b in range(BATCH):
        for t in range(POINTS):
            if t < start:
                equal = [j for j in range(t) if (x[b, j] == x[b, t]).all()]
                y[b, t] = y[b, equal[0]] if equal else y[b, t]
            else:
                y[b, t] = y[b, np.argmax(x[b, :t] @ x[b, t])]
    return x, y


def sampler_rows(repeats: int) -> list[dict[str, Any]]:
    """Every class beside its loop."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    rows = []
    pairs: list[tuple[str, BooleanTask, Callable[[], Any], str]] = [
        (name, BooleanTask(BITS, name, POINTS), lambda name=name: loop_prompts(name, BITS, rng), ">= 50x")
        for name in CASES
    ]
    pairs.append(("parity", BooleanTask(20, "parity", POINTS), lambda: loop_parity(20, rng), "(no target)"))
    neighbours = BooleanTask(BITS, "nearest_neighbour", POINTS, start_idx=20)
    pairs.append(("nearest_neighbour", neighbours, lambda: loop_neighbours(BITS, 20, rng), "(no target)"))
    for name, task, loop, target in pairs:
        seconds = alternate(
            {"ours": lambda task=task: task.sample(BATCH, generator=generator), "loop": loop}, repeats
        )
        rows.append(row(f"{name}, n = {task.d}, m = {POINTS}, B = {BATCH}", seconds, "ours", "loop", target))
    return rows


def network_rows(repeats: int) -> list[dict[str, Any]]:
    """Feed-forward nets fitted to prompts: all as one batch beside one module each."""
    task = BooleanTask(10, "conjunction", 31)
    prompt = task.sample(8, generator=torch.Generator().manual_seed(0))
    ours = FeedForwardGD(steps=30, every=10)

    def single() -> None:
        for b in range(len(prompt)):
            for length in (10, 20, 30):
                net = torch.nn.Sequential(
                    torch.nn.Linear(10, 100), torch.nn.ReLU(), torch.nn.Linear(100, 100), torch.nn.ReLU(),
                    torch.nn.Linear(100, 1),
                )  # fmt: skip
                adam = torch.optim.Adam(net.parameters(), lr=5e-3)
                target = (prompt.y[b, :length] + 1) / 2
                for _ in range(30):
                    adam.zero_grad()
                    logits = net(prompt.x[b, :length])[:, 0]
                    torch.nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
                    adam.step()

    cases = {"batched": lambda: ours(prompt.x, prompt.y), "one at a time": single}
    seconds = alternate(cases, max(1, repeats // 2))
    return [row("FFN, 24 networks, 30 steps", seconds, "batched", "one at a time", "(no target)")]


def reference_rows(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """The published classes on the same sizes: a new task and its prompts, as at every training step."""
    sys.path[:0] = [str(folder / "src"), str(folder)]
    try:
        import bool_tasks as published  # type: ignore[import-not-found]
    except ImportError as missing:
        print(f"{folder} cannot be imported here ({missing}); skipped")
        return []
    known = {
        "conjunction": "Conjunction",
        "disjunction": "Disjunction",
        "sparse_disjunction": "SparseDisjunction",
        "dnf": "DNF",
        "cnf": "CNF",
        "majority": "Majority",
        "threshold": "SparseThreshold",
        "int_halfspace": "IntHalfspace",
        "parity": "Parity",
        "sparse_parity": "SparseParity",
        "nearest_neighbour": "NearestNeighbours",
    }
    generator = torch.Generator().manual_seed(0)
    rows = []
    for name, theirs in known.items():
        bits = 20 if name == "parity" else BITS
        settings = {"start_idx": 20} if name == "nearest_neighbour" else {}
        task = BooleanTask(bits, name, POINTS)

        def peer(theirs: str = theirs, bits: int = bits, settings: dict[str, int] = settings) -> Any:
            drawn = getattr(published, theirs)(bits, BATCH, **settings)
            return drawn.evaluate(drawn.sample_xs(POINTS, BATCH))

        try:
            cases = {"ours": lambda task=task: task.sample(BATCH, generator=generator), "reference": peer}
            seconds = alternate(cases, 1 if name == "parity" else repeats)
        except Exception as refusal:  # The user's checkout may be of any age.
            print(f"{theirs} of {folder.name} does not run as called here ({refusal!r}); skipped")
            continue
        # Where the published class is vectorised as well, there is nothing to gain and no target.
        target = {"parity": ">= 1000x", "nearest_neighbour": ">= 20x"}.get(
            name, ">= 50x" if task.planted_share else "(no target)"
        )
        rows.append(row(f"{name}, n = {bits}, published code", seconds, "ours", "reference", target))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Time and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reference", type=Path, metavar="DIR")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = sampler_rows(options.repeats) + network_rows(options.repeats)
    if options.reference:
        rows += reference_rows(options.reference, options.repeats)
    report("boolean", "prompts of Boolean functions: samplers beside loops", rows, options.json)


if __name__ == "__main__":
    main()
