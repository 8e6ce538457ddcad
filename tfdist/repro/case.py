"""A case of the lab: a small job that goes wrong in one known way, and the same job fixed.

Nothing here imports TensorFlow.
"""

from __future__ import annotations

import importlib
import os
import random
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfdist.cluster.shape import Shape
from tfdist.deadline import Deadline
from tfdist.diagnosis.verdict import Name
from tfdist.errors import StartTimeout, reason_of
from tfdist.runs import events as notes
from tfdist.task import PROGRESS_VARIABLE, Task

_EVENT_SECS = 40.0
_POLL_SECS = 0.02


@dataclass(frozen=True)
class Case:
    """A job to play, and the verdict that it must get.

    Each trainer of "sync/worker-short" runs `worker_short` of `tfdist.repro.scenarios.sync`. With
    the fix it runs `worker_short_fixed`, which must end with every example read.

    Attributes:
        name: the family, a slash and the case, such as "sync/worker-short".
        about: what the job does and what goes wrong.
        fix: what the fixed job does instead, and why that works.
        expects: the verdict; for a race, every verdict that may come.
        shape: the tasks of the job.
        examples: how many examples there are to read; None if the job reads none.
        issues: of tensorflow/tensorflow, where users reported it.
        runs: how often to play it by default; more than once for a race.
        stall_secs: how long the job makes no progress before it is diagnosed.
        deadline_secs: limit of a run; the job is then diagnosed as it is.
        settings: what else the trainers need, a frozen record of the case's own.
    """

    name: str
    about: str
    fix: str
    expects: tuple[Name, ...]
    shape: Shape = field(default_factory=Shape)
    examples: int | None = None
    issues: tuple[int, ...] = ()
    runs: int = 1
    stall_secs: float = 2.0
    deadline_secs: float = 60.0
    settings: Any = None

    @property
    def family(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def module(self) -> str:
        """The module of `tfdist.repro.scenarios` with the job; also the name of its page."""
        return self.family.replace("-", "_")

    def play(self, *, fixed: bool) -> Callable[[Actor], None]:
        """The function that each trainer runs; this imports TensorFlow."""
        name = self.name.partition("/")[2].replace("-", "_")
        module = importlib.import_module(f"tfdist.repro.scenarios.{self.module}")
        play: Callable[[Actor], None] = getattr(module, f"{name}_fixed" if fixed else name)
        return play


@dataclass(frozen=True)
class Part:
    """What the process of a trainer runs: the function of the case, with a note of how it ends.

    An error ends only the trainer that raises it: the lab shows what then becomes of the others.
    """

    case: Case
    fixed: bool
    seed: int
    folder: str

    def __call__(self, task: Task) -> None:
        """Plays the case as `task`."""
        actor = Actor(task, Path(self.folder), self.seed, self.case.settings)
        try:
            self.case.play(fixed=self.fixed)(actor)
        except Exception as error:
            traceback.print_exc()
            actor.end(error)
        else:
            actor.end()


class Actor:
    """One trainer of a case: the argument of the case's function.

    The trainer reports to the lab, and agrees with the other trainers, through files.

    Attributes:
        task: the task that this process plays.
        random: a generator seeded by the run and the rank.
        folder: a folder that all tasks of the run share.
        settings: those of the case.
    """

    def __init__(self, task: Task, folder: Path, seed: int, settings: Any) -> None:
        self.task, self.folder, self.settings = task, folder, settings
        self.random = random.Random(f"{seed}/{task.name}")
        self._notes = notes.NoteFile(Path(os.environ[PROGRESS_VARIABLE]).parent / notes.NOTES_FILE)

    def describe(self, **values: Any) -> None:
        """Reports fields of `TaskEvidence` that cannot be seen from outside the process."""
        self._notes.write(notes.ABOUT, **values)

    def step(self, read: Iterable[int] = ()) -> None:
        """Reports a step, and the numbers of the examples that it read."""
        self._notes.write(notes.STEP, read=[int(number) for number in read])

    def saved(self, step: int) -> None:
        """Reports a checkpoint of this global step."""
        self._notes.write(notes.SAVED, step=int(step))

    def reached(self, step: int) -> None:
        """Reports the global step at the end of the training."""
        self.describe(global_step=int(step))

    def leave(self) -> None:
        """Reports that the trainer takes no further part, although its process stays."""
        self._notes.write(notes.LEFT)

    def end(self, error: BaseException | None = None) -> None:
        """Reports that the function has returned, or the error that it raised."""
        if error is None:
            self._notes.write(notes.ENDED)
        else:
            reason = reason_of(str(error)) or repr(error)
            self._notes.write(notes.FAILED, error=f"{type(error).__name__}: {reason}"[:300])

    def fault(self, what: str, task: str) -> None:
        """Asks the lab to kill, pause, resume or restart a task; blocks until that is done."""
        self._notes.write(notes.FAULT, what=what, task=task)
        self.wait_for(f"{what} {task}")

    def announce(self, event: str) -> None:
        """Releases every task that waits for this event."""
        event_file(self.folder, event).touch()

    def wait_for(self, event: str, timeout: float = _EVENT_SECS) -> None:
        """Blocks until a task announces the event; the lab itself announces "ended worker:1".

        Raises:
            StartTimeout: no task announced it in time.
        """
        deadline = Deadline(timeout)
        while not event_file(self.folder, event).exists():
            if deadline.expired:
                raise StartTimeout([self.task.name], timeout, f"It waits for: {event}.")
            time.sleep(_POLL_SECS)


def event_file(folder: Path, event: str) -> Path:
    """The file that exists once the event has been announced."""
    return folder / f"event-{event.replace(' ', '-')}"
