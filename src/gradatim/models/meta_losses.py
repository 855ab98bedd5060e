"""Losses of every task of a meta-batch, and what its data must look like."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.func import vmap

TaskLoss = Callable[[Tensor, Tensor], Tensor]
LOSSES = ("bce", "cross_entropy", "mse")


def task_losses(
    kind: str | TaskLoss, outputs: Shaped[Tensor, "tasks n ..."], ys: Shaped[Tensor, "tasks n ..."]
) -> Float[Tensor, " tasks"]:
    """The mean loss over the rows of each task.

    "bce": logits [T, n] and labels 0/1; "cross_entropy": logits [T, n, classes] and class numbers [T, n];
    "mse": outputs of the shape of `ys`. Or a function of one task's outputs and labels that gives a scalar.
    """
    if not isinstance(kind, str):
        found: Tensor = vmap(kind)(outputs, ys)
        return found
    if kind == "cross_entropy":
        each = F.cross_entropy(outputs.flatten(0, 1), ys.flatten(0, 1).long(), reduction="none")
        return each.view(ys.shape).mean(1)
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(outputs, ys.to(outputs.dtype), reduction="none").mean(1)
    return F.mse_loss(outputs, ys.to(outputs.dtype), reduction="none").flatten(1).mean(1)


def fitted_outputs(kind: str | TaskLoss, outputs: Tensor, ys: Tensor | None = None) -> Tensor:
    """Outputs as the loss reads them: a last axis of one is dropped for one number per row.

    Raises ValueError where outputs and labels do not belong together.
    """
    if kind in ("bce", "mse") and outputs.dim() == 3 and outputs.shape[-1] == 1:
        outputs = outputs.squeeze(-1)
    if kind == "bce" and outputs.dim() != 2:
        raise ValueError(
            f'"bce" needs one logit per row, the module gives {tuple(outputs.shape[1:])} per task; use '
            '"cross_entropy" for several classes'
        )
    if kind == "cross_entropy" and outputs.dim() != 3:
        raise ValueError(
            f'"cross_entropy" needs [n, classes] per task, the module gives {tuple(outputs.shape[1:])}'
        )
    if kind == "mse" and ys is not None and outputs.shape != ys.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} and labels {tuple(ys.shape)} differ in shape")
    return outputs


def check_set(kind: str | TaskLoss, xs: Tensor, ys: Tensor, name: str, adapting: bool) -> None:
    """Refuse sets whose shapes do not fit, and a support set of one class, from which nothing is learned."""
    if xs.shape[:2] != ys.shape[:2] or xs.shape[1] == 0:
        raise ValueError(
            f"{name}: inputs [T, n, ...] and labels [T, n] must share T and n >= 1, got {tuple(xs.shape)} "
            f"and {tuple(ys.shape)}"
        )
    if kind not in ("bce", "cross_entropy"):
        if kind == "mse" and ys.dim() == 3 and ys.shape[2] == 1:
            raise ValueError(f"{name}: labels are [T, n], got {tuple(ys.shape)}; squeeze the last axis")
        return
    if ys.dim() != 2:
        raise ValueError(f"{name}: labels are [T, n], got {tuple(ys.shape)}; squeeze the last axis")
    if adapting:
        one_class = (ys == ys[:, :1]).all(1)
        if bool(one_class.any()):
            task = int(torch.nonzero(one_class)[0, 0])
            raise ValueError(f"the support set of task {task} has one class only: {ys[task, 0].item():g}")
