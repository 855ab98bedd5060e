"""Unrolled descent against one written by hand, every switch of the recipe, and the regressor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from gradatim.models import EnergyDenoiser, EnergyRecipe, EnergyRegressor
from gradatim.models.energy_recipe import ExtrapolatedStepsWarning, unrolled_loss

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def denoiser(shape=(1, 4, 4), recipe=None, **settings):
    """Small, float64, away from its zeros."""
    recipe = recipe or EnergyRecipe(step_size=2.0, num_steps=2)
    model = EnergyDenoiser(shape, recipe=recipe, seed=0, **{**SIZES, **settings}).double()
    g = generator(9)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name != "step_size":
                p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return model


def arrays(n=3, shape=(1, 4, 4), seed=1):
    return torch.randn(n, *shape, generator=generator(seed), dtype=torch.float64)


def test_the_energy_is_the_mean_over_patches():
    model, y = denoiser(), arrays()
    tokens = model.body(y, condition=model.condition)
    assert tokens.shape == (3, 4, 1)
    expected = torch.stack([tokens[i, :, 0].sum() / 4 for i in range(3)])
    torch.testing.assert_close(model.energy(y), expected)
    # No item sees another.
    torch.testing.assert_close(model.energy(y)[1:2], model.energy(y[1:2]))


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 6), (6, 5)])
def test_an_answer_is_the_descent_by_finite_differences(shape):
    model, x = denoiser(shape), arrays(2, shape)
    out = model(x)
    y, energies = x.clone(), []
    for _ in range(2):
        gradient = torch.zeros_like(y)
        with torch.no_grad():
            energies.append(model.energy(y))
            for place in np.ndindex(*shape):
                step = torch.zeros_like(y)
                step[(slice(None), *place)] = 1e-5
                gradient[(slice(None), *place)] = (model.energy(y + step) - model.energy(y - step)) / 2e-5
        y = y - 2.0 * gradient
    torch.testing.assert_close(out.prediction, y, rtol=1e-6, atol=1e-8)
    energies.append(model.energy(y).detach())
    torch.testing.assert_close(out.energies, torch.stack(energies, dim=1), rtol=1e-6, atol=1e-8)
    assert out.steps_taken.tolist() == [2, 2]


def by_hand(model, x, target, steps, truncate, every):
    """Loss of the unrolled steps, in the plainest autograd."""
    y, losses = x, []
    for i in range(steps):
        if truncate:
            y = y.detach()
        y = y if y.requires_grad else y.detach().requires_grad_()
        E = model.energy(y, twice_differentiable=True).sum()
        y = y - model.step_size * torch.autograd.grad(E, y, create_graph=True)[0]
        if every or i == steps - 1:
            losses.append(F.smooth_l1_loss(y, target))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("loss_on", ["last", "all"])
def test_training_gradients_are_those_of_the_plain_unrolling(truncate, loss_on):
    recipe = EnergyRecipe(3.0, num_steps=3, learn_step_size=True, truncate=truncate, loss_on=loss_on)
    model, x, target = denoiser(recipe=recipe), arrays(), arrays(seed=2)
    out = model(x, target)
    expected = by_hand(model, x, target, 3, truncate, loss_on == "all")
    torch.testing.assert_close(out.loss, expected)
    names, parameters = zip(*model.named_parameters(), strict=True)
    assert "step_size" in names
    # The last bias moves the energy but not its gradient.
    ours = torch.autograd.grad(out.loss, parameters, allow_unused=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    for name, a, b in zip(names, ours, theirs, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, msg=name)
    assert out.step_losses.shape == ((3,) if loss_on == "all" else (1,))
    other = denoiser(recipe=EnergyRecipe(3.0, num_steps=3, truncate=not truncate, loss_on=loss_on))
    assert {n for n, _ in other.named_parameters()} == set(names) - {"step_size"}
    weight, other_weight = (m.body.read_in.weight for m in (model, other))
    gap = torch.autograd.grad(by_hand(model, x, target, 3, truncate, loss_on == "all"), weight)[0]
    changed = torch.autograd.grad(other(x, target).loss, other_weight)[0]
    assert (gap - changed).abs().max() > 1e-6  # truncation is no detail


def test_one_step_is_the_same_under_both_losses():
    x, target = arrays(), arrays(seed=2)
    losses = [
        denoiser(recipe=EnergyRecipe(3.0, num_steps=1, loss_on=on))(x, target).loss for on in ("last", "all")
    ]
    assert torch.equal(*losses)


def test_random_steps_sizes_and_noise_come_from_the_generator():
    x, target = arrays(64), arrays(64, seed=2)
    fixed = denoiser(recipe=EnergyRecipe(3.0, num_steps=1))
    reference = fixed(x, target).prediction - x
    jittered = denoiser(recipe=EnergyRecipe(3.0, num_steps=1, step_size_jitter=2.0))
    moved = jittered(x, target, generator=generator(4)).prediction - x
    share = (moved / reference).flatten(1)
    torch.testing.assert_close(share, share[:, :1].expand_as(share))  # one factor per item
    assert 0.5 <= float(share.min()) < 0.7
    assert 1.7 < float(share.max()) <= 2.0
    ranged = denoiser(recipe=EnergyRecipe(3.0, num_steps_range=(2, 3)))
    expected = {float(ranged(x, target, num_steps=n).loss.detach()) for n in (2, 3)}
    assert {float(ranged(x, target, generator=generator(s)).loss.detach()) for s in range(8)} == expected
    noisy = denoiser(recipe=EnergyRecipe(1e-9, num_steps=1, langevin_noise_std=0.5))
    noise = noisy(x, target, generator=generator(5)).prediction - x
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(noise, noisy(x, target, generator=generator(5)).prediction - x)
    assert torch.equal(noisy(x).prediction, noisy(x).prediction)  # an answer has no noise of its own


def test_the_energy_may_read_the_noisy_array():
    model, x = denoiser(condition_on_input=True), arrays()
    y = arrays(seed=3)
    assert (model.energy(y, x) - model.energy(y, x + 1)).abs().max() > 1e-4
    # x is given, not descended: the gradient is that of y alone.
    step = model(x, num_steps=1).prediction - x
    free = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.energy(free, x).sum(), free)
    torch.testing.assert_close(step, -2.0 * gradient)
    with pytest.raises(ValueError, match="give x as well"):
        model.energy(y)
    with pytest.raises(ValueError, match="does not read x"):
        denoiser().energy(y, x)


def test_thinking_longer_warns_stops_and_is_callable_anywhere():
    model, x = denoiser(), arrays()
    with pytest.warns(ExtrapolatedStepsWarning, match="4 steps, trained with at most 2"):
        long = model(x, num_steps=4)
    with torch.inference_mode():
        again = model(x.clone(), num_steps=2)
    assert torch.equal(again.prediction, model(x).prediction)
    assert not long.prediction.requires_grad
    changes = (long.energies[:, 1:] - long.energies[:, :-1]).abs()
    tol = float(changes[:, 0].sort().values[1]) * 1.0001  # two of three items change by less
    with pytest.warns(ExtrapolatedStepsWarning):
        stopped = model(x, num_steps=4, tol=tol)
    assert sorted(stopped.steps_taken.tolist())[:2] == [1, 1]


def test_best_of_n_is_the_candidate_of_lowest_energy():
    model, x = denoiser(), arrays()
    seen = []
    best = model.think(
        x, noise_std=0.5, num_candidates=4, generator=generator(3),
        callback=lambda step, y, energies: seen.append((y.clone(), energies.clone())),
    )  # fmt: skip
    y, energies = seen[-1]
    for i in range(3):
        k = 4 * i + int(energies[4 * i : 4 * i + 4].argmin())
        assert torch.equal(best.y[i], y[k])
        assert best.energies[i, -1] == energies[k]
    with pytest.raises(ValueError, match="give noise_std"):
        model.think(x, num_candidates=2)
    with pytest.raises(ValueError, match="num_candidates must be at least 1"):
        model.think(x, num_candidates=0)
    with pytest.raises(ValueError, match="belong to an answer"):
        model(x, x, tol=0.1)


def test_recipes_are_the_papers_two_and_refuse_what_cannot_be():
    one, two = EnergyRecipe.system1(500.0), EnergyRecipe.system2(5.0, langevin_noise_std=3.0)
    assert (one.num_steps, one.learn_step_size, one.loss_on, one.trained_steps) == (2, True, "all", (2, 2))
    assert (two.num_steps, two.trained_steps, two.step_size_jitter) == (3, (2, 3), 2.0)
    assert (two.loss_on, two.learn_step_size, two.langevin_noise_std) == ("last", False, 3.0)
    for change, message in {
        "num_steps": (0, "num_steps"), "num_steps_range": ((3, 2), "low <= high"),
        "step_size": (0.0, "step_size"), "step_size_jitter": (0.5, "step_size_jitter"),
        "langevin_noise_std": (-1.0, "langevin"), "loss_on": ("first", "loss_on"),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message[1]):
            EnergyRecipe(**{"step_size": 1.0, change: message[0]})


def test_a_learned_step_size_has_its_own_group_and_floor():
    model = denoiser(recipe=EnergyRecipe.system1(500.0))
    weights, alpha = model.param_groups(1e-3, 0.1)
    assert alpha["params"] == [model.step_size]
    assert (alpha["lr"], alpha["weight_decay"]) == (1.5, 0.0)
    assert (weights["lr"], weights["weight_decay"]) == (1e-3, 0.1)
    assert len(weights["params"]) == len(list(model.parameters())) - 1
    assert len(denoiser().param_groups(1e-3)) == 1
    with torch.no_grad():
        model.step_size.fill_(-3.0)
    model(arrays(), arrays(seed=2))
    assert float(model.step_size.detach()) == pytest.approx(1e-4)


def test_learns_to_denoise_and_state_dict_carries_it():
    g = generator()
    clean = torch.sign(torch.randn(64, 1, 1, 1, generator=g)).expand(-1, 1, 4, 4).contiguous()
    noisy = clean + 0.8 * torch.randn(clean.shape, generator=g)
    model = EnergyDenoiser((1, 4, 4), recipe=EnergyRecipe.system2(64.0), seed=0, **SIZES)
    optimizer = torch.optim.AdamW(model.param_groups(3e-3))
    for _ in range(150):
        loss = model(noisy, clean, generator=g).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = model(noisy)
    before, after = ((z - clean).square().mean() for z in (noisy, out.prediction))
    assert after < 0.3 * before
    assert (out.energies[:, -1] < out.energies[:, 0]).double().mean() > 0.95
    copy = EnergyDenoiser((1, 4, 4), recipe=EnergyRecipe.system2(64.0), seed=1, **SIZES)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(noisy).prediction, out.prediction)
    half = model.to(torch.bfloat16)(noisy.to(torch.bfloat16))
    assert half.prediction.dtype == torch.bfloat16
    assert (half.prediction.float() - out.prediction).abs().mean() < 0.1


def test_unrolling_draws_nothing_from_the_global_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    recipe = EnergyRecipe(0.1, num_steps_range=(1, 3), step_size_jitter=2.0, langevin_noise_std=0.1)
    y0 = torch.zeros(2, 3)
    scale = torch.tensor(1.0, requires_grad=True)
    unrolled_loss(lambda y: (scale * y**2).sum(1), y0, lambda y: y.sum(), recipe, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)


WEIGHTS = "with step_size_jitter > 1 or a range of steps a row repeated is not drawn as one of weight 2"
CASES = [
    (
        EnergyRegressor((16,), max_iter=30, random_state=0),
        {"check_sample_weight_equivalence_on_dense_data": WEIGHTS},
    ),
    (
        EnergyRegressor(
            (16,), max_iter=60, batch_size=1000, num_steps_range=None, step_size_jitter=1.0, random_state=0
        ),
        {},
    ),
]


def _expected(estimator):
    return {repr(case): failures for case, failures in CASES}.get(repr(estimator), {})


@pytest.mark.filterwarnings("default")
@parametrize_with_checks([case for case, _ in CASES], expected_failed_checks=_expected)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_the_regressor_is_as_good_as_a_linear_model_on_diabetes_and_better_on_a_curve():
    X, y = load_diabetes(return_X_y=True)
    model = EnergyRegressor((32,), random_state=0, max_iter=40).fit(X[:300], y[:300])
    linear = LinearRegression().fit(X[:300], y[:300]).score(X[300:], y[300:])
    assert model.score(X[300:], y[300:]) > linear - 0.08
    x = np.linspace(-3, 3, 300)[:, None]
    curve = EnergyRegressor(random_state=0, learn_step_size=True).fit(x, np.sin(2 * x[:, 0]))
    assert curve.score(x, np.sin(2 * x[:, 0])) > 0.95


def test_prediction_descends_the_energy_that_score_samples_shows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    Y = np.column_stack([X[:, 0] * 5 + 100, X[:, 1] ** 2])
    model = EnergyRegressor((32,), step_size=0.5, random_state=0, max_iter=40).fit(X, Y)
    assert model.predict(X).shape == (200, 2)
    # By hand: in standardised units from 0, by central differences of score_samples.
    state = np.tile(model.y_mean_, (200, 1))
    for _ in range(2):
        gradient = np.zeros_like(state)
        for k in range(2):
            step = np.zeros(2)
            step[k] = 1e-5 * model.y_scale_[k]
            gradient[:, k] = (
                model.score_samples(X, state - step) - model.score_samples(X, state + step)
            ) / 2e-5
        state = state - 0.5 * gradient * model.y_scale_
    np.testing.assert_allclose(model.predict(X, num_steps=2), state, rtol=1e-6)
    np.testing.assert_array_equal(model.score_samples(X), model.score_samples(X, model.predict(X)))
    falls = model.score_samples(X) > model.score_samples(X, np.tile(model.y_mean_, (200, 1)))
    assert falls.mean() > 0.9
    with pytest.raises(ValueError, match="y must have 2 columns"):
        model.score_samples(X, Y[:, 0])


def test_a_weight_of_two_is_a_row_twice():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(30, 2)), rng.normal(size=30)
    weight = rng.integers(0, 3, size=30)
    plain = {"num_steps_range": None, "step_size_jitter": 1.0, "batch_size": 1000, "max_iter": 20}
    a = EnergyRegressor((8,), random_state=0, **plain).fit(X, y, sample_weight=weight)
    b = EnergyRegressor((8,), random_state=0, **plain).fit(X.repeat(weight, 0), y.repeat(weight))
    np.testing.assert_allclose(a.predict(X), b.predict(X), rtol=1e-6)
    with pytest.raises(ValueError, match="at least one non-zero"):
        EnergyRegressor().fit(X, y, sample_weight=np.zeros(30))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_steps_range": (3, 2)},
        {"num_steps_range": (1, 2, 3)},
        {"hidden_layer_sizes": (0,)},
        {"loss": "l1"},
    ],
)
def test_the_regressor_refuses_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        EnergyRegressor(**settings).fit(np.zeros((4, 1)), np.zeros(4))


def test_energies_are_finite_at_the_floor_of_half_precision():
    model = EnergyDenoiser((1, 4, 4), seed=0, **SIZES).to(torch.bfloat16)
    energies = model(torch.ones(1, 1, 4, 4, dtype=torch.bfloat16)).energies
    assert energies.dtype == torch.float32
    assert math.isfinite(float(energies.sum()))
