"""Probes over positions find what was planted, where it was planted, and nothing elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradatim.probes.position_probe import (
    PositionAttentionProbe,
    context_moment,
    fit_position_probes,
)


def test_probe_is_the_formula() -> None:
    probe = PositionAttentionProbe(4, 3, 2, hidden=5)
    with torch.no_grad():
        probe.scores.copy_(torch.tensor([0.1, -1.0, 2.0, 0.0]))
    h = torch.randn(6, 4, 3)
    share = probe.scores.exp() / probe.scores.exp().sum()
    mixed = sum(share[t] * (h[:, t] @ probe.project.weight.T) for t in range(4))
    first, _, second = probe.read
    expected = nn.functional.gelu(mixed @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(probe(h), expected)
    torch.testing.assert_close(probe.attention, share.detach())
    linear = PositionAttentionProbe(4, 3, 2, hidden=None, mlp=False)
    torch.testing.assert_close(linear(h), linear.read(h.mean(1)))


def planted(nonlinear: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Layer 0: noise. Layer 1: the target sits at position 3, linearly or behind a product of two entries."""
    g = torch.Generator().manual_seed(0)
    states = [torch.randn(600, 5, 6, generator=g) for _ in range(2)]
    at = states[1][:, 3]
    target = at[:, :1] * at[:, 1:2] if nonlinear else at[:, :2] - 2 * at[:, 2:4]
    return states, target


def test_finds_a_linear_target_and_its_position() -> None:
    states, target = planted(False)
    found = fit_position_probes(states, target, hidden=16, mlp=False, steps=250, lr=0.03)
    assert found.error[1] < 0.05
    assert found.error[0] > 0.9
    assert found.best_layer == 1
    assert found.attention[1].argmax() == 3
    assert found.attention[1, 3] > 0.8
    assert "y_2" in str(found).splitlines()[2]


def test_a_network_reads_what_a_linear_probe_cannot() -> None:
    states, target = planted(True)
    options = {"hidden": 32, "steps": 300, "lr": 0.02}
    network = fit_position_probes(states[1:], target, mlp=True, **options)
    linear = fit_position_probes(states[1:], target, mlp=False, **options)
    assert network.error[0] < 0.5 < 0.9 < linear.error[0]


def test_layers_do_not_disturb_one_another() -> None:
    states, target = planted(False)
    both = fit_position_probes(states, target, hidden=8, steps=20, seed=3)
    # Probe 0 starts and trains the same, whoever stands beside it.
    alone = fit_position_probes(states[:1], target, hidden=8, steps=20, seed=3)
    torch.testing.assert_close(both.error[:1], alone.error)
    torch.testing.assert_close(both.attention[:1], alone.attention)
    again = fit_position_probes(states, target, hidden=8, steps=20, seed=3)
    assert torch.equal(both.error, again.error)


def test_result_draws_itself() -> None:
    from matplotlib.figure import Figure

    states, target = planted(False)
    figure = Figure()
    fit_position_probes(states, target, hidden=4, steps=2).plot(figure)
    assert len(figure.axes) == 3


def test_moment_is_what_one_step_needs() -> None:
    x, y = torch.randn(2, 5, 3), torch.randn(2, 5)
    expected = torch.stack([x[b].T @ y[b] / 5 for b in range(2)])
    torch.testing.assert_close(context_moment(x, y), expected)


def test_bad_input_is_refused() -> None:
    states, target = planted(False)
    with pytest.raises(ValueError, match="out_dim must be at least 1"):
        PositionAttentionProbe(3, 3, 0)
    with pytest.raises(ValueError, match="no hidden states"):
        fit_position_probes([], target)
    with pytest.raises(ValueError, match="too few"):
        fit_position_probes([h[:4] for h in states], target[:4])
    with pytest.raises(ValueError, match="does not vary"):
        fit_position_probes(states, torch.ones(600, 1))
    with pytest.raises(ValueError, match="held_out"):
        fit_position_probes(states, target, held_out=1.0)
