"""The time to start and to end the tasks of a job, compared with other ways to start processes.

    python -m benchmarks.startup [--quick] [--seed S] [--json]

The unit is the wall time of one `python -c "import tensorflow"`. Each peer starts six processes
with TensorFlow in memory. The peers take turns, in an order that is shuffled in each round. A first
round is for warming up, with --quick only one import. Ratios are taken within a round.

*First lines* is the time from the start of the first process until all six processes are ready:

- `tfdist run`: four workers run a script that prints one line and ends. A worker is ready when the
  launcher has printed its line. The two ps print nothing; a ps is ready when its server accepts a
  connection. That is tried every 5 ms from the first line of a worker on, which contains the
  address of the ps. (A ps that was ready earlier counts as ready at that line.)
- Popen: each process imports TensorFlow and prints a line.
- dask: six workers of a `LocalCluster`, single-threaded processes. A line is printed when the
  function of a worker, which imports TensorFlow, has returned.

*Gone* is the time from the last end until the first process and all processes that it started are
gone; they are found by a variable in their environment. For `tfdist run` the last end is the time
that the last worker writes into its line just before it ends; for the others it is the last line.
The workers of `tfdist run` end without a message to their ps. That is the slowest way to end,
because tfdist then waits a while for the ps. The workers of `tfdist run, with goodbyes` start their
server and report to the ps that they are done.

Results go to standard output, everything else to standard error. The exit code is 1 if an installed
peer could not be measured. A missed target does not change the exit code.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks._report import (
    add_options,
    describe_machine,
    log,
    machine,
    make_console,
    make_table,
    print_targets,
    shown_range,
    spread,
    target,
)
from tfdist.cluster.ports import is_listening
from tfdist.deadline import Deadline
from tfdist.task import parse_address

_PS, _WORKERS = 2, 4
_TASKS = _PS + _WORKERS
_ROUNDS, _QUICK_ROUNDS = 7, 1
_LIMIT_SECS = 240.0
_POLL_SECS = 0.005

ONE_IMPORT = "one import"
TFDIST, GOODBYES, POPEN, DASK = "tfdist run", "tfdist run, with goodbyes", "Popen", "dask"

_MARK = "TFDIST_BENCHMARK_JOB"
_SCRIPT = """\
import json, os, time
cluster = json.loads(os.environ["TF_CONFIG"])["cluster"]
print(json.dumps({"cluster": cluster, "at": time.monotonic()}))
"""
_SCRIPT_WITH_GOODBYES = """\
import json, time, tfdist
task = tfdist.Task.from_env()
print(json.dumps({"cluster": task.cluster_spec}), flush=True)
with tfdist.worker_server(task):
    pass
print(json.dumps({"at": time.monotonic()}))
"""


@dataclass(frozen=True)
class Times:
    """The times of one job, in seconds.

    Attributes:
        first_lines: from its start until all processes are ready.
        gone: from the last end until no process is left.
    """

    first_lines: float
    gone: float


class MeasureError(Exception):
    """A job failed or took too long."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.startup", description=(__doc__ or "").splitlines()[0]
    )
    add_options(parser, "only one round, without one for warming up")
    arguments = parser.parse_args()
    measured, notes, failed = _measure_all(arguments.quick, random.Random(arguments.seed))
    report = {
        "machine": machine(),
        "seed": arguments.seed,
        "rows": [_row(peer, measured, notes.get(peer)) for peer in (ONE_IMPORT, *_PEERS)],
        "targets": _targets(measured),
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print_report(report)
    return int(failed)


# Measuring.


def _measure_all(
    quick: bool, rng: random.Random
) -> tuple[dict[str, list[Times]], dict[str, str], bool]:
    """The times of each round by peer, why peers have none, and True if a peer failed."""
    notes: dict[str, str] = {}
    if importlib.util.find_spec("distributed") is None:
        notes[DASK] = "not installed; it is in the extra 'bench'"
    measured: dict[str, list[Times]] = {}
    failed = False
    rounds = _QUICK_ROUNDS if quick else _ROUNDS
    for number in range(rounds + 1):
        log(f"round {number} of {rounds} ..." if number else "a round for warming up ...")
        peers = [peer for peer in (ONE_IMPORT, *_PEERS) if peer not in notes]
        if quick and not number:
            peers = [ONE_IMPORT]
        for peer in rng.sample(peers, len(peers)):
            try:
                times = _one_import() if peer == ONE_IMPORT else _PEERS[peer]()
            except MeasureError as error:
                log(f"{peer} failed: {error}")
                notes[peer], failed = f"failed: {error}", True
                measured.pop(peer, None)
                continue
            log(f"  {peer}: {times.first_lines:.2f} s, gone after {times.gone:.2f} s")
            if number:
                measured.setdefault(peer, []).append(times)
        if ONE_IMPORT in notes:
            sys.exit(f"benchmarks.startup: {notes[ONE_IMPORT]}")
    return measured, notes, failed


def _one_import() -> Times:
    with _Job([[sys.executable, "-c", "import tensorflow"]]) as job:
        return Times(job.wait_until_gone() - job.start, 0.0)


def _popen() -> Times:
    command = [sys.executable, "-c", "import tensorflow; print('ready', flush=True)"]
    with _Job([command] * _TASKS) as job:
        return _times_of_lines(job)


def _dask() -> Times:
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        program = str(Path(__file__).with_name("_startup_dask.py"))
        environment = {"DASK_TEMPORARY_DIRECTORY": folder}
        with _Job([[sys.executable, program, str(_TASKS)]], environment) as job:
            return _times_of_lines(job)


def _times_of_lines(job: _Job) -> Times:
    last = [job.next_line()[0] for _ in range(_TASKS)][-1]
    return Times(last - job.start, job.wait_until_gone() - last)


def _tfdist(text: str) -> Times:
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        script = Path(folder, "job.py")
        script.write_text(text)
        options = ["--ps", str(_PS), "--workers", str(_WORKERS), "--no-prefix"]
        with _Job([[sys.executable, "-m", "tfdist", "run", *options, str(script)]]) as job:
            return _times_of_tfdist(job)


def _times_of_tfdist(job: _Job) -> Times:
    shown: list[float] = []
    ends: list[float] = []
    silent_ps: list[str] | None = None  # known from the first line of a worker
    seen_workers = 0
    while seen_workers < _WORKERS or silent_ps or len(ends) < _WORKERS:
        if line := job.line_within(_POLL_SECS):
            arrived, text = line
            note = json.loads(text)
            if "cluster" in note:
                seen_workers += 1
                shown.append(arrived)
                silent_ps = note["cluster"]["ps"] if silent_ps is None else silent_ps
            if "at" in note:
                ends.append(note["at"])
        for address in list(silent_ps or ()):
            host, port = parse_address(address)
            if is_listening(host, port):
                assert silent_ps is not None
                silent_ps.remove(address)
                shown.append(time.monotonic())
    return Times(max(shown) - job.start, job.wait_until_gone() - max(ends))


_PEERS: dict[str, Callable[[], Times]] = {
    TFDIST: lambda: _tfdist(_SCRIPT),
    GOODBYES: lambda: _tfdist(_SCRIPT_WITH_GOODBYES),
    POPEN: _popen,
    DASK: _dask,
}


class _Job:
    """Processes that start together, and all that they start; leaving the block ends them.

    Attributes:
        start: the time of the start, by the clock of the machine.
    """

    def __init__(
        self, commands: list[list[str]], environment: dict[str, str] | None = None
    ) -> None:
        self._deadline = Deadline(_LIMIT_SECS)
        self._mark = uuid.uuid4().hex
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # __exit__ closes it
        self._lines: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
        self._open = len(commands)  # processes whose output has not ended
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        given = {**os.environ, **quiet, **(environment or {}), _MARK: self._mark}
        self.start = time.monotonic()
        self._processes = [
            subprocess.Popen(
                command,
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
            for command in commands
        ]
        self._readers = [
            threading.Thread(target=self._read, args=(process,)) for process in self._processes
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> _Job:
        return self

    def __exit__(self, *error: object) -> None:
        while marked := list(self._marked()):
            for each in marked:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        for process in self._processes:
            process.wait()
        for reader in self._readers:
            reader.join()
        self._errors.close()

    def next_line(self) -> tuple[float, str]:
        """The time of the next line, and the line."""
        while True:
            if line := self.line_within(1.0):
                return line

    def line_within(self, seconds: float) -> tuple[float, str] | None:
        """The next line, or None if none comes within `seconds`.

        Raises:
            MeasureError: all output has ended, or the job takes too long.
        """
        if not self._open:
            raise MeasureError(f"ended too early: {self._said()}")
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._check_time()
            return None
        if line is None:
            self._open -= 1
        return line

    def wait_until_gone(self) -> float:
        """Blocks until no process is left; returns the time."""
        while self._open:
            self.line_within(1.0)
        for process in self._processes:
            while (code := process.poll()) is None:  # it has closed its output and is about to end
                self._check_time()
                time.sleep(_POLL_SECS)
            if code:
                raise MeasureError(f"exit code {code}: {self._said()}")
        while True:
            now = time.monotonic()
            if not any(self._marked()):
                return now
            self._check_time()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.put((time.monotonic(), line))
        self._lines.put(None)

    def _marked(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get(_MARK) == self._mark:
                    yield process

    def _check_time(self) -> None:
        if self._deadline.expired:
            raise MeasureError(f"not done after {_LIMIT_SECS:.0f} s: {self._said()}")

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().strip()[-500:] or "no error output"


# Figures.


def _row(peer: str, measured: dict[str, list[Times]], note: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": peer, "n": 1 if peer == ONE_IMPORT else _TASKS}
    if peer in measured:
        spreads = {
            "first_lines_s": spread([times.first_lines for times in measured[peer]]),
            "ratio_to_import": spread(_ratios(peer, measured)),
        }
        if peer != ONE_IMPORT:
            spreads["gone_s"] = spread([times.gone for times in measured[peer]])
        row |= {name: figures["median"] for name, figures in spreads.items()}
        row["spread"] = spreads
    return row | {"note": note}


def _ratios(peer: str, measured: dict[str, list[Times]]) -> list[float]:
    return [
        times.first_lines / unit.first_lines
        for times, unit in zip(measured[peer], measured[ONE_IMPORT], strict=True)
    ]


def _targets(measured: dict[str, list[Times]]) -> list[dict[str, Any]]:
    first = gone = goodbyes = None
    if TFDIST in measured:
        first = statistics.median(_ratios(TFDIST, measured))
        gone = statistics.median(times.gone for times in measured[TFDIST])
    if GOODBYES in measured:
        goodbyes = statistics.median(times.gone for times in measured[GOODBYES])
    return [
        target("tfdist's first lines / one import", first, 1.5),
        target("seconds until tfdist is gone", gone, 2.0),
        target("seconds until tfdist is gone, with goodbyes", goodbyes, 2.0),
    ]


def _print_report(report: dict[str, Any]) -> None:
    console = make_console()
    console.print(f"{describe_machine(report['machine'])}, seed {report['seed']}")
    console.print("Seconds and ratios: median (min .. max) over the rounds.")
    table = make_table(["what", "processes"], ["first lines", "to one import", "gone after"])
    for row in report["rows"]:
        cells = [row["kind"], str(row["n"])]
        cells += [shown_range(each) for each in row.get("spread", {}).values()]
        table.add_row(*cells, *([row["note"].splitlines()[0]] if row["note"] else []))
    console.print(table)
    print_targets(report["targets"])


if __name__ == "__main__":
    sys.exit(main())
