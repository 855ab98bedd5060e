"""Measures between in-context learners, on pairs of learners whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from gradatim.models.constructions import (
    gradient_descent,
    gradient_descent_pp,
    preconditioned_gradient_descent,
)
from gradatim.models.linear_attention import LinearAttentionRegressor, LSAConfig
from gradatim.probes import GradientDescent, Ridge
from gradatim.probes.context_alignment import (
    alignment,
    answers,
    in_float64,
    ood_curve,
    query_losses,
    sensitivity,
    split_query,
    token_sensitivity,
)
from gradatim.probes.layer_products import interpolate, learned_rates, repeated, repeated_losses
from gradatim.probes.reference_tuning import optimal_gd_lr
from gradatim.tasks import LinearRegressionTask
from gradatim.tasks.contexts import context_generator

TASK = LinearRegressionTask(4, 8, x="uniform")


def batch(task=TASK, contexts=50, seed=0):
    return task.sample(contexts, generator=context_generator(seed), dtype=torch.float64)


def close(a, b, tol=1e-12):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def test_sensitivity_is_the_implied_weight_vector_for_every_kind_of_learner():
    x, y, query, _ = split_query(batch())
    model = gradient_descent(4, 7, 3.0, 2)
    reference = GradientDescent(2, 3.0, "mean")
    w = reference.weights(x, y)
    for learner in (
        model,
        reference,
        lambda x, y: gradient_descent(4, 7, 3.0, 2, normalize="n")(x, y),
    ):
        close(sensitivity(learner, x, y, query)[:, 0], w, 1e-9)
        close(answers(learner, x, y, query)[:, 0].detach(), (w * query[:, 0]).sum(-1), 1e-9)


def test_sensitivity_is_the_local_gradient_where_a_learner_is_not_linear():
    x, y, query, _ = split_query(batch(contexts=3))

    def cubic(x, y):
        return (x.sum(-1) ** 3) * y.sum(-1, keepdim=True)

    expected = 3 * query.sum(-1, keepdim=True) ** 2 * y.sum(-1)[:, None, None]
    close(sensitivity(cubic, x, y, query), expected.expand_as(query))


def test_alignment_of_a_learner_with_itself_and_with_multiples():
    drawn = batch()
    same = alignment(gradient_descent(4, 7, 3.0), GradientDescent(1, 3.0, "mean"), drawn)
    assert same.cos == pytest.approx(1, abs=1e-12)
    assert same.model_diff < 1e-12
    assert same.pred_diff < 1e-12
    double = alignment(GradientDescent(1, 6.0, "mean"), GradientDescent(1, 3.0, "mean"), drawn)
    assert double.cos == pytest.approx(1, abs=1e-9)
    x, y, query, _ = split_query(drawn)
    w = GradientDescent(1, 3.0, "mean").weights(x, y)
    assert double.model_diff == pytest.approx(float(w.norm(dim=-1).mean()))
    assert double.pred_diff == pytest.approx(float((w * query[:, 0]).sum(-1).abs().mean()))
    assert double.model_diff_error == pytest.approx(float(w.norm(dim=-1).std()) / math.sqrt(50))
    assert str(same).startswith("cosine 1.0000")
    other = alignment(Ridge(1e-6), GradientDescent(1, 3.0, "mean"), drawn)
    assert other.cos < 0.95


def test_interpolation_of_a_construction_with_itself_at_another_scale():
    a = gradient_descent_pp(4, 7, 3.0, 0.1, 2)
    b = gradient_descent_pp(4, 7, 3.0, 0.1, 2)
    b.layers[0].set_products(*(s * p for s, p in zip((-5.0, -0.2), b.layers[0].products(), strict=True)))
    drawn = batch()
    for t in (0.0, 0.3, 1.0):
        close(query_losses(interpolate(a, b, t), drawn), query_losses(a, drawn))
    apart = query_losses(interpolate(a, b, rescale=False), drawn)
    assert float((apart - query_losses(a, drawn)).abs().max()) > 1e-2


def test_interpolation_is_linear_in_products():
    a, b = gradient_descent(4, 7, 2.0), gradient_descent(4, 7, 6.0)
    close(query_losses(interpolate(a, b, 0.25), batch()), query_losses(gradient_descent(4, 7, 3.0), batch()))


def test_interpolation_refuses_what_it_cannot_compare():
    one = gradient_descent(4, 7, 2.0)
    heads = LinearAttentionRegressor(LSAConfig(d=4, num_heads=2)).double()
    own = gradient_descent(4, 7, [2.0, 2.0])
    soft = LinearAttentionRegressor(LSAConfig(d=4, attention="softmax")).double()
    for bad, match in ((heads, "several heads"), (own, "of their own"), (soft, "linear attention")):
        with pytest.raises(ValueError, match=match):
            interpolate(bad, one)
    with pytest.raises(ValueError, match="one shape"):
        interpolate(one, gradient_descent(3, 7, 2.0))
    close(query_losses(interpolate(own, own, force=True), batch()), query_losses(own, batch()))


def test_learned_rates_are_read_whatever_the_scale():
    model = gradient_descent_pp(4, 7, 3.0, 0.1, 2)
    a, v = model.layers[0].products()
    model.layers[0].set_products(-2 * a, -v / 2)
    found = learned_rates(model, 7)
    assert found.lr == pytest.approx(3.0)
    assert found.gamma == pytest.approx(0.1)
    assert found.spread == pytest.approx(0, abs=1e-12)
    assert found.off_diagonal == pytest.approx(0, abs=1e-12)
    assert found.other == pytest.approx(0, abs=1e-12)
    matrix = torch.diag(torch.tensor([1.5, 1.0, 1.0, 0.5], dtype=torch.float64))
    matrix[0, 1] = 0.2
    skewed = learned_rates(preconditioned_gradient_descent(matrix, 7), 7)
    assert skewed.spread == pytest.approx(0.5)
    assert skewed.off_diagonal == pytest.approx(0.2)
    bare = LinearAttentionRegressor(LSAConfig(d=4)).double()
    bare.layers[0].set_products(torch.eye(5).roll(1, 0)[None], torch.eye(5)[None])
    with pytest.warns(RuntimeWarning, match="no diagonal"), torch.no_grad():
        learned_rates(bare, 7)


def test_monte_carlo_loss_of_the_construction_at_its_best_rate():
    eta, loss = optimal_gd_lr(10, 10, 1 / 12, 1 / 80)
    assert eta == pytest.approx(6.0606, abs=1e-4)
    assert loss == pytest.approx(0.20623, abs=1e-5)
    drawn = batch(LinearRegressionTask(10, 11, x="uniform"), 20_000)
    losses = query_losses(gradient_descent(10, 10, eta), drawn)
    error = float(losses.std()) / math.sqrt(len(losses))
    assert float(losses.mean()) == pytest.approx(loss, abs=4 * error)
    # The formula's rate is where a grid has its minimum.
    grid = torch.linspace(4, 8, 81, dtype=torch.float64)
    x, y, query, label = split_query(drawn)
    unit = answers(gradient_descent(10, 10, 1.0), x, y, query).detach()
    best = grid[(0.5 * (grid * unit - label).square()).mean(0).argmin()]
    assert float(best) == pytest.approx(eta, abs=0.15)


def test_ood_curves():
    learner = gradient_descent(4, 7, 3.0)
    inside = ood_curve(learner, TASK, "x_scale", [1.0], contexts=200)
    close(inside.losses[0], query_losses(learner, batch(contexts=200)))
    wide = ood_curve(learner, TASK, "x_scale", [2.0], contexts=200)
    doubled = LinearRegressionTask(4, 8, x="uniform", x_scale=2.0)
    close(wide.losses[0], query_losses(learner, batch(doubled, contexts=200)))
    # The answer is linear in the weights: the loss grows with their square.
    scaled = ood_curve(learner, TASK, "w_scale", [1.0, 3.0], contexts=200)
    close(scaled.losses[1], 9 * scaled.losses[0], 1e-9)
    assert scaled.mean[1] == pytest.approx(9 * scaled.mean[0])
    noisy = ood_curve(learner, TASK, "distractors", [0, 2, 6], contexts=2000)
    assert noisy.mean[0] < noisy.mean[1] < noisy.mean[2]
    family = ood_curve(Ridge(1e-8), TASK, "family", [1.0, 2.0], contexts=200)
    assert max(family.median) < 1e-6
    assert str(family).splitlines()[0].split() == ["family", "mean", "median"]
    with pytest.raises(ValueError, match="kind must be"):
        ood_curve(learner, TASK, "noise", [1.0])
    with pytest.raises(ValueError, match="at least one"):
        ood_curve(learner, TASK, "x_scale", [])


@pytest.mark.parametrize("y_only", [False, True])
def test_repeated_application_is_more_gradient_descent(y_only):
    drawn = batch()
    losses = repeated_losses(gradient_descent(4, 7, 4.0), drawn, 5, 0.75, y_only=y_only)
    assert losses.shape == (6, 50)
    close(losses[0], 0.5 * drawn.y[:, -1] ** 2)
    for k in range(1, 6):
        close(losses[k], query_losses(GradientDescent(k, 3.0, "mean"), drawn), 1e-9)
    twin = repeated(gradient_descent(4, 7, 4.0), 2)
    assert twin.config.num_layers == 2
    pp = repeated_losses(gradient_descent_pp(4, 7, 4.0, 0.1), drawn, 2, y_only=True)
    close(pp[2], repeated_losses(gradient_descent(4, 7, 4.0), drawn, 2)[2])


def test_double_precision_copies_leave_the_model_alone():
    model = LinearAttentionRegressor(LSAConfig(d=4))
    assert in_float64(model).dtype == torch.float64
    assert model.dtype == torch.float32


def test_a_lone_pair_is_refused():
    with pytest.raises(ValueError, match="at least two pairs"):
        alignment(Ridge(1.0), Ridge(1.0), batch(LinearRegressionTask(4, 1)))


def test_token_sensitivity_is_the_norm_of_the_jacobian():
    weight = torch.randn(3, 3, generator=context_generator(1), dtype=torch.float64)

    def shifted(h):
        return h + 2 * h.roll(-1, 1) @ weight

    tokens = torch.randn(4000, 3, 3, generator=context_generator(2), dtype=torch.float64)
    found = token_sensitivity(shifted, tokens, generator=context_generator(3))
    expected = math.sqrt(3) * torch.eye(3) + 2 * float(weight.norm()) * torch.eye(3).roll(1, 1)
    torch.testing.assert_close(found, expected.double(), rtol=0.03, atol=1e-12)
