"""`gradatim run [PAPER ...]`."""

from __future__ import annotations

from typing import Annotated

import typer

from gradatim.cli import _options as o


def run(
    papers: Annotated[
        list[str] | None, typer.Argument(help="Numbers or slugs of papers; all of them when none is given.")
    ] = None,
    profile: o.ProfileName = "quick",
    seeds: o.Seeds = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Run what fits into this time: 90s, 5m, 1h.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Pretrained model of the studies that use one: a path or a name."),
    ] = None,
    jobs: o.Jobs = None,
    engine: o.EngineName = "local",
    ray_address: o.RayAddress = None,
    timeout: o.Timeout = None,
    fresh: o.Fresh = False,
    board: o.BoardFile = o.DEFAULT_BOARD,
    out: o.Out = o.DEFAULT_REPORT,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    strict: o.Strict = False,
) -> int:
    """Re-measure the claims of papers here and now, and write the report.

    Finished trials are kept: stopping it loses nothing, running it again computes only what is missing.
    """
    from gradatim import studies
    from gradatim.bench.engine import RunOptions
    from gradatim.cli._running import Session, run_session

    chosen = [studies.load(name) for name in dict.fromkeys(papers)] if papers else studies.load_all()
    chosen = list({study.slug: study for study in chosen}.values())
    options = RunOptions(
        profile=profile,
        seeds=seeds,
        jobs=jobs,
        engine=o.engine(engine),  # type: ignore[arg-type]
        ray_address=ray_address,
        timeout=timeout,
        fresh=fresh,
        overrides={"model": model} if model else {},
    )
    return run_session(
        Session(
            studies=chosen,
            options=options,
            board=board,
            out=out,
            budget=o.seconds(budget) if budget else None,
            as_json=as_json,
            quiet=quiet,
            strict=strict,
            command="gradatim run",
        )
    )
