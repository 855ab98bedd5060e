"""What every linear layer saw and what came back: rows (x, delta) with delta = dL/dy, y = W x.

The gradient of W is delta^T x summed over rows; rules that need more than that sum (a decay along x, or one
large product where many small ones would run) need the rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class LinearRecords:
    """Hooks on `nn.Linear` modules that keep (x [n, in], delta [n, out]) of every backward pass.

    `rows(weight)` joins what was recorded for a weight since the last `clear()`, in the order of the backward
    passes; a module that runs several times, or two modules that share a weight, simply add rows. Passes
    without gradients record nothing. `remove()` takes the hooks off.
    """

    def __init__(self, modules: Iterable[nn.Linear]) -> None:
        self._kept: dict[Tensor, list[tuple[Tensor, Tensor]]] = {}
        self._handles: list[RemovableHandle] = []
        for module in modules:
            self._kept.setdefault(module.weight, [])
            self._handles.append(module.register_forward_hook(self._hook(module.weight)))

    def _hook(self, weight: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def seen(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            changed = None
            if not output.requires_grad:
                # Weight and input are both constants: the output is made a leaf so that delta comes back.
                changed = output = output.detach().requires_grad_()
            x = inputs[0].detach()

            def came_back(delta: Tensor) -> None:
                self._kept[weight].append(
                    (x.reshape(-1, x.shape[-1]), delta.detach().reshape(-1, delta.shape[-1]))
                )

            output.register_hook(came_back)
            return changed

        return seen

    def __contains__(self, weight: Tensor) -> bool:
        return weight in self._kept

    def rows(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """(x [n, in], delta [n, out]) in the weight's type, or None where nothing was recorded."""
        kept = self._kept.get(weight)
        if not kept:
            return None
        x = kept[0][0] if len(kept) == 1 else torch.cat([k[0] for k in kept])
        delta = kept[0][1] if len(kept) == 1 else torch.cat([k[1] for k in kept])
        return x.to(weight.dtype), delta.to(weight.dtype)

    def clear(self, weights: Iterable[Tensor] | None = None) -> None:
        """Forget the rows of these weights, or all."""
        for weight in list(self._kept) if weights is None else weights:
            if weight in self._kept:
                self._kept[weight] = []

    def remove(self) -> None:
        """Take the hooks off and forget everything."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.clear()
