"""How many trainers each resource of a job can serve, by arithmetic, and what would raise that.

In a closed system a single trainer returns to a resource every `cycle` seconds and uses it for
`demand` seconds. With cycle / demand trainers the resource is always in use. Up to there more
trainers take more steps; beyond it they only wait longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks._scale_costs import Costs
from benchmarks._scale_job import Job, Machines, Message, Messages, messages
from benchmarks._scale_model import CPU_0, CPU_OTHERS, INWARD, OUTWARD, TABLE_LOCK

ARRIVALS = "arrivals at the barrier"
_MOST_TRAINERS = 1e9


@dataclass(frozen=True)
class Limit:
    """The limit of one resource.

    Attributes:
        resource: its name.
        trainers: number of trainers from which on it is always in use.
    """

    resource: str
    trainers: float


def limits(job: Job, machines: Machines, costs: Costs) -> list[Limit]:
    """The limits of all resources, the lowest first; `job.trainers` is ignored."""
    found = []
    for name in demands(job, machines, costs):

        def is_full(trainers: float, name: str = name) -> bool:
            of_size = replace(job, trainers=max(1, round(trainers)))
            demand = demands(of_size, machines, costs)[name]
            return trainers * demand >= cycle_secs(of_size, machines, costs)

        found.append(Limit(name, _first(is_full)))
    return sorted(found, key=lambda limit: limit.trainers)


def cycle_secs(job: Job, machines: Machines, costs: Costs) -> float:
    """Seconds of a step of a trainer that never waits, at the costs of a job of this size."""
    asked = messages(job, costs)

    def alone(message: Message) -> float:
        travels = 0.0 if machines.is_one else message.bytes_to_ps + message.bytes_to_trainer
        return (
            message.trainer_secs
            + message.delay_secs
            + message.ps_secs
            + message.section_secs
            + travels / machines.bytes_per_sec
        )

    return job.step_secs + _per_step(job, asked, alone)


def demands(job: Job, machines: Machines, costs: Costs) -> dict[str, float]:
    """Seconds for which a step of one trainer uses each resource; all cores are one resource."""
    asked = messages(job, costs)
    nothing = Message()
    variables = Messages(asked.pull, asked.push, nothing, nothing, nothing)
    table = Messages(nothing, nothing, asked.commit, asked.claim, nothing)

    def cpu(message: Message) -> float:
        here = message.trainer_secs if machines.is_one else 0.0
        return (here + message.ps_secs + message.section_secs) / machines.cores

    found = {
        CPU_0: _per_step(job, asked, cpu),
        TABLE_LOCK: _per_step(job, table, lambda m: m.section_secs),
    }
    # While trainers arrive at the barrier, they do nothing else.
    arrival = max(cpu(asked.arrival), asked.arrival.section_secs)
    found[ARRIVALS] = arrival / job.barrier_steps
    if job.num_ps > 1:
        found[CPU_OTHERS] = _per_step(job, variables, cpu)
    if not machines.is_one:
        found[INWARD] = _per_step(job, asked, lambda m: m.bytes_to_ps / machines.bytes_per_sec)
        found[OUTWARD] = _per_step(
            job, asked, lambda m: m.bytes_to_trainer / machines.bytes_per_sec
        )
    return found


def _per_step(job: Job, asked: Messages, each: Callable[[Message], float]) -> float:
    return (
        each(asked.pull)
        + each(asked.push)
        + each(asked.commit) / job.commit_steps
        + each(asked.claim) / job.split_steps
        + each(asked.arrival) / job.barrier_steps
    )


def _first(holds: Callable[[float], bool]) -> float:
    """The lowest number for which a monotonic condition holds; infinity if there is none."""
    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2 * high
        if high > _MOST_TRAINERS:
            return math.inf
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Change:
    """A change to a job.

    Attributes:
        name: what changes.
        trainers: the lowest limit after the change.
    """

    name: str
    trainers: float


def changes(job: Job, machines: Machines, costs: Costs) -> list[Change]:
    """The effect of each simple change, the best first."""
    jobs = {
        "twice as many ps": replace(job, num_ps=2 * job.num_ps),
        "splits twice as long": replace(job, split_steps=2 * job.split_steps),
        "a commit half as often": replace(job, commit_steps=2 * job.commit_steps),
        "a barrier half as often": replace(job, barrier_steps=2 * job.barrier_steps),
    }
    found = [
        Change(name, limits(changed, machines, costs)[0].trainers) for name, changed in jobs.items()
    ]
    return sorted(found, key=lambda change: -change.trainers)
