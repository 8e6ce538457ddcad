"""A sample of a process for a verdict: its stacks, its kernel waits, and whether it works."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from tfdist.deadline import Deadline
from tfdist.diagnosis.evidence import (
    WAIT_FOR_SESSION,
    Child,
    Place,
    State,
    TaskEvidence,
    place_of,
)
from tfdist.diagnosis.kernel import (
    ChildState,
    Connection,
    KernelThreads,
    children_of,
    connections_of,
    cpu_times,
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
_WORKS_SHARE = 0.2  # of a core, during the sample
# On a busy machine a task that works gets less, but its threads are ready to run most of the time.
# Threads that wake up for a moment now and then may wait as long for a CPU, but hardly use one.
_LEAST_SHARE, _READY_SHARE = 0.03, 0.5
_NO_WAITS = (Place.EAGER, Place.PYTHON)
# A process that waits for another one on this machine, such as one of a pool without work.
_IDLE_CHILD = ("futex", "pipe_read")
_RESENT = 2  # times: after some 0.6 s without an answer


@dataclass(frozen=True)
class Sample:
    """What was seen of a process.

    Attributes:
        answer: its stacks.
        kernel: its threads before it was asked for the stacks.
        waits: for each kernel function, the number of threads that waited in it all the time.
        main_wait: the kernel function in which its main thread waited all the time, or "".
        children: the processes that it has started.
        works: whether it used the CPU, or read from a disk.
        cpu_wait: share of the time in which its threads were ready to run, but had no CPU.
        connections: its TCP connections.
        takers: the remote ends that took part of a long message.
    """

    answer: Answer
    kernel: KernelThreads = field(default_factory=KernelThreads)
    waits: dict[str, int] = field(default_factory=dict)
    main_wait: str = ""
    children: tuple[Child, ...] = ()
    works: bool = False
    cpu_wait: float = 0.0
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
            main_wait=self.main_wait,
            children=self.children,
            works=self.works,
            cpu_wait=self.cpu_wait,
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
        times, children = cpu_times(process.pid), children_of(process.pid)
        takers = takers_of(process.pid, _SAMPLE_SECS)
        secs = time.monotonic() - start
        used = (_cpu_secs(process) - cpu_secs) / secs
        is_ready, cpu_wait = _readiness(times, cpu_times(process.pid), secs)
        after = kernel_threads(process.pid)
        moves = _moves(answer, ask_it)
        return Sample(
            answer,
            before,
            dict(_waits(before) & _waits(after)),  # a read from a disk waits only for a moment
            _main_wait(before) if _main_wait(before) == _main_wait(after) else "",
            _children(children, children_of(process.pid)),
            works=used >= _WORKS_SHARE or is_ready or moves or _bytes_read(process) > read,
            cpu_wait=cpu_wait,
            connections=connections_of(process.pid),
            takers=takers,
        )
    except psutil.NoSuchProcess:
        return Sample(Answer(GONE))


_Times = Mapping[int, tuple[float, float]]


def _readiness(before: _Times, after: _Times, secs: float) -> tuple[bool, float]:
    """Whether its threads had work most of the time, and in which share of that they had no CPU."""
    both = after.keys() & before.keys()
    ran, waited = (
        sum(after[thread][which] - before[thread][which] for thread in both) / secs
        for which in (0, 1)
    )
    ready = ran + waited
    is_ready = ran >= _LEAST_SHARE and ready >= _READY_SHARE
    return is_ready, round(waited / ready, 3) if ready > 0 else 0.0


def _children(
    before: Mapping[int, ChildState], after: Mapping[int, ChildState]
) -> tuple[Child, ...]:
    def is_idle(pid: int) -> bool:
        child = after[pid]
        # With several threads the main one may wait for another thread that works.
        is_alone = child.threads == 1 and before.get(pid) == child
        return is_alone and any(name in child.wchan for name in _IDLE_CHILD)

    return tuple(
        Child(pid, child.exit_code, works=child.exit_code is None and not is_idle(pid))
        for pid, child in after.items()
    )


def _main_wait(threads: KernelThreads) -> str:
    return threads.main.wchan if threads.main is not None else ""


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


def _waits(threads: KernelThreads) -> Counter[str]:
    """The number of threads that wait in each kernel function."""
    waits = Counter[str]()
    for thread, count in threads.others.items():
        waits[thread.wchan] += count
    if threads.main is not None:
        waits[threads.main.wchan] += 1
    del waits[""]
    return waits
