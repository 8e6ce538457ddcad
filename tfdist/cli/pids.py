"""`tfdist stacks --pid`: processes that tfdist need not have started, so they get no signal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
from rich.console import Console

from tfdist.cli.thread_text import (
    ask_py_spy,
    install_lines,
    kernel_json,
    kernel_lines,
    native_lines,
)
from tfdist.cluster import py_spy
from tfdist.cluster.kernel_threads import KernelThreads, kernel_threads
from tfdist.errors import ConfigError

_NOT_ALL_TOLD = 1


@dataclass(frozen=True)
class _View:
    """What is known of a process.

    Attributes:
        native: what py-spy printed; None if it failed.
        complaint: why there is nothing of py-spy.
        wants_native: whether the frames of C and C++ were asked for.
    """

    pid: int
    kernel: KernelThreads
    native: str | None
    complaint: str | None
    wants_native: bool

    @property
    def is_gone(self) -> bool:
        """Whether it had no thread any more."""
        return self.kernel == KernelThreads(None, Counter(), 0)

    @property
    def is_well(self) -> bool:
        """Whether all that can be told is."""
        # Without py-spy the kernel's word is all there is to get, unless more was asked for.
        is_enough = self.complaint == py_spy.INSTALL and not self.wants_native
        return not self.is_gone and (self.complaint is None or is_enough)


def show_processes(pids: Sequence[int], console: Console, *, native: bool, as_json: bool) -> int:
    """Prints where they stand and returns the exit code: 1 if one is gone or py-spy has failed.

    Raises:
        ConfigError: there is no such process.
    """
    for pid in pids:
        if pid < 1 or not psutil.pid_exists(pid):
            raise ConfigError("--pid", pid, "no such process")
    with ThreadPoolExecutor(len(pids)) as pool:
        views = list(pool.map(lambda pid: _view(pid, native), pids))
    code = 0 if all(view.is_well for view in views) else _NOT_ALL_TOLD
    if as_json:
        print(json.dumps({"exit_code": code, "processes": [_json(view) for view in views]}))
        return code
    lines = ["no signal is sent to a process by its pid; what /proc and py-spy tell:"]
    for view in views:
        lines += ["", f"pid {view.pid}" + (" is gone" if view.is_gone else "")]
        lines += [*kernel_lines(view.kernel), *native_lines(view.native, view.complaint)]
    for line in (*lines, *install_lines([view.complaint for view in views])):
        console.print(line, soft_wrap=True)
    return code


def _view(pid: int, native: bool) -> _View:
    kernel = kernel_threads(pid)
    return _View(pid, kernel, *ask_py_spy(pid, native=native), native)


def _json(view: _View) -> dict[str, Any]:
    return {
        "pid": view.pid,
        "gone": view.is_gone,
        "kernel": kernel_json(view.kernel),
        "native": view.native,
        "complaint": view.complaint,
    }
