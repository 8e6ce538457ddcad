"""Stacks by py-spy, a program that reads the memory of another process: native frames too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tfdist.errors import ClusterError

INSTALL = "py-spy is not installed: pip install 'tfdist[debug]'"


def find_py_spy() -> str | None:
    """Its path: on PATH, or beside this Python; None if it is not installed."""
    return shutil.which("py-spy") or shutil.which("py-spy", path=os.path.dirname(sys.executable))


def dump(pid: int, *, native: bool, timeout: float = 30.0) -> str:
    """What `py-spy dump` prints of the process; blocks for `timeout` seconds at most.

    Raises:
        ClusterError: py-spy is not installed, or cannot read the process.
    """
    path = find_py_spy()
    if path is None:
        raise ClusterError(INSTALL)
    command = [path, "dump", *(["--native"] if native else []), "--pid", str(pid)]
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
    return ended.stdout
