"""`gradatim report`: draw the pages again from the board, and export figures for the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gradatim.cli import _options as o
from gradatim.cli.errors import UsageError


def report(
    papers: Annotated[list[str] | None, typer.Argument(help="Papers to show (default: all).")] = None,
    profile: o.ProfileName = "quick",
    seeds: o.Seeds = None,
    board: o.BoardFile = o.DEFAULT_BOARD,
    out: o.Out = o.DEFAULT_REPORT,
    export: Annotated[
        Path | None, typer.Option("--export", help="Also write one JSON file per study to this folder.")
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write the HTML report from what the board holds, running nothing."""
    from gradatim import studies
    from gradatim.bench import engine
    from gradatim.bench.board import Board
    from gradatim.report import write_report

    if not board.exists():
        raise UsageError(f"no board at {board}; run `gradatim run` first, or name one with --board FILE")
    chosen = [studies.load(name) for name in papers] if papers else studies.load_all()
    options = engine.RunOptions(profile=profile, seeds=seeds)
    with Board(board) as store:
        reports = [
            engine.report(
                engine.plan(study, options), store, f"gradatim run {study.slug} --profile {profile}"
            )
            for study in chosen
            if profile in study.profiles
        ]
    reports = [r for r in reports if r.measured]
    if not reports:
        raise UsageError(f"the board {board} holds no {profile} trials of these papers; run `gradatim run`")
    index = write_report(reports, out)
    if export is not None:
        export.mkdir(parents=True, exist_ok=True)
        for r in reports:
            file = export / f"{r.study.slug}.{r.profile}.json"
            file.write_text(json.dumps(r.to_json(), indent=1) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({"report": str(index), "studies": [r.to_json() for r in reports]}, indent=1))
    elif not quiet:
        typer.echo(f"report: {index}")
