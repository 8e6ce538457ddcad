"""The folder of a run: its tasks, their output, and how they ended.

::

    RUN/run.json                            the run: see RunRecord
    RUN/stall.txt, stall.html, stall.json   the report of all tasks, if the job stalled
    RUN/attempt-1/worker-1/task.json        an attempt of a task: see TaskRecord
                           stdout, stderr   its output
                           progress.json    the latest note of its tfdist.Progress
                           stacks           the stacks of its threads, once per request
                           barriers         the barriers that it made: see runs/barrier_notes.py
                           barrier-passed   touched when it passes a barrier
                           error.json       why it failed: see FailureRecord

`tfdist run` writes it; `tfdist status` and `tfdist stacks` read it during the run and afterwards.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from tfdist.errors import ConfigError, signal_name
from tfdist.runs.outcome import Outcome, Usage, oom_kills
from tfdist.task import ClusterSpec, Task

RUN_FILE, TASK_FILE, ERROR_FILE = "run.json", "task.json", "error.json"
PROGRESS_FILE, STACKS_FILE = "progress.json", "stacks"
STREAMS = {1: "stdout", 2: "stderr"}


def start_ticks(pid: int) -> int | None:
    """When a process was started, in the kernel's clock ticks since boot; None if it has ended.

    Unlike a time in seconds since 1970, it does not change when the system clock is set.
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
        name: the task, such as "worker:1".
        attempt: the number of the attempt, from 1.
        pid: its process, which leads a process group of the same number.
        ticks: its `start_ticks`, which distinguish it from a later process with the same pid.
        began: when the process was started, in seconds since 1970.
        ended: when the process had ended, in seconds since 1970; None while it runs.
        exit_code: its exit code, or minus the signal that killed it; None while it runs.
        terminated: whether tfdist sent it SIGTERM or SIGKILL.
        usage: its CPU time and memory; None while it runs, or if unknown.
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
        """The process of the attempt; None if it has ended."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if self.ended is None and start_ticks(self.pid) == self.ticks:
                return process
        return None

    @property
    def seconds(self) -> float:
        """How long the attempt has run."""
        return (self.ended or time.time()) - self.began

    @classmethod
    def parse(cls, text: str) -> TaskRecord:
        """Parses the text of `task.json`."""
        values = json.loads(text)
        usage = values["usage"]
        return cls(**{**values, "usage": usage and Usage(**usage)})


@dataclass(frozen=True)
class FailureRecord:
    """Why an attempt of a task failed, as `error.json` has it.

    Attributes:
        task: the task, such as "worker:1".
        attempt: the number of the attempt, from 1.
        time: when its process had ended, in seconds since 1970.
        exit_code: its exit code, or minus the signal that killed it.
        message: the text of its error.
        traceback: the traceback, or what else is known.
    """

    task: str
    attempt: int
    time: float
    exit_code: int
    message: str
    traceback: str


@dataclass(frozen=True)
class Launcher:
    """The process that started a run; its `start_ticks` distinguish it from a reused pid."""

    pid: int
    ticks: int

    @property
    def runs(self) -> bool:
        """True if the process still exists."""
        return start_ticks(self.pid) == self.ticks


@dataclass(frozen=True)
class RunRecord:
    """A run, as `run.json` has it.

    Attributes:
        began: when the run started, in seconds since 1970.
        monotonic: the same moment on the monotonic clock.
        launcher: the process that started the run.
        tasks: names of all tasks.
        trainers: names of the trainers, by rank.
        cluster: addresses by task type.
        script: path of the script.
        id: a text that no other run has, by which trainers recognize their ps; "" if unused.
        oom_kills: the count of `oom_kills` of the launcher when the run started.
    """

    began: float
    monotonic: float
    launcher: Launcher
    tasks: tuple[str, ...]
    trainers: tuple[str, ...]
    cluster: ClusterSpec
    script: str = ""
    id: str = ""
    oom_kills: int | None = None

    @classmethod
    def parse(cls, text: str) -> RunRecord:
        """Parses the text of `run.json`.

        Raises:
            ValueError: the text is not a record of a run.
        """
        values = json.loads(text)
        try:
            launcher = Launcher(**values["launcher"])
            tasks, trainers = tuple(values["tasks"]), tuple(values["trainers"])
            return cls(**{**values, "launcher": launcher, "tasks": tasks, "trainers": trainers})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the record of a run: {error}") from error


def describe_end(record: TaskRecord) -> str:
    """The end of an attempt in a few words, such as "exit code 0" or "killed by SIGSEGV"."""
    if record.exit_code is None:
        return "still running"
    code = record.exit_code
    end = f"killed by {signal_name(-code)}" if code < 0 else f"exit code {code}"
    if not record.terminated:
        return end
    if code == -signal.SIGKILL:
        return "killed by tfdist"
    # With another end the task had a handler for SIGTERM; its exit code says if that succeeded.
    return "terminated by tfdist" if code == -signal.SIGTERM else f"terminated by tfdist, {end}"


class RunFolder:
    """Reads and writes the folder of a run; safe to use from several threads.

    Attributes:
        path: path of the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()

    @classmethod
    def find(cls, path: str) -> RunFolder:
        """The run in the folder `path`, or the latest run in a folder of runs.

        Raises:
            ConfigError: `path` holds no run.
        """
        files = [Path(path, RUN_FILE), *Path(path).glob(f"*/{RUN_FILE}")]
        runs = [file for file in files if file.is_file()]
        if not runs:
            raise ConfigError("RUN", path, f"is not the folder of a run; it contains no {RUN_FILE}")
        return cls(max(runs, key=lambda file: file.stat().st_mtime).parent)

    def create(
        self, tasks: Sequence[Task], trainers: Sequence[Task], *, script: str = "", id: str = ""
    ) -> None:
        """Writes `run.json`, with this process as the launcher and now as the start."""
        pid = os.getpid()
        record = RunRecord(
            began=time.time(),
            monotonic=time.monotonic(),
            launcher=Launcher(pid, start_ticks(pid) or 0),
            tasks=tuple(task.name for task in tasks),
            trainers=tuple(task.name for task in trainers),
            cluster=tasks[0].cluster_spec,
            script=script,
            id=id,
            oom_kills=oom_kills(pid),
        )
        self._write(self.path / RUN_FILE, record)

    @property
    def about(self) -> RunRecord:
        """The content of `run.json`; raises ValueError if that is not a record of a run."""
        return RunRecord.parse((self.path / RUN_FILE).read_text("utf-8"))

    @property
    def runs(self) -> bool:
        """True if its launcher still exists."""
        return self.about.launcher.runs

    def failure(self, name: str, attempt: int) -> FailureRecord | None:
        """Why the attempt failed; None if it did not fail, or if tfdist terminated it."""
        try:
            text = (self.folder_of(name, attempt) / ERROR_FILE).read_text("utf-8")
        except FileNotFoundError:
            return None
        return FailureRecord(**json.loads(text))

    def folder_of(self, name: str, attempt: int) -> Path:
        """The folder of an attempt of a task."""
        return self.path / f"attempt-{attempt}" / name.replace(":", "-")

    def records(self) -> list[TaskRecord]:
        """The records of all attempts, in the order of the tasks."""
        files = self.path.glob(f"attempt-*/*/{TASK_FILE}")
        found = [TaskRecord.parse(file.read_text("utf-8")) for file in files]
        order = self.about.tasks if found else []
        return sorted(found, key=lambda record: (order.index(record.name), record.attempt))

    def latest(self) -> list[TaskRecord]:
        """The latest attempt of each task that has started, in the order of the tasks."""
        return list({record.name: record for record in self.records()}.values())

    # The methods of an Observer.

    def folder(self, name: str, attempt: int) -> str:
        """Makes the folder of a new attempt."""
        folder = self.folder_of(name, attempt)
        folder.mkdir(parents=True)
        for stream in STREAMS.values():
            (folder / stream).touch()
        return str(folder)

    def started(self, name: str, attempt: int, pid: int) -> None:
        """Writes `task.json` of the attempt."""
        # Ticks 0: the process has ended already, and no other process has these ticks.
        record = TaskRecord(name, attempt, pid, start_ticks(pid) or 0, time.time())
        self._write(self.folder_of(name, attempt) / TASK_FILE, record)

    def output(self, name: str, attempt: int, stream: int, data: bytes) -> None:
        """Appends to the file of the stream."""
        with open(self.folder_of(name, attempt) / STREAMS[stream], "ab") as file:
            file.write(data)

    def ended(self, name: str, attempt: int, outcome: Outcome) -> None:
        """Completes `task.json`; writes `error.json` if the task failed and was not terminated."""
        folder = self.folder_of(name, attempt)
        record = TaskRecord.parse((folder / TASK_FILE).read_text("utf-8"))
        record = replace(
            record,
            ended=time.time(),
            exit_code=int(outcome.failed) if outcome.exit_code is None else outcome.exit_code,
            terminated=outcome.terminated,
            usage=outcome.usage,
        )
        if outcome.failed and not outcome.terminated:
            message = str(outcome.error) if outcome.error is not None else outcome.details
            code, ended = record.exit_code or 0, record.ended or 0.0
            failure = FailureRecord(name, attempt, ended, code, message, outcome.details)
            self._write(folder / ERROR_FILE, failure)
        self._write(folder / TASK_FILE, record)

    def _write(self, path: Path, record: RunRecord | TaskRecord | FailureRecord) -> None:
        # Renamed into place, so that no reader sees a partial file.
        with self._lock:
            draft = path.with_suffix(".new")
            draft.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
            draft.replace(path)
