"""Events that the tasks of a lab case note in files, which stay readable while TensorFlow hangs."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfdist.errors import DataError, printable
from tfdist.runs.files import parse_json, parse_record, read_file
from tfdist.runs.folder import RunFolder

NOTES_FILE = "notes"

# Kinds of notes.
STEP, SAVED, LEFT, ENDED, FAILED, FAULT, ABOUT = (
    "step", "saved", "left", "ended", "failed", "fault", "about",
)  # fmt: skip

# The values of each kind, and their types.
_VALUES: Mapping[str, Mapping[str, type]] = {
    STEP: {"read": list},
    SAVED: {"step": int},
    LEFT: {},
    ENDED: {},
    FAILED: {"error": str},
    FAULT: {"what": str, "task": str},
    ABOUT: {},
}
_MOST_BYTES = 2**26


@dataclass(frozen=True)
class _About:
    """The values that a task may note about itself."""

    trains: bool | None = None
    servers: int | None = None
    pool: int | None = None
    recovery_secs: float | None = None
    grace_secs: float | None = None
    close_secs: float | None = None
    global_step: int | None = None


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
    """The complete notes in a file.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: it cannot be read, or has a line that is no note.
    """
    # The text after the last newline is still being written.
    lines = read_file(path, most=_MOST_BYTES).split(b"\n")[:-1]
    return [_parse_note(path, line) for line in lines]


def _parse_note(path: Path, line: bytes) -> Note:
    values = parse_json(path, line)
    if isinstance(values, dict):
        kind, at = values.pop("kind", None), values.pop("at", None)
        if kind == ABOUT:
            parse_record(_About, path, values)
        known = _VALUES.get(kind) if isinstance(kind, str) else None
        is_note = known is not None and all(
            isinstance(values.get(key), of) for key, of in known.items()
        )
        if is_note and isinstance(at, float) and math.isfinite(at):
            return Note(str(kind), at, values)
    raise DataError(printable(str(path)), None, f"has a line that is no note: {line[:80]!r}")


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
        notes = run.readable(functools.partial(read_notes, path)) or []
        found.setdefault(record.name, Noted()).attempts.append(notes)
    return found
