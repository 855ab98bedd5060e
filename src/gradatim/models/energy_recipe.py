"""How an energy is trained to be descended: predictions by unrolled steps, a supervised loss on them.

"Energy-Based Transformers are Scalable Learners and Thinkers" (Gladstone et al. 2025, arXiv 2507.02092). The
energy itself gets no target. It is shaped by the loss of where a few steps down it lead:

    y_{i+1} = y_i + eta_i - a dE/dy(y_i + eta_i),   loss J(y_n, target), differentiated through the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradatim.optim.energy_descent import EnergyFunction, minimize_energy

MIN_STEP_SIZE = 1e-4
"""A learned step size is kept at or above this."""


class ExtrapolatedStepsWarning(UserWarning):
    """More steps were asked for than training took: the energy goes on falling, the answer may get worse."""


@dataclass(frozen=True)
class EnergyRecipe:
    """The switches of training by unrolled descent.

    Args:
        step_size: alpha, at the start where it is learned.
        num_steps: steps of an answer, and of training without a range.
        num_steps_range: in training the number is drawn for each batch, uniformly, both ends included.
        learn_step_size: alpha is a parameter, kept at or above 1e-4.
        step_size_jitter: r; in training every item's step size is uniform on [alpha / r, r alpha]. 1: none.
        langevin_noise_std: of eta, before every step in training.
        truncate: only the last step is differentiated (with `loss_on="all"`, every step by itself).
        loss_on: "last", or "all": the mean over the losses after each step.

    `system1(...)` and `system2(...)` are the paper's two: one for scaling (a learned step size, losses on all
    of a fixed number of steps), one for thinking longer at inference (random numbers of steps of random
    size, with noise where asked for, the loss on the last).

    Raises ValueError for what cannot be: no steps, an empty range, a step size not above 0, jitter below 1,
    negative noise, an unknown `loss_on`.
    """

    step_size: float
    num_steps: int = 3
    num_steps_range: tuple[int, int] | None = None
    learn_step_size: bool = False
    step_size_jitter: float = 1.0
    langevin_noise_std: float = 0.0
    truncate: bool = True
    loss_on: str = "last"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        low, high = self.trained_steps
        if not 1 <= low <= high:
            raise ValueError(f"num_steps_range must hold 1 <= low <= high, got {self.num_steps_range}")
        if not self.step_size > 0:
            raise ValueError(f"step_size must be above 0, got {self.step_size}")
        if not self.step_size_jitter >= 1:
            raise ValueError(
                f"step_size_jitter must be at least 1 (1: no jitter), got {self.step_size_jitter}"
            )
        if not self.langevin_noise_std >= 0:
            raise ValueError(f"langevin_noise_std must not be negative, got {self.langevin_noise_std}")
        if self.loss_on not in ("last", "all"):
            raise ValueError(f"loss_on must be 'last' or 'all', got {self.loss_on!r}")

    @classmethod
    def system1(cls, step_size: float, **changes: Any) -> EnergyRecipe:
        """Two steps, each with a loss of its own; alpha is learned."""
        return replace(cls(step_size, num_steps=2, learn_step_size=True, loss_on="all"), **changes)

    @classmethod
    def system2(cls, step_size: float, **changes: Any) -> EnergyRecipe:
        """Two or three steps of a fixed alpha times a random factor in [1/2, 2]; three in an answer."""
        return replace(cls(step_size, num_steps_range=(2, 3), step_size_jitter=2.0), **changes)

    @property
    def trained_steps(self) -> tuple[int, int]:
        """The fewest and the most steps of training."""
        return self.num_steps_range or (self.num_steps, self.num_steps)


@dataclass(frozen=True)
class Unrolled:
    """What one training pass gives: the loss to differentiate, the last state, and the losses per step."""

    loss: Tensor
    y: Tensor
    step_losses: Tensor


def unrolled_loss(
    energy_fn: EnergyFunction,
    y0: Tensor,
    loss_fn: Callable[[Tensor], Tensor],
    recipe: EnergyRecipe,
    *,
    step_size: float | Tensor | None = None,
    num_steps: int | None = None,
    generator: torch.Generator | None = None,
) -> Unrolled:
    """One batch of training: draw the number of steps and their sizes, descend, judge.

    Args:
        energy_fn: [batch, ...] -> [batch], twice differentiable.
        y0: [batch, ...] where the descent starts.
        loss_fn: of a state, a scalar.
        step_size: in the recipe's place, as the parameter that is learned.
        num_steps: in place of the draw.
        generator: of all draws.
    """
    alpha = recipe.step_size if step_size is None else step_size
    low, high = recipe.trained_steps
    device = torch.device("cpu") if generator is None else generator.device
    if num_steps is None:
        num_steps = int(torch.randint(low, high + 1, (), generator=generator, device=device))
    r = recipe.step_size_jitter
    if r > 1:
        # One factor per item: one for the whole batch is known to diverge.
        share = torch.rand(len(y0), *(1,) * (y0.ndim - 1), generator=generator, device=device).to(y0.device)
        alpha = alpha * (1 / r + (r - 1 / r) * share)
    options: dict[str, Any] = {"step_size": alpha, "create_graph": True, "final_energy": False}
    options |= {"noise_std": recipe.langevin_noise_std, "generator": generator}
    if recipe.loss_on == "last":
        y = minimize_energy(energy_fn, y0, num_steps=num_steps, truncate=recipe.truncate, **options).y
        loss = loss_fn(y)
        return Unrolled(loss, y, loss.detach()[None])
    y, losses = y0, []
    for _ in range(num_steps):
        start = y.detach() if recipe.truncate else y
        y = minimize_energy(energy_fn, start, num_steps=1, **options).y
        losses.append(loss_fn(y))
    every = torch.stack(losses)
    return Unrolled(every.mean(), y, every.detach())


def parameter_groups(
    named_parameters: Any, step_size: Tensor | None, lr: float, weight_decay: float, multiplier: float
) -> list[dict[str, Any]]:
    """Two groups for an optimizer: the weights, and alpha with rate lr * multiplier and no weight decay."""
    weights = [p for _, p in named_parameters if p is not step_size and p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": lr, "weight_decay": weight_decay}]
    if step_size is not None and step_size.requires_grad:
        groups.append({"params": [step_size], "lr": lr * multiplier, "weight_decay": 0.0})
    return groups
