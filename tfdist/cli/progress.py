"""How far each trainer is: bars on a terminal, a plain line now and then elsewhere.

While the tasks start, a table names those that are not there yet.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from tfdist.cli.start_up import StartUp
from tfdist.cluster.processes import PROGRESS_FILE
from tfdist.cluster.run_folder import RunFolder
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
        self._run, self._start_up = run, StartUp(run, tasks)
        trainers = [task.name for task in tasks if task.is_trainer]
        self._console = console = Console(stderr=True)
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
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> ProgressView:
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._bars.stop()

    def _show(self) -> None:
        start = next_line = time.monotonic()
        while not self._over.wait(_REFRESH_SECS):
            if table := self._start_up.look():
                self._console.print(table)
            notes = self._notes()
            if not self._plain:
                self._draw(notes)
            elif time.monotonic() >= next_line + _PLAIN_LINE_SECS:
                next_line = time.monotonic()
                self._print(notes, next_line - start)

    def _draw(self, notes: dict[str, dict[str, Any]]) -> None:
        for name, note in notes.items():
            self._bars.update(
                self._rows[name],
                completed=note["done"],
                total=note["total"],
                state=note["state"],
            )

    def _print(self, notes: dict[str, dict[str, Any]], seconds: float) -> None:
        parts = [
            f"{name} {note['state']} {100 * note['done'] / max(1, note['total']):.0f} %"
            for name, note in notes.items()
        ]
        text = "; ".join(parts) or "the tasks are starting"
        print(f"tfdist: {seconds:.0f} s: {text}", file=sys.stderr, flush=True)

    def _notes(self) -> dict[str, dict[str, Any]]:
        """What each trainer that has begun noted last."""
        notes = {}
        for life in self._run.latest():
            file = self._run.folder_of(life.name, life.attempt) / PROGRESS_FILE
            if life.name in self._rows and file.exists():
                notes[life.name] = json.loads(file.read_text("utf-8"))
        return notes
