"""What every optimizer of ours must do, as PyTorch documents it."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from gradatim.optim import M3, DeepMomentumSGD, DeltaMomentumSGD, MultiFrequency, NormalizedSGD

OPTIMIZERS = {
    "NormalizedSGD": lambda params: NormalizedSGD(params, lr=0.1, weight_decay=0.01),
    "NormalizedSGD-foreach": lambda params: NormalizedSGD(params, lr=0.1, weight_decay=0.01, foreach=True),
    "NormalizedSGD-group": lambda params: NormalizedSGD(params, lr=0.1, per_param=False),
    "DeltaMomentumSGD": lambda params: DeltaMomentumSGD(params, lr=0.1, weight_decay=0.01),
    "DeltaMomentumSGD-rms": lambda params: DeltaMomentumSGD(params, lr=0.1, value="rms"),
    "DeepMomentumSGD": lambda params: DeepMomentumSGD(params, lr=0.1, hidden=4, weight_decay=0.01),
    "M3-vectors": lambda params: M3(params, lr=0.1, weight_decay=0.01, matrix=False),
    "MultiFrequency": lambda params: MultiFrequency(
        lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.01), params
    ),
}


@pytest.fixture(params=OPTIMIZERS, ids=str)
def make(request):
    return OPTIMIZERS[request.param]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def train(net, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (net(X) - 1).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_resume_is_bit_exact_through_a_weights_only_file(make):
    net = model()
    optimizer = make(net.parameters())
    train(net, optimizer, 5)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    whole = train(net, optimizer, 5)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = model()
    other = make(again.parameters())
    again.load_state_dict(state["net"])
    other.load_state_dict(state["optimizer"])
    assert torch.equal(train(again, other, 5), whole)


def test_closure_is_called_with_gradients_and_its_loss_returned(make):
    net = model()
    optimizer = make(net.parameters())

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (net(X) - 1).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


def test_parameters_without_gradient_stay(make):
    net = model()
    optimizer = make(net.parameters())
    before = net[2].weight.detach().clone()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    optimizer.step()
    assert torch.equal(net[2].weight, before)


def test_groups_have_their_own_rate_and_can_be_added(make):
    net = model()
    optimizer = make([{"params": net[0].parameters(), "lr": 0.0}])
    optimizer.add_param_group({"params": net[2].parameters()})
    first, second = net[0].weight.detach().clone(), net[2].weight.detach().clone()
    train(net, optimizer, 1)
    assert torch.equal(net[0].weight, first)
    assert not torch.equal(net[2].weight, second)


def test_schedulers_and_tensor_rates(make):
    net = model()
    optimizer = make(net.parameters())
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert torch.equal(train(net, optimizer, 1), before)
    scheduler.step()


def test_sparse_gradients_are_refused(make):
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = make(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def test_a_tensor_rate_equals_the_number(make):
    nets = [model(), model()]
    optimizers = [make(net.parameters()) for net in nets]
    for group in optimizers[0].param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float64)
    a, b = (train(net, o, 3) for net, o in zip(nets, optimizers, strict=True))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_schedule_drives_every_group_and_zero_grad_clears(make):
    net = model()
    optimizer = make([{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.4}])
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    train(net, optimizer, 1)
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.2]
    optimizer.zero_grad()
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    optimizer.step()
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in net.parameters()]))


def test_state_survives_a_deep_copy(make):
    net = model()
    optimizer = make(net.parameters())
    train(net, optimizer, 2)
    twin, other = copy.deepcopy((net, optimizer))
    assert torch.equal(train(net, optimizer, 3), train(twin, other, 3))


def test_bad_rates_are_refused():
    with pytest.raises(ValueError, match="lr must be at least 0, got -1"):
        NormalizedSGD([nn.Parameter(torch.ones(1))], lr=-1.0)
