"""What a step starts with: the group's gradients, refused where they cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def check_at_least(name: str, value: Any, lowest: float | int = 0) -> None:
    """Raise ValueError unless `value` >= `lowest` (NaN is refused too)."""
    if not value >= lowest:
        raise ValueError(f"{name} must be at least {lowest:g}, got {value}")


def check_fraction(name: str, value: Any) -> None:
    """Raise ValueError unless 0 <= `value` < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def call_closure(closure: Callable[[], Any] | None) -> Any:
    """The closure's loss, computed with gradients; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def group_gradients(group: Mapping[str, Any], name: str) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of a group that have a gradient, and those gradients, downhill for `maximize`.

    Raises RuntimeError for sparse gradients and, unless the group says `check_finite=False`, for gradients
    that are not finite: nothing has been changed by then.
    """
    params = [p for p in group["params"] if p.grad is not None and p.numel()]
    gradients = [p.grad for p in params]
    if any(g.is_sparse for g in gradients):
        raise RuntimeError(f"{name} does not take sparse gradients; use dense ones (sparse=False)")
    if group.get("check_finite", True):
        refuse_non_finite(gradients, name)
    if group.get("maximize", False):
        gradients = [-g for g in gradients]
    return params, gradients


def refuse_non_finite(tensors: Sequence[Tensor], name: str, what: str = "gradient") -> None:
    """Raise RuntimeError that says which of `tensors` holds NaN or an infinity; one wait for the device."""
    if not tensors:
        return
    if all(t.device == tensors[0].device for t in tensors):
        # NaN and infinities survive a sum of absolute values; a finite sum that overflows is looked at again.
        total = torch.stack([n.float() for n in torch._foreach_norm(list(tensors), 1)]).sum()
        if bool(torch.isfinite(total)):
            return
    for i, tensor in enumerate(tensors):
        if not bool(torch.isfinite(tensor).all()):
            raise RuntimeError(
                f"{name}: {what} {i} of its group, of shape {tuple(tensor.shape)}, is not finite; "
                "no parameter was changed. Lower lr, or skip the step"
            )


def as_matrix(tensor: Tensor) -> Tensor:
    """[out, in] view: a vector is one row, further axes are joined to the inputs."""
    return tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.flatten(1)
