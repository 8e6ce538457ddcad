"""How many trainers a job can have: measured costs, a queueing model, and a real job as a check.

    python -m benchmarks.scale [--quick] [--seed S] [--json]
    python -m benchmarks.scale --costs REPORT.json [--num-ps N ...] [--step-secs S] ... [--json]

*Costs*: CPU time of the ps and of a trainer for each kind of message, measured in bursts from
several trainers, and the latency of a single message.

*Check*: a real job of up to 64 trainers, and the same job in the model. The real trainers are
threads of one process whose work is to sleep; the model has the cores of this machine for all of
them. The number of trainers is raised step by step. The crossing is where the line through the
fewest trainers reaches the highest rate. The job is chosen so that the model's crossing is a
quarter of the most trainers. The target: the real crossing differs by a factor of 1.5 at most.

*Jobs*: the model for many numbers of trainers, on machines of their own, and of ps; the number of
trainers at which each resource is full; and the effect of changes to the job. `--costs` computes
only this part, in seconds, from the costs of an earlier report.

docs/scale.md says what the model assumes. Results go to standard output, everything else to
standard error. The exit code is 1 if a measurement failed. A missed target does not change the exit
code.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import _scale_check as check
from benchmarks import _scale_paper as paper
from benchmarks._report import add_options, log, machine, ratios, target, with_spread
from benchmarks._scale_kinds import Samples, Sizes, costs_of
from benchmarks._scale_knee import crossing, last_growth
from benchmarks._scale_print import print_report
from tfdist.errors import ConfigError, TfdistError
from tfdist.planner.message_costs import MessageCosts
from tfdist.planner.split_job import Machines, SplitJob

if TYPE_CHECKING:
    from benchmarks import _scale_lab as lab

_NUM_PS = (1, 8)
_LIMIT_SECS = 400.0  # of the measurement
_BOUND = 1.5
Row = dict[str, Any]


@dataclass(frozen=True)
class Extent:
    """How much to measure and to simulate."""

    sizes: Sizes
    ladder: tuple[int, ...]
    rounds: int
    trainers: tuple[int, ...]


FULL = Extent(Sizes(), (2, 8, 16, 32, 64), 5, (16, 64, 256, 1024, 4096))
QUICK = Extent(Sizes(present=4, many_parties=512), (2, 8, 16), 2, (16, 64, 256, 1024))


def main() -> int:
    arguments = _arguments()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    extent = QUICK if arguments.quick else FULL
    costs, rows, targets = arguments.costs, list[Row](), list[dict[str, Any]]()
    if costs is None:
        costs, rows, targets = _measure(extent, arguments.seed)
    if costs is not None:
        log("jobs in the model ...")
        for num_ps in arguments.num_ps:
            given = replace(arguments.job, num_ps=num_ps), arguments.machines, costs
            rows += paper.job_rows(*given, extent.trainers)
            rows += paper.limit_rows(*given) + paper.change_rows(*given)
    report = {
        "machine": machine(),
        "seed": arguments.seed,
        "job": asdict(arguments.job),
        "machines": asdict(arguments.machines),
        "costs": None if costs is None else costs.to_json(),
        "rows": rows,
        "targets": targets,
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report)
    return int(any(row.get("note") for row in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.scale", description=(__doc__ or "").splitlines()[0]
    )
    add_options(parser, "fewer trainers and rounds")
    parser.add_argument(
        "--costs", metavar="REPORT", help="measure nothing; read the costs of a run with --json"
    )
    parser.add_argument("--num-ps", type=int, nargs="+", default=_NUM_PS, metavar="N")
    for kind in (SplitJob, Machines):
        for field in _options(kind):
            option = f"--{field.name.replace('_', '-')}"
            parser.add_argument(
                option, type=type(field.default), default=field.default, metavar="N"
            )
    arguments = parser.parse_args()
    given = vars(arguments)
    try:
        arguments.job = SplitJob(**{field.name: given[field.name] for field in _options(SplitJob)})
        arguments.machines = Machines(
            **{field.name: given[field.name] for field in _options(Machines)}
        )
        if arguments.costs is not None:
            arguments.costs = _read_costs(arguments.costs)
    except ConfigError as error:
        parser.error(str(error))
    return arguments


def _options(kind: type[SplitJob] | type[Machines]) -> list[Field[Any]]:
    """The fields that are options; trainers and ps are not, because a report has several."""
    return [field for field in fields(kind) if field.name not in ("trainers", "num_ps", "is_one")]


def _read_costs(path: str) -> MessageCosts:
    try:
        return MessageCosts.from_json(json.loads(Path(path).read_text("utf-8"))["costs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        rule = f"a report of this benchmark with costs ({type(error).__name__}: {error})"
        raise ConfigError("--costs", path, rule) from error


# Measuring.


def _measure(
    extent: Extent, seed: int
) -> tuple[MessageCosts | None, list[Row], list[dict[str, Any]]]:
    """The costs, rows and targets; no costs if the measurement failed."""
    from benchmarks import _scale_lab as lab  # imports TensorFlow, which `--costs` does not need

    here = Machines(cores=len(os.sched_getaffinity(0)), is_one=True)
    sizes, costs, rows, factors = extent.sizes, None, list[Row](), list[float]()
    log("costs and a real job ...")
    try:
        found = lab.measure(lab.Order(sizes, here, extent.ladder, extent.rounds, seed, _LIMIT_SECS))
    except TfdistError as error:
        log(f"failed: {error}")
        rows.append({"part": "cost", "kind": "all", "note": f"failed: {error}"})
    else:
        samples = {
            kind: [each.pairs[kind] for each in found.rounds] for kind in found.rounds[0].pairs
        }
        costs, rows = costs_of(samples, sizes), _cost_rows(samples)
        check_rows, factors = _check_rows(found, sizes, here)
        rows += check_rows
    name = "crossing of the model and the real one apart by the factor"
    median = statistics.median(factors) if factors else None
    return (
        costs,
        rows,
        [
            target(f"{name}, median of rounds", median, _BOUND),
            target(f"{name}, worst round", max(factors, default=None), _BOUND),
        ],
    )


def _cost_rows(samples: Samples) -> list[Row]:
    rows = []
    for kind, pairs in samples.items():
        values = {
            f"{name}_ms": [1e3 * getattr(getattr(pair, way), part) for pair in pairs]
            for name, way, part in (
                ("ps", "burst", "ps"),
                ("trainer", "burst", "trainer"),
                ("alone_ps", "alone", "ps"),
                ("alone_trainer", "alone", "trainer"),
                ("alone", "alone", "wall"),
            )
        }
        rows.append(_row("cost", kind.name, kind.size, values) | {"parties": kind.parties or None})
    return rows


def _check_rows(found: lab.Found, sizes: Sizes, here: Machines) -> tuple[list[Row], list[float]]:
    """A row for each number of trainers and one for the crossings, and their factors apart.

    The model of each round has the costs of that round.
    """
    job = replace(check.MIX, step_secs=found.step_secs)
    numbers = sorted(found.rounds[0].rungs)
    models, real = [], []
    for each in found.rounds:
        costs = costs_of({kind: [pair] for kind, pair in each.pairs.items()}, sizes)
        models.append(check.simulated(job, here, costs, numbers))
        real.append({number: each.rungs[number].steps_per_sec for number in numbers})
    rows = []
    for number in numbers:
        rungs = [each.rungs[number] for each in found.rounds]
        modelled = [model.steps_per_sec[number] for model in models]
        steps = [rung.steps_per_sec for rung in rungs]
        values = {
            "steps_per_sec": steps,
            "model": modelled,
            "ratio": ratios(steps, modelled),
            "ps_ms": [1e3 * rung.ps_secs for rung in rungs],
            "trainer_ms": [1e3 * rung.trainer_secs for rung in rungs],
        }
        rows.append(_row("check", "trainers", number, values))
    crossings, modelled = [crossing(each) for each in real], [model.crossing for model in models]
    values = {
        "trainers": crossings,
        "model": modelled,
        "ratio": ratios(crossings, modelled),
        "last_growth": [last_growth(each) for each in real],
    }
    rows.append(_row("check", "crossing", 0, values) | {"step_secs": found.step_secs})
    return rows, [check.factor(*pair) for pair in zip(crossings, modelled, strict=True)]


def _row(part: str, kind: str, n: int, values: Mapping[str, list[float]]) -> Row:
    return {"part": part, "kind": kind, "n": n, **with_spread(values)}


if __name__ == "__main__":
    sys.exit(main())
