"""The fork server: a process that has imported TensorFlow once, from which tasks are forked.

An import of TensorFlow costs seconds for each process; a fork costs milliseconds. The fork server
is the one of `multiprocessing`; it runs no TensorFlow operation, so forking it is safe. It ends
when this process does. A guardian ends what the tasks have started.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from multiprocessing import forkserver, resource_tracker
from typing import Any

import psutil

from tfdist.cluster.guardian import Guardian
from tfdist.cluster.kernel_calls import end_with_parent

context = multiprocessing.get_context("forkserver")
guardian = Guardian()

_LEAVE_SECS = 5.0


def start_fork_server() -> None:
    """Starts importing TensorFlow in the background; the first task waits for it otherwise."""
    context.set_forkserver_preload(["tfdist.cluster.preload"])
    # First, for it unblocks SIGINT when it starts.
    resource_tracker.ensure_running()
    # The fork server and all its children inherit the mask: Ctrl-C on the terminal is for this
    # process, which ends the others in order.
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
    server: Any = forkserver._forkserver  # (an attribute of CPython 3.10 to 3.13)
    guardian.note_fork_server(server._forkserver_pid)


def stop_fork_server() -> None:
    """Ends the fork server, its tracker, the guardian and what the tasks left behind.

    Returns when they are gone. They would end by themselves soon after this process.
    """
    guardian.stop()
    helpers = fork_server_processes()
    for helper in helpers:
        helper.kill()
    psutil.wait_procs(helpers, timeout=_LEAVE_SECS)


def fork_server_processes() -> list[psutil.Process]:
    """The helper processes: `multiprocessing`'s fork server and tracker, and the guardian."""
    helpers = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.pid == guardian.pid or any(
                "from multiprocessing." in argument for argument in child.cmdline()
            ):
                helpers.append(child)
    return helpers


def die_with_parent() -> None:
    """Makes the kernel end this process when its parent ends."""
    parent = os.getppid()
    end_with_parent()
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def release_fork_server() -> None:
    """Closes this task's copy of the pipe that keeps the fork server alive.

    `multiprocessing` gives each child a copy, so that the child can start processes itself. After
    the launcher was killed, the tasks would keep the fork server alive, and the fork server the
    tasks. (Attributes of CPython 3.10 to 3.13.)
    """
    server: Any = forkserver._forkserver
    os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = server._forkserver_address = None
