"""A session with one task of the cluster, usually ps 0, that depends on no other task."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import tensorflow as tf

from tfdist.errors import ClusterError
from tfdist.ps.retry import retry_duplicate_request
from tfdist.task import parse_address, session_target

PS = "/job:ps/task:0"
PS_DEVICE = f"{PS}/device:CPU:0"

# The ps has lost its state, or is gone.
PS_LOST = (
    tf.errors.AbortedError,  # "Session handle is not found": it was restarted
    tf.errors.UnavailableError,  # its process is gone
    tf.errors.FailedPreconditionError,  # restarted, and nothing is initialized
)

_OUTDATED = "Current version is"

_PROBE_SECS = 0.2


class DirectSession:
    """A session straight to one task: faster than one through the trainer's own server.

    Every method that asks the task raises tf.errors.UnavailableError if the task is gone, and
    tf.errors.DeadlineExceededError if it does not answer in time.

    Args:
        address: host:port of the task.
        graph: the graph to run, placed on that task as a whole.
        timeout: seconds that one run may take; 0 means no limit.
        task_device: the task as a device, by default ps 0.
        target: the session's target; by default `address` over gRPC.

    Raises:
        ClusterError: this is a forked child of a process that has made a session.
    """

    _used_in: int | None = None  # the process that made the first session

    def __init__(
        self,
        address: str,
        graph: tf.Graph,
        *,
        timeout: float,
        task_device: str = PS,
        target: str | None = None,
    ) -> None:
        self._config = tf.compat.v1.ConfigProto(
            # Without this filter the session would wait for every task of the cluster.
            device_filters=[task_device],
            operation_timeout_in_ms=int(timeout * 1000),
        )
        # For a few dozen small operations, rewriting the graph takes longer than it saves.
        self._config.graph_options.rewrite_options.disable_meta_optimizer = True
        self.address, self._target, self._graph = address, target or session_target(address), graph
        self._outdated: list[tf.compat.v1.Session] = []
        self._open()

    def _open(self) -> None:
        DirectSession._used_in = DirectSession._used_in or os.getpid()
        if os.getpid() != DirectSession._used_in:
            raise ClusterError(
                f"this process was forked from process {self._used_in} after that had used "
                "TensorFlow, so a session would block for ever here; start it with the method "
                "'spawn' of multiprocessing"
            )
        self.session = tf.compat.v1.Session(self._target, graph=self._graph, config=self._config)
        self._callables: dict[Any, Callable[[], object]] = {}

    def run(
        self,
        fetches: Any,
        feed: Mapping[Any, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Runs `fetches`; `timeout` shortens the session's own."""
        options = None
        if timeout is not None:
            options = tf.compat.v1.RunOptions(timeout_in_ms=int(timeout * 1000))
        return self._ask(lambda: self.session.run(fetches, feed, options=options))

    def call(self, operation: Any) -> None:
        """Runs an operation without feed or fetch, in half the time of `run`."""

        def run() -> None:
            if operation not in self._callables:
                self._callables[operation] = self.session.make_callable(operation)
            self._callables[operation]()

        self._ask(run)

    def close(self) -> None:
        """Closes the session, also if the task is gone; blocks for at most the session's timeout.

        A task that is gone or silent holds nothing that has to be released.
        """
        with suppress(*PS_LOST, tf.errors.DeadlineExceededError):
            self._check_task()
            for session in (*self._outdated, self.session):
                session.close()

    def __enter__(self) -> DirectSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, run: Callable[[], Any]) -> Any:
        try:
            return self._in_valid_session(run)
        except tf.errors.DeadlineExceededError:
            self._check_task()
            raise
        except RuntimeError as error:
            raised = _raised_by_handler(error)
            if raised is None:
                raise
            raise raised from None

    def _in_valid_session(self, run: Callable[[], Any]) -> Any:
        """Runs, if necessary in a new session.

        A session sends new operations in a call before the run. If the answer to this call is late,
        the task may have them, but the session does not know it. From then on the task refuses each
        run of this session, before it begins (`MasterSession::Extend` in
        core/distributed_runtime/master_session.cc).
        """
        try:
            return retry_duplicate_request(run)
        except tf.errors.AbortedError as error:
            if _OUTDATED not in str(error):
                raise
            # Another thread may still run in this one.
            self._outdated.append(self.session)
            self._open()
            return retry_duplicate_request(run)

    def _check_task(self) -> None:
        if is_refused(self.address):
            raise tf.errors.UnavailableError(None, None, f"nothing listens at {self.address}")


def _raised_by_handler(error: RuntimeError) -> BaseException | None:
    """What a signal handler raised while TensorFlow made its own error from the end of the run.

    TensorFlow then raises a RuntimeError that has only the text of both (TensorFlow 2.21).
    """
    found = re.search(r"REPLACED BY (KeyboardInterrupt|SystemExit): (.*)", str(error))
    if found is None:
        return None
    name, text = found.groups()
    if name == "KeyboardInterrupt":
        return KeyboardInterrupt()
    if re.fullmatch(r"-?\d+", text):
        return SystemExit(int(text))
    return SystemExit(None if text == "<EMPTY MESSAGE>" else text)


def is_refused(address: str) -> bool:
    """Whether no process listens at `address`; blocks for at most 0.2 s.

    If the process is gone, TensorFlow repeats a call until the run times out, but the kernel of
    that machine refuses a connection immediately. A machine that is slow or cut off refuses
    nothing, so the answer for it is False.
    """
    try:
        socket.create_connection(parse_address(address), _PROBE_SECS).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)
    return False
