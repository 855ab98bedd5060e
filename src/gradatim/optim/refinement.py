"""From the gradient norms of one run to the learning-rate schedule of the next.

With weights w_t > 0, SGD run with eta_t = w_t w_{t+1:T} / w_{1:T} has last iterate x_T with

    E f(x_T) - f*  <=  (D^2 + sum_t w_t^2 ||g_t||^2) / (2 w_{1:T}),

which is least for w_t proportional to ||g_t||^-2 (for Adam, coordinate by coordinate: ||g_t||_1^-1).
Constant norms give linear decay, eta_t ~ T - t; norms that fall early give a warm-up.

Source: Defazio, Cutkosky, Mehta and Mishchenko, "Optimal Linear Decay Learning Rate Schedules and Further
Refinements", 2023, arXiv 2310.07831.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from gradatim.optim.refined_schedule import RefinedSchedule
from gradatim.optim.shapes import linear
from gradatim.optim.traces import GradNormTrace, common_description

Fallback = Literal["linear", "keep", "raise"]
OverRuns = Literal["median", "mean", "geometric"]
Norms = np.ndarray | Sequence[Any] | Tensor | GradNormTrace | Sequence[GradNormTrace]


class DegenerateScheduleWarning(UserWarning):
    """The gradient norms carry no usable schedule: all are 0, or they vanish as the data are interpolated."""


def refine_schedule(
    grad_norms: Norms,
    *,
    power: float | int | None = None,
    tau: float | int = 0.1,
    steps: int | None = None,
    floor: float | int = 1e-12,
    max_peak: float | int = 0.5,
    fallback: Fallback = "linear",
    over_runs: OverRuns = "median",
) -> RefinedSchedule:
    """The refined schedule of a run's gradient norms.

    1. Runs are combined step by step (`over_runs`), then Ghat = median filter of width tau T.
    2. w_t = Ghat_t^-power.
    3. eta_t = w_t sum_{s>t} w_s, divided by its maximum. The last factor is 0.

    Args:
        grad_norms: [T] or [runs, T] norms of the gradient that each optimizer step used, a recorded
            `GradNormTrace`, or several of them.
        power: 2 for SGD with L2 norms, 1 for Adam with L1 norms. None means 2, or for recorded L1
            norms 1.
        tau: width of the median filter as a fraction of the trace, in (0, 1].
        steps: length of the new schedule; None keeps T. Otherwise the smoothed norms are interpolated
            linearly on t/T, which extrapolates from one run length to another.
        floor: smoothed norms below `floor` times the median of the positive ones are raised to it. The
            default only guards against division by zero; about 0.1 tempers norms that vanish.
        max_peak: a schedule that peaks later than this fraction of the run is degenerate.
        fallback: what to return then: "linear" decay, "keep" the degenerate schedule (norms that are all
            0 have no shape and give linear decay), or "raise". The first two warn with
            `DegenerateScheduleWarning`.
        over_runs: "median", "mean" or "geometric" mean of several runs' norms at each step.

    Returns:
        A `RefinedSchedule`: factors (float64, in [0, 1], maximum 1) to multiply a base learning rate that
        is tuned for this shape, and where they come from.

    Raises:
        ValueError: fewer than 2 steps, a norm that is negative or not finite, tau outside (0, 1],
            power <= 0, floor outside [0, 1], max_peak outside (0, 1], steps < 2, traces of different norm
            types, or a degenerate schedule with fallback="raise".
    """
    _check_settings(tau, power, floor, max_peak, steps)
    if fallback not in get_args(Fallback):
        raise ValueError(f"fallback must be one of {', '.join(get_args(Fallback))}, got {fallback!r}")
    norms, description = _as_array(grad_norms)
    if power is None:
        power = 1.0 if description.get("norm_type") == 1 else 2.0
    smoothed = smooth(_combine(norms, over_runs), tau)
    recorded_steps = smoothed.size
    length = recorded_steps if steps is None else steps
    factors, problem = _factors(_resample(smoothed, length), power, floor, max_peak)
    fell_back = problem is not None and (fallback == "linear" or factors is None)
    if problem is not None:
        if fallback == "raise":
            raise ValueError(f"{problem}; record norms of another run, or choose fallback='linear'")
        taken = "linear decay" if fell_back else "the schedule as it is"
        warnings.warn(f"{problem}: using {taken}", DegenerateScheduleWarning, stacklevel=2)
    return RefinedSchedule(
        factors=linear(length) if fell_back or factors is None else factors,
        power=float(power),
        tau=float(tau),
        floor=float(floor),
        recorded_steps=recorded_steps,
        runs=norms.shape[0],
        degenerate=problem or "",
        fell_back=fell_back,
        **description,
    )


def smooth(norms: Float64[np.ndarray, " steps"], tau: float | int) -> Float64[np.ndarray, " steps"]:
    """Running median of odd width 2 floor(tau T / 2) + 1.

    Past its ends the trace is continued by its first value on the left and by its mirror image on the
    right, so that the early norms, which fall steeply, do not leak into the past that never was.
    """
    from scipy.ndimage import median_filter

    half = int(tau * norms.size / 2)
    if half == 0:
        return norms.copy()
    padded = np.concatenate([np.full(half, norms[0]), norms, norms[-half - 1 : -1][::-1]])
    filtered: np.ndarray = median_filter(padded, size=2 * half + 1, mode="nearest")
    return filtered[half : half + norms.size]


def decay_factors(weights: Float64[np.ndarray, " steps"]) -> Float64[np.ndarray, " steps"]:
    """eta_t = w_t sum_{s>t} w_s over its maximum, by a reversed cumulative sum (never total - cumsum)."""
    later = np.append(np.cumsum(weights[:0:-1])[::-1], 0.0)
    eta = weights * later
    return eta / eta.max()


def _factors(
    norms: Float64[np.ndarray, " steps"], power: float | int, floor: float | int, max_peak: float | int
) -> tuple[np.ndarray | None, str | None]:
    """The factors, or None where there are none; and what is wrong with them, or None."""
    positive = norms[norms > 0]
    if positive.size == 0:
        return None, "all gradient norms are 0"
    # In units of their median the norms' powers neither overflow nor underflow; the shape is the same.
    scaled = np.maximum(norms / np.median(positive), max(floor, np.finfo(np.float64).tiny))
    # Only the weights' ratios count; cut at e^-300, their products stay within float64's range.
    log_weights = -power * np.log(scaled)
    weights = np.exp(np.maximum(log_weights - log_weights.max(), -300.0))
    factors = decay_factors(weights)
    peak = float(np.argmax(factors)) / norms.size
    if peak > max_peak:
        return factors, (
            f"the refined schedule peaks after {peak:.0%} of the run (max_peak is {max_peak:.0%}), as it does"
            " when gradient norms vanish because the model interpolates its data"
        )
    return factors, None


def _resample(norms: Float64[np.ndarray, " recorded"], steps: int) -> Float64[np.ndarray, " steps"]:
    if steps == norms.size:
        return norms
    new = np.arange(1, steps + 1, dtype=np.float64) / steps
    recorded = np.arange(1, norms.size + 1, dtype=np.float64) / norms.size
    return np.interp(new, recorded, norms)


def _combine(norms: Float64[np.ndarray, "runs steps"], over_runs: OverRuns) -> Float64[np.ndarray, " steps"]:
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "median": lambda x: np.median(x, axis=0),
        "mean": lambda x: x.mean(axis=0),
        "geometric": _geometric_mean,
    }
    if over_runs not in ways:
        raise ValueError(f"over_runs must be one of {', '.join(ways)}, got {over_runs!r}")
    return norms[0] if norms.shape[0] == 1 else ways[over_runs](norms)


def _geometric_mean(norms: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.exp(np.log(norms).mean(axis=0))


def _as_array(grad_norms: Norms) -> tuple[Float64[np.ndarray, "runs steps"], dict[str, Any]]:
    traces: list[GradNormTrace] = []
    if isinstance(grad_norms, GradNormTrace):
        traces = [grad_norms]
    elif isinstance(grad_norms, list | tuple) and any(isinstance(t, GradNormTrace) for t in grad_norms):
        traces = [t for t in grad_norms if isinstance(t, GradNormTrace)]
        if len(traces) != len(grad_norms):
            raise ValueError("give either gradient-norm traces or plain norms, not both in one list")
    if not traces:
        if isinstance(grad_norms, Tensor):
            grad_norms = grad_norms.detach().to("cpu", torch.float64).numpy()
        return _checked(np.asarray(grad_norms, dtype=np.float64)), {}
    rows = [t.on_even_grid() for t in traces]
    lengths = {row.size for row in rows}
    if len(lengths) != 1:
        raise ValueError(f"runs must have one length to be combined, got {sorted(lengths)} recorded steps")
    return _checked(np.stack(rows)), common_description(traces)


def _checked(norms: np.ndarray) -> np.ndarray:
    if norms.ndim not in (1, 2) or norms.size == 0:
        raise ValueError(f"grad_norms must have shape [T] or [runs, T], got {norms.shape}")
    norms = np.atleast_2d(norms)
    if norms.shape[1] < 2:
        raise ValueError(f"a schedule needs the norms of at least 2 steps, got {norms.shape[1]}")
    bad = np.argwhere(~np.isfinite(norms) | (norms < 0))
    if bad.size:
        run, step = (int(i) for i in bad[0])
        raise ValueError(
            f"gradient norms must be finite and not negative, got {norms[run, step]} at step {step}"
            + (f" of run {run}" if norms.shape[0] > 1 else "")
            + "; leave out steps that the optimizer skipped"
        )
    return norms


def _check_settings(
    tau: float | int, power: float | int | None, floor: float | int, max_peak: float | int, steps: int | None
) -> None:
    if not 0.0 < tau <= 1.0:
        raise ValueError(f"tau must lie in (0, 1], got {tau}: it is the filter's width as a share of the run")
    if power is not None and not (np.isfinite(power) and power > 0):
        raise ValueError(f"power must be above 0, got {power}; use 2 for SGD and 1 for Adam")
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"floor must lie in [0, 1], got {floor}: it is a share of the median norm")
    if not 0.0 < max_peak <= 1.0:
        raise ValueError(f"max_peak must lie in (0, 1], got {max_peak}")
    if steps is not None and steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
