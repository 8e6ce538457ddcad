"""What the kernel knows of the threads of any process: their states, and where they wait in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_GONE_ERRORS = (FileNotFoundError, ProcessLookupError)

# As in proc(5).
STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a device",
    "T": "stopped",
    "t": "traced",
    "Z": "zombie",
    "X": "dead",
    "I": "idle",
}


@dataclass(frozen=True)
class KernelThread:
    """A thread as the kernel sees it.

    Attributes:
        name: as the kernel has it, 15 characters at most; most libraries name their threads.
        state: a word of STATES.
        wchan: the function of the kernel in which it waits; "" if it does not wait, or the kernel
            does not know.
        syscall: the number of the system call that it is in; None if it is in none.
        denied: whether we may not know `wchan` and `syscall`, as of another user's process.
    """

    name: str
    state: str
    wchan: str
    syscall: int | None
    denied: bool


@dataclass(frozen=True)
class KernelThreads:
    """All threads of a process.

    Attributes:
        main: the first one; None if it is gone or may not be read.
        others: how many of the others are alike.
        unreadable: how many could not be read.
    """

    main: KernelThread | None = None
    others: Counter[KernelThread] = field(default_factory=Counter)
    unreadable: int = 0


def kernel_threads(pid: int) -> KernelThreads:
    """Those of the process at this moment; nothing at all if it is gone. Does not block."""
    main, others, unreadable = None, Counter[KernelThread](), 0
    try:
        folders = list(Path(f"/proc/{pid}/task").iterdir())
    except _GONE_ERRORS:
        folders = []
    for folder in folders:
        try:
            thread = _thread(folder)
        except _GONE_ERRORS:
            continue  # it has ended in the meantime
        except PermissionError:
            unreadable += 1
            continue
        if folder.name == str(pid):
            main = thread
        else:
            others[thread] += 1
    return KernelThreads(main, others, unreadable)


def _thread(folder: Path) -> KernelThread:
    # The name before it may have spaces and brackets.
    letter = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
    name = (folder / "comm").read_text("utf-8", "replace").strip()
    # It is "0" for a thread that does not wait, and for whoever may not know. `syscall` says which.
    wchan = (folder / "wchan").read_text("ascii").strip()
    syscall, denied = None, False
    try:
        # "running", -1 outside of a call, or the number and its arguments.
        first = (folder / "syscall").read_text("ascii").split()[0]
        syscall = int(first) if first.isdigit() else None
    except PermissionError:
        denied = True
    return KernelThread(
        name, STATES.get(letter, letter), "" if wchan == "0" else wchan, syscall, denied
    )
