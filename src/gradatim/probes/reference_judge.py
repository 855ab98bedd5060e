"""How near each reference algorithm lies to a learner, with paired bootstrap intervals over contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.probes.identification import Interval, Match
from gradatim.probes.reference_families import Family
from gradatim.probes.spectral import Predictor

WINSORISED = 0.99
EXACT = 1 - 1e-6
NEGLIGIBLE = 0.002  # a difference in similarity that no conclusion should rest on


def mean_squares(values: Tensor, scored: Tensor) -> Float[Tensor, " batch"]:
    """Mean square over a context's scored positions."""
    count = scored.sum(dim=1).clamp(min=1)
    return (values.square() * scored).sum(dim=1) / count


def compared(predictions: Tensor, binary: bool) -> Tensor:
    """Predictions as they are compared: halved signs of labels, so that a disagreement counts 1."""
    return predictions.double().sign() / 2 if binary else predictions.double()


@dataclass(frozen=True)
class Member:
    family: Family
    predictor: Predictor
    numbers: tuple[float, ...]
    predictions: Tensor


class Judge:
    """Bootstrap over contexts: the same resamples for every reference, so that differences are paired."""

    def __init__(self, target: Tensor, scored: Tensor, bootstrap: int, seed: int, binary: bool) -> None:
        self.target = target / 2 if binary else target
        self.scored = scored
        rng = np.random.default_rng([seed, 0xB007])
        count = len(target)
        draws = rng.multinomial(count, np.full(count, 1 / count), size=bootstrap)
        self.weights = torch.from_numpy(draws).double() / count

    def means(self, per_context: Tensor) -> tuple[float, Tensor]:
        """The mean of a winsorised column, and of each resample."""
        values = per_context.clamp(max=torch.quantile(per_context, WINSORISED))
        return float(values.mean()), self.weights @ values

    def error(self, predictions: Tensor) -> tuple[float, Interval]:
        """Mean squared error with its interval: every context at its full weight."""
        values = mean_squares(predictions - self.target, self.scored)
        return float(values.mean()), interval(self.weights @ values)

    def rank(self, learner: Tensor, members: Sequence[Member]) -> list[Match]:
        """The nearest member of every family, nearest first, with those that do as well marked."""
        own, own_resampled = self.means(mean_squares(learner - self.target, self.scored))
        power, power_resampled = self.means(mean_squares(self.target, self.scored))
        found: dict[str, tuple[Match, Tensor]] = {}
        for member in members:
            off, off_resampled = self.means(mean_squares(learner - member.predictions, self.scored))
            error, error_resampled = self.means(mean_squares(member.predictions - self.target, self.scored))
            yardstick = torch.minimum(own_resampled + error_resampled, power_resampled)
            similarity = _similarity(off, min(own + error, power))
            spread = 1.0 - off_resampled / yardstick.clamp(min=1e-300)
            match = Match(
                member.family.name if member.family.keep_name else member.predictor.name,
                member.family.name,
                off,
                interval(off_resampled),
                similarity,
                interval(spread),
                self.error(member.predictions)[0],
                plain=member.family.plain,
                numbers=member.numbers,
                predictor=member.predictor,
            )
            if member.family.name not in found or off < found[member.family.name][0].difference:
                found[member.family.name] = (match, off_resampled)
        ranked = sorted(found.values(), key=lambda pair: pair[0].difference)
        best, best_resampled = ranked[0]
        return [
            replace(m, equal=m is best or self._as_near(m, resampled, best, best_resampled))
            for m, resampled in ranked
        ]

    @staticmethod
    def _as_near(m: Match, resampled: Tensor, best: Match, best_resampled: Tensor) -> bool:
        # Where one reference is the learner to rounding, no near miss is as good.
        if best.similarity > EXACT:
            return m.similarity > EXACT
        # A family with many numbers to tune is always a little nearer than the plain one inside it.
        if m.difference <= 1.1 * best.difference or m.similarity >= best.similarity - NEGLIGIBLE:
            return True
        return bool(torch.quantile(resampled - best_resampled, 0.025) <= 0)


def _similarity(difference: float, yardstick: float) -> float:
    return 1.0 if difference == 0 else 1.0 - difference / max(yardstick, 1e-300)


def interval(resampled: Tensor) -> Interval:
    low, high = torch.quantile(resampled.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
