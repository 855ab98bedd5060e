"""What each of two gloo processes computes for `test_soft_labels_distributed`, and one process beside them.

Run as a program with a folder and this process's rank.
"""

from __future__ import annotations

import os
import sys
import warnings

import torch
import torch.distributed as dist
from accelerate.data_loader import BatchSamplerShard
from torch.nn.parallel import DistributedDataParallel

from gradatim.curricula import TaskBatchSampler, losses_by_task
from gradatim.losses import MultiPositiveRankingLoss, SoftLabelRankingLoss

CASES = {
    "kl": {},
    "kl, in batch": {"in_batch": True},
    "margin_mse, in batch, floor": {"in_batch": True, "soft": "margin_mse", "label_floor": True},
    "bce": {"soft": "bce", "objective": "lse-pair"},
}


def graded(queries, passages):
    """A teacher that follows from the keys alone."""
    return torch.sin(queries[:, None] * 3.7 + passages[None, :].double() * 1.3)


def soft(name, gather):
    """The loss of a case."""
    options = dict(CASES[name], gather_across_devices=gather)
    if options.pop("in_batch", False):
        options["in_batch_teacher"] = graded
    return SoftLabelRankingLoss(None, hard_targets="mask", **options)


def parts(loss, model, case, rows):
    """Both parts of the loss over these rows."""
    columns = model(torch.cat([c[rows] for c in case["inputs"]])).chunk(len(case["inputs"]))
    keys = (case["query_keys"][rows], case["doc_keys"][rows])
    return loss.compute_loss_from_embeddings(list(columns), case["labels"][rows], keys)


def by_task(gather):
    """A loss per task, in-batch negatives off where other rows share labels."""
    return losses_by_task(
        {"ask": "retrieval", "sort": "classification"},
        lambda own: MultiPositiveRankingLoss(None, in_batch_negatives=own, gather_across_devices=gather),
    )


def task_loss(losses, task, model, case, batch):
    """The task's loss over a batch."""
    columns = model(torch.cat([c[batch] for c in case["task_inputs"]])).chunk(len(case["task_inputs"]))
    return losses[task].compute_loss_from_embeddings(list(columns), torch.tensor([[1, 0]] * len(batch)), None)


def linear(case):
    """The model: one map."""
    weight = torch.nn.Linear(6, 6, bias=False).double()
    weight.load_state_dict({"weight": case["weight"]})
    return weight


def main(folder, rank):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = torch.load(folder + "/case.pt", weights_only=True)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

    def mean(value):
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / 2

    out = {}
    for name in CASES:
        weight = linear(case)
        model = DistributedDataParallel(weight)  # by name: it has to be there when gradients come back
        found = parts(soft(name, True), model, case, slice(rank * 3, rank * 3 + 3))
        sum(found.values()).backward()
        out[name] = {**{k: mean(v) for k, v in found.items()}, "grad": weight.weight.grad}
    weight = linear(case)
    model, losses, total = DistributedDataParallel(weight), by_task(True), 0.0
    sampler = TaskBatchSampler(case["tasks"], 3, processes=2, seed=5)
    for batch in BatchSamplerShard(sampler, num_processes=2, process_index=rank):
        value = task_loss(losses, case["tasks"][batch[0]], model, case, batch)
        value.backward()
        total = total + mean(value)
    out["tasks"] = {"total": total, "grad": weight.weight.grad}
    torch.save(out, f"{folder}/out{rank}.pt")
    dist.barrier()  # else one takes the connection down while the other still speaks
    dist.destroy_process_group()
    os._exit(0)  # threads of gloo that end late abort an interpreter that ends first


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
