"""Matrix-free curvature against dense Hessians."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn
from torch.func import functional_call

from gradatim.probes import curvature
from gradatim.probes.curvature import gauss_newton_operator, hessian_operator, lanczos, power_iteration

torch.set_num_threads(1)
G = torch.Generator().manual_seed(0)
X = torch.randn(12, 3, generator=G, dtype=torch.float64)
Y = (torch.rand(12, generator=G) > 0.5).double()


def network(activation=nn.Tanh):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 1)).double()


def parts(module):
    params = {n: p.detach() for n, p in module.named_parameters()}
    return params, lambda w: functional_call(module, dict(w), (X,)).squeeze(-1)


def bce(outputs):
    return F.binary_cross_entropy_with_logits(outputs, Y)


def dense(function, params):
    """The Hessian as a matrix, by torch's own double Jacobian over one flat vector."""
    names, shapes = list(params), [p.shape for p in params.values()]
    sizes = [p.numel() for p in params.values()]

    def of_flat(v):
        chunks = v.split(sizes)
        return function({n: c.view(s) for n, c, s in zip(names, chunks, shapes, strict=True)})

    flat = torch.cat([p.flatten() for p in params.values()])
    return torch.autograd.functional.hessian(of_flat, flat), of_flat, flat


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_products_and_spectrum_are_those_of_the_dense_matrices(activation):
    params, model = parts(network(activation))
    hessian, _, flat = dense(lambda w: bce(model(w)), params)
    jacobian = torch.autograd.functional.jacobian(dense(lambda w: model(w).sum(), params)[1], flat)
    rows = [
        torch.autograd.functional.jacobian(dense(lambda w, i=i: model(w)[i], params)[1], flat)
        for i in range(12)
    ]
    J = torch.stack(rows)
    assert torch.allclose(J.sum(0), jacobian)
    outputs = model(params)
    p = outputs.sigmoid()
    newton = J.T @ torch.diag(p * (1 - p) / 12) @ J
    v = torch.randn(4, len(flat), generator=G, dtype=torch.float64)
    assert torch.allclose(hessian_operator(bce, params, model)(v), v @ hessian, atol=1e-12)
    assert torch.allclose(gauss_newton_operator(bce, params, model)(v), v @ newton, atol=1e-12)

    found = curvature(bce, params, probes=None, model=model, iterations=60, tolerance=1e-10)
    for matrix, measured in ((hessian, found), (newton, found.gauss_newton)):
        values = torch.linalg.eigvalsh(matrix)
        assert measured.lambda_max == pytest.approx(float(values[-1]), rel=1e-8)
        assert measured.lambda_min == pytest.approx(float(values[0]), abs=1e-9)
        assert measured.trace == pytest.approx(float(matrix.trace()), rel=1e-10)
        assert measured.trace_sq == pytest.approx(float((matrix @ matrix).trace()), rel=1e-10)
        assert measured.converged
    assert found.gauss_newton.lambda_min > -1e-12
    same = curvature(lambda w: bce(model(w)), params, probes=None, iterations=60, tolerance=1e-10)
    assert same.lambda_max == pytest.approx(found.lambda_max)
    assert same.gauss_newton is None


def test_hutchinson_is_within_its_standard_error():
    params, model = parts(network())
    hessian, _, _ = dense(lambda w: bce(model(w)), params)
    found = curvature(bce, params, probes=4000, model=model)
    assert abs(found.trace - float(hessian.trace())) < 4 * found.trace_se
    assert abs(found.trace_sq - float((hessian @ hessian).trace())) < 4 * found.trace_sq_se
    assert 0 < found.trace_sq_se < 0.1 * found.trace_sq
    # Random signs: the variance of zᵀHz is twice the sum of squares off the diagonal.
    off = 2 * (hessian.square().sum() - hessian.diagonal().square().sum())
    assert found.trace_se == pytest.approx(float((off / 4000).sqrt()), rel=0.1)


@pytest.mark.parametrize("ends", [lanczos, power_iteration])
def test_ends_of_a_known_spectrum(ends):
    rotation, _ = torch.linalg.qr(torch.randn(30, 30, generator=G, dtype=torch.float64))
    for spectrum in ([-9.0, 5.0], [9.0, -4.0], [9.0, 3.0], [-9.0, -2.0]):
        values = torch.linspace(-1, 1, 30, dtype=torch.float64)
        if min(spectrum) > 0:
            values = values.abs() + 3.5
        elif max(spectrum) < 0:
            values = -values.abs() - 3.0
        values[0], values[1] = spectrum
        matrix = rotation @ torch.diag(values) @ rotation.T
        start = torch.randn(30, generator=G, dtype=torch.float64)
        high, low, converged = ends(lambda v, m=matrix: v @ m, start, 30, 1e-4)
        # Twenty multiplications do not tell -2 from -3 well once the spectrum is shifted by 9.
        off = 0.6 if ends is power_iteration else 1e-3
        assert high == pytest.approx(float(values.max()), abs=off)
        assert low == pytest.approx(float(values.min()), abs=off)
        assert converged or ends is power_iteration
    assert lanczos(lambda v: 0 * v, start, 10, 1e-4)[:2] == (0.0, 0.0)
    assert power_iteration(lambda v: 0 * v, start)[:2] == (0.0, 0.0)


def test_lanczos_says_when_it_has_not_arrived():
    values = torch.logspace(-3, 0, 200, dtype=torch.float64)
    start = torch.randn(200, generator=G, dtype=torch.float64)
    assert lanczos(lambda v: v * values, start, 3, 1e-6)[2] is False
    exact = lanczos(lambda v: v * values, start, 200, 1e-10)
    assert exact[0] == pytest.approx(1.0, rel=1e-8)


def test_linear_losses_have_no_curvature_and_float32_is_enough():
    flat = curvature(lambda w: w["a"].sum(), {"a": torch.ones(4)}, probes=3)
    assert (flat.lambda_max, flat.lambda_min, flat.trace, flat.trace_sq) == (0, 0, 0, 0)
    assert flat.effective_rank == 0
    params, model = parts(network())
    wide = curvature(bce, params, probes=None, model=model)
    small = {k: v.float() for k, v in params.items()}

    def narrow(w):
        return functional_call(network().float(), dict(w), (X.float(),)).squeeze(-1)

    found = curvature(lambda o: F.binary_cross_entropy_with_logits(o, Y.float()), small, None, model=narrow)
    assert found.lambda_max == pytest.approx(wide.lambda_max, rel=1e-3)
    assert found.trace_sq == pytest.approx(wide.trace_sq, rel=1e-4)
    power = curvature(bce, params, None, model=model, method="power", iterations=100)
    assert power.lambda_max == pytest.approx(wide.lambda_max, rel=0.05)


def test_it_prints_plots_and_refuses():
    params, model = parts(network())
    found = curvature(bce, params, 4, model=model)
    assert "Gauss-Newton" in str(found)
    assert "Hessian" in str(found)
    axis = Figure().subplots()
    found.plot(axis)
    assert len(axis.patches) == 4
    again = curvature(bce, params, 4, model=model)
    assert again == found
    assert 1 <= found.effective_rank < found.n_params
    for settings, message in (
        ({"method": "qr"}, "method"), ({"probes": 0}, "at least 1"), ({"iterations": 0}, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            curvature(bce, params, model=model, **settings)
    with pytest.raises(ValueError, match="must be a scalar"):
        curvature(lambda w: w["a"], {"a": torch.ones(3)})
    with pytest.raises(ValueError, match="floating-point"):
        curvature(lambda w: w["a"].sum(), {"a": torch.ones(3, dtype=torch.long)})


def test_effective_rank_counts_equal_directions():
    # Curvature 4 in seven directions: Tr(H)^2 / Tr(H^2) = 28^2 / 112.
    point = {"w": torch.zeros(7, dtype=torch.float64)}
    assert curvature(lambda w: 2 * w["w"].square().sum(), point).effective_rank == pytest.approx(7)
