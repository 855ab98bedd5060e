"""Two processes with gathering give the gradient that one process gives on the whole batch."""

from __future__ import annotations

import pytest
import torch

from gradatim.losses import MultiPositiveRankingLoss
from gradatim.losses.gather import gather_rows
from two_processes import two_processes

WORKER = """
import os, sys, warnings
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from gradatim.losses import CachedMultiPositiveRankingLoss, MultiPositiveRankingLoss
folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
warnings.simplefilter("ignore")
case = torch.load(folder + "/case.pt", weights_only=True)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
rows = slice(rank * 3, rank * 3 + 3)
out = {}
for objective in ("lse-pair", "rand1-lh", "joint-lh"):
    weight = torch.nn.Linear(6, 6, bias=False).double()
    weight.load_state_dict({"weight": case["weight"]})
    model = DistributedDataParallel(weight)
    loss = MultiPositiveRankingLoss(None, objective=objective, gather_across_devices=True)
    loss.set_epoch(0)
    columns = model(torch.cat([c[rows] for c in case["inputs"]])).chunk(len(case["inputs"]))
    keys = (case["query_keys"][rows], case["doc_keys"][rows])
    value = loss.compute_loss_from_embeddings(list(columns), case["labels"][rows], keys)
    value.backward()
    out[objective] = weight.weight.grad
# The cached loss computes gradients on embeddings; these must be this process's share of the whole.
cached = CachedMultiPositiveRankingLoss.__new__(CachedMultiPositiveRankingLoss)
torch.nn.Module.__init__(cached)
cached.loss = MultiPositiveRankingLoss(None, gather_across_devices=True)
cached.mini_batch_size, cached._keys = 2, (case["query_keys"][rows], case["doc_keys"][rows])
reps = [[c[rows] @ case["weight"].T] for c in case["inputs"]]
reps = [[r[0].detach().requires_grad_()] for r in reps]
cached.calculate_loss(reps, case["labels"][rows], with_backward=True)
out["cached"] = torch.stack([r[0].grad for r in reps]) / 2
# A process whose rows all lack a positive still takes part.
if rank == 0:
    empty = torch.zeros_like(case["labels"][rows])
else:
    empty = case["labels"][rows]
weight.zero_grad()
columns = model(torch.cat([c[rows] for c in case["inputs"]])).chunk(len(case["inputs"]))
MultiPositiveRankingLoss(None, gather_across_devices=True).compute_loss_from_embeddings(
    list(columns), empty, keys
).backward()
out["half empty"] = weight.weight.grad
torch.save(out, f"{folder}/out{rank}.pt")
dist.barrier()  # else one takes the connection down while the other still speaks
dist.destroy_process_group()
os._exit(0)  # threads of gloo that end late abort an interpreter that ends first
"""


@pytest.fixture(scope="module")
def case():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 2, (6, 3), generator=g)
    labels[:, 1], labels[:, 0] = 1, 0
    labels[4] = 0  # a row that does not count: processes have different numbers of rows that do
    doc_keys = torch.arange(18).reshape(6, 3)
    doc_keys[5, 0] = doc_keys[0, 1]  # a duplicate across processes
    return {
        "weight": torch.randn(6, 6, generator=g, dtype=torch.float64),
        "inputs": [torch.randn(6, 6, generator=g, dtype=torch.float64) for _ in range(4)],
        "labels": labels,
        "query_keys": torch.tensor([100, 101, 102, 103, 104, 101]),  # the same query in two processes
        "doc_keys": doc_keys,
    }


@pytest.fixture(scope="module")
def distributed(case, tmp_path_factory):
    return two_processes(["-c", WORKER], case, tmp_path_factory.mktemp("gloo"))


def single(case, objective="lse-pair", labels=None):
    weight = case["weight"].clone().requires_grad_()
    columns = [c @ weight.T for c in case["inputs"]]
    for column in columns:
        column.retain_grad()
    loss = MultiPositiveRankingLoss(None, objective=objective)
    loss.set_epoch(0)
    keys = (case["query_keys"], case["doc_keys"])
    loss.compute_loss_from_embeddings(columns, case["labels"] if labels is None else labels, keys).backward()
    assert loss.masked_duplicates > 0
    return weight.grad, torch.stack([c.grad for c in columns])


@pytest.mark.filterwarnings("ignore:. of 6 queries have no positive:UserWarning")
@pytest.mark.parametrize("objective", ["lse-pair", "rand1-lh", "joint-lh"])
def test_two_processes_give_the_gradient_of_one(case, distributed, objective):
    expected, _ = single(case, objective)
    for out in distributed:
        torch.testing.assert_close(out[objective], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:. of 6 queries have no positive:UserWarning")
def test_cached_gradients_of_two_processes_are_those_of_one(case, distributed):
    _, expected = single(case)
    for rank, out in enumerate(distributed):
        mine = expected[:, rank * 3 : rank * 3 + 3]
        torch.testing.assert_close(out["cached"], mine, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:. of 6 queries have no positive:UserWarning")
def test_a_process_without_positives_takes_part(case, distributed):
    labels = case["labels"].clone()
    labels[:3] = 0
    expected, _ = single(case, labels=labels)
    for out in distributed:
        torch.testing.assert_close(out["half empty"], expected, rtol=1e-6, atol=1e-9)


def test_without_a_group_rows_are_returned_as_they_are():
    rows = torch.randn(2, 3)
    assert gather_rows(rows) is rows
