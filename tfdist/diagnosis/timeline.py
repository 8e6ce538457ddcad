"""What each task of a run did and when, for a picture of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfdist.runs import events as notes
from tfdist.runs.events import Noted, noted
from tfdist.runs.folder import RunFolder, TaskRecord


@dataclass(frozen=True)
class Event:
    """Something that a task noted.

    Attributes:
        at: in seconds since the run began.
        kind: as in `tfdist.runs.events`.
        text: of it.
    """

    at: float
    kind: str
    text: str


@dataclass(frozen=True)
class Track:
    """A task in a run.

    Attributes:
        name: of the task.
        attempts: when each of its processes began and was gone, in seconds since the run began.
        events: in the order of time.
    """

    name: str
    attempts: tuple[tuple[float, float], ...]
    events: tuple[Event, ...]


def timeline(
    run: RunFolder, until: float, seen: Mapping[str, Sequence[Event]] | None = None
) -> tuple[Track, ...]:
    """The tasks of a run in their order.

    Args:
        run: that goes on, or is over.
        until: seconds since it began, where those that live are cut off.
        seen: by task, what was seen of it from outside; if None, what it notes as one that plays
            a case.
    """
    about, said = run.about, noted(run) if seen is None else {}
    records: dict[str, list[TaskRecord]] = {name: [] for name in about.tasks}
    for record in run.records():
        records[record.name].append(record)
    return tuple(
        Track(
            name,
            tuple(
                (
                    record.began - about.began,
                    min(until, (record.ended or float("inf")) - about.began),
                )
                for record in records
            ),
            _events(said.get(name, Noted()), about.monotonic, until)
            if seen is None
            else tuple(seen.get(name, ())),
        )
        for name, records in records.items()
    )


def _events(one: Noted, began: float, until: float) -> tuple[Event, ...]:
    events = [
        Event(note.at - began, note.kind, _text(note))
        for record in one.attempts
        for note in record
        if note.kind != notes.ABOUT and note.at - began <= until
    ]
    return tuple(sorted(events, key=lambda event: event.at))


def _text(note: notes.Note) -> str:
    if note.kind == notes.STEP:
        return f"a step, examples {_shown(note.values['read'])}"
    if note.kind == notes.SAVED:
        return f"saved step {note.values['step']}"
    if note.kind == notes.FAULT:
        return f"{note.values['what']} {note.values['task']}"
    return {
        notes.LEFT: "takes no further part",
        notes.ENDED: "has ended",
        notes.FAILED: f"failed: {note.values.get('error')}",
    }[note.kind]


def _shown(read: Sequence[int]) -> str:
    if not read:
        return "none"
    return ", ".join(map(str, read)) if len(read) <= 8 else f"{min(read)}..{max(read)}"
