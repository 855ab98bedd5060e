"""Study 04, part (c): tasks in a row, learned by a continuum memory and its controls.

A network of three memory levels x + W1 relu(W2 x) and a linear head reads the 64 pixels of scikit-learn's
digits; task 1 shows them as they are, the others under a fixed permutation each; `nested_learning_classes`
gives intents, class by class. All seeds of an arm run as one stack: a seed is a sample with a memory state of
its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gradatim.bench import Curve, Outcome, Scale
from gradatim.models.continuum_memory import ContinuumMemory
from gradatim.models.level_clocks import ContinuumState, LevelClocks, Values, advance

TASKS, WIDTH, CLASSES, TRAIN = 5, 64, 10, 1400
Anchor = tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    """[1797, 64] standardised by one mean and scale, and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(data.target)


class TaskStream(Protocol):
    """The tasks of one seed: how many, how wide, of how many classes, and their rows."""

    tasks: int
    width: int
    classes: int
    generator: torch.Generator

    def epoch(self, task: int) -> Tensor:
        """The task's training rows in a new order."""

    def example(self, task: int, k: int) -> Tensor:
        """One of its training rows."""

    def held(self, task: int) -> Tensor:
        """Its test rows."""

    def rows(self, task: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels of rows."""

    def replayed(self, before: int, count: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of earlier tasks."""


class Stream:
    """The tasks of one seed: a split of its own, permutations of its own, shuffled epochs."""

    tasks, width, classes = TASKS, WIDTH, CLASSES

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        x, y = digits()
        order = torch.randperm(len(x), generator=self.generator)
        self.train, self.test = order[:TRAIN], order[TRAIN:]
        self.x, self.y = x, y
        identity = torch.arange(WIDTH)
        self.permutations = [identity] + [
            torch.randperm(WIDTH, generator=self.generator) for _ in range(TASKS - 1)
        ]

    def epoch(self, task: int) -> Tensor:
        """The training rows in a new order."""
        return self.train[torch.randperm(TRAIN, generator=self.generator)]

    def example(self, task: int, k: int) -> Tensor:
        """The k-th training row."""
        return self.train[k : k + 1]

    def held(self, task: int) -> Tensor:
        """The test rows."""
        return self.test

    def rows(self, task: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels as task `task` shows them, and labels."""
        return self.x[rows][:, self.permutations[task]], self.y[rows]

    def replayed(self, before: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` random examples of the first `before` tasks, from 100 kept of each."""
        tasks = torch.randint(before, (count,), generator=self.generator)
        rows = self.train[torch.randint(100, (count,), generator=self.generator)]
        columns = torch.stack(self.permutations)[tasks]
        return self.x[rows].gather(1, columns), self.y[rows]


def run(settings: Mapping[str, Any], seeds: Sequence[int], scale: Scale) -> list[Outcome]:
    """Accuracy on every task after every task; their mean at the end, forgetting, plasticity."""
    return run_streams(settings, [Stream(seed) for seed in seeds], seeds, scale)


def run_streams(
    settings: Mapping[str, Any], streams: Sequence[TaskStream], seeds: Sequence[int], scale: Scale
) -> list[Outcome]:
    """The same on any tasks."""
    tasks, width = streams[0].tasks, streams[0].width
    memory = ContinuumMemory(
        width, settings["periods"], width, settings.get("kind_of", "sequential"), "relu", lr=settings["lr"],
        reduction=settings.get("reduction", "sum"), meta_rate=settings.get("meta_rate", 0.5),
    )  # fmt: skip
    state, head = _start(memory, seeds, width, streams[0].classes)
    mix = None if memory.mix is None else memory.mix.detach().repeat(len(seeds), 1).requires_grad_()
    rate = memory.clocks.lr[0]
    after = torch.zeros(tasks, tasks, len(seeds))  # [after task, on task, seed]
    anchors: list[Anchor] = []
    replay = settings.get("replay", False)
    for task in range(tasks):
        for _ in range(scale["epochs"]):
            orders = torch.stack([s.epoch(task) for s in streams])
            for rows in orders.split(scale["batch_size"], dim=1):
                x, y = _batch(streams, task, rows)
                if replay and task:
                    old = [s.replayed(task, rows.shape[1]) for s in streams]
                    x = torch.cat([x, torch.stack([o[0] for o in old])], 1)
                    y = torch.cat([y, torch.stack([o[1] for o in old])], 1)
                loss = _loss(memory, state, head, mix, x, y)
                state, (head, mix) = _step(memory, state, loss, head, mix, rate)
                if anchors:
                    _pull_back(state, head, anchors, rate * settings["ewc"])
        if settings.get("ewc"):
            anchors = _anchored(memory, state, head, streams, task, anchors, scale["fisher"])
        for on in range(tasks):
            x, y = _batch(streams, on, torch.stack([s.held(on) for s in streams]))
            with torch.no_grad():
                right = _logits(memory, state, head, mix, x).argmax(-1) == y
            after[task, on] = right.float().mean(1)
    return [_outcome(after[..., s]) for s in range(len(seeds))]


def _start(
    memory: ContinuumMemory, seeds: Sequence[int], width: int, classes: int
) -> tuple[ContinuumState, Tensor]:
    """First values drawn per seed, at the scale of `nn.Linear`'s own."""
    fast, heads = [], []
    draws = [torch.Generator().manual_seed(10_000_000 + seed) for seed in seeds]
    for level in memory.levels:
        fast.append(
            {
                name: torch.stack(
                    [(2 * torch.rand(p.shape, generator=g) - 1) * p.shape[1] ** -0.5 for g in draws]
                ).requires_grad_()
                for name, p in level.named_parameters()
            }
        )
    heads = [(2 * torch.rand(classes, width, generator=g) - 1) * width**-0.5 for g in draws]
    empty: tuple[Values, ...] = tuple({} for _ in fast)
    state = ContinuumState(tuple(fast), tuple(fast), empty, 0, per_sample=True)
    return state, torch.stack(heads).requires_grad_()


def _batch(streams: Sequence[TaskStream], task: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """[seed, batch, 64] and [seed, batch]."""
    drawn = [stream.rows(task, r) for stream, r in zip(streams, rows, strict=True)]
    return torch.stack([d[0] for d in drawn]), torch.stack([d[1] for d in drawn])


def _logits(
    memory: ContinuumMemory, state: ContinuumState, head: Tensor, mix: Tensor | None, x: Tensor
) -> Tensor:
    if mix is None:
        h = memory(x, state)
    else:  # every seed has its own mixing weights
        answers = [memory._level(i, x, state) for i in range(len(memory.levels))]
        h = torch.einsum("sl,lsbd->sbd", mix, torch.stack(answers))
    return h @ head.mT


def _loss(
    memory: ContinuumMemory,
    state: ContinuumState,
    head: Tensor,
    mix: Tensor | None,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """Mean over the batch, summed over seeds: each state sees its own loss alone."""
    logits = _logits(memory, state, head, mix, x)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]


def _step(
    memory: ContinuumMemory,
    state: ContinuumState,
    loss: Tensor,
    head: Tensor,
    mix: Tensor | None,
    rate: float,
) -> tuple[ContinuumState, tuple[Tensor, Tensor | None]]:
    names = [(i, n) for i, values in enumerate(state.fast) for n in values]
    own = [head] if mix is None else [head, mix]
    found = torch.autograd.grad(loss, [*(state.fast[i][n] for i, n in names), *own])
    gradients: list[dict[str, Tensor]] = [{} for _ in state.fast]
    for (i, name), gradient in zip(names, found, strict=False):
        gradients[i][name] = gradient
    with torch.no_grad():
        state = advance(memory.clocks, state, gradients).detach()
        moved = [p - rate * g for p, g in zip(own, found[len(names) :], strict=True)]
    head, *rest = (p.detach().requires_grad_() for p in moved)
    return state, (head, rest[0] if rest else None)


def _anchored(
    memory: ContinuumMemory,
    state: ContinuumState,
    head: Tensor,
    streams: Sequence[TaskStream],
    task: int,
    anchors: Sequence[Anchor],
    examples: int,
) -> list[Anchor]:
    """(sum of F, sum of F theta*) over the tasks so far, for every tensor.

    F is the mean squared gradient of the log-likelihood at sampled labels, over some examples of a task.
    """
    held = [*_tensors(state), head]
    fisher = [torch.zeros_like(v) for v in held]
    for k in range(examples):
        x, _ = _batch(streams, task, torch.stack([s.example(task, k) for s in streams]))
        logits = _logits(memory, state, head, None, x)
        drawn = [
            torch.multinomial(p.softmax(-1), 1, generator=s.generator)[:, 0]
            for p, s in zip(logits.detach(), streams, strict=True)
        ]
        loss = F.cross_entropy(logits.flatten(0, 1), torch.cat(drawn), reduction="sum")
        for total, gradient in zip(fisher, torch.autograd.grad(loss, held), strict=True):
            total += gradient.square() / examples
    fresh = [(f, f * v.detach()) for f, v in zip(fisher, held, strict=True)]
    if not anchors:
        return fresh
    return [(f + g, a + b) for (f, a), (g, b) in zip(anchors, fresh, strict=True)]


@torch.no_grad()
def _pull_back(state: ContinuumState, head: Tensor, anchors: Sequence[Anchor], strength: float) -> None:
    """Elastic weight consolidation (2017, arXiv 1612.00796): the penalty sum of F (theta - theta*)^2 / 2.

    Its step is taken implicitly, theta <- (theta + s sum F theta*) / (1 + s sum F): an explicit one diverges
    where s F exceeds 2.
    """
    for v, (f, target) in zip([*_tensors(state), head], anchors, strict=True):
        v.copy_((v + strength * target) / (1 + strength * f))


def _tensors(state: ContinuumState) -> list[Tensor]:
    return [v for values in state.fast for v in values.values()]


def _outcome(after: Tensor) -> Outcome:
    """`after` [after task, on task] of one seed."""
    last, learned = after[-1], after.diagonal()
    count = len(after)
    best = torch.stack([after[i:, i].max() for i in range(count)])
    metrics = {
        "accuracy": float(last.mean()),
        "forgetting": float((best - last)[:-1].mean()),
        "plasticity": float(learned.mean()),
        "first_task": float(last[0]),
    }
    seen = [float(after[t, : t + 1].mean()) for t in range(count)]
    tasks = [float(t + 1) for t in range(count)]
    curves = {
        "seen": Curve(tasks, seen, "tasks learned", "accuracy on tasks so far"),
        "first": Curve(tasks, after[:, 0].tolist(), "tasks learned", "accuracy on the first task"),
    }
    return Outcome(metrics, curves)


def clocks_of(settings: Mapping[str, Any]) -> LevelClocks:
    """The clocks an arm runs with: for figures."""
    return LevelClocks.of(
        settings["periods"],
        settings["lr"],
        reduction=settings.get("reduction", "sum"),
        nested=settings.get("kind_of") == "nested",
    )
