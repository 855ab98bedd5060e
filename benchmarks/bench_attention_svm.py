"""Attention as an SVM: our solvers beside cvxpy's, and stacked training beside one problem at a time.

`--reference DIR` also times the solver of a checkout of umich-sota/TF-as-SVM, given by the user.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import alternate, report, row

from gradatim.models import train_attention
from gradatim.probes import attention_svm, selected_tokens, token_scores
from gradatim.probes.attention_svm_cvxpy import accuracy_options
from gradatim.tasks import random_instance, random_instances

SIZES = ((6, 8, 10), (10, 10, 20), (5, 10, 15))


def problem(size: tuple[int, int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, queries and the best token of every sequence."""
    p = random_instance(*size, seed)
    return p.x, p.z, selected_tokens(token_scores(p.x, p.v, p.y))


def plain_cvxpy(norm: str, solver: str, tol: float, data: tuple[torch.Tensor, ...]) -> np.ndarray:
    """The problem as one writes it for cvxpy: one matrix constraint on all of W."""
    import cvxpy as cp

    x, z, selected = (a.numpy() for a in data)
    n, t, d = x.shape
    difference = x[np.arange(n), selected][:, None] - x
    others = np.arange(t)[None] != selected[:, None]
    rows = np.einsum("ntd,ne->ntde", difference, z)[others].reshape(-1, d * d)
    w = cp.Variable((d, d))
    size = cp.normNuc(w) if norm == "nuclear" else 0.5 * cp.sum_squares(w)
    task = cp.Problem(cp.Minimize(size), [rows @ cp.vec(w, order="C") >= 1])
    task.solve(solver=solver.upper(), **accuracy_options(solver, tol))
    return np.asarray(w.value)


def solver_rows(
    norm: str, peers: dict[str, float], count: int, repeats: int, target: str
) -> list[dict[str, Any]]:
    """Our solver beside each of cvxpy's; `peers` maps a solver to the tolerance of equal accuracy."""
    rows = []
    for size in SIZES:
        data = [problem(size, seed) for seed in range(count)]

        def ours(data: list[Any] = data) -> list[np.ndarray]:
            return [attention_svm(*d, norm=norm).weight.numpy() for d in data]

        def peer(name: str, tol: float, data: list[Any] = data) -> list[np.ndarray]:
            return [plain_cvxpy(norm, name, tol, d) for d in data]

        cases: dict[str, Callable[[], Any]] = {"ours": ours}
        cases |= {f"cvxpy {name}": partial(peer, name, tol) for name, tol in peers.items()}
        seconds = alternate(cases, repeats)
        mine = ours()
        for name, tol in peers.items():
            pairs = list(zip(mine, peer(name, tol), strict=True))
            off = max(1 - (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs)
            case = f"{norm} {size}, {count} problems, 1 - cos {off:.0e}"
            rows.append(row(case, seconds, "ours", f"cvxpy {name}", target))
    return rows


def training_rows(count: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """`count` problems as one stack, beside the same problems one after the other."""
    p = random_instances(6, 8, 10, range(count))
    rows = []
    for parameterization in ("w", "kq"):

        def train(a: int, b: int, kind: str = parameterization) -> Any:
            data = (q[a:b] for q in (p.x, p.z, p.y, p.v))
            return train_attention(*data, parameterization=kind, rate=0.3, steps=steps, seeds=range(a, b))

        seconds = alternate(
            {
                "stacked": lambda train=train: train(0, count),
                "one at a time": lambda train=train: [train(i, i + 1) for i in range(count)],
            },
            repeats,
            warmup=0,
        )
        case = f"training {parameterization}, {count} problems, {steps} steps"
        rows.append(row(case, seconds, "stacked", "one at a time", ">= 10x"))
    return rows


def reference_rows(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """The published solver on the same problems, through its own entry point."""
    sys.path.insert(0, str(folder))
    import base  # type: ignore[import-not-found]

    rows = []
    for size in SIZES:
        x, z, selected = problem(size, 0)
        theirs = next((getattr(base, n) for n in ("W_svm_solver", "w_svm_solver") if hasattr(base, n)), None)
        if theirs is None:
            print(f"{folder} has no solver of the expected name; skipped")
            return rows
        seconds = alternate(
            {
                "ours": lambda x=x, z=z, s=selected: attention_svm(x, z, s),
                "reference": lambda x=x, z=z, s=selected, solve=theirs: solve(x, z, s),
            },
            repeats,
        )
        rows.append(row(f"frobenius {size}", seconds, "ours", "reference", ">= 10x"))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Time and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", type=int, default=10, help="SVM problems per timing")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--reference", type=Path, metavar="DIR")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="cvxpy")
    # Tolerances at which a peer is about as accurate as ours, shown in each row.
    quadratic = {"osqp": 1e-8, "clarabel": 1e-8, "scs": 1e-8}
    rows = solver_rows("frobenius", quadratic, options.count, options.repeats, ">= 10x")
    rows += solver_rows("nuclear", {"scs": 1e-7, "clarabel": 1e-8}, options.count, options.repeats, ">= 1x")
    rows += training_rows(options.problems, options.steps, max(1, options.repeats // 3))
    if options.reference:
        rows += reference_rows(options.reference, options.repeats)
    report(
        "attention-svm",
        "solvers beside cvxpy, and stacked training beside single problems",
        rows,
        options.json,
    )


if __name__ == "__main__":
    main()
