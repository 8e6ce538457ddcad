"""Looks at the tasks of a case, and puts down what a verdict needs."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tfdist.cluster.kernel_threads import KernelThreads, kernel_threads
from tfdist.cluster.processes import STACKS_FILE
from tfdist.cluster.run_folder import RunFolder, TaskRecord
from tfdist.cluster.stacks import GONE, STOPPED, Answer, ask
from tfdist.deadline import Deadline
from tfdist.evidence import Evidence, Place, State, TaskEvidence, place_of
from tfdist.ledger import Ledger
from tfdist.repro import notes
from tfdist.repro.notes import Note, read_notes

_ANSWER_SECS = 3.0
_SAMPLE_SECS = 1.0
_AGAIN_SECS = 0.1
_WORKS_SHARE, _LEAST_SHARE = 0.2, 0.03  # of a core, while it is looked at
_NO_WAITS = (Place.EAGER, Place.PYTHON)
_RUNNING = "running"


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
    said = noted(run)
    lives = {life.name: life for life in run.latest()}
    names = run.about["tasks"]
    with ThreadPoolExecutor(len(names)) as pool:
        tasks = pool.map(
            lambda name: _task(run, name, lives.get(name), said, name in trainers, over), names
        )
        evidence = tuple(tasks)
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


def _plays(run: RunFolder, life: TaskRecord) -> bool:
    """Whether it runs the case; a worker that serves a coordinator does not, and notes nothing."""
    return (run.folder_of(life.name, life.attempt) / notes.NOTES_FILE).exists()


def _task(
    run: RunFolder,
    name: str,
    life: TaskRecord | None,
    said: Mapping[str, Noted],
    trains: bool,
    over: bool,
) -> TaskEvidence:
    one = said.get(name, Noted())
    trains = trains and (life is None or _plays(run, life))
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
    before = kernel_threads(life.pid)
    answer = _ask(process, run.folder_of(name, life.attempt) / STACKS_FILE)
    return _living(run, common, life, process, answer, before)


def _ask(process: psutil.Process, path: Path) -> Answer:
    """Where it stands; asked again while it may be passing by.

    Who waits for the chief makes a session each time that it looks, and closes it: only if it
    stays in there does it hang there.
    """
    deadline = Deadline(_SAMPLE_SECS)
    while True:
        answer = ask(process, path, _ANSWER_SECS)
        if deadline.expired or not any(
            stack.main
            and stack.has("wait_for_session", "session_manager.py")
            and place_of(stack) is not Place.STARTING
            for stack in answer.stacks
        ):
            return answer
        time.sleep(_AGAIN_SECS)


def _end_of(life: TaskRecord, trains: bool, over: bool) -> State:
    # Who trains notes its end, unless it is killed; whoever serves is ended by the lab.
    if life.stopped and not trains and over:
        return State.ENDED
    return State.ENDED if life.exit_code == 0 and not trains else State.DEAD


def _living(
    run: RunFolder,
    common: dict[str, Any],
    life: TaskRecord,
    process: psutil.Process,
    answer: Answer,
    before: KernelThreads,
) -> TaskEvidence:
    if answer.state in (STOPPED, GONE):
        state = State.STOPPED if answer.state == STOPPED else State.DEAD
        return TaskEvidence(**common, state=state)
    start = time.monotonic()
    # The answer itself is not work of the task.
    cpu_asked, read_asked = _cpu_secs(process), _bytes_read(process)
    time.sleep(_SAMPLE_SECS)
    used = (_cpu_secs(process) - cpu_asked) / (time.monotonic() - start)
    after = kernel_threads(life.pid)
    spins = bool(_running(before)) and bool(_running(after))
    moves = _moves(
        answer, ask(process, run.folder_of(life.name, life.attempt) / STACKS_FILE, _ANSWER_SECS)
    )
    return TaskEvidence(
        **common,
        stacks=answer.stacks,
        waits=dict(_waits(before) & _waits(after)),  # who reads from a disk waits only for moments
        works=used >= _works_share() or spins or moves or _bytes_read(process) > read_asked,
    )


def _works_share() -> float:
    """Of a core; on a crowded machine a task that works gets less of it."""
    crowd = os.getloadavg()[0] / (os.cpu_count() or 1)
    return max(_LEAST_SHARE, _WORKS_SHARE / max(1.0, crowd))


def _moves(first: Answer, second: Answer) -> bool:
    """Whether a main thread that is in no wait stands elsewhere now, as one that builds a graph."""
    stacks = [next((s for s in answer.stacks if s.main), None) for answer in (first, second)]
    if stacks[0] is None or stacks[1] is None or place_of(stacks[0]) not in _NO_WAITS:
        return False
    return stacks[0].frames != stacks[1].frames


def _cpu_secs(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _bytes_read(process: psutil.Process) -> int:
    """From disks; what was in memory, or is of another user, does not count."""
    try:
        return int(process.io_counters().read_bytes)
    except (psutil.Error, AttributeError, PermissionError):
        return 0


def _running(threads: KernelThreads) -> int:
    others = sum(count for thread, count in threads.others.items() if thread.state == _RUNNING)
    return others + (threads.main is not None and threads.main.state == _RUNNING)


def _waits(threads: KernelThreads) -> Counter[str]:
    waits = Counter[str]()
    for thread, count in threads.others.items():
        waits[thread.wchan] += count
    if threads.main is not None:
        waits[threads.main.wchan] += 1
    del waits[""]
    return waits
