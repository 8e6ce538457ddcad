"""The folder of a run: who its tasks are, what they print, and how they end.

::

    RUN/run.json                            the run: see RunFolder.create
    RUN/stall.txt, stall.json               where all stood, if it was ended for standing still
    RUN/attempt-1/worker-1/task.json        an attempt of a task: see TaskRecord
                           stdout, stderr   what it has written
                           progress.json    how far it is, by its own word
                           stacks           where its threads stood when it was last asked
                           barriers         those that it has made: see tfdist.runs.barrier_notes
                           barrier-passed   touched when it passes one
                           error.json       why it failed, if it did

`tfdist run` writes it; `tfdist status` and `tfdist stacks` read it, while it runs and afterwards.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from tfdist.errors import ConfigError, signal_name
from tfdist.runs.outcome import Outcome
from tfdist.runs.usage import Usage
from tfdist.task import Task

RUN_FILE, TASK_FILE, ERROR_FILE = "run.json", "task.json", "error.json"
STREAMS = {1: "stdout", 2: "stderr"}


def start_ticks(pid: int) -> int | None:
    """When a process was started, in the kernel's clock ticks since boot; None if it is gone.

    Unlike the same in seconds since 1970, it stays what it is when the clock is set.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # Field 22; field 2, in parentheses, may hold anything. See proc_pid_stat(5).
            return int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


@dataclass(frozen=True)
class TaskRecord:
    """An attempt of a task, as `task.json` has it.

    Attributes:
        name: such as "worker:1".
        attempt: which one it is, from 1.
        pid: of its process, which leads a process group of the same number.
        ticks: see start_ticks; by it another process of the same pid is told.
        began: when that process was started, in seconds since 1970.
        ended: when it was gone; None while it runs.
        exit_code: minus the signal if one killed it; None while it runs.
        terminated: whether tfdist ended it on purpose.
        usage: what it has used; None while it runs, or if that is not known.
    """

    name: str
    attempt: int
    pid: int
    ticks: int
    began: float
    ended: float | None = None
    exit_code: int | None = None
    terminated: bool = False
    usage: Usage | None = None

    @property
    def process(self) -> psutil.Process | None:
        """Its process; None if that is gone."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if self.ended is None and start_ticks(self.pid) == self.ticks:
                return process
        return None

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended or time.time()) - self.began

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> TaskRecord:
        """From what `task.json` holds."""
        usage = values["usage"]
        return cls(**{**values, "usage": usage and Usage(**usage)})


def describe_end(record: TaskRecord) -> str:
    """In a few words."""
    if record.exit_code is None:
        return "still runs"
    if record.terminated:
        return "ended by tfdist"
    if record.exit_code < 0:
        return f"killed by {signal_name(-record.exit_code)}"
    return f"exit code {record.exit_code}"


class RunFolder:
    """Reads and writes the folder of a run; several threads may.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()

    @classmethod
    def find(cls, path: str) -> RunFolder:
        """The run in `path`, or the latest in a folder of runs.

        Raises:
            ConfigError: there is none.
        """
        files = [Path(path, RUN_FILE), *Path(path).glob(f"*/{RUN_FILE}")]
        runs = [file for file in files if file.is_file()]
        if not runs:
            raise ConfigError("RUN", path, f"the folder of a run, which has a file {RUN_FILE}")
        return cls(max(runs, key=lambda file: file.stat().st_mtime).parent)

    def create(
        self, tasks: Sequence[Task], trainers: Sequence[Task], about: Mapping[str, Any]
    ) -> None:
        """Writes `run.json`: when it began, the launcher, the cluster, and what else is given."""
        pid = os.getpid()
        self._write(
            self.path / RUN_FILE,
            {
                "began": time.time(),
                "launcher": {"pid": pid, "ticks": start_ticks(pid)},
                "tasks": [task.name for task in tasks],
                "trainers": [task.name for task in trainers],
                "cluster": tasks[0].cluster_spec,
                **about,
            },
        )

    @property
    def about(self) -> dict[str, Any]:
        """What `run.json` holds."""
        values: dict[str, Any] = json.loads((self.path / RUN_FILE).read_text("utf-8"))
        return values

    @property
    def runs(self) -> bool:
        """Whether its launcher still does."""
        launcher = self.about["launcher"]
        return bool(start_ticks(launcher["pid"]) == launcher["ticks"])

    def folder_of(self, name: str, attempt: int) -> Path:
        """What that attempt of the task leaves."""
        return self.path / f"attempt-{attempt}" / name.replace(":", "-")

    def records(self) -> list[TaskRecord]:
        """All records of all tasks, the tasks in their order."""
        files = self.path.glob(f"attempt-*/*/{TASK_FILE}")
        found = [TaskRecord.parse(json.loads(file.read_text("utf-8"))) for file in files]
        order = self.about["tasks"] if found else []
        return sorted(found, key=lambda record: (order.index(record.name), record.attempt))

    def latest(self) -> list[TaskRecord]:
        """The latest attempt of each task that has begun, in the order of the tasks."""
        return list({record.name: record for record in self.records()}.values())

    # As the Observer of the tasks.

    def folder(self, name: str, attempt: int) -> str:
        """Makes the folder of a new record."""
        folder = self.folder_of(name, attempt)
        folder.mkdir(parents=True)
        for stream in STREAMS.values():
            (folder / stream).touch()
        return str(folder)

    def started(self, name: str, attempt: int, pid: int) -> None:
        """Writes its `task.json`."""
        # A moment after its start; of one that is gone already there is no process to mistake.
        self._write_task(TaskRecord(name, attempt, pid, start_ticks(pid) or 0, time.time()))

    def output(self, name: str, attempt: int, stream: int, data: bytes) -> None:
        """Appends to its file for the stream."""
        with open(self.folder_of(name, attempt) / STREAMS[stream], "ab") as file:
            file.write(data)

    def ended(self, name: str, attempt: int, outcome: Outcome) -> None:
        """Completes its `task.json`, and writes an `error.json` if it failed by itself."""
        folder = self.folder_of(name, attempt)
        record = TaskRecord.parse(json.loads((folder / TASK_FILE).read_text("utf-8")))
        record = replace(
            record,
            ended=time.time(),
            exit_code=int(outcome.failed) if outcome.exit_code is None else outcome.exit_code,
            terminated=outcome.terminated,
            usage=outcome.usage,
        )
        if outcome.failed and not outcome.terminated:
            message = str(outcome.error) if outcome.error is not None else outcome.details
            failure = {
                "task": name,
                "attempt": attempt,
                "time": record.ended,
                "exit_code": record.exit_code,
                "message": message,
                "traceback": outcome.details,
            }
            self._write(folder / ERROR_FILE, failure)
        self._write_task(record)

    def _write_task(self, record: TaskRecord) -> None:
        self._write(self.folder_of(record.name, record.attempt) / TASK_FILE, asdict(record))

    def _write(self, path: Path, values: Mapping[str, Any]) -> None:
        # Renamed into place, so that nobody reads half of it.
        with self._lock:
            draft = path.with_suffix(".new")
            draft.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            draft.replace(path)
