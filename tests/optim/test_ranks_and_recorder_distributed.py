"""Two gloo processes: the recorder sees the full gradient, and ranks agree on one schedule."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from gradatim.optim import GradNormRecorder, RefinedLR, assert_same_on_all_ranks, broadcast_factors

STEPS, BATCH = 6, 8


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(2 * BATCH, 5, generator=generator), torch.randn(2 * BATCH, 3, generator=generator)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def train(network: nn.Module, rows: slice, p: int) -> list[float]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    with GradNormRecorder(optimizer, norm=p) as recorder:
        for step in range(STEPS):
            x, y = batch(step)
            optimizer.zero_grad()
            nn.functional.mse_loss(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return recorder.norms().tolist()


def sharded_norms(rank: int, p: int) -> list[float]:
    """Gradients of one vector cut between the ranks: as DTensors, and as plain shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(1.0, 8.0).reshape(7, 1)  # 7 rows: the ranks' shards differ in size
    found = []
    for placement in (Shard(0), Replicate()):
        parameter = nn.Parameter(distribute_tensor(torch.zeros(7, 1), mesh, [placement]))
        plain = nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([parameter, plain], lr=0.1, foreach=False)
        parameter.grad = distribute_tensor(whole, mesh, [placement])
        assert isinstance(parameter.grad, DTensor)
        plain.grad = torch.tensor([3.0, 4.0])
        with GradNormRecorder(optimizer, norm=p) as recorder:
            optimizer.step()
        found.append(recorder.norms().item())
    shard = nn.Parameter(torch.zeros(4 if rank == 0 else 3, 1))
    optimizer = torch.optim.SGD([shard], lr=0.1)
    shard.grad = whole[:4] if rank == 0 else whole[4:]
    with GradNormRecorder(optimizer, norm=p, sharded_over=dist.group.WORLD) as recorder:
        optimizer.step()
    return [*found, recorder.norms().item()]


def schedules(rank: int) -> dict[str, object]:
    mine = np.linspace(1.0, 0.0, 5 + rank)
    told = broadcast_factors(mine if rank == 0 else None)
    assert_same_on_all_ranks(told)
    errors = []
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    # Equal lengths, different values: nothing else would notice.
    trace = np.ones(6) + rank * np.linspace(0, 1, 6)
    for build in (lambda: assert_same_on_all_ranks(mine), lambda: RefinedLR(optimizer, trace)):
        try:
            build()
        except ValueError as error:
            errors.append(str(error))
    RefinedLR(optimizer, np.ones(6))
    RefinedLR(optimizer, trace, check_ranks=False)
    return {"told": told.tolist(), "errors": errors}


def rank_main(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    network = nn.parallel.DistributedDataParallel(model())
    rows = slice(rank * BATCH, (rank + 1) * BATCH)
    result = {
        "ddp": {p: train(network, rows, p) for p in (2,)},
        "sharded": {p: sharded_norms(rank, p) for p in (1, 2)},
        **schedules(rank),
    }
    torch.save(result, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, args=(str(folder / "store"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_record_what_one_records_on_the_doubled_batch(two_ranks) -> None:
    single = train(model(), slice(None), 2)
    for rank in two_ranks:
        np.testing.assert_allclose(rank["ddp"][2], single, rtol=1e-6)
    assert len(set(single)) == STEPS


def test_sharded_gradients_give_the_full_norm(two_ranks) -> None:
    whole = np.arange(1.0, 8.0)
    for rank in two_ranks:
        for p in (1, 2):
            with_plain = np.linalg.norm(np.append(whole, [3.0, 4.0]), p)
            expected = [with_plain, with_plain, np.linalg.norm(whole, p)]
            np.testing.assert_allclose(rank["sharded"][p], expected, rtol=1e-6)


def test_ranks_follow_one_schedule_or_refuse(two_ranks) -> None:
    for rank in two_ranks:
        assert rank["told"] == [1.0, 0.75, 0.5, 0.25, 0.0]
        assert len(rank["errors"]) == 2
        assert all("[1]" in message for message in rank["errors"])


def test_a_single_process_needs_no_agreement() -> None:
    factors = np.array([1.0, 0.0])
    assert_same_on_all_ranks(factors)
    assert broadcast_factors(factors) is factors
    with pytest.raises(ValueError, match="no factors"):
        broadcast_factors(None)
