"""The scikit-learn twins: their contract, and the same weights as the algorithm they wrap."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from gradatim.probes import GradientDescent, GradientDescentPlusPlus, KNeighbors
from gradatim.probes.reference_regressors import (
    AveragingRegressor,
    BayesLinearRegressor,
    BFGSRegressor,
    ConjugateGradientRegressor,
    GradientDescentPlusPlusRegressor,
    GradientDescentRegressor,
    GradientFlowRegressor,
    KernelFilterRegressor,
    KernelGradientDescentRegressor,
    KNeighborsReferenceRegressor,
    LBFGSRegressor,
    LeastSquaresRegressor,
    NewtonSchulzRegressor,
    OnlineGradientDescentRegressor,
    PreconditionedGradientDescentRegressor,
    RidgeReferenceRegressor,
)

ALL = [
    LeastSquaresRegressor(),
    RidgeReferenceRegressor(),
    BayesLinearRegressor(),
    AveragingRegressor(),
    GradientFlowRegressor(),
    KernelFilterRegressor(),
    GradientDescentRegressor(),
    GradientDescentPlusPlusRegressor(),
    NewtonSchulzRegressor(),
    NewtonSchulzRegressor(tol=1e-6),
    ConjugateGradientRegressor(),
    BFGSRegressor(),
    LBFGSRegressor(),
    OnlineGradientDescentRegressor(),
    PreconditionedGradientDescentRegressor(),
    KernelGradientDescentRegressor(),
    KNeighborsReferenceRegressor(),
]


# Checks of column vectors and others warn on purpose.
@pytest.mark.filterwarnings("default")
@parametrize_with_checks(ALL)
def test_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


def data(n=40, d=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 2.0
    return x, x @ rng.normal(size=d) + 3.0 + 0.1 * rng.normal(size=n)


@pytest.mark.parametrize(
    "model",
    [
        LeastSquaresRegressor(),
        NewtonSchulzRegressor(40),
        ConjugateGradientRegressor(5),
        BFGSRegressor(5),
        LBFGSRegressor(5),
        GradientDescentRegressor(20_000),
        GradientFlowRegressor(1e6),
        KernelGradientDescentRegressor(n_iter=20_000),
        NewtonSchulzRegressor(40, tol=1e-9),
        NewtonSchulzRegressor(50, alpha=1.9),
    ],
)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_what_converges_ends_at_scikit_learns_least_squares(model, fit_intercept):
    x, y = data()
    model.set_params(fit_intercept=fit_intercept).fit(x, y)
    peer = LinearRegression(fit_intercept=fit_intercept).fit(x, y)
    assert np.allclose(model.coef_, peer.coef_, atol=1e-6)
    assert model.intercept_ == pytest.approx(peer.intercept_, abs=1e-6)
    assert np.allclose(model.predict(x), peer.predict(x), atol=1e-6)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_ridge_is_scikit_learns(fit_intercept):
    x, y = data(8, 12)
    peer = SklearnRidge(0.7, fit_intercept=fit_intercept).fit(x, y)
    ours = RidgeReferenceRegressor(0.7, fit_intercept=fit_intercept).fit(x, y)
    assert np.allclose(ours.coef_, peer.coef_, atol=1e-10)
    bayes = BayesLinearRegressor(0.7**0.5, 1.0, fit_intercept=fit_intercept).fit(x, y)
    assert np.allclose(bayes.predict(x), peer.predict(x), atol=1e-10)


def test_twins_have_the_weights_of_their_algorithm():
    x, y = data()
    tensors = torch.from_numpy(x)[None], torch.from_numpy(y)[None]
    ours = GradientDescentRegressor(7, 0.001, momentum=0.4, fit_intercept=False).fit(x, y)
    assert np.allclose(ours.coef_, GradientDescent(7, 0.001, momentum=0.4).weights(*tensors)[0])
    plus = GradientDescentPlusPlusRegressor(3, [0.01, 0.02, 0.01], 1e-4, fit_intercept=False).fit(x, y)
    assert np.allclose(plus.coef_, GradientDescentPlusPlus([0.01, 0.02, 0.01], 1e-4).weights(*tensors)[0])
    near = KNeighborsReferenceRegressor(3, "distance").fit(x[:-1], y[:-1]).predict(x[-1:])
    assert near[0] == pytest.approx(float(KNeighbors(3, "distance").predict(*tensors)[0, -1]))
    lifted = KernelGradientDescentRegressor(lambda t: torch.cat([t, t**2], -1), 0.001, 5, fit_intercept=False)
    features = np.concatenate([x, x**2], axis=1)
    plain = GradientDescentRegressor(5, 0.001, reduction="mean", fit_intercept=False).fit(features, y)
    assert np.allclose(lifted.fit(x, y).predict(x), plain.predict(features))


def test_newton_stops_where_it_has_converged():
    x, y = data()
    model = NewtonSchulzRegressor(60, tol=1e-8).fit(x, y)
    assert 3 < model.n_iter_ < 60
    assert NewtonSchulzRegressor(6).fit(x, y).n_iter_ == 6


def test_twins_work_in_pipelines_and_searches():
    x, y = data(60)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), GradientDescentRegressor()),
        {"gradientdescentregressor__n_iter": [1, 10, 1000]},
    )
    assert search.fit(x, y).best_params_["gradientdescentregressor__n_iter"] >= 10
    assert search.score(x, y) > 0.98


@pytest.mark.parametrize(
    "model",
    [
        GradientDescentRegressor(lr="fast"),
        RidgeReferenceRegressor(-1.0),
        NewtonSchulzRegressor(alpha="best"),
        NewtonSchulzRegressor(alpha=2.0),
        KNeighborsReferenceRegressor(0),
    ],
)
def test_bad_settings_are_refused_at_fit(model):
    with pytest.raises(ValueError, match=r"lr|alpha|k must"):
        model.fit(*data())
