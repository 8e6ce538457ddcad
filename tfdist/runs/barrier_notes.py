"""Notes of a trainer about its barriers, in its folder, for readers without TensorFlow.

The state of a barrier is on a ps, and reading it takes the barrier's name and number of parties.
So each trainer under `tfdist run` notes both for `tfdist status`, one line of JSON per barrier.
It also touches a file when it passes a barrier, which counts as progress of the job.
"""

from __future__ import annotations

import json
import logging
import operator
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tfdist.errors import DataError, printable
from tfdist.runs.files import append_to_file, parse_json, parse_record, read_file, status_of_file
from tfdist.runs.progress import Watched, absolute
from tfdist.task import PROGRESS_VARIABLE

_log = logging.getLogger(__name__)

_FILE, _PASSED_FILE = "barriers", "barrier-passed"  # in the folder of the progress file


@dataclass(frozen=True)
class BarrierNote:
    """The name of a barrier and its number of parties, by which its state is read."""

    name: str
    parties: int


ARRIVED, MISSING, RESIGNED = "arrived", "missing", "resigned"


@dataclass(frozen=True)
class Place:
    """The place of a trainer at a barrier.

    Attributes:
        trainer: name of the trainer.
        state: ARRIVED or MISSING in the current generation, or RESIGNED.
        seconds: time since its last arrival, in any generation; None if it never arrived.
    """

    trainer: str
    state: str
    seconds: float | None


@dataclass(frozen=True)
class BarrierReport:
    """The state of a barrier, as its ps reports it.

    Attributes:
        name: name of the barrier.
        generation: the current generation; None if the ps does not know the barrier (yet).
        places: the places of its parties, by rank.
        acts: whether the barrier's action runs now, on the trainer of rank 0.
        broken: why the barrier is broken, or None.
        problem: why the ps could not report it, or None.
    """

    name: str
    generation: int | None = None
    places: tuple[Place, ...] = ()
    acts: bool = False
    broken: str | None = None
    problem: str | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> BarrierReport:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**values, "places": tuple(Place(**place) for place in values["places"])})

    def trainers(self, state: str) -> tuple[str, ...]:
        """Names of the trainers in `state`."""
        return tuple(place.trainer for place in self.places if place.state == state)


def note_barrier(note: BarrierNote, environ: Mapping[str, str] | None = None) -> None:
    """Notes a barrier that this process makes, once; does nothing without a launcher.

    If it cannot be noted, for example because the disk is full, that is logged.

    Args:
        note: the barrier.
        environ: environment of the task; None for `os.environ`.
    """
    path = _note_path(_FILE, environ)
    if path is None:
        return
    try:
        line = json.dumps(asdict(note), default=operator.index) + "\n"  # numpy's integers too
        if note in noted_barriers(path.parent):
            return
        append_to_file(path, line.encode("ascii"))
    except (OSError, DataError, TypeError) as error:  # TypeError: the name is no text
        _log.warning("the barrier %r cannot be noted for tfdist status: %s", note.name, error)


def _note_path(file: str, environ: Mapping[str, str] | None) -> Path | None:
    """The absolute path of a file in the folder of the progress file; None without a launcher."""
    progress = absolute((os.environ if environ is None else environ).get(PROGRESS_VARIABLE))
    return None if progress is None else Path(os.path.dirname(progress), file)


def noted_barriers(folder: Path) -> list[BarrierNote]:
    """The barriers that a task has noted in its folder, in the order in which it made them.

    Raises:
        DataError: the file cannot be read, or has a line that is no note.
    """
    path = folder / _FILE
    try:
        text = read_file(path)
    except FileNotFoundError:
        return []
    # The text after the last newline is still being written.
    return list(dict.fromkeys(_parse_note(path, line) for line in text.split(b"\n")[:-1]))


def _parse_note(path: Path, line: bytes) -> BarrierNote:
    values = parse_json(path, line)
    note = parse_record(BarrierNote, path, values)
    # The ps knows the barrier by its name as it is, also if a terminal would obey it.
    note = replace(note, name=values["name"])
    if not note.name or note.parties < 1:
        raise DataError(printable(str(path)), None, f"{note!r} is no barrier")
    return note


class PassMark:
    """The file that a trainer touches when it passes a barrier; none without a launcher.

    Without a launcher the file is that of the Watchdog whose block the process is in.

    Args:
        environ: environment of the task; None for `os.environ`.
        every_secs: shortest time between two touches.
        clock: returns seconds that never decrease.
    """

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        *,
        every_secs: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        progress = (os.environ if environ is None else environ).get(PROGRESS_VARIABLE)
        # As in `Progress.from_env`.
        self._path = None if progress == Watched.path else _note_path(_PASSED_FILE, environ)
        self._is_lost = False
        self._every_secs, self._clock = every_secs, clock
        self._next = clock()

    def touch(self) -> None:
        """Touches the file, unless the last touch was less than `every_secs` ago.

        If that fails, it is logged once, and the trainer continues.
        """
        path = self._path
        if path is None and Watched.path is not None:
            path = Path(os.path.dirname(Watched.path), _PASSED_FILE)
        if path is None or (now := self._clock()) < self._next:
            return
        self._next = now + self._every_secs
        try:
            path.touch()
        except OSError as error:
            if not self._is_lost:
                _log.warning("a passed barrier cannot be noted: %s", error)
            self._is_lost = True


def passed_at(folder: Path) -> int | None:
    """When a task last passed a barrier, in ns since 1970, by its folder; None if it has not."""
    status = status_of_file(folder / _PASSED_FILE)
    return None if status is None else status.st_mtime_ns
