"""One schedule on every rank: broadcast it from one, and check that all agree.

Ranks that refine different traces drift apart silently: their weights stop being equal at the first step.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float64


def assert_same_on_all_ranks(
    factors: Float64[np.ndarray, " steps"], group: dist.ProcessGroup | None = None
) -> None:
    """Raise ValueError on every rank unless all hold the same factors (SHA-256 of their bytes).

    A collective over `group` (default: all ranks); does nothing outside a distributed run.
    """
    if not _distributed(group):
        return
    digest = hashlib.sha256(np.ascontiguousarray(factors, dtype="<f8").tobytes()).digest()
    mine = torch.tensor(list(digest), dtype=torch.uint8, device=_device(group))
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    differing = [rank for rank, other in enumerate(everyone) if not torch.equal(other, everyone[0])]
    if differing:
        raise ValueError(
            f"ranks {differing} hold another schedule than rank 0: refine one trace on rank 0 and use"
            " broadcast_factors"
        )


def broadcast_factors(
    factors: Float64[np.ndarray, " steps"] | None, source: int = 0, group: dist.ProcessGroup | None = None
) -> Float64[np.ndarray, " steps"]:
    """The factors of rank `source`, on every rank; the others may give None.

    Outside a distributed run the factors come back as they are. Raises ValueError where the source has none.
    """
    is_source = not _distributed(group) or dist.get_rank(group) == source
    if is_source and (factors is None or factors.size == 0):
        raise ValueError(f"rank {source} has no factors to broadcast")
    if not _distributed(group):
        assert factors is not None
        return factors
    device = _device(group)
    length = torch.tensor([0 if factors is None else factors.size], dtype=torch.int64, device=device)
    dist.broadcast(length, group=group, group_src=source)
    values = torch.empty(int(length), dtype=torch.float64, device=device)
    if is_source and factors is not None:
        values.copy_(torch.from_numpy(np.array(factors)))
    dist.broadcast(values, group=group, group_src=source)
    return values.cpu().numpy()


def _distributed(group: dist.ProcessGroup | None) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _device(group: dist.ProcessGroup | None) -> torch.device:
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
