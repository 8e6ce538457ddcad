"""The cost of a barrier cycle, compared with other barriers and with the least possible cost.

    python -m benchmarks.barrier [--quick] [--json]
    python -m benchmarks.barrier --stress SECONDS [--seed S] [--json]

The limit is one no-op `session.run` on the ps for each party, all at the same time, sent in the
same way as the barrier's messages. In each round the peers run one after another, in a shuffled
order. The figure of a peer in a round is the time that a party takes for the cycles of its block,
divided by their number and averaged over the parties. Ratios are taken within a round, so that
other load on the machine affects both sides.

Results go to standard output, everything else to standard error. The exit code is 1 if a
measurement failed or, under stress, if a trainer was released early or waited too long. A missed
target does not change the exit code.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._barrier_peers import GLOO, LIMIT, PEERS, QUEUE, Measured, Plan, Stamps, measure
from benchmarks._barrier_stress import LATE_SECS, SLOW_SECS, run_stress
from benchmarks._report import (
    add_options,
    describe_machine,
    log,
    machine,
    make_console,
    make_table,
    print_targets,
    ratios,
    shown_range,
    spread,
    target,
)
from tfdist.errors import TfdistError

SIZES = {"processes": [2, 4, 8], "threads": [16, 64, 256]}
QUICK_SIZES = {"processes": [2], "threads": [4]}
STRESS_SIZES = {"processes": [4, 8], "threads": [16]}
_ROUNDS, _QUICK_ROUNDS = 15, 4
_LIMIT_SECS, _QUICK_LIMIT_SECS = 900.0, 180.0
_PARTY_LIMIT_SECS = 5.0  # threads build the graphs of all parties one after another

Key = tuple[str, int, str]  # backend, parties, peer
# In ms, one for each round.
RoundMeans = dict[Key, list[float]]


def main() -> int:
    arguments = _arguments()
    if arguments.stress is not None:
        return _stress(arguments)
    report, failed = _measure_all(arguments)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print_report(report)
    return int(failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.barrier", description=(__doc__ or "").splitlines()[0]
    )
    add_options(parser, "only 2 processes and 4 threads, and few cycles")
    parser.add_argument(
        "--stress",
        type=float,
        metavar="SECONDS",
        help="a test with random timeouts and kills, this long for each number of parties",
    )
    for backend in SIZES:
        parser.add_argument(
            f"--{backend}",
            type=int,
            nargs="*",
            metavar="N",
            help=f"numbers of {backend}; without a number, no {backend} are measured",
        )
    arguments = parser.parse_args()
    if arguments.stress is not None:
        sizes = STRESS_SIZES
    else:
        sizes = QUICK_SIZES if arguments.quick else SIZES
    arguments.sizes = []
    for backend, numbers in sizes.items():
        chosen = getattr(arguments, backend)
        arguments.sizes += [(backend, n) for n in (numbers if chosen is None else chosen)]
    if any(parties < 2 for _, parties in arguments.sizes):
        parser.error("a barrier needs at least 2 parties")
    return arguments


# Measuring.


def _measure_all(arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    rows: list[dict[str, Any]] = []
    means: RoundMeans = {}
    failed = False
    for backend, parties in arguments.sizes:
        log(f"{parties} {backend} ...")
        plan = Plan(
            backend=backend,
            parties=parties,
            rounds=_QUICK_ROUNDS if arguments.quick else _ROUNDS,
            cycles=20 if arguments.quick else max(10, min(100, 800 // parties)),
            seed=arguments.seed,
            limit_secs=(_QUICK_LIMIT_SECS if arguments.quick else _LIMIT_SECS)
            + _PARTY_LIMIT_SECS * parties,
        )
        try:
            measured, left_out = measure(plan)
        except TfdistError as error:
            log(f"{parties} {backend} failed: {error}")
            measured, left_out = {}, dict.fromkeys(PEERS[backend], f"failed: {error}")
            failed = True
        for peer in PEERS[backend]:
            row: dict[str, Any] = {"kind": peer, "n": parties, "backend": backend}
            if peer in measured:
                means[backend, parties, peer] = [_mean_ms(block) for block in measured[peer]]
                row |= _figures(peer, measured)
            rows.append(row | {"note": left_out.get(peer)})
    report = {
        "machine": machine(),
        "seed": arguments.seed,
        "rows": rows,
        "targets": _targets(means),
    }
    return report, failed


def _mean_ms(block: list[Stamps]) -> float:
    """The figure of a round: the mean time of a cycle."""
    return 1000 * statistics.mean((one[-1] - one[0]) / (len(one) - 1) for one in block)


def _cycles_ms(block: list[Stamps]) -> Any:
    """The time of every cycle of every party."""
    return 1000 * np.concatenate([np.diff(stamps) for stamps in block])


def _figures(peer: str, measured: Measured) -> dict[str, Any]:
    """The figures of a peer: medians over the rounds, and their spread."""
    by_round = {kind: [_mean_ms(block) for block in blocks] for kind, blocks in measured.items()}
    values = {"cycle_ms": by_round[peer]}
    for name, other in (("ratio_to_noops", LIMIT), ("ratio_to_gloo", GLOO)):
        if other in by_round:
            values[name] = ratios(by_round[peer], by_round[other])
    cycles = np.concatenate([_cycles_ms(block) for block in measured[peer]])
    spreads = {name: spread(rounds) for name, rounds in values.items()}
    return {
        "cycle_ms": spreads["cycle_ms"]["median"],
        "p50_ms": float(np.percentile(cycles, 50)),
        "p99_ms": float(np.percentile(cycles, 99)),
        "ratio_to_noops": spreads["ratio_to_noops"]["median"],
        "ratio_to_gloo": spreads["ratio_to_gloo"]["median"] if GLOO in by_round else None,
        "spread": spreads,
    }


def _targets(means: RoundMeans) -> list[dict[str, Any]]:
    targets = [
        *[_against("processes", n, LIMIT, "the no-ops", 1.25, means) for n in (2, 4, 8)],
        *[_against("threads", n, LIMIT, "the no-ops", 1.3, means) for n in (16, 64)],
        *[_against("processes", n, GLOO, "gloo's barrier", 1.0, means) for n in (4, 8)],
    ]
    few, many = means.get(("threads", 16, QUEUE)), means.get(("threads", 256, QUEUE))
    value = None
    if few and many:
        value = (statistics.median(many) / 256) / (statistics.median(few) / 16)
    targets.append(target("an arrival at 256 threads / at 16", value, 1.2))
    return targets


def _against(
    backend: str, parties: int, peer: str, name: str, bound: float, means: RoundMeans
) -> dict[str, Any]:
    ours, theirs = means.get((backend, parties, QUEUE)), means.get((backend, parties, peer))
    value = statistics.median(ratios(ours, theirs)) if ours and theirs else None
    return target(f"queue / {name}, {parties} {backend}", value, bound)


# Stress.


def _stress(arguments: argparse.Namespace) -> int:
    rows = []
    for backend, parties in arguments.sizes:
        log(f"{parties} {backend}, seed {arguments.seed} ...")
        row = run_stress(backend, parties, arguments.stress, arguments.seed)
        rows.append(row)
        for note in [*row["notes"], *filter(None, [row["error"]])]:
            log(note)
    sums = {name: sum(row[name] for row in rows) for name in ("early_releases", "overdue_waits")}
    if arguments.json:
        report = {"machine": machine(), "seed": arguments.seed, "seconds": arguments.stress}
        print(json.dumps(report | sums | {"rows": rows}, indent=2))
    else:
        _print_stress(rows)
    return int(any(sums.values()) or any(row["error"] for row in rows))


# Printing.


def _print_report(report: dict[str, Any]) -> None:
    console = make_console()
    console.print(f"{describe_machine(report['machine'])}, seed {report['seed']}")
    console.print("Time of a cycle in ms, and ratios: median (min .. max) over the rounds.")
    columns = ["p50", "p99", "cycle", "to the no-ops", "to gloo"]
    table = make_table(["parties", "barrier"], columns)
    before = None
    for row in report["rows"]:
        size = f"{row['n']} {row['backend']}"
        if before not in (None, size):
            table.add_section()
        cells = ["" if size == before else size, row["kind"]]
        before = size
        if row["note"]:
            cells += ["", "", row["note"].splitlines()[0]]
        else:
            cells += [f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}"]
            cells += [shown_range(each) for each in row["spread"].values()]
        table.add_row(*cells)
    console.print(table)
    print_targets(report["targets"])


def _print_stress(rows: list[dict[str, Any]]) -> None:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "generations": lambda row: str(row["generations"]),
        "waits": lambda row: str(row["waits"]),
        "timeouts": lambda row: str(row["timeouts"]),
        "kills": lambda row: str(row["kills"]),
        "early releases": lambda row: str(row["early_releases"]),
        f"over {LATE_SECS:.0f} s late": lambda row: str(row["overdue_waits"]),
        "latest, ms": lambda row: f"{row['longest_overrun_ms']:.0f}",
        f"released after {SLOW_SECS:.0f} s": lambda row: str(row["slow_releases"]),
        "slowest release, ms": lambda row: f"{row['longest_release_ms']:.0f}",
        "seed": lambda row: str(row["seed"]),
        "error": lambda row: (row["error"] or "none").splitlines()[0],
    }
    table = make_table(["parties"], list(columns))
    for row in rows:
        cells = [cell(row) for cell in columns.values()]
        table.add_row(f"{row['parties']} {row['backend']}", *cells)
    make_console().print(table)


if __name__ == "__main__":
    sys.exit(main())
