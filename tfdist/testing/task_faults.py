"""What can happen to the tasks of a job, on purpose."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class Tasks(Protocol):
    """What runs the tasks, such as a `tfdist.LocalCluster`; it says how they are named."""

    def kill(self, name: str) -> None:
        """Ends it as a crash would."""

    def restart(self, name: str) -> None:
        """Starts one that was killed once more."""

    def pause(self, name: str) -> None:
        """Stops it as a frozen machine would."""

    def resume(self, name: str) -> None:
        """Wakes it."""


class TaskFault(ABC):
    """A fault of a task of a running job."""

    @contextlib.contextmanager
    def on(self, tasks: Tasks) -> Iterator[None]:
        """Has it for as long as the block runs; it is over at its end, also after an error."""
        self.begin(tasks)
        try:
            yield
        finally:
            self.end(tasks)

    @abstractmethod
    def begin(self, tasks: Tasks) -> None:
        """Makes it happen; it has when this returns."""

    @abstractmethod
    def end(self, tasks: Tasks) -> None:
        """Undoes what can be undone."""


@dataclass(frozen=True)
class Kill(TaskFault):
    """The task is gone for good: its machine says that nobody listens there any more."""

    task: str

    def begin(self, tasks: Tasks) -> None:  # noqa: D102
        tasks.kill(self.task)

    def end(self, tasks: Tasks) -> None:
        """Does nothing."""


@dataclass(frozen=True)
class Restart(TaskFault):
    """The task is gone, and comes back at the end with nothing in memory."""

    task: str

    def begin(self, tasks: Tasks) -> None:  # noqa: D102
        tasks.kill(self.task)

    def end(self, tasks: Tasks) -> None:  # noqa: D102
        tasks.restart(self.task)


@dataclass(frozen=True)
class Pause(TaskFault):
    """The task is stopped (SIGSTOP) and woken at the end: its connections last, nobody answers."""

    task: str

    def begin(self, tasks: Tasks) -> None:  # noqa: D102
        tasks.pause(self.task)

    def end(self, tasks: Tasks) -> None:  # noqa: D102
        tasks.resume(self.task)
