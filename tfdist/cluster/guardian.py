"""Ends what the tasks have started, should this process be killed.

The kernel ends the tasks then, but not what those have started in their process groups. So a small
process outlives this one by a moment. It is told each group that begins and ends, and ends those
that are left when the pipe to it is closed, as it is by whatever end this process comes to.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys

_PROGRAM = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
groups = set()
for line in sys.stdin.buffer:
    sign, group = line[:1], int(line[1:])
    groups.add(group) if sign == b"+" else groups.discard(group)
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
_LEAVE_SECS = 5.0


class Guardian:
    """The small process; several threads may tell it something at the same time.

    Attributes:
        pid: of it.
    """

    def __init__(self) -> None:
        read_end, self._pipe = os.pipe()
        # A session of its own: neither Ctrl-C nor an end of this process's group is for it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_end)
        atexit.register(self.close)
        self.pid = self._process.pid

    def begins(self, group: int) -> None:
        """A process group is to be ended with this process."""
        self._tell("+", group)

    def ended(self, group: int) -> None:
        """It is gone, and its number may be another's."""
        self._tell("-", group)

    def close(self) -> None:
        """Makes it leave, and returns when it is gone."""
        atexit.unregister(self.close)
        os.close(self._pipe)
        self._process.wait(_LEAVE_SECS)

    def _tell(self, sign: str, group: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            os.write(self._pipe, f"{sign}{group}\n".encode())
