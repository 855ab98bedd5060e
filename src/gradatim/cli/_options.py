"""Options that several commands share, spelled once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from gradatim.cli.errors import UsageError

DEFAULT_BOARD = Path(".gradatim/board.sqlite")
DEFAULT_REPORT = Path("gradatim-report")

BoardFile = Annotated[
    Path,
    typer.Option(
        "--board", envvar="GRADATIM_BOARD", help="File that keeps finished trials.", show_default=True
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder the HTML report is written to.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No live view; only what was asked for.")]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Exit 3 when a claim is not reproduced or a trial failed."),
]
ProfileName = Annotated[str, typer.Option("--profile", help="quick, standard or paper.")]
Seeds = Annotated[int | None, typer.Option("--seeds", help="Number of seeds (default: the profile's).")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Worker processes (default: cores).")]
EngineName = Annotated[str, typer.Option("--engine", help="local or ray.")]
RayAddress = Annotated[
    str | None, typer.Option("--ray-address", help="Ray cluster to join (default: start one here).")
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0.001, help="Seconds a single trial may take.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again what the board already holds.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps.")]
ModelDevice = Annotated[str, typer.Option("--device", help="Where models run: cpu, cuda ... or auto.")]
MostPassages = Annotated[
    int, typer.Option("--max-rows", min=100, help="Passages kept (judged ones always are).")
]
MostQueries = Annotated[int, typer.Option("--max-queries", min=20, help="Queries kept.")]


def seconds(text: str) -> float:
    """A duration: "90", "90s", "5m", "1.5h". Raises UsageError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    value = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if value <= 0:
        raise UsageError(f"--budget {text!r} is no duration above zero; write 90s, 5m or 1h")
    return value


def engine(name: str) -> str:
    """Check the engine's name."""
    if name not in ("local", "ray"):
        raise UsageError(f"--engine {name!r} is unknown; use local or ray")
    return name
