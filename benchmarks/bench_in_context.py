"""Training in-context learners: one large model beside the public code, and several small ones stacked.

    python benchmarks/bench_in_context.py --reference DIR      # DIR: a checkout of dtsip/in-context-learning

Both sides draw a batch of fresh linear-regression contexts and take one optimizer step on all positions, in
float32. Without `--reference` the peer is the same work written here around Hugging Face's GPT2Model.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch
from _timing import alternate, report, row
from torch import nn

from gradatim.bench.stacked import train_stacked
from gradatim.models import InContextConfig, InContextTransformer
from gradatim.tasks import LinearRegressionTask, context_generator

# The public code's own setting: 20 dimensions, 41 points, room for 101, Adam at 1e-4.
D, N, ROOM, LR = 20, 41, 101, 1e-4
SMALL = {"d": 3, "n_positions": 8, "n_layer": 4, "n_head": 2, "n_embd": 32, "tokens": "paired"}


class WrittenHere(nn.Module):
    """Read-in, GPT2Model, read-out: what the public code does, for those who have not fetched it."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2Model

        none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = GPT2Config(n_positions=2 * ROOM, n_embd=width, n_layer=layers, n_head=heads, **none)
        self.read_in, self.body, self.read_out = nn.Linear(D, width), GPT2Model(config), nn.Linear(width, 1)

    def forward(self, xs: torch.Tensor, ys: torch.Tensor) -> torch.Tensor:
        wide = torch.cat([ys[..., None], torch.zeros(*ys.shape, D - 1)], dim=2)
        tokens = torch.stack([xs, wide], dim=2).flatten(1, 2)
        hidden = self.body(inputs_embeds=self.read_in(tokens), use_cache=False).last_hidden_state
        return self.read_out(hidden)[:, ::2, 0]


def reference_step(folder: str | None, layers: int, width: int, heads: int, batch: int) -> Callable[[], None]:
    """One training step of the public code (or of the stand-in), its own samplers included."""
    if folder is None:
        model: nn.Module = WrittenHere(layers, width, heads)

        def sample() -> tuple[torch.Tensor, torch.Tensor]:
            xs = torch.randn(batch, N, D)
            return xs, (xs @ torch.randn(batch, D, 1))[:, :, 0]
    else:
        sys.path.insert(0, str(Path(folder) / "src"))
        # Its baselines import a package that the transformer does not need.
        sys.modules.setdefault("xgboost", types.ModuleType("xgboost"))
        from samplers import get_data_sampler

        from models import TransformerModel
        from tasks import get_task_sampler

        model = TransformerModel(n_dims=D, n_positions=ROOM, n_embd=width, n_layer=layers, n_head=heads)
        points = get_data_sampler("gaussian", n_dims=D)
        tasks = get_task_sampler("linear_regression", D, batch)

        def sample() -> tuple[torch.Tensor, torch.Tensor]:
            xs = points.sample_xs(N, batch, D)
            return xs, tasks().evaluate(xs)

    optimizer = torch.optim.Adam(model.parameters(), lr=LR)

    def step() -> None:
        xs, ys = sample()
        optimizer.zero_grad()
        (ys - model(xs, ys)).square().mean().backward()
        optimizer.step()

    return step


def our_step(layers: int, width: int, heads: int, batch: int, half: bool = False) -> Callable[[], None]:
    """The same step with our learner and task."""
    config = InContextConfig(
        d=D, n_positions=ROOM, n_layer=layers, n_embd=width, n_head=heads, y_column="shared"
    )
    model, task = InContextTransformer(config, seed=0).train(), LinearRegressionTask(D, N)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        drawn = task.sample(batch, generator=generator)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(drawn.x, drawn.y, labels=drawn.y).loss
        loss.backward()
        optimizer.step()

    return step


def stacked(count: int, batch: int, steps: int, engine: str) -> Callable[[], object]:
    """Train `count` small models for some steps."""
    config, task = InContextConfig(**SMALL), LinearRegressionTask(SMALL["d"], SMALL["n_positions"])

    def draw(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = [task.sample(batch, generator=context_generator(s, step)) for s in range(count)]
        return torch.stack([b.x for b in drawn]), torch.stack([b.y for b in drawn])

    def run() -> object:
        return train_stacked(
            lambda seed: InContextTransformer(config, seed=seed),
            draw, seeds=range(count), steps=steps, lr=1e-3, engine=engine,
        )  # fmt: skip

    return run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", help="a checkout of dtsip/in-context-learning")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60, help="of the stacked runs")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    sizes = (args.layers, args.width, args.heads, args.batch)
    peer = "dtsip/in-context-learning" if args.reference else "GPT2Model, written here"
    seconds = alternate(
        {
            "ours": our_step(*sizes),
            "ours, bfloat16": our_step(*sizes, half=True),
            peer: reference_step(args.reference, *sizes),
        },
        args.repeats,
        clock=args.clock,
    )
    case = f"step {args.layers}/{args.width}/{args.heads}, batch {args.batch}"
    rows = [
        row(case, seconds, "ours", peer, ">= 1.5x"),
        row(f"{case}, ours in bfloat16", seconds, "ours, bfloat16", peer, "-"),
    ]
    for batch in (8, 16, 64):
        seconds = alternate(
            {
                "4 stacked": stacked(4, batch, args.steps, "vmap"),
                "1 alone": stacked(1, batch, args.steps, "loop"),
                "4 in turn": stacked(4, batch, args.steps, "loop"),
            },
            args.repeats,
            clock=args.clock,
        )
        small = f"4/32/2, n = 8, batch {batch}"
        target = ">= 0.45x (4 for 2.2 times 1)" if batch <= 16 else "-"
        rows.append(row(f"4 seeds beside 1, {small}", seconds, "4 stacked", "1 alone", target))
        rows.append(row(f"4 seeds beside 4 runs, {small}", seconds, "4 stacked", "4 in turn", "-"))
    report("in_context", "training in-context learners", rows, args.json)


if __name__ == "__main__":
    main()
