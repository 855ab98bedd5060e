"""Laws of one entry of a random input, by name: "normal", "uniform*2+1", "normal*2.5,normal+2.5"."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

Family = Literal["normal", "uniform", "exponential", "laplace"]

# Mean, second and fourth central moment of each family as drawn below.
_MOMENTS: dict[str, tuple[float, float, float]] = {
    "normal": (0.0, 1.0, 3.0),
    "uniform": (0.0, 1 / 12, 1 / 80),
    "exponential": (1.0, 1.0, 9.0),
    "laplace": (0.0, 2.0, 24.0),
}
_TERM = re.compile(r"(?P<family>[a-z]+)(?:\*(?P<scale>[-+0-9.e]+?))?(?P<shift>[-+][0-9.]+(?:e[-+]?\d+)?)?")


@dataclass(frozen=True)
class Distribution:
    """scale * (a draw of the family) + shift."""

    family: Family
    scale: float = 1.0
    shift: float = 0.0


@functools.lru_cache(maxsize=256)
def parse(text: str) -> tuple[Distribution, ...]:
    """The parts of "family[*scale][+shift], ..."; each entry of a draw picks one of them.

    Raises ValueError for a name or number that is none.
    """
    parts = []
    for term in text.replace(" ", "").split(","):
        found = _TERM.fullmatch(term)
        if found is None or found["family"] not in get_args(Family):
            raise ValueError(
                f"a distribution is family[*scale][+shift] with a family among "
                f"{', '.join(get_args(Family))}, got {text!r}"
            )
        try:
            scale, shift = float(found["scale"] or 1), float(found["shift"] or 0)
        except ValueError:
            raise ValueError(f"scale and shift of a distribution must be numbers, got {text!r}") from None
        parts.append(Distribution(cast(Family, found["family"]), scale, shift))
    return tuple(parts)


def draw(
    parts: tuple[Distribution, ...],
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Independent entries, each from one of the parts with equal chance."""
    draws = [_draw_one(part, shape, generator, device, dtype) for part in parts]
    if len(draws) == 1:
        return draws[0]
    which = torch.randint(len(draws), shape, generator=generator, device=device)
    return torch.stack(draws).gather(0, which[None])[0]


def draw_mixture(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Every context (first axis) from one of exponential, normal and Laplace, with equal chance."""
    draws = torch.stack(
        [
            _draw_one(Distribution(family), shape, generator, device, dtype)
            for family in ("exponential", "normal", "laplace")
        ]
    )
    which = torch.randint(3, (shape[0],), generator=generator, device=device)
    return draws[which, torch.arange(shape[0], device=device)]


def _draw_one(
    part: Distribution,
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    if part.family == "normal":
        out = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    elif part.family == "uniform":
        out = torch.rand(shape, generator=generator, device=device, dtype=dtype) - 0.5
    else:
        out = torch.empty(shape, device=device, dtype=dtype).exponential_(generator=generator)
        if part.family == "laplace":  # the difference of two exponentials
            out -= torch.empty(shape, device=device, dtype=dtype).exponential_(generator=generator)
    if part.scale != 1.0:
        out *= part.scale
    return out + part.shift if part.shift else out


def moments(parts: tuple[Distribution, ...]) -> tuple[float, float]:
    """Central second and fourth moment of one entry, in closed form."""
    means = [p.scale * _MOMENTS[p.family][0] + p.shift for p in parts]
    centre = math.fsum(means) / len(means)
    second = fourth = 0.0
    for part, mean in zip(parts, means, strict=True):
        _, m2, m4 = _MOMENTS[part.family]
        m3 = 2.0 if part.family == "exponential" else 0.0
        s, off = part.scale, mean - centre
        second += s**2 * m2 + off**2
        fourth += s**4 * m4 + 4 * off * s**3 * m3 + 6 * off**2 * s**2 * m2 + off**4
    return second / len(parts), fourth / len(parts)
