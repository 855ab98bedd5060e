"""Recurrent in-context learners: LSTM and GRU between the transformer's read-in and read-out."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradatim.models.decoder import vectorised
from gradatim.models.in_context import InContextConfig, InContextModel

Cell = Literal["lstm", "gru"]
GATES = {"lstm": 4, "gru": 3}


class InContextLSTM(InContextModel):
    """`n_layer` LSTM layers of width `n_embd`, no positions; hidden states of every layer."""

    def make_backbone(self, config: InContextConfig) -> nn.Module:
        """A stack of LSTM layers."""
        return Recurrent("lstm", config.n_embd, config.n_layer)


class InContextGRU(InContextModel):
    """`n_layer` GRU layers of width `n_embd`, no positions; hidden states of every layer."""

    def make_backbone(self, config: InContextConfig) -> nn.Module:
        """A stack of GRU layers."""
        return Recurrent("gru", config.n_embd, config.n_layer)


class Recurrent(nn.Module):
    """L recurrent layers of one width, the output of each feeding the next."""

    def __init__(self, cell: Cell, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RecurrentLayer(cell, width) for _ in range(layers))
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Any = partial(checkpoint, use_reentrant=False)

    def forward(
        self, h: Tensor, *, read: slice | None = None, output_hidden_states: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """[batch, time, H] -> [batch, read, H], and the states of all layers where asked for."""
        states = [h]
        for layer in self.layers:
            again = self.gradient_checkpointing and self.training
            h = self._gradient_checkpointing_func(layer, h) if again else layer(h)
            states.append(h)
        if read is not None:
            states = [state[:, read] for state in states]
        return states[-1], tuple(states) if output_hidden_states else None


class RecurrentLayer(nn.Module):
    """One layer with the parameters and the arithmetic of `torch.nn.LSTM` or `torch.nn.GRU`.

    torch's fused kernel runs it, except under `torch.func.vmap`, which cannot see into that kernel: there the
    cell is written out, so that several learners train as one tensor program.
    """

    def __init__(self, cell: Cell, width: int) -> None:
        super().__init__()
        self.cell: Cell = cell
        self.weight_ih = nn.Parameter(torch.empty(GATES[cell] * width, width))
        self.weight_hh = nn.Parameter(torch.empty(GATES[cell] * width, width))
        self.bias_ih = nn.Parameter(torch.empty(GATES[cell] * width))
        self.bias_hh = nn.Parameter(torch.empty(GATES[cell] * width))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, H] -> [batch, time, H], from a state of zeros."""
        if vectorised(x) or vectorised(self.weight_ih):
            return self.written_out(x)
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        zero = x.new_zeros(1, x.shape[0], x.shape[2])
        if self.cell == "lstm":
            return torch.lstm(x, (zero, zero), weights, True, 1, 0.0, self.training, False, True)[0]
        return torch.gru(x, zero, weights, True, 1, 0.0, self.training, False, True)[0]

    def written_out(self, x: Tensor) -> Tensor:
        """The same, step by step; the input's part of all gates in one product."""
        gates = F.linear(x, self.weight_ih, self.bias_ih)
        h = c = torch.zeros_like(x[:, 0])
        outputs = []
        for t in range(x.shape[1]):
            own = F.linear(h, self.weight_hh, self.bias_hh)
            if self.cell == "lstm":
                i, f, g, o = (gates[:, t] + own).chunk(4, dim=-1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            else:
                (xr, xz, xn), (hr, hz, hn) = gates[:, t].chunk(3, dim=-1), own.chunk(3, dim=-1)
                z = (xz + hz).sigmoid()
                h = (1 - z) * (xn + (xr + hr).sigmoid() * hn).tanh() + z * h
            outputs.append(h)
        return torch.stack(outputs, dim=1)
