"""How well predictions answer Boolean prompts: accuracy by position, its band, what to print beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class PromptScores:
    """Accuracy of one learner on a batch of prompts.

    accuracy, low, high  [m] by position (NaN where no prompt is scored) and its bootstrap band over prompts
    balanced             mean of the accuracies on positive and on negative labels, over all scored positions
    null                 accuracy of always answering -1, on the same positions
    mean                 accuracy over all scored positions: the area under the curve
    """

    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    balanced: float
    null: float
    mean: float

    def examples_to(self, level: float = 0.9) -> int:
        """The first number of earlier examples with which accuracy reaches `level`; m where it never does."""
        reached = np.flatnonzero(self.accuracy >= level)
        return int(reached[0]) if len(reached) else len(self.accuracy)

    def __str__(self) -> str:
        shown = [t for t in (1, 2, 4, 8, 16, 32, 64) if t < len(self.accuracy) - 1] + [len(self.accuracy) - 1]
        places = "  ".join(f"{t}: {self.accuracy[t]:.3f}" for t in shown)
        return f"mean {self.mean:.3f} (balanced {self.balanced:.3f}, null {self.null:.3f})  {places}"


def accuracy(
    predictions: Float[Tensor, "batch m"],
    y: Float[Tensor, "batch m"],
    mask: Bool[Tensor, "batch m"] | None = None,
    *,
    undecided: float = 0.0,
) -> float:
    """Share of scored positions where the sign of the prediction is the label.

    A prediction of 0 scores `undecided`: 0 is the paper's rule, 0.5 what a fair coin would earn. Raises
    ValueError where nothing is scored.
    """
    right = _right(predictions, y, undecided)
    if mask is None:
        return float(right.mean())
    if not bool(mask.any()):
        raise ValueError("no position is scored")
    return float(right[mask].mean())


def balanced_accuracy(
    predictions: Float[Tensor, "batch m"],
    y: Float[Tensor, "batch m"],
    mask: Bool[Tensor, "batch m"] | None = None,
    *,
    undecided: float = 0.0,
) -> float:
    """Mean of the accuracies on positive and on negative labels; arguments as in `accuracy`.

    Raises ValueError where all scored labels are equal.
    """
    mask = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
    if not (bool((mask & (y > 0)).any()) and bool((mask & (y < 0)).any())):
        raise ValueError("balanced accuracy needs labels of both classes among the scored positions")
    sides = [accuracy(predictions, y, mask & side, undecided=undecided) for side in (y > 0, y < 0)]
    return sum(sides) / 2


def score_prompts(
    predictions: Float[Tensor, "batch m"],
    y: Float[Tensor, "batch m"],
    mask: Bool[Tensor, "batch m"] | None = None,
    *,
    resamples: int = 1000,
    quantiles: tuple[float, float] = (0.05, 0.95),
    undecided: float = 0.0,
    seed: int = 0,
) -> PromptScores:
    """Accuracy by position with a bootstrap band over prompts (the paper's: 1000 resamples, 5% to 95%)."""
    mask = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
    right = _right(predictions, y, undecided) * mask
    scored = mask.double()
    draws = torch.from_numpy(
        np.random.default_rng(seed).multinomial(len(y), [1 / len(y)] * len(y), resamples)
    )
    weight = draws.double().to(y.device)
    by_position = (right.sum(0) / scored.sum(0)).cpu().numpy()
    resampled = (weight @ right) / (weight @ scored)  # NaN where a position is never scored
    low, high = torch.nanquantile(resampled, resampled.new_tensor(quantiles), dim=0).cpu().numpy()
    return PromptScores(
        by_position,
        low,
        high,
        balanced_accuracy(predictions, y, mask, undecided=undecided),
        accuracy(torch.full_like(y, -1.0), y, mask),
        accuracy(predictions, y, mask, undecided=undecided),
    )


def _right(predictions: Tensor, y: Tensor, undecided: float) -> Tensor:
    sign = predictions.sign()
    return (sign == y).double() + undecided * (sign == 0)
