"""What every in-context learner returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput


@dataclass
class ICLOutput(ModelOutput):
    """Predictions [batch, n] (entry t from the pairs before t), the loss where labels were given, and the
    hidden states where asked for: embedding first, then every layer, each [batch, n, width] at the
    positions where predictions are read (after the final norm for the last one)."""

    loss: Tensor | None = None
    predictions: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
