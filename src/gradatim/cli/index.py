"""`gradatim index`: a folder of documents into an index to search."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradatim.cli import _options as o
from gradatim.cli.errors import UsageError

if TYPE_CHECKING:
    from gradatim.inference.search import BuildReport, IndexSettings

METHODS = ("bm25", "dense", "binary", "seal")


def index(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of documents; it is only read.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the index: made, or brought up to date.")],
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Comma list of bm25, dense, binary, seal; or all (default: as before, else bm25).",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="dense: minilm (default), or an encoder's folder or Hugging Face name."),
    ] = None,
    bits: Annotated[int | None, typer.Option("--bits", help="binary: bits of a code (default: 256).")] = None,
    seal_model: Annotated[
        str | None,
        typer.Option("--seal-model", help="seal: folder of a language model (default: train a small one)."),
    ] = None,
    reranker: Annotated[
        bool | None,
        typer.Option("--reranker/--no-reranker", help="Train a re-ranker, for search --rerank own."),
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, help="Pieces of the index (default: as before, else 1).")
    ] = None,
    engine: o.EngineName = "local",
    ray_address: o.RayAddress = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes that read files.")] = 1,
    hidden: Annotated[
        bool, typer.Option("--hidden", help="Read files and folders with a dot first.")
    ] = False,
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Follow symbolic links.")] = False,
    max_file_size: Annotated[
        str, typer.Option("--max-file-size", help="Larger files are left out (JSONL: ten times this).")
    ] = "20MB",
    file_timeout: Annotated[
        float, typer.Option("--file-timeout", min=0.1, help="Seconds without a sign of life from a file.")
    ] = 30.0,
    device: o.ModelDevice = "cpu",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the old index, read everything again.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Index a folder: text, Markdown, HTML, PDF, source code, JSON Lines.

    Run it again to bring the index up to date: only files that changed are read. Stop it whenever you like,
    the same command goes on from there; the old index answers until the new one is complete. What is not said
    about methods, models and shards stays as the index has it.
    """
    from gradatim.cli._progress import told
    from gradatim.inference.search import build_index
    from gradatim.inference.search.settings import settings_like

    settings = settings_like(
        None if fresh else out,
        methods=_methods(methods) if methods is not None else None,
        encoder=model,
        bits=bits,
        seal_model=seal_model,
        reranker=reranker,
        shards=shards,
        engine=o.engine(engine),
        ray_address=ray_address,
        jobs=jobs,
        hidden=hidden,
        follow_links=follow_links,
        most_bytes=_bytes(max_file_size),
        seconds=file_timeout,
        device=None if device == "auto" else device,
        fresh=fresh,
    )
    with told(shown=not quiet) as on_progress:
        report = build_index(folder, out, settings, on_progress)
    if as_json:
        typer.echo(json.dumps({"index": str(out), **asdict(report)}, indent=1))
    elif not quiet:
        _print(report, folder, out, settings)


def _methods(text: str) -> tuple[str, ...]:
    if text.strip() == "all":
        return METHODS
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise UsageError(f"--methods {text!r}: give some of {', '.join(METHODS)}, or all")
    return names


def _bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)i?b?\s*", text.lower())
    size = int(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[match[2]]) if match else 0
    if size < 1:
        raise UsageError(f"--max-file-size {text!r} is no size; write 500kB, 20MB or 1GB")
    return size


def _print(report: BuildReport, folder: Path, out: Path, settings: IndexSettings) -> None:
    from gradatim.cli._hits import printable

    if not report.changed:
        typer.echo(f"{out} is up to date: {report.files:,} files, {report.passages:,} passages")
    else:
        typer.echo(
            f"{out}: {report.files:,} files, {report.passages:,} passages, {report.bytes / 1e6:.1f} MB, "
            f"{report.seconds:.1f} s ({report.read:,} files read, {report.reused:,} as before, "
            f"{report.removed:,} gone)"
        )
    for reason, (count, example) in report.skipped.items():
        typer.echo(f"left out   {count:,} {reason} (such as {printable(example)})")
    for path, reason in report.failed[:20]:
        typer.echo(f"failed     {printable(path)}: {printable(reason)}")
    if len(report.failed) > 20:
        typer.echo(f"failed     {len(report.failed) - 20:,} more; --json lists them")
    typer.echo(f'ask        gradatim search "your question" --index {out}')
    if not settings.has("dense"):
        typer.echo("           (by words; --methods bm25,dense finds other words for the same thing too)")
