"""The result of a refinement: factors, and where they come from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from gradatim.optim.bounds import Values, optimal_base_lr

FORMAT = "gradatim.schedule/1"


@dataclass(frozen=True, eq=False)
class RefinedSchedule:
    """A refined schedule: one factor per optimizer step, and its provenance.

    Attributes:
        factors: [T] float64 in [0, 1] with maximum 1; times the base learning rate, the rate of step t.
        power, tau, floor: the settings of the refinement.
        recorded_steps: length of the trace; where it differs from T the shape was interpolated from
            a run of another length.
        runs: how many runs were combined.
        degenerate: why the guard spoke, or "".
        fell_back: the factors are linear decay, not a refinement.
        norm_type, optimizer, batch_size, clip: what the trace says about the run it was recorded in.
        version: the version of this library.
    """

    factors: Float64[np.ndarray, " steps"]
    power: float
    tau: float
    floor: float
    recorded_steps: int
    runs: int = 1
    degenerate: str = ""
    fell_back: bool = False
    norm_type: int | None = None
    optimizer: str = ""
    batch_size: int | None = None
    clip: float | None = None
    version: str = ""

    def __post_init__(self) -> None:
        if not self.version:
            from gradatim import __version__

            object.__setattr__(self, "version", __version__)
        self.factors.setflags(write=False)

    def __len__(self) -> int:
        return int(self.factors.size)

    def __repr__(self) -> str:
        how = "linear decay (fallback)" if self.fell_back else f"peak at {self.warmup_fraction:.1%}"
        return f"RefinedSchedule({len(self)} steps, {how}, power={self.power:g}, tau={self.tau:g})"

    @property
    def peak(self) -> int:
        """The first step, counted from 0, at which the factor is 1."""
        return int(np.argmax(self.factors))

    @property
    def warmup_fraction(self) -> float:
        """The share of the run before the peak."""
        return self.peak / len(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the factors' bytes: two ranks with one digest follow one schedule."""
        return hashlib.sha256(np.ascontiguousarray(self.factors, dtype="<f8").tobytes()).hexdigest()

    def fit_poly(self) -> tuple[float, float, float]:
        """The nearest (warm-up fraction, exponent b, R^2) of the two-number shape.

        The warm-up is the share of the run before the peak; from the peak on (1 - s)^b is fitted by least
        squares, s running from 0 at the peak to 1 at the last step. R^2 is that of the decay. With fewer
        than 3 steps after the peak nothing can be fitted and b and R^2 are NaN.
        """
        from scipy.optimize import minimize_scalar

        decay = self.factors[self.peak :]
        if decay.size < 3:
            return self.warmup_fraction, math.nan, math.nan
        remaining = 1.0 - np.arange(decay.size, dtype=np.float64) / (decay.size - 1)

        def squared_error(log_exponent: float) -> float:
            return float(np.sum((remaining ** math.exp(log_exponent) - decay) ** 2))

        best = minimize_scalar(squared_error, bounds=(math.log(0.05), math.log(50.0)), method="bounded")
        spread = float(np.sum((decay - decay.mean()) ** 2))
        r2 = 1.0 - float(best.fun) / spread if spread > 0 else math.nan
        return self.warmup_fraction, math.exp(float(best.x)), r2

    def bound(self, grad_norms: Values, distance: float | int = 1.0) -> float:
        """The last-iterate bound of this shape at its best base rate, on norms [T] of a run."""
        return optimal_base_lr(self.factors, grad_norms, distance)[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format": FORMAT, **asdict(self), "factors": self.factors.tolist()}

    @classmethod
    def from_dict(cls, values: Any) -> RefinedSchedule:
        """The schedule of `to_dict`. Raises ValueError for anything else."""
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f'not a schedule of this library: "format" is not "{FORMAT}"')
        known = {f.name for f in fields(cls)}
        try:
            factors = np.asarray(values["factors"], dtype=np.float64)
            settings = {k: v for k, v in values.items() if k in known and k != "factors"}
            schedule = cls(factors=factors, **settings)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a schedule of this library: {error}") from error
        ok = factors.ndim == 1 and factors.size >= 2 and bool(np.isfinite(factors).all())
        if not (ok and factors.min() >= 0 and factors.max() == 1.0):
            raise ValueError("a schedule's factors must be finite numbers in [0, 1] with maximum 1")
        return schedule

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the schedule as JSON; nothing is left behind where writing fails."""
        target = Path(path)
        unfinished = target.with_name(target.name + ".part")
        try:
            unfinished.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RefinedSchedule:
        """Read what `save` wrote. Raises ValueError that names the file."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error
