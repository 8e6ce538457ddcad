"""Functions that trainers on the hosts of a network run; their processes import this module."""

import os
import socket
from pathlib import Path

import psutil

import tfdist
from tfdist.testing import poll_until


def report_place(task, folder):
    """Meets all others, and returns where it runs."""
    with tfdist.worker_server(task), tfdist.Barrier(task, "meeting", timeout=30) as barrier:
        Path(folder, task.name).touch()
        barrier.wait()
        return {
            "host": socket.gethostname(),
            "address": socket.gethostbyname(socket.gethostname()),
            "cards": [name for _, name in socket.if_nameindex()],
            "process": psutil.Process().pid == os.getpid() == int(os.readlink("/proc/self")),
            "files": sorted(path.name for path in Path(folder).iterdir()),
            "folder": os.getcwd(),
        }


def meet_twice(task, folder):
    """Meets all others, waits until the test has acted, and meets them again.

    Returns the generation in which this incarnation of the task began.
    """
    with tfdist.worker_server(task), tfdist.Barrier(task, "meeting", timeout=60) as barrier:
        generation = barrier.generation
        if generation == 1:
            barrier.wait()
            Path(folder, f"{task.name} has met").touch()
            poll_until(Path(folder, "go").exists, "the test has acted", timeout=60)
        barrier.wait()
        return generation


def meet_or_report_the_missing(task, folder):
    """Meets all others; then the chief waits until a timeout, and returns the missing tasks."""
    with tfdist.worker_server(task), tfdist.Barrier(task, "meeting", timeout=60) as barrier:
        barrier.wait()
        missing = None
        if task.is_chief:
            Path(folder, "met").touch()
            poll_until(Path(folder, "unplugged").exists, "the test has acted", timeout=60)
            try:
                barrier.wait(timeout=2)
            except tfdist.BarrierTimeout as late:
                missing = late.missing
            Path(folder, "reported").touch()
        else:
            poll_until(Path(folder, "reported").exists, "the chief has reported", timeout=60)
        barrier.wait()
        return missing
