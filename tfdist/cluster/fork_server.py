"""The fork server: a process that has imported TensorFlow once, from which tasks are forked.

An import of TensorFlow takes seconds in each process; a fork takes milliseconds. The fork server
is that of `multiprocessing`. It runs no TensorFlow operation, so forking it is safe. It ends when
this process ends; the guardian kills the processes that the tasks have started.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from typing import Any

import psutil

from tfdist.cluster.guardian import Guardian
from tfdist.cluster.kernel_calls import end_with_parent, to_high_number
from tfdist.errors import ClusterError

# A program given by `-c` or `-m` would import the modules in the current folder before those of the
# standard library: a script elsewhere ignores a `socket.py` there, and so must the tasks. (Python
# 3.10 has no such switch.)
SAFE_PATH, FOR_FORK_SERVER = "PYTHONSAFEPATH", "tfdist"

# The terminal, `timeout` and service managers send these to a whole group of processes.
OF_GROUP = {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM}

context = multiprocessing.get_context("forkserver")
guardian = Guardian()

_LEAVE_SECS = 5.0
_DELETED = " (deleted)"  # what Linux appends to a path


def start_fork_server() -> None:
    """Starts the import of TensorFlow in the background, so that the first task waits less.

    Raises:
        ClusterError: the working directory, in which each process starts, was deleted.
    """
    folder = os.readlink("/proc/self/cwd")
    if folder.endswith(_DELETED) and not os.path.exists(folder):
        name = folder.removesuffix(_DELETED)
        raise ClusterError(
            f"cannot start a process: the working directory {name} was deleted; change to another"
        )
    context.set_forkserver_preload(["tfdist.cluster.preload"])
    with _safe_path():
        _start()


def _start() -> None:
    # Before the mask is set, because its start unblocks SIGINT.
    resource_tracker.ensure_running()
    # The fork server and its children inherit the mask. So Ctrl-C, or a SIGTERM to the group,
    # reaches this process alone, which ends the others in order.
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, OF_GROUP)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
    server: Any = forkserver._forkserver  # (an attribute of CPython 3.10 to 3.13)
    guardian.note_fork_server(server._forkserver_pid)


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Sets SAFE_PATH for the processes that start in the block; the preload removes it again."""
    if SAFE_PATH in os.environ:  # the user's own: the tasks keep it
        yield
        return
    os.environ[SAFE_PATH] = FOR_FORK_SERVER
    try:
        yield
    finally:
        del os.environ[SAFE_PATH]


def stop_fork_server() -> None:
    """Ends the fork server, its tracker, the guardian and all processes that the tasks left.

    Returns when they have ended. Without this call they end soon after this process.
    """
    guardian.stop()
    helpers = fork_server_processes()
    for helper in helpers:
        helper.kill()
    psutil.wait_procs(helpers, timeout=_LEAVE_SECS)


def fork_server_processes() -> list[psutil.Process]:
    """The processes of this module: `multiprocessing`'s fork server and tracker, the guardian."""
    helpers = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.pid == guardian.pid or any(
                "from multiprocessing." in argument for argument in child.cmdline()
            ):
                helpers.append(child)
    return helpers


def die_with_parent() -> None:
    """Makes the kernel kill this process when its parent ends."""
    parent = os.getppid()
    end_with_parent()
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(1)


def release_fork_server() -> None:
    """Closes this task's copy of the pipe that keeps the fork server alive.

    `multiprocessing` gives each child a copy, so that the child can start processes. With it, after
    the launcher was killed, the tasks would keep the fork server alive and the fork server the
    tasks. (Attributes of CPython 3.10 to 3.13.)

    Moves the pipe of the resource tracker, into which `multiprocessing` writes when the task uses
    shared memory.
    """
    server: Any = forkserver._forkserver
    os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = server._forkserver_address = None
    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = to_high_number(tracker._fd)
