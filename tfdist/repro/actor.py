"""A trainer of a case: who it is, and how the lab hears of it. TensorFlow is not involved."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfdist.deadline import Deadline
from tfdist.errors import StartTimeout, reason_of
from tfdist.runs import events as notes
from tfdist.task import PROGRESS_VARIABLE, Task

_HEAR_SECS = 40.0
_POLL_SECS = 0.02


class Actor:
    """What the function of a case gets.

    Attributes:
        task: that this process is.
        random: seeded by the run and the rank.
        folder: one for all tasks of the run.
        settings: of the case.
    """

    def __init__(self, task: Task, folder: Path, seed: int, settings: Mapping[str, Any]) -> None:
        self.task, self.folder, self.settings = task, folder, settings
        self.random = random.Random(f"{seed}/{task.name}")
        self._notes = notes.NoteFile(Path(os.environ[PROGRESS_VARIABLE]).parent / notes.NOTES_FILE)

    def about(self, **values: Any) -> None:
        """Fields of `TaskEvidence` that nobody sees from outside."""
        self._notes.write(notes.ABOUT, **values)

    def step(self, read: Iterable[int] = ()) -> None:
        """A step is done, in which these examples were read."""
        self._notes.write(notes.STEP, read=[int(number) for number in read])

    def saved(self, step: int) -> None:
        """A checkpoint of this global step is written."""
        self._notes.write(notes.SAVED, step=int(step))

    def steps_in_all(self, step: int) -> None:
        """The global step that was reached, as it is known at last."""
        self._notes.write(notes.ABOUT, global_step=int(step))

    def leave(self) -> None:
        """It takes no further part, but lives on."""
        self._notes.write(notes.LEFT)

    def end(self, error: BaseException | None = None) -> None:
        """Its function has ended, perhaps with an error."""
        if error is None:
            self._notes.write(notes.ENDED)
        else:
            told = reason_of(str(error)) or repr(error)
            self._notes.write(notes.FAILED, error=f"{type(error).__name__}: {told}"[:300])

    def fault(self, what: str, task: str) -> None:
        """Asks the lab to kill, pause, resume or restart a task, and blocks until it has."""
        self._notes.write(notes.FAULT, what=what, task=task)
        self.hear(f"{what} {task}")

    def tell(self, event: str) -> None:
        """Tells all tasks that something has happened."""
        event_file(self.folder, event).touch()

    def hear(self, event: str, timeout: float = _HEAR_SECS) -> None:
        """Blocks until somebody has told it; "ended worker:1" the lab tells, when it is gone.

        Raises:
            StartTimeout: nobody has.
        """
        deadline = Deadline(timeout)
        while not event_file(self.folder, event).exists():
            if deadline.expired:
                raise StartTimeout([self.task.name], timeout, f"It waits for: {event}.")
            time.sleep(_POLL_SECS)


def event_file(folder: Path, event: str) -> Path:
    """Whose existence says that the event has happened."""
    return folder / f"event-{event.replace(' ', '-')}"
