r"""Momentum kept by a small network instead of a running sum: deep momentum gradient descent (DMGD).

"Nested Learning" (2025, arXiv 2512.24695, section 4) replaces the linear memory of gradients by a network m
that is itself trained, one step per call, on an inner objective L2:

    theta_m <- a theta_m - eta_m grad L2(m; u, P),     W <- W + m(u),     u = G

The paper fixes neither network nor targets. Here each tensor has one network for the rows of its gradient,

    m(u) = u + B tanh(A u),     A [hidden, in], B [in, hidden],

with the direction of each row as its target, P = u / ||u||, and (a) pulls theta_m towards where it started,
which is B = 0: the network begins as the identity, that is as plain gradient descent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from gradatim.optim.newton_schulz import newton_schulz
from gradatim.optim.step_gradients import (
    as_matrix,
    call_closure,
    check_at_least,
    check_fraction,
    group_gradients,
)


class DeepMomentumSGD(Optimizer):
    r"""Gradient descent along what a small network makes of the gradient, trained as it goes.

    .. math:: \theta \leftarrow \theta_0 + a(\theta - \theta_0) - \eta_m \nabla_\theta L_2(m_\theta; u, P),
              \qquad W \leftarrow W - \mathrm{lr}\; \sigma(m_\theta(u))

    Args:
        params: parameters or groups; a vector is one row, axes beyond the second are joined to the inputs.
        lr: learning rate.
        hidden: units of the memory, per tensor.
        memory_lr: eta_m.
        momentum: a, how much of the memory is kept per step.
        objective: "regression" has L2 = mean over rows of ||m(u) - P||^2 / 2, "dot" has -<m(u), P>.
        normalize_key: u = sqrt(rows) G / ||G||_F, so that rows have length 1 on average and steps do not
            depend on the gradient's size; False takes u = G as printed. A zero gradient moves nothing.
        output: "none", or "orthogonal": sigma is Newton-Schulz.
        seed: of the memories' first weights A ~ N(0, 1 / in).
        weight_decay: decoupled, W <- W (1 - lr * weight_decay).
        check_finite: refuse gradients that are not finite (waits for the device once per group).

    State per tensor [out, in]: 3 hidden x in numbers, independent of `out`.

    Raises ValueError for values outside their range, RuntimeError for sparse or non-finite gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        hidden: int = 32,
        memory_lr: float = 1e-2,
        momentum: float = 0.9,
        *,
        objective: Literal["regression", "dot"] = "regression",
        normalize_key: bool = True,
        output: Literal["none", "orthogonal"] = "none",
        seed: int = 0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        check_finite: bool = True,
    ) -> None:
        for name, value in (("lr", lr), ("memory_lr", memory_lr), ("weight_decay", weight_decay)):
            check_at_least(name, value)
        check_at_least("hidden", hidden, 1)
        # Unlike a running sum, a network trained on a bounded target may keep everything: a = 1.
        if momentum != 1:
            check_fraction("momentum", momentum)
        if objective not in ("regression", "dot"):
            raise ValueError(f'objective must be "regression" or "dot", got {objective!r}')
        if output not in ("none", "orthogonal"):
            raise ValueError(f'output must be "none" or "orthogonal", got {output!r}')
        defaults = {
            "lr": lr,
            "hidden": hidden,
            "memory_lr": memory_lr,
            "momentum": momentum,
            "objective": objective,
            "normalize_key": normalize_key,
            "output": output,
            "seed": seed,
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
            for p, gradient in zip(*group_gradients(group, "DeepMomentumSGD"), strict=True):
                self._step_one(p, gradient, group)
        return loss

    def _step_one(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        # The memory's own steps are small beside its weights: at least float32.
        u = as_matrix(gradient).to(torch.promote_types(p.dtype, torch.float32))
        length = torch.linalg.vector_norm(u)
        if group["normalize_key"]:
            u = u * (math.sqrt(len(u)) / torch.where(length == 0, 1.0, length))
        state = self.state[p]
        if "memory_in" not in state:
            state["memory_in"] = first_weights(u.shape[1], group["hidden"], group["seed"]).to(p)
            state["memory_in_start"] = state["memory_in"].clone()
            state["memory_out"] = torch.zeros(u.shape[1], group["hidden"]).to(p)
        inner, outer = (state[name].to(u.dtype) for name in ("memory_in", "memory_out"))
        start = state["memory_in_start"].to(u.dtype)
        to_inner, to_outer = memory_gradient(inner, outer, u, row_directions(u), group["objective"])
        a, rate = group["momentum"], group["memory_lr"]
        inner = start + a * (inner - start) - rate * to_inner
        outer = a * outer - rate * to_outer
        state["memory_in"].copy_(inner)
        state["memory_out"].copy_(outer)
        update = u + torch.tanh(u @ inner.mT) @ outer.mT
        if group["output"] == "orthogonal":
            update = newton_schulz(update)
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_((group["lr"] * update).reshape(p.shape).to(p.dtype))


def first_weights(width: int, hidden: int, seed: int) -> Float[Tensor, "hidden width"]:
    """A ~ N(0, 1 / width), the same for all tensors of one width and seed."""
    return torch.randn(hidden, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width)


def row_directions(u: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """Each row divided by its length; zero rows stay zero."""
    lengths = torch.linalg.vector_norm(u, dim=1, keepdim=True)
    return u / torch.where(lengths == 0, 1.0, lengths)


def memory_gradient(
    inner: Float[Tensor, "hidden width"],
    outer: Float[Tensor, "width hidden"],
    u: Float[Tensor, "rows width"],
    target: Float[Tensor, "rows width"],
    objective: str,
) -> tuple[Float[Tensor, "hidden width"], Float[Tensor, "width hidden"]]:
    """Gradients of L2 with respect to A and B, for m(u) = u + B tanh(A u)."""
    units = torch.tanh(u @ inner.mT)  # [rows, hidden]
    back = -target if objective == "dot" else u + units @ outer.mT - target
    back = back / len(u)
    to_units = (back @ outer) * (1 - units.square())
    return to_units.mT @ u, back.mT @ units
