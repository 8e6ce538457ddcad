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
For them it is input: any program may have changed it. See `tfdist.runs.files`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import psutil

from tfdist.errors import ConfigError, DataError, printable, signal_name
from tfdist.runs.files import (
    append_to_file,
    read_record,
    status_of_file,
    unreadable,
    write_file,
)
from tfdist.runs.outcome import Outcome, Usage, oom_kills
from tfdist.task import TASK_TYPES, ClusterSpec, Task

RUN_FILE, TASK_FILE, ERROR_FILE = "run.json", "task.json", "error.json"
PROGRESS_FILE, STACKS_FILE = "progress.json", "stacks"
STREAMS = {1: "stdout", 2: "stderr"}

_FAILURE_BYTES = 2**24
_NAME = re.compile(rf"(?:{'|'.join(TASK_TYPES)}):[0-9]{{1,6}}")
_ATTEMPT = re.compile(r"attempt-([1-9][0-9]{0,8})")
_HIGHEST_PID = 2**31 - 1

_Read = TypeVar("_Read")


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


def _check_names(*names: str) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a task")


def _check_pid(pid: int) -> None:
    if not 1 <= pid <= _HIGHEST_PID:
        raise ValueError(f"{pid} is not the pid of a process")


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

    def __post_init__(self) -> None:
        _check_names(self.name)
        _check_pid(self.pid)

    @property
    def process(self) -> psutil.Process | None:
        """The process of the attempt; None if it has ended, or if the pid is another process's."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            is_same = 0 < self.ticks == start_ticks(self.pid)
            if self.ended is None and is_same and self.pid != 1:  # 1 is init, or the launcher
                return process
        return None

    @property
    def seconds(self) -> float:
        """How long the attempt has run."""
        return (self.ended or time.time()) - self.began


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

    def __post_init__(self) -> None:
        _check_pid(self.pid)

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

    def __post_init__(self) -> None:
        _check_names(*self.tasks, *self.trainers)
        if not self.tasks or len({*self.tasks}) < len(self.tasks):
            raise ValueError("tasks must name each task once")


def _is_open(path: Path) -> bool:
    """Whether this user may enter it, if it is a folder."""
    return not os.path.isdir(path) or os.access(path, os.X_OK, effective_ids=True)


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
        self._skipped: set[str] = set()
        # What this object has written. A launcher needs no file for it, which may be lost.
        self._tasks: tuple[str, ...] | None = None
        self._written: dict[tuple[str, int], TaskRecord] = {}

    @classmethod
    def find(cls, path: str) -> RunFolder:
        """The run in the folder `path`, or the latest run in a folder of runs that can be read.

        Raises:
            ConfigError: `path` holds no run.
        """
        folder = Path(path)
        try:
            if (folder / RUN_FILE).is_symlink() or (folder / RUN_FILE).exists():
                return cls(folder)
            times = {one: status_of_file(one / RUN_FILE) for one in folder.iterdir()}
        except FileNotFoundError as error:
            raise ConfigError("RUN", path, "does not exist") from error
        except NotADirectoryError as error:
            raise ConfigError("RUN", path, "must be a folder, and is a file") from error
        except OSError as error:
            raise ConfigError("RUN", path, unreadable(error)) from error
        found = {one: status.st_mtime_ns for one, status in times.items() if status is not None}
        for one in sorted(found, key=lambda one: found[one], reverse=True):
            run = cls(one)
            try:
                run.about  # noqa: B018  # raises DataError if it cannot be read
                return run
            except (DataError, FileNotFoundError) as error:
                run.skip(error)
        what = f"no {RUN_FILE} that can be read" if found else f"no {RUN_FILE}"
        if closed := sorted(one.name for one in times if not _is_open(one)):
            what += f"; this user cannot enter {closed[-1]} in it, so run the command as its owner"
        raise ConfigError("RUN", path, f"is not the folder of a run; it contains {what}")

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
        self._tasks = record.tasks
        self._write(self.path / RUN_FILE, record)

    @property
    def about(self) -> RunRecord:
        """The content of `run.json`; raises DataError if that is not a record of a run."""
        return read_record(RunRecord, self.path / RUN_FILE)

    @property
    def runs(self) -> bool:
        """True if its launcher still exists."""
        return self.about.launcher.runs

    def skip(self, error: Exception) -> None:
        """Says on standard error, once for each error, that a file is left out; never raises."""
        self._say(f"skipped {error}")

    def _say(self, what: str) -> None:
        line = printable(f"tfdist: {what}")
        with self._lock:
            if line in self._skipped:
                return
            self._skipped.add(line)
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)

    def readable(self, read: Callable[[], _Read]) -> _Read | None:
        """What `read` returns; None if its file does not exist, or is damaged, which is said."""
        try:
            return read()
        except FileNotFoundError:
            return None
        except DataError as error:
            self.skip(error)
            return None

    def failure(self, name: str, attempt: int) -> FailureRecord | None:
        """Why the attempt failed; None if it did not fail, or if tfdist terminated it."""
        path = self.folder_of(name, attempt) / ERROR_FILE
        return self.readable(lambda: read_record(FailureRecord, path, most=_FAILURE_BYTES))

    def folder_of(self, name: str, attempt: int) -> Path:
        """The folder of an attempt of a task."""
        return self.path / f"attempt-{attempt}" / name.replace(":", "-")

    def attempts(self) -> list[tuple[str, TaskRecord | None]]:
        """The task and the record of each attempt, in the order of the tasks.

        The record is None if it cannot be read; then standard error says so, once.
        """
        numbers = {number for _, number in list(self._written)}  # threads add to it
        try:
            found = map(_ATTEMPT.fullmatch, os.listdir(self.path))
            numbers |= {int(match[1]) for match in found if match is not None}
        except OSError as error:
            if self._tasks is not None:
                pass  # the tasks of this launcher go on, also without the folder
            elif isinstance(error, FileNotFoundError):
                raise
            else:
                raise DataError(printable(str(self.path)), None, unreadable(error)) from error
        attempts: list[tuple[str, TaskRecord | None]] = []
        if not numbers:  # a launcher that is ended at its start has not written run.json yet
            return attempts
        for name in self.about.tasks if self._tasks is None else self._tasks:
            for number in sorted(numbers):
                with suppress(FileNotFoundError):
                    attempts.append((name, self._record(name, number)))
        return attempts

    def _record(self, name: str, attempt: int) -> TaskRecord | None:
        """The record of an attempt; raises FileNotFoundError if the attempt has none yet."""
        if (written := self._written.get((name, attempt))) is not None:
            return written
        folder = self.folder_of(name, attempt)
        try:
            for path in (folder.parent, folder):
                if os.path.islink(path) and not os.path.exists(path):
                    raise DataError(printable(str(path)), None, "is a link to nothing")
            record = read_record(TaskRecord, folder / TASK_FILE)
            if (record.name, record.attempt) != (name, attempt):
                other = f"{record.name}, attempt {record.attempt}"
                raise DataError(printable(str(folder / TASK_FILE)), None, f"is that of {other}")
        except DataError as error:
            self.skip(error)
            return None
        return record

    def records(self) -> list[TaskRecord]:
        """The records of all attempts that can be read, in the order of the tasks."""
        return [record for _, record in self.attempts() if record is not None]

    def latest(self) -> list[TaskRecord]:
        """The latest attempt of each task that has started, in the order of the tasks.

        A task is left out if the record of that attempt cannot be read.
        """
        return [record for record in dict(self.attempts()).values() if record is not None]

    # The methods of an Observer.

    def folder(self, name: str, attempt: int) -> str:
        """Makes the folder of a new attempt; its path is absolute, as a task may change its own."""
        folder = self.folder_of(name, attempt).absolute()
        folder.mkdir(parents=True)
        for stream in STREAMS.values():
            (folder / stream).touch()
        return str(folder)

    def started(self, name: str, attempt: int, pid: int) -> None:
        """Writes `task.json` of the attempt."""
        # Ticks 0: the process has ended already, and no other process has these ticks.
        record = TaskRecord(name, attempt, pid, start_ticks(pid) or 0, time.time())
        self._note(record)

    def output(self, name: str, attempt: int, stream: int, data: bytes) -> None:
        """Appends to the file of the stream."""
        append_to_file(self.folder_of(name, attempt) / STREAMS[stream], data)

    def ended(self, name: str, attempt: int, outcome: Outcome) -> None:
        """Completes `task.json`; writes `error.json` if the task failed and was not terminated."""
        record = replace(
            self._written[name, attempt],
            ended=time.time(),
            exit_code=int(outcome.failed) if outcome.exit_code is None else outcome.exit_code,
            terminated=outcome.terminated,
            usage=outcome.usage,
        )
        if outcome.failed and not outcome.terminated:
            message = outcome.details
            with suppress(BaseException):  # of a script's error whose text cannot be made
                message = message if outcome.error is None else str(outcome.error)
            code, ended = record.exit_code or 0, record.ended or 0.0
            failure = FailureRecord(name, attempt, ended, code, message, outcome.details)
            self._try_to_write(self.folder_of(name, attempt) / ERROR_FILE, failure)
        self._note(record)

    def _note(self, record: TaskRecord) -> None:
        self._written[record.name, record.attempt] = record
        self._try_to_write(self.folder_of(record.name, record.attempt) / TASK_FILE, record)

    def _try_to_write(self, path: Path, record: TaskRecord | FailureRecord) -> None:
        """Writes a record of a task, which goes on if that fails, as on a full disk."""
        try:
            self._write(path, record)
        except OSError as error:
            self._say(f"cannot write {path}: {error.strerror}; the job continues")

    def _write(self, path: Path, record: RunRecord | TaskRecord | FailureRecord) -> None:
        # Renamed into place, so that no reader sees a partial file.
        with self._lock:
            draft = path.with_suffix(".new")
            write_file(draft, json.dumps(asdict(record), indent=2) + "\n")
            draft.replace(path)
