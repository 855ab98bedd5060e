"""`gradatim list` and `gradatim show PAPER`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gradatim.cli import _options as o


def list_studies(as_json: o.Json = False) -> None:
    """The studies: number, slug, rooms, cost and what each one claims."""
    from gradatim import studies

    found = studies.load_all()
    if as_json:
        typer.echo(json.dumps([_entry(s) for s in found], indent=1))
        return
    from rich.console import Console

    from gradatim.report.terminal import study_table

    Console().print(study_table(found))


def show_study(
    paper: Annotated[str, typer.Argument(help="Number or slug of a paper, such as 20.")],
    board: o.BoardFile = o.DEFAULT_BOARD,
    profile: o.ProfileName = "quick",
    as_json: o.Json = False,
) -> None:
    """One paper: the method in plain words, its claims and controls, what the board knows, the code."""
    from gradatim import studies
    from gradatim.bench import engine
    from gradatim.bench.board import Board

    study = studies.load(paper)
    report = None
    if board.exists():
        with Board(board) as store:
            if store.count(study.slug):
                plan = engine.plan(study, engine.RunOptions(profile=profile))
                report = engine.report(plan, store, f"gradatim run {study.slug} --profile {profile}")
    if as_json:
        typer.echo(json.dumps({**_entry(study), "report": report and report.to_json()}, indent=1))
        return
    from rich.console import Console

    from gradatim.report.terminal import print_study

    print_study(Console(), study, report)


def _entry(study: Any) -> dict[str, Any]:
    return {
        "number": study.number,
        "slug": study.slug,
        "title": study.title,
        "paper": study.paper and vars(study.paper),
        "rooms": list(study.rooms),
        "profiles": {
            name: {"seeds": p.seeds, "core_seconds": p.core_seconds} for name, p in study.profiles.items()
        },
        "claims": [
            {"id": c.id, "statement": c.statement, "control": c.control.explanation} for c in study.claims
        ],
        "arms": [arm.name for arm in study.arms],
    }
