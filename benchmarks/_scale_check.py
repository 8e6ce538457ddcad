"""The model against a real job on this machine: where does either stop to get faster?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks._scale_costs import Costs
from benchmarks._scale_job import Job, Machines
from benchmarks._scale_knee import crossing
from benchmarks._scale_limits import cycle_secs, demands
from benchmarks._scale_model import CPU_0, simulate

# What a trainer sends is a small model's, so that this machine can bear tens of them.
MIX = Job(variables=2, dense_bytes=1 << 15, rows=64, split_steps=5, barrier_steps=10)
_SHORTEST_SECS = 0.005
_INTERVALS, _SEED = 4, 1


def paced(machines: Machines, costs: Costs, trainers: float) -> Job:
    """The mix, with trainers that work for so long that the model is full with so many of them."""
    job = replace(MIX, step_secs=0.0, trainers=round(trainers))
    demand = demands(job, machines, costs)[CPU_0]
    secs = trainers * demand - cycle_secs(job, machines, costs)
    return replace(job, step_secs=max(_SHORTEST_SECS, secs))


@dataclass(frozen=True)
class Curve:
    """Steps in a second by number of trainers, and where it stops to rise."""

    steps_per_sec: Mapping[int, float]
    crossing: float


def simulated(job: Job, machines: Machines, costs: Costs, ladder: Sequence[int]) -> Curve:
    """What the model says of a job with each number of trainers."""
    found = {
        number: simulate(
            replace(job, trainers=number), machines, costs, intervals=_INTERVALS, seed=_SEED
        ).steps_per_sec
        for number in ladder
    }
    return Curve(found, crossing(found))


def factor(one: float, other: float) -> float:
    """How far two figures are apart, whichever is larger; 1 where they are equal."""
    return max(one / other, other / one)
