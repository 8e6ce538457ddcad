"""What one task waits for, or is busy with, told by its stacks and by the kernel."""

from __future__ import annotations

from itertools import dropwhile, takewhile

from tfdist.diagnosis.evidence import Frame, Place, Stack, TaskEvidence, place_of

# A task that waits there may wait for its input; one at a barrier or in close does not.
_MAY_READ = (Place.RUN, Place.EAGER, Place.INPUT, Place.SERVER, Place.WAIT, Place.UNKNOWN)
# Parts of the names of kernel functions in which threads wait, and not for data: for locks, timers,
# the network, signals, children, whoever connects or reads, memory, and a write. TensorFlow's own
# threads are in futex_do_wait, do_epoll_wait and hrtimer_nanosleep (Linux 6.18).
_IDLE_WAITS = (
    *("futex", "poll", "select", "nanosleep", "sigtimedwait", "sigsuspend", "pause", "do_wait"),
    *("accept", "wait_for_more_packets", "pipe_write", "locks_lock", "setlk", "io_wq", "io_sq"),
    *("mmap", "mprotect", "brk", "dirty_pages", "writeback", "jbd2"),
)
_SCRIPT_OPS, _FROM_GENERATOR = "python/ops/script_ops.py", "data/ops/from_generator_op.py"
_COORDINATOR = "cluster_coordinator.py"


def reader(task: TaskEvidence) -> str | None:
    """What of its input a task waits for."""
    if task.place not in _MAY_READ:
        return None
    for stack in task.stacks:
        if (call := _called(stack)) is not None:
            what = "generator" if stack.has("generator_py_func", _FROM_GENERATOR) else "function"
            return f"a {what} of its input is in {call}"
    if waits := _data_waits(task):
        return f"a thread waits for data in the kernel, in {', '.join(waits)}"
    return "its iterator gives nothing" if task.place is Place.INPUT else None


def _data_waits(task: TaskEvidence) -> list[str]:
    """Kernel functions in which a thread of TensorFlow waits for data."""
    waits = {
        name: count
        for name, count in task.waits.items()
        if not any(idle in name for idle in _IDLE_WAITS)
    }
    # A thread of Python may wait there for something else, such as for what a child prints.
    others = sum(
        stack.count
        for stack in task.stacks
        if place_of(stack) is Place.PYTHON and _called(stack) is None
    )
    return sorted(waits) if sum(waits.values()) > others else []


def _called(stack: Stack) -> str | None:
    """A Python function, or generator, of the graph that TensorFlow calls, and where it is."""
    calls = tuple(takewhile(lambda frame: not _is_script_op(frame), stack.frames))
    if len(calls) == len(stack.frames) or place_of(Stack(calls)) not in (Place.PYTHON, Place.WAIT):
        return None
    users = [frame for frame in calls if "/tensorflow/python/" not in frame.file] or calls
    return ", ".join(dict.fromkeys(str(frame) for frame in (users[-1], calls[0])))


def _child_wait(task: TaskEvidence) -> Frame | None:
    """The call in which its main thread waits for the end of another process."""
    frames = next((stack.frames for stack in task.stacks if stack.main), ())
    if task.place is not Place.WAIT or not any(_is_subprocess(frame) for frame in frames):
        return None
    calls = dropwhile(lambda frame: not _is_subprocess(frame), frames)
    return next((frame for frame in calls if not _is_subprocess(frame)), None)


def _is_subprocess(frame: Frame) -> bool:
    return frame.file.endswith("/subprocess.py")


def _is_script_op(frame: Frame) -> bool:
    return frame.function == "__call__" and frame.file.endswith(_SCRIPT_OPS)


def python_call(task: TaskEvidence) -> str | None:
    """What of Python, outside of TensorFlow, its training is in, and will perhaps get on."""
    if task.place in (Place.PYTHON, Place.IMPORT):
        return task.call
    if (call := _child_wait(task)) is not None:
        return f"{call}, which waits for a process that it has started"
    for stack in task.stacks:
        # A generator is of the input; what else waits for data may be.
        waits = stack.has("generator_py_func", _FROM_GENERATOR) or _data_waits(task)
        if place_of(stack) is Place.PYTHON and not waits and (function := _called(stack)):
            return f"a function of its graph, {function}"
    return None


def scheduled_functions(task: TaskEvidence) -> int:
    """That a coordinator in this task has given to workers, and which have not ended."""
    return sum(stack.count for stack in task.stacks if stack.has("execute_on", _COORDINATOR))
