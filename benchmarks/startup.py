"""How soon the tasks of a job are there, and how soon they are gone; beside other ways to do it.

    python -m benchmarks.startup [--quick] [--seed S] [--json]

The unit is the wall time of one `python -c "import tensorflow"`. The peers each start six processes
with TensorFlow in memory; they take turns, in an order that is shuffled in each round, after one
round that is thrown away. A ratio is taken within each round.

*First lines* is the time from the start of the first process until all six have shown themselves:

- `tfdist run`: four workers run a script that prints one line and ends; the line counts when it has
  come out of the launcher. The two ps print nothing: such a one counts when its server accepts a
  connection, for which it is asked every 5 ms from the first worker's line on, where the line tells
  its address. (So a ps that was ready before that line counts as late as the line.)
- Popen: each process imports TensorFlow and prints a line.
- dask: six workers of a `LocalCluster`, single-threaded, each in a process; a line is printed when
  a worker's function, which imports TensorFlow, has returned.

*Gone* is the time from the last end until the first process has ended and none that it started is
left, found by a variable in its environment. The last end is the moment that the last worker writes
into its line, just before it ends; with the others it is the last line. The workers of `tfdist run`
end without a word to their ps, which is the slowest way to end: tfdist waits for those ps for a
while. `tfdist run, with goodbyes` differs in this alone: its workers print their line, start their
server, tell the ps that they are done, and end.

Results go to standard output, everything else to standard error. The exit code is 1 if a peer that
is installed could not be measured; a target that is missed does not change it.
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

_PS, _WORKERS = 2, 4
_TASKS = _PS + _WORKERS
_ROUNDS, _QUICK_ROUNDS = 7, 2
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
    """Of one job, in seconds.

    Attributes:
        first_lines: from its start until all tasks have shown themselves.
        gone: from the last end until nothing is left.
    """

    first_lines: float
    gone: float


class MeasureError(Exception):
    """A job that failed, or took too long."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.startup", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_ROUNDS} rounds only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seed", type=int, help="of the order; by default a new one")
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(10**6)
    rounds = _QUICK_ROUNDS if arguments.quick else _ROUNDS
    measured, notes, failed = _measure_all(rounds, random.Random(arguments.seed))
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
    rounds: int, rng: random.Random
) -> tuple[dict[str, list[Times]], dict[str, str], bool]:
    """By peer the times of each round, why peers have none, and whether one has failed."""
    notes: dict[str, str] = {}
    if importlib.util.find_spec("distributed") is None:
        notes[DASK] = "absent: it is in the extra 'bench'"
    measured: dict[str, list[Times]] = {}
    failed = False
    for number in range(rounds + 1):
        log(f"round {number} of {rounds} ..." if number else "a round to throw away ...")
        peers = [peer for peer in (ONE_IMPORT, *_PEERS) if peer not in notes]
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
    silent_ps: list[str] | None = None  # until the first line tells which they are
    seen_workers = 0
    while seen_workers < _WORKERS or silent_ps or len(ends) < _WORKERS:
        if line := job.line_within(_POLL_SECS):
            arrived, text = line
            told = json.loads(text)
            if "cluster" in told:
                seen_workers += 1
                shown.append(arrived)
                silent_ps = told["cluster"]["ps"] if silent_ps is None else silent_ps
            if "at" in told:
                ends.append(told["at"])
        for address in list(silent_ps or ()):
            host, _, port = address.rpartition(":")
            if is_listening(host, int(port)):
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
    """Processes that are started at once, and all that they start; leaving it ends them.

    Attributes:
        start: when, by the clock of the machine.
    """

    def __init__(
        self, commands: list[list[str]], environment: dict[str, str] | None = None
    ) -> None:
        self._deadline = Deadline(_LIMIT_SECS)
        self._mark = uuid.uuid4().hex
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # __exit__ closes it
        self._lines: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
        self._open = len(commands)  # whose output has not ended
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
        """When the next line came, and the line."""
        while True:
            if line := self.line_within(1.0):
                return line

    def line_within(self, seconds: float) -> tuple[float, str] | None:
        """The next line, or None if none comes so soon.

        Raises:
            MeasureError: none can come any more, or the job's time is over.
        """
        if not self._open:
            raise MeasureError(f"it ended too early: {self._said()}")
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._check_time()
            return None
        if line is None:
            self._open -= 1
        return line

    def wait_until_gone(self) -> float:
        """When the last process had ended."""
        while self._open:
            self.line_within(1.0)
        for process in self._processes:
            while (code := process.poll()) is None:  # it has closed its output: it ends now
                self._check_time()
                time.sleep(_POLL_SECS)
            if code:
                raise MeasureError(f"it ended with exit code {code}: {self._said()}")
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
        return self._errors.read().strip()[-500:] or "it said nothing"


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
    console.print("Seconds, and ratios: median (min .. max) over the rounds.")
    table = make_table(["what", "processes"], ["first lines", "to one import", "gone after"])
    for row in report["rows"]:
        cells = [row["kind"], str(row["n"])]
        cells += [shown_range(each) for each in row.get("spread", {}).values()]
        table.add_row(*cells, *([row["note"].splitlines()[0]] if row["note"] else []))
    console.print(table)
    print_targets(report["targets"])


if __name__ == "__main__":
    sys.exit(main())
