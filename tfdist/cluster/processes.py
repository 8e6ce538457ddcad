"""Tasks as processes, forked from the fork server.

No task outlives this process: the kernel kills each task when the fork server ends, and the fork
server ends with this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import select
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

from tfdist.cluster.by_value import ByValue, portable, without_program
from tfdist.cluster.fork_server import (
    OF_GROUP,
    context,
    die_with_parent,
    guardian,
    release_fork_server,
    start_fork_server,
)
from tfdist.cluster.kernel_calls import raise_descriptor_limit, to_high_number
from tfdist.cluster.script import Script, end_process
from tfdist.cluster.server import SERVER_ENVIRONMENT, has_reported
from tfdist.deadline import Deadline
from tfdist.errors import ClusterError
from tfdist.runs.folder import PROGRESS_FILE, STACKS_FILE
from tfdist.runs.log import show_log_of_task
from tfdist.runs.outcome import (
    Observer,
    Outcome,
    Usage,
    oom_kills,
    out_of_memory,
    text_of,
)
from tfdist.task import PROGRESS_VARIABLE, Task

# On this signal a task writes its stacks into its folder, even if Python is stuck.
STACKS_SIGNAL = signal.SIGRTMAX

_LEAVE_SECS = 5.0
# How long the output of a task is read after its end, and the silence that ends it earlier.
_DRAIN_SECS, _SILENT_SECS = 2.0, 0.2
_SAMPLE_SECS = 0.5
# What is kept of standard error, and shown if a task ends without a traceback.
_SAID_BYTES, _LAST_LINES = 4096, 8
_NO_TRACEBACK, _TRACEBACK = "it printed no traceback", "Traceback (most recent call last):"
_NO_RETURN = (
    "its function never returned: it ended its process with exit code 0, for example by "
    "os._exit(0) or os.execv; return from the function instead"
)
_READY, _GO = b"ready", b"go"


@dataclass(frozen=True)
class Surroundings:
    """The environment of the tasks of a cluster.

    Attributes:
        environment: environment variables for all tasks.
        observer: receives their output and events; None lets them write to the streams of this
            process.
        enter: called in the process of each task before its function, while the process has one
            thread, for example to enter namespaces; must pickle. If it raises, the task fails.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    observer: Observer | None = None
    enter: Callable[[Task], object] | None = None


class ProcessTask:
    """A task whose function runs in a process, in a process group of its own."""

    def __init__(
        self,
        task: Task,
        function: Callable[[Task], object],
        ended: Callable[[ProcessTask, Outcome], None],
        surroundings: Surroundings,
        attempt: int = 1,
        *,
        grace: float,
    ) -> None:
        self.task = task
        self._ended, self._attempt, self._grace = ended, attempt, grace
        self._observer, self._terminated = surroundings.observer, False
        self._failure: BaseException | None = None  # of this process, about the task
        self._is_gone = threading.Event()
        self._said = b""  # the end of its standard error
        self._oom_kills = oom_kills(os.getpid())
        environment = {
            **SERVER_ENVIRONMENT,
            **surroundings.environment,
            "TF_CONFIG": task.to_env(),
        }
        self._is_script = isinstance(function, Script)
        # In shared memory, because the function may close the channel and then return.
        self._has_returned = context.RawValue(ctypes.c_bool, False)
        start_fork_server()
        channel, end_of_task = context.Pipe()
        readers: list[threading.Thread] = []
        streams: list[int] = []
        folder = None
        if self._observer is not None:
            folder = self._observer.folder(task.name, attempt)
            environment[PROGRESS_VARIABLE] = os.path.join(folder, PROGRESS_FILE)
            for stream in (1, 2):
                read_end, write_end = os.pipe()
                streams.append(write_end)
                readers.append(
                    threading.Thread(
                        target=self._forward,
                        args=(read_end, stream, self._observer),
                        name=f"{task.name} output {stream}",
                        daemon=True,
                    )
                )
        self._process = context.Process(
            target=_task_main,
            args=(
                task,
                _Function(portable(function)),
                surroundings.enter,
                environment,
                end_of_task,
                self._has_returned,
                _Streams(streams),
                folder,
                grace,
            ),
            name=task.name,
        )
        with without_program():
            self._process.start()
        # Otherwise `multiprocessing` polls it when it starts another process. If the watcher polls
        # at the same time, one of the two reads exit code 255. (CPython 3.10 to 3.13.)
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        end_of_task.close()
        for stream in streams:
            os.close(stream)
        for reader in readers:
            reader.start()
        self._watcher = threading.Thread(
            target=self._watch, args=(channel, readers), name=f"{task.name} watcher", daemon=True
        )
        self._watcher.start()

    @property
    def pid(self) -> int:
        """The pid of its process, which leads a process group of the same number."""
        pid = self._process.pid
        assert pid is not None  # the process was started
        return pid

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the task's process group; SIGTERM to the task's process alone.

        The program of the task decides what SIGTERM means for the processes that it has started.
        SIGCONT follows SIGTERM, because a stopped task could not end.
        """
        if number != signal.SIGTERM:
            self._signal_group(number)
            return
        self._terminated = True
        if not self._is_gone.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            self._signal_group(signal.SIGCONT)

    def wait(self, timeout: float) -> bool:
        """True once its process has ended; blocks until then, for `timeout` seconds at most."""
        return self._is_gone.wait(timeout)

    def kill(self) -> None:
        """Sends SIGKILL to its process group; returns when its process has ended.

        Raises:
            ClusterError: the process has not ended after 5 s.
        """
        self._terminated = True
        self._signal_group(signal.SIGKILL)
        self._watcher.join(_LEAVE_SECS)
        if self._watcher.is_alive():
            raise ClusterError(
                f"{self.task.name} (pid {self.pid}) has not ended {_LEAVE_SECS:g} s after SIGKILL; "
                "it may be blocked in the kernel, for example by a file system"
            )

    def _signal_group(self, number: signal.Signals) -> None:
        if self._is_gone.is_set():
            return  # `_sweep` kills the rest of the group, whose number may be reused after it
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # the process does not lead its group yet, or has just ended
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _sweep(self) -> None:
        """Kills the processes that the task has left in its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _watch(self, channel: Connection, readers: list[threading.Thread]) -> None:
        outcome = Outcome()
        with channel, self._noting_failure():
            if self._observer is not None:
                self._observer.started(self.task.name, self._attempt, self.pid)
            outcome = self._run(channel)
        self._process.join()
        self._is_gone.set()
        self._sweep()
        guardian.forget_group(self.pid)
        for reader in readers:
            reader.join()
        if outcome.details == _NO_TRACEBACK and (said := self._said.decode(errors="replace")):
            last = textwrap.indent("\n".join(said.splitlines()[-_LAST_LINES:]), "  ")
            what = "" if _TRACEBACK in said else f"{_NO_TRACEBACK}; "
            details = f"{what}the end of its standard error:\n{last}"
            outcome = replace(outcome, details=details)
        must_return = not (self._process.exitcode or self._terminated or self._is_script)
        if must_return and not self._has_returned.value:
            outcome = replace(outcome, error=ClusterError(_NO_RETURN), details=_NO_RETURN)
        if self._process.exitcode == -signal.SIGKILL and not self._terminated:
            why = out_of_memory(self._oom_kills, oom_kills(os.getpid()))
            outcome = replace(outcome, details="\n".join(filter(None, (why, outcome.details))))
        if self._terminated and outcome.failed and outcome.handles_sigterm:
            # A terminated task is no failure, so nothing else shows what its handler raised.
            with self._noting_failure():
                self._show(outcome.details)
        outcome = replace(outcome, exit_code=self._process.exitcode, terminated=self._terminated)
        with self._noting_failure():
            if self._observer is not None:
                self._observer.ended(self.task.name, self._attempt, outcome)
        if self._failure is not None:
            failed = Outcome.of_error(self._failure)
            outcome = replace(outcome, error=failed.error, details=failed.details)
        self._ended(self, outcome)

    def _show(self, text: str) -> None:
        text = f"{text.rstrip()}\n"
        if self._observer is None:
            print(text, end="", file=sys.stderr)
        else:
            self._observer.output(self.task.name, self._attempt, 2, text.encode(errors="replace"))

    def _run(self, channel: Connection) -> Outcome:
        """Lets the task start, and waits for its outcome."""
        usage = None  # the latest sample, until the task reports its own
        try:
            channel.recv_bytes()  # now it leads its group, and ends with the fork server
            guardian.note_group(self.pid)
            channel.send_bytes(_GO)
            while not channel.poll(_SAMPLE_SECS):
                usage = Usage.of(self.pid) or usage
                # A child of the task may keep its end of the channel open.
                if not self._process.is_alive() and not channel.poll():
                    raise EOFError
            parts = (*channel.recv(), channel.recv_bytes())
        except (EOFError, ConnectionError):
            while self._process.is_alive():  # it has closed the channel
                self._process.join(_SAMPLE_SECS)
                usage = Usage.of(self.pid) or usage
            return Outcome(details=_NO_TRACEBACK, usage=usage)
        # It ends itself when the grace is over, unless Python is stuck in a call.
        self._process.join(self._grace + _LEAVE_SECS)
        if self._process.is_alive():
            self._signal_group(signal.SIGKILL)
        return _received(*parts)

    def _forward(self, read_end: int, stream: int, observer: Observer) -> None:
        """Passes the output on: until its end, or for a moment after the process has ended.

        A process that the task has started in a session of its own may keep the pipe open.
        """
        ready, drained = select.poll(), None
        with os.fdopen(read_end, "rb", buffering=0) as pipe:
            ready.register(pipe)
            while True:
                if drained is None and self._is_gone.is_set():
                    drained = Deadline(_DRAIN_SECS)
                if not ready.poll(1000 * _SILENT_SECS):
                    if drained is not None:
                        return
                    continue
                data = pipe.read(65536)
                if not data or (drained is not None and drained.expired):
                    return
                if stream == 2:
                    self._said = (self._said + data)[-_SAID_BYTES:]
                with self._noting_failure():
                    observer.output(self.task.name, self._attempt, stream, data)

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """An error inside the block is the task's failure; the first one counts."""
        try:
            yield
        except BaseException as error:  # an observer may raise any
            self._failure = self._failure or error


class _Function:
    """The function of a task; an error that loading it raises is an error of the task."""

    def __init__(self, function: Callable[[Task], object] | None, data: bytes = b"") -> None:
        self._function, self._data = function, data

    def __reduce__(self) -> tuple[object, ...]:
        return _Function, (None, bytes(ForkingPickler.dumps(self._function)))

    def loaded(self) -> Callable[[Task], object]:
        """The function, in the process of the task."""
        try:
            function: Callable[[Task], object] = ForkingPickler.loads(self._data)
            if isinstance(function, ByValue):
                function.load()
        except BaseException as error:  # of what it calls to be made
            what = f"the function cannot be unpickled in the task's process: {_line_of(error)}"
            raise ClusterError(what) from error
        return function


class _Streams:
    """The write ends of the pipes for a child's standard output and error, or none."""

    def __init__(self, descriptors: list[int]) -> None:
        self._descriptors = descriptors

    def __reduce__(self) -> tuple[object, ...]:
        return _received_streams, ([DupFd(descriptor) for descriptor in self._descriptors],)

    def redirect(self) -> None:
        """Makes the pipes the streams 1 and 2 of this process."""
        for stream, descriptor in enumerate(self._descriptors, start=1):
            os.dup2(descriptor, stream)
            os.close(descriptor)


def _received_streams(duplicates: list[Any]) -> _Streams:
    return _Streams([duplicate.detach() for duplicate in duplicates])


def _task_main(
    task: Task,
    sent: _Function,
    enter: Callable[[Task], object] | None,
    environment: dict[str, str],
    channel: Connection,
    has_returned: Any,
    streams: _Streams,
    folder: str | None,
    grace: float,
) -> None:
    """The main function of a task's process."""
    given, channel = channel, Connection(to_high_number(os.dup(channel.fileno())))
    given.close()
    own = os.getpid(), _identity(channel)
    die_with_parent()
    release_fork_server()
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher may ignore SIGTERM
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_GROUP)
    _wait_for_go(channel)
    raise_descriptor_limit()
    streams.redirect()
    dumps: Callable[[Any], Any] = ForkingPickler.dumps
    try:
        os.environ.update(environment)
        show_log_of_task(os.environ, folder)
        if folder is not None:
            # Kept open: the signal handler writes to its descriptor, even if Python is stuck.
            stacks = os.open(os.path.join(folder, STACKS_FILE), os.O_WRONLY | os.O_CREAT, 0o666)
            faulthandler.register(STACKS_SIGNAL, to_high_number(stacks), all_threads=True)
        if enter is not None:
            enter(task)
        function = sent.loaded()
        if isinstance(function, ByValue):
            dumps = function.dumps
        outcome = Outcome(result=function(task))
    except SystemExit as error:
        outcome = Outcome.of_exit(error)
    except BaseException as error:
        outcome = Outcome.of_error(error)
    if os.getpid() == own[0]:
        has_returned.value = True
    # A child that the function has forked may come back too. And the function may have closed all
    # descriptors, and opened a file of its own with the number of the channel.
    if (os.getpid(), _identity(channel)) == own:
        handles_sigterm = callable(signal.getsignal(signal.SIGTERM))
        outcome = replace(
            outcome,
            usage=Usage.of_this_process(),
            handles_sigterm=handles_sigterm,
            has_reported=has_reported(task),
        )
        _send(channel, outcome, dumps)
    else:
        if outcome.result is not None and os.getpid() == own[0]:
            what = "the result cannot be sent to the launcher: the function has closed the channel"
            outcome = Outcome.of_error(ClusterError(what))
        outcome.show()
    end_process(outcome.exit_code or int(outcome.failed), task.name, grace)


def _identity(channel: Connection) -> tuple[int, int] | None:
    """What its descriptor refers to now; None if that is closed."""
    try:
        status = os.fstat(channel.fileno())
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _send(channel: Connection, outcome: Outcome, dumps: Callable[[Any], Any]) -> None:
    """Sends the outcome; its error and its result as bytes of their own, which may not load."""
    result, error = b"", None
    try:
        result = dumps(outcome.result)
    except BaseException as failure:  # of a method of the result
        outcome = _without_result(outcome, "be sent to the launcher", failure)
    if outcome.error is not None:
        error = b""
        with contextlib.suppress(BaseException):  # its text is in the details
            error = bytes(dumps(outcome.error))
    channel.send((replace(outcome, result=None, error=None), error))
    channel.send_bytes(result)


def _received(outcome: Outcome, error: bytes | None, result: bytes) -> Outcome:
    """The outcome that `_send` has sent in these parts."""
    if error is not None:
        return _with_error(outcome, error)
    try:
        return replace(outcome, result=ForkingPickler.loads(result))
    except BaseException as failure:  # of a function that the result calls to be made
        return _without_result(outcome, "be unpickled", failure)


def _without_result(outcome: Outcome, what: str, failure: BaseException) -> Outcome:
    details = f"its result cannot {what}: {_line_of(failure)}"
    return replace(outcome, result=None, error=ClusterError(details), details=details)


def _with_error(outcome: Outcome, error: bytes) -> Outcome:
    """With the error of the task; if it cannot be made here, one with its traceback's last line."""
    last = RuntimeError(outcome.details.rstrip().rpartition("\n")[2])
    if not error:  # such as one of a class that only the script can import
        return replace(outcome, error=last)
    try:
        loaded = ForkingPickler.loads(error)
        if not isinstance(loaded, BaseException):
            raise TypeError(f"it becomes a {type(loaded).__name__}")
    except BaseException as failure:
        details = (
            f"{outcome.details.rstrip()}\nits error cannot be unpickled: {_line_of(failure)}\n"
        )
        return replace(outcome, error=last, details=details)
    return replace(outcome, error=loaded)


def _line_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}".removesuffix(": ")


def _wait_for_go(channel: Connection) -> None:
    """Returns once the guardian has noted this task's group; exits if the launcher has ended."""
    try:
        channel.send_bytes(_READY)
        channel.recv_bytes()
    except (EOFError, ConnectionError):
        os._exit(1)
