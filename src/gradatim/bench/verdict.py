"""From results to verdicts: does the claim hold here, and does it survive its control?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradatim.bench.statistics import (
    ALPHA,
    Estimate,
    equivalence_p,
    estimate,
    estimate_proportion,
    holm,
    seeds_needed,
)
from gradatim.bench.study import Claim, Control, Effect, Level, Results, Study

Word = Literal["reproduced", "not reproduced", "inconclusive"]
ControlWord = Literal["survives", "explained away", "undecided"]


@dataclass(frozen=True)
class ControlVerdict:
    """What is left of a claim beside its plain explanation."""

    explanation: str
    word: ControlWord
    estimate: Estimate


@dataclass(frozen=True)
class Verdict:
    """A judged claim.

    `estimate` holds the effect, positive in the claim's favour, in the claim's own unit; `p` belongs to
    the claim's test (against zero, or of equivalence) and `p_holm` is adjusted over the study's claims.
    `seeds_needed` is given for *inconclusive*: how many seeds would settle it at 80% power, or None where
    more seeds alone would not.
    """

    claim: Claim
    word: Word
    estimate: Estimate
    p: float | None
    p_holm: float | None
    control: ControlVerdict
    seeds_needed: int | None
    failed_trials: int

    def __str__(self) -> str:
        e = self.estimate
        if e.mean is None:
            return f"{self.word}: {self.claim.statement} (no finished trials)"
        interval = "" if e.low is None else f" [{e.low:+.4g}, {e.high:+.4g}]"
        unit = f" {self.claim.unit}" if self.claim.unit else ""
        return f"{self.word}: {self.claim.statement} ({e.mean:+.4g}{interval}{unit}, n={e.n})"


def judge(study: Study, results: Results, profile: str | None = None) -> list[Verdict]:
    """Judge every claim of a study, or those of a profile; p-values are Holm-adjusted over all of them."""
    claims = study.claims_of(profile)
    failed = sum(results.failed.values())
    estimates = [_estimate(c.effect, results, c.interval, c.overlap) for c in claims]
    p_values = [_p(c, e) for c, e in zip(claims, estimates, strict=True)]
    verdicts = []
    for claim, e, p, p_holm in zip(claims, estimates, p_values, holm(p_values), strict=True):
        word = _word(claim, e, p_holm)
        needed = _seeds_needed(claim, e, len(claims)) if word == "inconclusive" else None
        control = _judge_control(claim.control, results, claim)
        verdicts.append(Verdict(claim, word, e, p, p_holm, control, needed, failed))
    return verdicts


def _estimate(effect: Effect, results: Results, interval: str, overlap: float) -> Estimate:
    if interval == "wilson":
        if not isinstance(effect, Level):
            raise TypeError('interval="wilson" needs a Level effect: a share against a bound')
        outcomes = list(results.metric(effect.arm, effect.metric).values())
        return estimate_proportion(outcomes, effect.bound, 1.0 if effect.better == "higher" else -1.0)
    return estimate(list(effect(results).values()), overlap)


def _p(claim: Claim, e: Estimate) -> float | None:
    return e.p if claim.test == "positive" else equivalence_p(e, claim.margin, claim.overlap)


def _word(claim: Claim, e: Estimate, p_holm: float | None) -> Word:
    if e.low is None or e.high is None or p_holm is None:
        return "inconclusive"
    if claim.test == "equivalent":
        if p_holm < ALPHA:
            return "reproduced"
        return "not reproduced" if e.low >= claim.margin or e.high <= -claim.margin else "inconclusive"
    if e.high < claim.margin or e.high <= 0:
        return "not reproduced"
    return "reproduced" if e.low > 0 and p_holm < ALPHA else "inconclusive"


def _seeds_needed(claim: Claim, e: Estimate, tests: int) -> int | None:
    if e.mean is None:
        return None
    if claim.test == "equivalent":
        return seeds_needed(e, claim.margin - abs(e.mean), tests, claim.overlap, one_sided=True)
    # Settled either way: seen above zero, or seen below the smallest effect that would count.
    ways = [seeds_needed(e, abs(e.mean), tests, claim.overlap)]
    if claim.margin > 0:
        ways.append(seeds_needed(e, claim.margin - e.mean, 1, claim.overlap))
    counts = [n for n in ways if n is not None]
    return max(min(counts), e.n + 1) if counts else None


def _judge_control(control: Control, results: Results, claim: Claim) -> ControlVerdict:
    interval = "wilson" if claim.interval == "wilson" and isinstance(control.effect, Level) else "t"
    e = _estimate(control.effect, results, interval, claim.overlap)
    word: ControlWord = "undecided"
    if e.low is not None and e.high is not None:
        if control.test == "equivalent":
            if -control.margin < e.low and e.high < control.margin:
                word = "survives"
            elif e.low >= control.margin or e.high <= -control.margin:
                word = "explained away"
        elif e.high < control.margin or e.high <= 0:
            word = "explained away"
        elif e.low > 0:
            word = "survives"
    return ControlVerdict(control.explanation, word, e)
