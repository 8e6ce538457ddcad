"""How well the planner predicts ps jobs: the time of a step, its messages, and its bytes.

    python -m benchmarks.planner [--quick] [--seed S] [--json]

*Steps*: 30 jobs on this machine, of 1 to 8 workers, 1 to 4 ps, 1 to 8 tables, with batches of 64 to
1024 examples and rows of 8 to 64 numbers, asynchronous, in graphs of TensorFlow 1. Eight of them,
chosen before anything is measured, calibrate the costs. The other 22 are predicted, and compared
with their measured steps. `_planner_jobs.py` has the jobs.

The jobs take turns in rounds, in one cluster. A job's figures are medians over the quieter half of
its rounds, in which other processes used the least CPU time.

*Traffic*: messages and bytes of a step over two ps, in a private network, with the headers of TCP
and gRPC; and the planner's formulas for them.

Results go to standard output, everything else to standard error. The exit code is 1 if a
measurement failed. A missed target does not change the exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import _planner_jobs as jobs
from benchmarks import _planner_lab as lab
from benchmarks._report import (
    add_options,
    describe_machine,
    log,
    machine,
    make_console,
    make_table,
    print_targets,
    shown_range,
    target,
    with_spread,
)
from tfdist.errors import TfdistError
from tfdist.planner import (
    Machines,
    MeasuredStep,
    StepCosts,
    calibrate_ps,
    predict_step_secs,
    step_units,
    worker_received,
    worker_sent,
)

STEPS, COSTS, TRAFFIC = "steps", "costs", "traffic"
CALIBRATED, PREDICTED = "calibrated", "predicted"
_DESIGN = 2026  # seed of the jobs that are predicted
_LIMIT_SECS = 600.0
_FACTORS = ("workers", "ps", "tables", "batch", "dim", "zipf")
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.planner", description=(__doc__ or "").splitlines()[0]
    )
    add_options(parser, "two short rounds, and 4 jobs to predict")
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    calibration = jobs.CALIBRATION
    predicted = jobs.others(22, _DESIGN)
    if arguments.quick:
        predicted = predicted[:4]
    shapes = calibration + predicted
    rounds, secs = (2, 0.3) if arguments.quick else (8, 0.5)
    plan = lab.Plan(shapes, tuple(jobs.COUNTED.values()), rounds, secs, arguments.seed)
    log(f"{len(shapes)} jobs ...")
    rows, failed = list[Row](), False
    try:
        found = lab.measure(plan, _LIMIT_SECS)
        rows = _step_rows(shapes, found.steps, len(calibration))
        rows += _traffic_rows(found.counted, found.reason)
    except TfdistError as error:
        log(f"failed: {error}")
        rows.append({"part": STEPS, "kind": STEPS, "note": f"failed: {error}"})
        failed = True
    report = {
        "machine": machine(),
        "seed": arguments.seed,
        "rows": rows,
        "targets": _targets(rows),
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print_report(report)
    return int(failed)


# Figures.


def _step_rows(
    shapes: Sequence[jobs.Shape], steps: Sequence[Sequence[lab.Figures]], calibrated: int
) -> list[Row]:
    here = Machines(cores=len(os.sched_getaffinity(0)), is_one=True)
    quiet = [_quieter_half(rounds) for rounds in steps]
    measured = [
        MeasuredStep(
            shape.job,
            *(
                statistics.median(getattr(each, name) for each in rounds)
                for name in ("step_secs", "worker_secs", "ps_secs")
            ),
        )
        for shape, rounds in zip(shapes, quiet, strict=True)
    ]
    costs = calibrate_ps(measured[:calibrated], here)
    rows = _cost_rows(costs)
    for number, (shape, each, rounds) in enumerate(zip(shapes, measured, quiet, strict=True)):
        predicted = predict_step_secs(each.job, here, costs)
        low, high = predicted.interval or (predicted.value, predicted.value)
        factors = asdict(shape)
        rows.append(
            {
                "part": STEPS,
                "kind": CALIBRATED if number < calibrated else PREDICTED,
                "note": None,
                **{name: factors[name] for name in _FACTORS},
                **with_spread(
                    {
                        "step_ms": [1e3 * one.step_secs for one in rounds],
                        "worker_ms": [1e3 * one.worker_secs for one in rounds],
                        "ps_ms": [1e3 * one.ps_secs for one in rounds],
                        "foreign": [one.foreign for one in rounds],
                    }
                ),
                "predicted_ms": 1e3 * predicted.value,
                "interval_ms": [1e3 * low, 1e3 * high],
                "error": predicted.value / each.step_secs - 1,
            }
        )
    return rows


def _quieter_half(rounds: Sequence[lab.Figures]) -> list[lab.Figures]:
    return sorted(rounds, key=lambda each: each.foreign)[: (len(rounds) + 1) // 2]


def _cost_rows(costs: StepCosts) -> list[Row]:
    plain = {"note": None, "part": COSTS}
    rows: list[Row] = [
        {**plain, "kind": f"{task}, a {unit}", "microseconds": 1e6 * secs}
        for task in ("worker", "ps")
        for unit, secs in asdict(getattr(costs, task)).items()
    ]
    delay = {**plain, "kind": "delay of a step", "microseconds": 1e6 * costs.delay_secs}
    return [*rows, delay, {**plain, "kind": "seconds / CPU seconds", "ratio": costs.overhead}]


def _traffic_rows(counted: Sequence[lab.Counted], reason: str) -> list[Row]:
    rows = []
    for (kind, shape), found in zip(jobs.COUNTED.items(), counted, strict=True):
        units = step_units(shape.job)
        formula = worker_sent(shape.job).value + worker_received(shape.job).value
        row = {
            "part": TRAFFIC,
            "kind": kind,
            "note": reason or None,
            "messages": found.messages,
            "messages_formula": units.message,
        }
        if found.bytes:
            row |= with_spread(
                {
                    "kilobytes": [each / 1e3 for each in found.bytes],
                    "ratio_to_formula": [each / formula for each in found.bytes],
                    "ratio_to_values": [each / units.byte for each in found.bytes],
                }
            )
        rows.append(row)
    return rows


def _targets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    errors = [abs(row["error"]) for row in rows if row["kind"] == PREDICTED]
    ratios = {row["kind"]: row.get("ratio_to_formula") for row in rows if row["part"] == TRAFFIC}
    return [
        target("step time, mean error", statistics.fmean(errors) if errors else None, 0.10),
        target("step time, largest error", max(errors, default=None), 0.25),
        *[
            target(
                f"{kind}: bytes and formula apart",
                None if (ratio := ratios.get(kind)) is None else abs(ratio - 1),
                0.03,
            )
            for kind in jobs.COUNTED
        ],
    ]


# Printing.


def _print_report(report: dict[str, Any]) -> None:
    console = make_console()
    console.print(f"{describe_machine(report['machine'])}, seed {report['seed']}")
    console.print("Median (min .. max) over the rounds.")
    steps = make_table(
        ["job"],
        [*_FACTORS, "CPU, worker", "CPU, ps", "step, ms", "predicted", "error", "other load"],
    )
    costs = make_table(["cost"], ["us"])
    traffic = make_table(["traffic"], ["messages", "formula", "kB", "/ formula", "/ values"])
    for row in report["rows"]:
        if row["part"] == STEPS and row["note"]:
            console.print(row["note"])
        elif row["part"] == STEPS:
            steps.add_row(
                row["kind"],
                *(str(row[name]) for name in _FACTORS),
                f"{row['worker_ms']:.1f}",
                f"{row['ps_ms']:.1f}",
                shown_range(row["spread"]["step_ms"]),
                f"{row['predicted_ms']:.1f}",
                f"{row['error']:+.1%}",
                f"{row['foreign']:.0%}",
            )
        elif row["part"] == COSTS:
            shown = row.get("microseconds", row.get("ratio"))
            costs.add_row(row["kind"], f"{shown:.4g}")
        else:
            spread = row.get("spread", {})
            names = ("kilobytes", "ratio_to_formula", "ratio_to_values")
            cells = [shown_range(spread[name]) for name in names] if spread else [row["note"]]
            formula = f"{row['messages_formula']:.0f}"
            traffic.add_row(row["kind"], str(row["messages"]), formula, *cells)
    for table in (steps, costs, traffic):
        console.print(table)
    print_targets(report["targets"])


if __name__ == "__main__":
    sys.exit(main())
