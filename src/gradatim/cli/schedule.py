"""`gradatim schedule`: refine, plot and judge learning-rate schedules from your own gradient-norm log."""

from __future__ import annotations

import json
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gradatim.cli.errors import UsageError

app = typer.Typer(
    help="Learning-rate schedules from the gradient norms of a run you have already made.",
    no_args_is_help=True,
)


class OptimizerName(StrEnum):
    """Which optimizer the schedule is for."""

    adam = "adam"
    sgd = "sgd"


File = Annotated[
    Path,
    typer.Argument(help="Gradient norms: CSV, JSON, JSON lines or TensorBoard events."),
]
Optimizer = Annotated[
    OptimizerName, typer.Option("--optimizer", help="adam: weights 1/norm; sgd: weights 1/norm^2.")
]
Tau = Annotated[float, typer.Option("--tau", help="Width of the median filter as a share of the run.")]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Length of the new run; default: the log's own length.")
]
Floor = Annotated[
    float, typer.Option("--floor", help="Raise norms below this share of the median; 0.1 tempers them.")
]
MaxPeak = Annotated[
    float, typer.Option("--max-peak", help="A peak later than this share of the run falls back to linear.")
]
Key = Annotated[str | None, typer.Option("--key", help="Column, field or tag that holds the norms.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command()
def refine(
    file: File,
    optimizer: Optimizer = OptimizerName.adam,
    tau: Tau = 0.1,
    steps: Steps = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the schedule to this JSON file.")] = None,
    floor: Floor = 1e-12,
    max_peak: MaxPeak = 0.5,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Turn the gradient norms of a run into the schedule of the next."""
    trace, schedule, said = _refined(file, optimizer, tau, steps, floor, max_peak, key)
    if out is not None:
        _write(out, schedule.save)
    if as_json:
        typer.echo(json.dumps(schedule.to_dict()))
        return
    _say(said)
    _, exponent, r2 = schedule.fit_poly()
    typer.echo(f"norms      {len(trace)} steps logged in {file}")
    typer.echo(f"schedule   {len(schedule)} steps, {'linear decay (fallback)' if said else 'refined'}")
    typer.echo(f"warm-up    {schedule.warmup_fraction:.1%} of the run, from {schedule.factors[0]:.3f}")
    typer.echo(f"decay      about (1 - t)^{exponent:.2f} from there on (R^2 {r2:.3f})")
    typer.echo(f"halfway    {schedule.factors[len(schedule) // 2]:.3f} of the base rate")
    if steps is not None and steps != schedule.recorded_steps:
        typer.echo(f"note       extrapolated from a log of {schedule.recorded_steps} entries")
    if out is not None:
        typer.echo(f"written    {out}")
        typer.echo(
            f'use        RefinedLR(optimizer, RefinedSchedule.load("{out}"), base=LR)  # tune LR again'
        )


@app.command()
def plot(
    file: File,
    out: Annotated[Path, typer.Option("--out", help="Picture to write: .png or .svg.")] = Path(
        "schedule.png"
    ),
    optimizer: Optimizer = OptimizerName.adam,
    tau: Tau = 0.1,
    steps: Steps = None,
    floor: Floor = 1e-12,
    max_peak: MaxPeak = 0.5,
    key: Key = None,
) -> None:
    """Draw the norms and the schedule they give."""
    if out.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"--out {out}: a plot is written as .png or .svg")
    trace, schedule, said = _refined(file, optimizer, tau, steps, floor, max_peak, key)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1)
    norms = trace.on_even_grid()
    above.plot(range(len(norms)), norms, color="C1", linewidth=0.8)
    above.set(ylabel="gradient norm", xlabel="log entry", title=file.name)
    below.plot(schedule.factors, color="C0", label="linear decay (fallback)" if said else "refined")
    below.plot([0, len(schedule) - 1], [1, 0], color="C2", linestyle="--", label="linear decay")
    below.set(ylabel="factor of the base rate", xlabel="step")
    below.legend()
    _write(out, lambda path: figure.savefig(path, format=out.suffix[1:].lower(), dpi=150))
    _say(said)
    typer.echo(f"written    {out}")


@app.command()
def bound(
    file: File,
    optimizer: Optimizer = OptimizerName.sgd,
    tau: Tau = 0.1,
    floor: Floor = 1e-12,
    max_peak: MaxPeak = 0.5,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Compare schedules by their worst-case bound on the log's norms, each at its best base rate.

    The theory is that of SGD with L2 norms; for other norms take it as a check of shapes.
    """
    from gradatim.optim.bounds import optimal_base_lr
    from gradatim.optim.shapes import SHAPES, shape

    trace, schedule, said = _refined(file, optimizer, tau, None, floor, max_peak, key)
    norms = trace.on_even_grid()
    if not norms.max() > 0:
        raise UsageError(f"{file}: all gradient norms are 0, so every schedule has the same bound")
    shapes = {name: shape(name, len(norms)) for name in SHAPES}
    shapes["refined"] = schedule.factors
    rows = []
    for name, factors in shapes.items():
        rate, value = optimal_base_lr(factors, norms)
        rows.append({"schedule": name, "bound": value, "base_lr": rate})
    reference = next(r["bound"] for r in rows if r["schedule"] == "linear")
    rows.sort(key=lambda r: r["bound"])  # type: ignore[arg-type, return-value]
    if as_json:
        document = {"file": str(file), "steps": len(norms), "distance": 1.0, "fell_back": bool(said)}
        typer.echo(json.dumps({**document, "schedules": rows}))
        return
    _say(said)
    typer.echo(f"{'schedule':12s} {'bound':>10s} {'to linear':>10s} {'base rate':>10s}   (distance D = 1)")
    for r in rows:
        ratio = r["bound"] / reference  # type: ignore[operator]
        typer.echo(f"{r['schedule']:12s} {r['bound']:10.4g} {ratio:10.3f} {r['base_lr']:10.3g}")


def _refined(
    file: Path,
    optimizer: OptimizerName,
    tau: float,
    steps: int | None,
    floor: float,
    max_peak: float,
    key: str | None,
) -> tuple[Any, Any, str]:
    """The trace, its schedule, and what the guard said ("" where it kept silent)."""
    from gradatim.optim.refinement import refine_schedule
    from gradatim.optim.trace_readers import read_trace

    power = 1.0 if optimizer is OptimizerName.adam else 2.0
    try:
        trace = read_trace(file, key=key)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            schedule = refine_schedule(
                trace, power=power, tau=tau, steps=steps, floor=floor, max_peak=max_peak
            )
    except (ValueError, OSError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    return trace, schedule, "; ".join(str(w.message) for w in caught)


def _say(said: str) -> None:
    if said:
        typer.echo(f"note: {said}", err=True)


def _write(path: Path, write: Any) -> None:
    """Write to a file beside the target and rename it, so that nothing half-written is left."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        write(unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        unfinished.unlink(missing_ok=True)
