"""The step time of an asynchronous ps job, from its counts of work and the costs of each.

A step is counted in units: the step itself, a run on each ps, messages, rows, bytes and FLOPs. A
calibration (`calibrate_ps`) says how much CPU time a unit costs the worker and the ps. Workers then
queue for the cores and the network of the ps, by mean value analysis.

The counts are those of TensorFlow's sessions with between-graph replication, as `tfdist.train` runs
them (TensorFlow 2.21).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

from tfdist.errors import ConfigError, checked_secs
from tfdist.planner.ps_traffic import PsJob
from tfdist.planner.quantity import Quantity
from tfdist.planner.queues import residence_secs
from tfdist.planner.split_job import Machines

_MANY_WORKERS = 10_000
_FLOPS_PER_PARAMETER = 6  # of an example: 2 forward, 4 backward
SOURCE = "mean value analysis: Reiser and Lavenberg, Journal of the ACM 27 (1980)"
CPU, PS_CPU = "CPU of the machine", "CPU of a ps"
INWARD, OUTWARD = "network into a ps", "network out of a ps"


@dataclass(frozen=True)
class StepUnits:
    """A number for each unit of work: how many a step has, or the CPU seconds that one costs.

    Attributes:
        step: the step itself.
        ps: a ps that takes part; the session starts a run on each.
        message: a tensor between a worker and a ps.
        row: a row of a table, looked up and updated.
        byte: a byte of rows, ids, variables and gradients.
        flop: a FLOP of the dense layers.
    """

    step: float = 0.0
    ps: float = 0.0
    message: float = 0.0
    row: float = 0.0
    byte: float = 0.0
    flop: float = 0.0

    def __matmul__(self, other: StepUnits) -> float:
        """The sum of the products: counts @ costs are the seconds of a step."""
        return math.fsum(a * b for a, b in zip(astuple(self), astuple(other), strict=True))


@dataclass(frozen=True)
class StepCosts:
    """What the units of a step cost on the calibrated machine.

    Attributes:
        worker: CPU seconds of the worker.
        ps: CPU seconds of all ps together.
        overhead: seconds of a core for each of these CPU seconds. The kernel's work for the network
            is charged to no task, so it is more than 1.
        delay_secs: of a step, without CPU: threads that wait for one another.
        error: largest relative error of the jobs of the calibration, each predicted from the
            others; as a logarithm.

    Raises:
        ConfigError: a number is negative, infinite or no number.
    """

    worker: StepUnits
    ps: StepUnits
    overhead: float = 1.0
    delay_secs: float = 0.0
    error: float = 0.0

    def __post_init__(self) -> None:
        for task in ("worker", "ps"):
            costs = getattr(self, task)
            if not isinstance(costs, StepUnits):
                raise ConfigError(task, costs, "must be StepUnits")
            for name, cost in asdict(costs).items():
                checked_secs(f"{task}.{name}", cost, most=1e9)
        checked_secs("overhead", self.overhead, may_be_0=False, most=1e9)
        checked_secs("delay_secs", self.delay_secs, most=1e9)
        checked_secs("error", self.error, most=100)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepCosts:
        """The costs from `to_json`; raises KeyError or TypeError for other data."""
        plain = {name: data[name] for name in ("overhead", "delay_secs", "error")}
        return cls(StepUnits(**data["worker"]), StepUnits(**data["ps"]), **plain)


def step_units(job: PsJob) -> StepUnits:
    """How many of each unit a worker's step has.

    A table has three messages with each ps: ids, rows and gradients. The gradients' ids are those
    of the lookup, and are not sent again. A dense variable has two. Several ps add one message each
    at the end of their updates, and one for the global step; a single ps gets the learning rate.
    """
    rows = [job.lookups(table).value for table in job.tables]
    variables = job.variables if job.dense else 0
    values = math.fsum(n * table.dim for n, table in zip(rows, job.tables, strict=True))
    values = 2 * (values + job.dense)
    return StepUnits(
        step=1,
        ps=job.ps,
        message=3 * job.ps * len(rows) + 2 * variables + (job.ps + 1 if job.ps > 1 else 1),
        row=math.fsum(rows),
        byte=values * job.value_bytes + math.fsum(rows) * job.id_bytes,
        flop=_FLOPS_PER_PARAMETER * job.dense * job.batch,
    )


def predict_step_secs(job: PsJob, machines: Machines, costs: StepCosts) -> Quantity:
    """Seconds of a step of one worker, while all workers train asynchronously.

    The interval is the error of the calibration. It says nothing of jobs that are far from the
    calibrated ones.

    Args:
        job: the job.
        machines: where it runs.
        costs: of `calibrate_ps`.

    Raises:
        ConfigError: an argument is of another type.
    """
    _check(job, machines, costs)
    stations, delay = _network(job, step_units(job), machines, costs)
    parts = [
        Quantity(f"at the {name}", secs, "seconds", "D (1 + Q)", {"D": stations[name]}, SOURCE)
        for name, secs in _residences(job, stations, delay).items()
    ]
    parts.append(Quantity("without queues", delay, "seconds"))
    found = Quantity.sum_of("step time", "seconds", parts, SOURCE)
    interval = found.value * math.exp(-costs.error), found.value * math.exp(costs.error)
    return replace(found, interval=interval)


def mean_step_secs(job: PsJob, units: StepUnits, machines: Machines, costs: StepCosts) -> float:
    """The value of `predict_step_secs`, for units that are known already."""
    stations, delay = _network(job, units, machines, costs)
    return delay + math.fsum(_residences(job, stations, delay).values())


def step_limits(job: PsJob, machines: Machines, costs: StepCosts) -> list[Quantity]:
    """The number of workers from which on each resource is always in use, the lowest first.

    The first one saturates first. `job.workers` is ignored.

    Raises:
        ConfigError: an argument is of another type.
    """
    _check(job, machines, costs)
    stations, delay = _network(job, step_units(job), machines, costs)
    cycle = delay + math.fsum(stations.values())
    return sorted(
        (
            Quantity(
                name,
                cycle / demand if demand else math.inf,
                "workers",
                "cycle / demand",
                {"cycle": cycle, "demand": demand},
                "bottleneck analysis: Denning and Buzen, ACM Computing Surveys 10 (1978)",
            )
            for name, demand in stations.items()
        ),
        key=float,
    )


def check_machines(machines: Any) -> None:
    """Raises ConfigError if these are no `Machines`."""
    if not isinstance(machines, Machines):
        raise ConfigError("machines", machines, "must be Machines")


def _check(job: Any, machines: Any, costs: Any) -> None:
    if not isinstance(job, PsJob):
        raise ConfigError("job", job, "must be a PsJob")
    check_machines(machines)
    if not isinstance(costs, StepCosts):
        raise ConfigError("costs", costs, "must be StepCosts, as calibrate_ps returns them")


def _network(
    job: PsJob, units: StepUnits, machines: Machines, costs: StepCosts
) -> tuple[dict[str, float], float]:
    """The demand of a step at each station where workers queue, and its seconds elsewhere.

    All ps are alike, and a worker uses them at the same time. So one of them stands for all.
    """
    worker, ps = (costs.overhead * (units @ each) for each in (costs.worker, costs.ps))
    if machines.is_one:
        return {CPU: (worker + ps) / machines.cores}, costs.delay_secs
    share = ps / job.ps
    # A station of several cores is one fast core, and the rest of the service is a delay
    # (Seidmann, Schweitzer and Shalev-Oren 1987).
    delay = costs.delay_secs + worker + share * (1 - 1 / machines.cores)
    ids = units.row * job.id_bytes
    values, per_second = (units.byte - ids) / 2, job.ps * machines.bytes_per_sec
    stations = {
        PS_CPU: share / machines.cores,
        INWARD: (values + ids) / per_second,
        OUTWARD: values / per_second,
    }
    return stations, delay


def _residences(job: PsJob, stations: dict[str, float], delay: float) -> dict[str, float]:
    """Seconds that a step spends at each station, with the waits for other workers."""
    counted = min(job.workers, _MANY_WORKERS)
    found = dict(
        zip(stations, residence_secs(list(stations.values()), delay, counted), strict=True)
    )
    # With so many workers the bottleneck is full, and each further one waits for all others.
    bottleneck = max(stations, key=lambda name: stations[name])
    found[bottleneck] += (job.workers - counted) * stations[bottleneck]
    return found
