"""What the reference algorithms refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

REDUCTIONS = ("sum", "mean")


def step_counts(steps: int | Sequence[int]) -> list[int]:
    """The step counts of a path: an int k means 1 .. k. Raises ValueError for none or a negative one."""
    counts = list(range(1, steps + 1)) if isinstance(steps, int) else [int(k) for k in steps]
    if not counts or min(counts) < 0:
        raise ValueError(f"a path needs step counts that are not negative, got {steps!r}")
    return counts


def known_reduction(reduction: str) -> None:
    """Raises ValueError unless it is "sum" or "mean"."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def whole(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a whole number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number, 0 or more, got {value!r}")


def not_negative(name: str, value: float) -> None:
    """Raises ValueError unless the value is finite and 0 or more."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number, 0 or more, got {value}")


def positive(name: str, value: float) -> None:
    """Raises ValueError unless the value is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
