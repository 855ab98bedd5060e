"""Running studies: what is missing is planned, run through joblib, and written as it finishes."""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gradatim.bench.board import Board, TrialRecord, trial_key
from gradatim.bench.environment import environment, keyed_versions
from gradatim.bench.fingerprint import code_digest
from gradatim.bench.study import (
    FIRST_JUDGING_SEED,
    FIRST_TUNING_SEED,
    Outcome,
    Profile,
    Results,
    Scale,
    Study,
    Trial,
)
from gradatim.bench.summary import FailedTrial, StudyReport
from gradatim.bench.verdict import judge
from gradatim.bench.worker import Chunk, Finished, prepare_worker, run_chunk

Engine = Literal["local", "ray"]


class PlanError(ValueError):
    """A request that cannot be planned; the message is one line and says the fix."""


@dataclass(frozen=True)
class RunOptions:
    """How to run: everything that may change how long it takes, and what of a study to run.

    `jobs` defaults to the cores of this machine (or of the Ray cluster); `seeds` and `overrides` replace
    the profile's own; `timeout` is in seconds per trial; `fresh` measures again what the board holds.
    """

    profile: str = "quick"
    seeds: int | None = None
    jobs: int | None = None
    engine: Engine = "local"
    ray_address: str | None = None
    timeout: float | None = None
    fresh: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        """Number of worker processes on this machine."""
        return self.jobs or os.cpu_count() or 1


@dataclass(frozen=True)
class Plan:
    """The trials of one study at one profile, by board key."""

    study: Study
    profile: str
    scale: Scale
    batch: int
    core_seconds: float
    trials: Mapping[str, Trial]


@dataclass(frozen=True)
class Progress:
    """Where a study stands: counts of trials, and seconds left as estimated so far."""

    study: Study
    total: int
    done: int
    cached: int
    failed: int
    seconds_left: float
    last: Finished | None = None


def plan(study: Study, options: RunOptions) -> Plan:
    """Lay out the trials of a study.

    Raises PlanError for a profile, an override or a number of seeds that the study does not have.
    """
    profile = study.profiles.get(options.profile)
    if profile is None:
        raise PlanError(
            f"{study.slug} has no profile {options.profile!r}; it has {', '.join(study.profiles)}"
        )
    profile = _overridden(study, profile, options)
    function = study.trial or study.batch
    assert function is not None
    code = code_digest(function)
    data = study.data(profile.scale) if study.data else ""
    versions = keyed_versions()
    trials = [
        Trial(study.slug, arm, seed, options.profile, profile.scale)
        for arm in study.arms_of(profile)
        for seed in range(study.first_seed, study.first_seed + profile.seeds)
    ]
    return Plan(
        study,
        options.profile,
        profile.scale,
        profile.batch,
        profile.core_seconds,
        {trial_key(t, code, data, versions): t for t in trials},
    )


def _overridden(study: Study, profile: Profile, options: RunOptions) -> Profile:
    unknown = [key for key in options.overrides if key not in profile.scale]
    if unknown:
        raise PlanError(f"{study.slug} takes no --{unknown[0]}; remove it, or run a study that does")
    seeds = profile.seeds if options.seeds is None else options.seeds
    most = FIRST_TUNING_SEED - FIRST_JUDGING_SEED
    if not 2 <= seeds <= most:
        raise PlanError(f"--seeds {seeds}: an interval needs from 2 to {most} seeds")
    cost = profile.core_seconds * seeds / profile.seeds
    return replace(profile, seeds=seeds, core_seconds=cost, scale={**profile.scale, **options.overrides})


def missing(plan: Plan, board: Board) -> dict[str, Trial]:
    """Trials that the board does not hold, or holds as failed (those are tried again)."""
    held = board.get(plan.trials)
    return {k: t for k, t in plan.trials.items() if k not in held or held[k].status != "ok"}


def estimated_seconds(plan: Plan, board: Board, options: RunOptions) -> float:
    """Wall seconds the missing trials should take, from the board's own timings where it has any."""
    todo = len(plan.trials) if options.fresh else len(missing(plan, board))
    measured = board.mean_seconds(plan.study.slug, plan.profile)
    each = plan.core_seconds / max(len(plan.trials), 1) if measured is None else measured
    return todo * each / options.workers


def run(
    plan: Plan,
    board: Board,
    options: RunOptions,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Run what is missing and write each trial to the board as it finishes.

    Stopping it (Ctrl-C, a kill) keeps every trial that was written; the next run goes on from there.
    """
    todo = dict(plan.trials) if options.fresh else missing(plan, board)
    by_name = {(t.arm.name, t.seed): key for key, t in todo.items()}
    cached = len(plan.trials) - len(todo)
    left = estimated_seconds(plan, board, options)
    progress = Progress(plan.study, len(plan.trials), cached, cached, 0, left)
    on_progress(progress)
    start = time.monotonic()
    for finished in _execute(plan, list(todo.values()), options):
        board.put(_as_record(finished, by_name[finished.arm, finished.seed], plan), replace=options.fresh)
        ran = progress.done + 1 - cached
        progress = replace(
            progress,
            done=progress.done + 1,
            failed=progress.failed + bool(finished.reason),
            seconds_left=(time.monotonic() - start) / ran * (len(todo) - ran),
            last=finished,
        )
        on_progress(progress)


def report(plan: Plan, board: Board, command: str = "") -> StudyReport:
    """Judge a study by what the board holds of it."""
    held = board.get(plan.trials)
    outcomes: dict[str, dict[int, Outcome]] = {}
    failed_counts: dict[str, int] = {}
    failures = []
    for record in held.values():
        if record.status == "ok":
            outcomes.setdefault(record.arm, {})[record.seed] = record.outcome
        else:
            failed_counts[record.arm] = failed_counts.get(record.arm, 0) + 1
            failures.append(FailedTrial(record.arm, record.seed, record.reason, record.traceback))
    results = Results(outcomes, failed_counts)
    latest = max(held.values(), key=lambda r: r.finished, default=None)
    return StudyReport(
        study=plan.study,
        profile=plan.profile,
        results=results,
        verdicts=judge(plan.study, results, plan.profile),
        failed=failures,
        missing=len(plan.trials) - len(held),
        seconds=sum(r.seconds for r in held.values()),
        measured=latest.finished if latest else "",
        environment=latest.environment if latest else environment(),
        scale=plan.scale,
        command=command,
    )


def _as_record(finished: Finished, key: str, plan: Plan) -> TrialRecord:
    return TrialRecord(
        key, plan.study.slug, finished.arm, finished.seed, plan.profile, plan.scale,
        "failed" if finished.reason else "ok", finished.outcome, finished.reason, finished.traceback,
        finished.seconds, environment(),
    )  # fmt: skip


def _chunks(plan: Plan, trials: Sequence[Trial]) -> list[Chunk]:
    """Group seeds of an arm for a batched study, but leave enough chunks to go round."""
    size = plan.batch if plan.study.batch else 1
    by_arm: dict[str, list[Trial]] = {}
    for trial in trials:
        by_arm.setdefault(trial.arm.name, []).append(trial)
    return [
        Chunk(group[0].arm, tuple(t.seed for t in group[i : i + size]))
        for group in by_arm.values()
        for i in range(0, len(group), size)
    ]


def _execute(plan: Plan, trials: Sequence[Trial], options: RunOptions) -> Iterator[Finished]:
    chunks = _chunks(plan, trials)
    return _on_ray(plan, chunks, options) if options.engine == "ray" else _locally(plan, chunks, options)


def _arguments(plan: Plan, chunk: Chunk, options: RunOptions) -> tuple[Any, ...]:
    return plan.study.trial, plan.study.batch, chunk, plan.scale, options.timeout


def _lost(chunk: Chunk, reason: str) -> Iterator[Finished]:
    return (Finished(chunk.arm.name, seed, Outcome({}), 0.0, reason) for seed in chunk.seeds)


def _locally(plan: Plan, chunks: Sequence[Chunk], options: RunOptions) -> Iterator[Finished]:
    """Run chunks in joblib's worker processes; one that dies costs its chunk another try, not the run."""
    from joblib.externals.loky.process_executor import BrokenProcessPool

    pending = dict(enumerate(chunks))
    deaths = 0
    while pending:
        # After two deaths run one chunk at a time, so that the chunk which kills its worker is known.
        alone = deaths >= 2
        batch = dict(list(pending.items())[:1]) if alone else dict(pending)
        try:
            for index, finished in _parallel(plan, batch, options):
                del pending[index]
                yield from finished
        except BrokenProcessPool as e:
            deaths += 1
            guilty = next(iter(batch))
            if alone and guilty in pending:
                reason = f"the worker process died ({type(e).__name__}); out of memory?"
                yield from _lost(pending.pop(guilty), reason)


def _numbered(index: int, *arguments: Any) -> tuple[int, list[Finished]]:
    return index, run_chunk(*arguments)


def _parallel(
    plan: Plan, chunks: Mapping[int, Chunk], options: RunOptions
) -> Iterator[tuple[int, list[Finished]]]:
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor

    tasks = (delayed(_numbered)(i, *_arguments(plan, chunk, options)) for i, chunk in chunks.items())
    config: dict[str, Any] = {
        "backend": "loky", "n_jobs": options.workers, "inner_max_num_threads": 1,
        "initializer": prepare_worker, "initargs": (os.getpid(),),
    }  # fmt: skip
    if options.workers == 1:
        config = {"backend": "sequential", "n_jobs": 1}
    try:
        with parallel_config(**config), warnings.catch_warnings():
            # loky replaces a worker whose memory has grown, and says so; nothing is lost by it.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            yield from Parallel(return_as="generator_unordered", batch_size=1)(tasks)
    except BaseException:
        if options.workers > 1:
            get_reusable_executor().shutdown(wait=True, kill_workers=True)
        raise


def _on_ray(plan: Plan, chunks: Sequence[Chunk], options: RunOptions) -> Iterator[Finished]:
    """Run chunks as Ray tasks; Ray runs a chunk again when its worker or machine is lost."""
    ray = _start_ray(options)
    remote = ray.remote(run_chunk).options(num_cpus=1, max_retries=2)
    at_once = options.jobs or int(ray.cluster_resources().get("CPU", 1))
    waiting = list(reversed(chunks))
    running: dict[Any, Chunk] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                chunk = waiting.pop()
                running[remote.remote(*_arguments(plan, chunk, options))] = chunk
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            chunk = running.pop(ready)
            try:
                yield from ray.get(ready)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as e:
                yield from _lost(chunk, f"the Ray worker died three times ({type(e).__name__})")
            except ray.exceptions.RayError as e:
                cause = str(e).strip().splitlines()[-1]
                yield from _lost(chunk, f"Ray could not run it ({cause}); is the same code on every node?")
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _reach(address: str) -> None:
    """Ask the port first: Ray itself would try a dead address for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as e:
        raise PlanError(f"no Ray cluster at {address}: {e.strerror or e}") from e


def _start_ray(options: RunOptions) -> Any:
    try:
        import ray
    except ImportError as e:
        raise PlanError("--engine ray needs Ray; install it with: pip install 'gradatim[ray]'") from e
    if options.ray_address:
        _reach(options.ray_address)
    if not ray.is_initialized():
        cluster: dict[str, Any] = (
            {"address": options.ray_address}
            if options.ray_address
            else {"address": "local", "num_cpus": options.workers, "include_dashboard": False}
        )
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **cluster)
        except (ConnectionError, RuntimeError, ValueError) as e:
            raise PlanError(f"no Ray cluster at {cluster['address']}: {str(e).splitlines()[0]}") from e
    return ray
