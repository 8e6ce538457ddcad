"""A sample of a process for a verdict: its stacks, its kernel waits, and whether it works."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tfdist.deadline import Deadline
from tfdist.diagnosis.evidence import (
    POOL_HANDLER,
    RUNTIME,
    WAIT_FOR_SESSION,
    Child,
    Frame,
    Place,
    Stack,
    State,
    TaskEvidence,
    place_of,
)
from tfdist.diagnosis.kernel import (
    ChildState,
    Connection,
    Ends,
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
    with_lock,
)
from tfdist.errors import DataError
from tfdist.runs.files import read_file

_ANSWER_SECS = 3.0
_SAMPLE_SECS = 1.0
_SOURCE_BYTES = 2**22
# Looks at the children of a process during the sample: those of a pool may live for milliseconds.
_LOOKS, _LOOKS_AT_POOL = 2, 8
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
        replaced: those that ended during the sample while others took their place.
        works: whether it used the CPU, or read from a disk.
        cpu_wait: share of the time in which its threads were ready to run, but had no CPU.
        connections: its TCP connections.
        takers: the remote ends that took part of a long message.
        stacks: those of the answer, with the locks that the threads acquire.
    """

    answer: Answer
    kernel: KernelThreads = field(default_factory=KernelThreads)
    waits: dict[str, int] = field(default_factory=dict)
    main_wait: str = ""
    children: tuple[Child, ...] = ()
    replaced: tuple[Child, ...] = ()
    works: bool = False
    cpu_wait: float = 0.0
    connections: tuple[Connection, ...] = ()
    takers: frozenset[str] = frozenset()
    stacks: tuple[Stack, ...] = ()

    @property
    def state(self) -> State:
        """The state of the process."""
        return {STOPPED: State.STOPPED, GONE: State.DEAD}.get(self.answer.state, State.RUNS)

    def evidence(self, **known: Any) -> TaskEvidence:
        """The sample as evidence, with what else is known of the task."""
        return TaskEvidence(
            **known,
            state=self.state,
            stacks=self.stacks or self.answer.stacks,
            waits=self.waits,
            main_wait=self.main_wait,
            children=self.children,
            replaced=self.replaced,
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
        takers, looks = frozenset[str](), [children]
        has_pool = any(stack.calls(POOL_HANDLER) for stack in answer.stacks)
        num_looks = _LOOKS_AT_POOL if has_pool else _LOOKS
        with Ends() as ends:
            gone = [ends.of(children)]
            for _ in range(num_looks):
                takers |= takers_of(process.pid, _SAMPLE_SECS / num_looks)
                looks.append(children_of(process.pid))
                gone.append(ends.of(looks[-1]))
        secs = time.monotonic() - start
        used = (_cpu_secs(process) - cpu_secs) / secs
        is_ready, cpu_wait = _readiness(times, cpu_times(process.pid), secs)
        after = kernel_threads(process.pid)
        again = _again(answer, ask_it)
        stays = again is None or _main(again) in (None, _main(answer))
        main_wait = _main_wait(before) if _main_wait(before) == _main_wait(after) else ""
        return Sample(
            answer,
            before,
            dict(_waits(before) & _waits(after)),  # a read from a disk waits only for a moment
            main_wait,
            _children(children, looks[-1], die=sum(any(one.values()) for one in gone) > 1),
            _replaced(looks, gone),
            works=used >= _WORKS_SHARE or is_ready or not stays or _bytes_read(process) > read,
            cpu_wait=cpu_wait,
            connections=connections_of(process.pid),
            takers=takers,
            stacks=_with_locks(answer, again, ask_it) if "futex" in main_wait else answer.stacks,
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


def _replaced(
    looks: Sequence[Collection[int]], gone: Iterable[Mapping[int, int | None]]
) -> tuple[Child, ...]:
    """The children that ended while others were started, as when a process of a pool has died."""
    is_new = any(after - before for before, after in pairwise(map(set, looks)))
    return tuple(Child(pid, end) for one in gone for pid, end in one.items() if is_new)


def _children(
    before: Mapping[int, ChildState], after: Mapping[int, ChildState], *, die: bool = False
) -> tuple[Child, ...]:
    """The children; `die` says that one after the other dies."""

    def works(pid: int) -> bool:
        child = after[pid]
        if child.exit_code is not None or child.is_stopped:
            return False
        if pid not in before:
            return not die
        # With several threads the main one may wait for another thread that works.
        is_alone = child.threads == 1 and before[pid] == child
        return not is_alone or not any(name in child.wchan for name in _IDLE_CHILD)

    return tuple(
        Child(pid, child.exit_code, works(pid), child.is_stopped, _age(child))
        for pid, child in after.items()
    )


def _age(child: ChildState) -> float | None:
    return round(child.secs, 1) if child.start_ticks else None


def _main_wait(threads: KernelThreads) -> str:
    return threads.main.wchan if threads.main is not None else ""


def _main(answer: Answer) -> tuple[Frame, ...] | None:
    """The calls of the main thread."""
    return next((stack.frames for stack in answer.stacks if stack.main), None)


def _again(first: Answer, ask_it: Callable[[], Answer]) -> Answer | None:
    """The stacks once more, if the main thread was in no wait: it moves while it builds a graph.

    Other processes are asked again only about locks: each signal is a small risk (`stacks.ask`).
    """
    main = _main(first)
    return ask_it() if main is not None and place_of(Stack(main)) in _NO_WAITS else None


def _with_locks(
    first: Answer, again: Answer | None, ask_it: Callable[[], Answer]
) -> tuple[Stack, ...]:
    """The stacks, with the locks that threads of the script acquire all the time."""
    main = _main(first)
    if main is None or place_of(Stack(main)) not in (Place.WAIT, Place.PYTHON):
        return first.stacks
    at_lines = [
        one for one in first.stacks if place_of(one) is Place.PYTHON and not one.is_of_runtime
    ]
    sources = _sources(
        {
            frame.file
            for stack in at_lines
            for frame in stack.frames
            if frame is stack.frames[0] or not RUNTIME.search(frame.file)
        }
    )
    seen = {one: with_lock(one, sources) for one in at_lines}
    if not any(one.acquires for one in seen.values()):
        return first.stacks
    stay = set((again or ask_it()).stacks)
    return tuple(seen[one] if one in seen and one in stay else one for one in first.stacks)


def _sources(files: Collection[str]) -> dict[str, str]:
    """The texts of these files; not of one on a disk that does not answer."""
    texts: dict[str, str] = {}

    def read() -> None:
        for file in files:
            with suppress(OSError, DataError):
                data = read_file(Path(os.path.realpath(file)), most=_SOURCE_BYTES)
                texts[file] = data.decode("utf-8", "replace")

    thread = threading.Thread(target=read, name="sources", daemon=True)
    thread.start()
    thread.join(_SAMPLE_SECS)
    return dict(texts)


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
