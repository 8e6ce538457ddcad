"""A pytest plugin for tests of clusters: clusters that end with the test, and a check for leaks.

pytest loads it wherever tfdist is installed; its fixtures do nothing until a test asks for them.
pytest's own options `faulthandler_timeout` and `faulthandler_exit_on_timeout` set a deadline for
each test and print the stacks of all threads.

With `tfdist_isolate = true` in pytest's configuration the pytest process runs in a network
namespace of its own, so no other machine can reach the servers of its tests.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import psutil
import pytest

from tfdist.cluster.fork_server import fork_server_processes
from tfdist.cluster.isolation import is_reachable, isolate
from tfdist.deadline import Deadline
from tfdist.errors import ClusterError, checked_action

if TYPE_CHECKING:
    from tfdist.cluster.local import LocalCluster

Found = TypeVar("Found")

_LEAVE_SECS = 5.0
_POLL_SECS = 0.02
_ISOLATED = pytest.StashKey[str]()


def poll_until(condition: Callable[[], object], what: str, *, timeout: float = 10.0) -> None:
    """Returns once `condition()` is true; after `timeout` seconds it fails the test with `what`.

    For a test that waits for something that has no callback.
    """
    checked_action("condition", condition, may_be_none=False)
    deadline = Deadline(timeout)
    while not condition():
        if deadline.expired:
            pytest.fail(f"not after {timeout:.1f} s: {what}")
        time.sleep(_POLL_SECS)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the plugin's settings."""
    parser.addini(
        "tfdist_isolate",
        "run pytest in a private network namespace, where no other machine reaches its servers",
        type="bool",
        default=False,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Isolates this process if the configuration says so, before a conftest can start threads."""
    if not early_config.getini("tfdist_isolate"):
        return
    state = "isolated, in a private network namespace"
    # A child of an isolated pytest, such as a worker of pytest-xdist, already is.
    if is_reachable():
        try:
            isolate()
        except ClusterError as error:
            state = f"NOT isolated, so other machines may reach the tests' servers: {error}"
            if os.environ.get("CI"):
                raise pytest.UsageError(f"tfdist_isolate: {state}") from None
    early_config.stash[_ISOLATED] = state


def pytest_report_header(config: pytest.Config) -> str | None:
    """Reports whether this process is isolated, if the configuration asks for it."""
    state = config.stash.get(_ISOLATED, None)
    return state and f"tfdist: {state}"


@pytest.fixture
def make_cluster() -> Iterator[Callable[..., LocalCluster]]:
    """`tfdist.local_cluster`, already entered; the test's end leaves it."""
    from tfdist.cluster.local import local_cluster

    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(local_cluster(*args, **kwargs))


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fails the test if it leaves a process, one of its listening ports, or a thread behind.

    The fork server stays on purpose. Threads and ports of TensorFlow within this process stay too,
    because Python cannot see them.
    """
    threads = set(threading.enumerate())
    processes = _processes()
    yield
    _wait_until_gone(lambda: _processes() - processes, lambda left: f"processes: {left}")
    _wait_until_gone(lambda: set(threading.enumerate()) - threads, _stacks)


def _wait_until_gone(find: Callable[[], set[Found]], describe: Callable[[set[Found]], str]) -> None:
    deadline = Deadline(_LEAVE_SECS)
    while left := find():
        if deadline.expired:
            pytest.fail(f"left behind after {_LEAVE_SECS:.1f} s: {describe(left)}")
        time.sleep(_POLL_SECS)


def _processes() -> set[psutil.Process]:
    tasks: set[psutil.Process] = set(psutil.Process().children(recursive=True))
    return tasks - set(fork_server_processes())


def _stacks(threads: set[threading.Thread]) -> str:
    frames = sys._current_frames()
    return "threads\n" + "\n".join(
        f"{thread.name}\n{''.join(traceback.format_stack(frames[thread.ident]))}"
        for thread in threads
        if thread.ident in frames
    )
