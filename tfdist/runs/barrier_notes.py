"""What a trainer leaves in its folder about barriers, for readers without TensorFlow.

The state of a barrier is on a ps, and can be read only with its name and number of parties. So
each trainer that `tfdist run` started notes these for `tfdist status`, one line of JSON for each.
It also marks when it last passed a barrier, which the launcher takes as progress.
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
    """What one has to know of a barrier to ask for it."""

    name: str
    parties: int


ARRIVED, MISSING, RESIGNED = "arrived", "missing", "resigned"


@dataclass(frozen=True)
class Place:
    """The place of a trainer at a barrier.

    Attributes:
        trainer: its name.
        state: ARRIVED or MISSING in the present generation, or RESIGNED.
        seconds: since it last arrived, in any generation; None if it never did.
    """

    trainer: str
    state: str
    seconds: float | None


@dataclass(frozen=True)
class BarrierReport:
    """The state of a barrier, as its ps reports it.

    Attributes:
        name: of the barrier.
        generation: the present one; None if the ps does not know the barrier (yet).
        places: of its parties, by rank.
        acts: whether its action runs, on the trainer of rank 0.
        broken: why it is broken; None if it is not.
        problem: why nothing else is known of it; None if something is.
    """

    name: str
    generation: int | None = None
    places: tuple[Place, ...] = ()
    acts: bool = False
    broken: str | None = None
    problem: str | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> BarrierReport:
        """From what `dataclasses.asdict` made of it."""
        return cls(**{**values, "places": tuple(Place(**place) for place in values["places"])})

    def trainers(self, state: str) -> tuple[str, ...]:
        """Names of the trainers in this state."""
        return tuple(place.trainer for place in self.places if place.state == state)


def note_barrier(note: BarrierNote, environ: Mapping[str, str] | None = None) -> None:
    """Notes it, unless it was noted before; without a launcher it does nothing.

    Args:
        note: of a barrier that this process makes.
        environ: of the task; None for `os.environ` as it is now.
    """
    progress = (os.environ if environ is None else environ).get(PROGRESS_VARIABLE)
    if progress is None or note in noted_barriers(Path(progress).parent):
        return
    with open(Path(progress).with_name(_FILE), "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(note)) + "\n")


def noted_barriers(folder: Path) -> list[BarrierNote]:
    """Those that were noted in the folder of a task, in the order in which they were made."""
    try:
        text = (folder / _FILE).read_text("utf-8")
    except FileNotFoundError:
        return []
    # What follows the last end of a line is being written.
    lines = text.split("\n")[:-1]
    return list(dict.fromkeys(BarrierNote(**json.loads(line)) for line in lines))


class PassMark:
    """A file that is touched when this trainer passes a barrier; without a launcher there is none.

    Args:
        environ: of the task; None for `os.environ` as it is now.
        every_secs: how often it is touched at most.
        clock: gives seconds that never go back.
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
        """Notes that it has passed."""
        if self._path is None or (now := self._clock()) < self._next:
            return
        self._next = now + self._every_secs
        self._path.touch()


def passed_at(folder: Path) -> int | None:
    """When the task of that folder last passed a barrier, in ns since 1970; None if it has not."""
    try:
        return (folder / _PASSED_FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return None
