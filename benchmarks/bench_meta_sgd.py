"""Meta-gradients of a batch of tasks: all tasks at once, a loop over tasks, and the package `higher`.

    python benchmarks/bench_meta_sgd.py                    # beside a loop over tasks, written here
    python benchmarks/bench_meta_sgd.py --higher           # beside `higher` as well (pip install higher)

Every side computes the gradient of the same query loss in the initial weights and (Meta-SGD) the step sizes,
for the same tasks of 8 features, ten examples each, in float32; gradients are compared in float64 first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from _timing import alternate, report, row
from torch import Tensor, nn
from torch.func import functional_call

from gradatim.models import MetaSGD
from gradatim.tasks import ConceptGrammar, ConceptTasks, Tasks

FEATURES = 8


def network(widths: list[int], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    last = FEATURES
    for width in widths:
        layers += [nn.Linear(last, width), nn.ReLU()]
        last = width
    return nn.Sequential(*layers, nn.Linear(last, 1)).to(dtype)


def loop_over_tasks(meta: MetaSGD, tasks: Tasks) -> Tensor:
    """The meta-loss task by task, with autograd through the steps: no module is copied."""
    weights, rates = dict(meta.module.named_parameters()), meta.learning_rates()
    total = torch.zeros((), dtype=tasks.xs_s.dtype)
    for xs_s, ys_s, xs_q, ys_q in zip(tasks.xs_s, tasks.ys_s, tasks.xs_q, tasks.ys_q, strict=True):
        mine = weights
        for _ in range(meta.steps):
            outputs = functional_call(meta.module, mine, (xs_s,)).squeeze(-1)
            loss = F.binary_cross_entropy_with_logits(outputs, ys_s)
            grads = torch.autograd.grad(loss, list(mine.values()), create_graph=not meta.first_order)
            mine = {n: w - rates[n] * g for (n, w), g in zip(mine.items(), grads, strict=True)}
        outputs = functional_call(meta.module, mine, (xs_q,)).squeeze(-1)
        total = total + F.binary_cross_entropy_with_logits(outputs, ys_q)
    return total / len(tasks)


def with_higher(meta: MetaSGD, tasks: Tasks) -> Tensor:
    """MAML's meta-loss as `higher` has it: one patched copy and one differentiable optimizer per task.

    Its optimizer has one rate per parameter group, so this is compared with learn_lr="none".
    """
    import higher

    rate = float(next(iter(meta.learning_rates().values())))
    total = torch.zeros((), dtype=tasks.xs_s.dtype)
    plain = torch.optim.SGD(meta.module.parameters(), lr=rate)
    for xs_s, ys_s, xs_q, ys_q in zip(tasks.xs_s, tasks.ys_s, tasks.xs_q, tasks.ys_q, strict=True):
        with higher.innerloop_ctx(
            meta.module, plain, copy_initial_weights=False, track_higher_grads=not meta.first_order
        ) as (patched, inner):
            for _ in range(meta.steps):
                inner.step(F.binary_cross_entropy_with_logits(patched(xs_s).squeeze(-1), ys_s))
            outputs = patched(xs_q).squeeze(-1)
            total = total + F.binary_cross_entropy_with_logits(outputs, ys_q)
    return total / len(tasks)


def gradients(loss: Callable[[MetaSGD, Tasks], Tensor], meta: MetaSGD, tasks: Tasks) -> tuple[Tensor, ...]:
    trained = [p for p in meta.parameters() if p.requires_grad]
    return torch.autograd.grad(loss(meta, tasks), trained, allow_unused=True)


def ours(meta: MetaSGD, tasks: Tasks) -> Tensor:
    return meta.meta_loss(tasks)


def largest_difference(peer: Callable[[MetaSGD, Tasks], Tensor], meta: MetaSGD, tasks: Tasks) -> float:
    pairs = zip(gradients(ours, meta, tasks), gradients(peer, meta, tasks), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--higher", action="store_true", help="time the package `higher` beside ours")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--inner", type=int, default=5, help="meta-gradients per timed call")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 64, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    tasks = ConceptTasks(ConceptGrammar(FEATURES, 3), tasks=args.tasks).batch(0)
    exact = tasks.to(dtype=torch.float64)
    rows = []
    for steps in (1, 10):
        for first_order in (True, False):
            case = f"K = {steps}, {'first' if first_order else 'second'} order"
            peers: list[tuple[str, Callable[[MetaSGD, Tasks], Tensor], str]] = [
                ("loop over tasks", loop_over_tasks, "element")
            ]
            # Without tracked gradients `higher` gives none in the initial weights: no first-order form.
            if args.higher and not first_order:
                peers.append(("higher", with_higher, "none"))
            for peer, loss, learn_lr in peers:
                settings = {"lr": 0.1, "steps": steps, "first_order": first_order, "learn_lr": learn_lr}
                gap = largest_difference(
                    loss, MetaSGD(network(args.widths, torch.float64), **settings), exact
                )
                if not gap < 1e-6:
                    raise AssertionError(f"{case}: gradients differ from {peer} by {gap:.2e}")
                meta = MetaSGD(network(args.widths), **settings)
                general = MetaSGD(network(args.widths), engine="vmap", **settings)
                cases = {
                    "ours": lambda m=meta: [gradients(ours, m, tasks) for _ in range(args.inner)],
                    "ours, any module (vmap)": lambda m=general: [
                        gradients(ours, m, tasks) for _ in range(args.inner)
                    ],
                    peer: lambda m=meta, f=loss: [gradients(f, m, tasks) for _ in range(args.inner)],
                }
                seconds = alternate(cases, args.repeats, clock=args.clock)
                seconds = {name: [s / args.inner for s in each] for name, each in seconds.items()}
                rows.append(row(case, seconds, "ours", peer, ">= 4x"))
                rows.append(row(f"{case}, any module", seconds, "ours, any module (vmap)", peer, "-"))
                print(f"{case}: largest difference of gradients from {peer}: {gap:.1e}")
    wide = [256, 256, 256]
    for steps in (1, 3):
        for first_order in (True, False):
            settings = {"lr": 0.1, "steps": steps, "first_order": first_order, "learn_lr": "row"}
            thin = MetaSGD(network(wide, torch.float64), engine="low_rank", **settings)
            full = MetaSGD(network(wide, torch.float64), engine="stacked", **settings)
            pairs = zip(gradients(ours, thin, exact), gradients(ours, full, exact), strict=True)
            gap = max(float((a - b).abs().max()) for a, b in pairs)
            assert gap < 1e-9, f"thin products differ by {gap:.2e}"
            cases = {
                engine: partial(gradients, ours, MetaSGD(network(wide), engine=engine, **settings), tasks)
                for engine in ("low_rank", "stacked")
            }
            seconds = alternate(cases, args.repeats, clock=args.clock)
            case = f"K = {steps}, {'first' if first_order else 'second'} order, width {wide[0]}, rates by row"
            rows.append(row(case, seconds, "low_rank", "stacked", "> 1x"))
    report("meta_sgd", "meta-gradients of one batch of tasks", rows, args.json)


if __name__ == "__main__":
    main()
