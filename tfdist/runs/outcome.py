"""How a task ended, and what a cluster tells of its tasks while it runs."""

from __future__ import annotations

import signal
import traceback
from dataclasses import dataclass
from typing import Protocol

from tfdist.errors import ConfigError, TaskFailed
from tfdist.runs.usage import Usage
from tfdist.task import Task


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
    """Is told of the tasks, each a process, as things happen; called from several threads.

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
