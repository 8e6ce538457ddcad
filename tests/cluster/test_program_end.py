"""A task's process ends as Python ends a program: threads are joined, exit handlers run."""

import atexit
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from multiprocessing import shared_memory

import pytest

from tfdist.cluster.processes import Surroundings
from tfdist.errors import TaskFailed


def trained(make_cluster, function, observer=None):
    """The result of a trainer that runs `function(task)` in its own process."""
    cluster = make_cluster(0, 1, backend="processes", surroundings=Surroundings(observer=observer))
    return cluster.run(function, timeout=60)


def errors_of(run):
    return (run.path / "attempt-1" / "worker-0" / "stderr").read_text()


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


def raise_in_a_child(task):
    if os.fork() == 0:
        raise ValueError("no data")
    return os.waitstatus_to_exitcode(os.wait()[1])


def test_the_error_of_a_forked_child_is_printed_as_python_prints_it(make_cluster, folder):
    run = folder("tfdist-a")
    assert trained(make_cluster, raise_in_a_child, run) == [1]
    said = errors_of(run)
    assert said.startswith("Traceback (most recent call last):\n")
    assert said.endswith('    raise ValueError("no data")\nValueError: no data\n')


def close_all(first, folder, task):
    """As a program does that becomes a daemon; then it opens files of its own."""
    os.closerange(first, 3000)
    for number in range(30):
        os.open(folder / str(number), os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):  # multiprocessing writes into a pipe, which is closed
        shared_memory.SharedMemory(create=True, size=1)


def close_all_and_exit(first, folder, task):
    close_all(first, folder, task)
    sys.exit(3)


def close_all_and_raise(first, folder, task):
    close_all(first, folder, task)
    raise ValueError("no data")


def close_all_and_return(first, folder, task):
    close_all(first, folder, task)
    return 5


def close_some_and_go_on(folder, task):
    os.closerange(0, 300)
    for number in range(30):
        os.open(folder / str(number), os.O_WRONLY | os.O_CREAT)
    memory = shared_memory.SharedMemory(create=True, size=1)
    memory.close()
    memory.unlink()
    return 5


def test_a_task_that_has_closed_its_lower_descriptors_lacks_nothing(make_cluster, tmp_path, folder):
    run, own = folder("tfdist-a"), tmp_path / "own"
    own.mkdir()
    assert trained(make_cluster, partial(close_some_and_go_on, own), run) == [5]
    assert run.records()[0].usage is not None
    assert {path.read_bytes() for path in own.iterdir()} == {b""}


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize(
    ("function", "code", "said"),
    [
        (close_all, 0, ""),
        (close_all_and_exit, 3, ""),
        (close_all_and_raise, 1, "ValueError: no data\n"),
        (close_all_and_return, 1, "the result cannot be sent to the launcher: the function has"),
    ],
)
def test_a_task_that_has_closed_all_descriptors_ends_with_its_own_exit_code(
    make_cluster, tmp_path, folder, first, function, code, said
):
    run, own = folder("tfdist-a"), tmp_path / "own"
    own.mkdir()
    with pytest.raises(TaskFailed) if code else nullcontext() as caught:
        trained(make_cluster, partial(function, first, own), run)
    [record] = run.records()
    assert record.exit_code == code
    streams = {"1", "2"} if first == 0 else set()  # its files with these numbers
    assert {path.read_bytes() for path in own.iterdir() if path.name not in streams} == {b""}
    assert said in (errors_of(run) if first else (own / "2").read_text())
    if "Traceback" in errors_of(run):
        assert "\nthe end of its standard error:\n" in str(caught.value)


def close_the_output(task):
    sys.stdout.close()
    sys.stderr = None
    return "done"


def test_closed_and_missing_streams_are_no_failure(make_cluster):
    assert trained(make_cluster, close_the_output) == ["done"]
