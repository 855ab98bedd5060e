"""Running one comparison from the command line: live view, arms, verdicts, winner, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from gradatim.bench import Study, StudyReport
from gradatim.bench import engine as bench
from gradatim.bench.board import Board
from gradatim.bench.statistics import Estimate
from gradatim.cli import EXIT_FAULT, EXIT_STRICT
from gradatim.compare.comparison import PROFILE, Winner, winner
from gradatim.compare.saving import check_new_folder


@dataclass(frozen=True)
class ArmTable:
    """A table over arms: its title, and its columns as (heading, metric).

    Lower is better in the first, which alone shows its interval.
    """

    title: str
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Comparing:
    """What a compare command asks for.

    `code(winner)` gives the lines that use it; `save(winner, folder)` keeps it there and says in a line
    what was kept, or why nothing was. `tables` are printed in place of the one of judged metrics. `plain`
    arms are not offered as winners while another finished: that one does better is said instead.
    """

    study: Study
    options: bench.RunOptions
    board: Path
    out: Path
    code: Callable[[Winner], str]
    save: Callable[[Winner, Path], str]
    save_to: Path | None = None
    tables: tuple[ArmTable, ...] = ()
    plain: tuple[str, ...] = ()
    as_json: bool = False
    quiet: bool = False
    strict: bool = False
    command: str = ""


def run_comparison(asked: Comparing) -> int:
    """Run what is missing, print and write what came out; returns the exit code."""
    from gradatim.report import write_report
    from gradatim.report.terminal import LiveRun, print_report

    if asked.save_to is not None:
        check_new_folder(asked.save_to)
    console = Console(stderr=asked.as_json, quiet=asked.quiet or asked.as_json)
    study = asked.study
    with Board(asked.board) as board:
        plan = bench.plan(study, asked.options)
        seconds = bench.estimated_seconds(plan, board, asked.options)
        with LiveRun(console, {study.slug: (study, seconds)}) as live:
            bench.run(plan, board, asked.options, live.update)
            report = bench.report(plan, board, asked.command)
            live.finish(report)
    best = winner(study, report.results)
    offered = replace(study, arms=tuple(arm for arm in study.arms if arm.name not in asked.plain))
    won = winner(offered, report.results) or best
    code = asked.code(won) if won else ""
    report = replace(report, study=replace(study, snippet=code))
    index = write_report([report], asked.out)
    console.print()
    console.print(Text(study.notes), style="dim")
    for table in asked.tables or (None,):
        console.print(Padding(arm_table(report, table), (0, 0, 0, 2)))
    print_report(console, report)
    kept = _announce(console, asked, won, best, code)
    console.print(f"report: {index.resolve()}", soft_wrap=True, highlight=False)
    if asked.as_json:
        typer.echo(json.dumps(_document(asked, report, won, code, kept, index), indent=1))
    if won is None:
        return EXIT_FAULT
    weak = any(v.word == "not reproduced" for v in report.verdicts)
    return EXIT_STRICT if asked.strict and (weak or report.failed) else 0


def arm_table(report: StudyReport, asked: ArmTable | None = None) -> Table:
    """One row per arm with 95% intervals, best arm first: the judged metrics, or the columns asked for."""
    metric, better = report.study.headline[0]
    columns = tuple((name, name) for name, _ in report.study.headline)
    table = Table(box=None, header_style="bold", pad_edge=False, caption="mean ± half of the 95% interval")
    if asked is not None:
        metric, better, columns = asked.columns[0][1], "lower", asked.columns
        table.title, table.title_style, table.title_justify = asked.title, "bold", "left"
    table.add_column("arm", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("seeds", justify="right")
    sign = -1.0 if better == "higher" else 1.0
    estimates = {arm.name: report.arm_estimates(arm) for arm in report.study.arms}

    def rank(name: str) -> float:
        found = estimates[name].get(metric)
        return float("inf") if found is None or found.mean is None else sign * found.mean

    for arm in sorted(report.study.arms, key=lambda a: rank(a.name)):
        cells = [_cell(estimates[arm.name].get(name)) for _, name in columns]
        if asked is not None:  # many columns: only the first has room for its interval
            cells = [cells[0], *(cell.split(" ")[0] for cell in cells[1:])]
        done = len(report.results.outcomes.get(arm.name, {}))
        failed = report.results.failed.get(arm.name, 0)
        table.add_row(Text(arm.name), *cells, f"{done}" + (f" ({failed} failed)" if failed else ""))
    return table


def _cell(e: Estimate | None) -> str:
    if e is None or e.mean is None:
        return "-"
    mean = f"{e.mean:.4g}" if abs(e.mean) < 1e4 else f"{e.mean:,.0f}"
    # What is the same for every seed (a count, say) has no interval to show.
    return mean + ("" if e.low is None or e.low == e.mean else f" ±{e.mean - e.low:.2g}")


def _announce(console: Console, asked: Comparing, won: Winner | None, plain: Winner | None, code: str) -> str:
    if won is None or plain is None:
        console.print("no arm finished; the failures above say why", style="red")
        return ""
    console.print()
    if plain.arm != won.arm:
        console.print(
            f"{plain.arm} does better than any of them: {plain.metric} {plain.mean:.4g}", style="yellow"
        )
    best = f"best mean {won.metric}: {won.arm} ({won.mean:.4g}, {won.seeds} seeds); to use it:"
    console.print(Text(best, style="bold"))
    # No frame, no cropping, no wrapping: the lines are there to be copied.
    console.print(Syntax(code, "python", background_color="default").highlight(code), soft_wrap=True)
    if asked.save_to is None:
        return ""
    kept = asked.save(won, asked.save_to)
    console.print(kept, soft_wrap=True, highlight=False)
    return kept


def _document(
    asked: Comparing, report: StudyReport, won: Winner | None, code: str, kept: str, index: Path
) -> dict[str, Any]:
    best = None
    if won is not None:
        best = {
            "arm": won.arm,
            "metric": won.metric,
            "mean": won.mean,
            "settings": dict(won.settings),
            "code": code,
            "saved": kept or None,
        }
    return {
        "profile": PROFILE,
        "studies": [report.to_json()],
        "data": report.study.notes,
        "winner": best,
        "board": str(asked.board),
        "report": str(index),
    }
