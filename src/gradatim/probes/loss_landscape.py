"""The loss along lines through weight space, how rough it is there, and how straight a training path runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Weights = Mapping[str, Tensor]
LossFunction = Callable[[Weights], Tensor]


@dataclass(frozen=True)
class LandscapeSlice:
    """Losses at evenly spaced places t of one line."""

    t: np.ndarray
    losses: np.ndarray

    @property
    def roughness(self) -> float:
        """std(second difference) / mean |second difference|: 0 for a parabola, large for isolated kinks."""
        second = np.diff(self.losses, 2)
        scale = np.abs(second).mean()
        return float(second.std() / scale) if scale > 0 else 0.0

    @property
    def minima(self) -> int:
        """Strict local minima inside the line."""
        inner = self.losses[1:-1]
        return int(((inner < self.losses[:-2]) & (inner < self.losses[2:])).sum())

    @property
    def variation(self) -> float:
        """Total variation over range: 1 on a slope, 2 in a valley, more where the loss goes up and down."""
        span = float(np.ptp(self.losses))
        return float(np.abs(np.diff(self.losses)).sum()) / span if span > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"loss {self.losses[0]:.4f} -> {self.losses[-1]:.4f} over {len(self.t)} points: roughness "
            f"{self.roughness:.2f}, {self.minima} inner minima, variation {self.variation:.2f}"
        )

    def plot(self, axis: Axes, color: str = "C0", label: str | None = None) -> None:
        """The loss over the line."""
        axis.plot(self.t, self.losses, color=color, label=label)
        axis.set(xlabel="place on the line", ylabel="loss")


def landscape_slice(loss_fn: LossFunction, start: Weights, end: Weights, points: int = 65) -> LandscapeSlice:
    """The loss on the segment from `start` (t = 0) to `end` (t = 1).

    Raises ValueError for fewer than 3 points, or weights of different names or shapes.
    """
    _check_alike(start, end)
    return _slice(loss_fn, start, {k: end[k] - start[k] for k in start}, np.linspace(0.0, 1.0, points))


def random_slices(
    loss_fn: LossFunction,
    params: Weights,
    directions: int = 8,
    radius: float = 1.0,
    points: int = 65,
    generator: torch.Generator | None = None,
) -> list[LandscapeSlice]:
    """The loss on lines through `params` (t from -radius to radius) in random filter-normalised directions.

    A direction is as long as the weights, filter by filter, so that rescaled networks look alike (Li, Xu,
    Taylor, Studer and Goldstein, "Visualizing the Loss Landscape of Neural Nets", 2018, arXiv 1712.09913).
    """
    generator = generator or torch.Generator().manual_seed(0)
    places = np.linspace(-radius, radius, points)
    return [_slice(loss_fn, params, filter_normalized(params, generator), places) for _ in range(directions)]


def filter_normalized(params: Weights, generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction with each row as long as the row of weights; vectors (biases, norms) stay put."""
    found = {}
    for name, weight in params.items():
        d = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
        if weight.dim() < 2:
            found[name] = torch.zeros_like(d)
            continue
        lengths = [m.flatten(1).norm(dim=1) for m in (weight, d)]
        factor = (lengths[0] / lengths[1].clamp_min(1e-30)).view(-1, *(1,) * (weight.dim() - 1))
        found[name] = d * factor
    return found


def _slice(loss_fn: LossFunction, at: Weights, along: Weights, places: np.ndarray) -> LandscapeSlice:
    if len(places) < 3:
        raise ValueError(f"a slice needs at least 3 points, got {len(places)}")
    with torch.no_grad():
        losses = [float(loss_fn({k: at[k] + float(t) * along[k] for k in at})) for t in places]
    return LandscapeSlice(places, np.array(losses))


@dataclass(frozen=True)
class PathShape:
    """How far a path goes, step by step and in the end.

    length        Σ_k |θ_{k+1} - θ_k|
    displacement  |θ_K - θ_0|
    Numbers for one path, arrays [T] for T paths at once.
    """

    length: np.ndarray
    displacement: np.ndarray

    @property
    def directness(self) -> np.ndarray:
        """displacement / length: 1 for a straight path; 1, too, for one that never moves."""
        moved = self.length > 0
        return np.where(moved, self.displacement / np.where(moved, self.length, 1.0), 1.0)

    def __str__(self) -> str:
        return (
            f"path: length {np.mean(self.length):.4g}, displacement {np.mean(self.displacement):.4g}, "
            f"directness {np.mean(self.directness):.3f}"
        )

    def plot(self, axis: Axes, color: str = "C0", label: str | None = None) -> None:
        """Displacement over length, with the diagonal of straight paths."""
        axis.plot(self.length, self.displacement, "o", ms=3, color=color, label=label)
        axis.axline((0, 0), slope=1, color="0.5", lw=0.8)
        axis.set(xlabel="length of the path", ylabel="distance travelled")


def path_shape(states: Sequence[Weights], batched: bool = False) -> PathShape:
    """Length and displacement of θ_0 ... θ_K; with `batched`, of T paths whose tensors are [T, ...].

    Raises ValueError for an empty path, or states of different names or shapes.
    """
    if not states:
        raise ValueError("a path has at least one state")
    for state in states[1:]:
        _check_alike(states[0], state)
    length = torch.zeros(())
    for before, after in pairwise(states):
        length = length + _distance(before, after, batched)
    apart = _distance(states[0], states[-1], batched)
    return PathShape((length + torch.zeros_like(apart)).cpu().numpy(), apart.cpu().numpy())


def _distance(a: Weights, b: Weights, batched: bool) -> Tensor:
    with torch.no_grad():
        squares = [(b[k] - a[k]).double().square() for k in a]
        parts = [s.reshape(len(s), -1).sum(1) if batched else s.sum() for s in squares]
        return torch.stack(parts).sum(0).sqrt()


def _check_alike(a: Weights, b: Weights) -> None:
    if set(a) != set(b) or any(a[k].shape != b[k].shape for k in a):
        raise ValueError("both ends need weights of the same names and shapes")
