"""CKA and RSA on representations whose similarity is known, and layers of a network before and after."""

from __future__ import annotations

import math

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from gradatim.probes import linear_cka, representation_similarity, rsa
from gradatim.probes.representation_similarity import representations

G = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def test_cka_ignores_rotation_scale_and_shift_alone():
    x = normal(40, 6)
    rotation, _ = torch.linalg.qr(normal(6, 6))
    assert linear_cka(x, 3 * x @ rotation + 2) == pytest.approx(1.0)
    assert linear_cka(x, x @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1]).double())) < 0.95
    a, b = torch.zeros(4, 1).double(), torch.zeros(4, 1).double()
    a[:, 0] = torch.tensor([1.0, 1, -1, -1])
    b[:, 0] = torch.tensor([1.0, -1, 1, -1])
    assert linear_cka(a, b) == pytest.approx(0.0)
    assert math.isnan(linear_cka(a, torch.ones(4, 2).double()))
    with pytest.raises(ValueError, match="two rows"):
        linear_cka(a[:1], b[:1])


@pytest.mark.parametrize(("rows", "width"), [(50, 3), (5, 20)])
def test_cka_is_the_formula_through_gram_matrices_both_ways(rows, width):
    x, y = normal(rows, width), normal(rows, width + 1)
    center = torch.eye(rows).double() - 1 / rows
    k, l = center @ x @ x.T @ center, center @ y @ y.T @ center
    wanted = (k * l).sum() / ((k * k).sum().sqrt() * (l * l).sum().sqrt())
    assert linear_cka(x, y) == pytest.approx(float(wanted), rel=1e-10)


def test_rsa_compares_the_order_of_distances():
    x = normal(12, 4)
    assert rsa(x, 5 * x + 1) == pytest.approx(1.0)
    assert abs(rsa(x, normal(12, 4))) < 0.5
    # Points 0, 1, 3 and their mirror under distances 3, 2, 1: ranks reversed.
    a = torch.tensor([[0.0], [1.0], [3.0]]).double()  # distances 1, 3, 2
    b = torch.tensor([[0.0], [3.0], [2.0]]).double()  # distances 3, 2, 1
    assert rsa(a, b) == pytest.approx(-0.5)
    assert math.isnan(rsa(a, torch.zeros(3, 1).double()))
    with pytest.raises(ValueError, match="three rows"):
        rsa(a[:2], b[:2])


def test_only_changed_layers_change():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
        ).double()
    before = {n: p.detach() for n, p in module.named_parameters()}
    after = {**before, "2.weight": before["2.weight"] + 0.7 * normal(5, 6)}
    x = normal(30, 4)
    found = representation_similarity(module, before, after, x)
    assert found.layers == ("0", "1", "2", "3", "4")
    assert found.cka[:2] == pytest.approx((1.0, 1.0))
    assert found.rsa[:2] == pytest.approx((1.0, 1.0))
    assert max(found.cka[2:]) < 0.99
    assert "CKA" in str(found)
    axis = Figure().subplots()
    found.plot(axis)
    assert len(axis.lines) == 2
    # What is recorded is what the module computes, and nothing stays behind.
    kept = representations(module, before, x, ["1"])
    assert torch.equal(kept["1"], module[:2](x).detach())
    assert not any(m._forward_hooks for m in module.modules())
    assert representation_similarity(module, {}, {}, x).cka == pytest.approx([1.0] * 5)
    with pytest.raises(ValueError, match="no layer 'head'"):
        representation_similarity(module, before, after, x, ["head"])
