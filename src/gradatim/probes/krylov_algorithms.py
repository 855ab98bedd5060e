"""Conjugate gradients, BFGS and L-BFGS on every prefix at once: their steps depend on the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.probes.predictor_checks import step_counts, whole
from gradatim.probes.prefix_moments import moments, read, times, totals

STOP = 1e-12  # a gradient this small relative to |X^T y| counts as solved


class PrefixIteration:
    """All prefixes advance together, and one pass gives every number of steps."""

    steps: int

    def iterates(self, s: Tensor, b: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Weights [*, d] after each number of steps, for S [*, d, d] and X^T y [*, d]."""
        raise NotImplementedError

    def predict(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Entry t: the prediction for x[:, t] from the t pairs before it."""
        return read(self.coef(x.double(), y.double()), x)

    __call__ = predict

    def coef(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n d"]:
        """Row t: the weights after the first t pairs."""
        return self.iterates(*moments(x, y), [self.steps])[0].to(x)

    def weights(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch d"]:
        """The weights after all n pairs."""
        return self.iterates(*totals(x, y), [self.steps])[0].to(x)

    def path(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], steps: int | Sequence[int]
    ) -> Float[Tensor, "steps batch n"]:
        """Predictions after each number of steps (an int k means 1 .. k), in one pass."""
        return torch.stack([read(w, x) for w in self.iterates(*moments(x, y), step_counts(steps))])


@dataclass(frozen=True)
class ConjugateGradient(PrefixIteration):
    """`steps` of conjugate gradients on 1/2 |X w - y|^2 from 0, for every prefix.

    Each gradient is made S-conjugate to all directions before it, not only to the last one: the same in exact
    arithmetic, and it keeps the promise to end at least squares within min(t, d) steps on the ill-conditioned
    prefixes t = d. A context stops where |g| <= 1e-12 |X^T y|.
    """

    steps: int

    def __post_init__(self) -> None:
        whole("steps", self.steps)

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        return f"CG({self.steps})"

    def iterates(self, s: Tensor, b: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Weights after each number of steps."""
        w = torch.zeros_like(b)
        kept = {0: w}
        directions: list[tuple[Tensor, Tensor, Tensor]] = []
        stop = STOP * b.norm(dim=-1, keepdim=True)
        for k in range(1, max(counts) + 1):
            g = times(s, w) - b
            p = -g
            for q, sq, curvature in directions:
                p = p - q * ((sq * p).sum(-1, keepdim=True) / curvature)
            sp = times(s, p)
            curvature = (p * sp).sum(-1, keepdim=True)
            moving = (g.norm(dim=-1, keepdim=True) > stop) & (curvature > 0)
            safe = torch.where(moving, curvature, 1.0)
            w = w + torch.where(moving, -(g * p).sum(-1, keepdim=True) / safe, 0.0) * p
            # A direction of a context that stopped must not disturb later ones.
            directions.append((torch.where(moving, p, 0.0), torch.where(moving, sp, 0.0), safe))
            kept[k] = w
            if not bool(moving.any()):
                break
        return [kept[min(k, len(kept) - 1)] for k in counts]


LINE_SEARCHES = ("exact", "unit", "armijo")


def _step_length(kind: str, s: Tensor, g: Tensor, p: Tensor) -> Tensor:
    """The length of a step along p: exact, 1, or halved from 1 until Armijo's rule holds."""
    slope = (g * p).sum(-1, keepdim=True)
    curvature = (p * times(s, p)).sum(-1, keepdim=True)
    if kind == "exact":
        return torch.where(curvature > 0, -slope / torch.where(curvature > 0, curvature, 1.0), 0.0)
    length = torch.ones_like(slope)
    if kind == "armijo":  # f(w + a p) - f(w) = a slope + a^2 curvature / 2 <= 1e-4 a slope
        for _ in range(60):
            too_far = slope + length * curvature / 2 > 1e-4 * slope
            length = torch.where(too_far, length / 2, length)
    return length


@dataclass(frozen=True)
class BFGS(PrefixIteration):
    """`steps` of BFGS on 1/2 |X w - y|^2 from w = 0 and the inverse Hessian B = I, for every prefix.

    With p = -B g, s the step and u the change of gradient:
    B' = (I - s u^T / u^T s) B (I - u s^T / u^T s) + s s^T / u^T s.
    On a quadratic with exact steps its iterates are those of conjugate gradients; where a paper reports them
    to differ, its steps were inexact ("unit", "armijo") or B started elsewhere.
    """

    steps: int
    line_search: str = "exact"

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        known_search(self.line_search)

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        return f"BFGS({self.steps}{'' if self.line_search == 'exact' else ', ' + self.line_search})"

    def iterates(self, s: Tensor, b: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Weights after each number of steps."""
        inverse = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device).expand_as(s)

        def update(step: Tensor, u: Tensor, inner: Tensor, moving: Tensor) -> None:
            nonlocal inverse
            # (I - s u^T/r) B (I - u s^T/r) + s s^T/r with r = u^T s, written out in vectors.
            bu = times(inverse, u)
            scale = (1 + (u * bu).sum(-1, keepdim=True) / inner) / inner
            cross = step[..., :, None] * bu[..., None, :] / inner[..., None]
            change = scale[..., None] * step[..., :, None] * step[..., None, :] - cross - cross.mT
            inverse = torch.where(moving[..., None], inverse + change, inverse)

        return _quasi_newton(s, b, counts, self.line_search, lambda g: -times(inverse, g), update)


@dataclass(frozen=True)
class LBFGS(PrefixIteration):
    """`steps` of L-BFGS (two-loop recursion over the last `history_size` steps) from w = 0, for every prefix.

    The inverse Hessian is scaled by s^T u / u^T u of the last step. Raises ValueError for an empty history.
    """

    steps: int
    history_size: int = 5
    line_search: str = "exact"

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        if self.history_size < 1:
            raise ValueError(f"history_size must be at least 1, got {self.history_size}")
        known_search(self.line_search)

    @property
    def name(self) -> str:
        """Short name for tables and plots."""
        search = "" if self.line_search == "exact" else f", {self.line_search}"
        return f"L-BFGS({self.steps}, {self.history_size}{search})"

    def iterates(self, s: Tensor, b: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Weights after each number of steps."""
        history: list[tuple[Tensor, Tensor, Tensor]] = []

        def direction(g: Tensor) -> Tensor:
            q = g
            alphas = []
            for step, u, inner in reversed(history):
                alpha = (step * q).sum(-1, keepdim=True) / inner
                q = q - alpha * u
                alphas.append(alpha)
            if history:
                step, u, inner = history[-1]
                square = u.square().sum(-1, keepdim=True)
                q = q * torch.where(square > 0, inner / torch.where(square > 0, square, 1.0), 1.0)
            for (step, u, inner), alpha in zip(history, reversed(alphas), strict=True):
                q = q + step * (alpha - (u * q).sum(-1, keepdim=True) / inner)
            return -q

        def update(step: Tensor, u: Tensor, inner: Tensor, moving: Tensor) -> None:
            history.append((torch.where(moving, step, 0.0), torch.where(moving, u, 0.0), inner))
            del history[: -self.history_size]

        return _quasi_newton(s, b, counts, self.line_search, direction, update)


def _quasi_newton(
    s: Tensor,
    b: Tensor,
    counts: Sequence[int],
    line_search: str,
    direction: Callable[[Tensor], Tensor],
    update: Callable[[Tensor, Tensor, Tensor, Tensor], None],
) -> list[Tensor]:
    """Iterates at the given step counts; a context whose gradient has vanished repeats its last one."""
    w = torch.zeros_like(b)
    g = -b
    kept = {0: w}
    stop = STOP * b.norm(dim=-1, keepdim=True)
    for k in range(1, max(counts) + 1):
        p = direction(g)
        step = _step_length(line_search, s, g, p) * p
        u = times(s, step)
        inner = (u * step).sum(-1, keepdim=True)
        moving = (g.norm(dim=-1, keepdim=True) > stop) & (inner > 0)
        step = torch.where(moving, step, 0.0)
        w = w + step
        g = times(s, w) - b
        update(step, u, torch.where(moving, inner, 1.0), moving)
        kept[k] = w
        if not bool(moving.any()):
            break
    return [kept[min(k, len(kept) - 1)] for k in counts]


def known_search(line_search: str) -> None:
    """Raises ValueError for a line search there is not."""
    if line_search not in LINE_SEARCHES:
        raise ValueError(f"line_search must be one of {', '.join(LINE_SEARCHES)}, got {line_search!r}")
