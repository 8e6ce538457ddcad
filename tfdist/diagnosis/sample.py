"""A sample of a process for a verdict: its stacks, its kernel waits, and whether it works."""

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
from tfdist.diagnosis.evidence import WAIT_FOR_SESSION, Place, State, TaskEvidence, place_of
from tfdist.diagnosis.kernel import (
    Connection,
    KernelThreads,
    connections_of,
    kernel_threads,
    takers_of,
)
from tfdist.diagnosis.stacks import (
    ANSWERED,
    GONE,
    STOPPED,
    STOPPED_STATES,
    Answer,
    ask,
    py_spy_stacks,
)

_ANSWER_SECS = 3.0
_SAMPLE_SECS = 1.0
_AGAIN_SECS = 0.1
_WORKS_SHARE, _LEAST_SHARE = 0.2, 0.03  # of a core, during the sample
_NO_WAITS = (Place.EAGER, Place.PYTHON)
_RUNNING = "running"
_RESENT = 2  # times: after some 0.6 s without an answer


@dataclass(frozen=True)
class Sample:
    """What was seen of a process.

    Attributes:
        answer: its stacks.
        kernel: its threads before it was asked for the stacks.
        waits: for each kernel function, the number of threads that waited in it all the time.
        works: whether it used the CPU, or read from a disk.
        connections: its TCP connections.
        takers: the remote ends that took part of a long message.
    """

    answer: Answer
    kernel: KernelThreads = field(default_factory=KernelThreads)
    waits: dict[str, int] = field(default_factory=dict)
    works: bool = False
    connections: tuple[Connection, ...] = ()
    takers: frozenset[str] = frozenset()

    @property
    def state(self) -> State:
        """The state of the process."""
        return {STOPPED: State.STOPPED, GONE: State.DEAD}.get(self.answer.state, State.RUNS)

    def evidence(self, **known: Any) -> TaskEvidence:
        """The sample as evidence, with what else is known of the task."""
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
    tasks: Iterable[TaskEvidence], samples: Mapping[str, Sample]
) -> tuple[TaskEvidence, ...]:
    """The tasks, with names instead of addresses for those peers that were sampled too.

    Args:
        tasks: as `Sample.evidence` makes them.
        samples: of the tasks whose processes exist, by name.
    """
    names = {end.local: name for name, one in samples.items() for end in one.connections}

    def named(ends: Iterable[str]) -> tuple[str, ...]:
        # Two tasks have several connections; the name counts once.
        return tuple(dict.fromkeys(names.get(end, end) for end in ends))

    return tuple(
        replace(task, unanswered=named(task.unanswered), sends_to=named(task.sends_to))
        for task in tasks
    )


def take_sample(process: psutil.Process, stacks: Path) -> Sample:
    """Samples a process that tfdist started; blocks for a second, or five if it does not answer.

    Args:
        process: asked for its stacks only if it has a handler for STACKS_SIGNAL.
        stacks: the file that its handler appends to.
    """
    return _take(process, lambda: ask(process, stacks, _ANSWER_SECS))


def sample_foreign(process: psutil.Process) -> Sample:
    """Samples any Python process, by py-spy; blocks for some seconds.

    Raises:
        ClusterError: py-spy is not installed, or cannot read the process.
    """

    def asked() -> Answer:
        if process.status() in STOPPED_STATES:
            return Answer(STOPPED)  # py-spy cannot read a stopped process
        return Answer(ANSWERED, py_spy_stacks(process.pid))

    return _take(process, asked)


def _take(process: psutil.Process, ask_it: Callable[[], Answer]) -> Sample:
    try:
        before = kernel_threads(process.pid)  # before the signal wakes a thread
        answer = _asked(ask_it)
        if answer.state in (STOPPED, GONE):
            return Sample(answer, before, connections=connections_of(process.pid))
        start = time.monotonic()
        # Measured from here: to write the stacks is no work of the task.
        cpu_secs, read = _cpu_secs(process), _bytes_read(process)
        takers = takers_of(process.pid, _SAMPLE_SECS)
        used = (_cpu_secs(process) - cpu_secs) / (time.monotonic() - start)
        after = kernel_threads(process.pid)
        spins = _has_running(before) and _has_running(after)
        moves = _moves(answer, ask_it)
        return Sample(
            answer,
            before,
            dict(_waits(before) & _waits(after)),  # a read from a disk waits only for a moment
            works=used >= _works_share() or spins or moves or _bytes_read(process) > read,
            connections=connections_of(process.pid),
            takers=takers,
        )
    except psutil.NoSuchProcess:
        return Sample(Answer(GONE))


def _works_share() -> float:
    """The share of a core that counts as work; on a busy machine a task gets less."""
    crowd = os.getloadavg()[0] / (os.cpu_count() or 1)
    return max(_LEAST_SHARE, _WORKS_SHARE / max(1.0, crowd))


def _moves(first: Answer, ask_it: Callable[[], Answer]) -> bool:
    """Whether a main thread that was in no wait has moved, as while it builds a graph.

    Only such a thread is asked again, since each signal is a small risk; see `stacks.ask`.
    """
    before = next((stack for stack in first.stacks if stack.main), None)
    if before is None or place_of(before) not in _NO_WAITS:
        return False
    after = next((stack for stack in ask_it().stacks if stack.main), before)
    return after.frames != before.frames


def _asked(ask_it: Callable[[], Answer]) -> Answer:
    """The stacks; asked again while the main thread may be in a call only for a moment.

    A trainer that waits for the chief makes and closes a session at each check. Only if it stays
    in one of these calls does it hang there.
    """
    deadline = Deadline(_SAMPLE_SECS)
    while True:
        answer = ask_it()
        if deadline.expired or not any(
            stack.main and stack.calls(WAIT_FOR_SESSION) and place_of(stack) is not Place.STARTING
            for stack in answer.stacks
        ):
            return answer
        time.sleep(_AGAIN_SECS)


def _cpu_secs(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _bytes_read(process: psutil.Process) -> int:
    """Bytes read from disks; 0 for another user's process."""
    try:
        return int(process.io_counters().read_bytes)
    except (psutil.AccessDenied, PermissionError):
        return 0


def _has_running(threads: KernelThreads) -> bool:
    found = [*threads.others, *filter(None, [threads.main])]
    return any(thread.state == _RUNNING for thread in found)


def _waits(threads: KernelThreads) -> Counter[str]:
    """The number of threads that wait in each kernel function."""
    waits = Counter[str]()
    for thread, count in threads.others.items():
        waits[thread.wchan] += count
    if threads.main is not None:
        waits[threads.main.wchan] += 1
    del waits[""]
    return waits
