"""Two processes give soft and hard labels, and batches of one task, the loss and gradient of one process."""

from __future__ import annotations

import pytest
import torch

import soft_label_processes
from gradatim.curricula import TaskBatchSampler
from soft_label_processes import CASES, by_task, linear, parts, soft, task_loss
from two_processes import two_processes


@pytest.fixture(scope="module")
def case():
    g = torch.Generator().manual_seed(0)
    relevance = torch.tensor([[1, 0, 0], [1, 1, 0], [1, -1, -1], [1, 0, 1], [1, 0, -1], [0, 1, 0]])
    doc_keys = torch.arange(18).reshape(6, 3)
    doc_keys[5, 0] = doc_keys[0, 1]  # a duplicate across processes

    def rows(count):
        return torch.randn(count, 6, generator=g, dtype=torch.float64)

    return {
        "weight": rows(6),
        "inputs": [rows(6) for _ in range(4)],
        # Row 2 has one candidate and counts in no soft part: processes hold different numbers of rows.
        "labels": torch.stack([torch.randn(6, 3, generator=g, dtype=torch.float64), relevance.double()], 1),
        "query_keys": torch.tensor([100, 101, 102, 103, 104, 101]),
        "doc_keys": doc_keys,
        "tasks": ["ask"] * 12 + ["sort"] * 7,
        "task_inputs": [rows(19) for _ in range(3)],
    }


@pytest.fixture(scope="module")
def distributed(case, tmp_path_factory):
    return two_processes([soft_label_processes.__file__], case, tmp_path_factory.mktemp("gloo"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_one_process(case, distributed, name):
    weight = linear(case)
    expected = parts(soft(name, False), weight, case, slice(None))
    sum(expected.values()).backward()
    for out in distributed:
        for part in ("hard", "soft"):
            torch.testing.assert_close(out[name][part], expected[part], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(out[name]["grad"], weight.weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_batches_of_one_task_are_one_batch_over_processes(case, distributed):
    weight, losses, total = linear(case), by_task(False), 0.0
    batches = list(TaskBatchSampler(case["tasks"], 3, processes=2, seed=5))
    assert len(batches) > 4
    for mine, other in zip(batches[::2], batches[1::2], strict=True):
        value = task_loss(losses, case["tasks"][mine[0]], weight, case, mine + other)
        value.backward()
        total = total + value.detach()
    for out in distributed:
        torch.testing.assert_close(out["tasks"]["total"], total, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(out["tasks"]["grad"], weight.weight.grad, rtol=1e-9, atol=1e-12)
