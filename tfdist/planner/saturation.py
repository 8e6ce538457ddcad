"""How many trainers each resource of a ps job can serve, by arithmetic, and what would raise that.

In a closed system a single trainer returns to a resource every `cycle` seconds and uses it for
`demand` seconds. With cycle / demand trainers the resource is always in use. Up to there more
trainers take more steps; beyond it they only wait longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from tfdist.planner.message_costs import MessageCosts
from tfdist.planner.quantity import Quantity
from tfdist.planner.split_job import Machines, Message, Messages, SplitJob, messages
from tfdist.planner.split_simulation import (
    CPU_0,
    CPU_OF_ALL,
    CPU_OTHERS,
    INWARD,
    OUTWARD,
    TABLE_LOCK,
)

ARRIVALS = "arrivals at the barrier"
TRAINERS = "trainers"
_MOST_TRAINERS = 1e9
_SOURCE = "bottleneck analysis: Denning and Buzen, ACM Computing Surveys 10 (1978)"


def first_limit(job: SplitJob, machines: Machines, costs: MessageCosts) -> Quantity:
    """The resource that saturates first, and the number of trainers from which on it is full.

    `job.trainers` is ignored. The value is infinite if no resource ever saturates.
    """
    return ps_limits(job, machines, costs)[0]


def ps_limits(job: SplitJob, machines: Machines, costs: MessageCosts) -> list[Quantity]:
    """The number of trainers from which on each resource is always in use, the lowest first.

    The name of each quantity is that of the resource. `job.trainers` is ignored.
    """
    found = []
    for name in demands(job, machines, costs):

        def both(trainers: float, name: str = name) -> tuple[float, float]:
            of_size = replace(job, trainers=max(1, round(trainers)))
            cycle = cycle_secs(of_size, machines, costs)
            return cycle, demands(of_size, machines, costs)[name]

        def is_full(trainers: float) -> bool:
            cycle, demand = both(trainers)
            return trainers * demand >= cycle

        trainers = _first(is_full)
        cycle, demand = both(min(trainers, _MOST_TRAINERS))
        values = {"cycle": cycle, "demand": demand}
        found.append(Quantity(name, trainers, TRAINERS, "cycle / demand", values, _SOURCE))
    return sorted(found, key=float)


def cycle_secs(job: SplitJob, machines: Machines, costs: MessageCosts) -> float:
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


def demands(job: SplitJob, machines: Machines, costs: MessageCosts) -> dict[str, float]:
    """Seconds for which a step of one trainer uses each resource; all cores are one resource."""
    asked = messages(job, costs)
    nothing = Message()
    variables = Messages(asked.pull, asked.push, nothing, nothing, nothing)
    table = Messages(nothing, nothing, asked.commit, asked.claim, nothing)

    def cpu(message: Message) -> float:
        here = message.trainer_secs if machines.is_one else 0.0
        return (here + message.ps_secs + message.section_secs) / machines.cores

    ps_0 = _per_step(job, asked, cpu)
    another_ps = _per_step(job, variables, lambda m: m.ps_secs / machines.cores)
    found = {TABLE_LOCK: _per_step(job, table, lambda m: m.section_secs)}
    if machines.is_one:
        found[CPU_OF_ALL] = ps_0 + (job.num_ps - 1) * another_ps
    else:
        found[CPU_0] = ps_0
        found[INWARD] = _per_step(job, asked, lambda m: m.bytes_to_ps / machines.bytes_per_sec)
        found[OUTWARD] = _per_step(
            job, asked, lambda m: m.bytes_to_trainer / machines.bytes_per_sec
        )
        if job.num_ps > 1:
            found[CPU_OTHERS] = another_ps
    # While trainers arrive at the barrier, they do nothing else.
    arrival = max(cpu(asked.arrival), asked.arrival.section_secs)
    found[ARRIVALS] = arrival / job.barrier_steps
    return found


def _per_step(job: SplitJob, asked: Messages, each: Callable[[Message], float]) -> float:
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


def changes(job: SplitJob, machines: Machines, costs: MessageCosts) -> list[Quantity]:
    """The first limit after each simple change to the job, the best change first."""
    jobs = {
        "twice as many ps": replace(job, num_ps=2 * job.num_ps),
        "splits twice as long": replace(job, split_steps=2 * job.split_steps),
        "a commit half as often": replace(job, commit_steps=2 * job.commit_steps),
        "a barrier half as often": replace(job, barrier_steps=2 * job.barrier_steps),
    }
    found = [
        replace(first_limit(changed, machines, costs), name=name) for name, changed in jobs.items()
    ]
    return sorted(found, key=float, reverse=True)
