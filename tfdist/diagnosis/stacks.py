"""Where the Python threads of a task stand, by its own word, also when Python is stuck in it.

Each process of a task has `faulthandler` registered for a signal: a handler in C that writes the
stacks of all threads to a file in the task's folder. It needs neither the GIL nor the main thread
to come back from TensorFlow.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tfdist.cluster.processes import STACKS_SIGNAL
from tfdist.deadline import Deadline
from tfdist.diagnosis.evidence import Frame, Stack, folded

# What may come of asking.
ANSWERED, STOPPED, GONE = "answered", "stopped", "gone"
DEAF, SILENT, DENIED = "deaf", "silent", "denied"
MEANINGS = {
    ANSWERED: "answers",
    STOPPED: "is stopped, by SIGSTOP or a debugger",
    GONE: "is gone, and nobody noted how",
    DEAF: "cannot be asked: it starts, or is a thread",
    SILENT: "does not answer to the signal",
    DENIED: "may not be asked: another user's",
}

ANSWER_SECS = 5.0
_POLL_SECS = 0.02
STOPPED_STATES = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_GONE_ERRORS = (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError)
_THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+).*:$")
_FRAME = re.compile(r"  File (.*), line (\d+|\?+) in (.*)$")
_MORE = "..."  # faulthandler writes 100 threads and 100 frames of each at most


@dataclass(frozen=True)
class Answer:
    """What came of asking a task.

    Attributes:
        state: one of MEANINGS.
        stacks: that of the main thread first; of a SILENT task those it had written.
        more_threads: whether there are threads that faulthandler left out.
    """

    state: str
    stacks: tuple[Stack, ...] = ()
    more_threads: bool = False


def ask(process: psutil.Process, path: Path, timeout: float = ANSWER_SECS) -> Answer:
    """Asks a process for its stacks by the signal, and blocks until they are in `path`.

    The process is not sent the signal unless it has a handler for it. That handler reads the frames
    of all threads without the GIL: where another thread runs Python at that moment, it may read
    what is just being changed, and the process crashes. (CPython 3.11: after 4,457 and 5,651 such
    questions to a process that ran Python all the time; a third one answered 8,876.)

    Args:
        process: of a task that tfdist has started.
        path: the file that its handler appends to.
        timeout: seconds to wait for the answer.
    """
    try:
        return _ask(process, path, Deadline(timeout))
    except _GONE_ERRORS:
        return Answer(GONE)
    except psutil.AccessDenied:
        return Answer(DENIED)


def _ask(process: psutil.Process, path: Path, deadline: Deadline) -> Answer:
    if process.status() == psutil.STATUS_ZOMBIE:
        return Answer(GONE)
    if process.status() in STOPPED_STATES:
        return Answer(STOPPED)
    masks = _masks(process.pid)
    # Without a handler the signal would end it.
    if not path.exists() or process.pid not in masks or not masks[process.pid].caught:
        return Answer(DEAF)
    start = path.stat().st_size
    process.send_signal(STACKS_SIGNAL)
    seen = None  # what was written when nobody was about to write more
    while True:
        # Before the file is read, which then has all that the handler wrote.
        over = is_over(masks, _masks(process.pid))
        dump = _text(path, start)
        # Twice: a thread may have taken the signal, and not be in its handler yet.
        if over and dump and dump == seen:
            return Answer(ANSWERED, parse(dump, whole=True), _leaves_out_threads(dump))
        seen = dump if over else None
        if process.status() in (*STOPPED_STATES, psutil.STATUS_ZOMBIE) or deadline.expired:
            gone = process.status() == psutil.STATUS_ZOMBIE
            stopped = process.status() in STOPPED_STATES
            state = GONE if gone else STOPPED if stopped else SILENT
            return Answer(state, parse(dump, whole=False))
        time.sleep(min(_POLL_SECS, deadline.remaining))


def _text(path: Path, start: int) -> str:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read().decode("ascii", "replace")


@dataclass(frozen=True)
class Masks:
    """What the kernel notes of the signal for the stacks, by thread.

    Attributes:
        pending: it was sent, and nobody has taken it.
        blocked: the thread does not take it; so it is within the handler.
        caught: there is a handler.
    """

    pending: bool
    blocked: bool
    caught: bool


def _masks(pid: int) -> dict[int, Masks]:
    """Of each thread of a process."""
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
    """Whether the signal was taken, and no thread is within its handler.

    Not told by what is written: only if a thread of Python took the signal does faulthandler mark
    one as the current thread, and which one that is is not for us to choose.
    """
    return not any(
        masks.pending or (masks.blocked and thread in before and not before[thread].blocked)
        for thread, masks in now.items()
    )


def _leaves_out_threads(dump: str) -> bool:
    return _MORE in dump.splitlines()


def parse(dump: str, *, whole: bool) -> tuple[Stack, ...]:
    """The stacks in what faulthandler wrote; equal ones are one, and the main thread's is first.

    If it was asked more than once, each thread counts once, as it stood last. The main thread is
    the oldest, and so the last one, unless it was left out.

    Args:
        dump: what it wrote.
        whole: whether it has written all.
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
