"""Nested optimizers and memories: M3 beside Muon and AdamW; one product per due chunk beside many small ones.

    python benchmarks/bench_nested_optim.py [--width 512] [--repeats 7]

M3, Muon and AdamW step on the matrices of a Transformer's blocks with given gradients. The continuum memory
takes a stream in small chunks: slow levels multiply (input, delta) once per due chunk, or at every chunk.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _timing import alternate, report, row
from torch import nn

from gradatim.models import ContinuumMemory
from gradatim.optim import M3, DeltaMomentumSGD, newton_schulz
from gradatim.optim.newton_schulz import newton_schulz_many


def blocks(width: int, layers: int) -> list[nn.Parameter]:
    """The matrices of a Transformer's blocks: four square ones, one tall, one wide, per layer."""
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(s, generator=g)) for _ in range(layers) for s in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=g)
    return params


def stepper(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], width: int, layers: int
) -> Callable[[], None]:
    """Some steps of an optimizer of its own parameters."""
    optimizer = make(blocks(width, layers))

    def run() -> None:
        for _ in range(3):
            optimizer.step()

    return run


def streaming(width: int, chunk: int, rows: int, deferred: bool) -> Callable[[], None]:
    """A stream through three levels of periods (1, 16, 64) chunks, in place."""
    memory = ContinuumMemory(
        width, (1, 16, 64), 4 * width, lr=1e-6, deferred=deferred, generator=torch.Generator().manual_seed(0)
    )
    x = torch.randn(rows, chunk, width, generator=torch.Generator().manual_seed(1))

    def run() -> None:
        for part in x:
            memory.update(memory(part).square().mean())

    return run


def products(width: int, layers: int, together: bool) -> Callable[[], object]:
    """Newton-Schulz of all matrices, by shape or one by one."""
    matrices = [p.detach() for p in blocks(width, layers)]
    if together:
        return lambda: newton_schulz_many(matrices)
    return lambda: [newton_schulz(m) for m in matrices]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows = []
    for width in (64, args.width):
        sizes = (width, args.layers)
        seconds = alternate(
            {
                "M3": stepper(lambda p: M3(p, check_finite=False), *sizes),
                "M3, no slow memory": stepper(lambda p: M3(p, slow_weight=0.0, check_finite=False), *sizes),
                "delta momentum": stepper(lambda p: DeltaMomentumSGD(p, lr=0.1, check_finite=False), *sizes),
                "torch.optim.Muon": stepper(torch.optim.Muon, *sizes),
                "torch.optim.AdamW": stepper(torch.optim.AdamW, *sizes),
            },
            args.repeats,
            clock=args.clock,
        )
        case = f"width {width}, {args.layers} layers"
        rows += [
            row(f"M3, {case}", seconds, "M3", "torch.optim.Muon", ">= 0.75x"),
            row(f"M3, {case}", seconds, "M3", "torch.optim.AdamW", "-"),
            row(f"M3 without slow memory, {case}", seconds, "M3, no slow memory", "torch.optim.Muon", "-"),
            row(f"delta momentum, {case}", seconds, "delta momentum", "torch.optim.AdamW", "-"),
        ]
        seconds = alternate(
            {"by shape": products(*sizes, True), "one by one": products(*sizes, False)},
            args.repeats,
            clock=args.clock,
        )
        rows.append(row(f"Newton-Schulz, {case}", seconds, "by shape", "one by one", ">= 1x"))
    for chunk in (1, 4, 16):
        cases = {
            "one product per due chunk": streaming(args.width, chunk, 64, True),
            "one product per chunk": streaming(args.width, chunk, 64, False),
        }
        seconds = alternate(cases, args.repeats, clock=args.clock)
        rows.append(
            row(
                f"continuum memory, {chunk} tokens at a time",
                seconds,
                "one product per due chunk",
                "one product per chunk",
                ">= 1x",
            )
        )
    report(
        "nested_optim", "M3 beside Muon and AdamW; deferred products of the continuum memory", rows, args.json
    )


if __name__ == "__main__":
    main()
