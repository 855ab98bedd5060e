"""Labels of a nearest-neighbour prompt: some random labels first, later points copy their nearest one."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def nearest_neighbour_labels(
    x: Float[Tensor, "batch m n"], start_idx: int, generator: torch.Generator | None = None
) -> Float[Tensor, "batch m"]:
    """y [batch, m] for inputs of -1 and +1.

    The first `start_idx` labels are fair coins, equal inputs sharing one. Point t >= start_idx takes the
    label of the earlier point with the highest cosine, the first among equals, and then joins the pool.
    Raises ValueError unless 1 <= start_idx < m.
    """
    batch, m, n = x.shape
    if not 1 <= start_idx < m:
        raise ValueError(f"start_idx must lie in 1..{m - 1} for {m} points, got {start_idx}")
    device = None if generator is None else generator.device
    coins = torch.randint(2, (batch, m), generator=generator, device=device).to(x.device, x.dtype) * 2 - 1
    position = torch.arange(m, device=x.device)
    # All inputs have one norm, so the inner product orders them as the cosine does, and it is an integer:
    # subtracting j / m breaks ties in favour of the first without upsetting the order.
    gram = x.float() @ x.float().transpose(1, 2)
    key = (gram - position / m).masked_fill(position >= position[:, None], -math.inf)
    nearest = key.argmax(-1)
    # argmax gives the first of equal entries: the first copy of each early point, itself included.
    first = (gram[:, :start_idx, :start_idx] == n).to(torch.uint8).argmax(-1)
    parent = torch.cat([first, nearest[:, start_idx:]], dim=1)
    # Parents point backwards and roots to themselves: doubling the stride finds every root in log2(m) steps.
    for _ in range(math.ceil(math.log2(m))):
        parent = parent.gather(1, parent)
    return coins.gather(1, parent)
