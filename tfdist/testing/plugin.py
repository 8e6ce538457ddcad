"""A pytest plugin for tests of clusters: clusters that end with the test, and a check for leaks.

It is active where tfdist is installed; its fixtures do nothing until a test asks for them. For a
deadline on every test, which shows where all threads stand, use pytest's own options
`faulthandler_timeout` and `faulthandler_exit_on_timeout`.

With `tfdist_isolate = true` in pytest's configuration the whole of pytest has a network of its own,
so that nobody outside reaches the servers of its tests.
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

from tfdist.cluster.isolation import is_reachable, isolate
from tfdist.cluster.processes import fork_server_processes
from tfdist.deadline import Deadline
from tfdist.errors import ClusterError
from tfdist.testing.polling import POLL_SECS

if TYPE_CHECKING:
    from tfdist.cluster.local import LocalCluster

Found = TypeVar("Found")

_LEAVE_SECS = 5.0
_ISOLATED = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the plugin's settings."""
    parser.addini(
        "tfdist_isolate",
        "run in a network of one's own, so that nobody outside reaches the tests' servers",
        type="bool",
        default=False,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Isolates this process if the configuration says so: before a conftest may start threads."""
    if not early_config.getini("tfdist_isolate"):
        return
    told = "isolated: in a network of its own"
    # Already so where pytest's parent is isolated, such as that of a worker of pytest-xdist.
    if is_reachable():
        try:
            isolate()
        except ClusterError as error:
            told = f"NOT isolated, so others may reach the servers of the tests: {error}"
            if os.environ.get("CI"):
                raise pytest.UsageError(f"tfdist_isolate: {told}") from None
    early_config.stash[_ISOLATED] = told


def pytest_report_header(config: pytest.Config) -> str | None:
    """Says whether this process is isolated, if it was asked for."""
    told = config.stash.get(_ISOLATED, None)
    return told and f"tfdist: {told}"


@pytest.fixture
def make_cluster() -> Iterator[Callable[..., LocalCluster]]:
    """`tfdist.local_cluster`, entered, and left at the end of the test."""
    from tfdist.cluster.local import local_cluster

    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(local_cluster(*args, **kwargs))


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fails the test if it leaves a process, a listening port of one, or a thread behind.

    The fork server stays on purpose. So do threads and ports that TensorFlow has within this
    process, which Python does not know of.
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
        time.sleep(POLL_SECS)


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
