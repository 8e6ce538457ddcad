"""How a task ended, what it used, and what a cluster reports about its tasks while it runs."""

from __future__ import annotations

import resource
import signal
import traceback
from dataclasses import dataclass
from typing import Protocol

import psutil

from tfdist.errors import ConfigError, TaskFailed
from tfdist.task import Task


@dataclass(frozen=True)
class Usage:
    """What a process has used, its ended children included where the kernel counts them.

    Attributes:
        cpu_secs: in user and system mode.
        peak_bytes: most memory it has had in RAM (resident set) at one time.
    """

    cpu_secs: float
    peak_bytes: int

    @classmethod
    def of_this_process(cls) -> Usage:
        """Of the caller's process, up to now."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_secs = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
        return cls(cpu_secs, own.ru_maxrss * 1024)

    @classmethod
    def of(cls, pid: int) -> Usage | None:
        """Of another process, up to now; None if it is gone."""
        try:
            times = psutil.Process(pid).cpu_times()
            with open(f"/proc/{pid}/status", encoding="ascii") as file:
                status = dict(line.split(":", 1) for line in file)
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return None
        if "VmHWM" not in status:  # a zombie has no memory any more
            return None
        cpu_secs = times.user + times.system + times.children_user + times.children_system
        return cls(cpu_secs, int(status["VmHWM"].split()[0]) * 1024)


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        result: what its function returned.
        error: what its function raised.
        exit_code: of its process, minus the signal if one killed it; None for a thread.
        details: the traceback as text, or what else is known.
        usage: what its process has used; None where that is not known.
        terminated: whether the cluster ended it on purpose.
        handles_sigterm: whether its program had a SIGTERM handler, which may be what failed.
    """

    result: object = None
    error: BaseException | None = None
    exit_code: int | None = None
    details: str = ""
    usage: Usage | None = None
    terminated: bool = False
    handles_sigterm: bool = False

    @classmethod
    def of_error(cls, error: BaseException) -> Outcome:
        """The outcome of a function that raised."""
        return cls(error=error, details="".join(traceback.format_exception(error)))

    @classmethod
    def of_exit(cls, error: SystemExit) -> Outcome:
        """The outcome of a function that called `sys.exit`."""
        if error.code is None or isinstance(error.code, int):
            return cls(exit_code=error.code or 0)
        return cls(exit_code=1, details=str(error.code))

    @property
    def failed(self) -> bool:
        """Whether it did not end as it should."""
        return self.error is not None or bool(self.exit_code)

    def raise_for(self, task: Task) -> None:
        """Raises TaskFailed if it failed; bad input stays the ConfigError that it is."""
        if isinstance(self.error, ConfigError):
            raise self.error
        if self.failed:
            raise TaskFailed(task.name, self.exit_code, self.details) from self.error


class RunningTask(Protocol):
    """A task that was started; its outcome arrives in the cluster's queue."""

    task: Task

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it SIGTERM, SIGSTOP or SIGCONT; returns at once."""

    def wait(self, timeout: float) -> bool:
        """Whether it has ended; blocks until then, for `timeout` seconds at most."""

    def kill(self) -> None:
        """Ends it and all that it started; returns when they are gone."""


class Observer(Protocol):
    """Receives the events of the tasks, each a process; called from several threads.

    An attempt is an attempt of a task, from 1: a task that is restarted begins another.
    """

    def folder(self, name: str, attempt: int) -> str:
        """Where the process may leave files; it exists."""

    def started(self, name: str, attempt: int, pid: int) -> None:
        """Its process runs."""

    def output(self, name: str, attempt: int, stream: int, data: bytes) -> None:
        """It has written to its stream 1 or 2."""

    def ended(self, name: str, attempt: int, outcome: Outcome) -> None:
        """Its process is gone, and so is what that had started in its process group."""
