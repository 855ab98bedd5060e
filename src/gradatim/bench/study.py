"""The engine's nouns: Arm, Trial, Study, Claim and what a trial returns.

A study module reads like the experiment section of its paper: it names its arms, says what one trial
does, and states its claims. Nothing here runs anything; `engine` does that, and `verdict` judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MplFigure

Scale = Mapping[str, Any]
Better = Literal["higher", "lower"]

FIRST_JUDGING_SEED = 1_000
FIRST_TUNING_SEED = 1_000_000


def tuning_seeds(n: int) -> range:
    """The first `n` seeds reserved for tuning.

    Test seeds are always below `FIRST_TUNING_SEED`, so a rate or a temperature chosen on these seeds
    has never seen the seeds that judge it. A paper's study is judged from `FIRST_JUDGING_SEED` upwards:
    the seeds below belong to whoever writes it, so that margins and grids settled while looking at
    results are not judged by those results.
    """
    return range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + n)


@dataclass(frozen=True)
class Arm:
    """One way of doing the job: a name, and settings made of JSON values.

    `name` is unique within its study; where a study has several tasks it is written `task/arm`.
    `role` tells the report how to draw it.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    role: Literal["method", "baseline", "control"] = "method"


@dataclass(frozen=True)
class Curve:
    """A line to draw: `y` over `x`, with the names of both axes."""

    x: Sequence[float]
    y: Sequence[float]
    x_label: str = "step"
    y_label: str = ""

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"a curve needs as many x as y, got {len(self.x)} and {len(self.y)}")


@dataclass(frozen=True)
class Outcome:
    """What one trial found: finite numbers by metric name, and curves by name.

    A metric that is NaN or infinite makes the engine record the trial as failed. A curve whose name begins
    with "figure/" is for the study's own figures: reports do not draw it by itself.
    """

    metrics: Mapping[str, float]
    curves: Mapping[str, Curve] = field(default_factory=dict)

    def first_non_finite(self) -> str | None:
        """The name of the first metric that is not a finite number, or None."""
        return next((k for k, v in self.metrics.items() if not math.isfinite(v)), None)


@dataclass(frozen=True)
class Trial:
    """One arm, one seed, one scale: the unit that is cached, resumed and sent to other machines."""

    study: str
    arm: Arm
    seed: int
    profile: str
    scale: Scale


@dataclass(frozen=True)
class Results:
    """Finished outcomes of one study by arm and seed, and how many trials of each arm failed."""

    outcomes: Mapping[str, Mapping[int, Outcome]]
    failed: Mapping[str, int] = field(default_factory=dict)

    def metric(self, arm: str, name: str) -> dict[int, float]:
        """Values of one metric by seed; empty when the arm has no finished trial."""
        return {
            seed: outcome.metrics[name]
            for seed, outcome in sorted(self.outcomes.get(arm, {}).items())
            if name in outcome.metrics
        }

    def curves(self, arm: str, name: str) -> dict[int, Curve]:
        """Curves of one name by seed."""
        return {
            seed: outcome.curves[name]
            for seed, outcome in sorted(self.outcomes.get(arm, {}).items())
            if name in outcome.curves
        }


Effect = Callable[[Results], Mapping[int, float]]
"""Reads results, gives one number per seed; positive numbers speak for the claim."""


@dataclass(frozen=True)
class Contrast:
    """By how much `arm` is better than `baseline` on `metric`, seed by seed.

    `better="lower"` gives baseline - arm, so that a positive effect always favours `arm`.
    With `relative=True` the difference is divided by the baseline's value; seeds where that is 0 drop out.
    """

    arm: str
    baseline: str
    metric: str
    better: Better = "higher"
    relative: bool = False

    def __call__(self, results: Results) -> dict[int, float]:
        ours = results.metric(self.arm, self.metric)
        theirs = results.metric(self.baseline, self.metric)
        sign = 1.0 if self.better == "higher" else -1.0
        return {
            seed: sign * (ours[seed] - theirs[seed]) / (theirs[seed] if self.relative else 1.0)
            for seed in ours
            if seed in theirs and not (self.relative and theirs[seed] == 0)
        }


@dataclass(frozen=True)
class Level:
    """By how much `metric` of one arm is on the right side of `bound`, seed by seed."""

    arm: str
    metric: str
    bound: float = 0.0
    better: Better = "higher"

    def __call__(self, results: Results) -> dict[int, float]:
        sign = 1.0 if self.better == "higher" else -1.0
        return {
            seed: sign * (value - self.bound) for seed, value in results.metric(self.arm, self.metric).items()
        }


@dataclass(frozen=True)
class Control:
    """The plain explanation that could explain an effect away, and the effect left beside it.

    `effect` compares the method with the plain explanation. Its 95% interval above 0: the claim
    *survives*. Below `margin` (the smallest remainder worth having), or below 0: *explained away*.
    Otherwise *undecided*. With `test="equivalent"` the claim survives where the effect lies within
    +-`margin`, and is explained away where it lies outside.
    """

    explanation: str
    effect: Effect
    test: Literal["positive", "equivalent"] = "positive"
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A statement over arms and metrics with a test that can fail.

    - `test="positive"`: *reproduced* when the effect is above 0 (95% interval, Holm-adjusted over the
      study's claims), *not reproduced* when the interval lies below `margin` (the smallest effect that
      would count, 0 unless stated).
    - `test="equivalent"`: two one-sided tests; *reproduced* when the effect lies within +-`margin`,
      *not reproduced* when its interval lies outside.
    - otherwise *inconclusive*, with the number of seeds that would settle it.

    `paper` is the paper's own figure on the scale of `effect` where there is one; `paper_says` tells in
    our words what the paper reports and where. `unit` names the effect's unit.
    `interval="wilson"` treats the seeds' values as 0/1 outcomes minus the effect's bound;
    `overlap` is n_test / n_train of overlapping resamples (Nadeau-Bengio corrected t interval).
    `profiles` names the profiles that have the claim's arms (default: all); others do not judge it.
    """

    id: str
    statement: str
    effect: Effect
    control: Control
    unit: str = ""
    test: Literal["positive", "equivalent"] = "positive"
    margin: float = 0.0
    paper: float | None = None
    paper_says: str = ""
    interval: Literal["t", "wilson"] = "t"
    overlap: float = 0.0
    profiles: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.test == "equivalent" and self.margin <= 0:
            raise ValueError(f"claim {self.id!r}: an equivalence test needs a margin above 0")


@dataclass(frozen=True)
class Profile:
    """How much of a study to run: this many seeds at this scale.

    `core_seconds` is the declared cost of the whole profile on one core, used to order studies and to
    fit a budget until the board has measured it. `arms` restricts the arms (default: all); `batch` is
    how many seeds one call of the study's `batch` function takes.
    """

    seeds: int
    scale: Scale = field(default_factory=dict)
    core_seconds: float = 60.0
    arms: tuple[str, ...] | None = None
    batch: int = 8


@dataclass(frozen=True)
class Paper:
    """Where the method comes from."""

    title: str
    authors: str
    year: int
    arxiv: str


@dataclass(frozen=True)
class Table:
    """Rows behind a plot, for readers who cannot or do not want to see it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]


@dataclass(frozen=True)
class StudyFigure:
    """A figure of the study's own.

    `draw(figure, results)` draws on an empty Matplotlib figure with colours "C0", "C1" ... so that the
    report can give it its own theme; `table(results)` gives the same numbers as rows; `alt` says in a
    sentence what one sees.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[MplFigure, Results], None]
    table: Callable[[Results], Table]


TrialFunction = Callable[[Arm, int, Scale], Outcome]
BatchFunction = Callable[[Arm, Sequence[int], Scale], Iterable[Outcome]]


@dataclass(frozen=True)
class Study:
    """One paper, re-measured.

    Give either `trial(arm, seed, scale)` or `batch(arm, seeds, scale)`; the latter runs several seeds
    as one stacked computation and yields one outcome per seed in order. Either way the outcome of a
    seed depends on the arm, the seed and the scale alone.

    `plain` explains the method in a few plain sentences (Markdown); `snippet` is the code that uses the
    part, runnable as it stands; `data` returns a version string of the data used (a digest), so that
    another corpus means other trials. `headline` is the (metric, better) pair drawn per arm.
    """

    slug: str
    title: str
    plain: str
    rooms: tuple[str, ...]
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    profiles: Mapping[str, Profile]
    headline: tuple[tuple[str, Better], ...]
    number: int | None = None
    paper: Paper | None = None
    trial: TrialFunction | None = None
    batch: BatchFunction | None = None
    snippet: str = ""
    figures: tuple[StudyFigure, ...] = ()
    notes: str = ""
    data: Callable[[Scale], str] | None = None

    def __post_init__(self) -> None:
        if (self.trial is None) == (self.batch is None):
            raise ValueError(f"study {self.slug!r} needs exactly one of trial= and batch=")
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"study {self.slug!r} has two arms of one name")
        ids = [claim.id for claim in self.claims]
        if len(set(ids)) != len(ids):
            raise ValueError(f"study {self.slug!r} has two claims of one id")

    @property
    def first_seed(self) -> int:
        """The first seed that judges: a comparison on a user's data may use its seeds as fold numbers."""
        return 0 if self.number is None else FIRST_JUDGING_SEED

    def claims_of(self, profile: str | None) -> tuple[Claim, ...]:
        """The claims that a profile judges; all of them for None."""
        return tuple(c for c in self.claims if profile is None or c.profiles is None or profile in c.profiles)

    def arms_of(self, profile: Profile) -> tuple[Arm, ...]:
        """The arms that a profile runs."""
        if profile.arms is None:
            return self.arms
        return tuple(arm for arm in self.arms if arm.name in profile.arms)
