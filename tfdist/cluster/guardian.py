"""The guardian: a process that kills the processes of the tasks after the launcher was killed.

The kernel kills a task when its parent ends, but not the processes that the task has started. So
the guardian reads the process group of each task from a pipe, and kills the groups at the end of
the file: then the launcher has ended, for whatever reason. This file is also the program of the
guardian, which starts without site and TensorFlow.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading

_LEAVE_SECS = 5.0
_PROGRAM = os.path.abspath(__file__)  # before this process changes its folder


class Guardian:
    """The launcher's side of the guardian: notes what the guardian shall kill.

    Starts the guardian at the first note. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._clear()
        os.register_at_fork(after_in_child=self._forget_pipe)
        atexit.register(self.stop)  # before multiprocessing waits for tasks that still run

    def _clear(self) -> None:
        self._lock = threading.Lock()
        self._fork_server = 0
        self._groups: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1

    @property
    def pid(self) -> int | None:
        """The pid of the guardian; None before the first note and after `stop`."""
        return None if self._process is None else self._process.pid

    def note_fork_server(self, pid: int) -> None:
        """Notes the fork server, which sees the launcher's end late while it imports."""
        with self._lock:
            if pid != self._fork_server:
                self._fork_server = pid
                self._update()

    def note_group(self, group: int) -> None:
        """Notes the process group of a task."""
        with self._lock:
            self._groups.add(group)
            self._update()

    def forget_group(self, group: int) -> None:
        """Removes the note of a group that has ended: its number may be used again."""
        with self._lock:
            if group in self._groups:
                self._groups.remove(group)
                self._update()

    def stop(self) -> None:
        """Makes the guardian kill what is still noted and end; returns when it has ended."""
        with self._lock:
            if self._process is None:
                return
            self._close_pipe()
            try:
                self._process.wait(_LEAVE_SECS)
            except subprocess.TimeoutExpired:  # the guardian is stopped (SIGSTOP)
                self._process.kill()
                self._process.wait()
            self._process, self._fork_server = None, 0
            self._groups.clear()

    def _update(self) -> None:
        # All notes each time, so that a new guardian can replace a killed one.
        line = f"{' '.join(map(str, (self._fork_server, *self._groups)))}\n".encode()
        if self._process is not None:
            try:
                self._send(line)
                return
            except BrokenPipeError:
                self._close_pipe()
                self._process.wait(_LEAVE_SECS)
                self._process = None
        self._process = self._started()
        self._send(line)

    def _send(self, line: bytes) -> None:
        with open(self._pipe, "wb", closefd=False) as pipe:
            pipe.write(line)

    def _started(self) -> subprocess.Popen[bytes]:
        read_end, self._pipe = os.pipe()
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", _PROGRAM],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # out of reach of signals to the launcher's group
            )
        except BaseException:
            self._close_pipe()
            raise
        finally:
            os.close(read_end)

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _forget_pipe(self) -> None:
        """Closes the pipe in a fork of the launcher: only the launcher may keep it open."""
        self._close_pipe()
        self._clear()


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    fork_server, groups = 0, []
    for line in sys.stdin.buffer:
        if line.endswith(b"\n"):  # the launcher may be killed while it writes a line
            fork_server, *groups = map(int, line.split())
    for group in groups:
        # PermissionError: the group has ended, and the number belongs to another user.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    # The fork server may have ended by itself, and its pid may belong to another process.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if b"multiprocessing.forkserver" in _command_line(fork_server):
            os.kill(fork_server, signal.SIGKILL)


def _command_line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


if __name__ == "__main__":
    _main()
