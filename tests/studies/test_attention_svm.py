"""The study runs on a small scale, its claims can fail, and its snippet works."""

from __future__ import annotations

from matplotlib.figure import Figure

from gradatim.bench import Results, judge
from gradatim.studies.attention_svm import study

SCALE = {"steps": 300}


def results(seeds=range(4)):
    arms = study.arms_of(study.profiles["quick"])
    return Results({arm.name: dict(zip(seeds, study.batch(arm, seeds, SCALE), strict=True)) for arm in arms})


def test_small_run_gives_every_claim_an_effect_and_every_figure_a_drawing():
    found = results()
    verdicts = {v.claim.id: v for v in judge(study, found)}
    assert all(v.estimate.n >= 2 and v.control.estimate.n >= 2 for v in verdicts.values())
    assert verdicts["low-rank"].word == "reproduced"
    assert verdicts["w-frobenius"].estimate.mean > 0
    for figure in study.figures:
        canvas = Figure()
        figure.draw(canvas, found)
        assert canvas.axes
        assert figure.table(found).rows


def test_an_outcome_does_not_depend_on_its_companions():
    arm = study.arms[1]
    together = list(study.batch(arm, [0, 1, 2], SCALE))
    (alone,) = study.batch(arm, [1], SCALE)
    for name, value in alone.metrics.items():
        assert abs(together[1].metrics[name] - value) < 1e-6


def test_figures_survive_missing_results():
    for figure in study.figures:
        figure.draw(Figure(), Results({}))
        figure.table(Results({}))


def test_snippet_runs(capsys):
    exec(compile(study.snippet, "snippet", "exec"), {})  # noqa: S102
    assert float(capsys.readouterr().out) > 0.9
