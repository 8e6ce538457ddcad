"""The progress of each trainer: bars on a terminal, elsewhere a plain line every ten seconds.

While the tasks start, a table shows the state of each.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from rich.box import SIMPLE
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Table

from tfdist.cli.output import PipeConsole, say
from tfdist.cluster.ports import is_listening
from tfdist.diagnosis.status import RUNS, state_of
from tfdist.runs.folder import PROGRESS_FILE, RunFolder, TaskRecord
from tfdist.runs.progress import ProgressNote
from tfdist.task import Task, parse_address

_REFRESH_SECS = 0.2
_PLAIN_LINE_SECS = 10.0
_FIRST_TABLE_SECS = 10.0
_PROBE_SECS = 0.2
_RUNNING, _ENDED = "running", "has ended"


class ProgressView:
    """Shows on standard error the progress that the trainers note in their files.

    Args:
        run: the folder that holds the files.
        tasks: all tasks of the cluster.
    """

    def __init__(self, run: RunFolder, tasks: Sequence[Task]) -> None:
        self._run, self._tasks, self._start_up = run, tasks, StartUp(tasks)
        trainers = [task.name for task in tasks if task.is_trainer]
        self._console = console = PipeConsole(stderr=True)
        self._plain = not console.is_terminal
        self._bars = Progress(
            TextColumn("{task.fields[name]}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}", style="dim", markup=False),
            console=console,
            transient=True,
            # Lines of the tasks go above the bars, but stay on their own stream.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
            disable=self._plain,
        )
        self._rows: dict[str, TaskID] = {
            name: self._bars.add_task("", total=None, name=name, state="starting")
            for name in trainers
        }
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show_while_read, name="progress", daemon=True)

    def __enter__(self) -> ProgressView:
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._bars.stop()

    def _show_while_read(self) -> None:
        # The main thread gets SIGPIPE; a full disk must not end the job.
        with suppress(OSError):
            self._show()

    def _show(self) -> None:
        start = next_line = time.monotonic()
        while not self._over.wait(_REFRESH_SECS):
            records = self._run.latest()
            notes = self._notes(records)
            if not self._start_up.is_over and (table := self._start_up.look(records, notes)):
                self._console.print(table)
            if not self._plain:
                self._draw(records, notes)
            elif time.monotonic() >= next_line + _PLAIN_LINE_SECS:
                next_line = time.monotonic()
                text = _notes_text(notes, _states(records)) or self._tasks_text(records)
                say(f"{next_line - start:.0f} s: {text}")

    def _draw(self, records: Sequence[TaskRecord], notes: dict[str, ProgressNote]) -> None:
        states = _states(records)
        for name, state in states.items():
            if name in self._rows and name not in notes:
                self._bars.update(self._rows[name], state=state)
        for name, note in notes.items():
            place = note.state if note.total is not None else f"{note.state}: {note.count}"
            self._bars.update(
                self._rows[name],
                completed=note.done,
                total=note.total,
                state=place + _halt(states[name]),
            )

    def _tasks_text(self, records: Sequence[TaskRecord]) -> str:
        """How many tasks are in each state: for a job that notes no progress."""
        states = _states(records)
        counts = Counter(states.values())
        running, num_tasks = counts.pop(_RUNNING, 0), len(self._tasks)
        if self._start_up.is_over:
            text = "1 task is running" if running == 1 else f"{running} tasks are running"
        else:
            tasks = "task is" if num_tasks == 1 else "tasks are"
            text = f"{running} of {num_tasks} {tasks} running"
            without = sum(
                state == _RUNNING and not self._start_up.is_ready(name)
                for name, state in states.items()
            )
            text += f", {without} without a server" if without else ""
        ended = counts.pop(_ENDED, 0)
        text += "".join(
            f", {count} {'is' if count == 1 else 'are'} {state}" for state, count in counts.items()
        )
        return text + (f", {ended} {'has' if ended == 1 else 'have'} ended" if ended else "")

    def _notes(self, records: Sequence[TaskRecord]) -> dict[str, ProgressNote]:
        """The latest note of each trainer that has written one."""
        notes = {}
        for record in records:
            file = self._run.folder_of(record.name, record.attempt) / PROGRESS_FILE
            if record.name in self._rows and (note := ProgressNote.read(file)) is not None:
                notes[record.name] = note
        return notes


def _states(records: Sequence[TaskRecord]) -> dict[str, str]:
    """The state of each task: running, ended, stopped, or another of `state_of`."""

    def state(record: TaskRecord) -> str:
        if record.ended is not None:
            return _ENDED
        return _RUNNING if (seen := state_of(record)) == RUNS else seen

    return {record.name: state(record) for record in records}


def _halt(state: str) -> str:
    return "" if state in (_RUNNING, _ENDED) else f", {state}"


def _notes_text(notes: dict[str, ProgressNote], states: dict[str, str]) -> str:
    def count(note: ProgressNote) -> str:
        known = note.total is not None
        return f"{100 * note.done / max(1, note.total or 0):.0f} %" if known else note.count

    return "; ".join(
        f"{name} {note.state}: {count(note)}{_halt(states[name])}" for name, note in notes.items()
    )


class StartUp:
    """Looks which tasks are ready, and makes a table of them at growing intervals until all are.

    A task with an address is ready when its server listens, or when it has noted progress; an
    evaluator, when it runs. A script may make no server at all.

    Args:
        tasks: all tasks of the cluster.
        clock: returns seconds that never decrease.
        listens: whether a process listens at a port of a host.
        state: the state of a task, by its record.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        clock: Callable[[], float] = time.monotonic,
        listens: Callable[[str, int, float], bool] = is_listening,
        state: Callable[[TaskRecord], str] = state_of,
    ) -> None:
        self._tasks, self._clock, self._listens, self._state = tasks, clock, listens, state
        self._began = clock()
        self._next = _FIRST_TABLE_SECS
        self._ready: dict[str, float] = {}  # after how many seconds

    @property
    def num_ready(self) -> int:
        """The number of tasks that have become ready; some may have ended since."""
        return len(self._ready)

    @property
    def is_over(self) -> bool:
        """Whether all tasks have become ready."""
        return self.num_ready == len(self._tasks)

    def is_ready(self, name: str) -> bool:
        """Whether a task has become ready; it may have ended since."""
        return name in self._ready

    def look(self, latest: Sequence[TaskRecord], noted: Collection[str] = ()) -> Table | None:
        """Looks once; returns a table if one is due and a task is not ready.

        Args:
            latest: the latest record of each task that has started.
            noted: names of the tasks that have noted progress.
        """
        records = {record.name: record for record in latest}
        seconds = self._clock() - self._began
        for task in self._tasks:
            if task.name in self._ready:
                continue
            if task.name in noted or self._is_ready(task, records.get(task.name)):
                self._ready[task.name] = seconds
        if self.is_over or seconds < self._next:
            return None
        self._next *= 2
        return self._table(records, seconds)

    def _is_ready(self, task: Task, record: TaskRecord | None) -> bool:
        if record is None:
            return False
        if record.ended is not None:
            return True  # nothing left to wait for
        if task.task_type == "evaluator":
            return True
        return self._listens(*parse_address(task.address), _PROBE_SECS)

    def _table(self, records: dict[str, TaskRecord], seconds: float) -> Table:
        missing, num_tasks = len(self._tasks) - self.num_ready, len(self._tasks)
        without = "the task has" if num_tasks == 1 else f"{missing} of {num_tasks} tasks have"
        title = f"tfdist: after {seconds:.0f} s, {without} no server"
        table = Table("task", "address", "pid", "state", title=title, box=SIMPLE)
        table.title_justify = "left"
        for task in self._tasks:
            record = records.get(task.name)
            address = "" if task.task_type == "evaluator" else task.address
            pid = "" if record is None else str(record.pid)
            table.add_row(task.name, address, pid, self._text(task, record))
        return table

    def _text(self, task: Task, record: TaskRecord | None) -> str:
        if record is None:
            return "not started"
        if (state := self._state(record)) != RUNS:
            return state
        if task.name in self._ready:
            return f"ready after {self._ready[task.name]:.1f} s"
        return "running; no server listens at its address"
