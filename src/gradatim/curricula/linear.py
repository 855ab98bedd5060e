"""Weights that favour easy examples at first and fade linearly to equal weights.

With D(s) in [0, 1] how easy an example is (1 easy, 0 hard), i how far training has come and m where the
curriculum ends,

    W_i(s) = D(s) + (i / m) (1 - D(s))   for i < m,   1 from m on,   and   loss = mean_s W_i(s) L(s).

Source: Training Curricula for Open Domain Answer Re-Ranking, SIGIR 2020, arXiv 2004.14269.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Unit = Literal["iteration", "epoch", "step"]


@dataclass(frozen=True)
class LinearCurriculum:
    """The weight of an example by its difficulty and by how far training has come.

    It works with any loss given per example: `(losses * curriculum.weight(difficulty, position)).mean()`.

    Args:
        end: m, where all weights become 1, in `unit`s. 0 or less: the curriculum never ends and W = D.
        unit: what i counts. "iteration": blocks of `iteration_size` samples, as in the paper, so that weights
            change once a block; "epoch": passes over the data; "step": optimizer steps.
        iteration_size: samples per iteration; the paper's 32 batches of 16.
        anti: hard examples first, D replaced by 1 - D: the control of the method.
        smooth: added to D, so that no example has weight 0 and a batch always has some.
        normalize: divide by the mean weight of the call's batch. Early weights are below 1 on average, which
            shrinks SGD's steps (not Adam's); normalised, the curriculum only shifts weight between examples.

    Raises ValueError for an `end` that is no whole number, an unknown unit, an iteration_size below 1 or a
    negative or non-finite `smooth`.
    """

    end: int
    unit: Unit = "iteration"
    iteration_size: int = 512
    anti: bool = False
    smooth: int | float = 1e-8
    normalize: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.end, bool) or not isinstance(self.end, int):
            raise ValueError(
                f"end={self.end!r} is no whole number; give one, or 0 for a curriculum without end"
            )
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit={self.unit!r} is unknown; choose {', '.join(get_args(Unit))}")
        if isinstance(self.iteration_size, bool) or not isinstance(self.iteration_size, int):
            raise ValueError(f"iteration_size={self.iteration_size!r} is no whole number of samples")
        if self.iteration_size < 1:
            raise ValueError(f"iteration_size={self.iteration_size} must be at least 1 sample")
        if not (math.isfinite(self.smooth) and self.smooth >= 0):
            raise ValueError(f"smooth={self.smooth} must be a finite number of at least 0")

    def position(self, samples: int, steps: int, epochs: int | float) -> int | float:
        """The one of three counts that `weight` wants as `position`: samples, steps or epochs so far.

        Counts are over all processes: samples = steps x processes x batch per process x accumulation.
        """
        return {"iteration": samples, "step": steps, "epoch": epochs}[self.unit]

    def progress(self, position: int | float) -> float:
        """i / m in [0, 1], with i the completed units at `position`; 0 for a curriculum without end."""
        if position < 0:
            raise ValueError(f"position={position} is negative; count samples, steps or epochs from 0")
        if self.end <= 0:
            return 0.0
        # A trainer's epochs are sums of fractions: 0.9999999 is the second epoch's start.
        whole = math.floor(position + 1e-6)
        units = whole // self.iteration_size if self.unit == "iteration" else whole
        return min(units / self.end, 1.0)

    def weight(self, difficulty: Shaped[Tensor, "*batch"], position: int | float) -> Float[Tensor, "*batch"]:
        """W_i(s) for every D(s), as float32 at least and without gradient.

        `position` counts what `unit` says: samples for "iteration", steps for "step", epochs for "epoch".
        Raises ValueError, naming the row, for a D outside [0, 1].
        """
        easy = check_difficulty(difficulty).detach()
        if easy.dtype in (torch.float16, torch.bfloat16) or not easy.is_floating_point():
            easy = easy.float()
        progress = self.progress(position)
        if self.anti:
            easy = 1.0 - easy
        weight = (easy + self.smooth) * (1.0 - progress) + progress
        if self.normalize:
            mean = weight.mean()
            weight = weight / torch.where(mean > 0, mean, 1.0)
        return weight


def check_difficulty(difficulty: Tensor) -> Tensor:
    """The difficulties unchanged; raises ValueError that names the first row outside [0, 1]."""
    if torch.compiler.is_compiling():
        return difficulty
    sound = (difficulty >= 0) & (difficulty <= 1)
    if not bool(sound.all()):
        where = (~sound).nonzero()[0].tolist()
        value = difficulty[tuple(where)].item()
        row = where[0] if len(where) == 1 else where
        raise ValueError(f"difficulty {value} of row {row} lies outside [0, 1] (1 = easy, 0 = hard)")
    return difficulty
