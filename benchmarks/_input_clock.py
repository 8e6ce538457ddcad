"""The CPU time of another process in nanoseconds; /proc has only hundredths of a second."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable

import psutil

from tfdist.task import parse_address

Clock = Callable[[], float]


def cpu_clock(pid: int) -> Clock:
    """A clock that returns the CPU seconds of all threads of the process."""
    library, clock = ctypes.CDLL(None), ctypes.c_int()
    if error := library.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error), f"pid {pid}")
    return lambda: time.clock_gettime(clock.value)


def server_pid(address: str) -> int:
    """The local process that listens on the port of `address`."""
    port = parse_address(address).port
    for found in psutil.net_connections("tcp"):
        listens = found.status == psutil.CONN_LISTEN and found.laddr
        if listens and listens.port == port and found.pid:
            return found.pid
    raise ProcessLookupError(f"no process listens on {address}")
