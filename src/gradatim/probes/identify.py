"""Which learning algorithm do a model's in-context predictions follow, how surely, and at which layer?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradatim.probes.identification import Identification, LayerMatch, Match
from gradatim.probes.learner_runs import Learner, LearnerRuns, check_causal
from gradatim.probes.reference_algorithms import GradientDescent, IterativeNewton
from gradatim.probes.reference_families import Contexts, Family, linear_families, tuned
from gradatim.probes.reference_judge import WINSORISED, Judge, Member, compared, interval, mean_squares
from gradatim.probes.spectral import Predictor
from gradatim.tasks.contexts import ContextTask, ICLBatch, context_generator

NEWTON_STEPS = tuple(range(24))
GD_STEPS = (0, *(2**k for k in range(13)))


def identify(
    model: Learner,
    task: ContextTask,
    *,
    contexts: int = 1000,
    tuning_contexts: int | None = None,
    positions: Sequence[int] | None = None,
    references: Mapping[str, Predictor] | Sequence[Family] | None = None,
    layers: bool = True,
    threshold: float = 0.9,
    bootstrap: int = 1000,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Identification:
    """Compare a learner's predictions with every reference algorithm at once.

    `model` maps (x [batch, n, d], y [batch, n]) to predictions [batch, n], entry t from the pairs before t;
    or is one of our learners (or any module whose output has `.predictions`). Modules with
    `output_hidden_states` are also read layer by layer, through one linear read-out per layer fitted on
    contexts of its own (`layers=False` leaves that out).

    Every family of references is tuned to the learner on `tuning_contexts` contexts (default: as many as
    judge) and judged on `contexts` others, by the mean squared difference of predictions over `positions`
    (numbers of pairs seen; default 1 to n - 1; a learner trained for one query wants that one alone). A
    context's difference counts up to its
    99% quantile, since least squares on noisy square problems has no finite mean. Errors are measured
    against the noiseless target where the task tells its weights.

    The answer is *no reference fits* where even the nearest one's errors are not similar to the learner's
    (`threshold`, at the lower end of the 95% interval). References whose difference is within a tenth of the
    best's, or within the paired bootstrap, or whose similarity is within 0.002, are named together, the
    plainest first: k Newton steps are called so only where no gradient descent does as well.

    For labels of -1 and +1 signs are compared. `references` replaces the built-in families: a mapping of
    names to predictors, or families of your own. For a Boolean task the built-in references are those of
    `boolean_references`.

    Raises ValueError for a learner that sees later pairs, whose output has the wrong shape or is not finite,
    or for positions outside 0..n-1. Sources: Akyurek et al. 2022 (arXiv 2211.15661), von Oswald et al. 2022
    (arXiv 2212.07677), Fu et al. 2023 (arXiv 2310.17086).
    """
    tuning_contexts = contexts if tuning_contexts is None else tuning_contexts
    if contexts < 2 or tuning_contexts < 1:
        raise ValueError(f"need at least 2 contexts and 1 to tune on, got {contexts} and {tuning_contexts}")
    at = _positions(positions, task.n)
    judging = _sample(task, contexts, seed, 0, dtype)
    tuning = _sample(task, tuning_contexts, seed, 1, dtype)
    runner = LearnerRuns(model, batch_size, layers)
    predictions, hidden = runner(judging)
    check_causal(runner, judging)
    binary = bool(((judging.y == 1) | (judging.y == -1)).all())
    scored = _scored(judging, at)
    families = _families(references, task, tuning, at, binary)
    target = _target(judging, binary)
    learner = compared(predictions, binary)
    learner_tuning, hidden_tuning = runner(tuning)
    judge = Judge(target, scored, bootstrap, seed, binary)
    tune = _tuner(compared(learner_tuning, binary), _scored(tuning, at), binary)

    data, tuning_data = Contexts(judging.x, judging.y), Contexts(tuning.x, tuning.y)
    members: list[Member] = []
    for family in families:
        predictor, numbers = tuned(family, tuning_data, tune, learner_tuning.double(), at)
        try:
            answers = data.predict(predictor)
        except ValueError:
            continue  # it does not exist on every judging context, such as Newton's method beyond its range
        members.append(Member(family, predictor, numbers, compared(answers, binary)))
    matches = judge.rank(learner, members)
    matches = [_with_number_interval(m, judge, learner, data, families, binary) for m in matches]
    error, error_interval = judge.error(learner)
    layer_matches: tuple[LayerMatch, ...] = ()
    if hidden is not None and hidden_tuning is not None:
        layer_matches = _by_layer(
            hidden, _readout_contexts(task, runner, seed, dtype), members, judge, data, binary
        )
    return Identification(
        tuple(matches),
        layer_matches,
        error,
        error_interval,
        contexts,
        at,
        _describe(task),
        threshold,
        runner.notes,
    )


# --- Contexts and targets -----------------------------------------------------------------------------------


def _sample(task: ContextTask, count: int, seed: int, purpose: int, dtype: torch.dtype) -> ICLBatch:
    # Keys of their own: no training stream (seed, rank, worker, step) draws these contexts.
    return task.sample(count, generator=context_generator(seed, purpose, 0x1DE57), dtype=dtype)


def _positions(positions: Sequence[int] | None, n: int) -> tuple[int, ...]:
    if positions is None:
        return tuple(range(1, n))
    at = tuple(sorted({int(p) + n if int(p) < 0 else int(p) for p in positions}))
    if not at or at[0] < 0 or at[-1] >= n:
        raise ValueError(f"positions must lie in 0..{n - 1} (numbers of pairs seen), got {list(positions)}")
    return at


def _scored(batch: ICLBatch, positions: Sequence[int]) -> Tensor:
    mask = torch.zeros(batch.y.shape, dtype=torch.bool)
    mask[:, list(positions)] = True
    scored = getattr(batch, "scored", None)
    return mask if scored is None else mask & scored.cpu()


def _target(batch: ICLBatch, binary: bool) -> Tensor:
    if binary:
        clean = getattr(batch, "clean", None)
        return (batch.y if clean is None else clean).double()
    if batch.w is not None and batch.w.shape == batch.x[:, 0].shape:
        return torch.einsum("bnd,bd->bn", batch.x.double(), batch.w.double())
    return batch.y.double()


def _describe(task: ContextTask) -> str:
    """The task with what is not the default."""
    if not is_dataclass(task):
        return f"{type(task).__name__}(d={task.d}, n={task.n})"
    shown = []
    for f in fields(task):
        value = getattr(task, f.name)
        if f.init and (f.name in ("d", "n") or not _is_default(value, f.default)):
            shown.append(f"{f.name}={value!r}" if len(repr(value)) < 30 else f"{f.name}=...")
    return f"{type(task).__name__}({', '.join(shown)})"


def _is_default(value: object, default: object) -> bool:
    return default is value or (isinstance(value, str | int | float | bool) and value == default)


# --- Families ----------------------------------------------------------------------------------------------


def _families(
    references: Mapping[str, Predictor] | Sequence[Family] | None,
    task: ContextTask,
    tuning: ICLBatch,
    positions: Sequence[int],
    binary: bool,
) -> list[Family]:
    if isinstance(references, Mapping):
        if not references:
            raise ValueError("no references given")
        return [Family(name, lambda p=p: p, keep_name=True) for name, p in references.items()]
    if references is not None:
        return list(references)
    if binary:
        from gradatim.probes.boolean_families import boolean_families

        return boolean_families(task)
    bayes = None
    if hasattr(task, "sigma") and hasattr(task, "tau"):
        bayes = (float(task.sigma), float(task.tau))
    return linear_families(Contexts(tuning.x, tuning.y), positions, bayes=bayes)


def _tuner(learner: Tensor, scored: Tensor, binary: bool) -> Callable[[Tensor], float]:
    def distance(predictions: Tensor) -> float:
        off = mean_squares(compared(predictions, binary) - learner, scored)
        return float(off.clamp(max=torch.quantile(off, WINSORISED)).mean())

    return distance


# --- Intervals and layers ----------------------------------------------------------------------------------


def _with_number_interval(
    match: Match, judge: Judge, learner: Tensor, data: Contexts, families: Sequence[Family], binary: bool
) -> Match:
    """Adds the bootstrap interval of the one tuned number of the winners and of ridge."""
    wanted = match.equal or match.family == "ridge"
    if not wanted or len(match.numbers) != 1 or match.predictor is None:
        return match
    (number,) = match.numbers
    make = _maker(match, families)
    if make is None:
        return match
    low, high = number / 3, number * 3
    chosen = torch.empty(0)
    for _ in range(3):
        grid = np.geomspace(low, high, 41)
        columns = []
        for value in grid:
            off = mean_squares(learner - compared(data.predict(make(float(value))), binary), judge.scored)
            columns.append(off.clamp(max=torch.quantile(off, WINSORISED)))
        resampled = judge.weights @ torch.stack(columns, dim=1)
        chosen = torch.from_numpy(grid)[resampled.argmin(dim=1)]
        # The next grid is finer, around every resample's choice.
        step = float(grid[1] / grid[0])
        low, high = float(chosen.min()) / step, float(chosen.max()) * step
    return replace(match, number_interval=interval(chosen))


def _maker(match: Match, families: Sequence[Family]) -> Callable[..., Predictor] | None:
    for family in families:
        if family.name == match.family and len(family.grids) == 1:
            made = family.make(*match.numbers)
            if made.name == match.name:
                return family.make
    return None


def _readout_contexts(
    task: ContextTask, runner: LearnerRuns, seed: int, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], Tensor]:
    batch = _sample(task, 2000, seed, 2, dtype)
    _, hidden = runner(batch)
    assert hidden is not None
    return hidden, batch.y.double()


def _by_layer(
    hidden: tuple[Tensor, ...],
    readout_data: tuple[tuple[Tensor, ...], Tensor],
    members: Sequence[Member],
    judge: Judge,
    data: Contexts,
    binary: bool,
) -> tuple[LayerMatch, ...]:
    from gradatim.probes.layer_readout import LayerReadout

    curves = LayerReadout().fit(*readout_data).predict(hidden)
    newton, descent = None, None
    if not binary:
        newton = torch.stack([data.predict(IterativeNewton(k)) for k in NEWTON_STEPS])
        rate = 1.0 / _typical_largest(data)
        descent = torch.stack([data.predict(GradientDescent(k, rate)) for k in GD_STEPS])
    found = []
    for layer, curve in enumerate(curves):
        learner = compared(curve, binary)
        match = judge.rank(learner, members)[0]
        error, _ = judge.error(learner)
        found.append(
            LayerMatch(
                layer,
                match.name,
                match.similarity,
                match.similarity_interval,
                error,
                None if newton is None else _matched(learner, newton, NEWTON_STEPS, judge),
                None if descent is None else _matched(learner, descent, GD_STEPS, judge),
            )
        )
    return tuple(found)


def _typical_largest(data: Contexts) -> float:
    tops = torch.cat([s.values[:, -1, -1] for s in data.spectra])
    return max(float(torch.quantile(tops, 0.95)), 1e-12)


def _matched(learner: Tensor, path: Tensor, steps: Sequence[int], judge: Judge) -> tuple[int, int, int]:
    """The nearest step count, and the range of those within one bootstrap standard error of it."""
    off = torch.stack([mean_squares(learner - p, judge.scored) for p in path], dim=1)
    off = off.clamp(max=torch.quantile(off, WINSORISED, dim=0))
    mean, resampled = off.mean(dim=0), judge.weights @ off
    best = int(mean.argmin())
    spread = (resampled - resampled[:, best : best + 1]).std(dim=0)
    near = [k for k, m, s in zip(steps, mean - mean[best], spread, strict=True) if float(m) <= float(s)]
    return steps[best], min([steps[best], *near]), max([steps[best], *near])
