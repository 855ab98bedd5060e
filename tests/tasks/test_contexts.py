"""Streams of contexts: reproducible, and different on every rank, worker and step."""

import pytest
import torch
from torch.utils.data import DataLoader

from gradatim.tasks import ContextStream, ICLBatch, context_generator


class Normal:
    d, n = 2, 3

    def sample(self, batch, *, generator=None, device=None, dtype=torch.float32):
        x = torch.randn(batch, self.n, self.d, generator=generator, device=device, dtype=dtype)
        w = torch.randn(batch, self.d, generator=generator, device=device, dtype=dtype)
        return ICLBatch(x, (x * w[:, None]).sum(-1), w)


def first(stream, count, workers=0):
    loader = iter(DataLoader(stream, batch_size=None, num_workers=workers))
    return [next(loader) for _ in range(count)]


def test_a_stream_repeats_itself_and_nothing_else():
    a, b = first(ContextStream(Normal(), 4, seed=1), 3), first(ContextStream(Normal(), 4, seed=1), 3)
    other = first(ContextStream(Normal(), 4, seed=1, rank=1), 3) + first(
        ContextStream(Normal(), 4, seed=2), 3
    )
    assert all(torch.equal(p["x"], q["x"]) for p, q in zip(a, b, strict=True))
    everything = torch.stack([batch["x"] for batch in a + other]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 9
    assert torch.equal(a[0]["labels"], a[0]["y"])


def test_workers_draw_different_contexts():
    batches = first(ContextStream(Normal(), 2), 4, workers=2)
    assert len(torch.unique(torch.stack([b["x"] for b in batches]).flatten(1), dim=0)) == 4


def test_a_generator_depends_on_the_whole_key():
    keys = [(0,), (0, 0), (0, 1), (1, 0)]
    draws = [torch.rand(1, generator=context_generator(*key)).item() for key in keys]
    assert len(set(draws)) == 4
    assert torch.rand(1, generator=context_generator(0, 1)).item() == draws[2]


def test_contexts_move_together():
    batch = Normal().sample(5).to(dtype=torch.float64)
    assert batch.x.dtype == batch.y.dtype == batch.w.dtype == torch.float64
    assert len(batch) == 5
    assert ICLBatch(batch.x, batch.y).to(dtype=torch.float32).w is None


@pytest.mark.parametrize(("batch", "seed"), [(0, 0), (1, -1)])
def test_bad_streams_are_refused(batch, seed):
    with pytest.raises(ValueError, match="must"):
        ContextStream(Normal(), batch, seed=seed)
