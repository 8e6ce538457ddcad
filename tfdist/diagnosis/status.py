"""The status of a run: its tasks, and the trainers that each of its barriers waits for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tfdist.cluster.ports import listening_ports
from tfdist.diagnosis.barriers import Barriers, Question, barrier_table, barriers_of
from tfdist.diagnosis.collect import UNREADABLE
from tfdist.diagnosis.stacks import DENIED, MEANINGS
from tfdist.errors import ConfigError, printable
from tfdist.runs.files import status_of_file
from tfdist.runs.folder import PROGRESS_FILE, RunFolder, RunRecord, TaskRecord, describe_end
from tfdist.runs.progress import ProgressNote
from tfdist.task import parse_address

_UNLIMITED = 10_000  # columns
RUNS, _GONE = "runs", "gone"
_STATES = {
    psutil.STATUS_STOPPED: "stopped",
    psutil.STATUS_TRACING_STOP: "traced",
    psutil.STATUS_ZOMBIE: _GONE,
}


@dataclass(frozen=True)
class _Row:
    """A task; None means that a value is not known."""

    task: str
    attempt: int | None = None
    pid: int | None = None
    state: str = "not started"
    is_well: bool = True
    exit_code: int | None = None
    seconds: float | None = None
    cpu_secs: float | None = None
    memory_bytes: int | None = None
    progress: ProgressNote | None = None
    progress_age_secs: float | None = None
    listens: bool | None = None

    @property
    def note(self) -> str | None:
        """Its last note of progress as text."""
        if self.progress is None:
            return None
        note, age = self.progress, self.progress_age_secs
        return f"{note.state}: {note.count}, {age:.0f} s ago"

    @property
    def place(self) -> str:
        """Its state and its progress, in a few words."""
        state = [] if self.state == RUNS else [self.state]
        return ", ".join([*state, self.note or "no progress noted"])


@dataclass(frozen=True)
class JobStatus:
    """The status of a run.

    Attributes:
        run: the run.
        about: the content of its `run.json`.
        runs: whether its launcher runs.
        seconds: since the run began.
        rows: its tasks.
    """

    run: RunFolder
    about: RunRecord
    runs: bool
    seconds: float
    rows: list[_Row]

    def barriers(self, asks: Callable[[Question], Barriers]) -> Barriers:
        """The barriers, if the run has not ended; blocks as long as `asks` does."""
        notes = barriers_of(self.run) if self.runs else ()
        if not notes:
            return Barriers()
        ps = next((row for row in self.rows if row.task == "ps:0"), _Row("ps:0"))
        if ps.state != RUNS or ps.pid is None:
            return Barriers(failure=f"{ps.task}, which keeps the barriers, is {ps.state}")
        return asks(Question(ps.pid, self.about.cluster, notes))

    def is_well(self, barriers: Barriers) -> bool:
        """Whether no task is stopped, gone or failed, and the barriers could be read."""
        return all(row.is_well for row in self.rows) and barriers.failure is None

    def as_json(self, barriers: Barriers) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "run": str(self.run.path),
            "runs": self.runs,
            "seconds": round(self.seconds, 3) if self.runs else None,
            "tasks": [asdict(row) for row in self.rows],
            "barriers": [asdict(report) for report in barriers.reports],
            "barriers_failure": barriers.failure,
        }

    def show_tasks(self, console: Console) -> None:
        """Prints the table of the tasks."""
        state = f"running for {self.seconds:.0f} s" if self.runs else "this job has ended"
        console.print(f"{self.run.path}: {state}", soft_wrap=True)
        print_table(console, _table(self.rows))


class SafeConsole(Console):
    """A console that escapes what a terminal would obey, or what its encoding does not have."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as rich draws it; rich calls this for each string and each cell of a table."""
        encoding = self.encoding or "utf-8"
        shown = printable(text).encode(encoding, "backslashreplace").decode(encoding)
        return super().render_str(shown, **options)


def line_width(console: Console) -> int:
    """The width at which to wrap lines: of a pipe or a file, only what COLUMNS says, if set."""
    is_limited = console.is_terminal or "COLUMNS" in os.environ
    return console.width if is_limited else _UNLIMITED


def print_table(console: Console, table: Table) -> None:
    """Prints a table that cuts no word, even if a line becomes too long; its cells are strings."""
    for column in table.columns:
        if column.no_wrap:
            column.min_width = max(cell_len(str(cell)) for cell in [column.header, *column.cells])
    least = Measurement.get(console, console.options.update_width(_UNLIMITED), table).minimum
    before = console.width
    console.width = max(before, least + 2)  # rich leaves out the padding at the edges
    console.print(table)
    console.width = before


def status_of(run: RunFolder) -> JobStatus:
    """The status of the run now."""
    about = run.about
    runs = run.runs
    records = dict(run.attempts())
    rows = []
    for name in about.tasks:
        if (record := records.get(name)) is not None:
            rows.append(_row(run, name, record, about.cluster))
        elif name in records:
            rows.append(_Row(name, state=UNREADABLE, is_well=False))
        else:
            rows.append(_Row(name, is_well=runs))  # it may start, unless the job has ended
    return JobStatus(run, about, runs, time.time() - about.began, rows)


def show_barriers(barriers: Barriers, console: Console) -> None:
    """Prints the table of the barriers, and why it is not complete."""
    if barriers.reports:
        console.print()
        print_table(console, barrier_table(barriers))
    if barriers.failure is not None:
        console.print(f"\nbarriers: {barriers.failure}", soft_wrap=True)


def state_of(record: TaskRecord) -> str:
    """The state of an attempt of a task, in a word, or how it ended."""
    if record.ended is not None:
        return describe_end(record)
    try:
        process = record.process
        return _GONE if process is None else _STATES.get(process.status(), RUNS)
    except psutil.NoSuchProcess:
        return _GONE
    except psutil.AccessDenied:
        return MEANINGS[DENIED]


def _row(run: RunFolder, name: str, record: TaskRecord, cluster: dict[str, list[str]]) -> _Row:
    progress, age = _progress(run, run.folder_of(name, record.attempt) / PROGRESS_FILE)
    common: dict[str, Any] = {
        "task": name,
        "attempt": record.attempt,
        "pid": record.pid,
        "progress": progress,
        "progress_age_secs": age,
    }
    state = state_of(record)
    if record.ended is not None:
        return _Row(
            **common,
            state=state,
            is_well=record.terminated or record.exit_code == 0,
            exit_code=record.exit_code,
            seconds=round(record.seconds, 3),
            cpu_secs=record.usage.cpu_secs if record.usage else None,
        )
    process = record.process
    if process is None or state == _GONE:
        return _Row(**common, state=_GONE, is_well=False)
    try:
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info().rss
    except psutil.NoSuchProcess:
        return _Row(**common, state=_GONE, is_well=False)
    except psutil.AccessDenied:
        return _Row(**common, state=MEANINGS[DENIED], is_well=False)
    return _Row(
        **common,
        state=state,
        is_well=state == RUNS,
        seconds=round(record.seconds, 3),
        cpu_secs=times.user + times.system + times.children_user + times.children_system,
        memory_bytes=memory,
        listens=_listens(name, record.pid, cluster),
    )


def _progress(run: RunFolder, path: Path) -> tuple[ProgressNote | None, float | None]:
    """The last note of progress, and how many seconds ago it was written."""
    note, status = run.readable(lambda: ProgressNote.parse(path)), status_of_file(path)
    if note is None or status is None:
        return None, None
    return note, round(time.time() - status.st_mtime, 3)


def _listens(name: str, pid: int, cluster: dict[str, list[str]]) -> bool | None:
    """Whether a server listens at the task's port; None if the task has none."""
    kind, _, index = name.partition(":")
    if kind == "evaluator" or kind not in cluster:
        return None
    try:
        return parse_address(cluster[kind][int(index)]).port in listening_ports(pid)
    except (IndexError, ConfigError, PermissionError):  # the record of the run, or of its user
        return None


def _table(rows: list[_Row]) -> Table:
    again = any((row.attempt or 1) > 1 for row in rows)
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("task", no_wrap=True)
    if again:
        table.add_column("attempt", justify="right", no_wrap=True)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for title in ("seconds", "CPU s", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    words = " ".join(["progress", *(row.note or "" for row in rows)]).split()
    table.add_column("progress", min_width=max(map(len, words)))
    table.add_column("listens", no_wrap=True)
    for row in rows:
        table.add_row(
            row.task,
            *([str(row.attempt or "")] if again else []),
            str(row.pid or ""),
            row.state,
            _number(row.seconds, 1),
            _number(row.cpu_secs, 1),
            _number(row.memory_bytes and row.memory_bytes / 1e6, 0),
            row.note or "",
            {None: "", True: "yes", False: "no"}[row.listens],
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
