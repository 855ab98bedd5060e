"""Trials, seeds, the store of results, statistics and the one training loop."""

from gradatim.bench.statistics import Estimate, estimate
from gradatim.bench.study import (
    Arm,
    Claim,
    Contrast,
    Control,
    Curve,
    Effect,
    Level,
    Outcome,
    Paper,
    Profile,
    Results,
    Scale,
    Study,
    StudyFigure,
    Table,
    Trial,
    tuning_seeds,
)
from gradatim.bench.summary import FailedTrial, StudyReport
from gradatim.bench.verdict import ControlVerdict, Verdict, judge

__all__ = [
    "Arm",
    "Claim",
    "Contrast",
    "Control",
    "ControlVerdict",
    "Curve",
    "Effect",
    "Estimate",
    "FailedTrial",
    "Level",
    "Outcome",
    "Paper",
    "Profile",
    "Results",
    "Scale",
    "Study",
    "StudyFigure",
    "StudyReport",
    "Table",
    "Trial",
    "Verdict",
    "estimate",
    "judge",
    "tuning_seeds",
]
