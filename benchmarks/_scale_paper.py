"""Jobs in the model: their rates at the measured costs, their limits, and useful changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks._scale_costs import Costs
from benchmarks._scale_job import Job, Machines
from benchmarks._scale_limits import changes, cycle_secs, limits
from benchmarks._scale_model import simulate

Row = dict[str, Any]


def job_rows(job: Job, machines: Machines, costs: Costs, trainers: Sequence[int]) -> list[Row]:
    """The simulated rate, by number of trainers."""
    rows = []
    for number in trainers:
        of_size = replace(job, trainers=number)
        run = simulate(of_size, machines, costs)
        busiest = max(run.use, key=lambda name: run.use[name])
        alone = 1 / cycle_secs(of_size, machines, costs)
        rows.append(
            {
                "part": "job",
                "num_ps": job.num_ps,
                "n": number,
                "steps_per_sec": run.steps_per_sec,
                "of_ideal": run.steps_per_sec / (number * alone),
                "busiest": busiest,
                "use": run.use,
                "shares": run.shares,
            }
        )
    return rows


def limit_rows(job: Job, machines: Machines, costs: Costs) -> list[Row]:
    """The number of trainers at which each resource is full, the lowest first."""
    return [
        {
            "part": "limit",
            "num_ps": job.num_ps,
            "kind": limit.resource,
            "trainers": limit.trainers if math.isfinite(limit.trainers) else None,
        }
        for limit in limits(job, machines, costs)
    ]


def change_rows(job: Job, machines: Machines, costs: Costs) -> list[Row]:
    """The lowest limit after each change, the best change first."""
    return [
        {
            "part": "change",
            "num_ps": job.num_ps,
            "kind": change.name,
            "trainers": change.trainers,
        }
        for change in changes(job, machines, costs)
    ]
