"""The CPU time of another process, in nanoseconds where /proc counts in hundredths of a second."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable

import psutil

Clock = Callable[[], float]


def cpu_clock(pid: int) -> Clock:
    """Gives the seconds of CPU time that all threads of the process have had so far."""
    library, clock = ctypes.CDLL(None), ctypes.c_int()
    if error := library.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error), f"pid {pid}")
    return lambda: time.clock_gettime(clock.value)


def server_pid(address: str) -> int:
    """The process of this machine that listens at the port of `address`."""
    port = int(address.rpartition(":")[2])
    for found in psutil.net_connections("tcp"):
        listens = found.status == psutil.CONN_LISTEN and found.laddr
        if listens and listens.port == port and found.pid:
            return found.pid
    raise ProcessLookupError(f"nobody listens at {address}")
