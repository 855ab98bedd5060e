"""What the board knows of one study, ready to be shown: verdicts, arms, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradatim.bench.statistics import Estimate, estimate
from gradatim.bench.study import Arm, Results, Study
from gradatim.bench.verdict import ControlVerdict, Verdict


@dataclass(frozen=True)
class FailedTrial:
    """A trial that crashed, timed out or returned a number that is not one."""

    arm: str
    seed: int
    reason: str
    traceback: str


@dataclass(frozen=True)
class StudyReport:
    """One study at one profile as the board holds it.

    `environment` holds versions, processor, cores, Python and commit; `measured` is when the last trial
    finished (ISO 8601, UTC); `seconds` the core-seconds of the finished trials; `missing` counts trials
    of the profile that the board does not hold yet; `command` reproduces the report.
    """

    study: Study
    profile: str
    results: Results
    verdicts: Sequence[Verdict]
    failed: Sequence[FailedTrial] = ()
    missing: int = 0
    seconds: float = 0.0
    measured: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    scale: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def arm_estimates(self, arm: Arm) -> dict[str, Estimate]:
        """Every metric of an arm: mean over its seeds with a 95% interval.

        Where all claims say that seeds share training data (`overlap`), the interval allows for it.
        """
        overlaps = {claim.overlap for claim in self.study.claims}
        overlap = overlaps.pop() if len(overlaps) == 1 else 0.0
        by_seed = self.results.outcomes.get(arm.name, {})
        names = dict.fromkeys(name for outcome in by_seed.values() for name in outcome.metrics)
        return {name: estimate(list(self.results.metric(arm.name, name).values()), overlap) for name in names}

    def to_json(self) -> dict[str, Any]:
        """A JSON document with everything but the curves; the format of the files under `results/`."""
        return {
            "study": self.study.slug,
            "number": self.study.number,
            "title": self.study.title,
            "profile": self.profile,
            "scale": dict(self.scale),
            "verdicts": [verdict_json(v) for v in self.verdicts],
            "arms": [
                {
                    "arm": arm.name,
                    "label": arm.label or arm.name,
                    "role": arm.role,
                    "n": len(self.results.outcomes.get(arm.name, {})),
                    "failed": self.results.failed.get(arm.name, 0),
                    "seeds": sorted(self.results.outcomes.get(arm.name, {})),
                    "metrics": {k: estimate_json(e) for k, e in self.arm_estimates(arm).items()},
                }
                for arm in self.study.arms
                if arm.name in self.results.outcomes or arm.name in self.results.failed
            ],
            "failed": [{"arm": f.arm, "seed": f.seed, "reason": f.reason} for f in self.failed],
            "missing": self.missing,
            "seconds": round(self.seconds, 3),
            "measured": self.measured,
            "environment": dict(self.environment),
            "command": self.command,
        }


def estimate_json(e: Estimate) -> dict[str, Any]:
    """An estimate as plain JSON values."""
    return {
        "n": e.n, "mean": e.mean, "sd": e.sd, "low": e.low, "high": e.high,
        "bca_low": e.boot_low, "bca_high": e.boot_high,
    }  # fmt: skip


def verdict_json(v: Verdict) -> dict[str, Any]:
    """A verdict as plain JSON values."""
    d = v.estimate.standardized
    return {
        "claim": v.claim.id,
        "statement": v.claim.statement,
        "verdict": v.word,
        "test": v.claim.test,
        "margin": v.claim.margin,
        "unit": v.claim.unit,
        **estimate_json(v.estimate),
        "standardized": None if d is None else {"effect": d[0], "low": d[1], "high": d[2]},
        "p": v.p,
        "p_holm": v.p_holm,
        "paper": v.claim.paper,
        "paper_says": v.claim.paper_says,
        "control": _control_json(v.control),
        "seeds_needed": v.seeds_needed,
        "failed_trials": v.failed_trials,
    }


def _control_json(c: ControlVerdict) -> dict[str, Any]:
    return {"explanation": c.explanation, "verdict": c.word, **estimate_json(c.estimate)}
