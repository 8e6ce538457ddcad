"""Stacks by py-spy, a program that reads the memory of another process: native frames too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tfdist.diagnosis.evidence import Frame, Stack, folded
from tfdist.errors import ClusterError

INSTALL = "py-spy is not installed: pip install py-spy"


def find_py_spy() -> str | None:
    """Its path: on PATH, or beside this Python; None if it is not installed."""
    return shutil.which("py-spy") or shutil.which("py-spy", path=os.path.dirname(sys.executable))


def dump(pid: int, *, native: bool = False, timeout: float = 30.0) -> tuple[Stack, ...]:
    """Where the Python threads of a process stand; blocks for `timeout` seconds at most.

    It holds the process for the moment of reading.

    Args:
        pid: of any Python process.
        native: whether the calls of C and C++ are among the frames.
        timeout: in seconds.

    Raises:
        ClusterError: py-spy is not installed, or cannot read the process.
    """
    path = find_py_spy()
    if path is None:
        raise ClusterError(INSTALL)
    options = ["--json", *(["--native"] if native else [])]
    command = [path, "dump", *options, "--pid", str(pid)]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"py-spy has not ended after {timeout:.0f} s") from None
    if ended.returncode != 0:
        # Without the backtrace of py-spy itself, which follows.
        reason = ended.stderr.partition("Stack backtrace")[0].split()
        raise ClusterError(f"py-spy failed: {' '.join(reason) or 'it does not say why'}")
    return folded(
        Stack(tuple(map(_frame, thread["frames"])), main=thread["os_thread_id"] == pid)
        for thread in json.loads(ended.stdout)
    )


def _frame(values: Mapping[str, Any]) -> Frame:
    name = values["name"]
    if values["module"] is None:  # of Python: "Session.run", where faulthandler has "run"
        name = name.rpartition(".")[2]
    return Frame(values["filename"], values["line"] or None, name)
