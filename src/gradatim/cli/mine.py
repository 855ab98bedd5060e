"""`gradatim mine`: hard negatives for a retrieval data set, written as JSON Lines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gradatim.cli import _options as o
from gradatim.cli.errors import UsageError

USUAL = {"relative": 0.95, "absolute": 0.05, "adaptive": 0.5}


def mine(
    data: Annotated[
        Path, typer.Option("--data", help="BEIR folder, or JSON Lines of {query, positives, negatives?}.")
    ],
    out: Annotated[Path, typer.Option("--out", help="JSON Lines file to write.")],
    model: Annotated[
        str, typer.Option("--model", help="What mines: minilm, bm25, an encoder's folder or name.")
    ] = "minilm",
    reranker: Annotated[
        str | None,
        typer.Option("--rerank", help="A cross-encoder's folder or name: its scores judge the margin."),
    ] = None,
    margin: Annotated[
        str,
        typer.Option(
            "--margin", help="relative[:0.95], absolute[:0.05], adaptive[:0.5] (deviations) or none."
        ),
    ] = "relative",
    negatives: Annotated[int, typer.Option("--negatives", min=1, help="Per query.")] = 7,
    range_min: Annotated[int, typer.Option("--range-min", min=0, help="Nearest passages to skip.")] = 0,
    range_max: Annotated[int, typer.Option("--range-max", min=1, help="Nearest passages to look at.")] = 100,
    sampling: Annotated[str, typer.Option("--sampling", help="top or random, of what passes.")] = "top",
    several: Annotated[
        str, typer.Option("--several", help="With several positives, the margin is from: min, mean or max.")
    ] = "min",
    form: Annotated[
        str, typer.Option("--format", help="rows (one a query) or triplets (one a negative).")
    ] = "rows",
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Longer texts are cut.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of random draws.")] = 0,
    device: o.Device = "cpu",
    max_rows: o.MostPassages = 100_000,
    max_queries: o.MostQueries = 20_000,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Hard negatives less what is probably relevant: for the trainer you have.

    Vectors and re-ranker's scores are kept in the cache, so that another margin costs no encoding. Queries of
    a test split are left out.
    """
    rule = _margin(margin)
    for option, value, allowed in (
        ("--format", form, ("rows", "triplets")),
        ("--sampling", sampling, ("top", "random")),
        ("--several", several, ("min", "mean", "max")),
    ):
        if value not in allowed:
            raise UsageError(f'{option} "{value}" is unknown; use {" or ".join(allowed)}')
    if range_max < range_min + negatives:
        raise UsageError(f"--range-max {range_max} leaves fewer than --negatives {negatives}; raise it")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out} cannot be written; give a file in a folder that exists")

    from gradatim.cli._progress import told
    from gradatim.compare.mining import mine as mine_collection
    from gradatim.compare.mining import write_lines
    from gradatim.models.text_encoder import EncoderUnavailableError

    scale: dict[str, Any] = {
        "data": str(data.absolute()), "model": model, "tokens": tokens, "device": device,
        "max_passages": max_rows, "max_queries": max_queries, "sample_seed": 0,
    }  # fmt: skip
    try:
        with told(shown=not quiet) as on_progress:
            mined = mine_collection(
                scale,
                rule,
                reranker=reranker,
                form=form,
                on_progress=on_progress,
                num_negatives=negatives,
                range_min=range_min,
                range_max=range_max,
                sampling=sampling,
                several=several,
                seed=seed,
            )
    except EncoderUnavailableError as error:
        raise UsageError(str(error)) from error
    write_lines(mined.lines, out)
    if as_json:
        counts: dict[str, Any] = {
            "lines": len(mined.lines),
            "asked": mined.asked,
            "remembered": mined.remembered,
        }
        counts["notes"] = list(mined.notes)
        typer.echo(json.dumps({"out": str(out), **counts, **asdict(mined.report)}, indent=1))
    elif not quiet:
        for note in mined.notes:
            typer.echo(f"note: {note}", err=True)
        typer.echo(f"{out}: {len(mined.lines):,} lines")
        typer.echo(str(mined.report))
        if reranker is not None:
            typer.echo(f"re-ranker scored {mined.asked:,} pairs, {mined.remembered:,} were known")


def _margin(text: str) -> Any:
    from gradatim.curricula import AbsoluteMargin, AdaptiveMargin, RelativeMargin

    name, _, number = text.partition(":")
    if name == "none" and not number:
        return None
    try:
        value = float(number) if number else USUAL[name]
        kinds = {"relative": RelativeMargin, "absolute": AbsoluteMargin, "adaptive": AdaptiveMargin}
        return kinds[name](value)
    except (KeyError, ValueError) as error:
        reason = f" ({error})" if name in USUAL else ""
        raise UsageError(
            f'--margin "{text}" is unknown{reason}; use relative:0.95, absolute:0.05, adaptive:0.5 or none'
        ) from None
