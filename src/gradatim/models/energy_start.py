"""Where descents start: noise that depends on a key alone, so that answers repeat, cached or not."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.tasks.contexts import context_generator


def seeded(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator on `device` that depends on the whole key and on nothing else."""
    return torch.Generator(device).manual_seed(context_generator(*key).initial_seed())


class KeyedNoise:
    """Standard normal rows, each a function of (seed, stream, position) alone.

    A token then starts from the same state whether it comes alone or in a batch, padded or not, with a
    cache or without. Rows are drawn on the CPU, once, and kept.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._rows: dict[tuple[tuple[int, ...], int], Tensor] = {}

    def __call__(
        self, positions: Int[Tensor, "batch time"], width: int, *stream: int
    ) -> Float[Tensor, "batch time width"]:
        """The rows of these positions in one stream, in float32 on the device of `positions`."""
        rows = self._rows.get((stream, width), torch.empty(0, width))
        needed = int(positions.max()) + 1 if positions.numel() else 0
        if needed > len(rows):
            fresh = [
                torch.randn(width, generator=context_generator(self.seed, *stream, position))
                for position in range(len(rows), needed)
            ]
            rows = torch.cat([rows, torch.stack(fresh).to(rows.device)])
        rows = rows.to(positions.device)
        self._rows[(stream, width)] = rows
        return rows[positions]
