"""Linear attention: training steps through C^T C beside a plain attention with an explicit (N+1) x N map.

Also: several queries of one context together beside one by one, and seeds stacked beside seeds in turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from _timing import alternate, report, row
from torch import nn

from gradatim.bench.stacked import train_stacked
from gradatim.models import LinearAttentionRegressor, LSAConfig
from gradatim.tasks import LinearRegressionTask

D = 10


class PlainAttention(nn.Module):
    """The same layers as one writes them first: queries, keys, values, and the map of all tokens."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        shape = (width, width)
        self.query, self.key, self.value, self.output = (nn.Parameter(torch.empty(shape)) for _ in range(4))

    def forward(self, x: torch.Tensor, y: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat(
            [torch.cat([x, query], 1), torch.cat([y, y.new_zeros(len(y), query.shape[1])], 1)[..., None]], -1
        )
        n = x.shape[1]
        for _ in range(self.layers):
            context = tokens[:, :n]
            scores = (tokens @ self.query) @ (context @ self.key).mT  # [batch, n + q, n]
            tokens = tokens + scores @ (context @ self.value) @ self.output
        return -tokens[:, n:, -1]


def pair(layers: int) -> tuple[LinearAttentionRegressor, PlainAttention]:
    """Two models with the same weights."""
    ours = LinearAttentionRegressor(LSAConfig(d=D, num_layers=layers), torch.Generator().manual_seed(0))
    plain = PlainAttention(D + 1, layers)
    with torch.no_grad():
        for name in ("query", "key", "value", "output"):
            getattr(plain, name).copy_(getattr(ours.layers[0], name)[0])
    return ours, plain


def stepper(
    model: nn.Module, answer: Callable[[], torch.Tensor], label: torch.Tensor, steps: int
) -> Callable[[], None]:
    """`steps` training steps on given contexts: forward, backward, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)

    def run() -> None:
        for _ in range(steps):
            loss = 0.5 * (answer() - label).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def training(layers: int, n: int, batch: int, queries: int, repeats: int) -> dict[str, object]:
    """One case: both must agree before they are timed."""
    drawn = LinearRegressionTask(D, n + queries, x="uniform").sample(
        batch, generator=torch.Generator().manual_seed(1)
    )
    x, y, query, label = drawn.x[:, :n], drawn.y[:, :n], drawn.x[:, n:], drawn.y[:, n:]
    ours, plain = pair(layers)
    torch.testing.assert_close(ours(x, y, query=query).predictions, plain(x, y, query), rtol=1e-4, atol=1e-5)
    steps = max(2, 40_000 // (batch * layers))
    seconds = alternate(
        {
            "gram": stepper(ours, lambda: ours(x, y, query=query).predictions, label, steps),
            "map": stepper(plain, lambda: plain(x, y, query), label, steps),
        },
        repeats=repeats,
    )
    case = f"train {layers} layer(s), N = {n}, {queries} quer{'y' if queries == 1 else 'ies'}, batch {batch}"
    return row(case, seconds, "gram", "map", "> 1 for N > d")


def stacking(seeds: int, batch: int, steps: int, repeats: int) -> dict[str, object]:
    """The study's training of several seeds, stacked and one after the other."""
    task = LinearRegressionTask(D, 11, x="uniform")
    drawn = task.sample(batch, generator=torch.Generator().manual_seed(1))
    one = (drawn.x[:, :-1], drawn.y[:, :-1], drawn.x[:, -1:], drawn.y[:, -1:])

    def loss(
        model: Callable[..., object], x: object, y: object, query: object, label: object
    ) -> torch.Tensor:
        return model(x, y, labels=label, query=query).loss  # type: ignore[attr-defined]

    def train(how_many: int) -> None:
        models = [
            LinearAttentionRegressor(LSAConfig(d=D), torch.Generator().manual_seed(s))
            for s in range(how_many)
        ]
        data = tuple(part.expand(how_many, *part.shape) for part in one)
        train_stacked(models, lambda step: data, loss, steps=steps, lr=1e-3)

    def in_turn() -> None:
        for _ in range(seeds):
            train(1)

    seconds = alternate({"stacked": lambda: train(seeds), "in turn": in_turn}, repeats=repeats)
    return row(f"{seeds} seeds, batch {batch}", seconds, "stacked", "in turn", "> 1")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = [
        training(layers, n, batch, queries, options.repeats)
        for layers, n, batch, queries in (
            (1, 10, 512, 1), (2, 10, 512, 1), (1, 40, 512, 1), (1, 100, 512, 1), (2, 100, 512, 1),
            (1, 100, 128, 100),
        )
    ]  # fmt: skip
    rows.append(stacking(5, 128, 60, options.repeats))
    report("linear_attention", "training through C^T C beside an explicit attention map", rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
