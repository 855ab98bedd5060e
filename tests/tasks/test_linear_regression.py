"""Linear and non-linear contexts: moments against their formulas, structure, and what is refused."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.tasks import ContextPool, ContextTask, LinearRegressionTask, NetworkTask, SineTask

F64 = torch.float64


def contexts(task, batch=2000, seed=0):
    return task.sample(batch, generator=torch.Generator().manual_seed(seed), dtype=F64)


def covariance(x):
    centred = x.flatten(0, 1) - x.flatten(0, 1).mean(0)
    return centred.T @ centred / len(centred)


@pytest.mark.parametrize(
    ("law", "mean", "second", "fourth"),
    [
        ("normal", 0, 1, 3),
        ("uniform", 0, 1 / 12, 1 / 80),
        ("exponential", 1, 1, 9),
        ("laplace", 0, 2, 24),
        ("normal*2.5+1", 1, 6.25, 3 * 6.25**2),
        ("normal*2.5,normal+2.5", 1.25, None, None),
        ("exponential*2,laplace-1", 0.5, None, None),
    ],
)
def test_moments_of_an_entry(law, mean, second, fourth):
    task = LinearRegressionTask(4, 25, x=law)
    x = contexts(task, 4000).x.flatten()
    found = task.entry_moments
    if second is not None:
        assert found == pytest.approx((second, fourth))
    centred = x - x.mean()
    error = float(x.std()) / len(x) ** 0.5
    assert float(x.mean()) == pytest.approx(mean, abs=5 * error)
    assert float((centred**2).mean()) == pytest.approx(found[0], rel=0.03)
    assert float((centred**4).mean()) == pytest.approx(found[1], rel=0.1)


def test_uniform_inputs_stay_in_the_half_interval():
    x = contexts(LinearRegressionTask(3, 10, x="uniform")).x
    assert float(x.min()) < -0.49
    assert float(x.max()) < 0.5
    assert float(x.min()) >= -0.5


def test_labels_are_linear_and_noise_and_prior_have_their_sizes():
    clean = contexts(LinearRegressionTask(5, 8, tau=1.5, w_mean=0.5))
    assert torch.allclose(torch.einsum("bnd,bd->bn", clean.x, clean.w), clean.y)
    assert float(clean.w.mean()) == pytest.approx(0.5, abs=0.1)
    assert float(clean.w.std()) == pytest.approx(1.5, rel=0.03)
    task = LinearRegressionTask(5, 8, sigma=0.5, tau=0.75)
    noisy = contexts(task)
    residual = noisy.y - torch.einsum("bnd,bd->bn", noisy.x, noisy.w)
    assert float(residual.std()) == pytest.approx(0.5, rel=0.03)
    assert task.bayes_alpha == pytest.approx(4 / 9)
    assert LinearRegressionTask(2, 2).bayes_alpha == 0


@pytest.mark.parametrize("cov", ["ill", "skewed", "half"])
@pytest.mark.parametrize("d", [4, 5])
def test_a_spectrum_has_a_basis_of_its_own_in_every_context(cov, d):
    task = LinearRegressionTask(d, 4000, cov=cov, kappa=100.0)
    x = contexts(task, 6).x
    own = torch.linalg.eigvalsh(torch.einsum("bni,bnj->bij", x, x) / task.n)
    assert torch.allclose(own, task.spectrum.expand_as(own), rtol=0.15, atol=1e-9)
    assert float(task.spectrum.sum()) == pytest.approx(d)
    vectors = torch.linalg.eigh(torch.einsum("bni,bnj->bij", x, x)).eigenvectors[..., -1]
    assert float((vectors @ vectors.T).abs().fill_diagonal_(0).max()) < 0.999
    if cov == "ill":
        assert float(task.spectrum[-1] / task.spectrum[0]) == pytest.approx(100)
    # No direction is preferred over contexts.
    shared = covariance(contexts(LinearRegressionTask(d, 2, cov=cov), 20_000).x)
    assert torch.allclose(shared, torch.eye(d, dtype=F64), atol=0.1)


def test_a_covariance_matrix_is_that_of_the_inputs():
    root = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, -1.0], [0.0, 0.0, 0.3]], dtype=F64)
    matrix = root @ root.T
    task = LinearRegressionTask(3, 50, cov=matrix, x_scale=2.0)
    assert torch.allclose(covariance(contexts(task).x), 4 * matrix, rtol=0.05, atol=0.1)
    assert torch.allclose(task.spectrum, 4 * torch.linalg.eigvalsh(matrix))
    again = pickle.loads(pickle.dumps(task))  # noqa: S301
    assert again == task
    assert hash(again) == hash(task)


def test_queries_relate_to_their_context():
    x = contexts(LinearRegressionTask(6, 5, query="orthogonal")).x
    assert float((x[:, :-1] @ x[:, -1, :, None]).abs().max()) < 1e-12
    x = contexts(LinearRegressionTask(6, 5, query="overlapping", x_scale=3.0)).x
    assert bool((x[:, :-1] == x[:, -1:]).all(-1).any(1).all())
    x = contexts(LinearRegressionTask(3, 9, query="quadrant")).x
    signs = x[:, :-1].sign()
    assert torch.equal(signs, signs[:, :1].expand_as(signs))
    assert len(torch.unique(signs[:, 0], dim=0)) == 8
    assert 0.05 < float((x[:, -1].sign() == signs[:, 0]).all(-1).double().mean()) < 0.2


def test_mixture_normalises_by_the_context_alone():
    task = LinearRegressionTask(4, 11, x="mixture", normalize=True, x_scale=1.5)
    x = contexts(task).x
    assert torch.allclose(x[:, :-1].flatten(1).norm(dim=1), torch.full((2000,), 1.5, dtype=F64))
    positive = (x > 0).all(-1).all(-1)  # the exponential third
    assert float(positive.double().mean()) == pytest.approx(1 / 3, abs=0.05)
    with pytest.raises(ValueError, match="closed form"):
        _ = task.spectrum


def test_distractors_replace_that_many_context_labels():
    task = LinearRegressionTask(4, 9, distractors=3)
    batch = contexts(task)
    wrong = (batch.y - torch.einsum("bnd,bd->bn", batch.x, batch.w)).abs() > 1e-9
    assert bool((wrong.sum(1) == 3).all())
    assert not bool(wrong[:, -1].any())
    assert float(batch.y[wrong].std()) == pytest.approx(1, rel=0.05)
    assert bool((wrong[:, :-1].double().mean(0) > 0.3).all())


def test_pools_hold_what_they_say():
    w = contexts(LinearRegressionTask(4, 3, w_pool=5, w_pool_seed=1)).w
    assert len(torch.unique(w, dim=0)) == 5
    other = contexts(LinearRegressionTask(4, 3, w_pool=5, w_pool_seed=1), seed=7)
    assert len(torch.unique(torch.cat([w, other.w]), dim=0)) == 5
    pool = ContextPool(LinearRegressionTask(4, 3), 7)
    batch = contexts(pool)
    assert isinstance(pool, ContextTask)
    assert len(torch.unique(batch.x.flatten(1), dim=0)) == 7
    assert torch.allclose(torch.einsum("bnd,bd->bn", batch.x, batch.w), batch.y)
    assert ContextPool(SineTask(3), 2).sample(4).w is None


def test_sine_and_network_follow_their_formulas():
    sine = contexts(SineTask(6))
    assert sine.x.shape == (2000, 6, 1)
    # Three points fix a sin(x + phase) = A sin x + B cos x; the rest must lie on it.
    basis = torch.stack([sine.x[..., 0].sin(), sine.x[..., 0].cos()], dim=-1)
    fit = torch.linalg.lstsq(basis, sine.y[..., None]).solution
    assert torch.allclose((basis @ fit)[..., 0], sine.y)
    amplitude = fit.norm(dim=1)
    assert 0.1 <= float(amplitude.min()) < 0.11
    assert 0.49 < float(amplitude.max()) <= 0.5
    relu = contexts(NetworkTask(5, 8, hidden=30))
    assert float((relu.y**2).mean()) == pytest.approx(5, rel=0.1)
    doubled = NetworkTask(2, 1, hidden=1, scale=1.0)
    x, y = contexts(doubled, 500).x[:, 0], contexts(doubled, 500).y[:, 0]
    assert float((y == 0).double().mean()) == pytest.approx(0.5, abs=0.1)
    assert x.shape == (500, 2)
    tanh = contexts(NetworkTask(3, 2, hidden=1, activation="tanh", scale=2.0, sigma=0.0), 500)
    ratio = (tanh.y[:, 0] / tanh.y[:, 1]).abs()
    assert float(ratio.median()) == pytest.approx(1, rel=0.3)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([{}, {"x": "laplace"}, {"cov": "skewed"}, {"sigma": 0.3}, {"w_pool": 2}]),
)
def test_the_generator_alone_decides_and_shapes_hold(d, n, dtype, options):
    task = LinearRegressionTask(d, n, **options)
    assert isinstance(task, ContextTask)
    a, b = (
        task.sample(3, generator=torch.Generator().manual_seed(5), dtype=dtype, device="cpu") for _ in "ab"
    )
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)
    assert a.x.shape == (3, n, d)
    assert a.y.shape == (3, n)
    assert a.x.dtype == a.y.dtype == a.w.dtype == dtype
    state = torch.random.get_rng_state()
    task.sample(2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d": 0}, "at least 1"),
        ({"sigma": -1.0}, "must not be negative"),
        ({"tau": float("nan")}, "finite"),
        ({"kappa": 0.5}, "at least 1"),
        ({"x": "cauchy"}, "family"),
        ({"x": "normal*2*3"}, "family|numbers"),
        ({"x": "normal*1.2.3"}, "numbers"),
        ({"w": "nromal"}, "family"),
        ({"cov": "bad"}, "cov must be one of"),
        ({"cov": torch.eye(2)}, r"cov must be \(3, 3\)"),
        ({"cov": -torch.eye(3)}, "positive semi-definite"),
        ({"cov": [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]}, "symmetric"),
        ({"d": 1, "cov": "ill"}, "halves"),
        ({"query": "near"}, "query must be one of"),
        ({"query": "orthogonal", "n": 5}, "d >= n"),
        ({"query": "overlapping", "n": 1}, "n must be at least 2"),
        ({"distractors": 4}, "distractors"),
        ({"w_pool": 0}, "w_pool"),
    ],
)
def test_bad_tasks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LinearRegressionTask(**{"d": 3, "n": 4, **options})


def test_bad_nonlinear_tasks_are_refused():
    for make in (
        lambda: SineTask(0),
        lambda: SineTask(2, d=2),
        lambda: SineTask(2, amplitude=(2.0, 1.0)),
        lambda: SineTask(2, sigma=-1.0),
        lambda: NetworkTask(2, 2, hidden=0),
        lambda: NetworkTask(2, 2, activation="gelu"),
        lambda: NetworkTask(2, 2, sigma=-1.0),
        lambda: ContextPool(SineTask(2), 0),
        lambda: SineTask(2).sample(0),
        lambda: LinearRegressionTask(2, 2).sample(0),
        lambda: LinearRegressionTask(2, 2, sigma=1.0, tau=0.0).bayes_alpha,
    ):
        with pytest.raises(ValueError, match=r"."):
            make()
