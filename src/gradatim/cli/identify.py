"""`gradatim identify`: which learning algorithm do a model's in-context predictions follow?"""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gradatim.cli import _options as o
from gradatim.cli.errors import UsageError

DEFAULT_OUT = Path("gradatim-identify")


def identify(
    model: Annotated[
        str,
        typer.Option(
            "--model", help="Folder of a saved learner, or module:name of your own callable (x, y) -> (B, n)."
        ),
    ],
    task: Annotated[
        str, typer.Option("--task", help="linear, or a Boolean class such as conjunction or parity.")
    ] = "linear",
    dim: Annotated[int | None, typer.Option("--dim", min=1, help="Inputs (default: the model's).")] = None,
    points: Annotated[int | None, typer.Option("--points", min=2, help="Pairs in a context.")] = None,
    noise: Annotated[float, typer.Option("--noise", min=0, help="linear: sigma; Boolean: flips.")] = 0.0,
    tau: Annotated[float, typer.Option("--tau", min=0, help="linear: standard deviation of a weight.")] = 1.0,
    x: Annotated[
        str, typer.Option("--x", help="linear: law of an input, such as normal or uniform.")
    ] = "normal",
    cov: Annotated[
        str | None, typer.Option("--cov", help="linear: spectrum of the inputs: ill, skewed, half.")
    ] = None,
    at: Annotated[
        list[int] | None,
        typer.Option("--at", help="Pairs seen before the answer that counts; repeatable, -1 is the last."),
    ] = None,
    contexts: Annotated[int, typer.Option("--contexts", min=10, help="Contexts to judge on.")] = 1000,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="Similarity below which nothing fits.")
    ] = 0.9,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Read the layers too.")] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which contexts are drawn.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder the page is written to.")] = DEFAULT_OUT,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare a model's in-context predictions with every reference algorithm at once."""
    from gradatim.cli._identified import write_page
    from gradatim.probes import identify as identify_learner
    from gradatim.report import check_folder

    check_folder(out)
    learner = _learner(model)
    drawn = _task(task, learner, dim, points, noise, tau, x, cov)
    try:
        found = identify_learner(
            learner,
            drawn,
            contexts=contexts,
            positions=at or None,
            threshold=threshold,
            layers=layers,
            seed=seed,
        )
    except ValueError as e:
        raise UsageError(str(e)) from e
    page = write_page(found, out, model=model, command=_command())
    if as_json:
        typer.echo(json.dumps({**found.to_json(), "page": str(page)}, indent=1))
        return
    if not quiet:
        typer.echo(str(found))
        typer.echo()
    typer.echo(f"page: {page.resolve()}")


def _learner(model: str) -> Any:
    from gradatim.models.learners import load_learner

    path = Path(model)
    if path.exists():
        try:
            return load_learner(path)
        except (OSError, ValueError) as e:
            raise UsageError(f"--model {model}: {e}") from e
    module, colon, name = model.partition(":")
    if not colon or not module or not name:
        raise UsageError(f"--model {model!r} is no folder and no module:name; give one of the two")
    return _imported(module, name, model)


def _imported(module: str, name: str, model: str) -> Callable[..., Any]:
    # The user's own code, from the folder she stands in, as `python -m` would find it.
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except ImportError as e:
        raise UsageError(f"--model {model}: cannot import {module}: {e}") from e
    finally:
        sys.path.remove("")
    learner = getattr(found, name, None)
    if not callable(learner):
        known = (
            ", ".join(n for n, v in vars(found).items() if callable(v) and not n.startswith("_")) or "nothing"
        )
        raise UsageError(f"--model {model}: {module} has no callable {name}; it has {known}")
    checked: Callable[..., Any] = learner
    return checked


def _task(
    name: str,
    learner: Any,
    dim: int | None,
    points: int | None,
    noise: float,
    tau: float,
    x: str,
    cov: str | None,
) -> Any:
    from gradatim.tasks import BooleanTask, LinearRegressionTask
    from gradatim.tasks.boolean import BOOLEAN_TASKS

    config = getattr(learner, "config", None)
    d = dim if dim is not None else getattr(config, "d", None)
    if d is None:
        raise UsageError("the model does not say how many inputs it takes; give --dim")
    longest = getattr(config, "n_positions", None)
    n = points if points is not None else longest or 2 * d + 1
    if longest is not None and n > longest:
        raise UsageError(f"--points {n} is more than the model's {longest} positions")
    try:
        if name == "linear":
            return LinearRegressionTask(d, n, x=x, cov=cov, tau=tau, sigma=noise)
        if name in BOOLEAN_TASKS:
            return BooleanTask(d, name, n=n, noise=noise)
    except ValueError as e:
        raise UsageError(f"--task {name}: {e}") from e
    raise UsageError(f"--task {name!r} is unknown; there are linear, {', '.join(BOOLEAN_TASKS)}")


def _command() -> str:
    return shlex.join(["gradatim", *sys.argv[1:]])
