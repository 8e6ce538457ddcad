"""What the kernel reports of any process: its threads, and its TCP connections.

A machine that is cut off from another one does not notice: it sends its data again and again, each
time after twice as long, for a quarter of an hour (`tcp_retries2` of Linux). Until then nothing
fails. Whether data is acknowledged distinguishes that from a stopped or busy process, whose kernel
acknowledges as long as its buffer has room. How much the sender's kernel still holds distinguishes
a peer that takes a long message bit by bit, over a slow link, from one that takes nothing.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LONG = 2**14
"""Bytes. The messages that idle tasks exchange are shorter."""

_ESTABLISHED, _SYN_SENT = "01", "02"
_READS_PER_SEC = 10  # between two reads, data that is sent anew may hide data that was taken

_BUSY_PERCENT = 90.0
_GONE_ERRORS = (FileNotFoundError, ProcessLookupError)
# Parts of the commands of processes that multiprocessing and tfdist start for themselves.
_FORK_SERVER = b"multiprocessing.forkserver"
_HELPERS = (
    b"multiprocessing.resource_tracker",
    b"/tfdist/cluster/guardian.py\0",
    b"\0tfdist.diagnosis.watchdog\0",
    b"\0tfdist.testing.holder\0",
    b"\0tfdist.testing.link\0",
)
_INFO_BYTES, _INFO_EXIT = 64, 1 << 3
_GET_INFO = 0xC000FF0B | _INFO_BYTES << 16  # PIDFD_GET_INFO

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
        name: 15 characters at most; most libraries name their threads.
        state: a value of STATES.
        wchan: the kernel function in which it waits; "" if it does not wait, or if the kernel does
            not report it.
        syscall: the number of the system call that it is in, or None.
        denied: whether the kernel hides `wchan` and `syscall`, as of another user's process.
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
        main: the first thread; None if it is gone or cannot be read.
        others: the other threads; equal ones are counted.
        unreadable: number of threads that could not be read.
    """

    main: KernelThread | None = None
    others: Counter[KernelThread] = field(default_factory=Counter)
    unreadable: int = 0


def kernel_threads(pid: int) -> KernelThreads:
    """The threads of the process now; empty if the process is gone. Does not block."""
    main, others, unreadable = None, Counter[KernelThread](), 0
    try:
        folders = list(Path(f"/proc/{pid}/task").iterdir())
    except _GONE_ERRORS:
        folders = []
    for folder in folders:
        try:
            thread = _thread(folder)
        except _GONE_ERRORS:
            continue  # the thread has ended in the meantime
        except PermissionError:
            unreadable += 1
            continue
        if folder.name == str(pid):
            main = thread
        else:
            others[thread] += 1
    return KernelThreads(main, others, unreadable)


def _thread(folder: Path) -> KernelThread:
    # The name in front of it may contain spaces and brackets.
    letter = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
    name = (folder / "comm").read_text("utf-8", "replace").strip()
    # "0" if the thread does not wait, or if we may not know; `syscall` distinguishes the two.
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


def cpu_times(pid: int) -> dict[int, tuple[float, float]]:
    """For each thread, the seconds in which it ran, and in which it was ready and had no CPU.

    Empty if the process is gone, or if the kernel does not count them (CONFIG_SCHED_INFO).
    """
    times = {}
    with suppress(*_GONE_ERRORS, PermissionError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(*_GONE_ERRORS), open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                ran, waited, _ = map(int, file.read().split())
                times[int(thread)] = (ran / 1e9, waited / 1e9)
    return times


def is_busy(pressure: Path = Path("/proc/pressure/cpu")) -> bool:
    """Whether some thread of this machine has been waiting for a CPU nearly all of the last 10 s.

    Where the kernel has no such file (CONFIG_PSI), by the average load of the last minute.
    """
    try:
        # "some avg10=35.34 avg60=..."; see the kernel's Documentation/accounting/psi.rst.
        return float(pressure.read_text("ascii").split()[1].partition("=")[2]) >= _BUSY_PERCENT
    except OSError:
        return os.getloadavg()[0] >= 2 * (os.cpu_count() or 1)


@dataclass(frozen=True)
class ChildState:
    """A process that a process has started.

    Attributes:
        exit_code: its exit code, or minus the signal that killed it; None while it runs.
        wchan: the kernel function in which its main thread waits; "" if it does not wait.
        cpu_ticks: its CPU time.
        threads: their number.
        is_stopped: whether it is stopped, by a signal or a debugger.
        start_ticks: when it was started, in the kernel's clock ticks since boot.
    """

    exit_code: int | None
    wchan: str
    cpu_ticks: int
    threads: int
    is_stopped: bool = False
    start_ticks: int = 0

    @property
    def secs(self) -> float:
        """Its age."""
        ticks_per_sec = os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_ticks / ticks_per_sec


def children_of(pid: int) -> dict[int, ChildState]:
    """The processes that a process has started, and those that these have started, by pid.

    The helper processes that `multiprocessing` and tfdist start for themselves are left out, and so
    is this process.
    """
    found = {}
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, *_GONE_ERRORS, PermissionError):
                if child.pid != os.getpid() and not _is_helper(child.pid, child.ppid()):
                    found[child.pid] = _child(child.pid)
    return found


def _is_helper(pid: int, parent: int) -> bool:
    command, of_parent = (Path(f"/proc/{one}/cmdline").read_bytes() for one in (pid, parent))
    # The processes of a pool that a fork server has forked have its command.
    is_fork_server = _FORK_SERVER in command and command != of_parent
    return is_fork_server or any(name in command for name in _HELPERS)


def _child(pid: int) -> ChildState:
    # Fields 3, 14, 15, 20, 22 and 52 of proc_pid_stat(5); field 2, in parentheses, may be anything.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    if fields[0] == b"Z":
        return ChildState(os.waitstatus_to_exitcode(int(fields[49])), "", 0, 0)
    wchan = Path(f"/proc/{pid}/wchan").read_text("ascii").strip()
    ticks, threads = int(fields[11]) + int(fields[12]), int(fields[17])
    is_stopped, start = fields[0] in (b"T", b"t"), int(fields[19])
    return ChildState(None, "" if wchan == "0" else wchan, ticks, threads, is_stopped, start)


class Ends:
    """Remembers how child processes ended, also those for whose end their parent has asked."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            os.close(file)

    def of(self, alive: Collection[int]) -> dict[int, int | None]:
        """How those have ended that were in `alive` at the call before, and are not now.

        An end is an exit code, or minus the signal that killed the process; None if the kernel does
        not say (before Linux 6.15).
        """
        ends = {pid: _end_of(self._files[pid]) for pid in self._files if pid not in alive}
        for pid in ends:
            os.close(self._files.pop(pid))
        for pid in alive:
            if pid not in self._files:
                with suppress(OSError):  # it is gone, or too many files are open
                    self._files[pid] = os.pidfd_open(pid)
        return ends


def _end_of(process: int) -> int | None:
    # `struct pidfd_info` of linux/pidfd.h: the mask comes first, `exit_code` is at byte 60.
    info = bytearray(_INFO_EXIT.to_bytes(8, sys.byteorder)).ljust(_INFO_BYTES, b"\0")
    try:
        fcntl.ioctl(process, _GET_INFO, info)
    except OSError:  # before Linux 6.13
        return None
    if not int.from_bytes(info[:8], sys.byteorder) & _INFO_EXIT:
        return None
    return os.waitstatus_to_exitcode(int.from_bytes(info[60:64], sys.byteorder))


@dataclass(frozen=True)
class Connection:
    """One end of a TCP connection.

    Attributes:
        local: address and port of this end, such as "10.0.0.1:2222".
        remote: address and port of the other end.
        unacknowledged: bytes for the other end that the kernel holds, sent or not.
        resent: how often the kernel has sent the same data again without an acknowledgement.
    """

    local: str
    remote: str
    unacknowledged: int
    resent: int


def connections_of(pid: int) -> tuple[Connection, ...]:
    """The connections that are established or that the process is establishing.

    Empty if the process is gone, or another user's.
    """
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        inodes = set(_socket_inodes(pid))
        return tuple(_read(pid, "tcp", inodes)) + tuple(_read(pid, "tcp6", inodes))
    return ()


def takers_of(pid: int, secs: float) -> frozenset[str]:
    """The remote ends that take part of a long message within `secs`; blocks that long."""
    reads = max(1, round(_READS_PER_SEC * secs))
    takers = set()
    before = {(end.local, end.remote): end.unacknowledged for end in connections_of(pid)}
    for _ in range(reads):
        time.sleep(secs / reads)
        held = {(end.local, end.remote): end.unacknowledged for end in connections_of(pid)}
        takers |= {ends[1] for ends, now in held.items() if now < before.get(ends, 0) >= LONG}
        before = held
    return frozenset(takers)


def _socket_inodes(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        with suppress(FileNotFoundError):  # the file was closed in the meantime
            link = os.readlink(f"{folder}/{number}")
            if link.startswith("socket:["):
                yield link[len("socket:[") : -1]


def _read(pid: int, family: str, inodes: set[str]) -> Iterator[Connection]:
    # See proc_pid_net(5). The file has all connections of the network namespace.
    with open(f"/proc/{pid}/net/{family}", encoding="ascii") as lines:
        next(lines)
        for line in lines:
            _, local, remote, state, queues, _, resent, _, _, inode, *_ = line.split()
            if state in (_ESTABLISHED, _SYN_SENT) and inode in inodes:
                unacknowledged, _, _ = queues.partition(":")
                yield Connection(
                    _endpoint(local), _endpoint(remote), int(unacknowledged, 16), int(resent, 16)
                )


def _endpoint(text: str) -> str:
    """The address that "0100007F:08AE" means: words of four bytes in this machine's byte order."""
    digits, _, port = text.partition(":")
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    address = ipaddress.ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    host = str(mapped or address)
    return f"[{host}]:{int(port, 16)}" if ":" in host else f"{host}:{int(port, 16)}"
