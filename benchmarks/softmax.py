"""The cost of a softmax over many classes: CPU time, bytes between processes, and memory.

    python -m benchmarks.softmax [--quick] [--seed S] [--json] [--torch PYTHON]
    python -m benchmarks.softmax --plot DIR [--quick] [--seed S]

A step has a batch of 256 examples, inputs of 64 numbers, and a table of float32 that Adagrad
updates. Labels follow Zipf's law, as the sampler does. `_softmax_peers.py` has the losses.

*One process*: CPU time of a step in a process with tables of 10k to 10M classes. The sizes and the
losses take turns in each round. `tf.nn.sampled_softmax_loss` is TensorFlow's own loss, with its own
sampler and the same optimizer. PyTorch's losses run in a process of their own, with SGD, which
costs less than Adagrad; they need PyTorch here or in the interpreter of --torch. Its
AdaptiveLogSoftmaxWithLoss has the cutoffs n / 20 and n / 4.

*Two ps*: the same, and the CPU time is that of a worker and two ps together, each a process.

*Traffic*: bytes of a step over two ps, in a private network, with the headers of TCP and gRPC.
Theory is the rows of the labels and the candidates, and their gradients.

*Memory*: the peak of a process that trains 10M classes, compared with the table and its slots; and,
in another process at the same time, what the exact perplexity of 1M classes needs above the table.

The full softmax is trained up to 100k classes, where a step takes half a second; one forward pass
is measured at 1M too. The largest table is left out if the machine has not enough free memory.

Results go to standard output, everything else to standard error. The exit code is 1 if a
measurement failed. A missed target does not change the exit code.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _softmax_memory as memory
from benchmarks import _softmax_over_ps as over_ps
from benchmarks import _softmax_peers as peers
from benchmarks import _softmax_plot as plot
from benchmarks import _softmax_steps as steps
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
    target,
    with_spread,
)
from benchmarks._softmax_peers import Peer
from benchmarks._softmax_steps import Costs
from tfdist.errors import TfdistError

_LIMIT_SECS = 600.0  # of each part
LOCAL, OVER_PS, TRAFFIC, MEMORY = "one process", "two ps", "traffic", "memory"
TRAINING, EVALUATION = "training, peak / (table + slots)", "exact evaluation, MB above the table"
_FEW = str(Peer(peers.SAMPLED, peers.FEW))
_SMALL, _LARGE = peers.SIZES[0], peers.SIZES[-1]
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.softmax", description=(__doc__ or "").splitlines()[0]
    )
    add_options(parser, "one round of short blocks, and up to 1M classes")
    has_torch = importlib.util.find_spec("torch") is not None
    parser.add_argument(
        "--torch",
        metavar="PYTHON",
        default=sys.executable if has_torch else "",
        help="an interpreter with PyTorch (default: this one, if it has it)",
    )
    parser.add_argument(
        "--plot", metavar="DIR", type=Path, help="only write the figures of the documentation here"
    )
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if arguments.plot:
        if importlib.util.find_spec("matplotlib") is None:
            sys.exit("benchmarks.softmax: --plot needs matplotlib, which is in the extra 'docs'")
        for path in plot.write(arguments.plot, arguments.quick, arguments.seed):
            print(path)
        return 0
    report, failed = _measure_all(arguments.quick, arguments.seed, arguments.torch)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print_report(report)
    return int(failed)


def _measure_all(quick: bool, seed: int, torch: str) -> tuple[dict[str, Any], bool]:
    sizes = peers.SIZES[:-1] if quick else steps.sizes_that_fit()
    rounds, scale = (1, 1) if quick else (7, 5)
    plan = steps.Plan(rounds, scale, seed, sizes, torch)
    parts: dict[str, Callable[[], list[Row]]] = {
        LOCAL: lambda: _step_rows(steps.measure_local(plan, _LIMIT_SECS)),
        OVER_PS: lambda: _rows_over_ps(over_ps.measure(plan, _LIMIT_SECS)),
        MEMORY: lambda: _memory_rows(1 if quick else 3),
    }
    rows: list[Row] = []
    failed = False
    for part, measure in parts.items():
        log(f"{part} ...")
        try:
            rows += [{"part": part, "note": None} | row for row in measure()]
        except (TfdistError, OSError) as error:
            log(f"{part} failed: {error}")
            rows.append({"part": part, "kind": part, "note": f"failed: {error}"})
            failed = True
    if not torch:
        note = "PyTorch is not installed here; pass its interpreter with --torch"
        rows.append({"part": LOCAL, "kind": "torch", "note": note})
    for classes in set(peers.SIZES) - set(sizes):
        note = "left out with --quick" if quick else "left out: less than 10 GB of memory is free"
        rows.append({"part": LOCAL, "kind": f"{classes:,} classes", "note": note})
    return {"machine": machine(), "seed": seed, "rows": rows, "targets": _targets(rows)}, failed


# Figures.


def _step_rows(costs: Costs) -> list[Row]:
    rows = []
    for (kind, classes), rounds in costs.items():
        values = {"cpu_ms": rounds}
        if (smallest := costs.get((kind, _SMALL))) and classes != _SMALL:
            values["ratio_to_10k"] = ratios(rounds, smallest)
        for sampled in (peers.FEW, peers.MANY):
            if kind in (str(Peer(peers.SAMPLED, sampled)), str(Peer(peers.ON_PS, sampled))):
                theirs = costs[str(Peer(peers.TF_NN, sampled)), classes]
                values["ratio_to_tf_nn"] = ratios(rounds, theirs)
        rows.append({"kind": kind, "n": classes, **with_spread(values)})
    return rows


def _rows_over_ps(measured: over_ps.Found) -> list[Row]:
    rows = _step_rows(measured.costs)
    if measured.reason:
        return [*rows, {"part": TRAFFIC, "kind": TRAFFIC, "note": measured.reason}]
    return rows + [{"part": TRAFFIC} | row for row in _traffic_rows(measured.bytes)]


def _traffic_rows(found: Costs) -> list[Row]:
    theories = {
        str(Peer(peers.SAMPLED, sampled)): over_ps.theory(peers.BATCH, sampled, peers.DIM)
        for sampled in (peers.FEW, peers.MANY)
    }
    rows = []
    for (kind, classes), rounds in found.items():
        values = {"kilobytes": [each / 1e3 for each in rounds]}
        if kind in theories:
            values["ratio_to_theory"] = [each / theories[kind] for each in rounds]
        if classes != _SMALL:
            values["ratio_to_10k"] = ratios(rounds, found[kind, _SMALL])
        rows.append({"kind": kind, "n": classes, **with_spread(values)})
    return rows


def _memory_rows(rounds: int) -> list[Row]:
    needed, ratios_found = zip(*(memory.measure(_LIMIT_SECS) for _ in range(rounds)), strict=True)
    figures = with_spread({"megabytes": list(needed)})
    evaluation = {"kind": EVALUATION, "n": memory.EVALUATION_CLASSES, **figures}
    if None in ratios_found:
        note = "left out: less than 9 GB of memory is free"
        return [evaluation, {"kind": TRAINING, "note": note}]
    figures = with_spread({"ratio_to_table": list(ratios_found)})
    return [evaluation, {"kind": TRAINING, "n": memory.TRAINING_CLASSES, **figures}]


def _targets(rows: list[Row]) -> list[dict[str, Any]]:
    def found(part: str, kind: str, name: str, n: int | None = None) -> float | None:
        for row in rows:
            if (row["part"], row["kind"]) == (part, kind) and n in (None, row.get("n")):
                return row.get(name)
        return None

    return [
        *[
            target(
                f"{_FEW}, {part}: CPU at 10M / at 10k",
                found(part, _FEW, "ratio_to_10k", _LARGE),
                1.3,
            )
            for part in (LOCAL, OVER_PS)
        ],
        *[
            target(f"{kind}: bytes / theory", found(TRAFFIC, kind, "ratio_to_theory"), 1.1)
            for kind in (_FEW, str(Peer(peers.SAMPLED, peers.MANY)))
        ],
        target(
            "full_softmax: bytes at 100k / at 10k",
            found(TRAFFIC, peers.CHUNKED, "ratio_to_10k", over_ps.SIZES[-1]),
            1.05,
        ),
        target(TRAINING, found(MEMORY, TRAINING, "ratio_to_table"), 1.2),
        target(EVALUATION, found(MEMORY, EVALUATION, "megabytes"), 200.0),
    ]


# Printing.

_STEP_COLUMNS = {"CPU, ms": "cpu_ms", "/ at 10k": "ratio_to_10k", "/ tf.nn": "ratio_to_tf_nn"}
_TABLES = {
    LOCAL: _STEP_COLUMNS,
    OVER_PS: _STEP_COLUMNS,
    TRAFFIC: {"kB": "kilobytes", "/ theory": "ratio_to_theory", "/ at 10k": "ratio_to_10k"},
    MEMORY: {"MB": "megabytes", "/ (table + slots)": "ratio_to_table"},
}


def _print_report(report: dict[str, Any]) -> None:
    console = make_console()
    console.print(f"{describe_machine(report['machine'])}, seed {report['seed']}")
    console.print("Median (min .. max) over the rounds.")
    for part, names in _TABLES.items():
        table = make_table([part, "classes"], list(names))
        for row in report["rows"]:
            if row["part"] != part:
                continue
            if row["note"]:
                table.add_row(row["kind"], "", row["note"].splitlines()[0])
                continue
            cells = [_shown(row["spread"].get(name)) for name in names.values()]
            table.add_row(row["kind"], f"{row['n']:,}", *cells)
        console.print(table)
    print_targets(report["targets"])


def _shown(figures: dict[str, float] | None) -> str:
    if figures is None:
        return ""
    if figures["median"] < 100:
        return shown_range(figures)
    return f"{figures['median']:,.0f} ({figures['min']:,.0f} .. {figures['max']:,.0f})"


if __name__ == "__main__":
    sys.exit(main())
