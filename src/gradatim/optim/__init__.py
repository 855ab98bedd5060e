"""How does it move? Optimizers, learning-rate schedules and inner loops."""

from typing import TYPE_CHECKING, Any

from gradatim.optim.bounds import (
    BoundMinimum,
    BoundTerms,
    last_iterate_bound,
    minimize_bound,
    optimal_base_lr,
    weighted_average_bound,
)
from gradatim.optim.deep_momentum import DeepMomentumSGD
from gradatim.optim.delta_descent import DeltaGradientDescent, delta_gradient_step
from gradatim.optim.delta_momentum import DeltaMomentumSGD
from gradatim.optim.m3 import M3, matrix_groups
from gradatim.optim.multi_frequency import MultiFrequency
from gradatim.optim.newton_schulz import newton_schulz
from gradatim.optim.normalized_sgd import NormalizedSGD
from gradatim.optim.ranks import assert_same_on_all_ranks, broadcast_factors
from gradatim.optim.recorder import GradNormRecorder
from gradatim.optim.refined_lr import RefinedLR
from gradatim.optim.refined_schedule import RefinedSchedule
from gradatim.optim.refinement import DegenerateScheduleWarning, refine_schedule
from gradatim.optim.schedules import LinearDecayLR, TableLR
from gradatim.optim.trace_readers import TraceError, read_trace
from gradatim.optim.traces import GradNormTrace

if TYPE_CHECKING:
    from gradatim.optim.huggingface import GradNormCallback, refined_lambda_lr

__all__ = [
    "M3",
    "BoundMinimum",
    "BoundTerms",
    "DeepMomentumSGD",
    "DegenerateScheduleWarning",
    "DeltaGradientDescent",
    "DeltaMomentumSGD",
    "GradNormCallback",
    "GradNormRecorder",
    "GradNormTrace",
    "LinearDecayLR",
    "MultiFrequency",
    "NormalizedSGD",
    "RefinedLR",
    "RefinedSchedule",
    "TableLR",
    "TraceError",
    "assert_same_on_all_ranks",
    "broadcast_factors",
    "delta_gradient_step",
    "last_iterate_bound",
    "matrix_groups",
    "minimize_bound",
    "newton_schulz",
    "optimal_base_lr",
    "read_trace",
    "refine_schedule",
    "refined_lambda_lr",
    "weighted_average_bound",
]


def __getattr__(name: str) -> Any:
    # transformers takes seconds to import; only its users should wait for it.
    if name in ("GradNormCallback", "refined_lambda_lr"):
        from gradatim.optim import huggingface

        return getattr(huggingface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
