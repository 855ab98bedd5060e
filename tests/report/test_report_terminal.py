"""What the terminal shows."""

import io

import pytest
import synthetic_reports as synthetic
from rich.console import Console

from gradatim.bench.engine import Progress
from gradatim.report.terminal import LiveRun, print_report, print_study, study_table


def console(width=140, terminal=False, **keywords):
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, **keywords)


def text(c: Console) -> str:
    return c.file.getvalue()


def test_report_holds_verdicts_effects_and_failures():
    c = console()
    print_report(c, synthetic.schedules())
    out = text(c)
    assert "● reproduced" in out
    assert "◐ inconclusive" in out
    assert "+0.0480" in out
    assert "1 trial failed; the first: transformer/refined, seed 12" in out
    assert "3 trials of this profile not measured yet" in out
    assert "│" in out
    assert "◇" in out


def test_forest_is_left_out_where_it_is_narrow():
    c = console(80)
    print_report(c, synthetic.schedules())
    assert "◇" not in text(c)
    assert max(map(len, text(c).splitlines())) <= 80


def test_no_colour_off_a_terminal_or_with_no_color(monkeypatch):
    c = console()
    print_report(c, synthetic.schedules())
    assert "\x1b[" not in text(c)
    monkeypatch.setenv("NO_COLOR", "1")
    c = console(terminal=True)
    print_report(c, synthetic.schedules())
    assert not [code for code in ("\x1b[31", "\x1b[32", "\x1b[33") if code in text(c)]
    assert "\x1b[32" in _coloured(monkeypatch)


def _coloured(monkeypatch) -> str:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm-256color")
    c = console(terminal=True)
    print_report(c, synthetic.schedules())
    return text(c)


@pytest.mark.parametrize("name", ["[bold]x[/bold]", "[/nothing]", synthetic.HOSTILE, "a\x1b[31mred\x07"])
def test_names_are_not_markup(name):
    c = console(300)
    print_report(c, synthetic.hostile(name))
    print_study(c, synthetic.hostile(name).study, None)
    out = text(c)
    assert name.replace("\x1b", "\ufffd").replace("\x07", "\ufffd") in out
    assert "\x1b" not in out


@pytest.mark.parametrize("keywords", [{}, {"failed": True}, {"seeds": 1}, {"seeds": 3}])
def test_reports_with_little_in_them(keywords):
    c = console()
    print_report(c, synthetic.empty(**keywords))
    print_study(c, synthetic.empty().study, synthetic.empty(**keywords))
    assert "a beats b" in text(c)


def test_study_table():
    c = console()
    c.print(study_table([synthetic.schedules().study, synthetic.comparison().study]))
    assert "20 schedule-refinement" in text(c)
    assert "compare-retrieval" in text(c)


def live(c: Console) -> str:
    report, other = synthetic.schedules(), synthetic.boosted().study
    rows = {report.study.slug: (report.study, 75.0), other.slug: (other, float("inf"))}
    with LiveRun(c, rows) as run:
        run.update(Progress(report.study, 144, 10, 10, 0, 75.0))
        run.update(Progress(report.study, 144, 77, 10, 1, 30.0))
        if c.is_terminal:
            # The screen is redrawn four times a second; do not wait for it.
            c.print(run._draw())
        run.finish(report)
        run.skip(other, "left for later")
    return text(c)


def test_live_on_a_terminal_and_in_a_pipe():
    drawn = live(console(terminal=True, color_system=None))
    assert "30 s left, 1 failed" in drawn
    assert "77/144" in drawn
    assert "survive their control" in drawn
    lines = live(console()).splitlines()
    assert lines[0] == "20 schedule-refinement: 144 trials, 10 of them kept from before, about 1 min 15 s"
    assert "5 reproduced, 1 inconclusive" in lines[1]
    assert lines[2] == "09 boosted-network: left for later"
    assert live(console(quiet=True)) == ""
