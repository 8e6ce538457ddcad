"""How far each trainer is: bars on a terminal, a plain line now and then elsewhere.

While the tasks start, a table names those that are not there yet.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from tfdist.cli.pipe import PipeConsole
from tfdist.cli.start_up import StartUp
from tfdist.runs.folder import PROGRESS_FILE, RunFolder, TaskRecord
from tfdist.runs.progress import ProgressNote
from tfdist.task import Task

_REFRESH_SECS = 0.2
_PLAIN_LINE_SECS = 10.0


class ProgressView:
    """Shows on standard error what the trainers note in their progress files.

    Args:
        run: where the files are.
        tasks: all of the cluster.
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
            TextColumn("{task.fields[state]}", style="dim"),
            console=console,
            transient=True,
            # Lines of the tasks go above the bars, but never to another stream than theirs.
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
        with suppress(BrokenPipeError):  # the main thread gets SIGPIPE
            self._show()

    def _show(self) -> None:
        start = next_line = time.monotonic()
        while not self._over.wait(_REFRESH_SECS):
            records = self._run.latest()
            if not self._start_up.is_over and (table := self._start_up.look(records)):
                self._console.print(table)
            notes = self._notes(records)
            if not self._plain:
                self._draw(notes)
            elif time.monotonic() >= next_line + _PLAIN_LINE_SECS:
                next_line = time.monotonic()
                text = _notes_text(notes) or self._tasks_text(records)
                print(f"tfdist: {next_line - start:.0f} s: {text}", file=sys.stderr, flush=True)

    def _draw(self, notes: dict[str, ProgressNote]) -> None:
        for name, note in notes.items():
            self._bars.update(
                self._rows[name],
                completed=note.done,
                total=note.total,
                state=note.state,
            )

    def _tasks_text(self, records: Sequence[TaskRecord]) -> str:
        """Of tasks that note no progress: how many there are at this moment."""
        ended = sum(record.ended is not None for record in records)
        if self._start_up.is_over:
            running = len(self._tasks) - ended
            text = "1 task runs" if running == 1 else f"{running} tasks run"
        else:
            text = f"{self._start_up.num_there - ended} of {len(self._tasks)} tasks are there"
        return text + (f", {ended} {'has' if ended == 1 else 'have'} ended" if ended else "")

    def _notes(self, records: Sequence[TaskRecord]) -> dict[str, ProgressNote]:
        """What each trainer that has begun noted last."""
        notes = {}
        for record in records:
            file = self._run.folder_of(record.name, record.attempt) / PROGRESS_FILE
            if record.name in self._rows and (note := ProgressNote.read(file)) is not None:
                notes[record.name] = note
        return notes


def _notes_text(notes: dict[str, ProgressNote]) -> str:
    return "; ".join(
        f"{name} {note.state} {100 * note.done / max(1, note.total):.0f} %"
        for name, note in notes.items()
    )
