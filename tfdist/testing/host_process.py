"""A command that runs on a host of a test network."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import psutil


class HostProcess(subprocess.Popen[bytes]):
    """A `subprocess.Popen` whose signals reach the whole process group of the command.

    `Network.start` makes it. `returncode` is that of the command, 127 if there is no such program,
    125 if the host is gone. `pid` is a process of this machine that waits for the command; on the
    host the command has another number.
    """

    def send_signal(self, sig: int) -> None:
        """Sends the signal to the command and to what it has started in its process group."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sig)

    def ask_to_end(self) -> None:
        """Sends SIGTERM to the command alone, not to what it has started; as docker does."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for command in psutil.Process(self.pid).children():
                command.terminate()

    def stop(self) -> None:
        """Stops it with SIGSTOP: its sockets stay open and nobody answers."""
        self.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Wakes it with SIGCONT."""
        self.send_signal(signal.SIGCONT)
