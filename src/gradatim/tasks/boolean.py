"""Boolean tasks for in-context learners: prompts of inputs and labels, one fresh function per prompt.

Bhattamishra, Patel, Blunsom, Kanade, "Understanding In-Context Learning in Transformers and LLMs by Learning
to Learn Discrete Functions" (2023, arXiv 2310.03016).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradatim.tasks.boolean_functions import (
    BOOLEAN_CLASSES,
    BooleanClass,
    BooleanFunctions,
    draw_functions,
    draw_inputs,
    plant,
)
from gradatim.tasks.boolean_teaching import TAUGHT_CLASSES, permuted_prefix, teaching_sequence
from gradatim.tasks.contexts import ICLBatch, context_generator
from gradatim.tasks.nearest_neighbour import nearest_neighbour_labels

BOOLEAN_TASKS = (*BOOLEAN_CLASSES, "nearest_neighbour")


@dataclass(frozen=True)
class Prompt(ICLBatch):
    """Contexts of a Boolean task: x [batch, n, d] and y [batch, n] of -1 and +1.

    `w` holds the weights of the functions, [batch, d] or [batch, terms, d]. The first `teach_len` points of a
    prompt are not to be scored: a teaching sequence, the points that stand in its place, or the random labels
    at the start of a nearest-neighbour prompt. `clean` are the labels before noise. `functions` labels other
    inputs; it is None for nearest-neighbour prompts.
    """

    w: Float[Tensor, "batch *terms d"] | None = None
    teach_len: Int[Tensor, " batch"] | None = None
    clean: Float[Tensor, "batch n"] | None = None
    functions: BooleanFunctions | None = None

    @property
    def scored(self) -> Bool[Tensor, "batch m"]:
        """Which positions a measure should count: those after `teach_len`."""
        position = torch.arange(self.x.shape[1], device=self.x.device)
        if self.teach_len is None:
            return torch.ones(self.y.shape, dtype=torch.bool, device=self.x.device)
        return position >= self.teach_len[:, None]

    def after(self, points: int) -> Bool[Tensor, "batch m"]:
        """The mask of the first `points` positions after `teach_len`."""
        start = torch.zeros(len(self), dtype=torch.long) if self.teach_len is None else self.teach_len
        position = torch.arange(self.x.shape[1], device=self.x.device)
        return self.scored & (position < start.to(self.x.device)[:, None] + points)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Prompt:
        """The same prompts elsewhere or in another precision."""
        moved = cast(Prompt, super().to(device, dtype))
        return replace(
            moved,
            teach_len=None if self.teach_len is None else self.teach_len.to(device),
            clean=None if self.clean is None else self.clean.to(device, dtype),
            functions=None if self.functions is None else self.functions.to(device, dtype),
        )


@dataclass(frozen=True)
class BooleanTask:
    """Prompts of `n` points in d bits, each labelled by its own function of one class (`BOOLEAN_TASKS`).

    - `k`: the exact number of bits of sparse_parity (2) or of literals of sparse_disjunction (4).
    - `prior`: probabilities of (0, +1, -1) per weight instead of the class's own.
    - `planted`: share of inputs made to satisfy a term or to falsify a clause; None is the class's own share.
      Planted inputs tell about the function even without labels. `plant_per_point` draws the planted term for
      every input; otherwise one term is planted in the whole prompt, as in the paper's code, and the other
      terms hardly ever matter.
    - `teaching`: True, or the share of prompts that begin with the teaching sequence; `mix` says whether the
      coin is tossed for each prompt or once per batch. `prefix` replaces the sequence by its controls:
      "permuted" shows it in random order, "random" as many ordinary points. The three kinds of prompts agree
      in everything else for the same generator state.
    - `noise`: probability with which a label is flipped, in the context and as a target.
    - `x_prob`: probability that a bit is set (0.5; others shift the inputs' distribution).
    - `start_idx`: how many random labels begin a nearest-neighbour prompt.
    - `pool`: draw this many distinct functions once, from `pool_seed`, and use no others; `fixed_inputs`
      keeps the inputs of each, too. `held_out()` gives the task of all functions outside the pool.

    Raises ValueError for settings that contradict one another or the class.
    """

    d: int
    name: str = "conjunction"
    n: int = 40
    k: int | None = None
    prior: tuple[float, float, float] | None = None
    planted: float | None = None
    plant_per_point: bool = False
    teaching: bool | float = False
    prefix: str = "teaching"
    mix: str = "prompt"
    noise: float = 0.0
    x_prob: float = 0.5
    start_idx: int = 20
    pool: int = 0
    pool_seed: int = 0
    fixed_inputs: bool = False
    outside_pool: bool = False

    def __post_init__(self) -> None:
        if self.name not in BOOLEAN_TASKS:
            raise ValueError(f"no Boolean task {self.name!r}; there are {', '.join(BOOLEAN_TASKS)}")
        if self.d < 1 or self.n < 1:
            raise ValueError(f"need at least one bit and one point, got d={self.d} and n={self.n}")
        for setting in ("planted", "teaching", "noise", "x_prob"):
            value = getattr(self, setting)
            if value is not None and not 0 <= float(value) <= 1:
                raise ValueError(f"{setting} is a probability, got {value}")
        if self.prior is not None and (min(self.prior) < 0 or abs(sum(self.prior) - 1) > 1e-6):
            raise ValueError(f"prior holds probabilities of (0, +1, -1) that sum to 1, got {self.prior}")
        if self.prefix not in ("teaching", "permuted", "random"):
            raise ValueError(f'prefix must be "teaching", "permuted" or "random", got {self.prefix!r}')
        if self.mix not in ("prompt", "batch"):
            raise ValueError(f'mix must be "prompt" or "batch", got {self.mix!r}')
        if self.teaching and self.name not in TAUGHT_CLASSES:
            known = ", ".join(TAUGHT_CLASSES)
            raise ValueError(f"no teaching sequence for {self.name}; there is one for {known}")
        if (
            self.teaching
            and self.prior is not None
            and self.name.startswith("monotone")
            and self.prior[2] > 0
        ):
            raise ValueError(f"{self.name} has no negated literals, got prior {self.prior}")
        if self.name == "nearest_neighbour":
            if not 1 <= self.start_idx < self.n:
                raise ValueError(
                    f"start_idx must lie in 1..{self.n - 1} for {self.n} points, got {self.start_idx}"
                )
            if self.pool or self.prior or self.k or self.planted:
                raise ValueError("nearest_neighbour draws no functions: it has no pool, prior, k or planted")
            return
        kind = self.kind
        if self.k is not None and BOOLEAN_CLASSES[self.name].k is None:
            raise ValueError(f"k is for sparse_parity and sparse_disjunction, not for {self.name}")
        if kind.k is not None and not 1 <= kind.k <= self.d:
            raise ValueError(f"k must lie in 1..d={self.d}, got {kind.k}")
        if self.prior is not None and (kind.k is not None or kind.integers is not None):
            raise ValueError(f"{self.name} does not draw its weights from a prior")
        if self.planted and kind.rule not in ("dnf", "cnf"):
            raise ValueError(f"{self.name} has no literals to plant, got planted={self.planted}")
        if self.pool < 0 or ((self.fixed_inputs or self.outside_pool) and not self.pool):
            raise ValueError("fixed_inputs and outside_pool need a pool of at least one function")
        if self.fixed_inputs and self.outside_pool:
            raise ValueError("functions outside the pool have no fixed inputs")

    @property
    def kind(self) -> BooleanClass:
        """How functions are drawn, with this task's own settings in the class's place."""
        kind = BOOLEAN_CLASSES[self.name]
        return replace(kind, k=self.k or kind.k, prior=self.prior or kind.prior)

    @property
    def planted_share(self) -> float:
        """The share of planted inputs."""
        if self.planted is not None:
            return self.planted
        if self.name == "nearest_neighbour":
            return 0.0
        kind = BOOLEAN_CLASSES[self.name]
        return kind.planted_taught if self.teaching else kind.planted

    @cached_property
    def functions(self) -> BooleanFunctions | None:
        """The pool of functions, or None where every prompt draws a new one."""
        if not self.pool:
            return None
        generator = context_generator(self.pool_seed)
        found = draw_functions(self.kind, self.d, 1, generator)
        for _ in range(1000):
            more = draw_functions(self.kind, self.d, self.pool, generator)
            new = _distinct(more)
            new = new[torch.nonzero(~new.matches(found))[:, 0]]
            w, bias = torch.cat([found.w, new.w]), torch.cat([found.bias, new.bias])
            found = BooleanFunctions(found.rule, w[: self.pool], bias[: self.pool])
            if len(found) == self.pool:
                return found
        raise ValueError(
            f"{self.name} on {self.d} bits yielded only {len(found)} distinct functions, not {self.pool}"
        )

    @cached_property
    def _pool_inputs(self) -> Tensor:
        generator = context_generator(self.pool_seed, 1)
        assert self.functions is not None
        bits = draw_inputs(self.pool, self.n, self.d, generator, self.x_prob)
        return plant(_signs(bits), self.functions, self.planted_share, generator, self.plant_per_point)

    def held_out(self) -> BooleanTask:
        """The same task with every function but those of the pool."""
        return replace(self, outside_pool=True, fixed_inputs=False)

    def sample(
        self,
        batch: int,
        points: int | None = None,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Prompt:
        """`batch` fresh prompts of `points` (default: n) pairs.

        Raises ValueError where a teaching sequence leaves no point to score, naming the prompt, and where no
        function outside the pool is found; TypeError for a dtype that is not floating.
        """
        m = self.n if points is None else points
        if batch < 1 or m < 1:
            raise ValueError(f"need at least one prompt and one point, got {batch} and {m}")
        if not dtype.is_floating_point:
            raise TypeError(f"prompts are floating-point numbers, got {dtype}; cast them after drawing")
        if self.name == "nearest_neighbour":
            drawn = self._nearest_neighbour(batch, m, generator)
        else:
            drawn = self._prompts(batch, m, generator)
        return drawn.to(device, dtype)

    def _prompts(self, batch: int, m: int, generator: torch.Generator | None) -> Prompt:
        functions, index = self._draw(batch, generator)
        if self.fixed_inputs:
            if m > self.n:
                raise ValueError(f"the pool holds {self.n} inputs per function, got points={m}")
            x = self._pool_inputs[index, :m].to(functions.w.device)
        else:
            x = _signs(draw_inputs(batch, m, self.d, generator, self.x_prob))
            if self.planted_share:
                x = plant(x, functions, self.planted_share, generator, self.plant_per_point)
        flips = _coins((batch, m), self.noise, generator)
        teach_len = torch.zeros(batch, dtype=torch.long, device=x.device)
        if self.teaching:
            taught = _coins((batch if self.mix == "prompt" else 1,), float(self.teaching), generator)
            x, teach_len = self._taught(x, functions, taught.expand(batch), generator)
        clean = functions(x)
        w = functions.w if functions.w.shape[1] > 1 else functions.w[:, 0]
        return Prompt(x, torch.where(flips, -clean, clean), w, teach_len, clean, functions)

    def _taught(
        self, x: Tensor, functions: BooleanFunctions, taught: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        m = x.shape[1]
        points, length = teaching_sequence(self.name, functions)
        teach_len = length * taught
        if bool((teach_len >= m).any()):
            worst = int(teach_len.argmax())
            raise ValueError(
                f"the teaching sequence of prompt {worst} has {int(teach_len[worst])} points and leaves none"
                f" of the {m} to score; use more points"
            )
        if self.prefix != "random":
            ahead = torch.zeros_like(x)
            ahead[:, : points.shape[1]] = points[:, :m].to(x.dtype)
            x = torch.where((torch.arange(m, device=x.device) < teach_len[:, None])[..., None], ahead, x)
        if self.prefix == "permuted":
            x = permuted_prefix(x, teach_len, generator)
        return x, teach_len

    def _draw(self, batch: int, generator: torch.Generator | None) -> tuple[BooleanFunctions, Tensor]:
        """Functions of this batch and, where they come from the pool, their indices in it."""
        device = None if generator is None else generator.device
        pool = self.functions
        if pool is None:
            return draw_functions(self.kind, self.d, batch, generator), torch.empty(0, dtype=torch.long)
        pool = pool.to(device)
        if not self.outside_pool:
            index = torch.randint(self.pool, (batch,), generator=generator, device=device)
            return pool[index], index.cpu()
        found = draw_functions(self.kind, self.d, batch, generator)
        for _ in range(1000):
            known = found.matches(pool)
            if not bool(known.any()):
                return found, torch.empty(0, dtype=torch.long)
            fresh = draw_functions(self.kind, self.d, batch, generator)
            w = torch.where(known[:, None, None], fresh.w, found.w)
            found = BooleanFunctions(found.rule, w, torch.where(known, fresh.bias, found.bias))
        raise ValueError(f"no function of {self.name} on {self.d} bits found outside the pool of {self.pool}")

    def _nearest_neighbour(self, batch: int, m: int, generator: torch.Generator | None) -> Prompt:
        x = _signs(draw_inputs(batch, m, self.d, generator, self.x_prob))
        clean = nearest_neighbour_labels(x, self.start_idx, generator)
        flips = _coins((batch, m), self.noise, generator)
        start = torch.full((batch,), self.start_idx, device=x.device)
        return Prompt(x, torch.where(flips, -clean, clean), None, start, clean)


def _signs(bits: Tensor) -> Tensor:
    """-1 and +1 of bools."""
    return bits.float().mul_(2).sub_(1)


def _coins(shape: tuple[int, ...], probability: float, generator: torch.Generator | None) -> Tensor:
    device = None if generator is None else generator.device
    if probability in (0.0, 1.0):
        return torch.full(shape, bool(probability), device=device)
    return torch.rand(shape, generator=generator, device=device) < probability


def _distinct(functions: BooleanFunctions) -> BooleanFunctions:
    """Each function once, at its first place."""
    rows = torch.cat([functions.w.flatten(1), functions.bias[:, None]], 1)
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(rows)).scatter_reduce(
        0, group, torch.arange(len(rows)), "amin"
    )
    return functions[first.sort().values]
