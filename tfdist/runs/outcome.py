"""How a task ended and what it used; the interfaces between a cluster and its tasks."""

from __future__ import annotations

import importlib.util
import itertools
import pkgutil
import resource
import runpy
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import psutil

from tfdist.errors import ConfigError, TaskFailed, printable
from tfdist.task import Task

_PACKAGE = Path(__file__).parents[1]
# The files whose frames are above those of a script.
LAUNCHERS = (
    str(_PACKAGE / "cluster" / "processes.py"),
    str(_PACKAGE / "cluster" / "script.py"),
    str(_PACKAGE / "cluster" / "in_process.py"),
    str(_PACKAGE / "cli" / "node.py"),
)
# Those of Python that find, read and compile a script; others of them are frozen modules.
_LOADERS = [
    function.__code__.co_filename
    for function in (runpy.run_path, importlib.util.find_spec, pkgutil.read_code)
]


@dataclass(frozen=True)
class Usage:
    """CPU time and memory of a process.

    Attributes:
        cpu_secs: CPU time in user and system mode, with that of ended children.
        peak_bytes: peak size of its resident set.
    """

    cpu_secs: float
    peak_bytes: int

    @classmethod
    def of_this_process(cls) -> Usage:
        """The usage of this process until now."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_secs = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
        return cls(cpu_secs, own.ru_maxrss * 1024)

    @classmethod
    def of(cls, pid: int) -> Usage | None:
        """The usage of another process until now; None if that has ended."""
        try:
            times = psutil.Process(pid).cpu_times()
            # A process may give itself any name.
            with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
                status = dict(line.split(":", 1) for line in file)
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return None
        if "VmHWM" not in status:  # a zombie has no memory
            return None
        cpu_secs = times.user + times.system + times.children_user + times.children_system
        return cls(cpu_secs, int(status["VmHWM"].split()[0]) * 1024)


def oom_kills(
    pid: int, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """How many processes the kernel has killed for lack of memory in the cgroup of a process.

    If no cgroup counts them, on the whole machine; None if nothing does.

    Args:
        pid: of the process.
        proc: where procfs is mounted.
        cgroups: where the hierarchies of cgroups(7) are mounted, of version 1 or 2.
    """
    files = [proc / "vmstat"]
    try:
        lines = (proc / str(pid) / "cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:  # the process has ended
        lines = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        is_memory = "memory" in controllers.split(",")
        if is_memory or not controllers:
            root = cgroups / "memory" if is_memory else cgroups
            # In a container the path may be that of the host, and the root its own cgroup.
            name = "memory.oom_control" if is_memory else "memory.events"
            files[-1:-1] = [root / path.lstrip("/") / name, root / name]
    for file in files:
        with suppress(OSError):
            counts = dict(line.split(maxsplit=1) for line in file.read_text("ascii").splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return None


def out_of_memory(before: int | None, now: int | None) -> str:
    """What two counts of `oom_kills` say of the time between them; "" if nothing."""
    if before is None or now is None or now <= before:
        return ""
    killed = "1 process" if now == before + 1 else f"{now - before} processes"
    return (
        f"out of memory: the kernel killed {killed} for lack of memory meanwhile; use smaller "
        "batches, or fewer tasks on this machine, or raise the memory limit of the container"
    )


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        result: what its function returned.
        error: what its function raised.
        exit_code: exit code of its process, or minus the signal that killed it; None for a thread.
        details: the traceback as text, or what else is known.
        usage: CPU time and memory of its process; None if unknown.
        terminated: whether the cluster sent it SIGTERM or SIGKILL.
        handles_sigterm: whether its program had a SIGTERM handler, which may have raised.
        has_reported: whether it has reported to every ps that it is done.
    """

    result: object = None
    error: BaseException | None = None
    exit_code: int | None = None
    details: str = ""
    usage: Usage | None = None
    terminated: bool = False
    handles_sigterm: bool = False
    has_reported: bool = False

    @classmethod
    def of_error(cls, error: BaseException) -> Outcome:
        """The outcome of a function that raised; its traceback begins in the user's code.

        Never raises: an error that cannot be printed is described by its type and its place.
        """
        try:
            details = _traceback_of(error)
        except BaseException:  # of a method or an attribute of the error's class
            places = [
                f" in {frame.f_code.co_filename}, line {line}"
                for frame, line in traceback.walk_tb(error.__traceback__)
            ]
            details = f"{type(error).__name__}{''.join(places[-1:])}; its text cannot be made\n"
        return cls(error=error, details=printable(details))

    @classmethod
    def of_exit(cls, error: SystemExit) -> Outcome:
        """The outcome of a function that called `sys.exit`; never raises."""
        given: Any = error.code
        if given is None or issubclass(type(given), int):
            # The kernel keeps one byte of it; Python takes what is too large for -1, and ignores
            # the methods of a subclass.
            code = 0 if given is None else int.__index__(given)
            return cls(exit_code=code & 0xFF if abs(code) < 2**63 else 0xFF)
        return cls(exit_code=1, details=text_of(given))

    @property
    def failed(self) -> bool:
        """True if the task raised an error or has an exit code other than 0."""
        return self.error is not None or bool(self.exit_code)

    def show(self) -> None:
        """Prints the details on standard error, as Python does at the end, unless it is closed."""
        if self.details and sys.stderr is not None:
            with suppress(OSError, ValueError):
                end = "\n" if self.error is None else ""
                print(self.details, end=end, file=sys.stderr)

    def raise_for(self, task: Task) -> None:
        """Raises TaskFailed if the task failed; a ConfigError of the task is raised as it is."""
        if isinstance(self.error, ConfigError):
            raise self.error
        if not self.failed:
            return
        failure = TaskFailed(task.name, self.exit_code, self.details)
        if self.exit_code == 0:  # which reads as success
            failure.how = f"{task.name} failed"
            failure.args = (f"{task.name}: {self.details}".rstrip(),)
        raise failure from self.error


def text_of(value: object) -> str:
    """The text of a value, fit to print; the name of its type if it has none. Never raises."""
    try:
        return printable(str(value))
    except BaseException:  # of its class
        return type(value).__name__


def user_trace(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame of the user's code on; None if there is none."""
    while trace is not None and _is_above_script(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def _traceback_of(error: BaseException) -> str:
    trace = traceback.TracebackException.from_exception(error)
    above = itertools.dropwhile(lambda frame: _is_above_script(frame.filename), trace.stack)
    if users := list(above):
        trace.stack = traceback.StackSummary.from_list(users)
    elif isinstance(error, SyntaxError) or _is_of_loading(trace):  # no code of the script ran
        trace.stack = traceback.StackSummary()
        if _is_of_loading(trace.__cause__ or trace.__context__):
            trace.__cause__ = trace.__context__ = None
    return "".join(trace.format())


def _is_above_script(file: str) -> bool:
    return file in LAUNCHERS or _is_of_loader(file)


def _is_of_loader(file: str) -> bool:
    return file in _LOADERS or file.startswith("<frozen ")


def _is_of_loading(trace: traceback.TracebackException | None) -> bool:
    return trace is not None and bool(trace.stack) and _is_of_loader(trace.stack[-1].filename)


class RunningTask(Protocol):
    """A started task; its outcome arrives in the cluster's queue."""

    task: Task

    def send_signal(self, number: signal.Signals) -> None:
        """Sends SIGTERM, SIGSTOP or SIGCONT; does not block."""

    def wait(self, timeout: float) -> bool:
        """True once the task has ended; blocks until then, for `timeout` seconds at most."""

    def kill(self) -> None:
        """Kills the task and the processes of its group; returns when they have ended."""


class Observer(Protocol):
    """Receives the events of the tasks of a cluster of processes, from several threads.

    `attempt` counts the starts of a task, from 1.
    """

    def folder(self, name: str, attempt: int) -> str:
        """Makes the folder for the files of the attempt, and returns its path."""

    def started(self, name: str, attempt: int, pid: int) -> None:
        """The process of the task has started."""

    def output(self, name: str, attempt: int, stream: int, data: bytes) -> None:
        """The task has written `data` to its stream 1 or 2."""

    def ended(self, name: str, attempt: int, outcome: Outcome) -> None:
        """The process of the task and all processes of its group have ended."""
