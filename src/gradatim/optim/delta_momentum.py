r"""Momentum that forgets along the directions it has just been given: Delta Momentum.

Momentum is a linear memory m of gradients. Trained with the dot product it only ever adds; trained with
||m G^T - P||^2 ("Nested Learning", 2025, arXiv 2512.24695, section 4) it first takes out what it holds along
the rows of G:

    m <- m (a I - c K^T K) - lr P G,     W <- W + m

with K = G, or G / ||G||_F: a gradient's own square is about 1e-6 in practice, and then the rule is plain
momentum. (The paper prints the matrix on the left of m; the derivative of its objective is 2 (m G^T - P) G.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradatim.optim.step_gradients import (
    as_matrix,
    call_closure,
    check_at_least,
    check_fraction,
    group_gradients,
)


class DeltaMomentumSGD(Optimizer):
    r"""Stochastic gradient descent with delta momentum.

    .. math:: B \leftarrow B\,(a I - c\,K^\top K) + P \odot G, \qquad W \leftarrow W - \mathrm{lr}\, B

    with B = -m / lr, so that a schedule acts as it does in `torch.optim.SGD`, which this equals for
    `delta=0`. Matrices are [out, in]; further axes (convolutions) are joined to the inputs, a vector is a
    single row.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: a.
        delta: c. With `normalize_key` it must be at most 1 + a for the memory to stay bounded.
        normalize_key: K = G / ||G||_F (a zero gradient: K = 0); False takes K = G as printed.
        value: "gradient" has P = 1; "rms" has P = 1 / (sqrt(V) + eps), V the moving mean of G^2, which
            equals `torch.optim.RMSprop` for `delta=0`.
        alpha, eps: of V.
        weight_decay: adds weight_decay * W to G.
        check_finite: refuse gradients that are not finite (waits for the device once per group).

    Cost beside momentum: two products of out x in with the smaller of [out, out] and [in, in].

    Raises ValueError for values outside their range, RuntimeError for sparse or non-finite gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.9,
        delta: float = 1.0,
        *,
        normalize_key: bool = True,
        value: Literal["gradient", "rms"] = "gradient",
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        maximize: bool = False,
        check_finite: bool = True,
    ) -> None:
        for name, number in (("lr", lr), ("delta", delta), ("eps", eps), ("weight_decay", weight_decay)):
            check_at_least(name, number)
        check_fraction("momentum", momentum)
        check_fraction("alpha", alpha)
        if normalize_key and delta > 1 + momentum:
            raise ValueError(
                f"delta must be at most 1 + momentum = {1 + momentum:g} with normalised keys, got {delta}: "
                "beyond that the memory grows without bound"
            )
        if value not in ("gradient", "rms"):
            raise ValueError(f'value must be "gradient" or "rms", got {value!r}')
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "delta": delta,
            "normalize_key": normalize_key,
            "value": value,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "check_finite": check_finite,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` re-evaluates the loss and returns it."""
        loss = call_closure(closure)
        for group in self.param_groups:
            for p, gradient in zip(*group_gradients(group, "DeltaMomentumSGD"), strict=True):
                self._step_one(p, gradient, group)
        return loss

    def _step_one(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            gradient = gradient.add(p, alpha=group["weight_decay"])
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if group["value"] == "rms":
                state["square_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        buffer = state["momentum_buffer"]
        forgotten = None
        if group["delta"]:
            key = as_matrix(gradient)
            if group["normalize_key"]:
                length = torch.linalg.vector_norm(key)
                key = key / torch.where(length == 0, 1.0, length)
            forgotten = along_rows(as_matrix(buffer), key).view_as(buffer)
        if group["value"] == "rms":
            square = state["square_avg"]
            square.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
            gradient = gradient / (square.sqrt() + group["eps"])
        buffer.mul_(group["momentum"])
        if forgotten is not None:
            buffer.sub_(forgotten, alpha=group["delta"])
        buffer.add_(gradient)
        p.sub_(buffer * group["lr"])


def along_rows(memory: Tensor, key: Tensor) -> Tensor:
    """m K^T K [out, in], in the cheaper order of the two products."""
    if key.shape[0] <= key.shape[1]:
        return (memory @ key.mT) @ key
    return memory @ (key.mT @ key)
