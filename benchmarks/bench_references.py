"""The spectral sweep over reference algorithms, beside one fit per prefix and setting.

Sizes of the in-context studies: contexts of 41 pairs, 20 inputs wide; Newton at 0 .. 22 steps and gradient
descent at 1, 50, 100 .. 1300 steps, as the heat maps of Fu et al. need them. Every peer answers every prefix
of every context: scikit-learn's Ridge fitted one prefix at a time, Newton and gradient descent step by step,
started anew for every step count, and one batched `torch.linalg.lstsq` per prefix. Their answers are compared
with ours on what was timed ("off": largest difference, relative above 1). A loop too slow to finish is timed
on the first few contexts and scaled up to all.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from _timing import alternate, report, row
from sklearn.linear_model import Ridge as SklearnRidge
from torch import Tensor

from gradatim.probes import GradientDescent, IterativeNewton, LeastSquares, Predictor, Ridge, sweep
from gradatim.tasks import LinearRegressionTask

ALPHAS = (1 / 16, 1 / 9, 1 / 4, 4 / 9, 1.0)
NEWTON = tuple(range(23))
GD = (1, *range(50, 1301, 50))
RATE = 0.01
Solve = Callable[[Tensor, Tensor], Tensor]


def by_prefix(solve: Solve, x: Tensor, y: Tensor) -> Tensor:
    """`solve(X, y) -> w` fitted anew to every prefix of every context."""
    out = torch.zeros_like(y)
    for b in range(len(x)):
        for t in range(1, x.shape[1]):
            out[b, t] = x[b, t] @ solve(x[b, :t], y[b, :t])
    return out


def newton(steps: int) -> Solve:
    """Newton-Schulz on one prefix, as its formula has it."""

    def solve(x: Tensor, y: Tensor) -> Tensor:
        s = x.T @ x
        m = s / torch.linalg.norm(s @ s.T)
        for _ in range(steps):
            m = 2 * m - m @ s @ m
        return m @ (x.T @ y)

    return solve


def descent(steps: int) -> Solve:
    """Gradient descent on one prefix."""

    def solve(x: Tensor, y: Tensor) -> Tensor:
        s, b = x.T @ x, x.T @ y
        w = torch.zeros_like(b)
        for _ in range(steps):
            w = w - RATE * (s @ w - b)
        return w

    return solve


def sklearn_ridge(alpha: float) -> Solve:
    """scikit-learn's estimator on one prefix."""

    def solve(x: Tensor, y: Tensor) -> Tensor:
        fitted = SklearnRidge(alpha, fit_intercept=False).fit(x.numpy(), y.numpy())
        return torch.from_numpy(np.asarray(fitted.coef_))

    return solve


def lstsq(x: Tensor, y: Tensor) -> Tensor:
    """One batched call per prefix."""
    out = torch.zeros_like(y)
    for t in range(1, x.shape[1]):
        w = torch.linalg.lstsq(x[:, :t], y[:, :t, None], driver="gelsd").solution[..., 0]
        out[:, t] = (w * x[:, t]).sum(-1)
    return out


def compare(
    case: str,
    ours: Sequence[Predictor],
    peers: Sequence[Solve] | None,
    peer: str,
    x: Tensor,
    y: Tensor,
    part: int,
    repeats: int,
    target: str,
) -> dict[str, Any]:
    """One row: ours on all contexts, the peer on `part` of them and scaled up."""
    few_x, few_y = x[:part], y[:part]

    def loops() -> Tensor:
        if peers is None:
            return lstsq(few_x, few_y)[None]
        return torch.stack([by_prefix(solve, few_x, few_y) for solve in peers])

    seconds = alternate({"sweep": lambda: sweep(ours, x, y), peer: loops}, repeats, warmup=0)
    scale = len(x) / part
    seconds[peer] = [s * scale for s in seconds[peer]]
    # Next to t = d least squares magnifies rounding by the condition number, in both.
    gap = (sweep(ours, few_x, few_y) - loops()).abs() / loops().abs().clamp(min=1)
    return row(f"{case}, {len(ours)} settings, off {float(gap.max()):.0e}", seconds, "sweep", peer, target)


def main(argv: Sequence[str] | None = None) -> None:
    """Time the sweep beside loops; print a table and, with --json, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    def draw(d: int, pairs: int, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
        task = LinearRegressionTask(d, pairs, sigma=sigma)
        drawn = task.sample(args.contexts, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return drawn.x, drawn.y

    x, y = draw(20, 41)
    noisy_x, noisy_y = draw(8, 40, sigma=0.5)
    r = args.repeats
    ridges, newtons = [Ridge(a) for a in ALPHAS], [IterativeNewton(k) for k in NEWTON]
    descents = [GradientDescent(k, RATE) for k in GD]
    whole = len(x)
    few = min(8, whole)
    rows = [
        compare(
            "ridge d=8 n=40", ridges, [sklearn_ridge(a) for a in ALPHAS], "scikit-learn Ridge, one at a time",
            noisy_x, noisy_y, min(32, whole), r, ">= 50x",
        ),
        compare(
            "ridge d=20 n=41", ridges, [sklearn_ridge(a) for a in ALPHAS],
            "scikit-learn Ridge, one at a time", x, y, min(32, whole), r, ">= 50x",
        ),
        compare(
            "Newton d=20 n=41", newtons, [newton(k) for k in NEWTON], "step by step", x, y, few, r, ">= 50x"
        ),
        compare("GD d=20 n=41", descents, [descent(k) for k in GD], "step by step", x, y, 1, r, ">= 500x"),
        compare("OLS d=8 n=40", [LeastSquares()], None, "torch.linalg.lstsq per prefix", noisy_x, noisy_y,
                whole, r, "no slower"),
    ]  # fmt: skip
    everything = [*newtons, *descents, LeastSquares()]
    together = alternate({"sweep": lambda: sweep(everything, x, y)}, r)["sweep"]
    print(f"all {len(everything)} settings, {whole} contexts: {statistics.median(together):.2f} s")
    report(
        "references",
        f"spectral sweep of {whole} contexts, every prefix, beside fits per prefix and setting",
        rows,
        args.json,
    )


if __name__ == "__main__":
    main()
