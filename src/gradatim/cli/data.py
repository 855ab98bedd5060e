"""`gradatim data`: the data sets that are already on this machine, and how to take one along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gradatim.cli import _options as o
from gradatim.cli.errors import UsageError

app = typer.Typer(help="The data sets that need no download.", no_args_is_help=True)


@app.command("list")
def list_data(as_json: o.Json = False) -> None:
    """Names, sizes and digests of the built-in data sets."""
    rows = [_docstrings_row(), _pages_row(), *_tabular_rows()]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "what it is", "size", "digest", box=None, header_style="bold")
    for row in rows:
        table.add_row(row["name"], row["what"], row["size"], row["digest"])
    Console().print(table)


@app.command("export")
def export(
    name: Annotated[str, typer.Argument(help="A name from `gradatim data list`.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder (docstrings ...) or CSV file (tables) to write.")
    ],
) -> None:
    """Write a data set in the form that `gradatim compare` reads."""
    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out, or remove it")
    if name == "docstrings":
        from gradatim.tasks.beir import write_beir
        from gradatim.tasks.docstrings import docstring_retrieval

        write_beir(docstring_retrieval(), out)
    elif name == "docstring-pages":
        from gradatim.tasks.docstring_pages import write_docstring_pages

        write_docstring_pages(out)
    elif name in _tables():
        _frame(name).to_csv(out, index=False)
    else:
        names = ", ".join(("docstrings", "docstring-pages", *_tables()))
        raise UsageError(f"no data set {name!r}; there are: {names}")
    typer.echo(f"wrote {out}")


def _tables() -> tuple[str, ...]:
    return "breast-cancer", "digits", "wine", "diabetes"


def _frame(name: str) -> Any:
    from sklearn import datasets

    return getattr(datasets, f"load_{name.replace('-', '_')}")(as_frame=True).frame


def _tabular_rows() -> list[dict[str, str]]:
    import hashlib

    rows = []
    for name in _tables():
        frame = _frame(name)
        digest = hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
        kind = "regression" if name == "diabetes" else f"{frame['target'].nunique()} classes"
        rows.append(
            {
                "name": name,
                "what": f"scikit-learn's bundled table, column `target` ({kind})",
                "size": f"{len(frame):,} x {frame.shape[1] - 1}",
                "digest": digest[:12],
            }
        )
    return rows


def _docstrings_row() -> dict[str, str]:
    from gradatim.tasks.docstrings import docstring_retrieval

    task = docstring_retrieval()
    return {
        "name": "docstrings",
        "what": "retrieval over the documentation of the installed numpy, scipy and scikit-learn",
        "size": f"{len(task.corpus):,} passages",
        "digest": task.sha256[:12],
    }


def _pages_row() -> dict[str, str]:
    from gradatim.tasks.docstrings import docstring_texts

    corpus = docstring_texts()
    return {
        "name": "docstring-pages",
        "what": "the same, torch's and Python's own help topics as text files, to try `gradatim index` on",
        "size": f"{len(corpus.texts):,} files",
        "digest": corpus.sha256[:12],
    }
