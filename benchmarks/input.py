"""The cost of numbered records, splits and the ledger, compared with plain tf.data and its service.

    python -m benchmarks.input [--quick] [--seed S] [--json]

*Epoch*: two workers and one ps, each a process, train a click model asynchronously on the same
eight TFRecord files. A step is a batch of 1024 examples through embeddings of 32 numbers and layers
of 256, 128 and 1, with Adagrad, in float32: some 15 ms of CPU time of a worker and 8 ms of the ps.
This fills two cores, so that any work that a peer adds also adds to the time. The files hold whole
batches, so that all peers have equally many steps. No peer shuffles. Each prefetches two batches
and is not autotuned, since restarting an autotuned iterator may take seconds.

- plain tf.data: the worker's half of the files, until OutOfRangeError; a run has only the update.
- tfdist: splits of 16 batches; the commit is in the run of the update; the record numbers are
  fetched and added to the ledger; the epoch ends with an agreement and a complete audit.
- tf.data service: dynamic sharding, uncompressed, with a tf.data worker in each worker's process.
- each step: the workers wait for one another after each step; with plain tf.data at a `Barrier`,
  with tfdist in `Epoch.should_continue`, on padded batches of half of the records.

The time of an epoch is from the start of the first worker to the end of the last. The peers take
turns in one cluster, in an order that is shuffled in each round; a first round is for warming up.
Ratios are taken within a round. CPU time is that of the workers and the ps together; it hardly
depends on the load of the machine.

*Slow worker*: four workers, one of which sleeps 320 ms for each batch and the others 40 ms. The
ideal is the time to read all records if no worker waits, at the workers' speeds with static shares
in the same round.

*Cost*: CPU time of the ps for single operations, and of a worker for `Epoch.read` with a batch of
1024 numbers. `_input_costs.py` says how the time of the ps is measured.

Results go to standard output, everything else to standard error. The exit code is 1 if a
measurement failed or was wrong. A missed target does not change the exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import _input_costs as costs
from benchmarks import _input_epochs as epochs
from benchmarks import _input_straggler as straggler
from benchmarks._input_model import BATCH
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
    with_spread,
)
from tfdist.errors import TfdistError

_LIMIT_SECS = 200.0  # of each part
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.input", description=(__doc__ or "").splitlines()[0]
    )
    add_options(parser, "short epochs and few rounds")
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    report, failed = _measure_all(arguments.quick, arguments.seed)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print_report(report)
    return int(failed)


def _measure_all(quick: bool, seed: int) -> tuple[dict[str, Any], bool]:
    parts: dict[str, Callable[[], list[Row]]] = {
        "epoch": lambda: _epoch_rows(
            epochs.measure(1 if quick else 6, 32 if quick else 128, seed, _LIMIT_SECS)
        ),
        "slow worker": lambda: _straggler_rows(
            straggler.measure(1 if quick else 3, 80 if quick else 480, seed, _LIMIT_SECS)
        ),
        "cost": lambda: _cost_rows(
            *costs.measure(1 if quick else 5, 10 if quick else 40, _LIMIT_SECS)
        ),
    }
    rows: list[Row] = []
    failed = False
    for part, measure in parts.items():
        log(f"{part} ...")
        try:
            rows += [{"part": part, "note": None} | row for row in measure()]
        except TfdistError as error:
            log(f"{part} failed: {error}")
            rows.append({"part": part, "kind": part, "note": f"failed: {error}"})
            failed = True
    return {"machine": machine(), "seed": seed, "rows": rows, "targets": _targets(rows)}, failed


# Figures.


def _row(kind: str, n: int, values: dict[str, list[float]]) -> Row:
    return {"kind": kind, "n": n, **with_spread(values)}


def _epoch_rows(measured: epochs.Measured) -> list[Row]:
    seconds = {peer: list(map(epochs.elapsed, found)) for peer, found in measured.items()}
    rows = []
    for peer, found in measured.items():
        plain = epochs.BARE_STEPS if peer == epochs.TFDIST_STEPS else epochs.BARE
        steps = [sum(one.done.steps for one in epoch) for epoch in found]
        values = {
            "examples_per_s": ratios([BATCH * n for n in steps], seconds[peer]),
            "step_ms": list(map(epochs.step_ms, found)),
            "cpu_ms": list(map(epochs.cpu_ms, found)),
            "ratio_to_plain": ratios(seconds[peer], seconds[plain]),
            "cpu_ratio_to_plain": ratios(
                list(map(epochs.cpu_ms, found)), list(map(epochs.cpu_ms, measured[plain]))
            ),
            "ratio_to_service": ratios(seconds[peer], seconds[epochs.SERVICE]),
        }
        rows.append(_row(peer, epochs.WORKERS, values))
        begins = [1e3 * each for epoch in found for one in epoch for each in one.done.begins]
        if begins:
            rows[-1]["split_begins_ms"] = statistics.median(begins)
            rows[-1]["spread"]["split_begins_ms"] = spread(begins)
    return rows


def _straggler_rows(measured: straggler.Measured) -> list[Row]:
    rows = []
    for peer, rounds in measured.items():
        values: dict[str, list[float]] = {"seconds": [], "ratio_to_ideal": [], "ends_s": []}
        for shares, static in zip(rounds, measured[straggler.STATIC], strict=True):
            records = sum(share.records for share in shares)
            seconds = straggler.elapsed(shares)
            values["seconds"].append(seconds)
            values["ratio_to_ideal"].append(seconds / straggler.ideal(records, static))
            values["ends_s"].append(straggler.spread_of_ends(shares))
        row = _row(peer, straggler.WORKERS, values)
        row["records"] = [[share.records for share in shares] for shares in rounds]
        rows.append(row)
    return rows


def _cost_rows(of_ps: costs.Costs, of_ledger: dict[str, list[float]]) -> list[Row]:
    rows = [_row(kind, size, {"cpu_ms": rounds}) for (kind, size), rounds in of_ps.items()]
    rows += [
        _row(f"Epoch.read, {kind}", costs.LEDGER_BATCH, {"cpu_ms": rounds})
        for kind, rounds in of_ledger.items()
    ]
    return rows


def _targets(rows: list[Row]) -> list[dict[str, Any]]:
    def found(kind: str, name: str, n: int | None = None, at: str = "median") -> float | None:
        for row in rows:
            if row["kind"] == kind and n in (None, row.get("n")) and "spread" in row:
                return float(row["spread"][name][at])
        return None

    step = found(epochs.TFDIST, "step_ms")
    shares = {}
    for kind in (costs.CONTIGUOUS, costs.SHUFFLED):
        read = found(f"Epoch.read, {kind}", "cpu_ms")
        shares[kind] = None if None in (step, read) else 100 * read / step  # type: ignore[operator]
    return [
        target("an epoch: tfdist / plain", found(epochs.TFDIST, "ratio_to_plain"), 1 / 0.97),
        target(
            "one of four 8 times slower: SplitQueue / ideal",
            found(straggler.QUEUE, "ratio_to_ideal"),
            1.15,
        ),
        target(
            "seconds from the first end to the last, worst round",
            found(straggler.QUEUE, "ends_s", at="max"),
            0.5,
        ),
        target(
            f"ms of the ps's CPU for a claim, {costs.SIZES[0]:,} splits",
            found(costs.CLAIM, "cpu_ms", costs.SIZES[0]),
            2.0,
        ),
        *[
            target(f"read, {kind}: % of a step of tfdist", share, 1.0)
            for kind, share in shares.items()
        ],
    ]


# Printing.


def _print_report(report: dict[str, Any]) -> None:
    console = make_console()
    console.print(f"{describe_machine(report['machine'])}, seed {report['seed']}")
    console.print("Median (min .. max) over the rounds.")
    columns = {
        "epoch": {
            "examples/s": "examples_per_s",
            "/ plain": "ratio_to_plain",
            "/ service": "ratio_to_service",
            "a step, ms": "step_ms",
            "its CPU, ms": "cpu_ms",
            "CPU / plain": "cpu_ratio_to_plain",
            "a split begins, ms": "split_begins_ms",
        },
        "slow worker": {"seconds": "seconds", "/ ideal": "ratio_to_ideal", "ends, s": "ends_s"},
        "cost": {"CPU, ms": "cpu_ms"},
    }
    for part, names in columns.items():
        rows = [row for row in report["rows"] if row["part"] == part]
        table = make_table([part, "n"], [*names, *(["records"] if part == "slow worker" else [])])
        for row in rows:
            if row["note"]:
                table.add_row(row["kind"], "", row["note"].splitlines()[0])
                continue
            cells = [row["kind"], f"{row['n']:,}"]
            cells += [
                _shown(row["spread"][name]) if name in row["spread"] else ""
                for name in names.values()
            ]
            table.add_row(*cells, *map(str, row.get("records", [])[:1]))
        console.print(table)
    print_targets(report["targets"])


def _shown(figures: dict[str, float]) -> str:
    if figures["median"] < 100:
        return shown_range(figures)
    return f"{figures['median']:,.0f} ({figures['min']:,.0f} .. {figures['max']:,.0f})"


if __name__ == "__main__":
    sys.exit(main())
