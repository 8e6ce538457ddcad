"""Looks at the tasks of a case, and puts down what a verdict needs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tfdist.diagnosis.evidence import Evidence, State, TaskEvidence
from tfdist.diagnosis.sample import Sighting, name_peers, sight
from tfdist.runs import events as notes
from tfdist.runs.events import Noted, noted
from tfdist.runs.folder import STACKS_FILE, RunFolder, TaskRecord


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
    from tfdist.data.ledger import Ledger

    said = noted(run)
    records = {record.name: record for record in run.latest()}
    names = run.about.tasks
    seen: dict[str, Sighting] = {}
    with ThreadPoolExecutor(len(names)) as pool:
        tasks = pool.map(
            lambda name: _task(run, name, records.get(name), said, seen, name in trainers, over),
            names,
        )
        evidence = name_peers(list(tasks), seen)
    ledger = Ledger()
    for note in (note for one in said.values() for note in one.all(notes.STEP)):
        ledger.add(note.values["read"])
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
    record: TaskRecord | None,
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
        "quiet_secs": time.monotonic() - one.attempts[-1][-1].at
        if one.attempts and one.attempts[-1]
        else 0,
        **about,
    }
    if record is None:
        return TaskEvidence(**common, state=State.ABSENT)
    for kind, state in ((notes.FAILED, State.FAILED), (notes.ENDED, State.ENDED)):
        if (end := one.last(kind)) is not None:
            ago = time.monotonic() - end.at
            return TaskEvidence(
                **common, state=state, ended_secs=ago, error=end.values.get("error")
            )
    if record.ended is not None:
        ago = time.time() - record.ended
        return TaskEvidence(**common, state=_end_of(record, trains, over), ended_secs=ago)
    process = record.process
    if process is None:
        return TaskEvidence(**common, state=State.DEAD)
    seen[name] = sight(process, run.folder_of(name, record.attempt) / STACKS_FILE)
    return seen[name].evidence(**common)


def _end_of(record: TaskRecord, trains: bool, over: bool) -> State:
    # Who trains notes its end, unless it is killed; whoever serves is ended by the lab.
    if record.terminated and not trains and over:
        return State.ENDED
    return State.ENDED if record.exit_code == 0 and not trains else State.DEAD
