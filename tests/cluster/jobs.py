"""What the trainers of the tests run; a process finds them by import."""

import os
import pathlib
import sys

import tfdist
from tfdist.testing import poll_until


def who(task):
    """Says who it is, without a server."""
    return task.name, os.environ["TF_CONFIG"]


def meet(task):
    """Meets the others at a barrier; returns its number, and the next generation's."""
    with tfdist.trainer_server(task), tfdist.Barrier(task, "meet", timeout=30) as barrier:
        return barrier.wait(), barrier.generation


def fail_at(task, name, how, timeout=60):
    """Trainer `name` fails, the others wait for it."""
    with tfdist.trainer_server(task):
        barrier = tfdist.Barrier(task, "fail", timeout=timeout)
        if task.name == name:
            how()
        return barrier.wait()


def raise_value_error():
    raise ValueError("the number is odd")


def raise_config_error():
    raise tfdist.ConfigError("--rate", -1, "at least 0")


def exit_with_7():
    sys.exit(7)


def note_and_wait(task, folder):
    """Leaves its pid in `folder`, then waits at a barrier until the file `go` is there."""
    with tfdist.trainer_server(task):
        barrier = tfdist.Barrier(task, "go", timeout=60)
        path = pathlib.Path(folder, task.name)
        draft = path.with_suffix(".new")
        draft.write_text(str(os.getpid()))
        draft.rename(path)
        if task.is_chief:
            poll_until(pathlib.Path(folder, "go").exists, "the test says go", timeout=60)
        return barrier.wait()
