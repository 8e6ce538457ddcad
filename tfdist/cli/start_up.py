"""Who is there: the table that names those who are not, when a start takes long."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.box import SIMPLE
from rich.table import Table

from tfdist.cluster.ports import is_listening
from tfdist.runs.folder import TaskRecord
from tfdist.task import Task, parse_address

_FIRST_TABLE_SECS = 10.0
_PROBE_SECS = 0.2


class StartUp:
    """Looks who is there, and says it at growing intervals until all are.

    A task with an address is there when somebody listens at it; an evaluator, when it runs.

    Args:
        tasks: all of the cluster.
        clock: gives seconds that never go back.
        listens: whether somebody listens at a host's port.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        clock: Callable[[], float] = time.monotonic,
        listens: Callable[[str, int, float], bool] = is_listening,
    ) -> None:
        self._tasks, self._clock, self._listens = tasks, clock, listens
        self._began = clock()
        self._next = _FIRST_TABLE_SECS
        self._there: dict[str, float] = {}

    @property
    def num_there(self) -> int:
        """How many have been there, those that have ended included."""
        return len(self._there)

    @property
    def is_over(self) -> bool:
        """Whether all have been there, so that there is nothing left to look for."""
        return self.num_there == len(self._tasks)

    def look(self, latest: Sequence[TaskRecord]) -> Table | None:
        """Looks once; a table if it is time for one and somebody is not there.

        Args:
            latest: the latest record of each task that has begun.
        """
        records = {record.name: record for record in latest}
        seconds = self._clock() - self._began
        for task in self._tasks:
            if task.name not in self._there and self._is_there(task, records.get(task.name)):
                self._there[task.name] = seconds
        if self.is_over or seconds < self._next:
            return None
        self._next *= 2
        return self._table(records, seconds)

    def _is_there(self, task: Task, record: TaskRecord | None) -> bool:
        if record is None or record.ended is not None:
            return record is not None  # it has been there
        if task.task_type == "evaluator":
            return True
        return self._listens(*parse_address(task.address), _PROBE_SECS)

    def _table(self, records: dict[str, TaskRecord], seconds: float) -> Table:
        title = f"tfdist: after {seconds:.0f} s not everybody is there"
        table = Table("task", "address", "pid", "state", title=title, box=SIMPLE)
        table.title_justify = "left"
        for task in self._tasks:
            record = records.get(task.name)
            address = "" if task.task_type == "evaluator" else task.address
            pid = "" if record is None else str(record.pid)
            table.add_row(task.name, address, pid, self._state(task, record))
        return table

    def _state(self, task: Task, record: TaskRecord | None) -> str:
        if task.name in self._there:
            return f"there after {self._there[task.name]:.1f} s"
        return "not started" if record is None else "runs, but its server does not listen"
