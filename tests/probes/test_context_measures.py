"""Distances between learners on cases with a known answer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from gradatim.probes import (
    GradientDescent,
    IterativeNewton,
    KNeighbors,
    LeastSquares,
    OnlineGradientDescent,
    Ridge,
    Zero,
    best_match,
    convergence_rates,
    forgetting,
    ilwd,
    induced_weights,
    linearity_r2,
    matching_trend,
    mspd,
    similarity_of_errors,
    similarity_of_weights,
    span_residual,
    spd,
    unsaturated,
)
from gradatim.tasks import LinearRegressionTask

F64 = torch.float64


def contexts(d=4, n=10, batch=30, seed=0, **options):
    drawn = LinearRegressionTask(d, n, **options).sample(
        batch, generator=torch.Generator().manual_seed(seed), dtype=F64
    )
    return drawn.x, drawn.y


def test_squared_prediction_differences():
    a, b = torch.zeros(3, 5), torch.arange(15.0).reshape(3, 5)
    assert torch.allclose(spd(a, b, 2), (b**2).mean(0).double() / 2)
    assert torch.allclose(spd(a, b, 2, robust=True), b[1].double() ** 2 / 2)
    assert mspd(a, b, 3) == pytest.approx(float(((b**2).mean(0) / 3)[1:3].mean()))
    # Two independent learners of equal error are two errors apart.
    x, y = contexts(n=6, batch=4000)
    own = spd(Zero().predict(x, y), y, 4)
    assert torch.allclose(own, torch.ones(6, dtype=F64), atol=0.15)


def test_similarity_of_errors_has_its_extremes():
    x, y = contexts(batch=400)
    a = Ridge(0.3).predict(x, y)
    assert torch.allclose(similarity_of_errors(a, a, y), torch.ones(400, dtype=F64))
    assert torch.allclose(similarity_of_errors(2 * y - a, a, y), -torch.ones(400, dtype=F64))
    other = torch.roll(a - y, 1, dims=0) + y  # another context's errors
    assert abs(float(similarity_of_errors(a, other, y).mean())) < 0.1
    error, labels = (a - y)[:, 1:].numpy(), y[:, 1:].numpy()
    loop = torch.tensor([
        np.dot(error[i], -labels[i]) / np.linalg.norm(error[i]) / np.linalg.norm(labels[i])
        for i in range(400)
    ])  # fmt: skip
    assert torch.allclose(similarity_of_errors(a, 0 * a, y), loop)
    with_first = similarity_of_errors(a, 0 * a, y, skip_first=False)
    assert float(with_first.mean()) > float(loop.mean())  # all learners agree before the first pair
    assert torch.equal(similarity_of_errors(y, a, y), torch.zeros(400, dtype=F64))
    assert torch.isfinite(similarity_of_errors(1e200 * a, a, y)).all()


def test_best_match_of_an_algorithm_with_itself_is_the_identity():
    x, y = contexts(6, 20, batch=60)
    path = IterativeNewton(0).path(x, y, 10)
    match = best_match(path, path, y, bootstrap=200)
    assert match.argmax.tolist() == list(range(10))
    assert torch.allclose(match.matrix.diagonal(), torch.ones(10, dtype=F64))
    assert match.low.tolist() == match.high.tolist() == list(range(10))
    assert str(match).count("\n") == 10
    # Columns that are the same, or differ by noise, cannot be told apart, and the plausible set says so.
    g = torch.Generator().manual_seed(0)
    ols = LeastSquares().predict(x, y)
    shaken = [ols + 0.1 * torch.randn(60, 20, generator=g, dtype=F64) for _ in range(4)]
    tied = best_match(shaken[0][None], torch.stack([ols, ols, 0 * y, *shaken[1:]]), y, bootstrap=300)
    assert tied.plausible[0, :3].tolist() == [True, True, False]
    twins = best_match(shaken[0][None], torch.stack(shaken[1:]), y, bootstrap=300)
    assert (int(twins.low), int(twins.high)) == (0, 2)
    assert int(twins.plausible.sum()) >= 2


def test_best_match_equals_a_loop_over_cosines():
    x, y = contexts(batch=7)
    a, b = GradientDescent(1, 0.02).path(x, y, 3), IterativeNewton(1).path(x, y, 4)
    match = best_match(a, b, y, bootstrap=10)
    for i in range(3):
        for j in range(4):
            assert float(match.matrix[i, j]) == pytest.approx(
                float(similarity_of_errors(a[i], b[j], y).mean())
            )
    with pytest.raises((ValueError, TypeCheckError)):
        best_match(a[:, :3], b[:, :3], y)
    with pytest.raises(ValueError, match="two prefixes"):
        best_match(a[..., :2], b[..., :2], y[:, :2])


def test_induced_weights_are_those_of_a_linear_learner():
    x, y = contexts(d=4, n=8)
    queries = torch.randn(30, 20, 4, generator=torch.Generator().manual_seed(1), dtype=F64)

    def hidden_ridge(x, y):  # a learner that shows nothing but its predictions
        return SimpleNamespace(predictions=Ridge(0.2).predict(x, y))

    found = induced_weights(hidden_ridge, x, y, queries)
    assert torch.allclose(found.weights, Ridge(0.2).weights(x, y), atol=1e-8)
    assert torch.allclose(found.r2, torch.ones(30, dtype=F64))
    assert torch.allclose(induced_weights(Ridge(0.2), x, y, queries).weights, found.weights, atol=1e-8)
    near = induced_weights(KNeighbors(1), x, y, queries)
    assert float(near.r2.mean()) < 0.9
    with pytest.raises(ValueError, match="as many queries"):
        induced_weights(Ridge(0.2), x, y, queries[:, :3])
    assert torch.equal(induced_weights(Zero(), x, y, queries).r2, torch.ones(30, dtype=F64))


def test_weight_differences_and_linearity_over_prefixes():
    task = LinearRegressionTask(3, 6)
    g = torch.Generator
    same = ilwd(Ridge(0.1), lambda x, y: Ridge(0.1).predict(x, y), task, generator=g().manual_seed(0))
    assert float(same.max()) < 1e-6
    zero = ilwd(LeastSquares(), Zero(), task, contexts=2000, generator=g().manual_seed(0))
    # Least squares of t pairs recovers t of the 3 dimensions of w.
    assert torch.allclose(zero, torch.tensor([0, 1, 2, 3, 3, 3]).double() / 3, atol=0.08)
    r2 = linearity_r2(KNeighbors(1), task, contexts=100, generator=g().manual_seed(0))
    assert bool(r2[0].isnan())
    assert float(r2[1]) < 0.5  # one neighbour: a constant function
    assert torch.allclose(
        linearity_r2(Ridge(0.1), task, generator=g().manual_seed(0))[1:], torch.ones(5, dtype=F64)
    )


def test_weights_are_compared_by_their_direction():
    a = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(similarity_of_weights(a, 3 * a), torch.ones(5, dtype=F64))
    assert torch.allclose(similarity_of_weights(a[:, 0], -a[:, 0]), -torch.ones(5, dtype=F64))


def test_forgetting_tells_who_keeps_what_he_has_seen():
    x, y = contexts(d=8, n=12, batch=300)
    online = forgetting(OnlineGradientDescent(), x, y, 6)
    assert float(online[0]) < 1e-20  # fits the newest pair exactly
    assert bool((online[1:].diff() > -0.15).all())
    assert float(online[-1]) > 3 * float(online[1])
    assert float(forgetting(LeastSquares(), x, y, 6).max()) < 1e-15  # interpolates
    asked_one_by_one = forgetting(lambda x, y: OnlineGradientDescent().predict(x, y), x, y, 6)
    assert torch.allclose(asked_one_by_one, online)
    with pytest.raises(ValueError, match="between 1 and"):
        forgetting(Zero(), x, y, 13)


def test_methods_that_start_at_zero_stay_in_the_span():
    x, y = contexts(d=8, n=4)
    for p in (LeastSquares(), GradientDescent(3, 0.02), OnlineGradientDescent()):
        assert float(span_residual(p.weights(x, y), x).max()) < 1e-7
    w = torch.zeros(1, 3)
    w[0] = torch.tensor([3.0, 0.0, 4.0])
    plane = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]])
    assert float(span_residual(w, plane)) == pytest.approx(0.8)
    assert float(span_residual(0 * w, plane)) == 0


def test_trends():
    line = matching_trend([1.0, 2.0, 3.0, 4.0], [3.0, 6.0, 9.0, 12.0])
    assert (line.slope, line.r2_linear) == (pytest.approx(3), pytest.approx(1))
    assert line.r2_log < 0.99
    double = matching_trend([1, 2, 3, 4, 5], [2, 4, 8, 16, 32])
    assert (double.slope_log, double.r2_log) == (pytest.approx(1), pytest.approx(1))
    assert double.r2_linear < 0.95
    assert matching_trend(range(8), [1, 3, 5, 7, 9, 9, 9, 9]).breakpoint == 4
    assert matching_trend([0, 1, 2], [2, 2, 2]).r2_linear == 0
    assert unsaturated([1.0, 0.95, 0.5, 0.2, 0.1, 0.1]) == [2, 3]
    assert np.allclose(convergence_rates([1.0, 0.5, 0.25], 0.0), np.log(2))
    assert np.allclose(convergence_rates([1.1, 0.6, 0.35], 0.1), np.log(2))
    for bad in (([1, 2], [1, 2]), ([1, 2, 3], [0, 1, 2]), ([1, 2, 3], [1, 2])):
        with pytest.raises(ValueError, match=r"trend|above 0"):
            matching_trend(*bad)
    with pytest.raises(ValueError, match="floor"):
        convergence_rates([1.0, 0.1], 0.1)


def test_what_does_not_fit_is_refused():
    x, y = contexts()
    with pytest.raises((ValueError, TypeCheckError)):
        spd(y, y[:, 1:], 4)
    with pytest.raises(ValueError, match="at least 1"):
        spd(y, y, 0)
    with pytest.raises(ValueError, match="at least 2"):
        mspd(y, y, 1)
    with pytest.raises(ValueError, match="must return predictions"):
        forgetting(lambda x, y: x, x, y)
