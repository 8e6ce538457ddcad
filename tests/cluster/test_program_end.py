"""A task's process ends as Python ends a program: threads are joined, exit handlers run."""

import atexit
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial


def trained(make_cluster, function):
    """The result of a trainer that runs `function(task)` in its own process."""
    return make_cluster(0, 1, backend="processes").run(function, timeout=60)


def leave_work(folder, task):
    """Returns while a handler, a thread and a pool have something to write."""
    returned = threading.Event()

    def write(name):
        returned.wait(0.5)
        (folder / name).touch()

    atexit.register(write, "handler")
    threading.Thread(target=write, args=("thread",)).start()
    ThreadPoolExecutor().submit(write, "pool")
    return "done"


def test_threads_pools_and_exit_handlers_finish_their_work(make_cluster, tmp_path):
    assert trained(make_cluster, partial(leave_work, tmp_path)) == ["done"]
    assert {path.name for path in tmp_path.iterdir()} == {"handler", "thread", "pool"}


def fork(task):
    if os.fork() == 0:
        sys.exit(3)
    _, status = os.wait()
    return os.waitstatus_to_exitcode(status)


def test_a_forked_child_does_not_speak_for_the_task(make_cluster):
    assert trained(make_cluster, fork) == [3]


def close_the_output(task):
    sys.stdout.close()
    sys.stderr = None
    return "done"


def test_closed_and_missing_streams_are_no_failure(make_cluster):
    assert trained(make_cluster, close_the_output) == ["done"]
