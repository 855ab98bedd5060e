"""What can be read linearly from each layer: one ridge regression per layer, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class LayerReadout:
    """A linear read-out per layer, shared by all positions, fitted by least squares on frozen hidden states.

    For layer l with centred states H [rows, width] and centred targets Y:

        W_l = (H^T H + ridge * tr(H^T H) / width * I)^-1 H^T Y,      prediction = (h - mean) W_l + mean(Y)

    Only H^T H, H^T Y and sums are kept (in float64), so contexts may come in any number of parts:
    `partial_fit` adds some, `fit` starts afresh. Re-fitting a read-out per layer is how "Transformers learn
    higher-order optimization methods" (Fu et al. 2023, arXiv 2310.17086) reads layers; there by gradient
    descent, here exactly.

    Args:
        ridge: relative to the mean eigenvalue of H^T H; keeps directions out that the layer does not use.

    Attributes after fitting: `coef_` [layers, width] or [layers, width, targets], `intercept_` [layers] or
    [layers, targets], `rows_` the positions seen.

    Raises ValueError for a negative ridge, states and targets that do not fit, too few rows to centre, or
    NaN and infinite entries.
    """

    def __init__(self, ridge: float = 1e-6) -> None:
        if not 0 <= ridge < float("inf"):
            raise ValueError(f"ridge must be finite and not negative, got {ridge}")
        self.ridge = ridge
        self._clear()

    def _clear(self) -> None:
        self.rows_ = 0
        self._widths: list[int] = []
        self._scalar = True
        self._moments: list[Tensor] = []
        self._coef: Tensor | None = None
        self._intercept: Tensor | None = None

    def fit(self, hidden_states: Any, y: Tensor) -> LayerReadout:
        """Forget what was seen and fit anew. `hidden_states`: a learner's output, or its tuple of
        [batch, n, width]; y [batch, n] or [batch, n, targets]."""
        self._clear()
        return self.partial_fit(hidden_states, y)

    def partial_fit(self, hidden_states: Any, y: Tensor) -> LayerReadout:
        """Add contexts to those already seen."""
        states = _states(hidden_states)
        targets = y.detach().double().unsqueeze(-1) if y.dim() == states[0].dim() - 1 else y.detach().double()
        if targets.shape[:-1] != states[0].shape[:-1]:
            raise ValueError(
                f"y must have the leading shape {tuple(states[0].shape[:-1])}, got {tuple(y.shape)}"
            )
        if not bool(torch.isfinite(targets).all()):
            raise ValueError("y contains NaN or infinite entries")
        rest = targets.flatten(0, -2)
        widths = [state.shape[-1] for state in states]
        if self.rows_ and widths != self._widths:
            raise ValueError(f"fitted on layers of widths {self._widths}, got {widths}")
        found = []
        for state in states:
            flat = state.detach().double().flatten(0, -2)
            if not bool(torch.isfinite(flat).all()):
                raise ValueError("hidden states contain NaN or infinite entries")
            # One Gram matrix of [1, H, Y] holds every sum that is needed.
            joined = torch.cat([flat.new_ones(len(flat), 1), flat, rest.to(flat.device)], dim=1)
            found.append(joined.T @ joined)
        if self.rows_:
            found = [old + new for old, new in zip(self._moments, found, strict=True)]
        self._moments = found
        self._widths, self._scalar = widths, y.dim() == states[0].dim() - 1
        self.rows_ += len(rest)
        self._coef = self._intercept = None
        return self

    @property
    def coef_(self) -> Tensor:
        """[layers, width] or [layers, width, targets]."""
        self._solve()
        assert self._coef is not None
        return self._coef

    @property
    def intercept_(self) -> Tensor:
        """[layers] or [layers, targets]."""
        self._solve()
        assert self._intercept is not None
        return self._intercept

    def predict(self, hidden_states: Any) -> Tensor:
        """[layers, batch, n] (or [..., targets]): every layer's predictions, in float64."""
        states = _states(hidden_states)
        if len(states) != len(self.coef_):
            raise ValueError(f"fitted on {len(self.coef_)} layers, got {len(states)}")
        return torch.stack(
            [
                state.detach().double() @ weight + bias
                for state, weight, bias in zip(states, self.coef_, self.intercept_, strict=True)
            ]
        )

    def _solve(self) -> None:
        if self._coef is not None:
            return
        if self.rows_ < 2:
            raise ValueError("fit the read-out on at least 2 positions first")
        weights, biases = [], []
        for gram, width in zip(self._moments, self._widths, strict=True):
            sums, inner = gram[0, 1:], gram[1:, 1:]
            centred = inner - sums[:, None] * sums / self.rows_
            hh, hy = centred[:width, :width], centred[:width, width:]
            scale = hh.diagonal().mean()
            penalty = self.ridge * scale * torch.eye(width, dtype=hh.dtype, device=hh.device)
            # A layer that is constant carries nothing: its weights are 0 and its mean answers.
            weight = torch.linalg.lstsq(hh + penalty, hy, driver="gelsd").solution if scale > 0 else hy * 0
            weights.append(weight)
            biases.append((sums[width:] - sums[:width] @ weight) / self.rows_)
        self._coef, self._intercept = torch.stack(weights), torch.stack(biases)
        if self._scalar:
            self._coef, self._intercept = self._coef.squeeze(-1), self._intercept.squeeze(-1)


def _states(given: Any) -> Sequence[Tensor]:
    states = getattr(given, "hidden_states", given)
    if states is None:
        raise ValueError("the output holds no hidden states: run the learner with output_hidden_states=True")
    if isinstance(states, Tensor) or not len(states):
        raise ValueError("hidden states must be a tuple of tensors [batch, n, width], one per layer")
    return states
