"""Closed-form read-outs against scikit-learn, in parts and at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge

from gradatim.models.in_context_output import ICLOutput
from gradatim.probes.layer_readout import LayerReadout


def layers(count: int = 3, rows: int = 40) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    base = torch.randn(rows, 5, 4, generator=g, dtype=torch.float64)
    states = tuple(
        base + 0.3 * torch.randn(rows, 5, 4, generator=g, dtype=torch.float64) for _ in range(count)
    )
    return states, torch.randn(rows, 5, generator=g, dtype=torch.float64) + states[0].sum(-1)


def test_equals_scikit_learn() -> None:
    states, y = layers()
    found = LayerReadout(ridge=0.0).fit(states, y).predict(states)
    assert found.shape == (3, 40, 5)
    for h, prediction in zip(states, found, strict=True):
        x, target = h.flatten(0, 1).numpy(), y.flatten().numpy()
        np.testing.assert_allclose(
            prediction.flatten().numpy(), LinearRegression().fit(x, target).predict(x), rtol=1e-8, atol=1e-8
        )
    ridge = LayerReadout(ridge=0.5).fit(states, y)
    x = states[1].flatten(0, 1).numpy()
    alpha = 0.5 * np.trace(np.cov(x.T, bias=True)) * len(x) / 4
    other = Ridge(alpha=alpha).fit(x, y.flatten().numpy())
    np.testing.assert_allclose(ridge.coef_[1].numpy(), other.coef_, rtol=1e-8)
    assert ridge.intercept_[1].item() == pytest.approx(other.intercept_)


def test_parts_equal_the_whole_and_fit_forgets() -> None:
    states, y = layers()
    whole = LayerReadout().fit(states, y)
    parts = LayerReadout()
    for rows in torch.arange(40).split(13):
        parts.partial_fit(tuple(h[rows] for h in states), y[rows])
    torch.testing.assert_close(parts.coef_, whole.coef_)
    assert parts.rows_ == whole.rows_ == 200
    parts.fit(states, y)
    assert parts.rows_ == 200


def test_several_targets_equal_one_each() -> None:
    states, y = layers()
    both = torch.stack([y, y.square()], dim=-1)
    found = LayerReadout().fit(states, both).predict(states)
    assert found.shape == (3, 40, 5, 2)
    torch.testing.assert_close(found[..., 0], LayerReadout().fit(states, y).predict(states))


def test_unused_directions_and_constant_layers_do_no_harm() -> None:
    states, y = layers(1)
    wide = torch.cat([states[0], states[0][..., :2], torch.zeros(40, 5, 3, dtype=torch.float64)], dim=-1)
    plain = LayerReadout(1e-9).fit(states, y).predict(states)
    torch.testing.assert_close(
        LayerReadout(1e-9).fit((wide,), y).predict((wide,)), plain, rtol=1e-5, atol=1e-5
    )
    constant = (torch.ones(40, 5, 4),)
    assert LayerReadout().fit(constant, y).predict(constant).flatten().numpy() == pytest.approx(
        y.mean().item()
    )


def test_takes_a_learners_output() -> None:
    states, y = layers()
    out = ICLOutput(predictions=y, hidden_states=states)
    torch.testing.assert_close(
        LayerReadout().fit(out, y).predict(out), LayerReadout().fit(states, y).predict(states)
    )
    with pytest.raises(ValueError, match="output_hidden_states=True"):
        LayerReadout().fit(ICLOutput(predictions=y), y)


def test_bad_input_is_refused() -> None:
    states, y = layers()
    with pytest.raises(ValueError, match=r"not negative, got -1\.0"):
        LayerReadout(-1.0)
    with pytest.raises(ValueError, match="leading shape"):
        LayerReadout().fit(states, y[:, :2])
    with pytest.raises(ValueError, match="hidden states contain NaN"):
        LayerReadout().fit((states[0] * torch.nan,), y)
    with pytest.raises(ValueError, match="fitted on 3 layers, got 1"):
        LayerReadout().fit(states, y).predict(states[:1])
    with pytest.raises(ValueError, match="at least 2 positions"):
        _ = LayerReadout().coef_
