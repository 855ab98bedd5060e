"""The contract common to every loss of ours; a new loss joins by adding its cases to CASES."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from gradatim.losses import (
    OBJECTIVES,
    PAIRWISE_KINDS,
    POINTWISE_KINDS,
    multi_positive_loss,
    pairwise_loss,
    pointwise_loss,
    soft_label_loss,
)


@dataclass(frozen=True)
class LossCase:
    """A loss as `call(scores, reduction=..., weight=...)` on random scores of shape (batch, width).

    `relative`: only differences of scores within a row matter.
    """

    name: str
    call: Callable[..., torch.Tensor]
    width: int = 9
    relative: bool = True


def positives(batch: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(batch, width, generator=generator) < 0.3
    mask[:, 1], mask[:, 2] = True, False
    return mask


def multi_positive(objective: str, **options: Any) -> LossCase:
    def call(scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return multi_positive_loss(
            scores,
            positives(*scores.shape),
            objective=objective,
            generator=torch.Generator().manual_seed(0),
            **options,
            **kwargs,
        )

    return LossCase("-".join([objective, *map(str, options.values())]), call)


def pairwise(kind: str, width: int) -> LossCase:
    # With so large a margin the hinge is never flat, as a gradient test needs it.
    margin = {"margin": 40.0} if kind in ("hinge", "mse") else {}

    def call(scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return pairwise_loss(scores, loss=kind, **margin, **kwargs)

    return LossCase(f"pairwise-{kind}-{width}", call, width, relative=kind != "nogueira_cross_entropy")


def pointwise(kind: str) -> LossCase:
    def call(scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        grades = torch.tensor([1.0, 0.0, 3.0, 0.0, -999.0, 1.0])[: len(scores)]
        return pointwise_loss(scores[:, 0], grades, loss=kind, **kwargs)

    return LossCase(f"pointwise-{kind}", call, 1, relative=False)


def soft(kind: str) -> LossCase:
    def call(scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        teacher = torch.randn(scores.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        return soft_label_loss(scores, teacher, soft=kind, **kwargs)

    return LossCase(f"soft-{kind}", call)


CASES = [
    *(multi_positive(objective) for objective in OBJECTIVES),
    multi_positive("joint-lh", normalize=False),
    multi_positive("lse-pair", positive_selector="min", negative_selector="max"),
    *(pairwise(kind, width) for kind in PAIRWISE_KINDS for width in (2, 4)),
    # "cross_entropy" takes probabilities, which random scores are not; its own tests hold it to this.
    *(pointwise(kind) for kind in POINTWISE_KINDS if kind != "cross_entropy"),
    *(soft(kind) for kind in ("kl", "margin_mse", "bce")),
]
every_loss = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def scores_of(case: LossCase, batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, case.width, generator=generator, dtype=torch.float64).mul(3).to(dtype)


@every_loss
def test_gradcheck(case):
    scores = scores_of(case, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: case.call(s, reduction="none"), (scores,))
    assert torch.autograd.gradcheck(lambda s: case.call(s), (scores,))


@every_loss
def test_reductions_and_weights_agree(case):
    scores = scores_of(case, 5)
    weight = torch.tensor([0.0, 1.0, 2.5, 0.5, 1.0], dtype=torch.float64)
    rows = case.call(scores, reduction="none")
    assert rows.shape == (5,)
    torch.testing.assert_close(case.call(scores, reduction="sum"), rows.sum())
    torch.testing.assert_close(case.call(scores), rows.mean())
    torch.testing.assert_close(case.call(scores, reduction="none", weight=weight), rows * weight)
    torch.testing.assert_close(case.call(scores, reduction="sum", weight=weight), (rows * weight).sum())
    torch.testing.assert_close(case.call(scores, weight=weight), (rows * weight).sum() / weight.sum())
    assert case.call(scores, weight=torch.zeros(5, dtype=torch.float64)) == 0


@every_loss
def test_batch_of_one(case):
    scores = scores_of(case, 1).requires_grad_()
    case.call(scores).backward()
    assert scores.grad.isfinite().all()
    assert scores.grad.abs().sum() > 0


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(case, dtype):
    half = (scores_of(case, 6, dtype=dtype) * 400).requires_grad_()  # exp overflows fp16 beyond 11
    loss = case.call(half)
    assert loss.dtype == torch.float32
    reference = case.call(half.detach().double())
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=1e-5)
    loss.backward()
    assert half.grad.dtype == dtype
    assert half.grad.isfinite().all()


@every_loss
def test_rows_do_not_see_one_another(case):
    scores = scores_of(case, 4)
    rows = case.call(scores, reduction="none")
    changed = scores.clone()
    changed[0] += torch.linspace(0, 1, case.width, dtype=torch.float64)
    torch.testing.assert_close(case.call(changed, reduction="none")[1:], rows[1:])


@every_loss
def test_adding_a_constant_to_a_row_changes_nothing(case):
    if not case.relative:
        pytest.skip("reads the scores themselves")
    scores = scores_of(case, 4)
    shifted = scores + torch.tensor([[0.0], [5.0], [-20.0], [100.0]], dtype=torch.float64)
    torch.testing.assert_close(
        case.call(shifted, reduction="none"), case.call(scores, reduction="none"), rtol=1e-9, atol=1e-9
    )


@every_loss
def test_global_random_state_is_left_alone(case):
    before = torch.random.get_rng_state()
    case.call(scores_of(case, 4))
    assert torch.equal(before, torch.random.get_rng_state())


COMPILED = """
import torch
from gradatim.losses import OBJECTIVES, multi_positive_loss, pairwise_loss, pointwise_loss, soft_label_loss
g = torch.Generator().manual_seed(0)
scores = torch.randn(5, 8, generator=g)
mask = torch.rand(5, 8, generator=g) < 0.4
mask[0] = False
mask[1:, 0], mask[1:, 1] = True, False
weight = torch.rand(5, generator=g)
for objective in OBJECTIVES:
    if objective == "rand1-lh":  # draws from a generator, which a graph cannot hold
        continue
    torch._dynamo.reset()
    compiled = torch.compile(multi_positive_loss, fullgraph=True, backend="aot_eager")
    a, b = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    one = compiled(a, mask, objective=objective, weight=weight)
    two = multi_positive_loss(b, mask, objective=objective, weight=weight)
    one.backward(), two.backward()
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(a.grad, b.grad)
grades = torch.tensor([1.0, 0.0, 2.0, 0.0, -999.0])
curriculum = [(pairwise_loss, kind, ()) for kind in ("softmax", "hinge")]
curriculum += [(pointwise_loss, kind, (grades,)) for kind in ("mse", "cross_entropy")]
for kind in ("kl", "margin_mse", "bce"):
    torch._dynamo.reset()
    compiled = torch.compile(soft_label_loss, fullgraph=True, backend="aot_eager")
    a, b = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    one = compiled(a, scores.flip(1), mask, soft=kind, weight=weight)
    two = soft_label_loss(b, scores.flip(1), mask, soft=kind, weight=weight)
    one.backward(), two.backward()
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(a.grad, b.grad)
for function, kind, more in curriculum:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = scores if function is pairwise_loss else scores[:, 0].sigmoid()
    a, b = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    one = compiled(a, *more, loss=kind, weight=weight)
    two = function(b, *more, loss=kind, weight=weight)
    one.backward(), two.backward()
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(a.grad, b.grad)
print("compiled")
"""


def test_compiles_without_graph_breaks():
    # In a process of its own: the test run's shape checks would break the graph.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "compiled", done.stderr[-2000:]
