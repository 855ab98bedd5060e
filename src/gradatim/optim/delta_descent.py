r"""Delta gradient descent: a gradient step that also forgets what the layer answered along x.

For a linear layer y = W x with delta = dL/dy, "Nested Learning" (2025, arXiv 2512.24695, Eq. 56-57) replaces
the linear surrogate of gradient descent by a squared one with the target u = -delta:

    W' = argmin_M  1/2 ||M x - u||^2 + 1/(2 eta) ||M - W||_F^2

which Sherman-Morrison solves, with eta' = eta / (1 + eta ||x||^2), as

    W' = W (I - eta' x x^T) - eta' delta x^T.

`decay` (rho) multiplies the first eta': 1 is the paper's rule, 0 is gradient descent with rate eta'. Mind its
fixed point: W x = -delta. For the squared loss that is W x = y / 2, half the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from gradatim.optim.linear_records import LinearRecords
from gradatim.optim.step_gradients import call_closure, check_at_least, group_gradients, refuse_non_finite

Form = Literal["first-order", "sequential", "joint"]
FORMS = ("first-order", "sequential", "joint")


def delta_gradient_step(
    weight: Float[Tensor, "out in_"],
    x: Float[Tensor, "n in_"] | Float[Tensor, " in_"],
    delta: Float[Tensor, "n out"] | Float[Tensor, " out"],
    lr: float | Tensor,
    decay: float = 1.0,
    *,
    form: Form = "first-order",
    norm: float | None = None,
) -> Float[Tensor, "out in_"]:
    r"""W' after one step on n samples; for one sample all forms are the same, exact minimiser.

    - "first-order": the mean of the samples' own steps,
      :math:`W - \frac1n\sum_i \eta'_i (\rho W x_i + \delta_i) x_i^\top`.
    - "sequential": one sample after the other, each with the W the last one left (the deltas are given):
      W (I - rho eta'_1 x_1 x_1^T) ... , computed by one triangular solve of size n.
    - "joint": the minimiser for all samples at once,
      1/(2n) sum ||M x_i + delta_i||^2 + 1/(2 eta) ||M - W||^2 (for rho = 1), by one solve of size n.

    Args:
        weight: W; it is not changed.
        x, delta: inputs and dL_i/dy_i, where L_i is the loss of sample i alone (not divided by n).
        lr: eta > 0.
        decay: rho.
        norm: the one length lambda that all x are promised to have, as the paper assumes; None measures
            each. Given, x of another length are refused.

    Raises ValueError for a negative `lr` or `decay`, an unknown form, or x not of length `norm`.
    """
    check_at_least("lr", lr)
    check_at_least("decay", decay)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    # Solves need float32 at least, and eta' loses its digits in less.
    wide = torch.promote_types(weight.dtype, torch.float32)
    kind, weight = weight.dtype, weight.to(wide)
    x, delta = (part.reshape(-1, part.shape[-1]).to(wide) for part in (x, delta))
    squares = x.square().sum(1)  # [n]
    if norm is not None:
        worst = float((squares.sqrt() - norm).abs().max())
        if worst > 1e-4 * max(norm, 1.0):
            raise ValueError(
                f"norm={norm:g} promises inputs of that length, but one is off by {worst:.3g}: "
                "normalise x, or give norm=None to measure each"
            )
    rates = lr / (1 + lr * squares)  # eta'
    answered = decay * (x @ weight.mT) + delta  # [n, out]
    if form == "first-order":
        return (weight - (rates[:, None] * answered).mT @ x / len(x)).to(kind)
    gram = x @ x.mT  # [n, n]
    eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
    if form == "joint":
        share = lr / len(x)
        return (weight - share * torch.linalg.solve(eye + share * gram, answered).mT @ x).to(kind)
    # r_i = rho (W x_i - sum_{j<i} eta'_j (x_j . x_i) r_j) + delta_i, for all i at once.
    lower = eye + decay * gram.tril(-1) * rates
    r = torch.linalg.solve_triangular(lower, answered, upper=False, unitriangular=True)
    return (weight - (rates[:, None] * r).mT @ x).to(kind)


class DeltaGradientDescent(Optimizer):
    """`delta_gradient_step` for every `nn.Linear` of a model; plain gradient descent for all else.

    Hooks on the linear layers keep (x, delta) of each backward pass until `step()`; `zero_grad()` forgets
    them. Biases, norms, embeddings and other tensors take p <- p - lr * grad.

    Args:
        model: the module to train.
        lr: eta.
        decay: rho; 1 is the paper's rule, 0 is gradient descent with rate eta / (1 + eta ||x||^2). With 1 the
            layers are pulled towards W x = -delta: do not use it unscaled as the outer optimizer of a network
            unless that is what you want to measure.
        params: parameters or groups to train (default: all that require a gradient); groups may have
            their own `lr` and `decay`.
        form: how a mini-batch counts, see `delta_gradient_step`.
        loss_reduction: "mean" if the loss averages over the n rows a layer sees (deltas are then multiplied
            by n), "sum" if it adds them up.
        check_finite: refuse to step on what is not finite (waits for the device once per group).

    Clipping and gradient scalers change `.grad`, which linear weights do not use here: keep losses unscaled.
    `close()` takes the hooks off.

    Raises ValueError for a negative `lr` or `decay`, an unknown form or reduction, or a weight that a linear
    layer shares with a module of another kind; RuntimeError for sparse or non-finite gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor,
        decay: float = 1.0,
        *,
        params: Iterable[Any] | None = None,
        form: Form = "first-order",
        loss_reduction: Literal["mean", "sum"] = "mean",
        maximize: bool = False,
        check_finite: bool = True,
    ) -> None:
        check_at_least("lr", lr)
        check_at_least("decay", decay)
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        if loss_reduction not in ("mean", "sum"):
            raise ValueError(f'loss_reduction must be "mean" or "sum", got {loss_reduction!r}')
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        owned = {m.weight for m in linears}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                continue
            for part, p in module.named_parameters(recurse=False):
                if p in owned:
                    raise ValueError(
                        f"{name}.{part} is also the weight of a linear layer: its gradient has parts without "
                        "rows (x, delta). Untie it, or leave it out of the model given here"
                    )
        defaults = {
            "lr": lr,
            "decay": decay,
            "form": form,
            "loss_reduction": loss_reduction,
            "maximize": maximize,
            "check_finite": check_finite,
        }
        trained = [p for p in model.parameters() if p.requires_grad] if params is None else params
        super().__init__(trained, defaults)
        self.records = LinearRecords(linears)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients and forget the recorded rows."""
        super().zero_grad(set_to_none)
        self.records.clear()

    def close(self) -> None:
        """Take the hooks off the model."""
        self.records.remove()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` re-evaluates the loss and returns it."""
        loss = call_closure(closure)
        for group in self.param_groups:
            params, gradients = group_gradients(group, "DeltaGradientDescent")
            moved: list[Tensor] = []
            for p, gradient in zip(params, gradients, strict=True):
                rows = self.records.rows(p)
                moved.append(p - group["lr"] * gradient if rows is None else _moved(p, *rows, group))
            if group["check_finite"]:
                refuse_non_finite(moved, "DeltaGradientDescent", "new value of parameter")
            for p, new in zip(params, moved, strict=True):
                p.copy_(new)
        self.records.clear()
        return loss


def _moved(p: Tensor, x: Tensor, delta: Tensor, group: dict[str, Any]) -> Tensor:
    if group["loss_reduction"] == "mean":
        delta = delta * len(x)
    if group["maximize"]:
        delta = -delta
    return delta_gradient_step(p, x, delta, group["lr"], group["decay"], form=group["form"])
