"""Rows of every process in one tensor, with gradients that come home.

Each process computes the loss of its own queries against the passages of all. In the backward pass a
passage's gradient is the sum over processes, so that after the usual averaging of parameter gradients the
result is that of one process on the whole batch, without a factor of the number of processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


def world_size() -> int:
    """Processes in the default group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the default group, 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(local: Shaped[Tensor, rows * rest]) -> Shaped[Tensor, all_rows * rest]:
    """The rows of process 0, then of process 1 and so on; differentiable for floating tensors.

    Every process must bring the same number of rows (a loader with even batches does) and must take part in
    the backward pass. Without a process group the tensor itself. Raises ValueError if row counts differ.
    """
    if world_size() == 1:
        return local
    counts = torch.zeros(world_size(), dtype=torch.long, device=local.device)
    counts[rank()] = len(local)
    dist.all_reduce(counts)
    if not bool((counts == len(local)).all()):
        raise ValueError(
            f"processes bring {counts.tolist()} rows; gathering needs equal batches: drop the last one"
        )
    if local.is_floating_point() and torch.is_grad_enabled() and local.requires_grad:
        return _GatherRows.apply(local.contiguous())
    return _all_gather(local.contiguous())


def sum_over_devices(value: Shaped[Tensor, ""]) -> Shaped[Tensor, ""]:
    """The sum of a number over processes, without gradient."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def _all_gather(local: Tensor) -> Tensor:
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local)
    return torch.cat(parts)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        return _all_gather(local)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        if dist.get_backend() == "nccl":
            mine = grad.new_empty(ctx.rows, *grad.shape[1:])
            dist.reduce_scatter_tensor(mine, grad)
            return mine
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]
