"""Looks at a process that lives, as a verdict needs it: where it stands, and whether it works."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from tfdist.deadline import Deadline
from tfdist.diagnosis import py_spy
from tfdist.diagnosis.connections import Connection, connections_of, takers_of
from tfdist.diagnosis.evidence import Place, State, TaskEvidence, place_of
from tfdist.diagnosis.kernel_threads import KernelThreads, kernel_threads
from tfdist.diagnosis.stacks import ANSWERED, GONE, STOPPED, STOPPED_STATES, Answer, ask

_ANSWER_SECS = 3.0
_SAMPLE_SECS = 1.0
_AGAIN_SECS = 0.1
_WORKS_SHARE, _LEAST_SHARE = 0.2, 0.03  # of a core, while it is looked at
_NO_WAITS = (Place.EAGER, Place.PYTHON)
_RUNNING = "running"
_RESENT = 2  # times: after some 0.6 s without an answer


@dataclass(frozen=True)
class Sighting:
    """What was seen of a process.

    Attributes:
        answer: to the question where it stands.
        kernel: its threads, before it was asked.
        waits: for each function of the kernel in which threads have waited for long, how many did.
        works: whether it has used the CPU, or read from a disk.
        connections: that it has.
        takers: remote ends of those that took a long message bit by bit.
    """

    answer: Answer
    kernel: KernelThreads = field(default_factory=KernelThreads)
    waits: dict[str, int] = field(default_factory=dict)
    works: bool = False
    connections: tuple[Connection, ...] = ()
    takers: frozenset[str] = frozenset()

    @property
    def state(self) -> State:
        """Whether it lives."""
        return {STOPPED: State.STOPPED, GONE: State.DEAD}.get(self.answer.state, State.RUNS)

    def evidence(self, **known: Any) -> TaskEvidence:
        """It as evidence, with what else is known of the task."""
        return TaskEvidence(
            **known,
            state=self.state,
            stacks=self.answer.stacks,
            waits=self.waits,
            works=self.works,
            unanswered=tuple(
                sorted({end.remote for end in self.connections if end.resent >= _RESENT})
            ),
            sends_to=tuple(sorted(self.takers)),
        )


def name_peers(
    tasks: Iterable[TaskEvidence], seen: Mapping[str, Sighting]
) -> tuple[TaskEvidence, ...]:
    """The tasks with the names of those at the other end, where these were seen too.

    Args:
        tasks: as `Sighting.evidence` gives them.
        seen: by name, those whose processes live.
    """
    names = {end.local: name for name, one in seen.items() for end in one.connections}

    def named(ends: Iterable[str]) -> tuple[str, ...]:
        # Once each: two tasks have several connections.
        return tuple(dict.fromkeys(names.get(end, end) for end in ends))

    return tuple(
        replace(task, unanswered=named(task.unanswered), sends_to=named(task.sends_to))
        for task in tasks
    )


def sight(process: psutil.Process, stacks: Path) -> Sighting:
    """Looks at it; blocks for a second, or up to five where it does not answer.

    Args:
        process: that has a handler for STACKS_SIGNAL; another one is not asked for its stacks.
        stacks: the file that its handler appends to.
    """
    return _sight(process, lambda: ask(process, stacks, _ANSWER_SECS))


def sample_foreign(process: psutil.Process) -> Sighting:
    """Looks at a process that tfdist need not have started, by py-spy; blocks for some seconds.

    Raises:
        ClusterError: py-spy is not installed, or cannot read it.
    """

    def asked() -> Answer:
        if process.status() in STOPPED_STATES:
            return Answer(STOPPED)  # py-spy cannot read it then
        return Answer(ANSWERED, py_spy.dump(process.pid))

    return _sight(process, asked)


def _sight(process: psutil.Process, ask_it: Callable[[], Answer]) -> Sighting:
    try:
        before = kernel_threads(process.pid)  # the question wakes it up
        answer = _asked(ask_it)
        if answer.state in (STOPPED, GONE):
            return Sighting(answer, before, connections=connections_of(process.pid))
        start = time.monotonic()
        # From here: the answer itself is not work of the task.
        cpu_secs, read = _cpu_secs(process), _bytes_read(process)
        takers = takers_of(process.pid, _SAMPLE_SECS)
        used = (_cpu_secs(process) - cpu_secs) / (time.monotonic() - start)
        after = kernel_threads(process.pid)
        spins = _has_running(before) and _has_running(after)
        moves = _moves(answer, ask_it)
        return Sighting(
            answer,
            before,
            dict(_waits(before) & _waits(after)),  # who reads from a disk waits only for moments
            works=used >= _works_share() or spins or moves or _bytes_read(process) > read,
            connections=connections_of(process.pid),
            takers=takers,
        )
    except psutil.NoSuchProcess:
        return Sighting(Answer(GONE))


def _works_share() -> float:
    """Of a core; on a crowded machine a task that works gets less of it."""
    crowd = os.getloadavg()[0] / (os.cpu_count() or 1)
    return max(_LEAST_SHARE, _WORKS_SHARE / max(1.0, crowd))


def _moves(first: Answer, ask_it: Callable[[], Answer]) -> bool:
    """Whether a main thread that is in no wait stands elsewhere now, as one that builds a graph.

    Only such a one is asked again: each question is a small risk; see `tfdist.diagnosis.stacks`.
    """
    before = next((stack for stack in first.stacks if stack.main), None)
    if before is None or place_of(before) not in _NO_WAITS:
        return False
    after = next((stack for stack in ask_it().stacks if stack.main), before)
    return after.frames != before.frames


def _asked(ask_it: Callable[[], Answer]) -> Answer:
    """Where it stands; asked again while it may be passing by.

    Who waits for the chief makes a session each time that it looks, and closes it: only if it
    stays in there does it hang there.
    """
    deadline = Deadline(_SAMPLE_SECS)
    while True:
        answer = ask_it()
        if deadline.expired or not any(
            stack.main
            and stack.has("wait_for_session", "session_manager.py")
            and place_of(stack) is not Place.STARTING
            for stack in answer.stacks
        ):
            return answer
        time.sleep(_AGAIN_SECS)


def _cpu_secs(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _bytes_read(process: psutil.Process) -> int:
    """From disks; what was in memory, or is of another user, does not count."""
    try:
        return int(process.io_counters().read_bytes)
    except (psutil.AccessDenied, PermissionError):
        return 0


def _has_running(threads: KernelThreads) -> bool:
    found = [*threads.others, *filter(None, [threads.main])]
    return any(thread.state == _RUNNING for thread in found)


def _waits(threads: KernelThreads) -> Counter[str]:
    """How many threads wait in each function of the kernel."""
    waits = Counter[str]()
    for thread, count in threads.others.items():
        waits[thread.wchan] += count
    if threads.main is not None:
        waits[threads.main.wchan] += 1
    del waits[""]
    return waits
