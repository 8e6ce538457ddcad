"""A session with one task of the cluster, usually ps 0, that depends on no other task."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading

# That of `signal` makes enums of the handlers: 17 us for all signals instead of 1.
from _signal import getsignal  # type: ignore[import-not-found]
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import tensorflow as tf

from tfdist.errors import ClusterError
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
_DUPLICATE_REQUEST = "request was received twice"
_REPLACED = "MISMATCH of original and normalized active exception types"
_MOST_CALLS = 10  # even three collisions in a row do not happen by chance

_PROBE_SECS = 0.2

_SIGNALS = [int(number) for number in signal.Signals]

_log = logging.getLogger(__name__)

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


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
        self._reopening = threading.RLock()
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
        with _noting_handlers() as raised:
            try:
                return self._in_valid_session(run)
            except tf.errors.DeadlineExceededError:
                self._check_task()
                raise
            except RuntimeError as error:
                if _REPLACED not in str(error):
                    raise
                raise (raised[-1] if raised else KeyboardInterrupt()) from None

    def _in_valid_session(self, run: Callable[[], Any]) -> Any:
        """Runs, if necessary in a new session.

        A session sends new operations in a call before the run. If the answer to this call is late,
        the task may have them, but the session does not know it. From then on the task refuses each
        run of this session, before it begins (`MasterSession::Extend` in
        core/distributed_runtime/master_session.cc).
        """
        used = self.session
        try:
            return retry_duplicate_request(run)
        except tf.errors.AbortedError as error:
            if _OUTDATED not in str(error):
                raise
            with self._reopening:
                if self.session is used:
                    # Another thread may still run in this one.
                    self._outdated.append(used)
                    self._open()
            return retry_duplicate_request(run)

    def _check_task(self) -> None:
        if is_refused(self.address):
            raise tf.errors.UnavailableError(None, None, f"nothing listens at {self.address}")


class SharedSession(DirectSession):
    """A session that all users of one graph on one task have in common; see `share_session`.

    Each user closes it, and the last one really does.
    """

    def __init__(self, address: str, graph: tf.Graph, *, timeout: float) -> None:
        super().__init__(address, graph, timeout=timeout)
        self.users = 0
        self.is_lost = False  # whether the last run found that the task was restarted or is gone
        self._answers: dict[str, Any] = {}

    def once(self, name: str, ask: Callable[[], Answer]) -> Answer:
        """What `ask` returned to the first user who needed this."""
        if name not in self._answers:
            self._answers[name] = ask()
        answer: Answer = self._answers[name]
        return answer

    def close(self) -> None:
        """As DirectSession, if this is the last user."""
        with _sharing:
            self.users -= 1
        if not self.users:
            super().close()

    def _ask(self, run: Callable[[], Any]) -> Any:
        try:
            answer = super()._ask(run)
        except PS_LOST:
            self.is_lost = True
            raise
        self.is_lost = False
        return answer


_sharing = threading.RLock()  # a signal handler may use a session too
# By process (a child cannot use its parent's), address, and graph.
_shared: WeakValueDictionary[tuple[int, str, tf.Graph], SharedSession] = WeakValueDictionary()


def share_session(address: str, graph: tf.Graph, *, timeout: float) -> SharedSession:
    """This process's session for that graph, unless it is known to be lost: then a new one.

    The arguments are those of DirectSession.
    """
    key = (os.getpid(), address, graph)
    with _sharing:
        session = _shared.get(key)
        if session is None or session.is_lost or not session.users:
            session = _shared[key] = SharedSession(address, graph, timeout=timeout)
        session.users += 1
    return session


def retry_duplicate_request(
    call: Callable[Given, Answer], *args: Given.args, **kwargs: Given.kwargs
) -> Answer:
    """Calls, and calls again if the server refuses a duplicate request; raises the tenth error.

    One run in some 50,000 sent straight to a server is refused by mistake. A server gives each
    `session.run` of a client a random number, and takes a number among its last 100,000 for a
    duplicate request. But it draws each number from a generator freshly seeded with 32 bits, so
    numbers do collide (the birthday problem). The run then fails with AbortedError before it has
    begun. (TensorFlow 2.21: 4 of 203,000 runs. `ThreadLocalNew64` in tsl/platform/random.cc,
    `RecentRequestIds` in core/distributed_runtime.)
    """
    for _ in range(_MOST_CALLS - 1):
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if _DUPLICATE_REQUEST not in str(error):
                raise
            _log.info("TensorFlow refused a run as a duplicate request; it is sent again")
    return call(*args, **kwargs)


@contextmanager
def _noting_handlers() -> Iterator[list[BaseException]]:
    """What signal handlers raise in this block, except the KeyboardInterrupt of Python's own.

    If a run ends with an error and a handler raises at the same time, TensorFlow raises a
    RuntimeError that has only the text of both (TensorFlow 2.21).
    """
    raised: list[BaseException] = []
    noting: dict[int, tuple[Any, Any]] = {}
    # `current_thread` would leave an object behind for each thread of TensorFlow.
    if threading.get_ident() == threading.main_thread().ident:
        for number in _SIGNALS:
            handler = getsignal(number)
            if callable(handler) and handler is not signal.default_int_handler:
                noting[number] = handler, _noting(handler, raised)
    try:
        for number, (_, noted) in noting.items():
            signal.signal(number, noted)
        yield raised
    finally:
        for number, (handler, noted) in noting.items():
            if getsignal(number) is noted:  # the handler may have set another one
                signal.signal(number, handler)


def _noting(
    handler: Callable[[int, Any], object], raised: list[BaseException]
) -> Callable[[int, Any], object]:
    def noted(number: int, frame: Any) -> object:
        try:
            return handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    return noted


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
