"""What a process has used of the machine."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Usage:
    """What a process has used, its ended children included where the kernel counts them.

    Attributes:
        cpu_secs: in user and system mode.
        peak_bytes: most memory it has had in RAM (resident set) at one time.
    """

    cpu_secs: float
    peak_bytes: int

    @classmethod
    def of_this_process(cls) -> Usage:
        """Of the caller's process, up to now."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_secs = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
        return cls(cpu_secs, own.ru_maxrss * 1024)

    @classmethod
    def of(cls, pid: int) -> Usage | None:
        """Of another process, up to now; None if it is gone."""
        try:
            times = psutil.Process(pid).cpu_times()
            with open(f"/proc/{pid}/status", encoding="ascii") as file:
                status = dict(line.split(":", 1) for line in file)
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return None
        if "VmHWM" not in status:  # a zombie has no memory any more
            return None
        cpu_secs = times.user + times.system + times.children_user + times.children_system
        return cls(cpu_secs, int(status["VmHWM"].split()[0]) * 1024)
