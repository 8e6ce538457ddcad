"""The costs of a step, from a few measured jobs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

from tfdist.errors import ConfigError, checked_secs, checked_several
from tfdist.planner.ps_step import (
    StepCosts,
    StepUnits,
    check_machines,
    mean_step_secs,
    step_units,
)
from tfdist.planner.ps_traffic import PsJob
from tfdist.planner.split_job import Machines

FEWEST_JOBS = len(fields(StepUnits)) + 1
_MOST_SECS = 1e6
_PASSES = 30
_MOST_CHANGES = 10  # of the free unknowns, for each unknown


@dataclass(frozen=True)
class MeasuredStep:
    """The measured step of a job, after it has warmed up.

    Attributes:
        job: the job.
        step_secs: mean seconds of a step of one worker.
        worker_secs: CPU seconds of its worker.
        ps_secs: CPU seconds of all ps together.

    Raises:
        ConfigError: a number is not positive.
    """

    job: PsJob
    step_secs: float
    worker_secs: float
    ps_secs: float

    def __post_init__(self) -> None:
        if not isinstance(self.job, PsJob):
            raise ConfigError("job", self.job, "must be a PsJob")
        for name in ("step_secs", "worker_secs", "ps_secs"):
            checked_secs(name, getattr(self, name), may_be_0=False, most=_MOST_SECS)


def calibrate_ps(measured: Sequence[MeasuredStep], machines: Machines) -> StepCosts:
    """The costs that fit measured jobs best, each at least 0.

    The fits minimize relative errors. CPU times give the cost of each unit, and step times the
    overhead and the delay.

    Args:
        measured: at least 7 jobs. They should differ in all that the costs are for: workers, ps,
            tables, batch, and length of a row.
        machines: where they ran.

    Raises:
        ConfigError: there are fewer, or one is no `MeasuredStep`.
    """
    check_machines(machines)
    rule = f"must be at least {FEWEST_JOBS} of MeasuredStep"
    jobs = list(checked_several("measured", measured, rule))
    if len(jobs) < FEWEST_JOBS or not all(isinstance(each, MeasuredStep) for each in jobs):
        raise ConfigError("measured", measured, rule)
    counted = [(each, step_units(each.job)) for each in jobs]
    errors = []
    for index, (left_out, units) in enumerate(counted):
        costs = _fit(counted[:index] + counted[index + 1 :], machines)
        predicted = mean_step_secs(left_out.job, units, machines, costs)
        errors.append(abs(math.log(predicted / left_out.step_secs)))
    return replace(_fit(counted, machines), error=max(errors))


def _fit(counted: Sequence[tuple[MeasuredStep, StepUnits]], machines: Machines) -> StepCosts:
    counts = [astuple(units) for _, units in counted]
    worker = nonnegative_fit(counts, [each.worker_secs for each, _ in counted])
    ps = nonnegative_fit(counts, [each.ps_secs for each, _ in counted])
    costs = StepCosts(StepUnits(*worker), StepUnits(*ps))
    # A step takes overhead * D (1 + Q) + delay. The queue Q depends a little on both: repeat.
    for _ in range(_PASSES):
        rows = []
        for each, units in counted:
            secs = mean_step_secs(each.job, units, machines, costs)
            rows.append(((secs - costs.delay_secs) / costs.overhead, 1.0))
        overhead, delay = nonnegative_fit(rows, [each.step_secs for each, _ in counted])
        costs = replace(costs, overhead=overhead or costs.overhead, delay_secs=delay)
    return costs


def nonnegative_fit(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """The x of at least 0 with the least squares of relative errors, |rows x - values| / values.

    The method is that of Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.

    Args:
        rows: a number of each unknown, for each value.
        values: positive numbers.
    """
    import numpy as np

    matrix: Any = np.asarray(rows, float) / np.asarray(values, float)[:, None]
    scale = np.abs(matrix).max(0)
    scale[scale == 0] = 1.0
    matrix = matrix / scale
    ones, found = np.ones(len(matrix)), np.zeros(matrix.shape[1])
    is_free = np.zeros(matrix.shape[1], bool)
    for _ in range(_MOST_CHANGES * len(found)):
        gradient = matrix.T @ (ones - matrix @ found)
        gradient[is_free] = -np.inf
        best = int(gradient.argmax())
        if gradient[best] <= 1e-10:
            break
        is_free[best] = True
        while is_free.any():
            nearest = np.zeros_like(found)
            nearest[is_free] = np.linalg.lstsq(matrix[:, is_free], ones, rcond=None)[0]
            is_wrong = is_free & (nearest <= 0)
            if not is_wrong.any():
                found = nearest
                break
            # Go towards it until the first number is 0, and keep that at 0.
            way = (found[is_wrong] / (found[is_wrong] - nearest[is_wrong])).min()
            found = found + way * (nearest - found)
            is_free &= found > 1e-12
            found[~is_free] = 0.0
    return [float(each) for each in found / scale]
