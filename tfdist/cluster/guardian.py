"""Ends the processes that tasks have started if the launcher is killed and cannot do it.

The kernel ends a task with its parent, but not what the task has started. So a separate process,
the guardian, knows the process group of each task. It reads them from a pipe, which ends when the
launcher is gone for any reason. This file is the program of that process too: it starts without
site and TensorFlow.
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
_PROGRAM = os.path.abspath(__file__)  # now, before this process may go elsewhere


class Guardian:
    """The launcher's side: has whatever is noted here ended after this process.

    Safe to use from several threads.
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
        """Of its process, once something was noted and until `stop`."""
        return None if self._process is None else self._process.pid

    def note_fork_server(self, pid: int) -> None:
        """Has that process ended, which sees the launcher's end late while it imports."""
        with self._lock:
            if pid != self._fork_server:
                self._fork_server = pid
                self._tell()

    def note_group(self, group: int) -> None:
        """Has that process group ended, whole."""
        with self._lock:
            self._groups.add(group)
            self._tell()

    def forget_group(self, group: int) -> None:
        """The group is gone, and its number may become another's."""
        with self._lock:
            if group in self._groups:
                self._groups.remove(group)
                self._tell()

    def stop(self) -> None:
        """Ends what is still noted, and the process that does it; returns when that is gone."""
        with self._lock:
            if self._process is None:
                return
            self._close_pipe()
            try:
                self._process.wait(_LEAVE_SECS)
            except subprocess.TimeoutExpired:  # it is stopped (SIGSTOP)
                self._process.kill()
                self._process.wait()
            self._process, self._fork_server = None, 0
            self._groups.clear()

    def _tell(self) -> None:
        # The whole state each time, so that a guardian that was killed can be replaced.
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
                start_new_session=True,  # signals to the launcher's group are not for it
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
        """In a fork of the launcher: only the launcher itself keeps the pipe open."""
        self._close_pipe()
        self._clear()


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    fork_server, groups = 0, []
    for line in sys.stdin.buffer:
        if line.endswith(b"\n"):  # the launcher may be killed within one
            fork_server, *groups = map(int, line.split())
    for group in groups:
        # Where the number is another user's by now, ours is gone.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    # That one ends by itself if it can, and its number may be another's by now.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if b"multiprocessing.forkserver" in _command_line(fork_server):
            os.kill(fork_server, signal.SIGKILL)


def _command_line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


if __name__ == "__main__":
    _main()
