"""Slices of losses whose shape is known, filter normalisation, and paths of known length."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from gradatim.models import maml
from gradatim.probes import filter_normalized, landscape_slice, path_shape, random_slices
from gradatim.probes.loss_landscape import LandscapeSlice

torch.set_num_threads(1)


def at(value):
    return {"w": torch.tensor([value], dtype=torch.float64)}


def test_a_parabola_is_not_rough():
    found = landscape_slice(lambda w: (w["w"] - 0.3).square().sum(), at(0.0), at(1.0))
    assert found.losses[0] == pytest.approx(0.09)
    assert len(found.t) == 65
    assert found.roughness < 1e-6
    assert found.minima == 1
    assert found.variation == pytest.approx((0.09 + 0.49) / 0.49, rel=0.01)
    slope = landscape_slice(lambda w: w["w"].sum(), at(0.0), at(2.0))
    assert (slope.minima, slope.variation) == (0, pytest.approx(1.0))
    assert landscape_slice(lambda w: 0 * w["w"].sum(), at(0.0), at(1.0)).variation == 0


def test_waves_are_counted_and_a_kink_is_rough():
    # cos(8 pi t) has its minima at t = 1/8, 3/8, 5/8, 7/8.
    wave = landscape_slice(lambda w: torch.cos(8 * math.pi * w["w"]).sum(), at(0.0), at(1.0), 129)
    assert wave.minima == 4
    assert wave.variation == pytest.approx(8.0, rel=0.01)
    kink = landscape_slice(lambda w: (w["w"] - 0.5).abs().sum(), at(0.0), at(1.0))
    # One of the 63 second differences is not 0: std / mean = sqrt(63 - 1).
    assert kink.roughness == pytest.approx(math.sqrt(62), rel=1e-6)


def test_directions_are_as_long_as_the_filters():
    weights = {"conv": torch.randn(4, 3, 2, 2), "bias": torch.ones(4), "dead": torch.zeros(2, 3)}
    found = filter_normalized(weights, torch.Generator().manual_seed(0))
    assert torch.allclose(found["conv"].flatten(1).norm(dim=1), weights["conv"].flatten(1).norm(dim=1))
    assert not found["bias"].any()
    assert not found["dead"].any()
    slices = random_slices(lambda w: w["conv"].square().sum(), weights, directions=3, radius=0.5, points=5)
    middle = [s.losses[2] for s in slices]
    assert middle == pytest.approx([float(weights["conv"].square().sum())] * 3)
    assert len({s.losses[0] for s in slices}) == 3
    assert slices[0].t.tolist() == [-0.5, -0.25, 0.0, 0.25, 0.5]


def test_paths_of_known_shape():
    corner = [{"a": torch.tensor([x, 0.0]), "b": torch.tensor(y)} for x, y in ((0, 0), (3, 0), (3, 4))]
    corner = [{k: v.double() for k, v in state.items()} for state in corner]
    found = path_shape(corner)
    assert (float(found.length), float(found.displacement)) == (7.0, 5.0)
    assert float(found.directness) == pytest.approx(5 / 7)
    many = [{k: torch.stack([v, 2 * v, 0 * v]) for k, v in state.items()} for state in corner]
    batch = path_shape(many, batched=True)
    assert batch.length.tolist() == [7.0, 14.0, 0.0]
    assert batch.directness == pytest.approx([5 / 7, 5 / 7, 1.0])
    with pytest.raises(ValueError, match="at least one state"):
        path_shape([])
    with pytest.raises(ValueError, match="same names"):
        path_shape([at(0.0), {"v": torch.zeros(1)}])


def test_an_adaptation_path_is_measured_per_task():
    module = nn.Linear(1, 1, bias=False).double()
    meta = maml(module, lr=0.1, loss="mse")
    x, y = torch.tensor([[[1.0], [2.0]]] * 2).double(), torch.tensor([[1.0, 3.0], [0.0, 0.0]]).double()
    found = path_shape(meta.adaptation_path(x, y, 8), batched=True)
    # Gradient descent on one parabola with a small rate never turns.
    assert found.directness == pytest.approx([1.0, 1.0])


def test_they_print_plot_and_refuse():
    found = LandscapeSlice(np.linspace(0, 1, 5), np.array([1.0, 0.5, 0.8, 0.2, 0.4]))
    assert "2 inner minima" in str(found)
    axes = Figure().subplots(1, 2)
    found.plot(axes[0], label="x")
    path_shape([at(0.0), at(1.0)]).plot(axes[1])
    assert "directness 1.000" in str(path_shape([at(0.0), at(1.0)]))
    assert all(axis.lines for axis in axes)
    with pytest.raises(ValueError, match="at least 3 points"):
        landscape_slice(lambda w: w["w"].sum(), at(0.0), at(1.0), 2)
    with pytest.raises(ValueError, match="same names"):
        landscape_slice(lambda w: w["w"].sum(), at(0.0), {"w": torch.zeros(2)})
