"""Normalised gradient descent as a `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class NormalizedSGD(Optimizer):
    r"""Every step has length `lr`, whatever the size of the gradient.

    .. math:: p \leftarrow p - \mathrm{lr} \cdot g / (\lVert g \rVert_2 + \mathrm{eps}),
              \qquad g = \nabla_p L + \mathrm{weight\_decay} \cdot p

    With `per_param=True` each tensor is normalised by its own gradient's norm, as "Transformers as Support
    Vector Machines" (2023, arXiv 2308.16898) trains keys and queries; with False by the norm over all
    tensors of the parameter group. A gradient that is exactly zero leaves its tensor unchanged and adds one
    to `state[p]["n_zero"]`. Gradients are divided by their largest entry before they are squared, in at
    least float32, so that the smallest and the largest representable ones still give a step of length `lr`.

    `foreach` runs one kernel over all tensors instead of one each; None: where all are on a GPU.

    Raises ValueError for a negative `lr`, `eps` or `weight_decay`, RuntimeError for sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        per_param: bool = True,
        eps: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        defaults = {
            "lr": lr,
            "per_param": per_param,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("maximize", False)
            group.setdefault("foreach", None)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` re-evaluates the loss and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None and p.numel()]
        if not params:
            return
        if any(p.grad.is_sparse for p in params):
            raise RuntimeError("NormalizedSGD does not take sparse gradients; use dense ones (sparse=False)")
        for p in params:
            if "n_zero" not in self.state[p]:
                self.state[p]["n_zero"] = torch.zeros((), dtype=torch.int64, device=p.device)
        counters = [self.state[p]["n_zero"] for p in params]
        alike = len({(p.device, p.dtype) for p in params}) == 1
        foreach = group["foreach"]
        if foreach is None:
            foreach = all(p.is_cuda for p in params)
        if foreach and alike:
            _step_together(params, counters, group)
        else:
            _step_in_turn(params, counters, group)


def _wide(p: Tensor, group: dict[str, Any]) -> Tensor:
    """g in at least float32, with decay, pointing downhill."""
    wide = torch.promote_types(p.dtype, torch.float32)
    gradient = p.grad.to(wide)  # type: ignore[union-attr]
    if group["maximize"]:
        gradient = -gradient
    if group["weight_decay"]:
        gradient = gradient.add(p.to(wide), alpha=group["weight_decay"])
    return gradient


def _divisor(peak: Tensor) -> Tensor:
    """`peak`, or 1 where it is 0; never subnormal, since its reciprocal would overflow."""
    return torch.where(peak == 0, 1.0, peak.clamp_min(torch.finfo(peak.dtype).tiny))


def _step_in_turn(params: list[Tensor], counters: list[Tensor], group: dict[str, Any]) -> None:
    gradients = [_wide(p, group) for p in params]
    peaks = [g.abs().amax() for g in gradients]
    if not group["per_param"]:
        largest = torch.stack([k.to(peaks[0].device) for k in peaks]).amax()
        peaks = [largest.to(k.device) for k in peaks]
    safe = [_divisor(k) for k in peaks]
    units = [g / k for g, k in zip(gradients, safe, strict=True)]
    lengths = [torch.linalg.vector_norm(u) for u in units]
    if not group["per_param"]:
        total = torch.linalg.vector_norm(torch.stack([n.to(lengths[0].device) for n in lengths]))
        lengths = [total.to(n.device) for n in lengths]
    for p, unit, peak, k, length, counter in zip(params, units, peaks, safe, lengths, counters, strict=True):
        zero = peak == 0
        counter += zero
        # Where the gradient is zero the factor is zero too: no branch, no wait for the device.
        factor = torch.where(zero, 0.0, group["lr"] / (length + group["eps"] / k))
        p.sub_((unit * factor).to(p.dtype))


def _step_together(params: list[Tensor], counters: list[Tensor], group: dict[str, Any]) -> None:
    gradients = [_wide(p, group) for p in params]
    peaks = torch.stack(torch._foreach_norm(gradients, ord=torch.inf))
    if not group["per_param"]:
        peaks = peaks.amax().expand_as(peaks)
    zero = peaks == 0
    safe = _divisor(peaks)
    units = torch._foreach_div(gradients, list(safe.unbind()))
    lengths = torch.stack(torch._foreach_norm(units))
    if not group["per_param"]:
        lengths = torch.linalg.vector_norm(lengths).expand_as(lengths)
    factors = torch.where(zero, 0.0, group["lr"] / (lengths + group["eps"] / safe))
    torch._foreach_mul_(units, list(factors.unbind()))
    torch._foreach_sub_(params, [u.to(p.dtype) for u, p in zip(units, params, strict=True)])
    torch._foreach_add_(counters, list(zero.to(torch.int64).unbind()))
