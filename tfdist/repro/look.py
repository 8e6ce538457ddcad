"""Looks at the tasks of a case, and puts down what a verdict needs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tfdist.cluster.processes import STACKS_FILE
from tfdist.cluster.run_folder import RunFolder, TaskRecord
from tfdist.cluster.sighting import Sighting, name_peers, sight
from tfdist.evidence import Evidence, State, TaskEvidence
from tfdist.repro import notes
from tfdist.repro.notes import Note, read_notes


@dataclass
class Noted:
    """What a task has noted in its lives, the last one last.

    Attributes:
        lives: the notes of each life.
    """

    lives: list[list[Note]] = field(default_factory=list)

    def all(self, kind: str) -> list[Note]:
        """Those of one kind, of all lives."""
        return [note for life in self.lives for note in life if note.kind == kind]

    def last(self, kind: str) -> Note | None:
        """The last one of a kind, in the last life."""
        found = [note for note in self.lives[-1] if note.kind == kind] if self.lives else []
        return found[-1] if found else None

    def about(self) -> dict[str, Any]:
        """What the last life has told of itself."""
        values: dict[str, Any] = {}
        for note in self.lives[-1] if self.lives else []:
            if note.kind == notes.ABOUT:
                values |= note.values
        return values


def noted(run: RunFolder) -> dict[str, Noted]:
    """What the tasks of a run have noted, by name."""
    found: dict[str, Noted] = {}
    for life in run.lives():
        path = run.folder_of(life.name, life.attempt) / notes.NOTES_FILE
        found.setdefault(life.name, Noted()).lives.append(read_notes(path))
    return found


def look(
    run: RunFolder, trainers: Sequence[str], *, seconds: float, over: bool, expected: int | None
) -> Evidence:
    """All that a verdict is made of; blocks for some seconds unless the run is over.

    Args:
        run: that goes on, or is over.
        trainers: names of those tasks that train.
        seconds: since anybody has got on.
        over: whether it is over.
        expected: how many examples there are.
    """
    # Not before: numpy starts threads, with which a process cannot be isolated any more.
    from tfdist.ledger import Ledger

    said = noted(run)
    lives = {life.name: life for life in run.latest()}
    names = run.about["tasks"]
    seen: dict[str, Sighting] = {}
    with ThreadPoolExecutor(len(names)) as pool:
        tasks = pool.map(
            lambda name: _task(run, name, lives.get(name), said, seen, name in trainers, over),
            names,
        )
        evidence = name_peers(list(tasks), seen)
    ledger = Ledger()
    for note in (note for one in said.values() for note in one.all(notes.STEP)):
        ledger.add(note.values["visited"])
    audit = ledger.audit(expected) if expected is not None else None
    steps = [
        about["global_step"] for one in said.values() if "global_step" in (about := one.about())
    ]
    saved = [note for one in said.values() for note in one.all(notes.SAVED)]
    return Evidence(
        tasks=evidence,
        over=over,
        seconds=seconds,
        expected=expected,
        missing=audit.missing if audit else (),
        duplicates=audit.duplicates if audit else (),
        step=max(steps, default=None),
        saved_step=max(saved, key=lambda note: note.at).values["step"] if saved else None,
    )


def _task(
    run: RunFolder,
    name: str,
    life: TaskRecord | None,
    said: Mapping[str, Noted],
    seen: dict[str, Sighting],
    trains: bool,
    over: bool,
) -> TaskEvidence:
    one = said.get(name, Noted())
    about = {key: value for key, value in one.about().items() if key != "global_step"}
    common: dict[str, Any] = {
        "name": name,
        "trains": trains,
        "left": one.last(notes.LEFT) is not None,
        "steps": len(one.all(notes.STEP)),
        "quiet_secs": time.monotonic() - one.lives[-1][-1].at if one.lives and one.lives[-1] else 0,
        **about,
    }
    if life is None:
        return TaskEvidence(**common, state=State.ABSENT)
    for kind, state in ((notes.FAILED, State.FAILED), (notes.ENDED, State.ENDED)):
        if (end := one.last(kind)) is not None:
            ago = time.monotonic() - end.at
            return TaskEvidence(
                **common, state=state, ended_secs=ago, error=end.values.get("error")
            )
    if life.ended is not None:
        ago = time.time() - life.ended
        return TaskEvidence(**common, state=_end_of(life, trains, over), ended_secs=ago)
    process = life.process
    if process is None:
        return TaskEvidence(**common, state=State.DEAD)
    seen[name] = sight(process, run.folder_of(name, life.attempt) / STACKS_FILE)
    return seen[name].evidence(**common)


def _end_of(life: TaskRecord, trains: bool, over: bool) -> State:
    # Who trains notes its end, unless it is killed; whoever serves is ended by the lab.
    if life.stopped and not trains and over:
        return State.ENDED
    return State.ENDED if life.exit_code == 0 and not trains else State.DEAD
