"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from gradatim.cli import catalogue, compare, data, identify, index, mine, report, run, schedule, search, serve
from gradatim.cli.errors import UsageError

app = typer.Typer(
    name="gradatim",
    help="Published training methods, re-measured on your machine, with the control that could explain"
    " each effect away.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(catalogue.list_studies)
app.command("show")(catalogue.show_study)
app.command("run")(run.run)
app.add_typer(compare.app, name="compare")
app.command("identify")(identify.identify)
app.command("index")(index.index)
app.command("search")(search.search)
app.command("serve")(serve.serve)
app.command("mine")(mine.mine)
app.command("report")(report.report)
app.add_typer(data.app, name="data")
app.add_typer(schedule.app, name="schedule")


def _version(wanted: bool) -> None:
    if wanted:
        from gradatim import __version__

        typer.echo(f"gradatim {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Published training methods, re-measured on your machine."""


def user_errors() -> tuple[type[Exception], ...]:
    """Exceptions whose message is already one line that says the fix."""
    from gradatim.bench.board import BoardError
    from gradatim.bench.engine import PlanError
    from gradatim.compare.errors import DataError
    from gradatim.inference.search.errors import SearchError
    from gradatim.report.folder import ReportError
    from gradatim.studies import UnknownStudy

    return UsageError, BoardError, PlanError, DataError, ReportError, SearchError, UnknownStudy
