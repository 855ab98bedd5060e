"""A schedule refined from a recorded trace, as a scheduler of torch."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from gradatim.optim.ranks import assert_same_on_all_ranks
from gradatim.optim.refined_schedule import RefinedSchedule
from gradatim.optim.refinement import Norms, refine_schedule
from gradatim.optim.schedules import TableLR, set_base_lr


class RefinedLR(TableLR):
    """The refined schedule of earlier gradient norms: base rate times `refine_schedule(trace).factors`.

    The base rate has to be tuned for the refined shape; the best rate of the baseline is only a first guess.

    Args:
        optimizer: the optimizer to drive.
        trace: norms, a `GradNormTrace` or several, or a finished `RefinedSchedule`.
        base: base learning rate of every group; None keeps the optimizer's own.
        tau, power: see `refine_schedule`; None takes its defaults. Not for a finished schedule.
        total_steps: length of this run; None takes the trace's.
        check_ranks: in a distributed run, refuse to start where ranks hold different schedules. This is a
            collective: construct the scheduler on every rank.
        last_epoch: as for every scheduler of torch.
        **refinement: `floor`, `max_peak`, `fallback`, `over_runs` of `refine_schedule`.

    Raises ValueError as `refine_schedule` does, for a finished schedule whose length is not `total_steps`,
    and where ranks disagree. Warns with `DegenerateScheduleWarning` where the norms carry no schedule.
    `metadata` tells where the factors come from and is part of the state.
    """

    metadata: dict[str, Any]

    def __init__(
        self,
        optimizer: Optimizer,
        trace: Norms | RefinedSchedule,
        *,
        base: float | int | None = None,
        tau: float | int | None = None,
        power: float | int | None = None,
        total_steps: int | None = None,
        check_ranks: bool = True,
        last_epoch: int = -1,
        **refinement: Any,
    ) -> None:
        schedule = _schedule(trace, tau, power, total_steps, refinement)
        if check_ranks:
            assert_same_on_all_ranks(schedule.factors)
        self.metadata = {k: v for k, v in schedule.to_dict().items() if k != "factors"}
        self.metadata["digest"] = schedule.digest
        if base is not None and last_epoch == -1:
            set_base_lr(optimizer, base)
        super().__init__(optimizer, schedule.factors, last_epoch)


def _schedule(
    trace: Norms | RefinedSchedule,
    tau: float | int | None,
    power: float | int | None,
    total_steps: int | None,
    refinement: dict[str, Any],
) -> RefinedSchedule:
    if isinstance(trace, RefinedSchedule):
        if tau is not None or power is not None or refinement:
            raise ValueError("tau, power and the guard belong to the refinement, which is already done")
        if total_steps is not None and total_steps != len(trace):
            raise ValueError(
                f"the schedule has {len(trace)} steps but total_steps is {total_steps}; refine the trace with"
                f" steps={total_steps}"
            )
        return trace
    return refine_schedule(
        trace, power=power, tau=0.1 if tau is None else tau, steps=total_steps, **refinement
    )
