"""`gradatim compare retrieval|tabular|schedule|language`: the same engine on the user's own data."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gradatim.cli import _options as o
from gradatim.cli.errors import UsageError

app = typer.Typer(
    help="Which method on your data? One table, one report, the winner's code.", no_args_is_help=True
)

File = Annotated[Path | None, typer.Option("--data", help="CSV or Parquet file with a header.")]
Target = Annotated[str | None, typer.Option("--target", help="Column to predict.")]
Arms = Annotated[
    list[str] | None,
    typer.Option("--arm", help="An arm; give it several times. The first is the baseline."),
]
ListArms = Annotated[bool, typer.Option("--list-arms", help="Name the arms and stop.")]
Kind = Annotated[str, typer.Option("--kind", help="auto, classification or regression.")]
Drop = Annotated[list[str] | None, typer.Option("--drop", help="Column to leave out; repeatable.")]
Categorical = Annotated[
    list[str] | None, typer.Option("--categorical", help="Column of categories, even if numbers; repeatable.")
]
Rows = Annotated[
    int, typer.Option("--max-rows", min=100, help="Above it a seeded sample of the rows is used.")
]
Save = Annotated[Path | None, typer.Option("--save", help="New folder for the winner.")]
Repeats = Annotated[int, typer.Option("--seeds", help="Number of paired seeds (splits).")]


@app.command()
def retrieval(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="BEIR folder, or JSON Lines of {query, positives, negatives?}."),
    ] = None,
    arm: Arms = None,
    list_arms: ListArms = False,
    train: Annotated[
        str, typer.Option("--train", help="head: a linear map on the frozen encoder; full: every weight.")
    ] = "head",
    model: Annotated[
        str, typer.Option("--model", help="minilm, a folder, or a Hugging Face name.")
    ] = "minilm",
    scale: Annotated[
        list[float] | None,
        typer.Option("--scale", help="Scale (1 / temperature) to choose from; repeatable."),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the queries.")] = None,
    device: o.Device = "cpu",
    max_rows: o.MostPassages = 100_000,
    max_queries: o.MostQueries = 20_000,
    save: Save = None,
    seeds: Repeats = 5,
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
    """Ways to train and build a search engine: objectives, re-rankers, codes, keys; beside BM25."""
    from gradatim.compare import retrieval as task
    from gradatim.compare.saving import write_folder

    if list_arms:
        return _list_arms(task.TASK.arms, as_json)
    if any(value <= 0 for value in scale or ()):
        raise UsageError(f"--scale {min(scale or ())} must be above 0; try 20")
    study = task.comparison(
        _needed(data, "--data", "a BEIR folder or a JSON Lines file"),
        arm or (),
        seeds=seeds,
        train=_one_of("--train", train, ("head", "full")),
        model=model,
        scales=scale or task.SCALES,
        epochs=epochs,
        device=device,
        max_passages=max_rows,
        max_queries=max_queries,
    )
    settings = _scale(study)

    def keep(won: Any, folder: Path) -> str:
        fitted = task.fit_winner(won, settings)
        if fitted is None:
            return f"nothing saved: {won.arm} has no weights; the lines above are all it needs"
        kept: list[str] = []
        write_folder(folder, lambda inside: kept.append(task.save_model(fitted, inside, won, settings)))
        return f"saved: {folder} ({kept[0]})"

    return _run(
        study,
        _options(seeds, jobs, engine, ray_address, timeout, fresh),
        code=lambda won: task.winner_code(won, settings, save if won.arm != "bm25" else None),
        save=keep,
        save_to=save,
        board=board,
        out=out,
        as_json=as_json,
        quiet=quiet,
        strict=strict,
    )


@app.command()
def tabular(
    data: File = None,
    target: Target = None,
    arm: Arms = None,
    list_arms: ListArms = False,
    kind: Kind = "auto",
    drop: Drop = None,
    categorical: Categorical = None,
    max_rows: Rows = 20_000,
    save: Save = None,
    seeds: Repeats = 10,
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
    """Models for a table: boosted network, MLP, gradient boosting, linear; nested cross-validation."""
    from gradatim.compare import saved_network, table_source
    from gradatim.compare import tabular as task
    from gradatim.compare.saving import write_folder

    if list_arms:
        return _list_arms(task.TASK.arms, as_json)
    study = task.comparison(
        _needed(data, "--data", "a CSV or Parquet file"),
        _needed(target, "--target", "the column to predict"),
        arm or (),
        seeds=seeds,
        kind=_one_of("--kind", kind, ("auto", "classification", "regression")),
        drop=drop or (),
        categorical=categorical or (),
        max_rows=max_rows,
    )
    settings = _scale(study)

    def keep(won: Any, folder: Path) -> str:
        fitted = saved_network.from_pipeline(task.fit_winner(won, settings), table_source.load(settings).kind)
        if fitted is None:
            return (
                f"nothing saved: scikit-learn keeps {won.arm} only as a pickle, which runs code when it is"
                " loaded; the lines above fit it again"
            )
        write_folder(folder, fitted.save)
        return f"saved: {folder} (gradatim.compare.saved_network.SavedNetwork.load reads it)"

    return _run(
        study,
        _options(seeds, jobs, engine, ray_address, timeout, fresh),
        code=lambda won: task.winner_code(won, settings),
        save=keep,
        save_to=save,
        board=board,
        out=out,
        as_json=as_json,
        quiet=quiet,
        strict=strict,
    )


@app.command()
def schedule(
    data: File = None,
    target: Target = None,
    arm: Arms = None,
    list_arms: ListArms = False,
    optimizer: Annotated[str, typer.Option("--optimizer", help="adamw or sgd.")] = "adamw",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the rows.")] = 30,
    kind: Kind = "auto",
    drop: Drop = None,
    categorical: Categorical = None,
    max_rows: Rows = 20_000,
    save: Save = None,
    seeds: Repeats = 10,
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
    """Learning-rate schedules for a small network on a table, each at its own best base rate."""
    from gradatim.compare import schedule as task
    from gradatim.compare.saving import write_folder
    from gradatim.compare.schedule_code import winner_code

    if list_arms:
        return _list_arms(task.TASK.arms, as_json)
    study = task.comparison(
        _needed(data, "--data", "a CSV or Parquet file"),
        _needed(target, "--target", "the column to predict"),
        arm or (),
        seeds=seeds,
        optimizer=_one_of("--optimizer", optimizer, ("adamw", "sgd")),
        epochs=epochs,
        kind=_one_of("--kind", kind, ("auto", "classification", "regression")),
        drop=drop or (),
        categorical=categorical or (),
        max_rows=max_rows,
    )
    settings = _scale(study)

    def keep(won: Any, folder: Path) -> str:
        fitted = task.fit_winner(won, settings)
        if fitted is None:
            return "nothing saved: a constant needs no network"
        write_folder(folder, fitted.save)
        return f"saved: {folder} (gradatim.compare.saved_network.SavedNetwork.load reads it)"

    return _run(
        study,
        _options(seeds, jobs, engine, ray_address, timeout, fresh),
        code=lambda won: winner_code(won, settings),
        save=keep,
        save_to=save,
        board=board,
        out=out,
        as_json=as_json,
        quiet=quiet,
        strict=strict,
    )


@app.command()
def language(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Text: .txt, .jsonl of {text}, a folder of .txt; topics; docstrings."),
    ] = None,
    arm: Arms = None,
    list_arms: ListArms = False,
    size: Annotated[str, typer.Option("--size", help="tiny, small, medium or large.")] = "tiny",
    context: Annotated[int, typer.Option("--context", min=8, help="Tokens that a prediction may see.")] = 64,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Budget: updates of the Transformer++.")] = 400,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Windows of text per update.")] = 16,
    rate: Annotated[
        list[float] | None, typer.Option("--rate", help="Learning rate to choose from; repeatable.")
    ] = None,
    tokens: Annotated[str, typer.Option("--tokens", help="characters or bytes.")] = "characters",
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder of a Hugging Face tokenizer instead.")
    ] = None,
    judge: Annotated[
        str, typer.Option("--judge", help="compute or steps: what verdicts hold equal.")
    ] = "compute",
    max_characters: Annotated[
        int, typer.Option("--max-characters", min=1000, help="A longer text is cut there.")
    ] = 5_000_000,
    save: Save = None,
    seeds: Repeats = 3,
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
    """Language models from scratch: Transformer++, energy-based, Hope, recurrent; at equal parameters."""
    from gradatim.compare.language_arms import ARMS, COUNTED

    if list_arms:
        return _list_arms(ARMS, as_json)
    if any(value <= 0 for value in rate or ()):
        raise UsageError(f"--rate {min(rate or ())} must be above 0; try 0.001")
    text = _needed(data, "--data", "a text file, a folder of .txt files, topics or docstrings")

    from gradatim.cli._comparing import ArmTable
    from gradatim.compare import language as task
    from gradatim.compare.language_code import save_model, winner_code
    from gradatim.compare.saving import write_folder

    study = task.comparison(
        text,
        arm or (),
        seeds=seeds,
        size=size,
        context=context,
        steps=steps,
        batch=batch,
        rates=rate or task.RATES,
        tokens=tokens,
        tokenizer=tokenizer,
        judge=judge,
        max_characters=max_characters,
    )
    settings = _scale(study)

    def keep(won: Any, folder: Path) -> str:
        fitted = task.fit_winner(won, settings)
        if fitted is None:
            return f"nothing saved: {won.arm} has no weights"
        write_folder(folder, lambda inside: save_model(fitted, settings, inside))
        return f"saved: {folder} (model and tokenizer in Hugging Face format)"

    return _run(
        study,
        _options(seeds, jobs, engine, ray_address, timeout, fresh),
        code=lambda won: winner_code(won, settings, save),
        save=keep,
        save_to=save,
        tables=tuple(ArmTable(title, task.columns(suffix)) for title, suffix in task.REGIMES),
        plain=COUNTED,
        board=board,
        out=out,
        as_json=as_json,
        quiet=quiet,
        strict=strict,
    )


def _run(study: Any, options: Any, **rest: Any) -> int:
    from gradatim.cli._comparing import Comparing, run_comparison

    return run_comparison(Comparing(study=study, options=options, command=_command(), **rest))


def _options(
    seeds: int, jobs: int | None, engine: str, ray_address: str | None, timeout: float | None, fresh: bool
) -> Any:
    from gradatim.bench.engine import RunOptions
    from gradatim.compare.comparison import PROFILE

    return RunOptions(
        profile=PROFILE,
        seeds=seeds,
        jobs=jobs,
        engine=o.engine(engine),  # type: ignore[arg-type]
        ray_address=ray_address,
        timeout=timeout,
        fresh=fresh,
    )


def _command() -> str:
    return shlex.join(["gradatim", *sys.argv[1:]])


def _scale(study: Any) -> Mapping[str, Any]:
    scale: Mapping[str, Any] = next(iter(study.profiles.values())).scale
    return scale


def _needed(value: Any, option: str, what: str) -> Any:
    if value is None:
        raise UsageError(f"{option} is missing; give {what}")
    return value


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise UsageError(f'{option} "{value}" is unknown; use {" or ".join(allowed)}')
    return value


def _list_arms(arms: Mapping[str, Any], as_json: bool) -> int:
    if as_json:
        import json

        rows = [{"arm": a.name, "label": a.label, "role": a.role} for a in arms.values()]
        typer.echo(json.dumps(rows, indent=1))
    else:
        width = max(len(name) for name in arms)
        for arm in arms.values():
            typer.echo(f"{arm.name:{width}}  {arm.label} ({arm.role})")
    return 0
