"""`tfdist stacks --pid`: processes that tfdist need not have started, so they get no signal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
from rich.console import Console

from tfdist.diagnosis import py_spy
from tfdist.diagnosis.evidence import Evidence, Place, Stack, TaskEvidence
from tfdist.diagnosis.kernel_threads import KernelThreads, kernel_threads
from tfdist.diagnosis.rules import diagnose
from tfdist.diagnosis.sample import Sighting, name_peers, sample_foreign
from tfdist.diagnosis.thread_text import (
    ask_py_spy,
    install_lines,
    kernel_json,
    kernel_lines,
    py_spy_lines,
    verdict_lines,
)
from tfdist.diagnosis.verdict import Verdict
from tfdist.errors import ClusterError, ConfigError

_NOT_ALL_TOLD = 1


@dataclass(frozen=True)
class _View:
    """What is known of a process.

    Attributes:
        stacks: what py-spy tells of it; none if it failed.
        complaint: why there is nothing of py-spy.
        wants_native: whether the frames of C and C++ were asked for.
    """

    pid: int
    kernel: KernelThreads
    stacks: tuple[Stack, ...]
    complaint: str | None
    wants_native: bool

    @property
    def is_gone(self) -> bool:
        """Whether it had no thread any more."""
        return self.kernel == KernelThreads()

    @property
    def is_well(self) -> bool:
        """Whether all that can be told is."""
        # Without py-spy the kernel's word is all there is to get, unless more was asked for.
        is_enough = self.complaint == py_spy.INSTALL and not self.wants_native
        return not self.is_gone and (self.complaint is None or is_enough)


def show_processes(
    pids: Sequence[int], console: Console, *, native: bool, diagnosed: bool, as_json: bool
) -> int:
    """Prints where they stand and returns the exit code: 1 if one is gone or py-spy has failed.

    Args:
        pids: of the processes.
        console: for what is printed.
        native: whether the frames of C and C++ are asked for too.
        diagnosed: whether there is to be a verdict.
        as_json: whether one JSON object is printed instead.

    Raises:
        ConfigError: there is no such process; or there is to be a verdict, and py-spy cannot
            read one of them.
    """
    processes = [_process(pid) for pid in pids]
    verdict = _verdict(processes) if diagnosed else None
    with ThreadPoolExecutor(len(pids)) as pool:
        views = list(pool.map(lambda pid: _view(pid, native), pids))
    code = 0 if all(view.is_well for view in views) else _NOT_ALL_TOLD
    if as_json:
        about = {"exit_code": code, "processes": [_json(view) for view in views]}
        print(json.dumps({**about, "verdict": verdict and asdict(verdict)}))
        return code
    lines = [*verdict_lines(verdict)] if verdict is not None else []
    lines += ["no signal is sent to a process by its pid; what /proc and py-spy tell:"]
    for view in views:
        lines += ["", f"pid {view.pid}" + (" is gone" if view.is_gone else "")]
        lines += kernel_lines(view.kernel)
        lines += py_spy_lines(view.stacks, view.complaint, console.width)
    for line in (*lines, *install_lines([view.complaint for view in views])):
        console.print(line, soft_wrap=True)
    return code


def _process(pid: int) -> psutil.Process:
    try:
        return psutil.Process(pid)
    except (psutil.NoSuchProcess, ValueError):
        raise ConfigError("--pid", pid, "no such process") from None


def _verdict(processes: Sequence[psutil.Process]) -> Verdict:
    """On these; whether they are all of their job is not known."""
    with ThreadPoolExecutor(len(processes)) as pool:
        names = [f"pid {process.pid}" for process in processes]
        seen = dict(zip(names, pool.map(_sight, processes), strict=True))
    tasks = (_evidence(name, one) for name, one in seen.items())
    return diagnose(Evidence(name_peers(tasks, seen), whole=False))


def _sight(process: psutil.Process) -> Sighting:
    try:
        return sample_foreign(process)
    except ClusterError as error:
        raise ConfigError("--verdict", process.pid, f"py-spy has to read it: {error}") from None


def _evidence(name: str, seen: Sighting) -> TaskEvidence:
    task = seen.evidence(name=name)
    return replace(task, trains=task.place is not Place.SERVER)


def _view(pid: int, native: bool) -> _View:
    kernel = kernel_threads(pid)
    return _View(pid, kernel, *ask_py_spy(pid, native=native), native)


def _json(view: _View) -> dict[str, Any]:
    return {
        "pid": view.pid,
        "gone": view.is_gone,
        "kernel": kernel_json(view.kernel),
        "stacks": [asdict(stack) for stack in view.stacks],
        "complaint": view.complaint,
    }
