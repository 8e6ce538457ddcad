"""The prediction server under load, compared with FastAPI, with its HTTP library, and with calls.

    python -m benchmarks.serving [--quick] [--seed S] [--json]

The model is a small recommender: two tables of 10,000 x 32 numbers and the layers 64 -> 32 -> 1.
wrk sends one fixed request over each of its connections, again and again. A load of 16 x 1 is 16
connections with 1 row in each request. wrk runs on the same cores as the servers, with a thread for
each core, so that every server has less than the whole machine. The peers take turns within each
load, in an order that is shuffled in each round; a first round is for warming up. Ratios are taken
within a round.

- tfdist-server: with its default options, once with `--max-batch-rows 64`, and once without the
  operations of oneDNN, which make large models fast and small ones slow.
- FastAPI: uvicorn with uvloop and httptools, one process for each core, each with the model and a
  port of its own. The threads of wrk use the ports in turn, so that the processes have equally many
  connections. `_serving_fastapi.py` says what else makes it fast. *Plain* is the same but for the
  handler, which is written as in FastAPI's tutorial.
- echo: the HTTP library of tfdist-server answers with as many bytes as the model's answer has. This
  is what the server could do if reading, computing and writing the values cost nothing.
- calls: a C++ program calls the model in its own process, from one thread and from one for each
  core. Its figures are calls, without a request.

*CPU* is the CPU time of the server for a request, without that of wrk. Of tfdist-server it has two
parts, by its own metrics: the model ran (*session*), or it did not (*transport*). *Queue* is the
mean time that a request waited for a thread, which uses no CPU. *Cores used* is the share of all
cores that was busy; *by others* is the part of it that was neither the server nor wrk. Work of
others makes the rates lower and p99 much longer; it changes the CPU time of a request less.

Results go to standard output, everything else to standard error. The exit code is 1 if a peer is
missing or failed. A missed target does not change the exit code. The first run builds the server
and two C++ programs, which takes a minute more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import psutil

from benchmarks import _serving_model as model
from benchmarks import _serving_servers as servers
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
from benchmarks._serving_load import Load, measure
from benchmarks._serving_servers import CORES, MeasureError, Program, Server
from tfdist.errors import TfdistError
from tfdist.serving import ModelServer

_ROUNDS, _QUICK_ROUNDS = 7, 1
_SECS, _QUICK_SECS = 3, 1

TFDIST, BATCHED = "tfdist-server", "tfdist-server --max-batch-rows 64"
NO_ONEDNN = "tfdist-server, TF_ENABLE_ONEDNN_OPTS=0"
FASTAPI, PLAIN, ECHO, CALLS = "FastAPI", "FastAPI, plain", "echo", "calls"
_COLUMNS = {FASTAPI: "fastapi", PLAIN: "plain_fastapi", ECHO: "echo"}
COMPARED = Load(16, 1)
MANY = Load(64, 1)
LOADS = (Load(1, 1), COMPARED, MANY, Load(4, 32))
THREADS = [Load(threads, 1) for threads in sorted({1, CORES})]  # of the calls

_LOADS_OF = {BATCHED: (COMPARED, MANY), NO_ONEDNN: (COMPARED,), PLAIN: (COMPARED,)}  # not all

Key = tuple[str, Load]
Figures = dict[str, float]
# Runs for so many seconds.
Block = Callable[[int], Figures]
Rounds = dict[Key, list[Figures]]
Row = dict[str, Any]

# Of one peer: a request failed, or the server has ended.
_FAILURES = (MeasureError, OSError, psutil.Error, subprocess.SubprocessError)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving", description=(__doc__ or "").splitlines()[0]
    )
    add_options(parser, "one round of short blocks")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Also for the servers.
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    if shutil.which("wrk") is None:
        sys.exit("benchmarks.serving: no wrk here, which sends the requests: apt install wrk")
    notes: dict[str, str] = {}
    try:
        with _blocks(arguments.seed, notes) as blocks:
            rounds = _measure_all(blocks, arguments.quick, random.Random(arguments.seed), notes)
    except (*_FAILURES, TfdistError) as error:
        sys.exit(f"benchmarks.serving: {error}")
    rows = _rows(rounds, notes)
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
    return int(bool(notes))


# Measuring.


@contextmanager
def _blocks(seed: int, notes: dict[str, str]) -> Iterator[dict[Key, Block]]:
    """Starts all servers, which do nothing between their blocks; the answers are compared first."""
    with ExitStack() as stack:
        programs = servers.build_programs()
        log("exporting the model and starting the servers ...")
        folder = model.export(stack.enter_context(tempfile.TemporaryDirectory(prefix="serving-")))
        if missing := servers.missing_packages():
            notes[FASTAPI] = f"not installed: {', '.join(missing)}; in the extra 'bench'"
            log(f"{FASTAPI}: {notes[FASTAPI]}")
        workers = [] if missing else servers.start_fastapi(folder)
        for each in workers:
            stack.enter_context(each)
        caller = stack.enter_context(Program(CALLS, [str(programs / "calls"), folder]))
        echo = stack.enter_context(Program(ECHO, [str(programs / "echo")]))
        served = f"model={folder}"
        options = ["--max-batch-rows", "64"]
        peers: dict[str, Server] = {
            TFDIST: servers.Tfdist(stack.enter_context(ModelServer(served))),
            BATCHED: servers.Tfdist(stack.enter_context(ModelServer(served, options=options))),
            NO_ONEDNN: servers.Tfdist(stack.enter_context(_server_without_onednn(served))),
            ECHO: servers.echo(echo),
        }
        calls = servers.caller(caller)
        try:
            if workers:
                peers[FASTAPI], peers[PLAIN] = servers.fastapi(workers)
        except MeasureError as error:
            _note_failure(FASTAPI, error, notes)
        blocks: dict[Key, Block] = {}
        for load in LOADS:
            body = load.body(seed)
            answer = peers[TFDIST].answer(body)
            for kind in (FASTAPI, PLAIN):
                if kind in peers:
                    _check_equal(answer, peers[kind].answer(body))
            for kind, peer in peers.items():
                if load in _LOADS_OF.get(kind, LOADS):
                    blocks[kind, load] = _block(peer, load, body, len(answer))
        for load in THREADS:
            blocks[CALLS, load] = _calls(calls, load)
        yield blocks


def _server_without_onednn(served: str) -> ModelServer:
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    try:
        return ModelServer(served)
    finally:
        del os.environ["TF_ENABLE_ONEDNN_OPTS"]


def _block(peer: Server, load: Load, body: str, answer_bytes: int) -> Block:
    return lambda secs: measure(peer, load, body, answer_bytes, secs)


def _calls(caller: servers.Caller, load: Load) -> Block:
    return lambda secs: caller.call(load.connections, load.rows, secs)


def _check_equal(answer: bytes, other: bytes) -> None:
    ours, theirs = (json.loads(each)["outputs"] for each in (answer, other))
    if not np.allclose(ours, theirs, rtol=1e-5):
        raise MeasureError(f"different answers: {ours} and {theirs}")


def _measure_all(
    blocks: dict[Key, Block], quick: bool, rng: random.Random, notes: dict[str, str]
) -> Rounds:
    rounds: Rounds = {}
    count, secs = (_QUICK_ROUNDS, _QUICK_SECS) if quick else (_ROUNDS, _SECS)
    log("a round for warming up ...")
    for key in {kind: (kind, load) for kind, load in blocks}.values():  # one load of each
        _measure(key, blocks, _QUICK_SECS, notes)
    for number in range(1, count + 1):
        log(f"round {number} of {count} ...")
        for load in dict.fromkeys(load for _, load in blocks):
            keys = [key for key in blocks if key[1] == load]
            for key in rng.sample(keys, len(keys)):
                if figures := _measure(key, blocks, secs, notes):
                    rounds.setdefault(key, []).append(figures)
    return {key: figures for key, figures in rounds.items() if key[0] not in notes}


def _measure(
    key: Key, blocks: dict[Key, Block], secs: int, notes: dict[str, str]
) -> Figures | None:
    """None if this peer has failed, now or before."""
    kind, load = key
    if kind in notes:
        return None
    try:
        figures = blocks[key](secs)
    except _FAILURES as error:
        _note_failure(kind, error, notes)
        return None
    log(f"  {kind}, {load}: {figures['requests_per_s']:,.0f}/s")
    return figures


def _note_failure(kind: str, error: Exception, notes: dict[str, str]) -> None:
    notes[kind] = f"failed: {error}"
    log(f"{kind} {notes[kind]}")


# Figures.


def _rows(rounds: Rounds, notes: dict[str, str]) -> list[Row]:
    rows: list[Row] = []
    for (kind, load), figures in rounds.items():
        values = {name: [each[name] for each in figures] for name in figures[0]}
        if kind in (TFDIST, BATCHED, NO_ONEDNN):
            # FastAPI has oneDNN.
            peers = {ECHO: _COLUMNS[ECHO]} if kind == NO_ONEDNN else _COLUMNS
            for peer, column in peers.items():
                if theirs := rounds.get((peer, load)):
                    for name, prefix in (("requests_per_s", ""), ("cpu_us", "cpu_")):
                        values[f"{prefix}ratio_to_{column}"] = ratios(
                            values[name], [each[name] for each in theirs]
                        )
        rows.append(_row(kind, load) | with_spread(values) | {"note": None})
    order = [TFDIST, NO_ONEDNN, BATCHED, FASTAPI, PLAIN, ECHO, CALLS]
    rows.sort(key=lambda row: (row["kind"] == CALLS, _place(row), order.index(row["kind"])))
    return rows + [{"kind": kind, "note": note} for kind, note in notes.items()]


def _row(kind: str, load: Load) -> Row:
    return {"kind": kind, "n": load.connections, "rows": load.rows}


def _place(row: Row) -> int:
    load = Load(row["n"], row["rows"])
    return (*LOADS, *THREADS).index(load)


def _targets(rows: list[Row]) -> list[dict[str, Any]]:
    def found(load: Load, name: str) -> float | None:
        wanted = _row(TFDIST, load).items()
        return next((row.get(name) for row in rows if wanted <= row.items()), None)

    speed = f"requests/s at {COMPARED}"
    return [
        *[
            target(f"{speed} / {peer}", found(COMPARED, f"ratio_to_{column}"), 15.0, at_least=True)
            for peer, column in _COLUMNS.items()
            if peer != ECHO
        ],
        target(f"{speed} / echo", found(COMPARED, "ratio_to_echo"), 0.5, at_least=True),
        *[target(f"p99 / p50 at {load}", found(load, "p99_to_p50"), 4.0) for load in LOADS],
        target(f"cores used at {MANY}", found(MANY, "cores_used"), 0.8, at_least=True),
    ]


# Printing.

_TABLES = {
    "speed": {
        "requests/s": "requests_per_s",
        **{f"/ {peer}": f"ratio_to_{column}" for peer, column in _COLUMNS.items()},
    },
    "latency": {"p50, us": "p50_us", "p99, us": "p99_us", "p99 / p50": "p99_to_p50"},
    "CPU of a request": {
        "us": "cpu_us",
        **{f"/ {peer}": f"cpu_ratio_to_{column}" for peer, column in _COLUMNS.items()},
    },
    "parts of a request": {
        "transport, CPU us": "transport_cpu_us",
        "session, CPU us": "session_cpu_us",
        "queue, us": "queue_us",
    },
    "use": {
        "requests / run": "requests_per_run",
        "cores used": "cores_used",
        "by others": "cores_used_by_others",
    },
}
_CALLS_TABLE = {"calls/s": "requests_per_s", "a call, us": "call_us", "CPU, us": "cpu_us"}


def _print_report(report: dict[str, Any]) -> None:
    console = make_console()
    console.print(f"{describe_machine(report['machine'])}, seed {report['seed']}")
    console.print("Median (min .. max) over the rounds.")
    measured = [row for row in report["rows"] if not row["note"]]
    for part, names in _TABLES.items():
        table = make_table(["load", part], list(names))
        for row in measured:
            if row["kind"] != CALLS:
                table.add_row(str(Load(row["n"], row["rows"])), row["kind"], *_cells(row, names))
        console.print(table)
    table = make_table(["threads with calls"], list(_CALLS_TABLE))
    for row in measured:
        if row["kind"] == CALLS:
            table.add_row(str(row["n"]), *_cells(row, _CALLS_TABLE))
    console.print(table)
    for row in report["rows"]:
        if row["note"]:
            console.print(f"{row['kind']}: {row['note']}")
    print_targets(report["targets"])


def _cells(row: Row, names: dict[str, str]) -> list[str]:
    return [_shown(row["spread"][name]) if name in row["spread"] else "" for name in names.values()]


def _shown(figures: dict[str, float]) -> str:
    if figures["median"] < 100:
        return shown_range(figures)
    return f"{figures['median']:,.0f} ({figures['min']:,.0f} .. {figures['max']:,.0f})"


if __name__ == "__main__":
    sys.exit(main())
