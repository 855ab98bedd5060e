"""Primitives against plain loops; programs against the algorithms; the transformer against the program."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.models.context_programs import Program, aff, div, mov, mul, ridge_program, sgd_program


def memory(rows=12, columns=4, batch=(2,), seed=0):
    return torch.randn(
        *batch, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def contexts(n=4, d=3, batch=3):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, n, d, generator=g, dtype=torch.float64)
    return x, torch.randn(batch, n, generator=g, dtype=torch.float64)


def test_mov_copies_one_block_of_one_column():
    h = memory()
    after = mov(1, 3, (2, 5), 7)(h)
    expected = h.clone()
    expected[:, 7:10, 3] = h[:, 2:5, 1]
    assert torch.equal(after, expected)
    assert not torch.equal(after, h)


@settings(deadline=None)
@given(a=st.integers(1, 3), b=st.integers(1, 3), c=st.integers(1, 3))
def test_mul_multiplies_packed_matrices(a, b, c):
    h = memory(rows=30)
    after = mul((a, b, c), 0, 10, 20)(h)
    for s in range(2):
        for t in range(4):
            product = h[s, : a * b, t].reshape(a, b) @ h[s, 10 : 10 + b * c, t].reshape(b, c)
            torch.testing.assert_close(after[s, 20 : 20 + a * c, t], product.flatten())
    assert torch.equal(after[:, :20], h[:, :20])
    assert torch.equal(after[:, 20 + a * c :], h[:, 20 + a * c :])


def test_div_and_aff():
    h = memory()
    assert torch.equal(div((2, 5), 0, 6)(h)[:, 6:9], h[:, 2:5] / h[:, :1].abs())
    w = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    b = torch.tensor([1.0, -2.0], dtype=torch.float64)
    after = aff(10, ((0, 3), w), ((4, 6), -3.0), bias=b)(h)
    torch.testing.assert_close(after[:, 10:12], w @ h[:, :3] - 3 * h[:, 4:6] + b[:, None])
    torch.testing.assert_close(aff(0, bias=b)(h)[:, :2], b[:, None].expand(2, 2, 4))


def sgd_by_hand(x, y, lr, decay):
    found = torch.zeros_like(y)
    for s in range(len(x)):
        w = torch.zeros(x.shape[-1], dtype=x.dtype)
        for t in range(x.shape[1]):
            found[s, t] = w @ x[s, t]
            w = w - 2 * lr * (x[s, t] * (w @ x[s, t] - y[s, t]) + decay * w)
    return found


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("d", "n"), [(3, 5), (1, 1), (4, 2)])
def test_sgd_program_is_one_pass_of_sgd(d, n, decay):
    x, y = contexts(n, d)
    found = sgd_program(d, n, 0.03, decay)(x, y)
    torch.testing.assert_close(found, sgd_by_hand(x, y, 0.03, decay), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("d", "n"), [(3, 6), (1, 1), (4, 2)])
def test_ridge_program_is_ridge(d, n):
    x, y = contexts(n, d)
    found = ridge_program(d, n, 0.25)(x, y)
    assert (found[:, 0] == 0).all()
    for t in range(1, n):
        a = x[:, :t].mT @ x[:, :t] + 0.25 * torch.eye(d)
        w = torch.linalg.solve(a, x[:, :t].mT @ y[:, :t, None])
        torch.testing.assert_close(found[:, t], (x[:, t, None] @ w)[:, 0, 0], rtol=1e-11, atol=1e-12)


def test_programs_equal_the_reference_algorithms():
    from gradatim.probes import OnlineGradientDescent, Ridge

    x, y = contexts(6, 3)
    torch.testing.assert_close(
        ridge_program(3, 6, 0.5)(x, y), Ridge(0.5).predict(x, y), rtol=1e-10, atol=1e-10
    )
    online = OnlineGradientDescent(0.06).predict(x, y)
    torch.testing.assert_close(sgd_program(3, 6, 0.03)(x, y), online, rtol=1e-10, atol=1e-10)


def test_depth_and_width_are_the_theorems():
    assert len(sgd_program(3, 5, 0.1).program) - len(sgd_program(3, 4, 0.1).program) == 7
    assert len(ridge_program(3, 5, 0.1).program) - len(ridge_program(3, 4, 0.1).program) == 13
    assert sgd_program(20, 2, 0.1).program.rows < 4 * 20
    assert ridge_program(20, 2, 0.1).program.rows < 3 * 20**2


def test_copying_and_affine_layers_are_exact():
    h = memory()
    w = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    one = torch.ones(2, dtype=torch.float64)
    program = Program(
        [mov(0, 3, (0, 4)), mov(2, 2, (1, 3), 6), aff(8, ((0, 3), w), ((8, 10), 2.0), bias=one)], 12, 4
    )
    torch.testing.assert_close(program.to_transformer(0.5)(h), program.run(h), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "operation",
    [mul((2, 3, 2), 0, 6, 3), mul((2, 2, 2), 0, 0, 8), div((2, 6), 0, 4)],
    ids=["mul", "square", "div"],
)
def test_error_of_products_and_quotients_falls_with_eps_squared(operation):
    program = Program([operation], 12, 4)
    h = memory()
    h[:, 0] = 1 + h[:, 0].abs()
    errors = [program.realisation_error(h, eps) for eps in (4e-2, 2e-2, 1e-2)]
    assert errors[-1] < 0.1
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("build", [lambda: sgd_program(3, 5, 0.03, 0.1), lambda: ridge_program(3, 5, 1.0)])
def test_whole_programs_as_transformers(build):
    learner = build()
    x, y = contexts(5, 3)
    exact = learner(x, y)
    errors = [float((learner.realise(eps)(x, y) - exact).detach().abs().max()) for eps in (1e-2, 5e-3, 1e-4)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[2] < 1e-5
    transformer = learner.program.to_transformer(1e-3)
    assert len(transformer.layers) == len(learner.program)


def test_a_decoder_does_not_look_ahead():
    learner = sgd_program(3, 5, 0.03).realise(1e-3)
    x, y = contexts(5, 3)
    later = y.clone()
    later[:, 3:] += 5
    assert torch.equal(learner(x, later)[:, :4], learner(x, y)[:, :4])


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: mov(2, 1, (0, 1)), "earlier column"),
        (lambda: mov(0, 1, (3, 3)), "block of rows"),
        (lambda: mul((1, 0, 2), 0, 1, 2), "at least 1"),
        (lambda: aff(0, ((0, 2), torch.eye(3).double())), "terms of one size"),
        (lambda: aff(0), "terms of one size"),
        (lambda: Program([mov(0, 1, (0, 2))], 1, 4), "uses rows 0:2 of 1"),
        (lambda: Program([mov(0, 4, (0, 1))], 2, 4), "writes column 4"),
        (lambda: sgd_program(2, 2, 0.0), "lr must be above 0"),
        (lambda: ridge_program(0, 2, 1.0), "at least 1"),
        (lambda: sgd_program(2, 2, 0.1).realise(0.0), "eps"),
        (lambda: sgd_program(2, 2, 0.1).program.to_transformer(realise="relu"), "gelu"),
        (lambda: sgd_program(2, 2, 0.1).program.run(memory()), "memory must end in"),
    ],
)
def test_bad_programs_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()
