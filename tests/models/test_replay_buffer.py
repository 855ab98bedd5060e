"""Replayed states: first in, first out, in half precision, with a state that can be saved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.models import ReplayBuffer


def records(first: int, count: int, time: int = 3, vocab: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(first, first + count).unsqueeze(1).expand(count, time)
    return ids, ids.float().unsqueeze(-1).expand(count, time, vocab)


@settings(max_examples=30, deadline=None)
@given(capacity=st.integers(1, 9), sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_it_holds_the_newest(capacity: int, sizes: list[int]) -> None:
    buffer, pushed = ReplayBuffer(capacity), 0
    for size in sizes:
        buffer.push(*records(pushed, size))
        pushed += size
    expected = list(range(pushed))[-capacity:]
    assert len(buffer) == len(expected)
    if expected:
        ids, states = buffer.draw(capacity, torch.Generator().manual_seed(0))
        assert sorted(ids[:, 0].tolist()) == expected
        torch.testing.assert_close(states[:, 0, 0].float(), ids[:, 0].float())
        assert states.dtype == torch.float16
    else:
        with pytest.raises(ValueError, match="empty"):
            buffer.draw(1)


def test_batches_are_extended_by_half_their_size() -> None:
    buffer, fresh = ReplayBuffer(100), torch.zeros(8, 3, dtype=torch.int64)
    ids, states = buffer.extend(fresh)
    assert ids is fresh
    assert states is None
    buffer.push(*records(10, 50))
    ids, states = buffer.extend(fresh, generator=torch.Generator().manual_seed(0))
    assert ids.shape == (12, 3)
    assert states.shape == (4, 3, 4)
    assert states.dtype == torch.float32
    assert torch.equal(ids[:8], fresh)
    torch.testing.assert_close(states[:, 0, 0], ids[8:, 0].float())
    assert len(ids[8:, 0].unique()) == 4
    again, _ = buffer.extend(fresh, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, ids)
    assert buffer.extend(fresh, fraction=0.0)[1] is None


def test_the_state_resumes() -> None:
    buffer = ReplayBuffer(6)
    assert buffer.state_dict() == {}
    buffer.push(*records(0, 9))
    other = ReplayBuffer(6)
    other.load_state_dict(buffer.state_dict())
    a, b = (x.draw(3, torch.Generator().manual_seed(1)) for x in (buffer, other))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    smaller = ReplayBuffer(2)
    smaller.load_state_dict(buffer.state_dict())
    assert sorted(smaller.draw(2)[0][:, 0].tolist()) == [7, 8]
    other.load_state_dict({})
    assert len(other) == 0


def test_states_beyond_half_precision_stay_finite_and_keep_no_graph() -> None:
    buffer = ReplayBuffer(2)
    buffer.push(torch.zeros(1, 2, dtype=torch.int64), torch.full((1, 2, 3), 1e6, requires_grad=True))
    _, states = buffer.draw(1)
    assert bool(states.isfinite().all())
    assert not states.requires_grad


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        ReplayBuffer(0)
    with pytest.raises(ValueError, match="floating type"):
        ReplayBuffer(1, dtype=torch.int64)
    buffer = ReplayBuffer(4)
    buffer.push(*records(0, 2))
    with pytest.raises(ValueError, match="holds states of shape"):
        buffer.push(*records(0, 2, vocab=5))
    with pytest.raises(ValueError, match="holds sequences of 3 tokens"):
        buffer.extend(torch.zeros(4, 5, dtype=torch.int64))
