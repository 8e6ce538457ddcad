"""Notes of a trainer about its barriers, in its folder, for readers without TensorFlow.

The state of a barrier is on a ps, and reading it takes the barrier's name and number of parties.
So each trainer under `tfdist run` notes both for `tfdist status`, one line of JSON per barrier.
It also touches a file when it passes a barrier, which counts as progress of the job.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfdist.task import PROGRESS_VARIABLE

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

    Args:
        note: the barrier.
        environ: environment of the task; None for `os.environ`.
    """
    progress = (os.environ if environ is None else environ).get(PROGRESS_VARIABLE)
    if progress is None or note in noted_barriers(Path(progress).parent):
        return
    with open(Path(progress).with_name(_FILE), "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(note)) + "\n")


def noted_barriers(folder: Path) -> list[BarrierNote]:
    """The barriers that a task has noted in its folder, in the order in which it made them."""
    try:
        text = (folder / _FILE).read_text("utf-8")
    except FileNotFoundError:
        return []
    # The text after the last newline is still being written.
    lines = text.split("\n")[:-1]
    return list(dict.fromkeys(BarrierNote(**json.loads(line)) for line in lines))


class PassMark:
    """The file that a trainer touches when it passes a barrier; none without a launcher.

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
        self._path = None if progress is None else Path(progress).with_name(_PASSED_FILE)
        self._every_secs, self._clock = every_secs, clock
        self._next = clock()

    def touch(self) -> None:
        """Touches the file, unless the last touch was less than `every_secs` ago."""
        if self._path is None or (now := self._clock()) < self._next:
            return
        self._next = now + self._every_secs
        self._path.touch()


def passed_at(folder: Path) -> int | None:
    """When a task last passed a barrier, in ns since 1970, by its folder; None if it has not."""
    try:
        return (folder / _PASSED_FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return None
