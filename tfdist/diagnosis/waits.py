"""What the tasks of a job wait for or are busy with: pure functions for the rules."""

from __future__ import annotations

from itertools import dropwhile, takewhile

from tfdist.diagnosis.evidence import (
    GENERATOR,
    SCHEDULED_FUNCTION,
    SCRIPT_OP,
    Evidence,
    Frame,
    Place,
    Stack,
    State,
    TaskEvidence,
    is_call_of,
    place_of,
)

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
        if task.works and task.place is not Place.STARTING and (task.trains or not checks)
    ]


def sending(evidence: Evidence) -> list[TaskEvidence]:
    """The tasks whose messages arrive, slowly.

    A stopped receiver does not count: its kernel accepts as much as its buffer holds.
    """
    stopped = {task.name for task in evidence.tasks if task.state is State.STOPPED}
    return [task for task in running(evidence) if set(task.sends_to) - stopped]


def doing(task: TaskEvidence) -> str:
    """What a task is doing, and in which call."""
    return f"{task.name} {task.place.value}" + (f": {task.call}" if task.call else "")


def end_of(task: TaskEvidence, *, over: bool = False) -> str:
    """How a task ended, with which error and, unless the job is over, how many seconds ago."""
    how = _ENDS.get(task.state, task.state.value)
    ago = "" if over or task.ended_secs is None else f" {task.ended_secs:.0f} s ago"
    if task.state is State.ENDED and task.exit_code == 0:
        how, ago = "exited", f"{ago} with code 0"
    return f"{task.name} {how}{ago}{': ' + task.error if task.error else ''}"


def input_wait(task: TaskEvidence) -> str | None:
    """How the task waits for its input, or None if it does not."""
    if task.place not in _MAY_READ:
        return None
    for stack in task.stacks:
        if (call := _graph_function(stack)) is not None:
            what = "generator" if stack.calls(GENERATOR) else "function"
            return f"its {what} {call}{',' * (', ' in call)} does not return"
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
        if place_of(stack) is Place.PYTHON and _graph_function(stack) is None
    )
    return sorted(waits) if sum(waits.values()) > others else []


def _graph_function(stack: Stack) -> str | None:
    """The Python function or generator that the graph is calling in this thread."""
    calls = tuple(takewhile(lambda frame: not is_call_of(frame, SCRIPT_OP), stack.frames))
    if len(calls) == len(stack.frames) or place_of(Stack(calls)) not in (Place.PYTHON, Place.WAIT):
        return None
    users = [frame for frame in calls if "/tensorflow/python/" not in frame.file] or calls
    return ", now in ".join(dict.fromkeys(str(frame) for frame in (users[-1], calls[0])))


def _child_wait(task: TaskEvidence) -> Frame | None:
    """The call in which its main thread waits for the end of another process."""
    frames = task.main.frames if task.main is not None else ()
    if task.place is not Place.WAIT or not any(_is_subprocess(frame) for frame in frames):
        return None
    calls = dropwhile(lambda frame: not _is_subprocess(frame), frames)
    return next((frame for frame in calls if not _is_subprocess(frame)), None)


def _is_subprocess(frame: Frame) -> bool:
    return frame.file.endswith("/subprocess.py")


def python_call(task: TaskEvidence) -> str | None:
    """The Python call that the task is executing outside TensorFlow, or None."""
    if task.place in (Place.PYTHON, Place.IMPORT):
        return task.call
    if (call := _child_wait(task)) is not None:
        return f"{call}, which waits for a child process to end"
    for stack in task.stacks:
        # A generator belongs to the input; another function that waits for data may, too.
        waits = stack.calls(GENERATOR) or _data_waits(task)
        if place_of(stack) is Place.PYTHON and not waits and (function := _graph_function(stack)):
            return f"{function}, a Python function of its graph"
    return None


def scheduled_functions(task: TaskEvidence) -> int:
    """The number of functions that this coordinator scheduled and that have not ended."""
    return sum(stack.count for stack in task.stacks if stack.calls(SCHEDULED_FUNCTION))
