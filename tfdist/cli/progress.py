"""How far each trainer is: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

_REFRESH_SECS = 0.2
_PLAIN_LINE_SECS = 10.0


class ProgressView:
    """Shows on standard error what the trainers note in their progress files.

    Args:
        folder: where the files are, each named as its trainer.
        trainers: their names.
    """

    def __init__(self, folder: str, trainers: list[str]) -> None:
        self._folder, self._trainers = folder, trainers
        console = Console(stderr=True)
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
            notes = {name: note for name in self._trainers if (note := self._read(name))}
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

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            with open(os.path.join(self._folder, name), encoding="utf-8") as file:
                note: dict[str, Any] = json.load(file)
                return note
        except FileNotFoundError:
            return None  # it has not begun
