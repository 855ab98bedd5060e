import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from gradatim.bench import Results, tuning_seeds
from gradatim.bench.verdict import judge
from gradatim.optim import GradNormRecorder, refine_schedule
from gradatim.optim.shapes import linear, shape
from gradatim.studies import schedule_trials as module
from gradatim.studies.schedule_refinement import study
from gradatim.studies.schedule_streams import (
    Adam,
    Lad,
    Logistic,
    Runs,
    TeacherStudent,
    lad_data,
    mlp_gradients,
    mlp_loss,
    teacher_student_data,
)

SMALL = {
    "lad_steps": 60,
    "stream_steps": 20,
    "tuning_seeds": 2,
    "text_steps": 3,
    "text_tuning_seeds": 1,
    "epochs": 0.05,
}
ARMS = {arm.name: arm for arm in study.arms}


def outcomes(name: str, seeds) -> dict:
    return dict(zip(seeds, study.batch(ARMS[name], seeds, SMALL), strict=True))


# --- The stacked runs against plain PyTorch -----------------------------------------------------------------


def plain_network(task: TeacherStudent, seed: int, factors: np.ndarray, rate: float):
    """One run as everybody writes it: nn.Module, autograd, torch's optimizer, our recorder."""
    x, y, layers = teacher_student_data(task, seed)
    linears = []
    for w in layers:
        layer = nn.Linear(w.shape[0] - 1, w.shape[1])
        with torch.no_grad():
            layer.weight.copy_(w[:-1].T)
            layer.bias.copy_(w[-1])
        linears.append(layer)
    model = nn.Sequential(linears[0], nn.ReLU(), linears[1], nn.ReLU(), linears[2])
    if task.adam:
        optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.95), eps=1e-8)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with GradNormRecorder(optimizer, norm=1 if task.adam else 2) as recorder:
        for t in range(task.steps):
            optimizer.param_groups[0]["lr"] = rate * factors[t]
            rows = slice(t * task.batch, (t + 1) * task.batch)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x[-task.fresh :]), y[-task.fresh :])
    return float(loss), recorder.norms().double().numpy()


@pytest.mark.parametrize("adam", [False, True])
def test_stacked_networks_equal_plain_training(adam: bool) -> None:
    task = TeacherStudent(steps=15, adam=adam, fresh=200)
    factors = np.stack([linear(15), shape("cosine", 15)])
    rates = (1e-3, 3e-3) if adam else (0.03, 0.1)
    runs = task((3, 8), factors, rates)
    for i, seed in enumerate((3, 8)):
        for j, rate in enumerate(rates):
            loss, norms = plain_network(task, seed, factors[i], rate)
            assert runs.losses[i, j] == pytest.approx(loss, rel=1e-4)
            np.testing.assert_allclose(runs.norms[i, j], norms, rtol=1e-3)


def test_gradients_equal_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(2, 3, a + 1, b, generator=generator, dtype=torch.float64, requires_grad=True)
        for a, b in ((4, 5), (5, 6), (6, 3))
    ]
    x = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (2, 7), generator=generator)
    expected = torch.autograd.grad(mlp_loss(weights, x, y).sum(), weights)
    with torch.no_grad():
        for ours, theirs in zip(mlp_gradients(weights, x, y), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_adam_directions_equal_torch() -> None:
    w = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([w], lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    ours = Adam([w.detach()])
    for step in range(4):
        g = torch.randn(4, generator=torch.Generator().manual_seed(step))
        before = w.detach().clone()
        w.grad = g
        optimizer.step()
        torch.testing.assert_close(ours.directions([g])[0], before - w.detach())


def test_lad_equals_a_loop_of_scalars() -> None:
    task = Lad(steps=40, dim=4, fresh=30)
    factors, rate = linear(40), 0.05
    runs = task((5,), factors[None], (0.2, rate))
    rows, targets, fresh, noise, truth = (v.numpy() for v in lad_data(task, 5))
    x, points = np.zeros(4), []
    for t in range(40):
        points.append(x)
        x = x - rate * factors[t] * np.sign(rows[t] @ x - targets[t]) * rows[t]

    def excess(p: np.ndarray) -> float:
        y = fresh @ truth + noise
        return float(np.mean(np.abs(fresh @ p - y) - np.abs(noise)))

    assert runs.losses[0, 1] == pytest.approx(excess(x))
    assert runs.averaged[0, 1] == pytest.approx(excess(np.mean(points, axis=0)))
    np.testing.assert_allclose(runs.norms[0, 1], np.linalg.norm(rows, axis=1))


def test_noisy_labels_are_noisy_and_seeded() -> None:
    clean, noisy = Logistic("iris", 1)._draw(0)[1], Logistic("iris", 1, flip=0.2)._draw(0)[1]
    assert 0.05 < float((clean != noisy).double().mean()) < 0.25
    assert torch.equal(noisy, Logistic("iris", 1, flip=0.2)._draw(0)[1])


# --- The study as the engine sees it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["bound/refined", "lad/refined", "sgd/refined", "adam/best-warmup", "digits/refined-unguarded"]
)
def test_a_seed_does_not_depend_on_its_companions(name: str) -> None:
    alone = outcomes(name, [3])[3]
    together = outcomes(name, [1, 3, 7])[3]
    assert set(alone.metrics) == set(together.metrics)
    for metric, value in alone.metrics.items():
        assert together.metrics[metric] == pytest.approx(value, rel=1e-4, abs=1e-6), metric
    assert outcomes(name, [1])[1].metrics != alone.metrics


def test_tuning_never_sees_a_test_seed(monkeypatch) -> None:
    seen: list[int] = []

    class Spy(Lad):
        def __call__(self, seeds, factors, rates) -> Runs:
            seen.extend(seeds)
            return super().__call__(seeds, factors, rates)

    spy = Spy(steps=30, dim=3, fresh=10)
    setting = module.Setting(spy, 30, -4, 0)
    monkeypatch.setattr(module, "settings_of", lambda task, scale: setting)
    module.tuned("lad", "refined", (("tuning_seeds", 3),))
    assert set(seen) == set(tuning_seeds(3))


def test_diverged_rates_lose(monkeypatch) -> None:
    def run(seeds, factors, rates) -> Runs:
        losses = np.tile([np.nan, 2.0, 1.0, np.inf], (len(seeds), 1))
        return Runs(losses, losses, np.ones((len(seeds), 4, 5)))

    monkeypatch.setattr(module, "settings_of", lambda task, scale: module.Setting(run, 5, 0, 3))
    assert module.tuned("x", "linear", (("tuning_seeds", 2),)) == (2, 0.0)


def test_metrics_of_known_shapes() -> None:
    straight = module.schedule_metrics(refine_schedule(np.ones(200)), np.ones(200))
    assert straight["warmup_fraction"] == 0.0
    assert straight["above_line"] == pytest.approx(0.0, abs=1e-12)
    assert straight["bound_refined"] == pytest.approx(1.0)
    rising = module.schedule_metrics(refine_schedule(np.linspace(1, 2, 200)), np.ones(200))
    falling = module.schedule_metrics(refine_schedule(np.linspace(1.5, 1, 200)), np.ones(200))
    assert rising["above_line"] < -0.05 < 0.05 < falling["above_line"]


def test_every_arm_of_every_profile_runs_and_every_claim_is_judged() -> None:
    found = {}
    for name in ARMS:
        found[name] = outcomes(name, [0, 1])
        for outcome in found[name].values():
            assert outcome.first_non_finite() is None, name
            assert outcome.metrics
    results = Results(found)
    verdicts = judge(study, results)
    assert len(verdicts) == len(study.claims)
    for verdict in verdicts:
        assert verdict.estimate.n == 2, verdict.claim.id
        assert verdict.control.estimate.n == 2, verdict.claim.id
    quick = {arm.name for arm in study.arms_of(study.profiles["quick"])}
    judged = judge(study, Results({k: v for k, v in found.items() if k in quick}))
    assert all(v.estimate.n == 2 and v.control.estimate.n == 2 for v in judged)


def test_figures_draw_and_have_tables() -> None:
    from matplotlib.figure import Figure

    results = Results({name: outcomes(name, [0, 1]) for name in ("lad/refined", "sgd/refined", "sgd/linear")})
    for figure in study.figures:
        canvas = Figure()
        figure.draw(canvas, results)
        assert any(axis.lines for axis in canvas.axes)
        table = figure.table(results)
        assert table.rows
        assert all(len(row) == len(table.header) for row in table.rows)
        figure.draw(Figure(), Results({}))
        assert not figure.table(Results({})).rows


def test_snippet_runs_as_it_stands() -> None:
    exec(compile(study.snippet, "snippet", "exec"), {})  # noqa: S102 (our own text, shown to readers as runnable)


def test_claims_have_a_margin_and_words() -> None:
    for claim in study.claims:
        assert claim.paper_says
        assert claim.control.explanation
        assert dataclasses.replace(claim).id == claim.id
