"""The torch head against the estimator's pieces, finite differences and its own promises."""

import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradatim.models import BoostedHead
from gradatim.models.boosted_head import LOSSES

torch.set_num_threads(1)


def _data(kind, n=120, d=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=g, dtype=dtype)
    if kind == "cross_entropy":
        return z, (z[:, 0] + z[:, 1] * z[:, 2] > 0).long() + (z[:, 3] > 0.5).long(), 3
    if kind == "binary_cross_entropy":
        return z, (z[:, 0] * z[:, 1] + z[:, 2] > 0).to(dtype), 1
    return z, torch.stack([z[:, 0].sin(), z[:, 1] * z[:, 2]], 1), 2


KINDS = tuple(LOSSES)


def _head(kind, d=5, dtype=torch.float64, **settings):
    k = {"cross_entropy": 3, "binary_cross_entropy": 1, "squared_error": 2}[kind]
    return BoostedHead(d, k, 2, loss=kind, dtype=dtype, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_lowers_the_loss_and_scores_are_carried_exactly(kind):
    z, y, _ = _data(kind)
    head = _head(kind, learning_rate=0.3, subsample=1.0, max_iter=5)
    losses, scores = [], None
    for _ in range(5):
        stage = head.fit_stage(z, y, scores=scores)
        scores = stage.scores
        losses.append(stage.loss)
        torch.testing.assert_close(scores, head(z), rtol=1e-10, atol=1e-10)
    assert losses == sorted(losses, reverse=True)
    again = _head(kind, learning_rate=0.3, subsample=1.0, max_iter=5)
    for _ in range(5):
        again.fit_stage(z, y)  # scores computed anew
    torch.testing.assert_close(again(z), head(z), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_start_is_the_constant_of_least_loss(kind):
    z, y, k = _data(kind)
    head = _head(kind)
    head.fit_stage(z, y)
    best = head.stage_bias[0]

    def total(c):
        return LOSSES[kind](c.expand(len(z), k), y).mean()

    if kind == "cross_entropy":
        assert float(best.sum()) == pytest.approx(0.0, abs=1e-12)
    g = torch.Generator().manual_seed(1)
    for _ in range(30):
        assert total(best) <= total(best + 0.05 * torch.randn(k, generator=g, dtype=z.dtype)) + 1e-12


@pytest.mark.parametrize("kind", ["cross_entropy", "binary_cross_entropy"])
def test_the_step_is_newton_s_with_the_diagonal(kind):
    z, y, k = _data(kind)
    head = _head(kind, learning_rate=1.0, subsample=1.0)
    first = head.fit_stage(z, y)
    F = head.stage_bias[0].expand(len(z), k)
    h = (first.scores - F) / first.step
    top = bottom = 0.0
    for i in range(len(z)):
        for j in range(k):
            if kind == "cross_entropy":
                p = float(F[i].softmax(0)[j])
                r = float(int(y[i]) == j) - p
            else:
                p = float(torch.sigmoid(F[i, j]))
                r = float(y[i]) - p
            top += r * float(h[i, j])
            bottom += p * (1 - p) * float(h[i, j]) ** 2
    assert first.step == pytest.approx(top / bottom, rel=1e-8)


def test_a_block_ends_where_the_gradient_of_its_penalised_squares_vanishes():
    z, y, _ = _data("squared_error")
    head = _head("squared_error", learning_rate=1.0, subsample=1.0, alpha=3.0, max_iter=500, tol=1e-9)
    w = torch.linspace(0.5, 2.0, len(z), dtype=z.dtype)
    head.fit_stage(z, y, weight=w)
    block = [
        head.hidden_weight,
        head.hidden_bias,
        head.output_weight,
        head.stage_bias[1] - head.stage_bias[0],
    ]
    W1, c1, W2, c2 = (p.clone().requires_grad_(True) for p in block)
    residual = y - head.stage_bias[0]
    h = torch.sigmoid(z @ W1.T + c1) @ W2.T + c2
    squares = 0.5 * (w * (h - residual).square().sum(1)).sum()
    value = (squares + 0.5 * 3.0 * (W1.square().sum() + W2.square().sum())) / w.sum()
    for gradient in torch.autograd.grad(value, (W1, c1, W2, c2)):
        assert gradient.abs().max() < 1e-5


def test_any_twice_differentiable_loss_takes_the_newton_step_along_its_block():
    z, y, _ = _data("squared_error")

    def half_square(scores, targets):
        return 0.5 * (scores - targets).square().sum(1)

    head = BoostedHead(5, 2, 2, loss=half_square, learning_rate=1.0, subsample=1.0, dtype=torch.float64)
    stage = head.fit_stage(z, y)
    h = stage.scores / stage.step
    assert stage.step == pytest.approx(float((h * y).sum() / (h * h).sum()), rel=1e-9)
    smooth = nn.SmoothL1Loss(reduction="none")
    robust = BoostedHead(5, 2, loss=lambda s, t: smooth(s, t).sum(1), learning_rate=0.5, dtype=torch.float64)
    losses = robust.fit(z, y, 10)
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match='reduction="none"'):
        BoostedHead(5, 3, loss=functional.cross_entropy, dtype=torch.float64).fit_stage(
            z, torch.zeros(len(z), dtype=torch.long)
        )


def test_switching_stages_off_keeps_only_their_own_bias_and_slices():
    z, y, _ = _data("cross_entropy")
    head = _head("cross_entropy", learning_rate=0.3)
    partial = []
    scores = None
    for _ in range(4):
        stage = head.fit_stage(z, y, scores=scores)
        scores = stage.scores
        partial.append(scores)
    for m in range(1, 5):
        torch.testing.assert_close(head(z, stages=m), partial[m - 1])
        net = head.to_sequential(stages=m)
        torch.testing.assert_close(net(z), partial[m - 1])
        assert net[0].out_features == 2 * m
        assert all(p.requires_grad for p in net.parameters())
    head.n_active_stages = 2
    torch.testing.assert_close(head(z), partial[1])
    assert head.n_stages == 4
    head.n_active_stages = 4
    torch.testing.assert_close(head(z), partial[3])
    torch.testing.assert_close(head(z, stages=0), head.stage_bias[0].expand(len(z), 3))
    for bad in (-1, 5):
        with pytest.raises(ValueError, match="between 0 and the 4 fitted"):
            head(z, stages=bad)


def test_gradients_flow_to_the_backbone_and_not_into_the_head():
    z, y, _ = _data("cross_entropy")
    backbone = nn.Linear(5, 5, dtype=torch.float64)
    head = _head("cross_entropy", learning_rate=0.3)
    head.fit(backbone(z), y, 5)
    functional.cross_entropy(head(backbone(z)), y).backward()
    assert backbone.weight.grad is not None
    assert backbone.weight.grad.abs().max() > 0
    assert list(head.parameters()) == []


def test_state_dict_brings_its_stages_and_loads_without_pickle():
    z, y, _ = _data("cross_entropy")
    model = nn.Sequential(nn.Linear(5, 5, dtype=torch.float64), _head("cross_entropy"))
    model[1].fit(model[0](z), y, 3)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = nn.Sequential(nn.Linear(5, 5, dtype=torch.float64), _head("cross_entropy"))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh[1].n_stages == 3
    torch.testing.assert_close(fresh(z), model(z), rtol=0, atol=0)
    # Going on from the loaded head equals going on from the first one, bit for bit.
    features = model[0](z)
    a = model[1].fit_stage(features, y)
    b = fresh[1].fit_stage(features, y)
    assert torch.equal(a.scores, b.scores)
    with pytest.raises(RuntimeError, match="size mismatch"):
        BoostedHead(4, 3, 2, dtype=torch.float64).load_state_dict(model[1].state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_features(dtype):
    z, y, _ = _data("cross_entropy")
    head = _head("cross_entropy", dtype=torch.float32, learning_rate=0.3)
    losses = head.fit(z.to(dtype), y, 5) if dtype == torch.float32 else None
    if losses is None:
        low = _head("cross_entropy", dtype=dtype, learning_rate=0.3)
        losses = low.fit(z.to(dtype), y, 5)
        assert low(z.to(dtype)).dtype == dtype
    assert losses[-1] < losses[0]


def test_weights_seeds_and_bad_input():
    z, y, _ = _data("cross_entropy")
    w = torch.ones(len(z), dtype=torch.float64)
    one, two, other = (_head("cross_entropy") for _ in range(3))
    torch.manual_seed(1)
    one.fit(z, y, 2)
    torch.manual_seed(2)
    two.fit(z, y, 2, weight=w)
    torch.testing.assert_close(one(z), two(z))
    other.fit(z, y, 2, generator=torch.Generator().manual_seed(9))
    assert not torch.allclose(one(z), other(z))
    tilted = _head("cross_entropy", subsample=1.0)
    tilted.fit(z, y, 20, weight=torch.where(y == 2, 10.0, 1.0).double())
    assert (tilted(z).argmax(1) == 2).sum() > (one(z).argmax(1) == 2).sum()
    for features, weight, match in (
        (z[:, :3], None, "3 columns"),
        (torch.full_like(z, float("nan")), None, "NaN"),
        (z, -w, "not negative"),
    ):
        with pytest.raises(ValueError, match=match):
            one.fit_stage(features, y, weight=weight)
    with pytest.raises(ValueError, match="draws 1"):
        one.fit_stage(z[:3], y[:3])
    for settings, match in (
        ({"subsample": 0.0}, "subsample"),
        ({"loss": "hinge"}, "one of"),
        ({"activation": "gelu"}, "activation"),
        ({"line_search": "wolfe"}, "line_search"),
        ({"units_per_step": 0}, "units_per_step"),
        ({"loss": "binary_cross_entropy"}, "out_features=1"),
        ({"alpha": -1.0}, "alpha"),
    ):
        with pytest.raises(ValueError, match=match):
            BoostedHead(**({"in_features": 5, "out_features": 3} | settings))
