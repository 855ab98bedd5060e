"""Running any learner on contexts: in batches, without gradients, with hidden states where it has them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradatim.tasks.contexts import ICLBatch

Learner = Callable[[Tensor, Tensor], Any]


class LearnerRuns:
    """Runs a learner in batches without gradients; knows whether it shows its hidden states."""

    def __init__(self, model: Learner, batch_size: int, layers: bool) -> None:
        self.model, self.batch_size = model, batch_size
        self.notes: tuple[str, ...] = ()
        self.device = torch.device("cpu")
        self.shows_layers = False
        if isinstance(model, nn.Module):
            first = next(iter(model.parameters()), None)
            self.device = torch.device("cpu") if first is None else first.device
            accepted = inspect.signature(model.forward).parameters
            self.shows_layers = layers and "output_hidden_states" in accepted

    def __call__(self, batch: ICLBatch) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        was_training = isinstance(self.model, nn.Module) and self.model.training
        if isinstance(self.model, nn.Module):
            self.model.eval()
        try:
            parts = [
                self._run(x.to(self.device), y.to(self.device))
                for x, y in zip(batch.x.split(self.batch_size), batch.y.split(self.batch_size), strict=True)
            ]
        finally:
            if was_training and isinstance(self.model, nn.Module):
                self.model.train()
        predictions = torch.cat([p for p, _ in parts])
        states = [h for _, h in parts if h is not None]
        hidden = tuple(torch.cat(layer) for layer in zip(*states, strict=True)) if states else None
        return predictions, hidden

    @torch.no_grad()
    def _run(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        found = self.model(x, y, output_hidden_states=True) if self.shows_layers else self.model(x, y)  # type: ignore[call-arg]
        predictions = getattr(found, "predictions", None)
        if predictions is None:
            predictions = getattr(found, "logits", found)
        if not isinstance(predictions, Tensor):
            predictions = torch.as_tensor(np.asarray(predictions))
        if predictions.shape != y.shape:
            raise ValueError(
                f"the learner must predict one number per pair, {tuple(y.shape)}; "
                f"it gave {tuple(predictions.shape)}"
            )
        # Entry 0 has seen no pair and may be anything, NaN included.
        if not bool(torch.isfinite(predictions[:, 1:]).all()):
            raise ValueError("the learner's predictions are not finite (NaN or infinity)")
        states = getattr(found, "hidden_states", None) if self.shows_layers else None
        hidden = None if states is None else tuple(h.detach().double().cpu() for h in states)
        return predictions.detach().double().cpu(), hidden


def check_causal(run: Callable[[ICLBatch], tuple[Tensor, Any]], batch: ICLBatch, count: int = 8) -> None:
    """Raises ValueError if predictions change with labels that they are not to see."""
    few = ICLBatch(batch.x[:count], batch.y[:count])
    n = few.y.shape[1]
    cut = n // 2
    changed = few.y.clone()
    changed[:, cut:] = -changed[:, cut:] + (0.0 if bool((few.y.abs() == 1).all()) else 1.0)
    before, _ = run(few)
    after, _ = run(ICLBatch(few.x, changed))
    kept = slice(1, cut + 1)
    scale = before[:, kept].abs().amax().clamp(min=1e-6)
    if bool(((after[:, kept] - before[:, kept]).abs() > 1e-3 * scale).any()):
        raise ValueError(
            f"the learner's predictions for the first {cut + 1} inputs change with the label at "
            f"position {cut} or later: entry t must answer x[:, t] from the t pairs before it alone"
        )
