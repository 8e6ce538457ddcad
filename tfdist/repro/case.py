"""A case of the lab: a small job that goes wrong in one known way, and the same job fixed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfdist.cluster.shape import Shape
from tfdist.diagnosis.verdict import Name
from tfdist.repro.actor import Actor
from tfdist.task import Task


@dataclass(frozen=True)
class Case:
    """What is played, and what has to come of it.

    Each trainer of "sync/worker-short" runs `worker_short` of `tfdist.repro.scenarios.sync`; fixed,
    `worker_short_fixed`, which has to end, with every example read.

    Attributes:
        name: such as "sync/worker-short", the family first.
        about: what happens, in a line.
        fix: what the fixed one does otherwise, in a line.
        expects: the verdict; of a race, each that may come.
        shape: its tasks.
        examples: how many there are to read; None where nothing is read.
        issues: of tensorflow/tensorflow, where it was reported.
        runs: how often it is played by default; a race more than once.
        stall_secs: for how long nobody gets on before it is looked at.
        deadline_secs: of a run; it is diagnosed then as it stands.
        settings: what else its trainers have to know.
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
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def module(self) -> str:
        """The module of `tfdist.repro.scenarios` that has it; its page in docs/hangs too."""
        return self.family.replace("-", "_")

    def play(self, *, fixed: bool) -> Callable[[Actor], None]:
        """The function that each trainer runs; importing it imports TensorFlow."""
        name = self.name.partition("/")[2].replace("-", "_")
        module = importlib.import_module(f"tfdist.repro.scenarios.{self.module}")
        play: Callable[[Actor], None] = getattr(module, f"{name}_fixed" if fixed else name)
        return play


@dataclass(frozen=True)
class Part:
    """What a trainer's process runs: the case, with notes of how it ends.

    An error ends only the trainer that has it: the lab is about what becomes of the others.
    """

    case: Case
    fixed: bool
    seed: int
    folder: str

    def __call__(self, task: Task) -> None:
        """Plays it as `task`."""
        actor = Actor(task, Path(self.folder), self.seed, self.case.settings)
        try:
            self.case.play(fixed=self.fixed)(actor)
        except Exception as error:
            actor.end(error)
        else:
            actor.end()
