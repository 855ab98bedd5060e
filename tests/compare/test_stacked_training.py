"""A stack of copies does to each copy what torch's own optimizer does to it alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradatim.compare.stacked_training import batch_order, initial_layers, row_losses, train_stacked
from gradatim.optim import GradNormRecorder, TableLR
from gradatim.optim.shapes import cosine

RATES = (1e-3, 1e-2, 5e-2)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("loss", ["cross entropy", "squared error"])
def test_equals_separate_runs_with_torch(optimizer, loss):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (40,), generator=generator)
    outputs = 3
    if loss == "squared error":
        targets, outputs = inputs[:, 0] * 2, 1
    layers = [(w.double(), b.double()) for w, b in initial_layers((5, 8, outputs), generator)]
    order = batch_order(40, 16, 30, generator)
    factors = cosine(30)
    run = train_stacked(layers, inputs, targets, order, RATES, factors, loss=loss, optimizer=optimizer)
    for k, rate in enumerate(RATES):
        model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, outputs))
        model.double()
        with torch.no_grad():
            for module, (weight, bias) in zip((model[0], model[2]), layers, strict=True):
                module.weight.copy_(weight.T)
                module.bias.copy_(bias[0])
        kind, norm = (torch.optim.AdamW, 1) if optimizer == "adamw" else (torch.optim.SGD, 2)
        moves = kind(model.parameters(), lr=rate)
        schedule = TableLR(moves, factors)
        with GradNormRecorder(moves, norm=norm) as recorder:
            for t, rows in enumerate(order):
                moves.zero_grad()
                value = row_losses(model(inputs[rows])[None], targets[rows], loss).mean()
                assert value.item() == pytest.approx(run.losses[t, k], rel=1e-9)
                value.backward()
                moves.step()
                schedule.step()
            np.testing.assert_allclose(run.norms[:, k], recorder.norms(), rtol=1e-6)
        torch.testing.assert_close(run.outputs(inputs)[k], model(inputs).detach(), rtol=1e-9, atol=1e-9)


def test_a_copy_that_overflows_leaves_the_others_alone():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 3, generator=generator)
    layers = initial_layers((3, 4, 1), generator)
    order = batch_order(40, 10, 40, generator)
    both = train_stacked(
        layers, inputs, inputs[:, 0], order, (1e-2, 1e6), np.ones(40), loss="squared error", optimizer="sgd"
    )
    alone = train_stacked(
        layers, inputs, inputs[:, 0], order, (1e-2,), np.ones(40), loss="squared error", optimizer="sgd"
    )
    assert not np.isfinite(both.losses[-1, 1])
    torch.testing.assert_close(both.outputs(inputs)[0], alone.outputs(inputs)[0])


def test_batches_are_whole_and_every_epoch_is_a_new_order():
    order = batch_order(10, 3, 7, torch.Generator().manual_seed(0))
    assert order.shape == (7, 3)
    assert len(set(order[:3].flatten().tolist())) == 9
    assert order[:3].tolist() != order[3:6].tolist()
    with pytest.raises(ValueError, match="at least 11 rows"):
        batch_order(10, 11, 1, torch.Generator())
    with pytest.raises(ValueError, match="as many factors"):
        train_stacked([], torch.ones(1, 1), torch.ones(1), order, (1.0,), np.ones(3), loss="squared error")
