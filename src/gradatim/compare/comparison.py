"""What the comparisons share: arms by name, claims against the first, and the winner.

A comparison is a `bench.Study` without a paper: the engine, the board, the verdicts and the report treat
it as any other. Its claims: each arm beats the first one named, on the first metric. Its control: the
plain arm (a linear model, an untrained encoder, a flat rate) that would make either of them unnecessary.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.bench.study import (
    Arm,
    Better,
    Claim,
    Contrast,
    Control,
    Profile,
    Results,
    Scale,
    Study,
    StudyFigure,
    TrialFunction,
)
from gradatim.compare.errors import DataError

PROFILE = "compare"
CHOSEN = "chosen "


@dataclass(frozen=True)
class Task:
    """What one comparison is made of, whatever the data.

    `arms` are all there are, by name; `plain` names the controls, the strongest first; `default` is what
    runs when no arm is named, its first one the baseline.
    """

    slug: str
    title: str
    plain_words: str
    rooms: tuple[str, ...]
    arms: Mapping[str, Arm]
    default: tuple[str, ...]
    plain: tuple[str, ...]
    trial: TrialFunction
    data: Callable[[Scale], str]


@dataclass(frozen=True)
class Winner:
    """The arm with the best mean on the first metric, and the settings chosen most often over its seeds."""

    arm: str
    metric: str
    mean: float
    settings: Mapping[str, float]
    seeds: int


def choose_arms(task: Task, names: Sequence[str]) -> tuple[tuple[Arm, ...], tuple[Arm, ...]]:
    """The arms to compare (the first is the baseline), and the plain ones beside them as controls.

    A single name is compared with the strongest plain arm. Raises DataError for an unknown name.
    """
    wanted = list(dict.fromkeys(names or task.default))
    for name in wanted:
        if name not in task.arms:
            near = difflib.get_close_matches(name, task.arms, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DataError(f'--arm "{name}" is unknown', f"{hint}choose from {', '.join(task.arms)}")
    if len(wanted) == 1:
        wanted += [name for name in task.plain if name not in wanted][:1]
    controls = [name for name in task.plain if name not in wanted]
    return tuple(task.arms[name] for name in wanted), tuple(task.arms[name] for name in controls)


def comparison_study(
    task: Task,
    arms: Sequence[str],
    *,
    metrics: Sequence[tuple[str, Better]],
    unit: str,
    scale: Scale,
    seeds: int,
    core_seconds: float,
    overlap: float = 0.0,
    source: str,
    remark: str = "",
    figures: tuple[StudyFigure, ...] = (),
) -> Study:
    """The study of `task` on the user's data.

    `metrics` are the metrics with their direction, the one that is judged first; `overlap` is n_test /
    n_train where seeds are overlapping splits of one data set; `source` names the data in the title and
    `remark` says how it was split and what was left out.
    """
    compared, controls = choose_arms(task, arms)
    baseline = compared[0]
    metric, better = metrics[0]
    claims = tuple(_claim(arm, baseline, task, metric, better, unit, overlap) for arm in compared[1:])
    return Study(
        slug=task.slug,
        title=f"{task.title}: {source}",
        plain=task.plain_words,
        notes=remark,
        rooms=task.rooms,
        arms=(*compared, *controls),
        claims=claims,
        profiles={PROFILE: Profile(seeds=seeds, scale=scale, core_seconds=core_seconds)},
        headline=tuple(metrics),
        trial=task.trial,
        data=task.data,
        figures=figures,
    )


def _claim(
    arm: Arm, baseline: Arm, task: Task, metric: str, better: Better, unit: str, overlap: float
) -> Claim:
    # Every plain arm runs in every comparison, named or not. Between the two plainest there is none
    # left but the baseline itself.
    others = (name for name in task.plain if name not in (arm.name, baseline.name))
    plain = next(others, baseline.name)
    return Claim(
        id=f"{arm.name}-over-{baseline.name}",
        statement=f"{arm.label or arm.name} beats {baseline.label or baseline.name} on {metric}",
        effect=Contrast(arm.name, baseline.name, metric, better),
        control=Control(
            explanation=f"{task.arms[plain].label or plain} would do as well",
            effect=Contrast(arm.name, plain, metric, better),
        ),
        unit=unit,
        overlap=overlap,
    )


def winner(study: Study, results: Results) -> Winner | None:
    """The best arm among those with the most finished seeds; None when nothing finished."""
    metric, better = study.headline[0]
    values = {arm.name: results.metric(arm.name, metric) for arm in study.arms}
    most = max((len(v) for v in values.values()), default=0)
    if most == 0:
        return None
    sign = 1.0 if better == "higher" else -1.0
    means = {name: float(np.mean(list(v.values()))) for name, v in values.items() if len(v) == most}
    best = max(means, key=lambda name: sign * means[name])
    return Winner(best, metric, means[best], chosen_settings(results, best), most)


def chosen_settings(results: Results, arm: str) -> dict[str, float]:
    """The combination of `chosen ...` metrics that most seeds agree on; the earlier seed's on a tie."""
    combinations = [
        tuple(sorted((k, v) for k, v in outcome.metrics.items() if k.startswith(CHOSEN)))
        for _, outcome in sorted(results.outcomes.get(arm, {}).items())
    ]
    if not combinations:
        return {}
    best = Counter(combinations).most_common(1)[0][0]
    return {name.removeprefix(CHOSEN): value for name, value in best}


def as_metrics(settings: Mapping[str, float]) -> dict[str, float]:
    """Settings that a trial chose, as metrics of their own."""
    return {f"{CHOSEN}{name}": float(value) for name, value in settings.items()}


def content_digest(files: Sequence[Path], options: Mapping[str, Any]) -> str:
    """SHA-256 of the files' bytes and of the options they are read with."""
    digest = hashlib.sha256(json.dumps(dict(options), sort_keys=True, default=str).encode())
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def freeze(scale: Scale) -> str:
    """A scale as a string, to key a cache with."""
    return json.dumps(dict(scale), sort_keys=True)
