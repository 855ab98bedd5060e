"""Attention as an SVM: our solvers beside cvxpy's, and stacked training beside one problem at a time.

`--reference DIR` also times the solver of a checkout of umich-sota/TF-as-SVM, given by the user.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _timing import alternate, report, row

from gradatim.models import train_attention
from gradatim.probes import attention_svm, directional_alignment, selected_tokens, token_scores
from gradatim.tasks import random_instance, random_instances

SIZES = ((6, 8, 10), (10, 10, 20), (5, 10, 15))


def problem(size: tuple[int, int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, queries and the best token of every sequence."""
    p = random_instance(*size, seed)
    return p.x, p.z, selected_tokens(token_scores(p.x, p.v, p.y))


def solver_rows(norm: str, peers: dict[str, float], repeats: int, target: str) -> list[dict[str, Any]]:
    """Our solver beside each of cvxpy's; `peers` maps a solver to the tolerance of equal accuracy."""
    rows = []
    for size in SIZES:
        data = [problem(size, seed) for seed in range(3)]

        def every(
            solver: str = "auto", tol: float = 1e-7, data: list[Any] = data
        ) -> Callable[[], list[torch.Tensor]]:
            return lambda: [attention_svm(*d, norm=norm, solver=solver, tol=tol).weight for d in data]

        cases: dict[str, Callable[[], Any]] = {"ours": every()}
        cases |= {f"cvxpy {name}": every(name, tol) for name, tol in peers.items()}
        ours = [attention_svm(*d, norm=norm) for d in data]
        seconds = alternate(cases, repeats)
        for name, tol in peers.items():
            theirs = [attention_svm(*d, norm=norm, solver=name, tol=tol) for d in data]
            off = max(
                1 - float(directional_alignment(a.weight, b.weight))
                for a, b in zip(ours, theirs, strict=True)
            )
            gap = max(abs(a.objective / b.objective - 1) for a, b in zip(ours, theirs, strict=True))
            line = row(
                f"{norm} {size} (1-cos {off:.0e}, norm {gap:.0e})", seconds, "ours", f"cvxpy {name}", target
            )
            rows.append(line)
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
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--reference", type=Path, metavar="DIR")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="cvxpy")
    # Tolerances at which a peer is about as accurate as ours, shown in each row.
    rows = solver_rows("frobenius", {"osqp": 1e-8, "clarabel": 1e-8, "scs": 1e-8}, options.repeats, ">= 10x")
    rows += solver_rows("nuclear", {"scs": 1e-7, "clarabel": 1e-8}, options.repeats, ">= 1x")
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
