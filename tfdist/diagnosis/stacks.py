"""The stacks of a process, also while it is stuck in TensorFlow: by a signal, or by py-spy.

`ask` uses a signal. Each process of a task has `faulthandler` registered for it: a handler in C
that writes the stacks of all threads to a file in the task's folder. It needs neither the GIL nor
the main thread to return from TensorFlow. py-spy reads the memory of any other process; it shows
native frames too.
"""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import psutil

from tfdist.cluster.processes import STACKS_SIGNAL
from tfdist.deadline import Deadline
from tfdist.diagnosis.evidence import Frame, Stack, folded
from tfdist.errors import ClusterError, DataError, printable
from tfdist.runs.files import read_file, status_of_file

INSTALL_PY_SPY = "py-spy is not installed: pip install py-spy"

# The outcomes of `ask`.
ANSWERED, STOPPED, GONE = "answered", "stopped", "gone"
DEAF, SILENT, DENIED, FOREIGN = "deaf", "silent", "denied", "foreign"
MEANINGS = {
    ANSWERED: "answers",
    STOPPED: "is stopped, by SIGSTOP or a debugger",
    GONE: "is gone, and its exit code is not known",
    DEAF: "has no signal handler: it is still starting",
    SILENT: "does not answer the signal",
    DENIED: "belongs to another user",
    FOREIGN: "gets no signal, because it does not have the file `stacks` of its folder open",
}

ANSWER_SECS = 5.0
_POLL_SECS = 0.02
_MOST_BYTES = 2**23  # of one answer
STOPPED_STATES = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_GONE_ERRORS = (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError)
_THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+).*:$")
_FRAME = re.compile(r"  File (.*), line (\d+|\?+) in (.*)$")
_MORE = "..."  # faulthandler writes at most 100 threads, and 100 frames of each


@dataclass(frozen=True)
class Answer:
    """The answer of a process to `ask`.

    Attributes:
        state: one of MEANINGS.
        stacks: the main thread first; for a SILENT task, those that it had written.
        more_threads: whether faulthandler left out threads.
    """

    state: str
    stacks: tuple[Stack, ...] = ()
    more_threads: bool = False


def is_foreign(process: psutil.Process, path: Path) -> bool:
    """Whether the process is not the task whose stacks are to be in `path`.

    Only that task has the file open. The record of a task may be old, or come from another machine,
    and its pid and start may be those of another process. False while there is no file: the task is
    starting. Also False for a process of another user, which gets no signal anyway.
    """
    file, folder = status_of_file(path), f"/proc/{process.pid}/fd"
    if file is None:
        return False
    if not stat.S_ISREG(file.st_mode):
        return True
    try:
        numbers = os.listdir(folder)
    except OSError:  # ended, or denied
        return False
    name = os.path.realpath(path)
    for number in numbers:
        with suppress(OSError):  # closed in the meantime
            link = os.readlink(one := f"{folder}/{number}")
            if link == name:
                return False
            # In a container it may have another folder. No other file is asked for its status: it
            # may be on a disk that does not answer.
            if os.path.basename(link) == path.name and os.path.samestat(os.stat(one), file):
                return False
    return True


def ask(process: psutil.Process, path: Path, timeout: float = ANSWER_SECS) -> Answer:
    """Sends the signal to a process and blocks until its stacks are in `path`.

    A process without a handler for the signal is not sent it. The handler reads the frames of all
    threads without the GIL. If another thread runs Python at that moment, the handler may read a
    frame that is being changed, and the process crashes. (CPython 3.11: after 4,457 and 5,651
    signals to a process that ran Python all the time; a third process survived 8,876.)

    Args:
        process: of a task that tfdist has started, and that is not `is_foreign`.
        path: the file that its handler appends to.
        timeout: seconds to wait for the answer.
    """
    try:
        return _ask(process, path, Deadline(timeout))
    except _GONE_ERRORS:
        return Answer(GONE)
    except (psutil.AccessDenied, PermissionError):
        return Answer(DENIED)
    except DataError:  # it is no regular file, or is too large
        return Answer(FOREIGN)


def _ask(process: psutil.Process, path: Path, deadline: Deadline) -> Answer:
    if process.status() == psutil.STATUS_ZOMBIE:
        return Answer(GONE)
    if process.status() in STOPPED_STATES:
        return Answer(STOPPED)
    if status_of_file(path) is None:
        return Answer(DEAF)
    with _alone(path, deadline):
        return _answer(process, path, deadline)


def _answer(process: psutil.Process, path: Path, deadline: Deadline) -> Answer:
    masks, file = _masks(process.pid), status_of_file(path)
    # Without a handler the signal would end it.
    if process.pid not in masks or not masks[process.pid].caught:
        return Answer(DEAF)
    start = 0 if file is None else file.st_size
    process.send_signal(STACKS_SIGNAL)
    seen = None  # the answer, once no thread was about to write more
    while True:
        # Read before the file, so that the file holds all that the handler wrote.
        over = is_over(masks, _masks(process.pid))
        dump = _text(path, start)
        # Two equal reads: a thread may have taken the signal and not have entered the handler.
        if over and dump and dump == seen:
            return Answer(ANSWERED, parse(dump, whole=True), _leaves_out_threads(dump))
        seen = dump if over else None
        if process.status() in (*STOPPED_STATES, psutil.STATUS_ZOMBIE) or deadline.expired:
            gone = process.status() == psutil.STATUS_ZOMBIE
            stopped = process.status() in STOPPED_STATES
            state = GONE if gone else STOPPED if stopped else SILENT
            return Answer(state, parse(dump, whole=False))
        time.sleep(min(_POLL_SECS, deadline.remaining))


@contextmanager
def _alone(path: Path, deadline: Deadline) -> Iterator[None]:
    """Waits until no other program asks the process: its handler writes one answer at a time."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    with ExitStack() as files:
        # Without the lock, as on a disk that has none, the answer may be a part of another one.
        with suppress(OSError):
            file = files.enter_context(open(os.open(path, flags), "rb"))
            while not _is_locked(file) and not deadline.expired:
                time.sleep(min(_POLL_SECS, deadline.remaining))
        yield


def _is_locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _text(path: Path, start: int) -> str:
    return printable(read_file(path, start=start, most=_MOST_BYTES).decode("ascii", "replace"))


@dataclass(frozen=True)
class Masks:
    """The kernel's masks of the stacks signal for one thread.

    Attributes:
        pending: the signal was sent, and no thread has taken it.
        blocked: the thread does not take it, as while it is in the handler.
        caught: the process has a handler.
    """

    pending: bool
    blocked: bool
    caught: bool


def _masks(pid: int) -> dict[int, Masks]:
    """The masks of each thread of a process."""
    found = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (folder / "status").read_text("utf-8", "replace")
        except _GONE_ERRORS:
            continue  # the thread has ended in the meantime
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        has = {
            name: bool(int(fields[name], 16) >> (STACKS_SIGNAL - 1) & 1)
            for name in ("SigPnd", "ShdPnd", "SigBlk", "SigCgt")
        }
        pending = has["SigPnd"] or has["ShdPnd"]
        found[int(folder.name)] = Masks(pending, has["SigBlk"], has["SigCgt"])
    return found


def is_over(before: dict[int, Masks], now: dict[int, Masks]) -> bool:
    """Whether the signal was taken, and no thread is in its handler.

    The file does not show this: faulthandler marks a current thread only if a Python thread took
    the signal, and the kernel chooses the thread.
    """
    return not any(
        masks.pending or (masks.blocked and thread in before and not before[thread].blocked)
        for thread, masks in now.items()
    )


def _leaves_out_threads(dump: str) -> bool:
    return _MORE in dump.splitlines()


def parse(dump: str, *, whole: bool) -> tuple[Stack, ...]:
    """The stacks that faulthandler wrote; equal stacks are one, and the main thread is first.

    In a dump of several signals each thread counts once, with its last stack. The main thread is
    the oldest thread, and so the last one, unless it was left out.

    Args:
        dump: the text.
        whole: whether the text is complete.
    """
    frames: dict[str, list[Frame]] = {}
    cut: set[str] = set()
    thread = None
    for line in dump.splitlines():
        if header := _THREAD.match(line):
            thread = header[1]
            frames[thread] = []
            cut.discard(thread)
        elif thread is not None and (frame := _FRAME.match(line)):
            number = int(frame[2]) if frame[2].isdigit() else None
            frames[thread].append(Frame(frame[1].strip('"'), number, frame[3]))
        elif thread is not None and line.strip() == _MORE and line != _MORE:
            cut.add(thread)
    has_main = whole and not _leaves_out_threads(dump)
    return folded(
        Stack(tuple(calls), 1, has_main and name == thread, name in cut)
        for name, calls in frames.items()
    )


def with_lock(stack: Stack, sources: Mapping[str, str]) -> Stack:
    """The stack with the lock that its most recent call acquires, if the source shows one.

    A call in C has no frame: a thread that waits for a lock is in the line of the `with` block, or
    of the call of `acquire`.
    """
    at = [
        (frame, _locks_at(sources.get(frame.file, ""), frame.line))
        for frame in stack.frames
        if frame.line is not None
    ]
    if not at or at[0][0] is not stack.frames[0] or not at[0][1].acquired:
        return stack
    (top, locks), inside = at[0], [(frame, lock) for frame, one in at for lock in one.around]
    return replace(
        stack,
        acquires=_place(top, ", ".join(locks.acquired), top.line),
        inside=tuple(_place(frame, *lock) for frame, lock in inside),
    )


def _place(frame: Frame, lock: str, line: int | None) -> str:
    return printable(f"{lock} ({os.path.basename(frame.file)}:{line})")


@dataclass
class _Locks:
    """The locks that a line of a source acquires, and those of the `with` blocks around it."""

    acquired: list[str] = field(default_factory=list)
    around: list[tuple[str, int]] = field(default_factory=list)  # with their lines


def _locks_at(source: str, line: int) -> _Locks:
    locks = _Locks()
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError):  # no Python, or too deep
        _find_locks(ast.parse(source), line, locks)
    return locks


def _find_locks(node: ast.AST, line: int, locks: _Locks) -> None:
    for child in ast.iter_child_nodes(node):
        start, end = getattr(child, "lineno", None), getattr(child, "end_lineno", None)
        if start is not None and end is not None and not start <= line <= end:
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            locks.around.clear()  # it runs later than the block that it is in
        if isinstance(child, ast.With):
            _find_in_with(child, line, locks)
        if (
            isinstance(child, ast.Call)
            and isinstance(child.func, ast.Attribute)
            and child.func.attr == "acquire"
            and not (child.args or child.keywords)  # without a timeout
        ):
            locks.acquired.append(ast.unparse(child.func.value))
        _find_locks(child, line, locks)


def _find_in_with(block: ast.With, line: int, locks: _Locks) -> None:
    items = [item.context_expr for item in block.items]
    # Others make what they enter, such as a file that is opened.
    names = [one for one in items if not any(isinstance(part, ast.Call) for part in ast.walk(one))]
    if line >= block.body[0].lineno:
        locks.around += [(ast.unparse(lock), lock.lineno) for lock in names]
    elif len(names) == len(items):
        # Before CPython 3.13 the line is the first one of the block, whichever the lock is.
        locks.acquired += map(ast.unparse, names)


def find_py_spy() -> str | None:
    """The path of py-spy, on PATH or next to this Python; None if it is not installed."""
    return shutil.which("py-spy") or shutil.which("py-spy", path=os.path.dirname(sys.executable))


def py_spy_stacks(pid: int, *, native: bool = False, timeout: float = 30.0) -> tuple[Stack, ...]:
    """The stacks of any Python process, read by py-spy; blocks for `timeout` seconds at most.

    py-spy pauses the process while it reads.

    Args:
        pid: of the process.
        native: whether to include the frames of C and C++.
        timeout: in seconds.

    Raises:
        ClusterError: py-spy is not installed, or cannot read the process.
    """
    path = find_py_spy()
    if path is None:
        raise ClusterError(INSTALL_PY_SPY)
    options = ["--json", *(["--native"] if native else [])]
    command = [path, "dump", *options, "--pid", str(pid)]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"py-spy did not end within {timeout:.0f} s") from None
    if ended.returncode != 0:
        # The backtrace of py-spy itself follows.
        reason = ended.stderr.partition("Stack backtrace")[0].split()
        raise ClusterError(f"py-spy failed: {' '.join(reason) or 'it gives no reason'}")
    return folded(
        Stack(tuple(map(_frame, thread["frames"])), main=thread["os_thread_id"] == pid)
        for thread in json.loads(ended.stdout)
    )


def _frame(values: Mapping[str, Any]) -> Frame:
    name = values["name"]
    if values["module"] is None:  # Python: "Session.run", where faulthandler writes "run"
        name = name.rpartition(".")[2]
    return Frame(printable(values["filename"]), values["line"] or None, printable(name))
