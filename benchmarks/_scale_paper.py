"""Jobs in the model: their rates at the measured costs, their limits, and useful changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tfdist.planner.message_costs import MessageCosts
from tfdist.planner.saturation import changes, cycle_secs, ps_limits
from tfdist.planner.split_job import Machines, SplitJob
from tfdist.planner.split_simulation import simulate_split_job

Row = dict[str, Any]


def job_rows(
    job: SplitJob, machines: Machines, costs: MessageCosts, trainers: Sequence[int]
) -> list[Row]:
    """The simulated rate, by number of trainers."""
    rows = []
    for number in trainers:
        of_size = replace(job, trainers=number)
        run = simulate_split_job(of_size, machines, costs)
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


def limit_rows(job: SplitJob, machines: Machines, costs: MessageCosts) -> list[Row]:
    """The number of trainers at which each resource is full, the lowest first."""
    return [
        {
            "part": "limit",
            "num_ps": job.num_ps,
            "kind": limit.name,
            "trainers": limit.value if math.isfinite(limit.value) else None,
        }
        for limit in ps_limits(job, machines, costs)
    ]


def change_rows(job: SplitJob, machines: Machines, costs: MessageCosts) -> list[Row]:
    """The lowest limit after each change, the best change first."""
    return [
        {
            "part": "change",
            "num_ps": job.num_ps,
            "kind": change.name,
            "trainers": change.value,
        }
        for change in changes(job, machines, costs)
    ]
