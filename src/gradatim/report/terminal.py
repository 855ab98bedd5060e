"""What the terminal shows: the live table of a run, verdicts, and one study in full.

Rich leaves colour away where standard output is no terminal or NO_COLOR is set; every verdict is a word
and a mark as well as a colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from gradatim.bench import Study, StudyReport, Verdict
from gradatim.bench.engine import Progress
from gradatim.bench.statistics import Estimate
from gradatim.report.forest import axis_for, cells, row
from gradatim.report.formatting import count, duration, number, shown
from gradatim.report.svg import clean

FOREST_WIDTH = 28
MARKS = {
    "reproduced": ("●", "green"),
    "not reproduced": ("✕", "red"),
    "inconclusive": ("◐", "yellow"),
    "survives": ("●", "green"),
    "explained away": ("✕", "red"),
    "undecided": ("◐", "yellow"),
}


def word(text: str) -> Text:
    """A verdict as mark and word."""
    mark, style = MARKS[text]
    return Text(f"{mark} {text}", style=style)


def interval(e: Estimate, unit: str = "") -> Text:
    """An effect with its interval, to the digits that the interval supports."""
    if e.mean is None:
        return Text("no finished trials", style="dim")
    s = shown(e)
    note = f"({count(e.n, 'seed')}, no interval)" if e.low is None else "(exact)" if e.sd == 0 else s.interval
    return Text(" ".join(part for part in (s.mean, note, clean(unit)) if part))


def name_of(study: Study) -> str:
    """Number and slug, as a user would type them."""
    return study.slug if study.number is None else f"{study.number:02d} {study.slug}"


def study_table(studies: Sequence[Study]) -> Table:
    """One row per study."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("study", "rooms", "claims", "quick on one core"):
        table.add_column(column, justify="right" if column == "claims" else "left")
    table.add_column("what the paper says", ratio=1)
    for study in studies:
        quick = study.profiles.get("quick")
        cost = f"{quick.core_seconds:.0f} s" if quick else "-"
        table.add_row(name_of(study), ", ".join(study.rooms), str(len(study.claims)), cost, Text(study.title))
    return table


def verdict_table(report: StudyReport, width: int = 80) -> Table:
    """Claims of one study: verdict, effect, the paper's own figure, the control.

    From 110 columns on there is room for a small forest plot: `●` the effect with its interval in
    standard deviations over seeds, `◇` what is left beside the control, `╎` the paper, `│` zero.
    """
    table = Table(box=None, header_style="bold", pad_edge=False, show_edge=False)
    table.add_column("verdict", no_wrap=True)
    table.add_column("claim", ratio=3)
    forest = FOREST_WIDTH if width >= 110 else 0
    if forest:
        table.add_column("against │ for the claim", width=forest, no_wrap=True)
    table.add_column("effect [95%]", ratio=2)
    table.add_column("paper", justify="right")
    table.add_column("beside its control", no_wrap=True)
    axis = axis_for(report.verdicts)
    for v in report.verdicts:
        plot = [Text(cells(row(v, axis), axis, forest), style=MARKS[v.word][1])] if forest else []
        table.add_row(
            word(v.word),
            Text(clean(v.claim.statement + _hint(v))),
            *plot,
            interval(v.estimate, v.claim.unit),
            "" if v.claim.paper is None else number(v.claim.paper, signed=True),
            word(v.control.word),
        )
    return table


def _hint(v: Verdict) -> str:
    if v.word != "inconclusive" or v.estimate.n == 0:
        return ""
    if v.seeds_needed is None:
        return " (more seeds alone would not settle it)"
    return f" (about {v.seeds_needed} seeds would settle it)"


def print_report(console: Console, report: StudyReport) -> None:
    """Title, verdicts and failures of one study."""
    console.print()
    console.print(Text(clean(f"{name_of(report.study)}: {report.study.title}"), style="bold"))
    console.print(Padding(verdict_table(report, console.width), (0, 0, 0, 2)))
    if report.failed:
        first = report.failed[0]
        text = f"  {count(len(report.failed), 'trial')} failed; the first: {first.arm}, seed {first.seed}: "
        console.print(Text(clean(text + first.reason)), style="red")
    if report.missing:
        console.print(f"  {count(report.missing, 'trial')} of this profile not measured yet", highlight=False)


def print_study(console: Console, study: Study, report: StudyReport | None) -> None:
    """One study in full: the method, claims with controls, what the board holds, the code."""
    console.print(Text(clean(f"{name_of(study)}: {study.title}"), style="bold"))
    if study.paper is not None:
        p = study.paper
        console.print(Text(clean(f"{p.title} ({p.authors}, {p.year}, arXiv {p.arxiv})"), style="italic"))
    console.print(Padding(Markdown(clean(study.plain)), (1, 2)))
    for claim in study.claims:
        console.print(Text(clean(f"claim    {claim.statement}")))
        console.print(Text(clean(f"control  {claim.control.explanation}"), style="dim"))
    if report is not None:
        print_report(console, report)
    if study.snippet:
        code = Syntax(clean(study.snippet.strip()), "python", background_color="default")
        console.print(Panel(code, title="use it", border_style="dim"))


class LiveRun:
    """The live table of a run: one row per study with a bar, time left, and verdicts when done.

    On a terminal it is redrawn in place; elsewhere (a pipe, CI) a line is printed when a study starts
    and when it ends. `rows` maps a slug to the study and its expected seconds.
    """

    def __init__(self, console: Console, rows: Mapping[str, tuple[Study, float]]) -> None:
        self._console = console
        self._rows = dict(rows)
        self._progress: dict[str, Progress] = {}
        self._reports: dict[str, StudyReport] = {}
        self._skipped: dict[str, str] = {}
        self._live = (
            Live(self._draw(), console=console, refresh_per_second=4)
            if console.is_terminal and not console.quiet
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(self._draw(), refresh=True)
            self._live.stop()

    def update(self, progress: Progress) -> None:
        """A trial finished, or a study starts."""
        slug = progress.study.slug
        first = slug not in self._progress
        self._progress[slug] = progress
        if self._live:
            self._live.update(self._draw())
        elif first:
            cached = f", {progress.cached} of them kept from before" if progress.cached else ""
            self._console.print(
                f"{name_of(progress.study)}: {progress.total} trials{cached},"
                f" about {duration(progress.seconds_left)}"
            )

    def finish(self, report: StudyReport) -> None:
        """A study is done and judged."""
        self._reports[report.study.slug] = report
        if self._live:
            self._live.update(self._draw(), refresh=True)
        else:
            self._console.print(f"{name_of(report.study)}: {_counts(report)}")

    def skip(self, study: Study, why: str) -> None:
        """A study does not run."""
        self._skipped[study.slug] = why
        if self._live:
            self._live.update(self._draw(), refresh=True)
        else:
            self._console.print(f"{name_of(study)}: {why}")

    def _draw(self) -> Group:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(width=24)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1)
        for slug, (study, seconds) in self._rows.items():
            progress = self._progress.get(slug)
            if slug in self._skipped:
                table.add_row(name_of(study), "", "", Text(clean(self._skipped[slug]), style="dim"))
            elif progress is None:
                table.add_row(name_of(study), "", "", Text(_waiting(seconds), style="dim"))
            else:
                bar = ProgressBar(total=max(progress.total, 1), completed=progress.done, width=24)
                done = f"{progress.done}/{progress.total}"
                table.add_row(name_of(study), bar, done, self._state(slug, progress))
        return Group(table)

    def _state(self, slug: str, progress: Progress) -> Text:
        if slug in self._reports:
            return Text(_counts(self._reports[slug]))
        failed = f", {progress.failed} failed" if progress.failed else ""
        last = f"  {progress.last.arm}, seed {progress.last.seed}" if progress.last else ""
        text = Text(f"{duration(progress.seconds_left)} left{failed}")
        text.append(last, style="dim")
        return text


def _waiting(seconds: float) -> str:
    return f"waiting, about {duration(seconds)}" if math.isfinite(seconds) else "waiting"


def _counts(report: StudyReport) -> str:
    words: list[str] = [v.word for v in report.verdicts]
    if not words:
        return "no claims"
    survived = sum(v.control.word == "survives" for v in report.verdicts)
    parts = [f"{words.count(w)} {w}" for w in MARKS if w in words]
    failed = f"; {len(report.failed)} trials failed" if report.failed else ""
    return f"{', '.join(parts)}; {survived} of {len(words)} survive their control{failed}"
