"""Compares the model with a real job on this machine: where does each stop getting faster?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks._scale_knee import crossing
from tfdist.planner.message_costs import MessageCosts
from tfdist.planner.saturation import cycle_secs, demands
from tfdist.planner.split_job import Machines, SplitJob
from tfdist.planner.split_simulation import CPU_OF_ALL, simulate_split_job

# A small model, so that this machine can run tens of trainers.
MIX = SplitJob(variables=2, dense_bytes=1 << 15, rows=64, split_steps=5, barrier_steps=10)
_SHORTEST_SECS = 0.005
_INTERVALS, _SEED = 4, 1


def paced(machines: Machines, costs: MessageCosts, trainers: float) -> SplitJob:
    """The mix, with a step time for which the model is full at `trainers` trainers."""
    job = replace(MIX, step_secs=0.0, trainers=round(trainers))
    demand = demands(job, machines, costs)[CPU_OF_ALL]
    secs = trainers * demand - cycle_secs(job, machines, costs)
    return replace(job, step_secs=max(_SHORTEST_SECS, secs))


@dataclass(frozen=True)
class Curve:
    """Steps a second by number of trainers, and the crossing of the curve."""

    steps_per_sec: Mapping[int, float]
    crossing: float


def simulated(
    job: SplitJob, machines: Machines, costs: MessageCosts, ladder: Sequence[int]
) -> Curve:
    """The model's curve of a job."""
    found = {
        number: simulate_split_job(
            replace(job, trainers=number), machines, costs, intervals=_INTERVALS, seed=_SEED
        ).steps_per_sec
        for number in ladder
    }
    return Curve(found, crossing(found))


def factor(one: float, other: float) -> float:
    """The factor between two figures, at least 1."""
    return max(one / other, other / one)
