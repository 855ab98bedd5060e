"""The generators draw what the sheet of the paper states, in its order and precision."""

from __future__ import annotations

import pytest
import torch

from gradatim.tasks import planar_instance, random_instance, random_instances, relu_instance
from gradatim.tasks.attention_tokens import stack


def unit(a):
    return a / a.norm(dim=-1, keepdim=True)


def test_draws_come_in_float32_in_the_order_v_y_x_z_and_are_cast_afterwards():
    p = random_instance(6, 8, 10, seed=3)
    g = torch.Generator().manual_seed(3)
    v, y = torch.randn(10, generator=g), torch.randn(6, generator=g)
    x, z = torch.randn(6, 8, 10, generator=g), torch.randn(6, 10, generator=g)
    for ours, expected in ((p.v, unit(v)), (p.y, y.sign()), (p.x, unit(x)), (p.z, unit(z))):
        assert ours.dtype == torch.float64
        assert torch.equal(ours, expected.double())


def test_relu_problem_draws_its_matrix_then_tokens_labels_and_queries():
    p = relu_instance(3, 4, 6, seed=5)
    g = torch.Generator().manual_seed(5)
    v, x = torch.randn(6, 6, generator=g), torch.randn(3, 4, 6, generator=g)
    y, z = torch.randn(3, generator=g), torch.randn(3, 6, generator=g)
    assert torch.equal(p.v, (v / v.norm()).double())
    for ours, expected in ((p.x, unit(x)), (p.y, y.sign()), (p.z, unit(z))):
        assert torch.equal(ours, expected.double())


def test_planar_problems_are_laid_out_as_pictured():
    three = planar_instance(3, seed=1)
    assert three.x.shape == (2, 3, 2)
    assert (three.x[0, :, 0] < 0).all()
    assert (three.x[1, :, 0] > 0).all()
    five = planar_instance(5, seed=3)
    assert five.x[:, 0].tolist() == [[1.0, 0.5], [1.0, -0.5]]
    assert (five.y == 1).all()
    with pytest.raises(ValueError, match="t must be 3 or 5"):
        planar_instance(4, seed=0)


def test_a_seed_gives_the_same_problem_alone_and_in_a_stack_whatever_the_global_state():
    torch.manual_seed(0)
    together = random_instances(2, 3, 4, range(5, 8))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(together.x[1], random_instance(2, 3, 4, seed=6).x)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="no instance"):
        stack([])
