"""Events that the tasks of a lab case note in files, which stay readable while TensorFlow hangs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfdist.runs.folder import RunFolder

NOTES_FILE = "notes"

# Kinds of notes.
STEP, SAVED, LEFT, ENDED, FAILED, FAULT, ABOUT = (
    "step", "saved", "left", "ended", "failed", "fault", "about",
)  # fmt: skip


@dataclass(frozen=True)
class Note:
    """A line of a notes file.

    Attributes:
        kind: what happened.
        at: when, in seconds of the monotonic clock, which all processes of a machine share.
        values: the rest of the line.
    """

    kind: str
    at: float
    values: Mapping[str, Any]


class NoteFile:
    """Writes the notes of one task, unbuffered."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  # as long as its task

    def write(self, kind: str, **values: Any) -> None:
        """Appends a note, with the current time."""
        line = json.dumps({"kind": kind, "at": time.monotonic(), **values})
        self._file.write(line.encode() + b"\n")


def read_notes(path: Path) -> list[Note]:
    """The complete notes in a file; none if the file does not exist."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return []
    return list(_notes(text.splitlines(keepends=True)))


def _notes(lines: Iterable[str]) -> Iterator[Note]:
    for line in lines:
        if line.endswith("\n"):
            values = json.loads(line)
            yield Note(values.pop("kind"), values.pop("at"), values)


@dataclass
class Noted:
    """The notes of a task.

    Attributes:
        attempts: the notes of each attempt, the latest attempt last.
    """

    attempts: list[list[Note]] = field(default_factory=list)

    def all(self, kind: str) -> list[Note]:
        """The notes of one kind, of all attempts."""
        return [note for notes in self.attempts for note in notes if note.kind == kind]

    def last(self, kind: str) -> Note | None:
        """The last note of one kind in the latest attempt."""
        found = [note for note in self.attempts[-1] if note.kind == kind] if self.attempts else []
        return found[-1] if found else None

    def about(self) -> dict[str, Any]:
        """The values that the latest attempt has noted about itself."""
        values: dict[str, Any] = {}
        for note in self.attempts[-1] if self.attempts else []:
            if note.kind == ABOUT:
                values |= note.values
        return values


def noted(run: RunFolder) -> dict[str, Noted]:
    """The notes of all tasks of a run, by name."""
    found: dict[str, Noted] = {}
    for record in run.records():
        path = run.folder_of(record.name, record.attempt) / NOTES_FILE
        found.setdefault(record.name, Noted()).attempts.append(read_notes(path))
    return found
