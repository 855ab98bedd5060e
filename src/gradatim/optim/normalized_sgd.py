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
    to `state[p]["n_zero"]`.

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
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        defaults = {"lr": lr, "per_param": per_param, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

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
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        if any(p.grad.is_sparse for p in params):
            raise RuntimeError("NormalizedSGD does not take sparse gradients; use dense ones (sparse=False)")
        grads = [p.grad for p in params]
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        norms = torch._foreach_norm(grads)
        if not group["per_param"]:
            total = torch.stack([n.to(norms[0].device) for n in norms]).norm()
            norms = tuple(total.to(n.device) for n in norms)
        for p, grad, norm in zip(params, grads, norms, strict=True):
            zero = norm == 0
            state = self.state[p]
            if "n_zero" not in state:
                state["n_zero"] = torch.zeros((), dtype=torch.int64, device=p.device)
            state["n_zero"] += zero
            # Where the gradient is zero the factor is zero too: no branch, no wait for the device.
            length = norm + group["eps"]
            factor = torch.where(zero, torch.zeros_like(norm), group["lr"] / torch.where(zero, 1.0, length))
            p.sub_(grad * factor.to(grad.dtype))
