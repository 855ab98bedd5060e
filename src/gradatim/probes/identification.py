"""What `identify` found: ranked reference algorithms with intervals, layer by layer; prints and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradatim.probes.spectral import Predictor

Interval = tuple[float, float]


@dataclass(frozen=True)
class Match:
    """One reference algorithm beside the learner.

    `difference`: mean squared difference of predictions (of signs, for labels of -1 and 1: the share of
    points answered otherwise). `similarity` of their errors, 1 - difference / (learner's error + own error):
    1 for the same predictions, 0 for errors that have nothing in common; where the two errors together exceed
    the targets' mean square (the error of answering 0), that takes their place, so that two poor learners are
    not alike for being poor. `error`: its own mean squared error.
    Intervals are 95%, from a bootstrap over contexts. `equal`: as near to the learner as the best, within
    the bootstrap, a tenth of the difference, or 0.002 of similarity (where the best is the learner to
    rounding, so must this one be). `numbers` are the tuned settings; `number_interval` is the interval of the
    first of them where it was bootstrapped.
    """

    name: str
    family: str
    difference: float
    difference_interval: Interval
    similarity: float
    similarity_interval: Interval
    error: float
    equal: bool = False
    plain: int = 0
    numbers: tuple[float, ...] = ()
    number_interval: Interval | None = None
    predictor: Predictor | None = None


@dataclass(frozen=True)
class LayerMatch:
    """What the read-out of one layer follows; layer 0 is the embedding.

    `newton_steps` and `gd_steps`: the nearest step counts (GD in powers of two, at one rate for all layers),
    each with the counts that do as well within one standard error: (best, fewest, most).
    """

    layer: int
    name: str
    similarity: float
    similarity_interval: Interval
    error: float
    newton_steps: tuple[int, int, int] | None = None
    gd_steps: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Identification:
    """Ranked reference algorithms for one learner on one task; `str()` is a table, `plot(figure)` draws it.

    `matches` are sorted, nearest first, the nearest member of every family. `threshold` is the similarity
    that the best must reach (with the lower end of its interval) for any reference to *fit*.
    """

    matches: tuple[Match, ...]
    layers: tuple[LayerMatch, ...]
    error: float
    error_interval: Interval
    contexts: int
    positions: tuple[int, ...]
    task: str
    threshold: float = 0.9
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the nearest reference is near enough to be called the learner's algorithm."""
        return self.matches[0].similarity_interval[0] >= self.threshold

    @property
    def equals(self) -> tuple[Match, ...]:
        """All references that fit as well as the best: the plainest first."""
        return tuple(sorted((m for m in self.matches if m.equal), key=lambda m: (m.plain, m.difference)))

    @property
    def best(self) -> Match | None:
        """The plainest of those that fit best; None where no reference fits."""
        return self.equals[0] if self.fits else None

    @property
    def headline(self) -> str:
        """The answer in a line."""
        if not self.fits:
            m = self.matches[0]
            return (
                f"no reference fits: the nearest is {m.name}, similarity of errors "
                f"{_with_interval(m.similarity, m.similarity_interval)}, {self.threshold:g} is needed"
            )
        first, *others = self.equals
        line = first.name
        if others:
            shown = ", ".join(m.name for m in others[:3]) + (", ..." if len(others) > 3 else "")
            line += f" (as well as {shown})"
        return (
            f"{line}: similarity of errors {_with_interval(first.similarity, first.similarity_interval)}, "
            f"difference {_with_interval(first.difference, first.difference_interval)}"
        )

    def __str__(self) -> str:
        lines = [self.headline, ""]
        lines.append(
            f"{self.task}; {self.contexts} contexts, {_positions(self.positions)}; "
            f"the learner's own error {_with_interval(self.error, self.error_interval)}"
        )
        rows = [("reference", "difference", "95% interval", "similarity", "95% interval", "its error")]
        for m in self.matches:
            rows.append(
                (
                    ("= " if m.equal else "  ") + m.name,
                    f"{m.difference:.3g}",
                    _interval(m.difference_interval),
                    f"{m.similarity:.3f}",
                    _interval(m.similarity_interval),
                    f"{m.error:.3g}",
                )
            )
        lines += _aligned(rows)
        intervals = [m for m in self.matches if m.number_interval is not None]
        lines += [f"{m.family}: {m.numbers[0]:.4g} {_interval(m.number_interval)}" for m in intervals]
        if self.layers:
            layer_rows = [("layer", "nearest", "similarity", "error", "Newton steps", "GD steps")]
            for layer in self.layers:
                layer_rows.append(
                    (
                        str(layer.layer),
                        layer.name,
                        f"{layer.similarity:.3f}",
                        f"{layer.error:.3g}",
                        _steps(layer.newton_steps),
                        _steps(layer.gd_steps),
                    )
                )
            lines += ["", *_aligned(layer_rows)]
            lines.append(
                "k Newton steps lie near 2^(k/2) steps of GD: the two columns are one fact on two axes."
            )
        lines += list(self.notes)
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""

        def of(match: Match) -> dict[str, Any]:
            return {
                "name": match.name,
                "family": match.family,
                "difference": match.difference,
                "difference_interval": list(match.difference_interval),
                "similarity": match.similarity,
                "similarity_interval": list(match.similarity_interval),
                "error": match.error,
                "equal": match.equal,
                "numbers": list(match.numbers),
                "number_interval": None if match.number_interval is None else list(match.number_interval),
            }

        return {
            "headline": self.headline,
            "fits": self.fits,
            "best": None if self.best is None else self.best.name,
            "task": self.task,
            "contexts": self.contexts,
            "positions": list(self.positions),
            "error": self.error,
            "error_interval": list(self.error_interval),
            "threshold": self.threshold,
            "matches": [of(m) for m in self.matches],
            "layers": [vars(layer) for layer in self.layers],
            "notes": list(self.notes),
        }

    def plot(self, figure: Figure) -> None:
        """Draw on an empty Matplotlib figure: similarity by reference and, with layers, steps by layer."""
        with_steps = [layer for layer in self.layers if layer.newton_steps is not None]
        panels = figure.subplots(1, 2, width_ratios=(3, 2)) if with_steps else [figure.subplots()]
        axes = panels[0]
        shown = [m for m in self.matches if m.similarity > 0.05][:16][::-1]
        for i, m in enumerate(shown):
            low, high = m.similarity_interval
            colour = "C0" if m.equal and self.fits else "0.55"
            axes.plot([low, high], [i, i], color=colour)
            axes.plot([m.similarity], [i], "o", color=colour, markersize=5)
        axes.axvline(self.threshold, linestyle=":", color="0.5", linewidth=1)
        axes.set_yticks(range(len(shown)), [m.name for m in shown])
        axes.set_xlabel("similarity of errors")
        axes.set_title("fits" if self.fits else "no reference fits")
        if not with_steps:
            return
        axes = panels[1]
        at = [layer.layer for layer in with_steps]
        newton = [layer.newton_steps for layer in with_steps if layer.newton_steps is not None]
        axes.plot(at, [s[0] for s in newton], "o-", color="C0", label="Newton steps")
        axes.fill_between(at, [s[1] for s in newton], [s[2] for s in newton], color="C0", alpha=0.2)
        descent = [layer.gd_steps for layer in with_steps if layer.gd_steps is not None]
        if len(descent) == len(at):
            import numpy as np

            logs = np.log2(np.maximum(np.array(descent, dtype=float), 1))
            axes.plot(at, logs[:, 0], "s--", color="C1", label="log2 of GD steps")
            axes.fill_between(at, logs[:, 1], logs[:, 2], color="C1", alpha=0.2)
        axes.set_xlabel("layer")
        axes.set_ylabel("nearest number of steps")
        axes.legend()


def _with_interval(value: float, interval: Interval) -> str:
    return f"{value:.4g} {_interval(interval)}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval[0]:.4g}, {interval[1]:.4g}]"


def _steps(steps: tuple[int, int, int] | None) -> str:
    if steps is None:
        return ""
    best, low, high = steps
    return f"{best}" if low == high else f"{best} ({low}-{high})"


def _positions(positions: Sequence[int]) -> str:
    if len(positions) == 1:
        return f"after {positions[0]} pairs"
    return f"after {positions[0]} to {positions[-1]} pairs"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def table_rows(found: Identification) -> Mapping[str, Sequence[Sequence[str | float]]]:
    """The two tables as rows of cells: "references" and "layers"."""
    return {
        "references": [
            (m.name, m.difference, m.similarity, *m.similarity_interval, m.error) for m in found.matches
        ],
        "layers": [
            (at.layer, at.name, at.similarity, at.error, _steps(at.newton_steps), _steps(at.gd_steps))
            for at in found.layers
        ],
    }
