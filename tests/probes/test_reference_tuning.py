"""Best rates: the closed form against a grid and Monte Carlo, the paper's anchor values, and the search."""

import math

import pytest
import torch

from gradatim.probes import (
    GradientDescent,
    GradientDescentPlusPlus,
    PreconditionedGradientDescent,
    Ridge,
    expected_loss,
    fit_gd_plus_plus,
    fit_gradient_descent,
    optimal_gd_lr,
    tune,
)
from gradatim.tasks import LinearRegressionTask

F64 = torch.float64
UNIFORM = (1 / 12, 1 / 80)


def task(pairs=10, **options):
    """von Oswald's task: ten inputs in (-1/2, 1/2), `pairs` to learn from and one to predict."""
    return LinearRegressionTask(10, pairs + 1, **{"x": "uniform", **options})


def test_the_exact_anchors_of_the_first_step():
    assert optimal_gd_lr(10, 10, *UNIFORM) == pytest.approx((6.0606, 0.20623), abs=5e-5)
    for n, eta, loss in ((25, 8.621, 0.1173), (50, 10.033, 0.0683), (100, 10.929, 0.0372)):
        assert optimal_gd_lr(10, n, *UNIFORM) == pytest.approx((eta, loss), abs=6e-4)
    # Gaussian inputs: the curvature is s^2 (n + d + 1) / n.
    eta, loss = optimal_gd_lr(10, 10, 1.0, 3.0)
    assert eta == pytest.approx(10 / 21)
    assert loss == pytest.approx(0.5 * 10 * 11 / 21)
    assert optimal_gd_lr(10, 10, *UNIFORM, sigma=0.5)[0] == pytest.approx(5.263, abs=5e-4)


@pytest.mark.parametrize(("sigma", "tau"), [(0.0, 1.0), (0.5, 1.0), (0.3, 0.5)])
def test_the_closed_form_is_the_minimum_over_a_grid(sigma, tau):
    eta, loss = optimal_gd_lr(10, 10, *UNIFORM, sigma=sigma, tau=tau)
    noisy = task(sigma=sigma, tau=tau)
    grid = [eta * f for f in (0.8, 0.9, 1.0, 1.1, 1.2)]
    losses = [expected_loss(GradientDescent(1, rate, "mean"), noisy, 20_000, seed=3) for rate in grid]
    assert min(losses) == losses[2]
    assert losses[2] == pytest.approx(loss, rel=0.01)
    assert fit_gradient_descent(noisy, 1, contexts=20_000).lr == pytest.approx(eta, rel=0.01)


def test_the_best_first_step_by_monte_carlo():
    eta, loss = optimal_gd_lr(10, 10, *UNIFORM)
    drawn = task().sample(40_000, generator=torch.Generator().manual_seed(2), dtype=F64)
    w = GradientDescent(1, eta, "mean").weights(drawn.x[:, :-1], drawn.y[:, :-1])
    error = 0.5 * ((w * drawn.x[:, -1]).sum(-1) - drawn.y[:, -1]).square()
    assert abs(float(error.mean()) - loss) < 4 * float(error.std()) / len(error) ** 0.5


@pytest.mark.parametrize(("pairs", "gamma"), [(10, 0.179), (25, 0.099), (50, 0.056), (100, 0.029)])
def test_two_looped_steps_reproduce_the_papers_gamma(pairs, gamma):
    found = fit_gd_plus_plus(task(pairs), 2)
    assert isinstance(found, GradientDescentPlusPlus)
    assert found.gamma == pytest.approx(gamma, rel=0.03)


def test_losses_of_two_and_five_steps():
    def loss(p):
        return expected_loss(p, task(), 20_000, seed=1)

    single = fit_gradient_descent(task(), 2)
    own = fit_gradient_descent(task(), 2, shared=False)
    looped = GradientDescentPlusPlus.fit_hyper(task(), 2)
    assert loss(single) == pytest.approx(0.1564, abs=0.003)
    assert loss(own) == pytest.approx(0.1411, abs=0.003)
    assert own.lr == pytest.approx((3.97, 11.59), rel=0.03)
    assert loss(looped) == pytest.approx(0.1103, abs=0.003)
    assert looped.lr == pytest.approx(13.49, rel=0.02)
    five = fit_gradient_descent(task(), 5, shared=False)
    assert loss(five) <= 0.0836 + 0.002
    assert loss(fit_gd_plus_plus(task(), 2, shared=False)) <= 0.1039


@pytest.mark.slow
def test_five_steps_of_gd_plus_plus_with_rates_of_their_own_hold_on_unseen_contexts():
    found = fit_gd_plus_plus(task(), 5, shared=False)
    assert expected_loss(found, task(), 40_000, seed=9) <= 0.0291


def test_the_expected_loss_is_that_of_predictions_where_inputs_are_not_isotropic():
    skewed = LinearRegressionTask(4, 9, cov="ill", kappa=30.0, sigma=0.3)
    rival = fit_gradient_descent(skewed, 2)
    drawn = skewed.sample(20_000, generator=torch.Generator().manual_seed(1), dtype=F64)
    clean = (drawn.x[:, -1] * drawn.w).sum(-1)
    error = 0.5 * (rival.predict(drawn.x, drawn.y)[:, -1] - clean).square()
    assert expected_loss(rival, skewed) == pytest.approx(
        float(error.mean()), abs=5 * float(error.std()) / 20_000**0.5
    )


def test_the_best_preconditioner_beats_a_scalar_and_is_a_minimum():
    spread = LinearRegressionTask(3, 11, cov=torch.diag(torch.tensor([4.0, 1.0, 0.1])), sigma=0.2)
    drawn = spread.sample(20_000, generator=torch.Generator().manual_seed(1), dtype=F64)

    def loss(p):
        return float((p.predict(drawn.x, drawn.y)[:, -1] - drawn.y[:, -1]).square().mean())

    fitted = PreconditionedGradientDescent.fit(spread)
    base = loss(fitted)
    assert base < 0.9 * loss(fit_gradient_descent(spread, 1))
    matrix = torch.tensor(fitted.matrix)
    losses = []
    size = matrix.diagonal().sqrt()
    for direction in torch.eye(9).reshape(9, 3, 3):
        for sign in (-1, 1):
            moved = PreconditionedGradientDescent(matrix + 0.3 * sign * direction * torch.outer(size, size))
            losses.append(loss(moved))
    assert base < 1.001 * min(losses)
    assert base < 0.995 * sum(losses) / len(losses)
    # Isotropic inputs: the closed form of a scalar.
    plain = PreconditionedGradientDescent.fit(LinearRegressionTask(3, 11), contexts=20_000)
    assert torch.allclose(
        torch.tensor(plain.matrix), optimal_gd_lr(3, 10, 1.0, 3.0)[0] * torch.eye(3), atol=0.02
    )
    summed = PreconditionedGradientDescent.fit(LinearRegressionTask(3, 11), reduction="sum")
    assert summed.matrix[0][0] == pytest.approx(plain.matrix[0][0] / 10, rel=0.02)


def test_the_search_finds_the_algorithm_that_made_the_target():
    drawn = LinearRegressionTask(4, 12, sigma=0.5).sample(
        200, generator=torch.Generator().manual_seed(0), dtype=F64
    )
    alpha, gap = tune(Ridge, drawn.x, drawn.y, Ridge(0.37).predict(drawn.x, drawn.y), 1e-3, 1e2)
    assert alpha == pytest.approx(0.37, rel=2e-3)
    assert gap < 1e-6
    # Against labels: the ridge of least error is the Bayes one, sigma^2 / tau^2.
    many = LinearRegressionTask(4, 12, sigma=0.5).sample(
        4000, generator=torch.Generator().manual_seed(0), dtype=F64
    )
    assert tune(Ridge, many.x, many.y, many.y, 1e-2, 1e1)[0] == pytest.approx(0.25, rel=0.2)
    # A minimum at the edge stays at the edge; rates that diverge are no obstacle.
    assert tune(Ridge, drawn.x, drawn.y, 0 * drawn.y, 1e-2, 1e2)[0] == pytest.approx(1e2, rel=1e-2)
    rate, _ = tune(
        lambda lr: GradientDescent(500, lr), drawn.x, drawn.y,
        GradientDescent(500, 0.02).predict(drawn.x, drawn.y), 1e-4, 10.0,
    )  # fmt: skip
    assert rate == pytest.approx(0.02, rel=2e-2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimal_gd_lr(0, 1, 1.0, 3.0),
        lambda: optimal_gd_lr(1, 1, 1.0, 0.5),
        lambda: optimal_gd_lr(1, 1, 1.0, 3.0, tau=0.0),
        lambda: fit_gd_plus_plus(task(), 0),
        lambda: fit_gd_plus_plus(LinearRegressionTask(2, 1), 1),
        lambda: fit_gradient_descent(LinearRegressionTask(4, 3, query="orthogonal"), 1),
        lambda: PreconditionedGradientDescent.fit(LinearRegressionTask(2, 1)),
        lambda: tune(Ridge, torch.ones(1, 2, 1), torch.ones(1, 2), torch.ones(1, 2), 1.0, 0.5),
    ],
)
def test_bad_requests_are_refused(make):
    with pytest.raises(ValueError, match=r"."):
        make()


def test_moments_of_the_task_are_those_of_the_formula():
    assert task().entry_moments == pytest.approx(UNIFORM)
    assert math.isclose(float(task().spectrum[0]), 1 / 12)
