"""The gradient norms of a run, and what must be known of the run to use them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

FORMAT = "gradatim.grad-norms/1"
DESCRIPTION = ("norm_type", "optimizer", "batch_size", "clip")


@dataclass(frozen=True, eq=False)
class GradNormTrace:
    """Gradient norms by optimizer step.

    Attributes:
        norms: [n] norms, finite and not negative.
        steps: [n] the optimizer steps, counted from 0 and strictly increasing; None means 0, 1, 2 ...
        norm_type: 1 (for Adam), 2 (for SGD), or None where a log does not say.
        optimizer: class name of the optimizer of the recorded run, or "".
        batch_size: examples per optimizer step, or None.
        clip: the gradient was clipped to this norm, or None.

    A schedule's shape belongs to the run that was recorded: another batch size, clip value or model wants
    another recording. Raises ValueError for vectors of unequal length, an empty trace, a bad norm, steps
    that do not increase, or another norm type.
    """

    norms: Float64[np.ndarray, " recorded"]
    steps: Int64[np.ndarray, " recorded"] | None = None
    norm_type: int | None = None
    optimizer: str = ""
    batch_size: int | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.norms.ndim != 1 or self.norms.size == 0:
            raise ValueError(f"a trace needs a vector of at least one norm, got shape {self.norms.shape}")
        bad = np.flatnonzero(~np.isfinite(self.norms) | (self.norms < 0))
        if bad.size:
            value = self.norms[bad[0]]
            raise ValueError(f"gradient norms must be finite and not negative, got {value} at index {bad[0]}")
        if self.norm_type not in (None, 1, 2):
            raise ValueError(f"norm_type must be 1, 2 or None, got {self.norm_type}")
        if self.steps is not None:
            if self.steps.shape != self.norms.shape:
                raise ValueError(f"a trace needs one step per norm, got {self.steps.size} and {len(self)}")
            if (np.diff(self.steps) <= 0).any():
                raise ValueError("a trace's steps must increase strictly")

    def __len__(self) -> int:
        return int(self.norms.size)

    def on_even_grid(self) -> Float64[np.ndarray, " recorded"]:
        """The norms at evenly spaced steps; interpolated linearly where the log has gaps."""
        if self.steps is None or len(self) < 3 or np.ptp(np.diff(self.steps)) == 0:
            return self.norms
        even = np.linspace(self.steps[0], self.steps[-1], len(self))
        return np.interp(even, self.steps, self.norms)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace: `.json` keeps everything, `.csv` the columns step and grad_norm (with norm type).

        Raises ValueError for another ending. Nothing half-written is left behind.
        """
        target = Path(path)
        unfinished = target.with_name(target.name + ".part")
        writers = {".json": self._write_json, ".csv": self._write_csv}
        if target.suffix.lower() not in writers:
            raise ValueError(f"{os.fspath(path)}: a trace is saved as .json or .csv")
        try:
            writers[target.suffix.lower()](unfinished)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

    def _steps(self) -> np.ndarray:
        return np.arange(len(self)) if self.steps is None else self.steps

    def _write_json(self, path: Path) -> None:
        document: dict[str, Any] = {"format": FORMAT}
        document |= {name: getattr(self, name) for name in DESCRIPTION}
        document |= {"steps": self._steps().tolist(), "norms": self.norms.tolist()}
        path.write_text(json.dumps(document) + "\n", encoding="utf-8")

    def _write_csv(self, path: Path) -> None:
        name = "grad_norm" if self.norm_type is None else f"grad_norm_l{self.norm_type}"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["step", name])
            writer.writerows(zip(self._steps().tolist(), self.norms.tolist(), strict=True))


def common_description(traces: Sequence[GradNormTrace]) -> dict[str, Any]:
    """What all traces say of their runs; entries that differ become None (the optimizer "").

    Raises ValueError where L1 and L2 norms would be mixed: they weigh steps differently.
    """
    types = {t.norm_type for t in traces}
    if len(types) > 1:
        names = ", ".join(sorted("unknown" if t is None else f"L{t}" for t in types))
        raise ValueError(f"traces of different norm types cannot be combined, got {names}")
    common: dict[str, Any] = {}
    for name in DESCRIPTION:
        values = {getattr(t, name) for t in traces}
        common[name] = values.pop() if len(values) == 1 else ("" if name == "optimizer" else None)
    return common
