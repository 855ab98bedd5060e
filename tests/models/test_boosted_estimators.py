"""The boosted estimators against a plain re-boosting loop, their assembled networks, and their promises."""

import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine, make_regression
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

from gradatim.models import BoostedMLPClassifier, BoostedMLPRegressor
from gradatim.models.boosted_block import draw_start, fit_block, with_ones
from gradatim.models.boosted_objectives import CrossEntropy, LogExponential, SquaredError

torch.set_num_threads(1)


def _data(name):
    if name == "binary":
        X, y = load_breast_cancer(return_X_y=True)
        return scale(X)[::3], np.array(["benign", "malign"])[y][::3]
    if name == "multiclass":
        X, y = load_iris(return_X_y=True)
        return scale(X), y
    if name == "single":
        X, y = load_diabetes(return_X_y=True)
        return scale(X)[::2], y[::2]
    X, y = make_regression(150, 6, n_targets=3, noise=5.0, random_state=0)
    return X, y


def _model(name, **settings):
    kind = BoostedMLPClassifier if name in ("binary", "multiclass") else BoostedMLPRegressor
    return kind(**({"n_units": 12, "units_per_step": 2, "random_state": 0} | settings))


def _scores(model, X):
    return model.decision_function(X) if hasattr(model, "classes_") else model.predict(X)


def _staged(model, X):
    return list(model.staged_decision_function(X) if hasattr(model, "classes_") else model.staged_predict(X))


TASKS = ("binary", "multiclass", "single", "multi-output")


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("subsample", [0.5, 1.0])
def test_fit_equals_boosting_written_out(name, subsample):
    X, y = _data(name)
    # Few iterations: a search that runs on along a flat valley would amplify differences of rounding.
    model = _model(name, subsample=subsample, learning_rate=0.3, max_iter=6).fit(X, y)
    n, d = X.shape
    if name == "binary":
        Y = np.where(y == "malign", 1.0, -1.0)[:, None]
        F = np.full((n, 1), np.arctanh(Y.mean()))
    elif name == "multiclass":
        Y = np.eye(3)[y]
        F = np.zeros((n, 3))  # iris is balanced: centred log-priors are 0
    else:
        Y = y.reshape(n, -1)
        mean, sd = Y.mean(0), Y.std(0)
        Y = (Y - mean) / sd
        F = np.zeros_like(Y)
    losses = []
    for t in range(6):
        if name == "binary":
            r = 2 * Y / (1 + np.exp(2 * Y * F))
        elif name == "multiclass":
            r = Y - softmax(F, axis=1)
        else:
            r = Y - F
        rng = np.random.default_rng([0, t])
        rows = np.sort(rng.permutation(n)[: int(subsample * n)]) if subsample < 1 else np.arange(n)
        if subsample == 1.0:
            rng = np.random.default_rng([0, t])
        start = draw_start(d, 2, F.shape[1], "logistic", rng)
        block = fit_block(with_ones(X[rows]), r[rows], 2, start=start, max_iter=6)
        h = block(with_ones(X))
        newton = 1.0
        if name == "binary":
            newton = (r * h).sum() / (r * h**2 * (2 * Y - r)).sum()
        elif name == "multiclass":
            p = softmax(F, axis=1)
            newton = (h * (Y - p)).sum() / (h**2 * p * (1 - p)).sum()
        F = F + 0.3 * newton * h
        assert model.step_sizes_[t] == pytest.approx(0.3 * newton, rel=1e-6)
        losses.append(
            np.log1p(np.exp(-2 * Y * F)).mean() if name == "binary"
            else -np.log((softmax(F, axis=1) * Y).sum(1)).mean() if name == "multiclass"
            else 0.5 * ((Y - F) ** 2).sum(1).mean()
        )  # fmt: skip
    expected = 2 * F if name == "binary" else F if name == "multiclass" else F * sd + mean
    np.testing.assert_allclose(_scores(model, X).reshape(n, -1), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(model.train_score_, losses, rtol=1e-6)


@pytest.mark.parametrize("activation", ["logistic", "tanh", "relu", "identity"])
@pytest.mark.parametrize("name", TASKS)
def test_assembled_networks_of_scikit_learn_and_torch_give_the_same_outputs(name, activation):
    X, y = _data(name)
    model = _model(name, activation=activation).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mlp = model.to_mlp()
    net = model.to_torch()
    assert mlp.coefs_[0].shape == (X.shape[1], 12)
    output = net(torch.from_numpy(X)).detach().numpy()
    if name == "binary":
        assert np.abs(mlp.predict_proba(X) - model.predict_proba(X)).max() <= 1e-10
        assert np.abs(expit(output[:, 0]) - model.predict_proba(X)[:, 1]).max() <= 1e-10
    elif name == "multiclass":
        assert np.abs(mlp.predict_proba(X) - model.predict_proba(X)).max() <= 1e-10
        assert np.abs(softmax(output, axis=1) - model.predict_proba(X)).max() <= 1e-10
    else:
        size = np.abs(y).max()
        assert np.abs(mlp.predict(X) - model.predict(X)).max() <= 1e-10 * size
        assert np.abs(output.reshape(y.shape) - model.predict(X)).max() <= 1e-10 * size
    np.testing.assert_array_equal(mlp.predict(X), model.predict(X)) if name in TASKS[:2] else None


def test_an_exported_mlp_can_go_on_learning():
    X, y = _data("multiclass")
    mlp = _model("multiclass").fit(X, y).to_mlp()
    before = mlp.coefs_[0].copy()
    mlp.partial_fit(X, y)
    assert not np.array_equal(before, mlp.coefs_[0])
    assert mlp.score(X, y) > 0.8


@pytest.mark.parametrize("name", TASKS)
def test_stage_m_equals_truncation_and_a_shorter_fit_and_keeps_only_its_own_bias(name):
    X, y = _data(name)
    model = _model(name).fit(X, y)
    staged = _staged(model, X)
    assert len(staged) == 6
    np.testing.assert_allclose(staged[-1], _scores(model, X), rtol=1e-10, atol=1e-10)
    for m in (1, 3):
        cut = model.truncate(2 * m)
        assert cut.coefs_[0].shape[1] == cut.coefs_[1].shape[0] == cut.n_units == 2 * m
        assert cut.coefs_[0].flags.c_contiguous
        assert cut.coefs_[0].base is None
        assert len(cut.step_sizes_) == len(cut.train_score_) == cut.n_iter_ == m
        np.testing.assert_allclose(_scores(cut, X), staged[m - 1], rtol=1e-10, atol=1e-10)
        short = _model(name, n_units=2 * m).fit(X, y)
        np.testing.assert_array_equal(_scores(short, X), _scores(cut, X))
        # By hand from the kept arrays: the first m blocks and row m of the biases.
        hidden = expit(X @ model.coefs_[0][:, : 2 * m] + model.intercepts_[0][: 2 * m])
        F = hidden @ model.coefs_[1][: 2 * m] + model.stage_intercepts_[m]
        np.testing.assert_allclose(_scores(cut, X).reshape(F.shape), F, rtol=1e-10, atol=1e-10)
        full_bias = hidden @ model.coefs_[1][: 2 * m] + model.stage_intercepts_[-1]
        assert np.abs(full_bias - F).max() > 1e-3
    assert model.n_units == 12


def test_staged_labels_and_probabilities_follow_the_staged_scores():
    for name in ("binary", "multiclass"):
        X, y = _data(name)
        model = _model(name).fit(X, y)
        triples = zip(
            model.staged_decision_function(X), model.staged_predict_proba(X), model.staged_predict(X),
            strict=True,
        )  # fmt: skip
        for m, (F, p, labels) in enumerate(triples, 1):
            cut = model.truncate(2 * m)
            np.testing.assert_allclose(cut.predict_proba(X), p, atol=1e-12)
            np.testing.assert_array_equal(labels, model.classes_[p.argmax(1)])
            np.testing.assert_array_equal(cut.predict(X), labels)
            np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-12)
            assert F.shape == ((len(X),) if name == "binary" else (len(X), 3))


@pytest.mark.parametrize("name", TASKS)
def test_going_on_with_warm_start_equals_never_having_stopped(name):
    X, y = _data(name)
    whole = _model(name).fit(X, y)
    grown = _model(name, n_units=4, warm_start=True).fit(X, y)
    grown.set_params(n_units=12).fit(X, y)
    np.testing.assert_array_equal(_scores(grown, X), _scores(whole, X))
    np.testing.assert_array_equal(grown.train_score_, whole.train_score_)
    assert grown.stage_intercepts_.shape == whole.stage_intercepts_.shape
    # A truncated model goes on from where it was cut.
    regrown = whole.truncate(6).set_params(n_units=12, warm_start=True).fit(X, y)
    np.testing.assert_array_equal(_scores(regrown, X), _scores(whole, X))
    np.testing.assert_array_equal(regrown.step_sizes_, whole.step_sizes_)
    with pytest.raises(ValueError, match=r"n_units=6 is below the 12"):
        grown.set_params(n_units=6).fit(X, y)


def test_warm_start_refuses_other_classes_and_outputs():
    X, y = _data("multiclass")
    model = _model("multiclass", warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="classes were"):
        model.fit(X, y + 1)
    X, Y = _data("multi-output")
    regressor = _model("single", warm_start=True).fit(X, Y)
    with pytest.raises(ValueError, match="3 outputs, now 2"):
        regressor.fit(X, Y[:, :2])


def test_early_stopping_keeps_the_best_held_out_stage():
    X, y = load_wine(return_X_y=True)
    X = scale(X)
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(len(y)) < 0.3, rng.integers(0, 3, len(y)), y)
    for fraction in (0.3, None):
        model = BoostedMLPClassifier(
            300, learning_rate=0.5, n_iter_no_change=10, validation_fraction=fraction, random_state=1
        ).fit(X, noisy)
        assert model.n_iter_ < 290
        assert len(model.step_sizes_) == model.n_iter_ == model.coefs_[0].shape[1]
        if fraction is not None:
            assert model.validation_score_.argmin() == model.n_iter_ - 1
            # The stages dropped were worse: a longer run without stopping shows the same beginning.
            assert np.isfinite(model.validation_score_).all()
        else:
            assert np.cumsum(model.oob_improvement_).argmax() == model.n_iter_ - 1
    with pytest.raises(ValueError, match="subsample < 1"):
        BoostedMLPClassifier(subsample=1.0, n_iter_no_change=3, validation_fraction=None).fit(X, y)


def test_out_of_bag_scores_are_losses_of_the_rows_not_drawn():
    X, y = _data("single")
    model = _model("single", learning_rate=0.5).fit(X, y)
    Y = ((y - y.mean()) / y.std())[:, None]
    before = np.zeros_like(Y)
    for t, prediction in enumerate(model.staged_predict(X)):
        drawn = np.random.default_rng([0, t]).permutation(len(X))[: len(X) // 2]
        outside = np.setdiff1d(np.arange(len(X)), drawn)
        after = ((prediction - y.mean()) / y.std())[:, None]
        loss = 0.5 * ((Y - after) ** 2)[outside].mean()
        assert model.oob_score_[t] == pytest.approx(loss, rel=1e-8)
        gain = 0.5 * ((Y - before) ** 2)[outside].mean() - loss
        assert model.oob_improvement_[t] == pytest.approx(gain, rel=1e-6, abs=1e-10)
        before = after
    assert not hasattr(_model("single", subsample=1.0).fit(X, y), "oob_score_")


def test_regression_does_not_depend_on_the_targets_unit():
    X, y = _data("single")
    plain = _model("single", max_iter=6).fit(X, y).predict(X)
    far = _model("single", max_iter=6).fit(X, 1e6 * y - 3e7).predict(X)
    np.testing.assert_allclose((far + 3e7) / 1e6, plain, rtol=1e-6)


def test_defaults_do_not_blow_up_where_the_reference_settings_do():
    X, y = load_diabetes(return_X_y=True)
    ours, reference = [], []
    for seed in range(1):
        X_learn, X_test, y_learn, y_test = train_test_split(scale(X), y, random_state=seed)
        model = BoostedMLPRegressor(random_state=seed).fit(X_learn, y_learn)
        ours.append(np.sqrt(np.mean((model.predict(X_test) - y_test) ** 2)))
        settings = BoostedMLPRegressor.reference_defaults() | {"learning_rate": 0.5, "n_units": 60}
        model = BoostedMLPRegressor(**settings, random_state=seed).fit(X_learn, y_learn)
        reference.append(np.sqrt(np.mean((model.predict(X_test) - y_test) ** 2)))
    assert max(ours) < 70
    assert min(reference) > 1.3 * max(ours)


def test_max_step_bounds_the_change_on_rows_not_drawn():
    X, y = _data("binary")
    model = _model("binary", max_step=0.7, learning_rate=1.0).fit(X, y)
    free = _model("binary", learning_rate=1.0).fit(X, y)
    Y = np.where(y == "malign", 1.0, -1.0)
    F = np.full(len(X), np.arctanh(Y.mean()))
    for t, scores in enumerate(model.staged_decision_function(X)):
        residual = 2 * Y / (1 + np.exp(2 * Y * F))
        drawn = np.random.default_rng([0, t]).permutation(len(X))[: len(X) // 2]
        outside = np.setdiff1d(np.arange(len(X)), drawn)
        change = np.abs(scores / 2 - F)[outside].max()
        assert change <= 0.7 * np.abs(residual).max() * (1 + 1e-9)
        F = scores / 2
    assert (model.step_sizes_ < free.step_sizes_ - 1e-6).any()


class Huber:
    """A robust loss given through the hooks alone; delta = 1."""

    def loss(self, y, F):
        e = np.abs(y - F)
        return np.where(e <= 1, 0.5 * e**2, e - 0.5).sum(1)

    def gradient(self, y, F):
        return np.clip(F - y, -1, 1)

    def hessian_diag(self, y, F):
        return (np.abs(y - F) <= 1).astype(float)

    def initial(self, y, weight):
        return np.median(y, axis=0)


def test_another_objective_enters_through_its_gradient_and_curvature():
    X, y = _data("single")
    spoiled = y.copy()
    spoiled[::10] += 3000
    settings = {"n_units": 60, "random_state": 0}
    robust = BoostedMLPRegressor(**settings, objective=Huber()).fit(X, spoiled)
    squared = BoostedMLPRegressor(**settings).fit(X, spoiled)
    clean = np.arange(len(y)) % 10 != 0

    def error(model):
        return np.sqrt(np.mean((model.predict(X) - y)[clean] ** 2))

    assert error(robust) < 0.5 * error(squared)
    # The built-in losses given as hooks change nothing.
    for name, objective in (
        ("binary", LogExponential()),
        ("multiclass", CrossEntropy()),
        ("single", SquaredError()),
    ):
        X, y = _data(name)
        given = _model(name, objective=objective).fit(X, y)
        np.testing.assert_array_equal(_scores(given, X), _scores(_model(name).fit(X, y), X))


def test_stage_weights_multiply_the_sample_weights_of_their_stage():
    X, y = _data("single")
    w = np.random.default_rng(0).uniform(0.5, 2.0, len(y))
    calls = []

    def hook(t, F, targets):
        calls.append((t, F.shape, targets.shape))
        return w

    hooked = _model("single", stage_weights=hook, max_iter=5).fit(X, y)
    assert calls == [(t, (len(y), 1), (len(y), 1)) for t in range(6)]
    even = _model("single", stage_weights=lambda t, F, y: np.ones(len(y)), max_iter=5).fit(X, y)
    plain = _model("single", max_iter=5).fit(X, y)
    np.testing.assert_allclose(even.predict(X), plain.predict(X), rtol=1e-9)
    assert np.abs(hooked.predict(X) - plain.predict(X)).max() > 1e-3
    for bad, match in (
        (lambda t, F, y: np.ones(3), "shape"),
        (lambda t, F, y: -np.ones(len(y)), "not negative"),
        (lambda t, F, y: np.full(len(y), np.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=match):
            _model("single", stage_weights=bad).fit(X, y)


def test_a_row_of_weight_0_is_not_there():
    for name in TASKS:
        X, y = _data(name)
        w = np.ones(len(X))
        w[::4] = 0.0
        left = _model(name).fit(X, y, sample_weight=w)
        gone = _model(name).fit(X[w > 0], y[w > 0])
        np.testing.assert_array_equal(_scores(left, X), _scores(gone, X))


def test_line_searches_differ_and_exact_lowers_the_training_loss_at_every_full_step():
    X, y = _data("binary")
    fits = {
        s: _model("binary", line_search=s, learning_rate=1.0).fit(X, y) for s in ("newton", "exact", "none")
    }
    assert (np.diff(fits["exact"].train_score_) <= 1e-12).all()
    np.testing.assert_array_equal(fits["none"].step_sizes_, 1.0)
    assert fits["newton"].step_sizes_[0] != fits["exact"].step_sizes_[0]


def test_start_of_the_scores():
    X, y = _data("multiclass")
    X, y = X[:120], y[:120]  # 50, 50, 20 rows
    prior = _model("multiclass").fit(X, y).stage_intercepts_[0]
    expected = np.log(np.array([50, 50, 20]) / 120)
    np.testing.assert_allclose(prior, expected - expected.mean(), rtol=1e-12)
    np.testing.assert_array_equal(_model("multiclass", init="zero").fit(X, y).stage_intercepts_[0], 0.0)
    X, y = _data("single")
    np.testing.assert_allclose(_model("single").fit(X, y).stage_intercepts_[0], y.mean())
    X, y = _data("binary")
    p = (y == "malign").mean()
    np.testing.assert_allclose(_model("binary").fit(X, y).stage_intercepts_[0], np.log(p / (1 - p)))


def test_reference_defaults_are_the_sheet_s():
    settings = BoostedMLPClassifier.reference_defaults()
    assert settings["alpha"] == 1e-4
    assert settings["learning_rate"] == 1.0
    assert settings["max_iter"] == 200
    assert settings["init"] == "zero"
    X, y = _data("multiclass")
    assert BoostedMLPClassifier(**settings | {"n_units": 10}, random_state=0).fit(X, y).score(X, y) > 0.9


def test_no_global_random_state_is_touched_and_seeds_decide():
    X, y = _data("multiclass")
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    unseeded = _model("multiclass", random_state=None).fit(X, y)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    for state in (np.random.RandomState, np.random.default_rng):
        one = _model("multiclass", random_state=state(3)).fit(X, y)
        two = _model("multiclass", random_state=state(3)).fit(X, y)
        np.testing.assert_array_equal(one.coefs_[0], two.coefs_[0])
    assert not np.array_equal(unseeded.coefs_[0], one.coefs_[0])


def test_float32_rows_predict_in_float32():
    X, y = _data("multiclass")
    model = _model("multiclass").fit(X, y)
    single = model.predict_proba(X.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, model.predict_proba(X), atol=1e-5)


def test_many_rows_go_through_in_pieces():
    X, y = _data("single")
    model = _model("single", n_units=200).fit(X, y)
    rows = np.tile(X, (20, 1))
    np.testing.assert_allclose(model.predict(rows)[-len(X) :], model.predict(X), rtol=1e-12)
    np.testing.assert_allclose(model.predict(rows)[: len(X)], model.predict(X), rtol=1e-12)


def test_fitted_state_is_arrays_and_round_trips():
    X, y = _data("multiclass")
    model = _model("multiclass").fit(X, y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), model.predict_proba(X))  # noqa: S301
    file = io.BytesIO()
    torch.save(model.to_torch().state_dict(), file)
    file.seek(0)
    net = model.to_torch()
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    net.load_state_dict(torch.load(file, weights_only=True))
    out = net(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(out, model.decision_function(X), atol=1e-12)


def test_feature_names_pipelines_and_grids():
    import pandas as pd

    X, y = _data("multiclass")
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = _model("multiclass").fit(frame, y)
    assert list(model.feature_names_in_) == list("abcd")
    assert list(model.to_mlp().feature_names_in_) == list("abcd")
    assert list(model.truncate(2).feature_names_in_) == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["b", "a", "c", "d"]])
    search = GridSearchCV(
        make_pipeline(StandardScaler(), _model("multiclass")),
        {"boostedmlpclassifier__units_per_step": [1, 2], "boostedmlpclassifier__learning_rate": [0.1, 0.5]},
        cv=3,
    ).fit(X, y)
    assert search.best_score_ > 0.9


def test_verbose_prints_stages(capsys):
    X, y = _data("single")
    _model("single", verbose=2).fit(X, y)
    assert capsys.readouterr().out.count("stage") == 6


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"n_units": 7, "units_per_step": 2}, "n_units=7 is not a multiple of units_per_step=2"),
        ({"subsample": 0.01}, r"draws 1 rows.*raise subsample"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"activation": "gelu"}, "activation"),
        ({"line_search": "wolfe"}, "line_search"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"objective": object()}, "objective"),
    ],
)
def test_bad_settings_are_refused(settings, match):
    X, y = _data("multiclass")
    with pytest.raises(ValueError, match=match):
        _model("multiclass", **settings).fit(X, y)


def test_bad_data_are_refused():
    X, y = _data("multiclass")
    with pytest.raises(ValueError, match="NaN"):
        _model("multiclass").fit(np.where(X > 2, np.nan, X), y)
    with pytest.raises(ValueError, match="only one class"):
        _model("multiclass").fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match=r"non-zero|sample_weight is 0"):
        _model("multiclass").fit(X, y, sample_weight=np.zeros(len(X)))
    with pytest.raises(ValueError, match="minimum of 2"):
        _model("single").fit(X[:1], y[:1])
    with pytest.raises(NotFittedError):
        _model("multiclass").predict(X)
    model = _model("multiclass").fit(X, y)
    for units in (0, 3, 14):
        with pytest.raises(ValueError, match=rf"n_units={units} cannot be kept"):
            model.truncate(units)


def test_separable_rows_and_constant_targets_stay_finite():
    X = np.vstack([np.full((10, 1), 5.0), np.full((10, 1), -5.0)])
    y = np.repeat([1, 0], 10)
    for line_search in ("newton", "exact"):
        for solver in ("varpro", "lbfgs"):
            model = BoostedMLPClassifier(
                100, learning_rate=1.0, line_search=line_search, solver=solver, random_state=0
            ).fit(X, y)
            assert np.isfinite(model.coefs_[1]).all()
            assert model.score(X, y) == 1.0
    constant = BoostedMLPRegressor(10, random_state=0).fit(X, np.full(20, 0.1))
    np.testing.assert_allclose(constant.predict(X), 0.1, rtol=1e-6)
