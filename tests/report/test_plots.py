"""The plots of a page and the tables behind them."""

import numpy as np
import pytest
import synthetic_reports as synthetic

from gradatim.bench import Arm, Curve, Outcome, Results
from gradatim.report.plots import (
    _geometric,
    _over_seeds,
    arm_plots,
    by_task,
    curve_plots,
    label_of,
    metrics_table,
    study_plots,
)


def test_arms_are_grouped_by_task_in_order():
    arms = [Arm("b/x"), Arm("a/x"), Arm("b/1/sqrt(t)"), Arm("plain")]
    assert {t: [a.name for a in g] for t, g in by_task(arms).items()} == {
        "b": ["b/x", "b/1/sqrt(t)"], "a": ["a/x"], "": ["plain"],
    }  # fmt: skip


def test_labels_drop_the_task():
    assert [label_of(a) for a in (Arm("b/1/sqrt(t)"), Arm("plain"), Arm("b/x", label="X"))] == [
        "1/sqrt(t)",
        "plain",
        "X",
    ]


def test_a_grid_of_rates_is_drawn_by_factors():
    assert _geometric(np.logspace(-3, 0, 10))
    assert not _geometric(np.arange(1, 100))
    assert not _geometric(np.array([0.0, 1.0, 10.0, 100.0]))


def test_dot_plots_show_every_seed_and_arm():
    report = synthetic.schedules()
    plots = arm_plots(report.study, report.results, "k")
    assert [p.title for p in plots] == ["logistic: final loss", "transformer: final loss"]
    first = plots[0]
    assert len(first.table.rows) == 6
    for row in first.table.rows:
        assert row[2] == 12
        assert len(row[-1].split()) == 12
        assert row[0] in first.svg
    # One dot per seed and arm.
    assert first.svg.count("<use") >= 6 * 12
    assert "The best mean has refined" in first.alt


def test_lower_is_better_names_the_lowest():
    report = synthetic.attention()
    assert "The best mean has W trained" in arm_plots(report.study, report.results, "k")[0].alt


@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0], [0.0, 0.0], [1e-9, 1e3], [-1e30, 1e30]])
def test_dot_plots_of_degenerate_values(values):
    report = synthetic.empty()
    results = Results({"a": {s: Outcome({"x": v}) for s, v in enumerate(values)}})
    (plot,) = arm_plots(report.study, results, "k")
    assert "<svg" in plot.svg
    assert "nan" not in plot.svg.lower()


def test_no_trials_no_plots():
    report = synthetic.empty()
    assert arm_plots(report.study, report.results, "k") == []
    assert curve_plots(report.study, report.results, "k") == []


def test_band_over_seeds_is_the_t_interval():
    line = _over_seeds([Curve([0, 1], [1.0, 2.0]), Curve([0, 1], [3.0, 6.0])])
    assert line.mean.tolist() == [2.0, 4.0]
    # t(0.975, 1 df) = 12.7062; sd / sqrt(2) = 1 and 2.
    assert line.high - line.mean == pytest.approx([12.7062, 25.4124], rel=1e-4)


def test_curves_of_different_steps_meet_on_their_common_range():
    line = _over_seeds([Curve([0, 2, 4], [0, 2, 4]), Curve([1, 3], [1.0, 3.0])])
    assert line.x.tolist() == [1, 2, 3]
    assert line.mean.tolist() == [1, 2, 3]


def test_curves_drop_what_is_not_finite():
    line = _over_seeds([Curve([0, 1, 2], [1.0, float("nan"), 3.0])])
    assert line.x.tolist() == [0, 2]
    assert _over_seeds([Curve([0], [float("inf")])]) is None
    assert _over_seeds([]) is None
    assert _over_seeds([Curve([0], [1.0]), Curve([5], [1.0])]) is None


def test_long_curves_are_thinned_to_their_ends():
    x = np.arange(20_000)
    line = _over_seeds([Curve(x.tolist(), x.tolist())])
    assert len(line.x) == 300
    assert (line.x[0], line.x[-1]) == (0, 19_999)


def test_curve_table_holds_the_drawn_means():
    report = synthetic.schedules()
    plot = curve_plots(report.study, report.results, "k")[0]
    assert plot.table.header[0] == "step"
    assert len(plot.legend) == 6
    last = plot.table.rows[-1]
    curves = report.results.curves("logistic/linear", "loss").values()
    assert float(last[1]) == pytest.approx(np.mean([c.y[-1] for c in curves]), rel=1e-3)


def test_curves_for_a_figure_are_not_drawn_by_themselves():
    report = synthetic.schedules()
    arm, seeds = next(iter(report.results.outcomes.items()))
    hidden = {
        seed: Outcome(o.metrics, {"figure/loss": o.curves["loss"], "shown": o.curves["loss"]})
        for seed, o in seeds.items()
    }
    plots = curve_plots(report.study, Results({arm: hidden}), "k")
    assert len(plots) == 1
    assert "shown" in plots[0].title


def test_a_broken_figure_says_why_and_the_next_is_drawn():
    report = synthetic.hostile()
    broken, fine = study_plots(report.study, report.results, "k")
    assert broken.svg == ""
    assert "RuntimeError" in broken.error
    assert "Traceback" in broken.note
    assert fine.error == ""
    assert "<svg" in fine.svg


def test_metrics_table_has_every_metric():
    report = synthetic.attention()
    arms = report.study.arms
    table = metrics_table(arms, {a.name: report.arm_estimates(a) for a in arms})
    assert len(table.header) == 1 + 6
    assert [len(r) for r in table.rows] == [7, 7, 7]
