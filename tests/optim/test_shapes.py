import math

import numpy as np
import pytest

from gradatim.optim import shapes


def test_shapes_agree_with_their_formulas_step_by_step() -> None:
    T = 37
    loop = {
        "linear": [1 - t / (T - 1) for t in range(T)],
        "quadratic": [(1 - t / (T - 1)) ** 2 for t in range(T)],
        "cosine": [0.5 * (1 + math.cos(math.pi * t / T)) for t in range(T)],
        "1-sqrt": [1 - math.sqrt(t / T) for t in range(T)],
        "1/sqrt(t)": [1 / math.sqrt(t + 1) for t in range(T)],
        "1/t": [1 / (t + 1) for t in range(T)],
        "flat": [1.0] * T,
        "stepwise": [0.1 ** ((t / T >= 0.5) + (t / T >= 0.75)) for t in range(T)],
        "wsd": [1.0 if t < T - 7 else 1 - (t - (T - 7)) / 6 for t in range(T)],
    }
    assert set(loop) == set(shapes.SHAPES)
    for name, expected in loop.items():
        np.testing.assert_allclose(shapes.shape(name, T), expected, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", sorted(shapes.SHAPES))
@pytest.mark.parametrize("steps", [2, 3, 50])
def test_every_shape_lies_in_0_1_and_reaches_1(name: str, steps: int) -> None:
    factors = shapes.shape(name, steps)
    assert factors.shape == (steps,)
    assert factors.min() >= 0
    assert factors.max() == 1.0


def test_warmup_then_polynomial() -> None:
    f = shapes.warmup_polynomial(100, warmup=0.2, exponent=2.0)
    assert np.argmax(f) == 20
    np.testing.assert_allclose(f[:20], np.arange(1, 21) / 21)
    np.testing.assert_allclose(f[20:], (1 - np.arange(80) / 79) ** 2)


def test_warmup_leaves_the_rest_alone() -> None:
    f = shapes.with_warmup(shapes.flat(10), 0.3)
    np.testing.assert_allclose(f, [0.25, 0.5, 0.75, *[1.0] * 7])


@pytest.mark.parametrize(
    "call",
    [
        lambda: shapes.shape("nope", 5),
        lambda: shapes.linear(1),
        lambda: shapes.linear(5, end_factor=2.0),
        lambda: shapes.polynomial(5, exponent=0.0),
        lambda: shapes.warmup_stable_decay(5, warmup=0.9, cooldown=0.2),
        lambda: shapes.warmup_stable_decay(5, decay="cubic"),
        lambda: shapes.stepwise(5, milestones=(1.5,)),
        lambda: shapes.stepwise(5, gamma=1.0),
        lambda: shapes.warmup_polynomial(5, warmup=1.0),
        lambda: shapes.with_warmup(shapes.flat(5), -0.1),
    ],
)
def test_bad_settings_are_refused(call) -> None:
    with pytest.raises(ValueError, match=r"must|choose|at least"):
        call()
