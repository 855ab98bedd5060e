"""Delta gradient descent against its own argmin, brute-force loops and plain gradient descent."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradatim.optim import DeltaGradientDescent, delta_gradient_step
from gradatim.optim.linear_records import LinearRecords


def drawn(n, out=4, inputs=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = ((out, inputs), (n, inputs), (n, out))
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]


def sequential_loop(weight, x, delta, lr, decay):
    for a, d in zip(x, delta, strict=True):
        rate = lr / (1 + lr * a.dot(a))
        weight = weight - rate * (decay * torch.outer(weight @ a, a) + torch.outer(d, a))
    return weight


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.floats(0.01, 5.0), st.sampled_from(["first-order", "sequential", "joint"]))
def test_one_sample_is_the_argmin(seed, lr, form):
    weight, x, delta = drawn(1, seed=seed)

    def objective(m):
        return 0.5 * (m @ x[0] + delta[0]).square().sum() + (m - weight).square().sum() / (2 * lr)

    # The objective is quadratic: one Newton step from anywhere is its minimiser.
    start = torch.zeros_like(weight)
    gradient = torch.func.grad(objective)(start).flatten()
    hessian = torch.autograd.functional.hessian(objective, start).view(12, 12)
    best = start - torch.linalg.solve(hessian, gradient).view_as(weight)
    torch.testing.assert_close(
        delta_gradient_step(weight, x, delta, lr, form=form), best, rtol=1e-12, atol=1e-12
    )


def test_joint_form_is_the_argmin_over_the_batch():
    weight, x, delta = drawn(7)

    def objective(m):
        return (x @ m.mT + delta).square().sum() / 14 + (m - weight).square().sum() / 0.6

    found = delta_gradient_step(weight, x, delta, 0.3, form="joint")
    assert torch.func.grad(objective)(found).abs().max() < 1e-12


@pytest.mark.parametrize("decay", [0.0, 0.4, 1.0])
def test_mini_batch_forms_equal_their_loops(decay):
    weight, x, delta = drawn(6)
    torch.testing.assert_close(
        delta_gradient_step(weight, x, delta, 0.7, decay, form="sequential"),
        sequential_loop(weight, x, delta, 0.7, decay),
        rtol=1e-12,
        atol=1e-12,
    )
    alone = [delta_gradient_step(weight, a, d, 0.7, decay) for a, d in zip(x, delta, strict=True)]
    torch.testing.assert_close(
        delta_gradient_step(weight, x, delta, 0.7, decay), torch.stack(alone).mean(0), rtol=1e-12, atol=1e-12
    )


def test_the_fixed_point_on_a_noiseless_linear_stream_is_half_the_truth():
    g = torch.Generator().manual_seed(0)
    truth = torch.randn(3, 4, generator=g, dtype=torch.float64)
    weight = torch.zeros_like(truth)
    for _ in range(3000):
        x = torch.randn(4, generator=g, dtype=torch.float64)
        weight = delta_gradient_step(weight, x, weight @ x - truth @ x, 0.2)
    torch.testing.assert_close(weight, truth / 2, rtol=0, atol=1e-12)


def test_doubled_targets_make_it_gradient_descent_of_twice_the_rate():
    g = torch.Generator().manual_seed(1)
    truth, ours = torch.randn(3, 4, generator=g).double(), torch.zeros(3, 4).double()
    plain = ours.clone()
    for _ in range(20):
        x = nn.functional.normalize(torch.randn(4, generator=g).double(), dim=0)
        ours = delta_gradient_step(ours, x, ours @ x - 2 * truth @ x, 0.25, norm=1.0)
        rate = 0.25 / 1.25
        plain = plain - 2 * rate * torch.outer(plain @ x - truth @ x, x)
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_without_decay_it_is_sgd_at_the_smaller_rate():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = nn.functional.normalize(torch.randn(8, 4, dtype=torch.float64), dim=1)
    y = torch.randn(8, 2, dtype=torch.float64)
    twin = copy.deepcopy(net)
    ours = DeltaGradientDescent(net, lr=0.5, decay=0.0)
    (net(x) - y).square().mean().backward()
    (twin(x) - y).square().mean().backward()
    ours.step()
    # Inputs of the first layer have length 1, so eta' = eta / (1 + eta); its bias moves by eta.
    torch.optim.SGD(
        [{"params": [twin[0].weight], "lr": 0.5 / 1.5}, {"params": [twin[0].bias], "lr": 0.5}]
    ).step()
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(net[0], name), getattr(twin[0], name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("form", ["first-order", "sequential"])
def test_hooks_see_the_rows_of_every_layer(form, reduction):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(6, 3, 4, dtype=torch.float64), torch.randn(6, 3, 2, dtype=torch.float64)
    before = copy.deepcopy(net)
    optimizer = DeltaGradientDescent(net, lr=0.3, form=form, loss_reduction=reduction)

    def loss(model, x, y):
        each = (model(x) - y).square().sum(-1)
        return each.mean() if reduction == "mean" else each.sum()

    loss(net, x, y).backward()
    optimizer.step()
    for k in (0, 2):
        rows = [before[:k](x.reshape(18, 4)), []]
        out = before[k](rows[0])
        tail = before[k + 1 :](out).sub(y.reshape(18, 2)).square().sum()
        (rows[1],) = torch.autograd.grad(tail, out)
        expected = delta_gradient_step(before[k].weight, rows[0].detach(), rows[1], 0.3, form=form)
        torch.testing.assert_close(net[k].weight, expected, rtol=1e-12, atol=1e-12)


def test_two_backward_passes_are_one_larger_batch_and_zero_grad_forgets():
    torch.manual_seed(0)
    net = nn.Linear(4, 2, bias=False).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    twin = copy.deepcopy(net)
    for model, parts in ((net, (x[:3], x[3:])), (twin, (x,))):
        optimizer = DeltaGradientDescent(model, lr=0.1, loss_reduction="sum", form="sequential")
        model(x).sum().backward()
        optimizer.zero_grad()
        with torch.no_grad():
            model(x)
        done = 0
        for part in parts:
            (model(part) - y[done : done + len(part)]).square().sum().backward()
            done += len(part)
        optimizer.step()
    torch.testing.assert_close(net.weight, twin.weight, rtol=1e-13, atol=1e-13)


def test_resume_is_bit_exact_and_closures_work():
    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        return net, DeltaGradientDescent(net, lr=0.1, decay=0.5)

    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))

    def train(net, optimizer, steps):
        def closure():
            optimizer.zero_grad()
            loss = (net(x) - 1).square().mean()
            loss.backward()
            return loss

        return [float(optimizer.step(closure).detach()) for _ in range(steps)]

    net, optimizer = make()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    first = train(net, optimizer, 3)
    assert first[-1] < first[0]
    scheduler.step()
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    whole = train(net, optimizer, 3)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, other = make()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert other.param_groups[0]["lr"] == pytest.approx(0.09)
    assert train(again, other, 3) == whole


def test_constants_still_report_what_came_back():
    layer = nn.Linear(3, 2).requires_grad_(False)
    records = LinearRecords([layer])
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    layer(x).square().sum().backward()
    seen, delta = records.rows(layer.weight)
    torch.testing.assert_close(seen, x)
    torch.testing.assert_close(delta, 2 * layer(x).detach())
    records.remove()
    assert records.rows(layer.weight) is None


def test_bfloat16_parameters_move_by_the_same_rule():
    net = nn.Linear(4, 2, bias=False).bfloat16()
    wide = copy.deepcopy(net).float()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    for model, rows in ((net, x), (wide, x.float())):
        optimizer = DeltaGradientDescent(model, lr=0.5, form="joint")
        model(rows).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(net.weight.float(), wide.weight, rtol=2e-2, atol=2e-2)


def test_bad_input_is_refused():
    weight, x, delta = drawn(2)
    with pytest.raises(ValueError, match="promises inputs of that length"):
        delta_gradient_step(weight, x, delta, 0.1, norm=1.0)
    with pytest.raises(ValueError, match="lr must be at least 0, got -1"):
        DeltaGradientDescent(nn.Linear(2, 2), lr=-1.0)
    tied = nn.ModuleDict({"table": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    tied["head"].weight = tied["table"].weight
    with pytest.raises(ValueError, match=r"table\.weight is also the weight of a linear layer"):
        DeltaGradientDescent(tied, lr=0.1)
    net = nn.Linear(2, 2)
    optimizer = DeltaGradientDescent(net, lr=0.1)
    before = net.weight.detach().clone()
    net(torch.full((1, 2), float("nan"))).sum().backward()
    with pytest.raises(RuntimeError, match="is not finite"):
        optimizer.step()
    assert torch.equal(net.weight, before)
