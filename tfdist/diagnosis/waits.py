"""What the tasks of a job wait for or are busy with: pure functions for the rules."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from tfdist.diagnosis.evidence import (
    GENERATOR,
    SCHEDULED_FUNCTION,
    SCRIPT_OP,
    BarrierEvidence,
    Child,
    Evidence,
    Frame,
    Place,
    Stack,
    State,
    TaskEvidence,
    is_call_of,
    place_of,
)
from tfdist.errors import signal_name
from tfdist.runs.outcome import out_of_memory

# Places in which a task may be waiting for its input; in a barrier or in close it is not.
_MAY_READ = (Place.RUN, Place.EAGER, Place.INPUT, Place.SERVER, Place.WAIT, Place.UNKNOWN)
# Parts of the names of kernel functions in which a thread waits for something other than data:
# locks, timers, the network, signals, children, a connection or a reader, memory, and a write.
# TensorFlow's own threads are in futex_do_wait, do_epoll_wait and hrtimer_nanosleep (Linux 6.18).
_IDLE_WAITS = (
    *("futex", "poll", "select", "nanosleep", "sigtimedwait", "sigsuspend", "pause", "do_wait"),
    *("accept", "wait_for_more_packets", "pipe_write", "locks_lock", "setlk", "io_wq", "io_sq"),
    *("mmap", "mprotect", "brk", "dirty_pages", "writeback", "jbd2"),
)
_ENDS = {State.ENDED: "ended", State.FAILED: "failed"}


def running(evidence: Evidence) -> list[TaskEvidence]:
    """The tasks whose processes run and are not stopped."""
    return [task for task in evidence.tasks if task.state is State.RUNS]


def waiting(evidence: Evidence) -> list[TaskEvidence]:
    """The trainers that still have work to do."""
    return [task for task in running(evidence) if task.trains and not task.left]


def can_continue(evidence: Evidence) -> bool:
    """True if a live task can make progress without the missing ones."""
    in_python = any(python_call(task) for task in waiting(evidence))
    return bool(working(evidence) or sending(evidence) or in_python)


def working(evidence: Evidence) -> list[TaskEvidence]:
    """The tasks whose work is progress.

    A trainer that waits for the chief makes a session at each check. That uses the CPU of the
    trainer and of the ps, but is no progress.
    """
    tasks = running(evidence)
    checks = any(task.place is Place.STARTING for task in tasks)
    return [
        task
        for task in tasks
        if task.works
        and task.place is not Place.STARTING
        and (task.trains or not checks)
        and not _only_replaces_the_dead(task)
    ]


def work(task: TaskEvidence) -> str:
    """What a task that works is doing."""
    call = f": {task.call}" if task.call else ""
    no_cpu = f"; when ready to run, it has no CPU {task.cpu_wait:.0%} of the time"
    children = "".join(f"; {text}" for text in _children(task))
    return (
        f"{task.name} is using the CPU or reading from a disk{call}"
        f"{no_cpu if task.cpu_wait > 0.3 else ''}{children}"
    )


def _only_replaces_the_dead(task: TaskEvidence) -> bool:
    """Whether a task that waits for processes of a pool uses the CPU only to start new ones."""
    wait = python_wait(task) if any(child.exit_code for child in task.replaced) else None
    return wait is not None and not wait.may_return


def sending(evidence: Evidence) -> list[TaskEvidence]:
    """The tasks whose messages arrive, slowly.

    A stopped receiver does not count: its kernel accepts as much as its buffer holds.
    """
    stopped = {task.name for task in evidence.tasks if task.state is State.STOPPED}
    return [task for task in running(evidence) if set(task.sends_to) - stopped]


def doing(task: TaskEvidence) -> str:
    """What a task is doing, and in which call."""
    if (wait := python_wait(task)) is not None:
        return f"{task.name} waits for {wait.what}: {wait.call}"
    return f"{task.name} {task.place.value}" + (f": {task.call}" if task.call else "")


def end_of(task: TaskEvidence, *, over: bool = False) -> str:
    """How a task ended, with which error and, unless the job is over, how many seconds ago."""
    how = _ENDS.get(task.state, task.state.value)
    ago = "" if over or task.ended_secs is None else f" {task.ended_secs:.0f} s ago"
    if task.state is State.ENDED and task.exit_code == 0:
        how, ago = "exited", f"{ago} with code 0"
    return f"{task.name} {how}{ago}{': ' + task.error if task.error else ''}"


def barrier_waits(barriers: Iterable[BarrierEvidence]) -> list[str]:
    """The trainers for which others wait at barriers."""
    return [
        f"barrier {barrier.name!r} waits for {', '.join(barrier.missing)}"
        for barrier in barriers
        if barrier.arrived and barrier.missing
    ]


def input_wait(task: TaskEvidence) -> str | None:
    """How the task waits for its input, or None if it does not."""
    if task.place not in _MAY_READ:
        return None
    for stack in task.stacks:
        if (call := _graph_function(stack)) is not None:
            what = "generator" if stack.calls(GENERATOR) else "function"
            losses = "".join(f"; {loss}" for loss in (*_losses(task), *_children(task)))
            return f"its {what} {call}{',' * (', ' in call)} does not return{losses}"
    wait = python_wait(task)
    if wait is not None and wait.is_input and not wait.may_return:
        return f"{wait.what}, in {wait.call}; {wait.why}"
    if waits := _data_waits(task):
        return f"a thread waits for data in the kernel, in {', '.join(waits)}"
    return "its iterator returns no element" if task.place is Place.INPUT else None


def _data_waits(task: TaskEvidence) -> list[str]:
    """Kernel functions in which a thread of TensorFlow waits for data."""
    waits = {
        name: count
        for name, count in task.waits.items()
        if not any(idle in name for idle in _IDLE_WAITS)
    }
    # A Python thread may wait there for something else, such as the output of a child process.
    others = sum(
        stack.count
        for stack in task.stacks
        if _may_return(stack) and _graph_function(stack) is None
    )
    return sorted(waits) if sum(waits.values()) > others else []


def _graph_function(stack: Stack) -> str | None:
    """The Python function or generator that the graph is calling in this thread."""
    calls = tuple(takewhile(lambda frame: not is_call_of(frame, SCRIPT_OP), stack.frames))
    if len(calls) == len(stack.frames) or place_of(Stack(calls)) not in (Place.PYTHON, Place.WAIT):
        return None
    users = [frame for frame in calls if "/tensorflow/python/" not in frame.file] or calls
    known = _known_call(Stack(calls))
    now = known[0] if known else calls[0]
    return ", now in ".join(dict.fromkeys(str(frame) for frame in (users[-1], now)))


def python_call(task: TaskEvidence) -> str | None:
    """The Python call outside TensorFlow that the task is in and that may return; None if none."""
    wait = python_wait(task)
    if wait is not None and wait.may_return:
        return f"{wait.call}, which waits for {wait.what}" + (f"; {wait.why}" if wait.why else "")
    if wait is None and task.place in (Place.PYTHON, Place.IMPORT):
        return task.call
    for stack in task.stacks:
        # A generator belongs to the input; another function that waits for data may, too.
        waits = stack.calls(GENERATOR) or _data_waits(task)
        if place_of(stack) is Place.PYTHON and not waits and (function := _graph_function(stack)):
            return f"{function}, a Python function of its graph"
    return None


def scheduled_functions(task: TaskEvidence) -> int:
    """The number of functions that this coordinator scheduled and that have not ended."""
    return sum(stack.count for stack in task.stacks if stack.calls(SCHEDULED_FUNCTION))


# --- waits outside TensorFlow


class _Ends(enum.Enum):
    """What may end a wait."""

    THREAD = enum.auto()  # another thread of the process, which may itself wait for a child
    CHILD = enum.auto()  # the same, for a wait that usually ends by a process that it started
    PEER = enum.auto()  # a process that it started, or, if there is none, any other
    OTHER = enum.auto()  # anything


@dataclass(frozen=True)
class PythonWait:
    """A wait outside TensorFlow, in a call of Python's library or of the kernel.

    Attributes:
        what: what the call waits for, such as "an item of a queue".
        call: the call, and the user's call that made it.
        may_return: whether a living thread or process, or anything outside, may still end it.
        why: what is known of those that should end it; "" if nothing is.
    """

    what: str
    call: str
    may_return: bool
    why: str = ""

    @property
    def is_input(self) -> bool:
        """Whether it waits for what another thread or process of the task should read."""
        return self.what in (_ITEM, _ITEM_OF_PROCESS)


_ITEM, _ITEM_OF_PROCESS = "an item of a queue", "an item of a queue between processes"
_POOL = "the processes of a pool"
# What a call waits for whose frames include all of these functions of a file, or any if none is
# named. The first entry counts, so a call comes before those that it makes. Names of CPython 3.10
# to 3.13; tests/unit/test_python_waits.py looks for each.
CALLS: tuple[tuple[str, tuple[str, ...], str, _Ends], ...] = (
    ("queue.py", ("get",), _ITEM, _Ends.THREAD),
    ("queue.py", ("put",), "room in a queue", _Ends.THREAD),
    ("queue.py", ("join",), "task_done() for each item of a queue", _Ends.THREAD),
    ("multiprocessing/pool.py", (), _POOL, _Ends.CHILD),
    ("multiprocessing/queues.py", ("get",), _ITEM_OF_PROCESS, _Ends.CHILD),
    ("multiprocessing/queues.py", ("put",), "room in a queue between processes", _Ends.CHILD),
    ("multiprocessing/queues.py", (), "other processes, at a queue", _Ends.CHILD),
    ("multiprocessing/process.py", ("join",), "a child process to end", _Ends.PEER),
    ("multiprocessing/managers.py", (), "the process of a manager", _Ends.PEER),
    ("multiprocessing/synchronize.py", (), "another process, at a lock or an event", _Ends.PEER),
    ("multiprocessing/connection.py", (), "data from another process", _Ends.PEER),
    ("concurrent/futures/process.py", (), _POOL, _Ends.CHILD),
    ("concurrent/futures/thread.py", (), "the threads of a pool", _Ends.THREAD),
    ("concurrent/futures/_base.py", (), "the result of a future", _Ends.THREAD),
    ("asyncio/base_events.py", (), "an asyncio task", _Ends.OTHER),
    ("subprocess.py", (), "a child process to end", _Ends.OTHER),
    ("http/client.py", (), "the answer of a web server", _Ends.OTHER),
    ("urllib/request.py", (), "the answer of a web server", _Ends.OTHER),
    ("socketserver.py", (), "a request", _Ends.OTHER),
    ("socket.py", ("accept",), "another process to connect", _Ends.OTHER),
    ("socket.py", ("create_connection",), "a connection to another process", _Ends.OTHER),
    ("socket.py", (), "data from a connection", _Ends.OTHER),
    ("ssl.py", (), "data from a connection", _Ends.OTHER),
    ("selectors.py", (), "a file or connection to be ready", _Ends.OTHER),
    ("threading.py", ("join",), "a thread to end", _Ends.THREAD),
    ("threading.py", ("_shutdown",), "a thread to end, at the end of the program", _Ends.THREAD),
    ("threading.py", ("acquire",), "a threading.Semaphore", _Ends.THREAD),
    ("threading.py", ("_wait",), "other threads, at a threading.Barrier", _Ends.THREAD),
    ("threading.py", ("__enter__",), "the lock of a threading.Condition", _Ends.THREAD),
    ("threading.py", ("wait", "wait"), "a threading.Event to be set", _Ends.THREAD),
    ("threading.py", (), "a threading.Condition to be notified", _Ends.THREAD),
)
_LOCK = "a lock"
_IN_TENSORFLOW = tuple(set(Place) - {Place.PYTHON, Place.WAIT, Place.UNKNOWN})
_NO_OTHERS = "it has no other thread of the script, and no child process"
_SHOWN = 3  # of threads, or of processes that died of the same error
# The same for parts of the names of kernel functions (Linux 6.18): a call in C has no frame.
_KERNEL_WAITS = (
    ("nanosleep", "the end of a sleep"),
    ("futex", _LOCK),
    ("do_wait", "a child process to end"),
    ("locks_lock", "the lock of a file"),
    ("setlk", "the lock of a file"),
    ("wait_for_partner", "another process to open the other end of a FIFO"),
    ("pipe_read", "data from a pipe"),
    ("pipe_write", "room in a pipe"),
    ("accept", "another process to connect"),
    ("connect", "a connection to another process"),
    ("poll", "a file or connection to be ready"),
    ("select", "a file or connection to be ready"),
    ("sigtimedwait", "a signal"),
    ("sigsuspend", "a signal"),
    ("sys_pause", "a signal"),
    ("alloc_send", "room in a connection"),
    ("stream_wait_memory", "room in a connection"),
    ("wait_for_more_packets", "data from a connection"),
    ("stream_read", "data from a connection"),
    ("wait_data", "data from a connection"),
    ("data_wait", "data from a connection"),
    ("wait_woken", "the other end of a connection, or a terminal"),
    ("tty", "input at the terminal"),
)


def python_wait(task: TaskEvidence) -> PythonWait | None:
    """The wait of its main thread outside TensorFlow; None if it is in none."""
    if task.main is None or task.place not in (Place.WAIT, Place.PYTHON):
        return None
    threads = [
        stack
        for stack in task.stacks
        if stack.frames and not stack.main and not stack.is_of_runtime
    ]
    alive = [child for child in task.children if child.exit_code is None]
    works = any(child.works for child in alive)
    is_active = works or any(_may_return(stack) for stack in threads)
    losses = _losses(task)
    known = _known_call(task.main)
    is_at_pool = known is not None and known[1] == _POOL
    children = _children(task, "the pool's" if is_at_pool else "its")
    young = _young_pool(task) if is_at_pool and not children else []
    others = [
        _lock_wait("another thread of it", stack)
        if stack.acquires
        else f"another thread of it is in {stack.user or stack.frames[0]}"
        for stack in threads[:_SHOWN]
    ]
    if known is None:
        what = next((what for part, what in _KERNEL_WAITS if part in task.main_wait), None)
        # A thread that died may have held the lock. One in TensorFlow may still release it.
        is_lost = bool(losses) or (
            task.main.acquires != ""
            and not is_active
            and not any(place_of(stack) in _IN_TENSORFLOW for stack in threads)
        )
        may_return = what != _LOCK or not is_lost
        locks = [_lock_wait("it", task.main)] if task.main.acquires else []
        if task.main.acquires and not threads and not task.children:
            others = [_NO_OTHERS]
        why = [*losses, *children, *(locks + others if what == _LOCK else [])]
        return PythonWait(what, task.call or "", may_return, "; ".join(why)) if what else None
    why = [*losses, *children, *young, *others]
    frame, what, ends = known
    if alive and not works and not children:
        why += [f"{len(alive)} child process{'es' if alive[1:] else ''} of it, and none works"]
    if not why and not is_active and ends in (_Ends.THREAD, _Ends.CHILD):
        why += [_NO_OTHERS]
    may_return = {
        _Ends.THREAD: is_active,
        _Ends.CHILD: is_active,
        _Ends.PEER: is_active or not task.children,
        _Ends.OTHER: True,
    }[ends]
    # Another thread that feeds the queue would have put an item by now.
    is_fed = what in (_ITEM, _ITEM_OF_PROCESS) and bool(losses)
    call = ", called by ".join(map(str, filter(None, (frame, task.main.user))))
    return PythonWait(what, call, may_return and not is_fed, "; ".join(why))


def _lock_wait(who: str, stack: Stack) -> str:
    inside = f" inside of with {', '.join(stack.inside)}" if stack.inside else ""
    return f"{who} waits for the lock {stack.acquires}{inside}"


def _known_call(stack: Stack) -> tuple[Frame, str, _Ends] | None:
    """The user's call of a function that is known to wait; for what, and what ends it."""
    calls = tuple(takewhile(lambda frame: frame != stack.user, stack.frames))
    for file, functions, what, ends in CALLS:
        inside = [frame.function for frame in calls if f"/{frame.file}".endswith(f"/{file}")]
        if inside and not Counter(functions) - Counter(inside):
            # Without a user's call, the rest are those that started the program.
            outermost = (
                calls[-1]
                if stack.user
                else next(
                    frame for frame in reversed(calls) if f"/{frame.file}".endswith(f"/{file}")
                )
            )
            return outermost, what, ends
    return None


def _may_return(stack: Stack) -> bool:
    """Whether the thread runs Python, or waits for something outside its process."""
    place, known = place_of(stack), _known_call(stack)
    return (place is Place.PYTHON and not stack.acquires) or (
        place is Place.WAIT and known is not None and known[2] is not _Ends.THREAD
    )


def _losses(task: TaskEvidence) -> list[str]:
    """Its threads and child processes that have died, and how."""
    dead = [child for child in task.children if child.exit_code]
    losses = [*task.losses, *(f"child process {child.pid} {_end(child)}" for child in dead)]
    return [f"its {loss}" for loss in losses]


def _children(task: TaskEvidence, whose: str = "its") -> list[str]:
    """Its child processes that are stopped, or that die and are replaced."""
    stopped = [child.pid for child in task.children if child.stopped]
    texts = [f"{whose} child process {pid} is stopped: kill -CONT {pid}" for pid in stopped]
    # A process of a pool may end with exit code 0 after its last task (maxtasksperchild).
    ends = Counter(_end(child) for child in task.replaced if child.exit_code != 0)
    if ends:
        verb = "died" if any(child.exit_code for child in task.replaced) else "ended"
        seen = ", ".join(f"{count} {end.removeprefix('was ')}" for end, count in ends.items())
        texts.append(
            f"{whose} child processes {verb}, and new ones took their place: {seen} within a second"
        )
    return texts


def _young_pool(task: TaskEvidence) -> list[str]:
    """That all processes of its pool are new, as when those before them have died."""
    ages = [child.secs for child in task.children if child.exit_code is None]
    known = [age for age in ages if age is not None]
    if not known or len(known) < len(ages) or max(known) > task.quiet_secs / 2:
        return []
    later = task.quiet_secs - max(known)
    return [
        f"the pool's oldest process has been started only {later:.0f} s after the last progress: "
        "those before it may have died"
    ]


def _end(child: Child) -> str:
    if child.exit_code is None:
        return "ended with an exit code that is not known"
    if child.exit_code < 0:
        return f"was killed by {signal_name(-child.exit_code)}"
    return f"ended with exit code {child.exit_code}"


# --- what the output of a task says

# As `threading.excepthook` and `multiprocessing` begin the traceback of an uncaught error.
_LOSS = re.compile(r"Exception in thread (.*?)(?: \(most likely.*)?:$|Process (\S+):$")
_CHAINED = ("During handling of the above", "The above exception was the direct")
_SHORTAGES = {
    "Too many open files": "raise the limit of open files with ulimit -n",
    "No space left on device": "free space on the disk that it writes to",
    "Cannot allocate memory": "give it more memory",
    "MemoryError": "give it more memory",
    "std::bad_alloc": "give it more memory",
    "OOM when allocating": "use smaller batches",
    "can't start new thread": "raise the limit of threads and processes with ulimit -u",
    "pthread_create": "raise the limit of threads and processes with ulimit -u",
}


def losses_in(text: str) -> tuple[str, ...]:
    """The threads and child processes that died of an error, as a task's standard error shows."""
    losses: dict[tuple[str, str], str] = {}
    # The thread or process, and whether its error is still to come.
    who, is_inside = ("", ""), False
    for line in text.splitlines():
        if header := _LOSS.match(line):
            thread, process = header.groups()
            who, is_inside = ("thread", thread) if thread else ("child process", process), True
        elif not who[1] or not line.strip() or line.startswith((" ", "Traceback (most recent")):
            continue
        elif line.startswith(_CHAINED):
            is_inside = True
        elif is_inside:
            losses[who], is_inside = line, False
        else:
            who = ("", "")
    names: dict[tuple[str, str], list[str]] = {}
    for (kind, name), error in losses.items():
        names.setdefault((kind, error), []).append(name)
    return tuple(_loss(kind, found, error) for (kind, error), found in names.items())


def _loss(kind: str, names: Sequence[str], error: str) -> str:
    """That these threads or processes have died of this error: a pool may lose hundreds."""
    if len(names) == 1:
        return f"{kind} {names[0]} has died: {error}"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    plural = "threads" if kind == "thread" else "child processes"
    return f"{plural} {', '.join(names[:_SHOWN])}{more} have died: {error}"


def shortages_in(text: str) -> tuple[str, ...]:
    """What the machine had no more of, as a task's standard error shows, and what to do."""
    found = [(words, advice) for words, advice in _SHORTAGES.items() if words in text]
    return tuple(f"printed {words!r}: {advice}" for words, advice in found)


def shortages(evidence: Evidence) -> Iterator[str]:
    """What the machine had no more of, which may be the cause of all else."""
    for task in evidence.tasks:
        yield from (f"{task.name} {shortage}" for shortage in task.shortages)
    if evidence.oom_kills:
        yield out_of_memory(0, evidence.oom_kills)
