"""The figures of study 01 on pictures: PSNR over passes, the energy beside it, and one digit on its way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from gradatim.bench import Curve, Results, StudyFigure, Table
from gradatim.studies.energy_denoising_trials import DENOISING_ARMS, TRAINED_TIME

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMES = (99, 199, 299)
COLORS = {arm.name: f"C{i}" for i, arm in enumerate(DENOISING_ARMS)}
MARKERS = ("o", "s", "^", "D")
ENERGY = DENOISING_ARMS[0].name
SHOWN = (0, 1, 3, 6, 10, 20)


def draw_passes(figure: Figure, results: Results) -> None:
    """PSNR over passes, one panel per noise level, one line per arm."""
    axes = figure.subplots(1, len(TIMES))
    for axis, t in zip(axes, TIMES, strict=True):
        for arm, marker in zip(DENOISING_ARMS, MARKERS, strict=True):
            if line := _mean(results.curves(arm.name, f"psnr t={t}")):
                axis.plot(*line, color=COLORS[arm.name], marker=marker, markersize=3, label=arm.label)
        given = list(results.metric(ENERGY, f"noisy_t{t}").values())
        if given:
            axis.axhline(float(np.mean(given)), color="C7", linestyle=":", label="as given")
        trained = "trained" if t == TRAINED_TIME else "never trained"
        axis.set(xscale="log", xlabel="passes", title=f"t = {t} ({trained})")
    axes[0].set_ylabel("PSNR (dB)")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")


def table_passes(results: Results) -> Table:
    """Mean PSNR by arm, noise level and passes."""
    rows: list[tuple[str | float, ...]] = []
    for arm in DENOISING_ARMS:
        for t in TIMES:
            if line := _mean(results.curves(arm.name, f"psnr t={t}")):
                rows += [(arm.label, t, passes, value) for passes, value in zip(*line, strict=True)]
    return Table(("arm", "t", "passes", "PSNR (dB)"), rows)


def draw_energy(figure: Figure, results: Results) -> None:
    """The energy along the descent, and the PSNR of the same states."""
    left, right = figure.subplots(1, 2)
    for i, t in enumerate(TIMES):
        if line := _mean(results.curves(ENERGY, f"energy t={t}")):
            left.plot(*line, color=f"C{i}", label=f"t = {t}")
        if line := _mean(results.curves(ENERGY, f"psnr t={t}")):
            right.plot(*line, color=f"C{i}", marker="o", markersize=3)
            best = int(np.argmax(line[1]))
            right.plot(line[0][best], line[1][best], color=f"C{i}", marker="*", markersize=11)
    left.set(xlabel="steps", ylabel="energy above its last", title="Energy")
    right.set(xlabel="steps", ylabel="PSNR (dB)", title="What it leads to (star: best)")
    if left.lines:
        left.legend()


def table_energy(results: Results) -> Table:
    """Mean energy above its last value, by noise level and step."""
    rows: list[tuple[str | float, ...]] = []
    for t in TIMES:
        if line := _mean(results.curves(ENERGY, f"energy t={t}")):
            rows += [(t, step, value) for step, value in zip(*line, strict=True)]
    return Table(("t", "steps", "energy above its last"), rows)


def draw_digit(figure: Figure, results: Results) -> None:
    """One test image of the first seed on its way down, for every noise level."""
    axes = figure.subplots(len(TIMES), len(SHOWN) + 1)
    for row, t in zip(axes, TIMES, strict=True):
        names = [*(f"figure/picture t={t} p{k}" for k in SHOWN), "figure/picture clean"]
        titles = ["given", *(f"{k} step{'s' if k > 1 else ''}" for k in SHOWN[1:]), "clean"]
        for axis, name, title in zip(row, names, titles, strict=True):
            axis.set(xticks=[], yticks=[])
            first = next(iter(results.curves(ENERGY, name).values()), None)
            if first is not None:
                side = round(len(first.y) ** 0.5)
                pixels = np.asarray(first.y).reshape(side, side)
                axis.imshow(pixels, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            if t == TIMES[0]:
                axis.set_title(title, fontsize="small")
        row[0].set_ylabel(f"t = {t}", fontsize="small")


def table_digit(results: Results) -> Table:
    """Root mean squared error of the image shown, by noise level and steps."""
    rows: list[tuple[str | float, ...]] = []
    clean = next(iter(results.curves(ENERGY, "figure/picture clean").values()), None)
    for t in TIMES if clean is not None else ():
        for k in SHOWN:
            state = next(iter(results.curves(ENERGY, f"figure/picture t={t} p{k}").values()), None)
            if state is not None and clean is not None:
                gap = np.clip(state.y, -1, 1) - np.asarray(clean.y)
                rows.append((t, k, float(np.sqrt(np.mean(gap**2)))))
    return Table(("t", "steps", "RMSE"), rows)


def _mean(curves: Mapping[int, Curve]) -> tuple[list[float], list[float]] | None:
    """The mean line over seeds; None where there is none."""
    lines: Iterable[Curve] = curves.values()
    ys = [line.y for line in lines]
    if not ys:
        return None
    return list(next(iter(curves.values())).x), np.mean(ys, axis=0).tolist()


DENOISING_FIGURES = (
    StudyFigure(
        "denoising-passes",
        "PSNR over passes, at equal parameters and training compute",
        "Three panels of PSNR over passes on a logarithmic axis: energy descent, a diffusion model, a network"
        " of one pass and one trained on repeated passes. Diffusion needs hundreds, the others a few.",
        draw_passes,
        table_passes,
    ),
    StudyFigure(
        "denoising-energy",
        "The energy falls on, the picture does not",
        "Left: the mean energy over descent steps, falling all the way at three noise levels. Right: the PSNR"
        " of the same states, with a star at its best: later the noisier, and lower afterwards.",
        draw_energy,
        table_energy,
    ),
    StudyFigure(
        "denoising-digit",
        "One digit on its way down",
        "Rows of small pictures, one row per noise level: a noisy digit as given, after 1, 3, 6, 10 and 20"
        " descent steps, and the clean one.",
        draw_digit,
        table_digit,
    ),
)
