"""Running studies from the command line: plan, live view, verdicts, report, exit code."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from gradatim.bench import Study, StudyReport
from gradatim.bench import engine as bench
from gradatim.bench.board import Board
from gradatim.cli import EXIT_FAULT, EXIT_STRICT


@dataclass(frozen=True)
class Session:
    """What a command asks for; `budget` is in seconds of wall time, `command` reproduces it."""

    studies: Sequence[Study]
    options: bench.RunOptions
    board: Path
    out: Path
    budget: float | None = None
    as_json: bool = False
    quiet: bool = False
    strict: bool = False
    command: str = "gradatim run"


@dataclass
class _Job:
    study: Study
    plan: bench.Plan | None
    seconds: float
    problem: str = ""


def run_session(session: Session) -> int:
    """Run the session's studies, fastest first, print and write what came out; returns the exit code."""
    from rich.console import Console

    from gradatim.report import check_folder, write_report
    from gradatim.report.terminal import LiveRun, print_report

    started = time.monotonic()
    check_folder(session.out)
    console = Console(stderr=session.as_json, quiet=session.quiet or session.as_json)
    with Board(session.board) as board:
        jobs = sorted((_job(study, board, session) for study in session.studies), key=lambda j: j.seconds)
        left: list[_Job] = []
        reports: list[StudyReport] = []
        with LiveRun(console, {j.study.slug: (j.study, j.seconds) for j in jobs}) as live:
            for job in jobs:
                if job.plan is None:
                    live.skip(job.study, job.problem)
                elif _over(session, started, job):
                    left.append(job)
                    live.skip(job.study, f"left for later: about {job.seconds:.0f} s, over the budget")
                else:
                    bench.run(job.plan, board, session.options, live.update)
                    reports.append(bench.report(job.plan, board, _command(session, job.study)))
                    live.finish(reports[-1])
    others = [job.study for job in left]
    index = write_report(reports, session.out, command=session.command, others=others) if reports else None
    for report in sorted(reports, key=lambda r: r.study.number or 0):
        print_report(console, report)
    if session.as_json:
        typer.echo(json.dumps(_document(session, reports, jobs, left, index), indent=1))
    _farewell(console, session, index, left)
    return _exit_code(session, reports, jobs)


def _job(study: Study, board: Board, session: Session) -> _Job:
    try:
        plan = bench.plan(study, session.options)
        return _Job(study, plan, bench.estimated_seconds(plan, board, session.options))
    except Exception as e:
        # One study that cannot start must not take the others along; alone, its error is the answer.
        if len(session.studies) == 1:
            raise
        return _Job(study, None, float("inf"), f"cannot run: {' '.join(str(e).split())}")


def _over(session: Session, started: float, job: _Job) -> bool:
    if session.budget is None:
        return False
    return time.monotonic() - started + job.seconds > session.budget


def _command(session: Session, study: Study) -> str:
    if study.number is None:
        return session.command
    options = session.options
    parts = [session.command, study.slug, f"--profile {options.profile}"]
    parts += [f"--seeds {options.seeds}"] if options.seeds is not None else []
    parts += [f"--{key} {value}" for key, value in options.overrides.items()]
    return " ".join(parts)


def _document(
    session: Session,
    reports: Sequence[StudyReport],
    jobs: Sequence[_Job],
    left: Sequence[_Job],
    index: Path | None,
) -> dict[str, Any]:
    return {
        "profile": session.options.profile,
        "studies": [r.to_json() for r in reports],
        "left": [{"study": j.study.slug, "seconds": round(j.seconds, 1)} for j in left],
        "problems": [{"study": j.study.slug, "problem": j.problem} for j in jobs if j.problem],
        "board": str(session.board),
        "report": str(index) if index else None,
    }


def _farewell(console: Any, session: Session, index: Path | None, left: Sequence[_Job]) -> None:
    if left:
        slugs = " ".join(j.study.slug for j in left)
        console.print(f"left by the budget: {slugs}; run them with: {session.command} {slugs}")
    if index is not None:
        console.print(f"report: {index.resolve()}", soft_wrap=True, highlight=False)


def _exit_code(session: Session, reports: Sequence[StudyReport], jobs: Sequence[_Job]) -> int:
    if any(job.problem for job in jobs):
        return EXIT_FAULT
    weak = any(v.word == "not reproduced" for r in reports for v in r.verdicts)
    if session.strict and (weak or any(r.failed for r in reports)):
        return EXIT_STRICT
    return 0
