"""Trials of schedule refinement (20): a schedule on a task, at its own best base rate.

Rates are chosen on tuning seeds alone; a batch of seeds runs as one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gradatim.bench import Arm, Curve, Outcome, Scale, tuning_seeds
from gradatim.optim.bounds import minimize_bound, optimal_base_lr
from gradatim.optim.refined_schedule import RefinedSchedule
from gradatim.optim.refinement import DegenerateScheduleWarning, refine_schedule
from gradatim.optim.shapes import linear, shape, warmup_polynomial
from gradatim.studies.schedule_streams import Lad, Logistic, Run, TeacherStudent, lad_data

WARMUPS = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Setting:
    """A task, its grid of base rates, the norm's power, and how many more tuning seeds it can afford."""

    run: Run
    steps: int
    first: int
    last: int
    power: float = 2.0
    per_decade: int = 4
    tuning_factor: int = 1

    @property
    def rates(self) -> tuple[float, ...]:
        """10^(first/per_decade) .. 10^(last/per_decade)."""
        return tuple(10.0 ** (k / self.per_decade) for k in range(self.first, self.last + 1))


def settings_of(task: str, scale: Scale) -> Setting:
    """The task of an arm at a scale."""
    if task == "lad":
        lad = Lad(steps=int(scale["lad_steps"]))
        # Below its best rate a run does not arrive and the loss is a cliff: a finer grid, more seeds.
        return Setting(lad, lad.steps, -36, 0, per_decade=16, tuning_factor=10)
    if task in ("sgd", "adam"):
        adam = task == "adam"
        stream = TeacherStudent(steps=int(scale["stream_steps"]), adam=adam)
        return Setting(stream, stream.steps, *((-11, -6) if adam else (-6, 1)), 1.0 if adam else 2.0)
    table = task.removesuffix("-noisy")
    epochs = {"digits": 8, "iris": 50, "breast_cancer": 30, "make_classification": 8}[table]
    epochs = max(1, round(epochs * float(scale["epochs"])))
    logistic = Logistic(table, epochs=epochs, flip=0.2 if task.endswith("-noisy") else 0.0)
    return Setting(logistic, logistic.steps, -4 if table == "digits" else -10, 4)


# --- One arm: its factors, its rate, its runs --------------------------------------------------------------


def run_batch(arm: Arm, seeds: Sequence[int], scale: Scale) -> Iterator[Outcome]:
    """Train every seed of an arm at every rate of the grid; judge at the rate that tuning chose."""
    task, kind = str(arm.settings["task"]), str(arm.settings["shape"])
    if task == "bound":
        yield from (bound_outcome(kind, seed, scale) for seed in seeds)
        return
    if task == "text":
        from gradatim.studies.schedule_text import text_outcome

        yield from (text_outcome(kind, seed, scale) for seed in seeds)
        return
    setting = settings_of(task, scale)
    chosen, warmup = tuned(task, kind, _freeze(scale))
    factors, schedules, norms = factors_for(task, kind, seeds, scale, warmup)
    runs = setting.run(seeds, factors, setting.rates)
    for i in range(len(seeds)):
        losses = runs.losses[i]
        near = losses[max(chosen - 1, 0) : chosen + 2]
        metrics = {
            "loss": float(losses[chosen]),
            "loss_near": float(near.mean()),
            "log10_rate": float(np.log10(setting.rates[chosen])),
        }
        if np.isfinite(runs.averaged[i, chosen]):
            best = averaged_choice(task, kind, _freeze(scale))
            metrics["loss_averaged"] = float(runs.averaged[i, best])
        curves = {"loss_by_rate": _finite_curve(setting.rates, losses, "base learning rate", "final loss")}
        if schedules and norms is not None:
            metrics |= schedule_metrics(schedules[i], norms[i])
            curves |= schedule_curves(schedules[i], norms[i])
        yield Outcome(metrics, curves)


@lru_cache(maxsize=256)
def tuned(task: str, kind: str, scale: tuple[tuple[str, Any], ...]) -> tuple[int, float]:
    """Index of the best base rate on the tuning seeds; for "best-warmup" also the best warm-up fraction."""
    setting, frozen = settings_of(task, dict(scale)), dict(scale)
    seeds = tuning_seeds(int(frozen["tuning_seeds"]) * setting.tuning_factor)
    found: list[tuple[float, int, float]] = []
    for warmup in WARMUPS if kind == "best-warmup" else (0.0,):
        factors = factors_for(task, kind, seeds, frozen, warmup)[0]
        means = _or_inf(setting.run(seeds, factors, setting.rates).losses.mean(axis=0))
        found.append((float(means.min()), int(means.argmin()), warmup))
    _, rate, warmup = min(found)
    return rate, warmup


@lru_cache(maxsize=64)
def averaged_choice(task: str, kind: str, scale: tuple[tuple[str, Any], ...]) -> int:
    """Index of the rate that is best for the mean iterate, on the tuning seeds."""
    setting, frozen = settings_of(task, dict(scale)), dict(scale)
    seeds = tuning_seeds(int(frozen["tuning_seeds"]) * setting.tuning_factor)
    factors = factors_for(task, kind, seeds, frozen, 0.0)[0]
    return int(_or_inf(setting.run(seeds, factors, setting.rates).averaged.mean(axis=0)).argmin())


def factors_for(
    task: str, kind: str, seeds: Sequence[int], scale: Scale, warmup: float
) -> tuple[np.ndarray, list[RefinedSchedule], np.ndarray | None]:
    """Factors [seeds, steps]; for refined shapes also the schedules and the norms they come from."""
    setting = settings_of(task, scale)
    if kind == "best-warmup":
        return _tile(warmup_polynomial(setting.steps, warmup=warmup), seeds), [], None
    if not kind.startswith("refined"):
        return _tile(shape(kind, setting.steps), seeds), [], None
    if kind == "refined-shared":
        # One shape from other runs, as one would use it: record a few, then train with the result.
        recorded = baseline_norms(task, tuning_seeds(int(scale["tuning_seeds"])), scale)
        schedules = [_refine(recorded, setting.power, "linear")] * len(seeds)
        return np.stack([s.factors for s in schedules]), schedules, baseline_norms(task, seeds, scale)
    norms = baseline_norms(task, seeds, scale)
    fallback = "keep" if kind == "refined-unguarded" else "linear"
    schedules = [_refine(g, setting.power, fallback) for g in norms]
    return np.stack([s.factors for s in schedules]), schedules, norms


def baseline_norms(task: str, seeds: Sequence[int], scale: Scale) -> np.ndarray:
    """[seeds, steps] gradient norms of the linear-decay run at its own best rate."""
    setting = settings_of(task, scale)
    rate = setting.rates[tuned(task, "linear", _freeze(scale))[0]]
    return setting.run(seeds, _tile(linear(setting.steps), seeds), [rate]).norms[:, 0]


def _refine(norms: np.ndarray, power: float, fallback: Any) -> RefinedSchedule:
    with warnings.catch_warnings():
        # The fallback is what this study measures; a warning per seed says nothing more.
        warnings.simplefilter("ignore", DegenerateScheduleWarning)
        return refine_schedule(norms, power=power, tau=0.1, fallback=fallback)


# --- What is measured of a schedule ------------------------------------------------------------------------


def schedule_metrics(schedule: RefinedSchedule, norms: np.ndarray) -> dict[str, float]:
    """Where the shape peaks, how it lies to the straight line from its peak to 0, and what theory says."""
    f, peak, steps = schedule.factors, schedule.peak, len(schedule)
    line = linear(max(steps - peak, 2))
    bounds = {
        "bound_linear": optimal_base_lr(linear(steps), norms)[1],
        "bound_refined": schedule.bound(norms),
        "bound_warmup": min(
            optimal_base_lr(warmup_polynomial(steps, warmup=w), norms)[1] for w in (0.0, *WARMUPS)
        ),
    }
    return {
        "warmup_fraction": schedule.warmup_fraction,
        "first_factor": float(f[0]),
        "above_line": float((f[peak:] - line[: steps - peak]).mean()),
        "fell_back": float(schedule.fell_back),
        **{k: v / bounds["bound_linear"] for k, v in bounds.items()},
    }


def schedule_curves(schedule: RefinedSchedule, norms: np.ndarray) -> dict[str, Curve]:
    """The factors and the norms behind them, thinned to 200 points."""
    at = np.unique(np.linspace(0, len(schedule) - 1, 200).astype(int))
    x = at.tolist()
    return {
        "factors": Curve(x, schedule.factors[at].tolist(), "step", "factor"),
        "grad_norms": Curve(x, norms[at].tolist(), "step", "gradient norm"),
    }


def bound_outcome(kind: str, seed: int, scale: Scale) -> Outcome:
    """B sqrt(T) / G at the best base rate: for constant norms, and for the norms of the seed's LAD stream."""
    steps = int(scale["lad_steps"])
    root = steps**0.5
    if kind == "numerical":
        return Outcome({"constant": _numerical(steps) * root})
    norms = lad_data(Lad(steps=steps), seed)[0].norm(dim=-1).numpy()
    constant, own = (refine_schedule(g).factors if kind == "refined" else shape(kind, steps)
                     for g in (np.ones(steps), norms))  # fmt: skip
    return Outcome(
        {
            "constant": optimal_base_lr(constant, 1.0)[1] * root,
            "stream": optimal_base_lr(own, norms)[1] * root / float(np.median(norms)),
        }
    )


@lru_cache(maxsize=4)
def _numerical(steps: int) -> float:
    return minimize_bound(np.ones(steps)).bound


def _tile(factors: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    return np.tile(factors, (len(seeds), 1))


def _or_inf(x: np.ndarray) -> np.ndarray:
    # A diverged run is the worst of all, not a hole in the grid.
    return np.where(np.isfinite(x), x, np.inf)


def _finite_curve(x: Sequence[float], y: np.ndarray, x_label: str, y_label: str) -> Curve:
    pairs = [(a, float(b)) for a, b in zip(x, y, strict=True) if np.isfinite(b)]
    return Curve([a for a, _ in pairs], [b for _, b in pairs], x_label, y_label)


def _freeze(scale: Scale) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(scale.items()))
