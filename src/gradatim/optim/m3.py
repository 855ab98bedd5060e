r"""M3: Muon's orthogonalised momentum at two speeds, divided by Adam's second moment.

"Nested Learning" (2025, arXiv 2512.24695, Algorithm 1). With NS the Newton-Schulz iteration and f the slow
period:

    M1 <- M1 + b1 g,   V <- V + b2 g^2,   O1 = NS(M1)
    every f steps:  M2 <- M2 + b3 (sum of the last f gradients),   O2 = NS(M2)   (used for the next f steps)
    W <- W - lr (O1 + alpha O2) / (sqrt(V) + eps)

Printed like that, sums never decay, and an orthogonal matrix (entries of size 1/sqrt(n)) is divided by a sum
of gradients: the step has the unit 1/gradient, and diverges or crawls. The default therefore uses moving
means with bias correction and rescales the update of each matrix to root mean square 0.2, the size of an
AdamW step, so that AdamW's learning rates carry over. `accumulate="sum", match_rms=None` is the printed rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradatim.optim.newton_schulz import QUINTIC, newton_schulz_many
from gradatim.optim.step_gradients import (
    as_matrix,
    call_closure,
    check_at_least,
    check_fraction,
    group_gradients,
)

LARGE = 32_768
"""Numbers from which a parameter fills a good part of a core's cache."""


class M3(Optimizer):
    r"""Multi-scale momentum Muon for matrices; the AdamW rule for groups with `matrix=False`.

    Args:
        params: parameters or groups. A group with `matrix=False` (vectors, embeddings, output heads) takes
            AdamW's step with `adam_betas`; `matrix_groups(model)` sorts a model's parameters.
        lr: learning rate.
        betas: (b1, b2, b3) of the fast memory, of the second moment, of the slow memory (per slow step).
        slow_weight: alpha; 0 leaves the slow memory out.
        slow_period: f.
        ns_steps, ns_coefficients, ns_dtype: of Newton-Schulz. bfloat16 is what `torch.optim.Muon` computes
            in, and fast where the processor multiplies it; None computes in the parameter's type.
        accumulate: "ema" moving means; "sum" the printed sums.
        match_rms: root mean square of the update of each matrix in units of lr, None leaves it as it is.
        second_moment: divide by sqrt(V) + eps; False with slow_weight=0 is Muon without Nesterov.
        weight_decay: decoupled, W <- W (1 - lr * weight_decay).
        adam_betas: of the AdamW rule.
        matrix: what groups are that do not say so.
        check_finite: refuse gradients that are not finite (waits for the device once per group).

    Axes beyond the second are joined to the inputs. Equal shapes share their Newton-Schulz products.

    Raises ValueError for values outside their range and for a vector in a matrix group, RuntimeError for
    sparse or non-finite gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float, float] = (0.95, 0.999, 0.9),
        slow_weight: float = 0.5,
        slow_period: int = 20,
        ns_steps: int = 5,
        accumulate: Literal["ema", "sum"] = "ema",
        match_rms: float | None = 0.2,
        weight_decay: float = 0.0,
        *,
        eps: float = 1e-8,
        second_moment: bool = True,
        adam_betas: tuple[float, float] = (0.9, 0.999),
        ns_coefficients: tuple[float, float, float] = QUINTIC,
        ns_dtype: torch.dtype | None = torch.bfloat16,
        matrix: bool = True,
        maximize: bool = False,
        check_finite: bool = True,
    ) -> None:
        for name, value in (("lr", lr), ("slow_weight", slow_weight), ("eps", eps)):
            check_at_least(name, value)
        check_at_least("weight_decay", weight_decay)
        check_at_least("slow_period", slow_period, 1)
        check_at_least("ns_steps", ns_steps)
        for i, beta in enumerate((*betas, *adam_betas)):
            check_fraction(f"betas[{i}]" if i < 3 else f"adam_betas[{i - 3}]", beta)
        if accumulate not in ("ema", "sum"):
            raise ValueError(f'accumulate must be "ema" or "sum", got {accumulate!r}')
        if match_rms is not None and not match_rms > 0:
            raise ValueError(f"match_rms must be above 0, or None for the raw update, got {match_rms}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "slow_weight": slow_weight,
            "slow_period": slow_period,
            "ns_steps": ns_steps,
            "accumulate": accumulate,
            "match_rms": match_rms,
            "weight_decay": weight_decay,
            "eps": eps,
            "second_moment": second_moment,
            "adam_betas": adam_betas,
            "ns_coefficients": ns_coefficients,
            "ns_dtype": ns_dtype,
            "matrix": matrix,
            "maximize": maximize,
            "check_finite": check_finite,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; a group of matrices must hold no vectors."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            if group["matrix"] and p.dim() < 2:
                self.param_groups.pop()
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} has no matrix form: put it into a group with "
                    "matrix=False (matrix_groups(model) sorts a model's parameters)"
                )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` re-evaluates the loss and returns it."""
        loss = call_closure(closure)
        ready = [(group, *group_gradients(group, "M3")) for group in self.param_groups]
        for group, params, gradients in ready:
            if params:
                (self._step_matrices if group["matrix"] else self._step_adamw)(params, gradients, group)
        return loss

    def _step_adamw(self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        b1, b2 = group["adam_betas"]
        means = self._memories(params, "exp_avg")
        squares = self._memories(params, "exp_avg_sq")
        steps = self._count(params)
        torch._foreach_lerp_(means, gradients, 1 - b1)
        torch._foreach_mul_(squares, b2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - b2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - b2**t) ** 0.5 for t in steps])
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, roots)
        torch._foreach_div_(updates, [1 - b1**t for t in steps])
        _apply(params, list(updates), group)

    def _step_matrices(self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        ema = group["accumulate"] == "ema"
        fast = self._memories(params, "fast")
        self._advance_slow(params, gradients, group)
        steps = self._count(params)
        _accumulate(fast, gradients, group["betas"][0], ema)
        updates = _orthogonal(fast, group)
        for piece in _pieces(params):
            self._descend(
                [params[i] for i in piece],
                [gradients[i] for i in piece],
                [updates[i] for i in piece],
                [steps[i] for i in piece],
                group,
            )

    def _descend(
        self,
        params: list[Tensor],
        gradients: list[Tensor],
        updates: list[Tensor],
        steps: list[int],
        group: dict[str, Any],
    ) -> None:
        """W <- W - lr (O1 + alpha O2) / (sqrt(V) + eps), resized; `updates` hold O1."""
        ema, b2 = group["accumulate"] == "ema", group["betas"][1]
        if group["slow_weight"]:
            slow = [self.state[p]["slow_direction"] for p in params]
            torch._foreach_add_(updates, slow, alpha=group["slow_weight"])
        scales = [1.0] * len(params)
        if group["second_moment"]:
            squares = self._memories(params, "second_moment")
            if ema:
                torch._foreach_mul_(squares, b2)
                # sqrt(V / c^2) + eps = (sqrt(V) + c eps) / c
                scales = [(1 - b2**t) ** 0.5 for t in steps]
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - b2 if ema else b2)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, [c * group["eps"] for c in scales])
            torch._foreach_div_(updates, roots)
        factors: list[Any] = [group["lr"] * c for c in scales]
        if group["match_rms"] is not None:
            lengths = torch._foreach_norm(updates)
            factors = [
                group["lr"] * group["match_rms"] * p.numel() ** 0.5 / torch.where(n == 0, 1.0, n)
                for p, n in zip(params, lengths, strict=True)
            ]
        torch._foreach_mul_(updates, factors)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(params, updates)

    def _advance_slow(self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """At the start of step k f take the last f gradients into M2; then note this step's gradient."""
        if not group["slow_weight"]:
            return
        sums = self._memories(params, "slow_sum")
        slow = self._memories(params, "slow")
        directions = self._memories(params, "slow_direction")
        period = group["slow_period"]
        ema = group["accumulate"] == "ema"
        due = [i for i, p in enumerate(params) if self._done(p) and self._done(p) % period == 0]
        if due:
            ready = [sums[i] for i in due]
            if ema:
                torch._foreach_div_(ready, period)
            _accumulate([slow[i] for i in due], ready, group["betas"][2], ema)
            fresh = _orthogonal([slow[i] for i in due], group)
            torch._foreach_copy_([directions[i] for i in due], fresh)
            torch._foreach_zero_(ready)
        torch._foreach_add_(sums, gradients)

    def _memories(self, params: list[Tensor], name: str) -> list[Tensor]:
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [self.state[p][name] for p in params]

    def _done(self, p: Tensor) -> int:
        return int(self.state[p].get("step", 0))

    def _count(self, params: list[Tensor]) -> list[int]:
        for p in params:
            self.state[p]["step"] = self._done(p) + 1
        return [self._done(p) for p in params]


def _pieces(params: Sequence[Tensor]) -> list[list[int]]:
    """Who is moved together: all, but on a processor what is large for itself.

    It then stays in the cache from the first pass over it to the last.
    """
    large = [p.device.type == "cpu" and p.numel() >= LARGE for p in params]
    others = [i for i, alone in enumerate(large) if not alone]
    return [*([others] if others else []), *([i] for i, alone in enumerate(large) if alone)]


def _accumulate(memories: list[Tensor], values: Sequence[Tensor], beta: float, ema: bool) -> None:
    if ema:
        torch._foreach_lerp_(memories, list(values), 1 - beta)
    else:
        torch._foreach_add_(memories, list(values), alpha=beta)


def _orthogonal(memories: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
    found = newton_schulz_many(
        [as_matrix(m) for m in memories],
        group["ns_steps"],
        group["ns_coefficients"],
        dtype=group["ns_dtype"],
    )
    return [o.reshape(m.shape) for o, m in zip(found, memories, strict=True)]


def _apply(params: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
    lr = group["lr"]
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    torch._foreach_mul_(updates, lr)
    torch._foreach_sub_(params, updates)


def matrix_groups(
    model: nn.Module, not_matrix: Iterable[str] = ("lm_head", "embed_out", "classifier"), **options: Any
) -> list[dict[str, Any]]:
    """A model's trainable parameters as two groups for `M3`: matrices, and what takes the AdamW rule.

    Vectors, the weights of `nn.Embedding` (and what is tied to them) and modules one of whose name parts is
    in `not_matrix` are no matrices. `options` enter both groups. Empty groups are left out.
    """
    outside = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    names = set(not_matrix)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups[p.dim() >= 2 and p not in outside and not names & set(name.split("."))].append(p)
    return [{"params": found, "matrix": kind, **options} for kind, found in groups.items() if found]
