"""`gradatim search`: a question to an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gradatim.cli import _options as o

IndexFolder = Annotated[Path, typer.Option("--index", help="Folder that `gradatim index` wrote.")]


def search(
    text: Annotated[list[str], typer.Argument(metavar="TEXT", help="The question, quoted or not.")],
    index: IndexFolder,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Hits to show.")] = 10,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", help="bm25, dense, binary, seal or hybrid (default: hybrid with vectors, else bm25)."
        ),
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option("--rerank", help="own (made by index --reranker), or a CrossEncoder's folder or name."),
    ] = None,
    engine: o.EngineName = "local",
    ray_address: o.RayAddress = None,
    device: o.ModelDevice = "cpu",
    full: Annotated[bool, typer.Option("--full", help="Show whole passages.")] = False,
    as_json: o.Json = False,
) -> None:
    """Search an index: passages with their file, place and highlights."""
    from gradatim.inference.search.searching import FolderIndex

    opened = FolderIndex(index, o.engine(engine), ray_address, None if device == "auto" else device)
    answer = opened.search(" ".join(text), k, method, rerank)
    if as_json:
        typer.echo(json.dumps(answer.to_json(), indent=1))
        return
    from gradatim.cli._hits import print_answer

    print_answer(answer, full)
