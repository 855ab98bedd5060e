"""Clocks against loops written out: sums and means over chunks, partial chunks, resuming."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradatim.optim import MultiFrequency


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1)


def gradient(t, p):
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 * t + p.numel()))


def walk(params, optimizer, steps, first=0):
    for t in range(first, first + steps):
        for p in params:
            p.grad = gradient(t, p)
        optimizer.step()


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(0, 13), st.sampled_from(["sum", "mean"]), st.booleans()
)
def test_chunks_equal_a_loop(first, second, steps, reduction, flush):
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    optimizer = MultiFrequency(sgd, [([params[0]], first), ([params[1]], second, reduction)])
    walk(params, optimizer, steps)
    assert optimizer.pending == [steps % first, steps % second]
    if flush:
        optimizer.flush()
        assert optimizer.pending == [0, 0]
    for p, period, how in zip(params, (first, second), ("sum", reduction), strict=True):
        expected = torch.zeros_like(p)
        for start in range(0, steps, period):
            chunk = [gradient(t, p) for t in range(start, min(start + period, steps))]
            if len(chunk) == period or flush:
                total = torch.stack(chunk).sum(0)
                expected = expected - 0.1 * (total if how == "sum" else total / len(chunk))
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


def test_all_periods_one_is_the_inner_optimizer_bit_for_bit():
    ours, theirs = ([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))] for _ in range(2))
    walk(ours, MultiFrequency(torch.optim.AdamW, [([p], 1, "mean") for p in ours]), 5)
    walk(theirs, torch.optim.AdamW(theirs), 5)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_groups_that_are_not_due_do_not_even_decay_and_gradients_stay():
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    optimizer = MultiFrequency(
        lambda g: torch.optim.AdamW(g, lr=0.1, weight_decay=0.5), [([params[0]], 1), ([params[1]], 3)]
    )
    walk(params, optimizer, 2)
    assert torch.equal(params[1].detach(), torch.ones(2))
    assert optimizer.due() == [True, True]
    assert torch.equal(params[1].grad, gradient(1, params[1]))
    walk(params, optimizer, 1, first=2)
    assert not torch.equal(params[1].detach(), torch.ones(2))
    assert optimizer.inner.state[params[1]]["step"] == 1


def test_discard_forgets_the_chunk():
    p = nn.Parameter(torch.zeros(3))
    optimizer = MultiFrequency(sgd, [([p], 4)])
    walk([p], optimizer, 3)
    optimizer.discard()
    walk([p], optimizer, 4, first=10)
    torch.testing.assert_close(p.detach(), -0.1 * sum(gradient(t, p) for t in range(10, 14)))


@pytest.mark.parametrize("cut", [3, 4, 5])
def test_an_unfinished_chunk_survives_a_save(cut):
    def make():
        params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
        return params, MultiFrequency(
            lambda g: torch.optim.Adam(g, lr=0.1),
            [([params[0]], 4, "mean"), {"params": params[1], "lr": 0.3}],
        )

    params, optimizer = make()
    walk(params, optimizer, cut)
    file = io.BytesIO()
    torch.save([[p.detach() for p in params], optimizer.state_dict()], file)
    walk(params, optimizer, 9, first=cut)
    file.seek(0)
    values, state = torch.load(file, weights_only=True)
    again, other = make()
    for p, value in zip(again, values, strict=True):
        p.data.copy_(value)
    other.load_state_dict(state)
    assert other.clock == cut
    walk(again, other, 9, first=cut)
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))


def test_schedulers_drive_the_inner_groups():
    p = nn.Parameter(torch.zeros(1))
    optimizer = MultiFrequency(sgd, [{"params": [p], "period": 2, "lr": 1.0}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for _ in range(2):
        p.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
    assert optimizer.inner.param_groups[0]["lr"] == 0.25
    assert p.item() == -1.0  # the rate when the chunk ended was 0.5


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (0, "a period must be a whole number of steps, at least 1, got 0"),
        (1.5, "at least 1, got 1.5"),
    ],
)
def test_bad_periods_are_refused(group, message):
    with pytest.raises(ValueError, match=message):
        MultiFrequency(sgd, [([nn.Parameter(torch.ones(1))], group)])


def test_other_refusals():
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match='reduction must be "sum" or "mean", got \'max\''):
        MultiFrequency(sgd, [([p], 2, "max")])
    optimizer = MultiFrequency(sgd, [([p], 2)])
    p.grad = torch.full((1,), float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        optimizer.step()
    assert optimizer.clock == 0
    with pytest.raises(ValueError, match=r"periods \[2\], these have \[3\]"):
        MultiFrequency(sgd, [([p], 3)]).load_state_dict(optimizer.state_dict())
